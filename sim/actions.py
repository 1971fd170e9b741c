"""Actions, plans, and the one text format in which a model answers with a plan."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum

from sim.family import find_family


class Action(StrEnum):
    """One action of a plan. Moves are one cell; the value is also the text a model writes."""

    L = "L"
    D = "D"
    R = "R"
    U = "U"
    PICK = "PICK"
    DROP = "DROP"


#: Members of `Action`, or of the `StrEnum` in which a family has its own.
Plan = tuple[StrEnum, ...]

#: (row, column) change of every move. Row 0 is at the top of the image. The order L, D, R, U is
#: the order in which equally short plans are preferred, see `sim.planning.solve`.
MOVES: dict[StrEnum, tuple[int, int]] = {
    Action.L: (0, -1),
    Action.D: (1, 0),
    Action.R: (0, 1),
    Action.U: (-1, 0),
}

_WORDS: dict[str, StrEnum] = {
    **{a.value: a for a in Action},
    "LEFT": Action.L,
    "DOWN": Action.D,
    "RIGHT": Action.R,
    "UP": Action.U,
    "PICKUP": Action.PICK,
}
_ANSWER = re.compile(r"<answer>([^<]*)</answer>", re.IGNORECASE)
_SEPARATORS = re.compile(r"[\s,;\[\]()'\"]+|->|→")


class PlanSyntaxError(ValueError):
    """Text that holds no plan: no answer block, or a word in it that is no action of the family."""


def format_plan(plan: Iterable[StrEnum]) -> str:
    """Write a plan as the answer block that `parse_plan` reads: `<answer>R D D</answer>`."""
    words = ((a if isinstance(a, StrEnum) else Action(a)).value for a in plan)
    return f"<answer>{' '.join(words)}</answer>"


def parse_plan(text: str, family: str) -> Plan:
    """Read the first complete `<answer>` block of a response.

    The first, because generation stops at `</answer>`: what a model would have said afterwards is
    never seen on a robot, so it must not count in an evaluation either. Actions may be separated
    by white space, commas, semicolons or arrows, written in either case, as words (`left`), or as
    one run of letters (`RDD`). An empty block is the empty plan.

    Raises:
        PlanSyntaxError: no complete block, or a word in it that is no action of `family`.
        UnknownFamilyError: there is no such `family`.
    """
    allowed = find_family(family).actions
    words: dict[str, StrEnum] = _WORDS | {a.value: a for a in allowed}
    match = _ANSWER.search(text)
    if match is None:
        raise PlanSyntaxError("no <answer>…</answer> block in the response")
    plan: list[StrEnum] = []
    for word in _SEPARATORS.sub(" ", match[1]).upper().split():
        if word in words:
            plan.append(words[word])
        elif set(word) <= {"L", "D", "R", "U"}:
            plan.extend(words[letter] for letter in word)
        else:
            raise PlanSyntaxError(f"{word[:40]!r} in the answer is no action")
    for action in plan:
        if action not in allowed:
            raise PlanSyntaxError(f"{action} in the answer is no action of {family}")
    return tuple(plan)
