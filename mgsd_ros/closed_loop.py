"""Closed loop in simulation: see, plan over ROS 2, carry out one action, see again.

The simulator publishes what its camera sees; a planner node, a process of its own, plans on it; the
simulator carries out the first action of the plan and draws the next picture, until the task is
done. A run ends early where an action is illegal, where the plan of the present picture is not to
be followed (the same picture would give the same answer again), and after `most_steps` actions.

A state has no word for a robot that carries something, so no model has learned to read one. From
PICK on the rest of the plan that picked is carried out open loop; `open_loop_steps` counts that.

Held out are the scenes at the start. What is seen on the way is the same scene with the robot
elsewhere: a state that training may have had, in a style that it never had.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mgsd_ros.grid_frame import GridFrame
from mgsd_ros.messages import image_message
from mgsd_ros.planner_client import NodeError, PlannerClient, Played
from sim import Cell, Failure, Plan, find_family, simulate, solve, state_from_dict
from sim.execution import Execution

#: Gives what the node made of a picture uint8 [H, W, 3].
Ask = Callable[[NDArray[np.uint8]], Played]

_CAMERA_FRAME = "camera"

# Longest wait for a plan [s].
_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Moment:
    """What there is to be seen of a run before each action, and at its end.

    Attributes:
        picture: uint8 [H, W, 3].
        ahead: the cells of the plan that is followed, the robot's own first; empty without a plan.
        actions: that lead along them, the one that is carried out next first.
        closed: the plan is of this picture.
        lost: the next action will come to nothing.
        verdict: at the end "done" or what went wrong, else "".
        shortest: actions of the task's shortest plan.
    """

    picture: NDArray[np.uint8]
    ahead: tuple[Cell, ...]
    actions: Plan
    closed: bool
    lost: bool
    verdict: str
    shortest: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of one way to carry out a task.

    Attributes:
        success: the task was achieved.
        steps: actions that were not illegal, those that came to nothing included.
        failure: None on success, else the `sim.Failure` value of the action that was illegal,
            "no plan: …" with what the node said, or "too long".
    """

    success: bool
    steps: int
    failure: str | None


@dataclass(frozen=True, slots=True)
class Run:
    """One scene, carried out.

    Attributes:
        closed_loop: with a new plan for every picture.
        open_loop: what the first plan alone comes to, carried out to its end.
        optimum: actions of the shortest plan.
        actions: carried out.
        cells: the robot's, before the first action and after each.
        lost_steps: actions that came to nothing.
        open_loop_steps: actions after PICK, of the plan that picked.
        kept_steps: actions of an earlier plan although there was a new picture.
        seconds: from each picture's publication to its plan.
    """

    closed_loop: Attempt
    open_loop: Attempt
    optimum: int
    actions: tuple[str, ...]
    cells: tuple[Cell, ...]
    lost_steps: int
    open_loop_steps: int
    kept_steps: int
    seconds: tuple[float, ...]


def carry_out(
    execution: Execution,
    ask: Ask,
    keep_plan: bool = False,
    is_lost: Callable[[int], bool] = lambda step: False,
    watch: Callable[[Moment], None] | None = None,
) -> Run:
    """Carry out a task in closed loop.

    Args:
        execution: at its beginning.
        ask: see `ask_node`.
        keep_plan: follow a new plan only where the one at hand fails in the state that the model
            sees in the new picture.
        is_lost: whether the action of a step (0, 1, …) comes to nothing, as when wheels slip.
        watch: is shown every moment.

    Raises:
        NodeError: the node does not answer, or contradicts itself.
    """
    shortest = solve(execution.state)
    assert shortest is not None, "a task that is carried out has a plan"
    first: Attempt | None = None
    failure: str | None = None
    plan: Plan = ()
    ahead: tuple[Cell, ...] = ()
    seconds: list[float] = []
    steps = lost = after_pick = kept = 0
    while not execution.ended:
        if steps == most_steps(len(shortest)):
            failure = "too long"
            break
        picture = execution.picture()
        closed = execution.present_state() is not None
        if closed:
            played = ask(picture)
            seconds.append(played.seconds)
            new, path, problem = _to_follow(played)
            if first is None:
                first = _open_loop(execution, new, problem, is_lost)
            is_kept = keep_plan and _goes_on(plan, new, played)
            if not is_kept:
                plan, ahead = new, path
        else:
            is_kept, problem = False, Failure.INCOMPLETE.value
        if not plan:
            failure = f"no plan: {problem}"
            break
        if watch is not None:
            new_plan, slips = closed and not is_kept, is_lost(steps)
            watch(Moment(picture, ahead, plan, new_plan, slips, "", len(shortest)))
        if is_lost(steps):
            lost += 1
        else:
            execution.act(plan[0])
        plan, ahead = plan[1:], ahead[1:]
        if execution.failure is None:
            steps += 1
            kept += is_kept
            after_pick += not closed
    if execution.failure is not None:
        failure = execution.failure.value
    if watch is not None:
        # The robot at the goal is a picture, too, although no state says it.
        verdict = failure or "done"
        watch(Moment(execution.picture(), (), (), False, False, verdict, len(shortest)))
    assert first is not None, "a task does not begin with its end"
    return Run(
        closed_loop=Attempt(execution.done, steps, failure),
        open_loop=first,
        optimum=len(shortest),
        actions=tuple(action.value for action in execution.actions),
        cells=tuple(execution.path),
        lost_steps=lost,
        open_loop_steps=after_pick,
        kept_steps=kept,
        seconds=tuple(seconds),
    )


def most_steps(optimum: int) -> int:
    """Return after how many actions a run is given up."""
    return 3 * optimum + 10


def ask_node(client: PlannerClient, family: str, grid: GridFrame | None) -> Ask:
    """Return what asks a running node, with pictures that are stamped now.

    Args:
        client: of the node.
        family: that it must plan for.
        grid: where its grid lies; None: it is not calibrated, and its paths are empty.
    """

    def ask(rgb: NDArray[np.uint8]) -> Played:
        played = client.ask(image_message(rgb, client.now(_CAMERA_FRAME)), _TIMEOUT)
        if played is None:
            raise NodeError(
                f"the node made no plan of a picture within {_TIMEOUT:g} s; see its log"
            )
        if played.answer["family"] != family:
            raise NodeError(f"the node plans for {played.answer['family']}, not for {family}")
        check_path(played, grid)
        return played

    return ask


def check_path(played: Played, grid: GridFrame | None) -> None:
    """Check that a path leads where its actions lead, from the cell that the robot is seen in.

    Args:
        played: what came back for a picture.
        grid: where the grid lies; None: paths are empty.

    Raises:
        NodeError: it does not, or there is a path although the answer is not to be followed.
    """
    answer = played.answer
    cells: list[Cell] = []
    if grid is not None and answer["error"] is None:
        plan = _actions(answer)
        path = simulate(state_from_dict(answer["state"]), plan).path
        cells = [cell for i, cell in enumerate(path) if i == 0 or cell != path[i - 1]]
    there = [grid.cell_at(x, y) for x, y, _ in played.path] if grid is not None else played.path
    if list(there) != cells or (cells and grid is not None and played.frame_id != grid.frame_id):
        raise NodeError(
            f"~/plan goes along {list(there)} in {played.frame_id!r}, but ~/actions along {cells}"
        )


def _to_follow(played: Played) -> tuple[Plan, tuple[Cell, ...], str]:
    """Return plan and path of an answer, both empty where it is not to be followed, and why."""
    answer = played.answer
    if answer["error"] is not None:
        return (), (), answer["error"]
    path = tuple((row, column) for row, column in answer["path"])
    return _actions(answer), path, "the plan is empty"


def _actions(answer: dict[str, Any]) -> Plan:
    known: dict[str, StrEnum] = {a.value: a for a in find_family(answer["family"]).actions}
    return tuple(known[word] for word in answer["actions"])


def _goes_on(plan: Plan, new: Plan, played: Played) -> bool:
    """Return whether to go on with the plan at hand rather than to follow the new one."""
    if not plan or not new:
        return bool(plan)
    return simulate(state_from_dict(played.answer["state"]), plan).success


def _open_loop(
    execution: Execution, plan: Plan, problem: str, is_lost: Callable[[int], bool]
) -> Attempt:
    if not plan:
        return Attempt(False, 0, f"no plan: {problem}")
    # What an action comes to does not depend on how long ago the one before was.
    kept = [i for i in range(len(plan)) if not is_lost(i)]
    outcome = simulate(execution.state, [plan[i] for i in kept])
    if outcome.failure is None:
        return Attempt(True, kept[outcome.steps - 1] + 1, None)
    illegal = outcome.failure != Failure.INCOMPLETE
    return Attempt(False, kept[outcome.steps] if illegal else len(plan), outcome.failure.value)
