"""The family `maze`: reach the goal, never cross a wall."""

from __future__ import annotations

import random
from enum import StrEnum
from typing import TYPE_CHECKING, Union

from sim.actions import MOVES, Action
from sim.family import Family
from sim.planning import Failure, Pose, moved
from sim.states import WALL_DOWN, WALL_LEFT, WALL_RIGHT, WALL_UP, Maze, all_cells

if TYPE_CHECKING:
    from sim.readback import World
    from sim.scene import SceneBuilder

_WALL_OF_MOVE: dict[StrEnum, int] = {
    Action.L: WALL_LEFT,
    Action.D: WALL_DOWN,
    Action.R: WALL_RIGHT,
    Action.U: WALL_UP,
}


def _begin(state: Maze) -> Pose:
    return Pose(state.start)


def _step(state: Maze, pose: Pose, action: StrEnum) -> Union[Pose, Failure]:
    cell = moved(pose.cell, action, state.size)
    if isinstance(cell, Failure):
        return cell
    if not state.is_open(pose.cell, _WALL_OF_MOVE[action]):
        return Failure.WALL
    return Pose(cell, done=cell == state.goal)


def _draw(size: int, rng: random.Random) -> Maze:
    """Return a perfect maze (one route between any two cells), carved by depth-first search."""
    walls = [[15] * size for _ in range(size)]
    sides = (
        (WALL_UP, WALL_DOWN, -1, 0),
        (WALL_DOWN, WALL_UP, 1, 0),
        (WALL_LEFT, WALL_RIGHT, 0, -1),
        (WALL_RIGHT, WALL_LEFT, 0, 1),
    )
    stack = [rng.choice(all_cells(size))]
    seen = set(stack)
    while stack:
        r, c = stack[-1]
        steps = [
            (bit, opposite, (r + dr, c + dc))
            for bit, opposite, dr, dc in sides
            if 0 <= r + dr < size and 0 <= c + dc < size and (r + dr, c + dc) not in seen
        ]
        if not steps:
            stack.pop()
            continue
        bit, opposite, cell = rng.choice(steps)
        walls[r][c] &= ~bit
        walls[cell[0]][cell[1]] &= ~opposite
        seen.add(cell)
        stack.append(cell)
    start, goal = rng.sample(all_cells(size), 2)
    return Maze.from_wall_bits(walls, start, goal)


def _build(scene: SceneBuilder, state: Maze) -> None:
    scene.floor("concrete", 0.08, "maze floor")
    scene.walls(state.walls)
    scene.goal(state.goal)
    scene.robot(state.start)


def _read(world: World) -> Maze:
    return Maze(world.size, world.cell("robot"), world.cell("goal"), world.walls())


FAMILY = Family(
    name="maze",
    levels=(3, 4, 5, 6),
    state=Maze,
    actions=tuple(MOVES),
    begin=_begin,
    step=_step,
    draw=_draw,
    build=_build,
    read=_read,
)
