"""From a map of where one can stand to a grid: cells, walls between them, tasks cut from it.

A map comes from a scan's navigation mesh and is laid under a lattice of cells. A cell is free where
one can stand in its middle; two neighbours are connected where one can walk straight from centre to
centre. Tasks are square windows of that grid. This module knows neither simulator nor pictures.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from sim.sampling import split_of
from sim.states import (
    MAX_SIZE,
    WALL_DOWN,
    WALL_LEFT,
    WALL_RIGHT,
    WALL_UP,
    Cell,
    FrozenLake,
    Maze,
    State,
)

#: Families that a scan has tasks of.
SCAN_FAMILIES = ("maze", "frozenlake")

#: Share of a free cell's middle, a square of a third of its side, where one must be able to stand.
FREE_SHARE = 0.6

#: Share of a window's cells that belong to the region that tasks are cut from, at least.
MIN_FREE = 0.4

#: Distance between two places of a map, at most [m], and how many there are along a cell, at least.
MAX_STEP, MIN_PLACES = 0.06, 9

#: How far from a target's footprint its goal may lie [m]; a cell where cells are larger.
NEAR = 1.0

#: Heights within a storey differ by less, floors of two storeys by more [m].
STOREY, BETWEEN = 0.5, 1.5

_TRIES = 2000


class ScanError(ValueError):
    """A scan that cannot be made into the tasks asked for; the message says why and what to do."""


@dataclass(frozen=True, slots=True, eq=False)
class Occupancy:
    """A grid over a floor.

    Attributes:
        free: bool [R, C], whether a cell is free.
        right: bool [R, C - 1], whether one can walk from a cell to the one on its right.
        down: bool [R - 1, C], whether one can walk from a cell to the one below.
        region: bool [R, C], the largest set of free cells that are connected.
        cell_size: side of a cell [m].
        origin: centre of cell (0, 0) in the world (x, y) [m]; rows go along -y.
    """

    free: NDArray[np.bool_]
    right: NDArray[np.bool_]
    down: NDArray[np.bool_]
    region: NDArray[np.bool_]
    cell_size: float
    origin: tuple[float, float]

    def centre(self, cell: Cell) -> tuple[float, float]:
        """Return the centre (x, y) of a cell in the world [m]."""
        x, y = self.origin
        return (x + cell[1] * self.cell_size, y - cell[0] * self.cell_size)

    def neighbours(self, cell: Cell) -> Iterator[Cell]:
        """Yield the cells to which one can walk straight from `cell`."""
        row, column = cell
        if row > 0 and self.down[row - 1, column]:
            yield (row - 1, column)
        if row < len(self.down) and self.down[row, column]:
            yield (row + 1, column)
        if column > 0 and self.right[row, column - 1]:
            yield (row, column - 1)
        if column < self.right.shape[1] and self.right[row, column]:
            yield (row, column + 1)


@dataclass(frozen=True, slots=True)
class Target:
    """A thing in a scan that a robot can be sent to.

    Attributes:
        name: of this very thing.
        category: what kind of thing it is.
        cell: where one stands before it.
    """

    name: str
    category: str
    cell: Cell


#: A target, and the corners of the windows that hold its cell.
Aim = tuple[Target, list[Cell]]


@dataclass(frozen=True, slots=True)
class Task:
    """A state cut from a grid.

    Attributes:
        state: that was cut.
        corner: cell of the grid that is cell (0, 0) of the state.
        target: thing at the goal; None where the goal is just a cell.
    """

    state: State
    corner: Cell
    target: Target | None


def find_storeys(heights: NDArray[np.float64], room: NDArray[np.float64]) -> list[float]:
    """Return the heights of a building's floors [m], the one with most room first.

    Where most room lies within `STOREY` is a floor; the next is where most of the rest does, at
    least `BETWEEN` away. What has a tenth of the first one's room or less is a table or a landing.

    Args:
        heights: of pieces of floor [m].
        room: their areas [m²].
    """
    fine = STOREY / 10
    lowest = heights.min()
    bins = np.round((heights - lowest) / fine).astype(int)
    left, storeys, most = room.astype(np.float64), [], 0.0
    while left.any():
        around = np.convolve(np.bincount(bins, left), np.ones(11), "same")
        near = np.abs(bins - around.argmax()) <= 5
        if left[near].sum() <= most / 10:
            break
        most = max(most, left[near].sum())
        storeys.append(float(np.average(heights[near], weights=left[near])))
        left[np.abs(heights - storeys[-1]) < BETWEEN] = 0
    return storeys


def places_per_cell(cell_size: float) -> int:
    """Return how many places of a map lie along a cell of a size [m]: odd, one is the centre."""
    return max(MIN_PLACES, 2 * math.floor(cell_size / MAX_STEP / 2) + 1)


def make_occupancy(
    navigable: NDArray[np.bool_], corner: tuple[float, float], cell_size: float
) -> Occupancy:
    """Lay a lattice over a map such that most steps between cells are free.

    Args:
        navigable: bool [H, W], whether one can stand at a place; rows go along -y and columns along
            +x, `places_per_cell` of them to a cell.
        corner: the place of [0, 0] in the world (x, y) [m].
        cell_size: side of a cell [m].

    Raises:
        ScanError: no cell is free.
    """
    places = places_per_cell(cell_size)
    best: tuple[tuple[int, int], Cell] | None = None
    stride = places // MIN_PLACES
    for row in range(0, places, stride):
        for column in range(0, places, stride):
            free, right, down, room = _cells(navigable, (row, column), places)
            # Of lattices with as many steps, the one whose cells have most room about the middle.
            score = (int(right.sum() + down.sum()), int(room[free].sum()))
            if free.any() and (best is None or score > best[0]):
                best = score, (row, column)
    if best is None:
        raise ScanError(
            f"no cell of {cell_size:g} m is free: take a smaller --cell-size or --agent-radius"
        )
    shift = best[1]
    free, right, down, _ = _cells(navigable, shift, places)
    step = cell_size / places
    origin = (
        corner[0] + (places // 2 - shift[1]) * step,
        corner[1] - (places // 2 - shift[0]) * step,
    )
    region = _largest_region(Occupancy(free, right, down, free, cell_size, origin))
    return Occupancy(free, right, down, region, cell_size, origin)


def _cells(
    navigable: NDArray[np.bool_], shift: Cell, places: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]:
    """Return free, right and down of a lattice, and how much room each of its cells has.

    The lattice begins `shift` places above and left of the map. Places where one can stand count
    for more the nearer they are to the cell's middle.
    """
    before = np.array(shift)
    after = -(before + navigable.shape) % places
    padded = np.pad(navigable, np.stack([before, after], axis=1))
    rows, columns = (side // places for side in padded.shape)
    half, third = places // 2, places // 3
    middle = slice(third, places - third)
    blocks = padded.reshape(rows, places, columns, places)
    free = blocks[:, half, :, half]
    free = free & (blocks[:, middle, :, middle].mean(axis=(1, 3)) >= FREE_SHARE)
    inwards = np.minimum(np.arange(1, places + 1), np.arange(places, 0, -1))
    room = (blocks @ inwards).transpose(0, 2, 1) @ inwards
    # From centre to centre: the places in between, and the centres themselves are free.
    along = padded[half::places, half : half + (columns - 1) * places]
    right = along.reshape(rows, columns - 1, places).all(axis=2) & free[:, :-1] & free[:, 1:]
    along = padded[half : half + (rows - 1) * places, half::places]
    down = along.reshape(rows - 1, places, columns).all(axis=1) & free[:-1] & free[1:]
    return free, right, down, room


def _largest_region(grid: Occupancy) -> NDArray[np.bool_]:
    left = set(map(tuple, np.argwhere(grid.free).tolist()))
    largest: dict[Cell, int] = {}
    for cell in sorted(left):
        if cell in left:
            found = _distances(grid, cell, (0, 0), max(grid.free.shape))
            left -= found.keys()
            largest = max(largest, found, key=len)
    region = np.zeros(grid.free.shape, bool)
    region[tuple(np.array(sorted(largest)).T)] = True
    return region


def _distances(grid: Occupancy, start: Cell, corner: Cell, level: int) -> dict[Cell, int]:
    """Return the steps from `start` to every cell that one can walk to inside a window."""
    top, left = corner
    found = {start: 0}
    queue = deque([start])
    while queue:
        cell = queue.popleft()
        for there in grid.neighbours(cell):
            inside = top <= there[0] < top + level and left <= there[1] < left + level
            if inside and there not in found:
                found[there] = found[cell] + 1
                queue.append(there)
    return found


# --- Tasks ---


def min_steps(level: int) -> int:
    """Return how many steps a task of a level takes at least."""
    return max(2, level // 2)


def find_windows(grid: Occupancy, family: str, level: int) -> list[Cell]:
    """Return the corners of the windows of `level` × `level` cells that tasks are cut from.

    They lie inside the region's bounds. Of a lake nothing but holes may be in the way: a wall
    between two free cells cannot be told in its state. Windows with nothing in the way are left out
    if there are others.

    Raises:
        ScanError: there is none; the message says what to change.
    """
    if family not in SCAN_FAMILIES:
        raise ScanError(f"scans have tasks of {' and '.join(SCAN_FAMILIES)}, not of {family}")
    if not 2 <= level <= MAX_SIZE:
        raise ScanError(f"level must be 2 to {MAX_SIZE} cells, not {level}")
    rows, columns = (np.flatnonzero(grid.region.any(axis=axis)) for axis in (1, 0))
    (top, bottom), (left, right) = ((int(c[0]), int(c[-1]) + 1) for c in (rows, columns))
    sides = (bottom - top, right - left)
    if min(sides) < level:
        raise ScanError(
            f"level {level} is larger than the floor, {sides[0]} × {sides[1]} cells of "
            f"{grid.cell_size:g} m: take a lower --level or a smaller --cell-size"
        )
    bounds = (slice(top, bottom), slice(left, right))
    region, free = grid.region[bounds], grid.free[bounds]
    walls_right = free[:, :-1] & free[:, 1:] & ~grid.right[bounds][:, : free.shape[1] - 1]
    walls_down = free[:-1] & free[1:] & ~grid.down[bounds][: free.shape[0] - 1]
    walls = _counted(walls_right, (level, level - 1)) + _counted(walls_down, (level - 1, level))
    obstacles = walls + _counted(~free, (level, level))
    good = _counted(region, (level, level)) >= max(min_steps(level) + 1, MIN_FREE * level**2)
    if not good.any():
        raise ScanError(
            f"no window of {level} × {level} cells of {grid.cell_size:g} m has enough free floor: "
            "take a lower --level or a smaller --cell-size"
        )
    if family == "frozenlake":
        good &= walls == 0
        if not good.any():
            raise ScanError(
                f"in every window of {level} × {level} cells a wall stands between two free cells, "
                "which no lake has: take --family maze or a lower --level"
            )
    if (good & (obstacles > 0)).any():
        good &= obstacles > 0
    return [(top + r, left + c) for r, c in np.argwhere(good).tolist()]


def _counted(cells: NDArray[np.bool_], window: tuple[int, int]) -> NDArray[np.int64]:
    """Return how many cells are set in the window that begins at each cell."""
    return sliding_window_view(cells, window).sum(axis=(2, 3))


def find_aims(targets: Sequence[Target], windows: Sequence[Cell], level: int) -> list[Aim]:
    """Return the targets whose cell lies inside windows of a level, with these windows."""
    aims: list[Aim] = []
    for target in targets:
        row, column = target.cell
        around = [(r, c) for r, c in windows if 0 <= row - r < level and 0 <= column - c < level]
        if around:
            aims.append((target, around))
    return aims


def draw_task(
    grid: Occupancy,
    family: str,
    level: int,
    windows: Sequence[Cell],
    aims: Sequence[Aim],
    split: str,
    seed: int,
    attempt: int = 0,
) -> Task:
    """Return a task, deterministic in its arguments, whose state is of a split.

    Where there are aims, the goal is where one stands before one of them, each category as likely
    as any other; else it is any cell. The start is far away.

    Args:
        grid: from which it is cut.
        family: maze or frozenlake.
        level: side of the state [cells].
        windows: from `find_windows`, not empty.
        aims: from `find_aims`.
        split: of the state, see `sim.sampling.split_of`.
        seed: of the task.
        attempt: number of the task among those of the seed.

    Raises:
        ScanError: no state of the split was found.
    """
    categories = sorted({target.category for target, _ in aims})
    # Seeding by text goes through SHA-512: independent streams for neighbouring seeds.
    rng = random.Random(f"scan/{family}/{level}/{split}/{seed}/{attempt}")
    for _ in range(_TRIES):
        if aims:
            category = rng.choice(categories)
            target, around = rng.choice([aim for aim in aims if aim[0].category == category])
            corner, goal = rng.choice(around), target.cell
        else:
            target, corner = None, rng.choice(windows)
            goal = rng.choice(_region_cells(grid, corner, level))
        steps = _distances(grid, goal, corner, level)
        least = max(min_steps(level), max(steps.values()) / 2)
        starts = sorted(cell for cell, count in steps.items() if count >= least)
        if not starts:
            continue
        state = cut_state(grid, family, level, corner, rng.choice(starts), goal)
        if split_of(state) == split:
            return Task(state, corner, target)
    raise ScanError(
        f"found no {split} task of {family} {level} in this scan: take another --level or "
        "--cell-size"
    )


def cut_state(
    grid: Occupancy, family: str, level: int, corner: Cell, start: Cell, goal: Cell
) -> State:
    """Return the state of a window; `start` and `goal` are cells of the grid.

    Raises:
        sim.states.StateError: start or goal is not free or not in the window.
    """
    top, left = corner
    inside = [(row, column) for row in range(level) for column in range(level)]
    own_start, own_goal = ((row - top, column - left) for row, column in (start, goal))
    if family == "frozenlake":
        holes = frozenset((r, c) for r, c in inside if not grid.free[top + r, left + c])
        return FrozenLake(level, own_start, own_goal, holes)
    bits = np.full((level, level), WALL_UP | WALL_DOWN | WALL_LEFT | WALL_RIGHT)
    right = grid.right[top : top + level, left : left + level - 1]
    down = grid.down[top : top + level - 1, left : left + level]
    bits[:, :-1] -= WALL_RIGHT * right
    bits[:, 1:] -= WALL_LEFT * right
    bits[:-1] -= WALL_DOWN * down
    bits[1:] -= WALL_UP * down
    return Maze.from_wall_bits(bits.tolist(), own_start, own_goal)


def _region_cells(grid: Occupancy, corner: Cell, level: int) -> list[Cell]:
    top, left = corner
    inside = grid.region[top : top + level, left : left + level]
    return [(top + r, left + c) for r, c in np.argwhere(inside).tolist()]


def nearest_cell(
    grid: Occupancy, low: tuple[float, float], high: tuple[float, float]
) -> Cell | None:
    """Return the cell of the region that is nearest to a rectangle of the floor, or None.

    `low` and `high` are its corners (x, y) [m]. None where no cell's centre is within `NEAR`.
    """
    cells = np.argwhere(grid.region)
    centres = np.array([grid.centre((row, column)) for row, column in cells.tolist()])
    outside = np.maximum(np.maximum(low - centres, centres - high), 0)
    away = np.hypot(*outside.T)
    # Of those as near, the one before the middle.
    off = np.hypot(*(centres - np.add(low, high) / 2).T)
    first = np.lexsort((off, away.round(6)))[0]
    if away[first] > max(NEAR, grid.cell_size):
        return None
    row, column = cells[first].tolist()
    return (row, column)
