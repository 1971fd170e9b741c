"""Task families: what one is made of, and how one is found by its name.

The three families of this package are written as anyone would write a fourth, and are found in the
same way: a name stands for an object of the class `Family` in some module. A package of your own
names its families in the entry point group `mgsd.families`, see docs/own_task.md.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Union

if TYPE_CHECKING:
    from sim.planning import AnyPose
    from sim.readback import World
    from sim.scene import SceneBuilder
    from sim.states import State

#: Entry point group in which an installed package names its families.
GROUP = "mgsd.families"

_BUILT_IN = {
    "frozenlake": "sim.frozenlake:FAMILY",
    "maze": "sim.maze:FAMILY",
    "minibehaviour": "sim.minibehaviour:FAMILY",
}

#: The families of this package. Those of other packages are found by name only: what is trained
#: and drawn by default does not depend on what else is installed.
FAMILIES: tuple[str, ...] = tuple(_BUILT_IN)

#: A family's name is also part of file names.
NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_WORD = re.compile(r"[A-Z][A-Z0-9_]*")


class UnknownFamilyError(ValueError):
    """A family that is none of `FAMILIES` and that no installed package has."""


class FamilyError(ValueError):
    """A family that contradicts itself or cannot be loaded; the message says which and why."""


@dataclass(frozen=True, eq=False)
class Family:
    """All that the simulator must know of a family of tasks.

    Attributes:
        name: lower-case letters, digits and `_`; as the states' `family`.
        levels: values of a state's `size` that can be sampled, ascending.
        state: the class of the states, a frozen dataclass, see `sim.states.State`.
        actions: the actions in the order in which equally short plans are preferred: members of
            `sim.Action` or of a `StrEnum` of your own, whose values are words in capitals.
        begin: returns where a plan begins in a state: a hashable object with the attributes `cell`,
            where the robot is, and `done`, whether the task is achieved. `sim.planning.Pose` is
            one.
        step: returns what the actions lead to, (state, pose, action) to the pose afterwards, or to
            the failure that makes the action illegal: a member of `sim.Failure` or of a `StrEnum`
            of your own.
        draw: returns a random state of a level; those without a plan are drawn again.
        build: puts what a state holds into a scene; None for a family without drawn pictures.
        read: returns the state that stands in a renderer's world: the inverse of `build`.

    Raises:
        FamilyError: one of these is not as it says here.
    """

    name: str
    levels: tuple[int, ...]
    state: type[State]
    actions: tuple[StrEnum, ...]
    begin: Callable[[Any], AnyPose]
    step: Callable[[Any, Any, Any], Union[AnyPose, StrEnum]]
    draw: Callable[[int, random.Random], State]
    build: Callable[[SceneBuilder, Any], None] | None = None
    read: Callable[[World], State] | None = None

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise FamilyError(
                f"a family's name has small letters, digits and _ only, not {self.name!r}"
            )
        if getattr(self.state, "family", None) != self.name:
            raise FamilyError(
                f"{self.state.__name__}.family must be {self.name!r}, the name of its family"
            )
        if not self.levels or list(self.levels) != sorted(set(self.levels)):
            raise FamilyError(f"levels of {self.name} must ascend, not {self.levels}")
        for action in self.actions:
            if not isinstance(action, StrEnum) or not _WORD.fullmatch(action.value):
                raise FamilyError(
                    f"an action of {self.name} must be a member of a StrEnum whose value is a "
                    f"word in capitals, not {action!r}"
                )
        if not self.actions or len(set(self.actions)) != len(self.actions):
            raise FamilyError(f"{self.name} must have actions, no two alike")
        if (self.build is None) != (self.read is None):
            raise FamilyError(
                f"{self.name} must have both `build` and `read`, or neither: a picture's truth "
                "is what was read back from the renderer"
            )


@cache
def find_family(name: str) -> Family:
    """Return the family of a name.

    Raises:
        UnknownFamilyError: there is none; names those that there are.
        FamilyError: an installed package names it, but it cannot be loaded.
    """
    if name not in _BUILT_IN:
        return load_plugin(name, GROUP, Family)
    family: Family = EntryPoint(name, _BUILT_IN[name], GROUP).load()
    return family


def check_family(name: str) -> str:
    """Return `name`, or raise as `find_family` does."""
    return find_family(name).name


def load_plugin(name: str, group: str, kind: type[Any]) -> Any:
    """Return the object of class `kind` that an installed package names in an entry point group.

    Raises:
        UnknownFamilyError, FamilyError: see `find_family`.
    """
    entries = entry_points(group=group)
    # A package that is on the path twice, such as one being edited, names one object twice.
    found = {entry.value: entry for entry in entries if entry.name == name}
    if not found:
        known = [*FAMILIES, *sorted({entry.name for entry in entry_points(group=GROUP)})]
        if group != GROUP and name in known:
            raise FamilyError(f"no installed package names {name!r} in the group {group}")
        raise UnknownFamilyError(f"unknown family {name!r}; families are: {', '.join(known)}")
    if len(found) > 1:
        raise FamilyError(
            f"several packages name {name!r} in the group {group}: {', '.join(sorted(found))}"
        )
    (value, entry), *_ = found.items()
    try:
        loaded = entry.load()
    except Exception as error:  # whatever somebody else's module raises
        raise FamilyError(
            f"{name!r} cannot be loaded from {value}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(loaded, kind):
        raise FamilyError(f"{name!r} at {value} is no {kind.__name__} but {loaded!r:.80}")
    own_name = getattr(loaded, "name", name)
    if own_name != name:
        raise FamilyError(f"{value} is called {own_name!r}, but its entry point {name!r}")
    return loaded
