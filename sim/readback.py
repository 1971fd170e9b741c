"""The symbolic state, recovered from what stands in a renderer's scene graph and nothing else.

A renderer says what it holds as `Placed` things: a role and its box in metres. From these alone
`read_state` works out the grid and what is where, so that an episode's state is what was built
and drawn, not what somebody meant to build.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from sim.family import find_family
from sim.grid import CELL_SIZE, cell_centre, point_to_cell
from sim.states import (
    MAX_SIZE,
    WALL_DOWN,
    WALL_LEFT,
    WALL_RIGHT,
    WALL_UP,
    Cell,
    State,
    state_to_dict,
)

#: How far [cells] a thing may stand from the cell centre or the edge where it belongs.
TOLERANCE = 0.02


class ReadbackError(ValueError):
    """The things in a scene graph make no state, or not the state that was to be built."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A thing in a renderer's scene graph.

    Attributes:
        role: a key of `sim.scene.SEMANTIC_IDS`, or one of a family's own.
        position: of its frame's origin in the world (x, y, z) [m].
        low, high: corners of its axis-aligned bounding box in the world [m].
    """

    role: str
    position: tuple[float, float, float]
    low: tuple[float, float, float]
    high: tuple[float, float, float]


class World:
    """What stands on a grid, from which a family reads its state.

    Every cell of a grid holds a floor tile or a hole; their extent is the grid.

    Attributes:
        size: side of the grid [cells].

    Raises:
        ReadbackError: (methods too) the grid has gaps, a thing is missing, doubled or misplaced.
    """

    def __init__(self, things: Iterable[Placed], cell_size: float = CELL_SIZE) -> None:
        self._by_role, self._cell_size = grouped(things), cell_size
        self._read = {"floor", "hole"}
        squares = self._by_role.get("floor", []) + self._by_role.get("hole", [])
        self.size = grid_size(squares, cell_size)
        whole = len(squares) == len(self.cells("floor") | self.cells("hole")) == self.size**2
        if not whole:
            raise ReadbackError(
                f"a grid of side {self.size} has cells with no floor and no hole, or both"
            )

    def cell(self, role: str) -> Cell:
        """Return the cell of the one thing of a role."""
        self._read.add(role)
        return only_cell(role, self._by_role, self.size, self._cell_size)

    def cells(self, role: str) -> frozenset[Cell]:
        """Return the cells of all things of a role, of which there may be none."""
        self._read.add(role)
        things = self._by_role.get(role, [])
        cells = frozenset(_cell(thing, self.size, self._cell_size) for thing in things)
        if len(cells) != len(things):
            raise ReadbackError(f"there is a cell with more than one {role}")
        return cells

    def table(self) -> frozenset[Cell]:
        """Return the cells below the one table."""
        self._read.add("table")
        return table_cells(self._by_role, self.size, self._cell_size)

    def walls(self) -> tuple[tuple[int, ...], ...]:
        """Return the wall bits of every cell, as `sim.Maze` has them."""
        self._read.add("wall")
        return _walls(self._by_role.get("wall", []), self.size, self._cell_size)

    def unread(self) -> list[str]:
        """Return the roles of things that were not asked for."""
        return sorted(set(self._by_role) - self._read)


def read_state(
    things: Iterable[Placed], cell_size: float = CELL_SIZE, family: str | None = None
) -> State:
    """Return the state of a family that things in the world make up.

    Without `family` it is one of this package's: a printer makes it MiniBehaviour, otherwise walls
    make it a Maze, otherwise it is a FrozenLake.

    Raises:
        ReadbackError: the grid has gaps, a thing is missing, doubled, off its place or none of the
            family's, or the result is no valid state.
    """
    things = list(things)
    if family is None:
        roles = {thing.role for thing in things}
        family = "maze" if "wall" in roles else "frozenlake"
        family = "minibehaviour" if "printer" in roles else family
    world = World(things, cell_size)
    read = find_family(family).read
    if read is None:
        raise ReadbackError(f"{family} cannot be read from a world")
    try:
        state = read(world)
    except ReadbackError:
        raise
    except ValueError as error:
        raise ReadbackError(f"what is there is no valid state: {error}") from error
    if world.unread():
        raise ReadbackError(f"{family} has no {', '.join(world.unread())}, but it is there")
    return state


def grouped(things: Iterable[Placed]) -> dict[str, list[Placed]]:
    """Return things by their roles."""
    by_role: dict[str, list[Placed]] = {}
    for thing in things:
        by_role.setdefault(thing.role, []).append(thing)
    return by_role


def check_state(found: State, meant: State) -> State:
    """Return `found`; raise ReadbackError, showing both, where it is not `meant`."""
    if found != meant:
        raise ReadbackError(
            "the state in the simulator is not the one that was to be built; "
            f"found {state_to_dict(found)}, meant {state_to_dict(meant)}"
        )
    return found


def grid_size(squares: list[Placed], cell_size: float = CELL_SIZE) -> int:
    """Return the side [cells] of the grid that floor and holes span; ReadbackError if it has none.

    Each may be one cell or many.
    """
    if not squares:
        raise ReadbackError("there is no floor")
    sides = [
        (max(thing.high[axis] for thing in squares) - min(thing.low[axis] for thing in squares))
        / cell_size
        for axis in (0, 1)
    ]
    size = round(sides[0])
    if any(abs(side - size) > TOLERANCE for side in sides) or not 2 <= size <= MAX_SIZE:
        raise ReadbackError(f"floor and holes extend over {sides[0]:.2f} × {sides[1]:.2f} cells")
    return size


def _cell(thing: Placed, size: int, cell_size: float) -> Cell:
    x, y, _ = thing.position
    cell = point_to_cell(x, y, size, cell_size)
    if cell is None or math.dist((x, y), cell_centre(cell, size, cell_size)) > (
        TOLERANCE * cell_size
    ):
        raise ReadbackError(f"{thing.role} at ({x:.3f}, {y:.3f}) m stands in the centre of no cell")
    return cell


def only_cell(role: str, by_role: dict[str, list[Placed]], size: int, cell_size: float) -> Cell:
    """Return the cell of the one thing of a role; ReadbackError where there is not just one."""
    things = by_role.get(role, [])
    if len(things) != 1:
        raise ReadbackError(f"there must be one {role}, not {len(things)}")
    return _cell(things[0], size, cell_size)


def table_cells(by_role: dict[str, list[Placed]], size: int, cell_size: float) -> frozenset[Cell]:
    """Return the cells below the one table; ReadbackError where there is not just one."""
    tables = by_role.get("table", [])
    if len(tables) != 1:
        raise ReadbackError(f"there must be one table, not {len(tables)}")
    (low_x, low_y, _), (high_x, high_y, _) = tables[0].low, tables[0].high
    covered = []
    for row in range(size):
        for column in range(size):
            x, y = cell_centre((row, column), size, cell_size)
            if low_x <= x <= high_x and low_y <= y <= high_y:
                covered.append((row, column))
    return frozenset(covered)


def _walls(walls: list[Placed], size: int, cell_size: float) -> tuple[tuple[int, ...], ...]:
    bits = [[0] * size for _ in range(size)]
    for wall in walls:
        # In cells from the grid's top left corner; a wall stands in the middle of a cell's edge.
        x, y, _ = wall.position
        column, row = size / 2 + x / cell_size, size / 2 - y / cell_size
        along_x = wall.high[0] - wall.low[0] > wall.high[1] - wall.low[1]
        edge, across = (round(row), column - 0.5) if along_x else (round(column), row - 0.5)
        index = round(across)
        off = max(abs((row if along_x else column) - edge), abs(across - index))
        if off > TOLERANCE or not (0 <= edge <= size and 0 <= index < size):
            raise ReadbackError(f"wall at ({x:.3f}, {y:.3f}) m stands on no edge of a cell")
        for line, bit in (
            (edge - 1, WALL_DOWN if along_x else WALL_RIGHT),
            (edge, WALL_UP if along_x else WALL_LEFT),
        ):
            if 0 <= line < size:
                r, c = (line, index) if along_x else (index, line)
                bits[r][c] |= bit
    return tuple(tuple(row) for row in bits)
