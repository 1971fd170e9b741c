"""Lets models answer held-out scenes, and judges what they say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mgsd_core import prompts
from mgsd_core.evaluation.score import Record, score
from mgsd_core.prompts import ParsedResponse, Prompt
from sim import Plan, format_plan

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

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
        room: returns how long an answer about a family may be [tokens]; by default twice as long
            as the right one to the scene, enough for a model that was trained to answer so.
    """

    def answer(part: Scenes) -> list[str]:
        if source == "image":
            asked = [prompts.student_prompt(s.family, backbone.style) for s in part.states]
        else:
            asked = [prompts.symbolic_prompt(s, backbone.style) for s in part.states]
        right = [prompts.response_text(s, p) for s, p in zip(part.states, part.plans, strict=True)]
        rooms = None if room is None else [room(s.family) for s in part.states]
        return respond(backbone, asked, part.images if source == "image" else None, right, rooms)

    return judge(scenes, answer, batch, progress)


def judge(
    scenes: Scenes,
    answer: Callable[[Scenes], Sequence[str]],
    batch: int = 64,
    progress: Callable[[int], Any] | None = None,
) -> list[Record]:
    """Let scenes be answered, some at a time, and judge the answers.

    Args:
        scenes: pictures and their states.
        answer: returns the response to each of the scenes that it is given.
        batch: scenes given at a time.
        progress: called with the number of scenes done since the last call.
    """
    # Responses of one length finish together: answer scenes of one family and level together.
    order = sorted(
        range(len(scenes.states)),
        key=lambda i: (scenes.states[i].family, scenes.states[i].size, len(scenes.plans[i])),
    )
    records: dict[int, Record] = {}
    for begin in range(0, len(order), batch):
        chosen = order[begin : begin + batch]
        part = scenes.part(chosen)
        for i, state, text in zip(chosen, part.states, answer(part), strict=True):
            parsed = prompts.parse_response(text, state.family)
            records[i] = score(scenes.names[i], state, scenes.plans[i], parsed, text)
        if progress is not None:
            progress(len(chosen))
    return [records[i] for i in range(len(order))]


def read_states(backbone: Backbone, scenes: Scenes) -> list[str]:
    """Ask for the state of every picture at once; nothing is planned."""
    question = prompts.question_prompt(prompts.STATE_QUESTION, backbone.style)
    right = [prompts.state_text(state) for state in scenes.states]
    return respond(backbone, [question] * len(right), scenes.images, right)


def respond(
    backbone: Backbone,
    asked: Sequence[Prompt],
    images: NDArray[np.uint8] | None,
    right: Sequence[str],
    rooms: Sequence[int] | None = None,
) -> list[str]:
    """Return what the model says to prompts, greedily and all at once.

    How long a response may be depends on nothing but its own scene: else what becomes of it would
    depend on how many others, and which, are answered beside it.

    Args:
        backbone: the model.
        asked: the prompts.
        images: fitted pictures uint8 [N, size, size, 3], one a prompt, or None for text.
        right: the right response to each prompt.
        rooms: how long each response may be [tokens]; None is twice as long as its right one.
    """
    from mgsd_core.encoding import prompt_ids, text_ids
    from mgsd_core.rollout import generate

    if not asked:
        return []
    if rooms is None:
        rooms = [2 * len(text_ids(backbone, text)) for text in right]
    responses = generate(
        backbone,
        [prompt_ids(backbone, prompt) for prompt in asked],
        images,
        max_new_tokens=max(rooms),
    )
    return [
        backbone.tokenizer.decode(response[:room], skip_special_tokens=True)
        for response, room in zip(responses, rooms, strict=True)
    ]


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

    def answer(part: Scenes) -> list[str]:
        shown = zip(part.states, part.images, strict=True)
        return [planners[state.family].plan(picture).text for state, picture in shown]

    return judge(scenes, answer, 1, progress)


def plan_records(scenes: Scenes, plans: Sequence[Plan]) -> list[Record]:
    """Judge plans, one a scene, that come without a response; no state is recovered."""
    records = []
    for name, state, own, plan in zip(
        scenes.names, scenes.states, scenes.plans, plans, strict=True
    ):
        parsed = ParsedResponse(None, plan, None)
        records.append(score(name, state, own, parsed, format_plan(plan)))
    return records
