"""Random solvable states, deterministic in (family, level, seed), and the split of a state."""

from __future__ import annotations

import random
from collections.abc import Collection

from sim.family import FAMILIES, find_family
from sim.planning import solve
from sim.states import State, state_digest

#: Levels (grid sides) of each of `FAMILIES`.
LEVELS: dict[str, tuple[int, ...]] = {name: find_family(name).levels for name in FAMILIES}

SPLITS: tuple[str, ...] = ("train", "validation", "test")

# Upper ends of each split's share of the digest space: 80 % train, 10 % validation, 10 % test.
_SPLIT_ENDS = (0.8, 0.9, 1.0)


# A family of one's own may have a level without what is asked for: say so instead of searching on.
_MOST_DRAWS = 10_000


class LevelError(ValueError):
    """A level that the family does not have, or one without a state of the kind asked for."""


class SplitError(ValueError):
    """A split that is none of `SPLITS`."""


def check_level(family: str, level: int) -> int:
    """Return `level`, or raise `LevelError` naming the levels that `family` has."""
    levels = find_family(family).levels
    if level not in levels:
        raise LevelError(
            f"level {level} is out of range: {family} has levels {levels[0]} to {levels[-1]}"
        )
    return level


def check_split(split: str) -> str:
    """Return `split`, or raise `SplitError` naming the splits that exist."""
    if split not in SPLITS:
        raise SplitError(f"unknown split {split!r}; splits are: {', '.join(SPLITS)}")
    return split


def split_of(state: State) -> str:
    """Return the one split that a state belongs to, whoever sampled it and with whatever seed.

    The state's digest decides, so that training and test sets share no state even when they were
    generated years apart on different machines.
    """
    share = int(state_digest(state)[:16], 16) / 16**16
    return next(split for split, end in zip(SPLITS, _SPLIT_ENDS, strict=True) if share < end)


def sample(family: str, level: int, seed: int) -> State:
    """Return a random solvable state of `family` with grid side `level`.

    Raises:
        UnknownFamilyError, LevelError: the family or level does not exist, or no state drawn has
            a plan.
    """
    check_level(family, level)
    # Seeding by text goes through SHA-512: independent streams for neighbouring seeds.
    rng = random.Random(f"{family}/{level}/{seed}")
    draw = find_family(family).draw
    for _ in range(_MOST_DRAWS):
        state = draw(level, rng)
        if solve(state) is not None:
            return state
    raise LevelError(f"of {_MOST_DRAWS} random states of {family} {level} none has a plan")


def sample_split(
    family: str, level: int, split: str, seed: int, exclude: Collection[str] = ()
) -> State:
    """Return a random solvable state of `split`, deterministic in its arguments.

    Args:
        family, level, split: what the state is to be.
        seed: of the draws; the first state drawn that will do is taken.
        exclude: digests (`sim.states.state_digest`) of states that are not to be returned.

    Raises:
        UnknownFamilyError, LevelError, SplitError: one of these does not exist, or no state of the
            split was found.
    """
    check_split(split)
    for attempt in range(_MOST_DRAWS):
        state = sample(family, level, _mix(seed, attempt))
        if split_of(state) == split and not (exclude and state_digest(state) in exclude):
            return state
    left = " once the excluded states are left out" if exclude else ""
    raise LevelError(
        f"of {_MOST_DRAWS} random states of {family} {level} none belongs to the split {split}"
        f"{left}: the level has too few states"
    )


def _mix(seed: int, attempt: int) -> int:
    # Attempts of one seed must not run into the seeds of its neighbours.
    return seed if attempt == 0 else random.Random(f"{seed}/{attempt}").getrandbits(62)
