"""Random solvable states, deterministic in (family, level, seed), and the split of a state."""

from __future__ import annotations

import random
from collections.abc import Callable

from sim.actions import check_family
from sim.planning import solve
from sim.states import (
    TABLE_COLUMNS,
    TABLE_ROWS,
    WALL_DOWN,
    WALL_LEFT,
    WALL_RIGHT,
    WALL_UP,
    Cell,
    FrozenLake,
    Maze,
    MiniBehaviour,
    State,
    state_digest,
)

#: Levels (grid sides) of each family, from the paper's task table (arXiv 2606.06076).
LEVELS: dict[str, tuple[int, ...]] = {
    "frozenlake": (3, 4, 5, 6, 7, 8),
    "maze": (3, 4, 5, 6),
    "minibehaviour": (5, 6),
}

SPLITS: tuple[str, ...] = ("train", "validation", "test")

# Upper ends of each split's share of the digest space: 80 % train, 10 % validation, 10 % test.
_SPLIT_ENDS = (0.8, 0.9, 1.0)

#: Share of a lake's other cells that are holes, drawn uniformly from this range for every state.
HOLE_SHARE = (0.1, 0.45)


class LevelError(ValueError):
    """A level that the family does not have."""


class SplitError(ValueError):
    """A split that is none of `SPLITS`."""


def check_level(family: str, level: int) -> int:
    """Return `level`, or raise `LevelError` naming the levels that `family` has."""
    levels = LEVELS[check_family(family)]
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
        UnknownFamilyError, LevelError: the family or level does not exist.
    """
    check_level(family, level)
    # Seeding by text goes through SHA-512: independent streams for neighbouring seeds.
    rng = random.Random(f"{family}/{level}/{seed}")
    draw = _DRAW[family]
    while True:
        state = draw(level, rng)
        if solve(state) is not None:
            return state


def sample_split(family: str, level: int, split: str, seed: int) -> State:
    """Return a random solvable state of `split`, deterministic in its arguments."""
    check_split(split)
    attempt = 0
    while True:
        state = sample(family, level, _mix(seed, attempt))
        if split_of(state) == split:
            return state
        attempt += 1


def _mix(seed: int, attempt: int) -> int:
    # Attempts of one seed must not run into the seeds of its neighbours.
    return seed if attempt == 0 else random.Random(f"{seed}/{attempt}").getrandbits(62)


def _lake(size: int, rng: random.Random) -> FrozenLake:
    cells = _cells(size)
    start, goal = rng.sample(cells, 2)
    share = rng.uniform(*HOLE_SHARE)
    holes = {cell for cell in cells if cell not in (start, goal) and rng.random() < share}
    return FrozenLake(size, start, goal, frozenset(holes))


def _maze(size: int, rng: random.Random) -> Maze:
    """Return a perfect maze (one route between any two cells), carved by depth-first search."""
    walls = [[15] * size for _ in range(size)]
    sides = (
        (WALL_UP, WALL_DOWN, -1, 0),
        (WALL_DOWN, WALL_UP, 1, 0),
        (WALL_LEFT, WALL_RIGHT, 0, -1),
        (WALL_RIGHT, WALL_LEFT, 0, 1),
    )
    stack = [rng.choice(_cells(size))]
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
    start, goal = rng.sample(_cells(size), 2)
    return Maze.from_wall_bits(walls, start, goal)


def _mini_behaviour(size: int, rng: random.Random) -> MiniBehaviour:
    top, left = rng.randrange(size - TABLE_ROWS + 1), rng.randrange(size - TABLE_COLUMNS + 1)
    table = {(top + r, left + c) for r in range(TABLE_ROWS) for c in range(TABLE_COLUMNS)}
    agent, printer = rng.sample([cell for cell in _cells(size) if cell not in table], 2)
    return MiniBehaviour(size, agent, printer, frozenset(table))


def _cells(size: int) -> list[Cell]:
    return [(r, c) for r in range(size) for c in range(size)]


_DRAW: dict[str, Callable[[int, random.Random], State]] = {
    "frozenlake": _lake,
    "maze": _maze,
    "minibehaviour": _mini_behaviour,
}
