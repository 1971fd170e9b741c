"""How well a model plans: success, optimality, legality, state recovery; by family, level, macro.

`score` and `summarise` are arithmetic on responses and know nothing of models: bags and other
planners are scored by them too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from mgsd_core import prompts
from mgsd_core.prompts import ParsedResponse
from sim import Failure, Plan, State, format_plan, simulate

if TYPE_CHECKING:
    from pathlib import Path

    from mgsd_core.model import Backbone
    from mgsd_core.scenes import Scenes

#: Averaged measures of a record, in the order of the table.
MEASURES = ("success", "optimal", "legal", "state")


@dataclass(frozen=True, slots=True)
class Record:
    """One judged response.

    Attributes:
        family, level: of the task.
        success, optimal: of the plan, executed in the *true* state.
        legal: there is a plan and no action of it is illegal in the true state.
        state: the recovered state equals the true one.
        fields: which fields of the state were recovered.
        failure: why there was no success, or None.
        steps, shortest: actions carried out, and of the optimal plan.
        text: the response.
    """

    family: str
    level: int
    success: bool
    optimal: bool
    legal: bool
    state: bool
    fields: dict[str, bool]
    failure: str | None
    steps: int
    shortest: int
    text: str


def score(state: State, shortest: int, parsed: ParsedResponse, text: str) -> Record:
    """Judge a response by executing its plan in the true state.

    Args:
        state: the true state.
        shortest: actions of its optimal plan.
        parsed: the response as `prompts.parse_response` read it.
        text: the response.
    """
    outcome = simulate(state, parsed.plan or ())
    legal = parsed.plan is not None and outcome.failure in (None, Failure.INCOMPLETE)
    if parsed.plan is None:
        failure: str | None = parsed.problem
    else:
        failure = None if outcome.failure is None else outcome.failure.value
    return Record(
        family=state.family,
        level=state.size,
        success=outcome.success,
        optimal=outcome.optimal,
        legal=legal,
        state=parsed.state == state,
        fields=_recovered_fields(state, parsed.state),
        failure=failure,
        steps=outcome.steps,
        shortest=shortest,
        text=text,
    )


def summarise(records: Iterable[Record]) -> dict[str, Any]:
    """Average records: by level, then over the levels of a family, then over families (macro).

    Returns:
        `{"macro": {...}, "families": {family: {..., "levels": {level: {...}}}}, "count": N}`;
        every `{...}` holds the `MEASURES`, `success_given_state` (None where no state was
        recovered) and, by level, `fields` and `count`.
    """
    groups: dict[str, dict[int, list[Record]]] = {}
    for record in records:
        groups.setdefault(record.family, {}).setdefault(record.level, []).append(record)
    families: dict[str, Any] = {}
    for family in sorted(groups):
        levels = {str(level): _level(groups[family][level]) for level in sorted(groups[family])}
        families[family] = {**_average(list(levels.values())), "levels": levels}
    count = sum(len(rs) for levels in groups.values() for rs in levels.values())
    return {"macro": _average(list(families.values())), "families": families, "count": count}


def evaluate(
    backbone: Backbone,
    scenes: Scenes,
    source: str,
    batch: int = 64,
    progress: Callable[[int], Any] | None = None,
) -> list[Record]:
    """Let the model answer greedily and judge its answers.

    Args:
        backbone: the model.
        scenes: held-out pictures and their states.
        source: `image` (what a robot has) or `text` (the symbolic state: the upper bound).
        batch: responses generated at a time.
        progress: called with the number of scenes done since the last call.
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
            max_new_tokens=2 * longest,
        )
        for i, state, plan, response in zip(chosen, states, plans, responses, strict=True):
            text = backbone.tokenizer.decode(response, skip_special_tokens=True)
            parsed = prompts.parse_response(text, state.family)
            records[i] = score(state, len(plan), parsed, text)
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
    for state, plan, picture in zip(scenes.states, scenes.plans, scenes.images, strict=True):
        text = planners[state.family].plan(picture).text
        records.append(score(state, len(plan), prompts.parse_response(text, state.family), text))
        if progress is not None:
            progress(1)
    return records


def plan_records(scenes: Scenes, plans: Sequence[Plan]) -> list[Record]:
    """Judge plans, one a scene, that come without a response; no state is recovered."""
    records = []
    for state, plan, own in zip(scenes.states, plans, scenes.plans, strict=True):
        text = format_plan(plan)
        records.append(score(state, len(own), ParsedResponse(None, plan, None), text))
    return records


def table(rows: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Return summaries side by side as text for people: a row each, measures in percent."""
    names = sorted({f for _, summary in rows for f in summary["families"]})
    head = ["", *(f"{m} %" for m in MEASURES), *(f"{n} success %" for n in names)]
    lines = [head]
    for title, summary in rows:
        cells = [_percent(summary["macro"][m]) for m in MEASURES]
        cells += [_percent(summary["families"].get(n, {}).get("success")) for n in names]
        lines.append([title, *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = [
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def record_dict(record: Record) -> dict[str, Any]:
    """Return a record as plain data for JSON lines."""
    return asdict(record)


def _recovered_fields(true: State, found: State | None) -> dict[str, bool]:
    names = [field.name for field in fields(true)]
    return {n: found is not None and getattr(found, n) == getattr(true, n) for n in names}


def _level(records: list[Record]) -> dict[str, Any]:
    count = len(records)
    summary: dict[str, Any] = {m: sum(getattr(r, m) for r in records) / count for m in MEASURES}
    seen = [r for r in records if r.state]
    summary["success_given_state"] = sum(r.success for r in seen) / len(seen) if seen else None
    summary["fields"] = {n: sum(r.fields[n] for r in records) / count for n in records[0].fields}
    summary["count"] = count
    return summary


def _average(groups: list[dict[str, Any]]) -> dict[str, Any]:
    averaged: dict[str, Any] = {}
    for name in (*MEASURES, "success_given_state"):
        values = [g[name] for g in groups if g[name] is not None]
        averaged[name] = sum(values) / len(values) if values else None
    return averaged


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
