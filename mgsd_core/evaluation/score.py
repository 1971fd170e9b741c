"""One response judged: what its plan comes to in the true state, and whose fault a failure is.

Arithmetic on responses; it knows nothing of models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from itertools import pairwise
from typing import Any

from mgsd_core.prompts import ParsedResponse
from sim import Cell, Failure, Plan, State, simulate
from sim.planning import optimal_steps

#: Failure of a response that holds no plan.
UNPARSABLE = "unparsable"

#: Failure of a scene to which there was no response.
NO_ANSWER = "no answer"

#: The failure of a plan that a robot is not to follow, whatever it would have come to.
REFUSED = "refused"


class Cause(StrEnum):
    """What a plan that failed is to be blamed on."""

    #: The state was read wrong, and the plan would have succeeded in the state that was read.
    PERCEPTION = "perception"
    #: The state was read right, and the plan fails in it.
    REASONING = "reasoning"
    #: The state was read wrong, and the plan fails there, too.
    BOTH = "both"
    #: There is a plan, but no state that it could have been made from.
    NO_STATE = "no_state"
    #: There is no plan.
    NO_PLAN = "no_plan"


@dataclass(frozen=True, slots=True)
class Record:
    """One judged response.

    Attributes:
        scene: its name.
        family, level: of the task.
        success, optimal: of the plan, executed in the *true* state.
        progress: actions from the first on with which a shortest plan could begin, as a share of
            the shortest plan (the progress rate of Visual Planning, arXiv 2505.11409).
        legal: there is a plan and no action of it is illegal in the true state.
        spl: success weighted by path length (Anderson et al., arXiv 1807.06757): the length of the
            optimal plan's way over the longer of both ways, 0 without success.
        parsed: there is a plan.
        state: the recovered state equals the true one.
        fields: which fields of the state were recovered.
        consistent: the plan succeeds in the state that the response itself describes; None where
            there is no plan or no state.
        failure: why there was no success: a family's failure, or what `failed` names; or None.
        cause: what that is to be blamed on, a value of `Cause`, or None.
        problem: what of the response could not be read, and why, or None.
        steps, shortest: actions carried out, and of the optimal plan.
        text: the response.
    """

    scene: str
    family: str
    level: int
    success: bool
    optimal: bool
    progress: float
    legal: bool
    spl: float
    parsed: bool
    state: bool
    fields: dict[str, bool]
    consistent: bool | None
    failure: str | None
    cause: str | None
    problem: str | None
    steps: int
    shortest: int
    text: str


def score(
    scene: str,
    state: State,
    plan: Plan,
    parsed: ParsedResponse,
    text: str,
    failed: str = UNPARSABLE,
) -> Record:
    """Judge a response by executing its plan in the true state.

    Args:
        scene: name of the scene.
        state: the true state.
        plan: an optimal plan of it.
        parsed: the response as `prompts.parse_response` read it.
        text: the response.
        failed: what it is called if there is no plan.
    """
    said = parsed.plan or ()
    outcome = simulate(state, said)
    consistent = None
    if parsed.plan is not None and parsed.state is not None:
        consistent = simulate(parsed.state, parsed.plan).success
    failure: str | None = None
    if parsed.plan is None:
        failure = failed
    elif outcome.failure is not None:
        failure = outcome.failure.value
    return Record(
        scene=scene,
        family=state.family,
        level=state.size,
        success=outcome.success,
        optimal=outcome.optimal,
        progress=optimal_steps(state, said) / len(plan) if plan else float(outcome.success),
        legal=parsed.plan is not None and outcome.failure in (None, Failure.INCOMPLETE),
        spl=_spl(outcome.path, simulate(state, plan).path) if outcome.success else 0.0,
        parsed=parsed.plan is not None,
        state=parsed.state == state,
        fields=_recovered_fields(state, parsed.state),
        consistent=consistent,
        failure=failure,
        cause=None if failure is None else _cause(parsed, parsed.state == state, consistent).value,
        problem=parsed.problem,
        steps=outcome.steps,
        shortest=len(plan),
        text=text,
    )


def record_dict(record: Record) -> dict[str, Any]:
    """Return a record as plain data for JSON lines."""
    return asdict(record)


def _cause(parsed: ParsedResponse, state_is_right: bool, consistent: bool | None) -> Cause:
    if parsed.plan is None:
        return Cause.NO_PLAN
    if consistent is None:
        return Cause.NO_STATE
    if state_is_right:
        return Cause.REASONING
    return Cause.PERCEPTION if consistent else Cause.BOTH


def _spl(path: Sequence[Cell], shortest: Sequence[Cell]) -> float:
    """Return SPL of a way that arrived. Cells are equally large: metres would give the same."""
    gone, needed = _length(path), _length(shortest)
    return needed / longest if (longest := max(gone, needed)) else 1.0


def _length(path: Sequence[Cell]) -> float:
    return sum(math.dist(before, after) for before, after in pairwise(path))


def _recovered_fields(true: State, found: State | None) -> dict[str, bool]:
    names = [field.name for field in fields(true)]
    return {n: found is not None and getattr(found, n) == getattr(true, n) for n in names}
