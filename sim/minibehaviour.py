"""The family `minibehaviour`: PICK beside the printer, then DROP beside the table."""

from __future__ import annotations

import random
from enum import StrEnum
from typing import TYPE_CHECKING, Union

from sim.actions import MOVES, Action
from sim.family import Family
from sim.planning import Failure, Pose, moved
from sim.states import TABLE_COLUMNS, TABLE_ROWS, MiniBehaviour, all_cells

if TYPE_CHECKING:
    from sim.readback import World
    from sim.scene import SceneBuilder


def _begin(state: MiniBehaviour) -> Pose:
    return Pose(state.agent)


def _step(state: MiniBehaviour, pose: Pose, action: StrEnum) -> Union[Pose, Failure]:
    if action not in MOVES:
        return _pick(state, pose) if action == Action.PICK else _drop(state, pose)
    cell = moved(pose.cell, action, state.size)
    if isinstance(cell, Failure):
        return cell
    if cell in state.table:
        return Failure.TABLE
    if cell == state.printer and not pose.carrying:
        return Failure.PRINTER
    return Pose(cell, carrying=pose.carrying)


def _pick(state: MiniBehaviour, pose: Pose) -> Union[Pose, Failure]:
    if pose.carrying:
        return Failure.ALREADY_CARRYING
    if pose.cell not in state.beside([state.printer]):
        return Failure.NOT_BESIDE_PRINTER
    return Pose(pose.cell, carrying=True)


def _drop(state: MiniBehaviour, pose: Pose) -> Union[Pose, Failure]:
    if not pose.carrying:
        return Failure.NOT_CARRYING
    if pose.cell not in state.beside(state.table):
        return Failure.NOT_BESIDE_TABLE
    return Pose(pose.cell, done=True)


def _draw(size: int, rng: random.Random) -> MiniBehaviour:
    top, left = rng.randrange(size - TABLE_ROWS + 1), rng.randrange(size - TABLE_COLUMNS + 1)
    table = {(top + r, left + c) for r in range(TABLE_ROWS) for c in range(TABLE_COLUMNS)}
    agent, printer = rng.sample([cell for cell in all_cells(size) if cell not in table], 2)
    return MiniBehaviour(size, agent, printer, frozenset(table))


def _build(scene: SceneBuilder, state: MiniBehaviour) -> None:
    scene.rim("skirting")
    scene.floor("carpet", 0.10, "office floor")
    scene.table(state.table)
    scene.printer(state.printer)
    scene.robot(state.agent)


def _read(world: World) -> MiniBehaviour:
    return MiniBehaviour(world.size, world.cell("robot"), world.cell("printer"), world.table())


FAMILY = Family(
    name="minibehaviour",
    levels=(5, 6),
    state=MiniBehaviour,
    actions=(*MOVES, Action.PICK, Action.DROP),
    begin=_begin,
    step=_step,
    draw=_draw,
    build=_build,
    read=_read,
)
