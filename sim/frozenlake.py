"""The family `frozenlake`: reach the goal, never enter a hole or leave the grid."""

from __future__ import annotations

import random
from enum import StrEnum
from typing import TYPE_CHECKING, Union

from sim.actions import MOVES
from sim.family import Family
from sim.planning import Failure, Pose, moved
from sim.states import FrozenLake, all_cells

if TYPE_CHECKING:
    from sim.readback import World
    from sim.scene import SceneBuilder

#: Share of a lake's other cells that are holes, drawn uniformly from this range for every state.
HOLE_SHARE = (0.1, 0.45)


def _begin(state: FrozenLake) -> Pose:
    return Pose(state.start)


def _step(state: FrozenLake, pose: Pose, action: StrEnum) -> Union[Pose, Failure]:
    cell = moved(pose.cell, action, state.size)
    if isinstance(cell, Failure):
        return cell
    return Failure.HOLE if cell in state.holes else Pose(cell, done=cell == state.goal)


def _draw(size: int, rng: random.Random) -> FrozenLake:
    cells = all_cells(size)
    start, goal = rng.sample(cells, 2)
    share = rng.uniform(*HOLE_SHARE)
    holes = {cell for cell in cells if cell not in (start, goal) and rng.random() < share}
    return FrozenLake(size, start, goal, frozenset(holes))


def _build(scene: SceneBuilder, state: FrozenLake) -> None:
    scene.rim("snow")
    scene.floor("ice", 0.12, "lake floor", without=state.holes)
    for cell in sorted(state.holes):
        scene.hole(cell)
    scene.goal(state.goal)
    scene.robot(state.start)


def _read(world: World) -> FrozenLake:
    # A hole is where there is no floor to stand on.
    holes = frozenset(all_cells(world.size)) - world.cells("floor")
    return FrozenLake(world.size, world.cell("robot"), world.cell("goal"), holes)


FAMILY = Family(
    name="frozenlake",
    levels=(3, 4, 5, 6, 7, 8),  # from the paper's task table (arXiv 2606.06076), as the others'
    state=FrozenLake,
    actions=tuple(MOVES),
    begin=_begin,
    step=_step,
    draw=_draw,
    build=_build,
    read=_read,
)
