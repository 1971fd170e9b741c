"""Lets models answer held-out scenes, and judges what they say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mgsd_core import prompts
from mgsd_core.evaluation.score import Record, score
from mgsd_core.prompts import ParsedResponse
from sim import Plan, format_plan

if TYPE_CHECKING:
    from pathlib import Path

    from mgsd_core.model import Backbone
    from mgsd_core.scenes import Scenes


def evaluate(
    backbone: Backbone,
    scenes: Scenes,
    source: str,
    batch: int = 64,
    progress: Callable[[int], Any] | None = None,
    room: Callable[[str], int] | None = None,
) -> list[Record]:
    """Let the model answer greedily and judge its answers.

    Args:
        backbone: the model.
        scenes: held-out pictures and their states.
        source: `image` (what a robot has) or `text` (the symbolic state: the upper bound).
        batch: responses generated at a time.
        progress: called with the number of scenes done since the last call.
        room: returns how long an answer about a family may be [tokens]; by default twice the
            longest right one beside it, enough for a model that was trained to answer so.
    """
    from mgsd_core.encoding import prompt_ids, text_ids
    from mgsd_core.rollout import generate

    # Responses of one length finish together: answer scenes of one family and level together.
    order = sorted(
        range(len(scenes.states)),
        key=lambda i: (scenes.states[i].family, scenes.states[i].size, len(scenes.plans[i])),
    )
    records: dict[int, Record] = {}
    for begin in range(0, len(order), batch):
        chosen = order[begin : begin + batch]
        states = [scenes.states[i] for i in chosen]
        plans = [scenes.plans[i] for i in chosen]
        if source == "image":
            asked = [prompts.student_prompt(s.family, backbone.style) for s in states]
        else:
            asked = [prompts.symbolic_prompt(s, backbone.style) for s in states]
        longest = max(
            len(text_ids(backbone, prompts.response_text(s, p)))
            for s, p in zip(states, plans, strict=True)
        )
        responses = generate(
            backbone,
            [prompt_ids(backbone, p) for p in asked],
            scenes.images[chosen] if source == "image" else None,
            max_new_tokens=2 * longest if room is None else max(room(s.family) for s in states),
        )
        for i, state, plan, response in zip(chosen, states, plans, responses, strict=True):
            text = backbone.tokenizer.decode(response, skip_special_tokens=True)
            parsed = prompts.parse_response(text, state.family)
            records[i] = score(scenes.names[i], state, plan, parsed, text)
        if progress is not None:
            progress(len(chosen))
    return [records[i] for i in range(len(order))]


def evaluate_bundle(
    path: Path, scenes: Scenes, progress: Callable[[int], Any] | None = None
) -> list[Record]:
    """Let a bundle answer picture by picture, as on a robot, and judge its answers.

    Raises:
        mgsd_core.runtime.bundle.BundleError: see `Planner.load`.
    """
    from mgsd_core.runtime.planner import Planner

    planners = {
        family: Planner.load(path, family=family)
        for family in sorted({state.family for state in scenes.states})
    }
    records = []
    for name, state, plan, picture in zip(
        scenes.names, scenes.states, scenes.plans, scenes.images, strict=True
    ):
        text = planners[state.family].plan(picture).text
        parsed = prompts.parse_response(text, state.family)
        records.append(score(name, state, plan, parsed, text))
        if progress is not None:
            progress(1)
    return records


def plan_records(scenes: Scenes, plans: Sequence[Plan]) -> list[Record]:
    """Judge plans, one a scene, that come without a response; no state is recovered."""
    records = []
    for name, state, own, plan in zip(
        scenes.names, scenes.states, scenes.plans, plans, strict=True
    ):
        parsed = ParsedResponse(None, plan, None)
        records.append(score(name, state, own, parsed, format_plan(plan)))
    return records
