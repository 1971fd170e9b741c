"""What a plan achieves, and which plan is shortest, by a family's own rules.

A family has one transition function, `sim.family.Family.step`; `simulate` and `solve` both use it,
so they cannot disagree about a rule.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Protocol, Union

from sim.actions import MOVES, Action, Plan
from sim.family import find_family
from sim.states import Cell, State


class Failure(StrEnum):
    """Why a plan did not succeed. All but INCOMPLETE are illegal actions."""

    OFF_GRID = "off_grid"
    HOLE = "hole"
    WALL = "wall"
    TABLE = "table"
    PRINTER = "printer"
    NOT_BESIDE_PRINTER = "not_beside_printer"
    NOT_BESIDE_TABLE = "not_beside_table"
    ALREADY_CARRYING = "already_carrying"
    NOT_CARRYING = "not_carrying"
    NOT_IN_FAMILY = "not_in_family"
    INCOMPLETE = "incomplete"


class AnyPose(Hashable, Protocol):
    """What changes while a plan runs. Two that are equal must have the same future."""

    @property
    def cell(self) -> Cell:
        """Where the robot is."""

    @property
    def done(self) -> bool:
        """Whether the task is achieved."""


@dataclass(frozen=True, slots=True)
class Pose:
    """What changes while a plan runs: the robot's cell, whether it carries, whether it is done."""

    cell: Cell
    carrying: bool = False
    done: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a plan.

    Attributes:
        success: the task was achieved.
        optimal: success in the fewest possible actions.
        steps: actions carried out; an illegal action and what follows success are not.
        path: the robot's cell before the first action and after each one carried out
            (`steps + 1` cells; PICK and DROP repeat the cell).
        failure: None on success, else the first thing that went wrong: a member of `Failure`, or
            of the `StrEnum` in which a family has its own.
    """

    success: bool
    optimal: bool
    steps: int
    path: tuple[Cell, ...]
    failure: StrEnum | None


def moved(cell: Cell, action: StrEnum, size: int) -> Union[Cell, Failure]:
    """Return the cell that a move leads to on a grid of side `size`, or `Failure.OFF_GRID`."""
    # A family may spell its moves in a `StrEnum` of its own.
    dr, dc = MOVES.get(action) or MOVES[Action(action)]
    row, column = cell[0] + dr, cell[1] + dc
    return (row, column) if 0 <= row < size and 0 <= column < size else Failure.OFF_GRID


def step(state: State, pose: AnyPose, action: StrEnum) -> Union[AnyPose, StrEnum]:
    """Return the pose after `action`, or the failure that makes it illegal."""
    family = find_family(state.family)
    return family.step(state, pose, action) if action in family.actions else Failure.NOT_IN_FAMILY


def legal_actions(state: State, pose: AnyPose | None = None) -> tuple[StrEnum, ...]:
    """Return the legal actions at `pose` (default: at the start), in the family's order."""
    family = find_family(state.family)
    here = family.begin(state) if pose is None else pose
    return tuple(a for a in family.actions if not isinstance(family.step(state, here, a), StrEnum))


def simulate(state: State, plan: Sequence[StrEnum]) -> Outcome:
    """Execute a plan up to its first success or first illegal action."""
    pose = find_family(state.family).begin(state)
    path = [pose.cell]
    failure: StrEnum | None = Failure.INCOMPLETE
    for action in plan:
        after = step(state, pose, action)
        if isinstance(after, StrEnum):
            failure = after
            break
        pose = after
        path.append(pose.cell)
        if pose.done:
            failure = None
            break
    steps = len(path) - 1
    optimal = False
    if pose.done:
        shortest = solve(state)
        optimal = shortest is not None and steps == len(shortest)
    return Outcome(pose.done, optimal, steps, tuple(path), failure)


def optimal_steps(state: State, plan: Sequence[StrEnum]) -> int:
    """Return with how many of its actions, from the first on, a plan keeps to a shortest one.

    Up to there every action can be carried out and leaves one action less to be done.
    """
    pose = find_family(state.family).begin(state)
    left = solve(state)
    for done, action in enumerate(plan):
        after = step(state, pose, action) if left else Failure.INCOMPLETE
        if isinstance(after, StrEnum):
            return done
        rest = solve(state, after)
        if rest is None or left is None or len(rest) >= len(left):
            return done
        pose, left = after, rest
    return len(plan)


# Whoever draws a state has just asked whether it has a plan.
@lru_cache(maxsize=64)
def solve(state: State, pose: AnyPose | None = None) -> Plan | None:
    """Return the optimal plan from `pose` on (default: the start), or None where there is none.

    Breadth-first search. Of all shortest plans it returns the first in the order of the family's
    actions, so that one state has one reference plan.
    """
    family = find_family(state.family)
    first = family.begin(state) if pose is None else pose
    came_from: dict[AnyPose, tuple[AnyPose, StrEnum] | None] = {first: None}
    queue = deque([first])
    while queue:
        here = queue.popleft()
        if here.done:
            plan: list[StrEnum] = []
            while (link := came_from[here]) is not None:
                here, action = link
                plan.append(action)
            return tuple(reversed(plan))
        for action in family.actions:
            after = family.step(state, here, action)
            if not isinstance(after, StrEnum) and after not in came_from:
                came_from[after] = (here, action)
                queue.append(after)
    return None
