"""A family of one's own: drive to the parcel, PICK it, TIP it into the chute of its colour."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

from mgsd_core.language import Language, cell, number, word
from sim.actions import MOVES, Action
from sim.family import Family
from sim.planning import Failure, Pose, moved
from sim.states import Cell, StateError, all_cells, normalise

if TYPE_CHECKING:
    from sim.readback import World
    from sim.scene import SceneBuilder

# --- What is true ---

COLOURS = {"blue": (40, 90, 210), "yellow": (240, 200, 40)}


@dataclass(frozen=True, slots=True)
class Parcels:
    """A robot, one parcel and two chutes, each in a cell of its own."""

    family: ClassVar[str] = "parcels"

    size: int
    robot: Cell
    parcel: Cell
    colour: str  # of the parcel
    blue: Cell  # where the blue chute is
    yellow: Cell

    def __post_init__(self) -> None:
        normalise(self, cells=("robot", "parcel", "blue", "yellow"))
        if self.colour not in COLOURS:
            raise StateError(f"colour must be one of {', '.join(COLOURS)}, not {self.colour!r}")
        if len({self.robot, self.parcel, self.blue, self.yellow}) < 4:
            raise StateError("robot, parcel and chutes must be in four cells")


# --- What can be done ---


class Own(StrEnum):
    """The action that no other family has."""

    TIP = "TIP"


class Fault(StrEnum):
    """Why an action is illegal here and in no other family."""

    NO_PARCEL = "no_parcel"
    WRONG_PLACE = "wrong_place"


def begin(state: Parcels) -> Pose:
    """Return where a plan begins."""
    return Pose(state.robot)


def step(state: Parcels, pose: Pose, action: StrEnum) -> Pose | StrEnum:
    """Return the pose after an action, or why it is illegal."""
    if action == Action.PICK:
        here = pose.cell == state.parcel and not pose.carrying
        return Pose(pose.cell, carrying=True) if here else Fault.NO_PARCEL
    if action == Own.TIP:
        right = pose.carrying and pose.cell == getattr(state, state.colour)
        return Pose(pose.cell, done=True) if right else Fault.WRONG_PLACE
    to = moved(pose.cell, action, state.size)
    return to if isinstance(to, Failure) else Pose(to, carrying=pose.carrying)


def draw(level: int, rng: random.Random) -> Parcels:
    """Return a random state; those without a plan are drawn again."""
    robot, parcel, blue, yellow = rng.sample(all_cells(level), 4)
    return Parcels(level, robot, parcel, rng.choice(list(COLOURS)), blue, yellow)


# --- What a camera sees; leave this out for pictures of your own ---


def build(scene: SceneBuilder, state: Parcels) -> None:
    """Put what a state holds into a scene."""
    from sim.models import Part

    scene.rim()
    scene.floor()
    for colour, rgb in COLOURS.items():
        plate = Part("box", (0, 0, 0.02), (0.8, 0.8, 0.04), rgb)
        scene.own(f"{colour}_chute", getattr(state, colour), (plate,))
    box = Part("box", (0, 0, 0.15), (0.4, 0.4, 0.3), COLOURS[state.colour])
    scene.own(f"{state.colour}_parcel", state.parcel, (box,))
    scene.robot(state.robot)


def read(world: World) -> Parcels:
    """Return the state that stands in a renderer's world."""
    colour = "blue" if world.cells("blue_parcel") else "yellow"
    chutes = [world.cell(f"{colour}_chute") for colour in COLOURS]
    parcel = world.cell(f"{colour}_parcel")
    return Parcels(world.size, world.cell("robot"), parcel, colour, *chutes)


FAMILY = Family(
    name="parcels",
    levels=(3, 4, 5),
    state=Parcels,
    actions=(*MOVES, Action.PICK, Own.TIP),
    begin=begin,
    step=step,
    draw=draw,
    build=build,
    read=read,
)

# --- How it is said ---

LANGUAGE = Language(
    task="Move with L, D, R, U to the parcel, PICK it up, carry it to the chute of its colour and "
    "TIP it in. Never leave the grid.",
    brief="Sort the parcel.",
    fields=(
        number("size"),
        cell("robot"),
        cell("parcel"),
        word("colour", list(COLOURS), "Which colour has the parcel?"),
        cell("blue", "Where is the blue chute?"),
        cell("yellow", "Where is the yellow chute?"),
    ),
)
