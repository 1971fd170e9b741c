"""Actions, plans, and the one text format in which a model answers with a plan."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum


class Action(StrEnum):
    """One action of a plan. Moves are one cell; the value is also the text a model writes."""

    L = "L"
    D = "D"
    R = "R"
    U = "U"
    PICK = "PICK"
    DROP = "DROP"


Plan = tuple[Action, ...]

#: (row, column) change of every move. Row 0 is at the top of the image. The order L, D, R, U is
#: the order in which equally short plans are preferred, see `sim.planning.solve`.
MOVES: dict[Action, tuple[int, int]] = {
    Action.L: (0, -1),
    Action.D: (1, 0),
    Action.R: (0, 1),
    Action.U: (-1, 0),
}

#: Actions that exist in each family.
FAMILY_ACTIONS: dict[str, tuple[Action, ...]] = {
    "frozenlake": tuple(MOVES),
    "maze": tuple(MOVES),
    "minibehaviour": (*MOVES, Action.PICK, Action.DROP),
}

FAMILIES: tuple[str, ...] = tuple(FAMILY_ACTIONS)

_WORDS = {a.value: a for a in Action} | {
    "LEFT": Action.L,
    "DOWN": Action.D,
    "RIGHT": Action.R,
    "UP": Action.U,
    "PICKUP": Action.PICK,
}
_ANSWER = re.compile(r"<answer>([^<]*)</answer>", re.IGNORECASE)
_SEPARATORS = re.compile(r"[\s,;\[\]()'\"]+|->|→")


class UnknownFamilyError(ValueError):
    """A family that is none of `FAMILIES`."""


class PlanSyntaxError(ValueError):
    """Text that holds no plan: no answer block, or a word in it that is no action of the family."""


def check_family(family: str) -> str:
    """Return `family`, or raise `UnknownFamilyError` naming the families that exist."""
    if family not in FAMILY_ACTIONS:
        raise UnknownFamilyError(f"unknown family {family!r}; families are: {', '.join(FAMILIES)}")
    return family


def format_plan(plan: Iterable[Action]) -> str:
    """Write a plan as the answer block that `parse_plan` reads: `<answer>R D D</answer>`."""
    return f"<answer>{' '.join(Action(a).value for a in plan)}</answer>"


def parse_plan(text: str, family: str) -> Plan:
    """Read the first complete `<answer>` block of a response.

    The first, because generation stops at `</answer>`: what a model would have said afterwards is
    never seen on a robot, so it must not count in an evaluation either. Actions may be separated
    by white space, commas, semicolons or arrows, written in either case, as words (`left`), or as
    one run of letters (`RDD`). An empty block is the empty plan.

    Raises:
        PlanSyntaxError: no complete block, or a word in it that is no action of `family`.
        UnknownFamilyError: `family` is none of `FAMILIES`.
    """
    allowed = FAMILY_ACTIONS[check_family(family)]
    match = _ANSWER.search(text)
    if match is None:
        raise PlanSyntaxError("no <answer>…</answer> block in the response")
    plan: list[Action] = []
    for word in _SEPARATORS.sub(" ", match[1]).upper().split():
        if word in _WORDS:
            plan.append(_WORDS[word])
        elif set(word) <= {"L", "D", "R", "U"}:
            plan.extend(Action(letter) for letter in word)
        else:
            raise PlanSyntaxError(f"{word[:40]!r} in the answer is no action")
    for action in plan:
        if action not in allowed:
            raise PlanSyntaxError(f"{action} in the answer is no action of {family}")
    return tuple(plan)
