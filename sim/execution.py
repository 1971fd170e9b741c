"""A task that is carried out before a camera: one action after another, a picture at any time.

The simulator as a robot's plans meet it. It knows what is true and says what an action comes to; it
knows nothing of plans.
"""

from __future__ import annotations

from dataclasses import fields, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from sim.family import find_family
from sim.grid import Grid, cell_centre
from sim.planning import AnyPose, step
from sim.readback import check_state
from sim.renderers import Renderer
from sim.scene import Scene, SceneObject, grid_of
from sim.states import Cell, State, StateError

# Heights [cells] at which a printer rides on any robot and stands on any table.
_CARRIED, _SET_DOWN = 0.40, 0.36


class Execution:
    """One state in one style, and a robot in it that does as it is told.

    The scene is built once. Afterwards only the robot changes its place, and with it the printer
    that it carries; camera, light and materials stay as they are.

    Attributes:
        state: in which it began.
        pose: what has changed since.
        actions: carried out so far.
        path: the robot's cell before the first action and after each one (`sim.Outcome.path`).
        failure: why the last action was illegal, which ends the execution, or None.
    """

    def __init__(
        self, renderer: Renderer, state: State, style: int | None, size: int, styles: str
    ) -> None:
        """Begin.

        Args:
            renderer: draws the pictures; it stays the caller's.
            state: any that a renderer can draw.
            style: seed of the style.
            size: side of the pictures [px].
            styles: the set of styles, one of `sim.style.STYLES`.

        Raises:
            sim.style.StyleError: there is no such set.
            sim.family.FamilyError: the state's family is not drawn.
        """
        self.state, self._renderer = state, renderer
        self.pose: AnyPose = find_family(state.family).begin(state)
        self.actions: list[StrEnum] = []
        self.path = [self.pose.cell]
        self.failure: StrEnum | None = None
        self._scene = renderer.build(state, style, size, styles)
        self._carried = False

    @property
    def done(self) -> bool:
        """Whether the task is achieved."""
        return self.pose.done

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to be done: achieved, or an action was illegal."""
        return self.done or self.failure is not None

    @property
    def grid(self) -> Grid:
        """The maps between the cells, the world and the pictures."""
        return grid_of(self._scene)

    def act(self, action: StrEnum) -> None:
        """Carry out an action, or set `failure` and change nothing.

        Raises:
            ValueError: the execution has ended.
        """
        if self.ended:
            raise ValueError(f"{action} cannot be carried out: the execution has ended")
        after = step(self.state, self.pose, action)
        if isinstance(after, StrEnum):
            self.failure = after
            return
        self.pose = after
        self.actions.append(action)
        self.path.append(after.cell)
        self._carried |= getattr(after, "carrying", False)

    def present_state(self) -> State | None:
        """Return the state that a camera sees now; None where no state says it, see `state_at`."""
        return state_at(self.state, self.pose)

    def picture(self) -> NDArray[np.uint8]:
        """Return what the camera sees now, uint8 [size, size, 3].

        Raises:
            sim.readback.ReadbackError: the renderer's world does not hold the present state.
        """
        scene = self._present_scene()
        meant = self.present_state()
        if meant is not None:
            check_state(self._renderer.read_state(scene), meant)
        return self._renderer.render(scene).rgb

    def _present_scene(self) -> Scene:
        moved = tuple(self._moved(thing) for thing in self._scene.objects)
        return replace(self._scene, objects=moved)

    def _moved(self, thing: SceneObject) -> SceneObject:
        cell, height = self.pose.cell, 0.0
        if thing.role == "printer" and self._carried:
            height = _CARRIED
            if self.done:
                cell, height = self._set_down(), _SET_DOWN
        elif thing.role != "robot":
            return thing
        x, y = cell_centre(cell, self.state.size, self._scene.cell_size)
        return replace(thing, position=(x, y, height * self._scene.cell_size))

    def _set_down(self) -> Cell:
        """Return the cell of the table that the robot stands beside, its own without a table."""
        row, column = self.pose.cell
        table: frozenset[Cell] = getattr(self.state, "table", frozenset())
        beside = [cell for cell in sorted(table) if abs(cell[0] - row) + abs(cell[1] - column) == 1]
        return beside[0] if beside else self.pose.cell


def state_at(state: State, pose: AnyPose) -> State | None:
    """Return the state that is like `state` but in which plans begin at `pose`.

    None where there is none: once the task is achieved, and while the robot carries something, for
    which no state has a word.
    """
    begin = find_family(state.family).begin
    start = begin(state)
    if start == pose:
        return state
    for field in fields(state):
        if getattr(state, field.name) != start.cell:
            continue
        try:
            moved = replace(state, **{field.name: pose.cell})
        except StateError:
            continue  # the robot is where the family has no start
        if begin(moved) == pose:
            return moved
    return None
