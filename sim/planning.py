"""The rules: what an action does, what a plan achieves, and which plan is shortest.

There is one transition function, `step`; `simulate` and `solve` both use it, so they cannot
disagree about a rule.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Union

from sim.actions import FAMILY_ACTIONS, MOVES, Action, Plan
from sim.states import (
    WALL_DOWN,
    WALL_LEFT,
    WALL_RIGHT,
    WALL_UP,
    Cell,
    FrozenLake,
    Maze,
    MiniBehaviour,
    State,
)

_WALL_OF_MOVE = {
    Action.L: WALL_LEFT,
    Action.D: WALL_DOWN,
    Action.R: WALL_RIGHT,
    Action.U: WALL_UP,
}


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
        failure: None on success, else the first thing that went wrong.
    """

    success: bool
    optimal: bool
    steps: int
    path: tuple[Cell, ...]
    failure: Failure | None


def initial_pose(state: State) -> Pose:
    """Return where a plan begins."""
    return Pose(state.agent if isinstance(state, MiniBehaviour) else state.start)


def step(state: State, pose: Pose, action: Action) -> Union[Pose, Failure]:
    """Return the pose after `action`, or the failure that makes it illegal."""
    if action not in FAMILY_ACTIONS[state.family]:
        return Failure.NOT_IN_FAMILY
    if action in MOVES:
        return _move(state, pose, action)
    assert isinstance(state, MiniBehaviour)
    if action is Action.PICK:
        if pose.carrying:
            return Failure.ALREADY_CARRYING
        if pose.cell not in state.beside([state.printer]):
            return Failure.NOT_BESIDE_PRINTER
        return Pose(pose.cell, carrying=True)
    if not pose.carrying:
        return Failure.NOT_CARRYING
    if pose.cell not in state.beside(state.table):
        return Failure.NOT_BESIDE_TABLE
    return Pose(pose.cell, carrying=False, done=True)


def _move(state: State, pose: Pose, action: Action) -> Union[Pose, Failure]:
    (row, column), (dr, dc) = pose.cell, MOVES[action]
    cell = (row + dr, column + dc)
    if not (0 <= cell[0] < state.size and 0 <= cell[1] < state.size):
        return Failure.OFF_GRID
    if isinstance(state, FrozenLake):
        if cell in state.holes:
            return Failure.HOLE
        return Pose(cell, done=cell == state.goal)
    if isinstance(state, Maze):
        if not state.is_open(pose.cell, _WALL_OF_MOVE[action]):
            return Failure.WALL
        return Pose(cell, done=cell == state.goal)
    if cell in state.table:
        return Failure.TABLE
    if cell == state.printer and not pose.carrying:
        return Failure.PRINTER
    return Pose(cell, carrying=pose.carrying)


def legal_actions(state: State, pose: Pose | None = None) -> tuple[Action, ...]:
    """Return the legal actions at `pose` (default: at the start), in the order of `Action`."""
    here = initial_pose(state) if pose is None else pose
    return tuple(
        a for a in FAMILY_ACTIONS[state.family] if not isinstance(step(state, here, a), Failure)
    )


def simulate(state: State, plan: Sequence[Action]) -> Outcome:
    """Execute a plan up to its first success or first illegal action."""
    pose = initial_pose(state)
    path = [pose.cell]
    failure: Failure | None = Failure.INCOMPLETE
    for action in plan:
        after = step(state, pose, action)
        if isinstance(after, Failure):
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


# Whoever draws a state has just asked whether it has a plan.
@lru_cache(maxsize=64)
def solve(state: State) -> Plan | None:
    """Return the optimal plan, or None where there is none.

    Breadth-first search. Of all shortest plans it returns the first in the order of the family's
    actions (L, D, R, U, PICK, DROP), so that one state has one reference plan.
    """
    first = initial_pose(state)
    came_from: dict[Pose, tuple[Pose, Action] | None] = {first: None}
    queue = deque([first])
    while queue:
        pose = queue.popleft()
        if pose.done:
            plan: list[Action] = []
            while (link := came_from[pose]) is not None:
                pose, action = link
                plan.append(action)
            return tuple(reversed(plan))
        for action in FAMILY_ACTIONS[state.family]:
            after = step(state, pose, action)
            if not isinstance(after, Failure) and after not in came_from:
                came_from[after] = (pose, action)
                queue.append(after)
    return None
