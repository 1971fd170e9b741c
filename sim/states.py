"""Symbolic states: frozen, validated, hashable. What all have in common, and the three families'.

Cells are `(row, column)`, 0-based, row 0 at the top of the image. A state that exists is
well-formed; whether it can be solved is `sim.planning.solve`'s business. This module knows nothing
of actions, pictures or metres.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from sim.family import find_family

Cell = tuple[int, int]

#: Largest grid side of any state. The families' published levels end at 8; the margin is for
#: grids cut from real maps.
MAX_SIZE = 64

#: Wall bits of a maze cell: a set bit is a wall on that side.
WALL_UP, WALL_DOWN, WALL_LEFT, WALL_RIGHT = 1, 2, 4, 8

# Wall bit on this side -> (row change, column change, the same wall's bit seen from the neighbour).
_SIDES = {
    WALL_UP: (-1, 0, WALL_DOWN),
    WALL_DOWN: (1, 0, WALL_UP),
    WALL_LEFT: (0, -1, WALL_RIGHT),
    WALL_RIGHT: (0, 1, WALL_LEFT),
}

TABLE_ROWS, TABLE_COLUMNS = 2, 3


class StateError(ValueError):
    """A state that contradicts itself; the message names the field and what is wrong with it."""


class State(Hashable, Protocol):
    """What a state of any family has.

    It is a frozen dataclass whose fields are whole numbers, texts, cells, and tuples and frozen
    sets of these. Its `__post_init__` makes its fields, which may come as lists from JSON or from
    a model, what they must be, and raises StateError; `normalise` does most of that.
    """

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    family: ClassVar[str]

    @property
    def size(self) -> int:
        """Side of the grid [cells], 2 to `MAX_SIZE`; also the level of the task."""


def normalise(state: State, cells: Sequence[str] = (), sets: Sequence[str] = ()) -> None:
    """Check a new state's `size` and its fields that hold cells, and give these their one form.

    Args:
        state: that is being made.
        cells: names of the fields that hold a cell.
        sets: names of the fields that hold any number of cells.

    Raises:
        StateError: the size is out of range, or a field holds something else or leaves the grid.
    """
    size = state.size
    if not isinstance(size, int) or isinstance(size, bool) or not 2 <= size <= MAX_SIZE:
        raise StateError(f"size must be a whole number from 2 to {MAX_SIZE}, not {size!r}")
    for name in cells:
        set_field(state, name, _cell(name, getattr(state, name), size))
    for name in sets:
        set_field(state, name, _cells(name, getattr(state, name), size))


def all_cells(size: int) -> list[Cell]:
    """Return the cells of a grid, row by row."""
    return [(row, column) for row in range(size) for column in range(size)]


def set_field(state: State, name: str, value: object) -> None:
    """Give a field of a new state another value, which its class otherwise forbids."""
    object.__setattr__(state, name, value)


@dataclass(frozen=True, slots=True)
class FrozenLake:
    """Safe grid navigation: reach the goal, never enter a hole or leave the grid."""

    family: ClassVar[str] = "frozenlake"

    size: int
    start: Cell
    goal: Cell
    holes: frozenset[Cell]

    def __post_init__(self) -> None:
        normalise(self, cells=("start", "goal"), sets=("holes",))
        if self.start == self.goal:
            raise StateError(f"start and goal are the same cell {self.start}")
        for name in ("start", "goal"):
            if getattr(self, name) in self.holes:
                raise StateError(f"{name} {getattr(self, name)} is a hole")

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[str]]) -> FrozenLake:
        """Build from rows of the letters S (start), F (free), H (hole), G (goal).

        Raises:
            StateError: rows are not square, hold another letter, or not exactly one S and one G.
        """
        size = len(rows)
        found: dict[str, list[Cell]] = {letter: [] for letter in "SFHG"}
        for r, row in enumerate(rows):
            if len(row) != size:
                raise StateError(f"row {r} has {len(row)} cells, but there are {size} rows")
            for c, letter in enumerate(row):
                if letter not in found:
                    raise StateError(f"{letter!r} in row {r}, column {c} is none of S, F, H, G")
                found[letter].append((r, c))
        for letter in "SG":
            if len(found[letter]) != 1:
                raise StateError(f"there must be exactly one {letter}, not {len(found[letter])}")
        return cls(size, found["S"][0], found["G"][0], frozenset(found["H"]))

    def rows(self) -> list[str]:
        """Return the map as `from_rows` reads it."""
        marks = {self.start: "S", self.goal: "G"} | dict.fromkeys(self.holes, "H")
        return ["".join(marks.get((r, c), "F") for c in range(self.size)) for r in range(self.size)]


@dataclass(frozen=True, slots=True)
class Maze:
    """Topology-aware path finding: reach the goal, never cross a wall.

    `walls[row][column]` holds the wall bits of a cell (up 1, down 2, left 4, right 8). Both cells
    beside a wall name it. The outer border is always walled: bits there are set when missing,
    because leaving the grid is illegal whatever they say.
    """

    family: ClassVar[str] = "maze"

    size: int
    start: Cell
    goal: Cell
    walls: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        normalise(self, cells=("start", "goal"))
        if self.start == self.goal:
            raise StateError(f"start and goal are the same cell {self.start}")
        set_field(self, "walls", _wall_bits(self.walls, self.size))

    @classmethod
    def from_wall_bits(cls, rows: Sequence[Sequence[int]], start: Cell, goal: Cell) -> Maze:
        """Build from one integer a cell: set bit = wall, up 1, down 2, left 4, right 8.

        Raises:
            StateError: rows are not square, a value is not 0–15, or neighbours disagree on a wall.
        """
        return cls(len(rows), start, goal, tuple(tuple(row) for row in rows))

    def is_open(self, cell: Cell, bit: int) -> bool:
        """Return whether one can leave `cell` through the side named by a wall bit."""
        return not self.walls[cell[0]][cell[1]] & bit


@dataclass(frozen=True, slots=True)
class MiniBehaviour:
    """Embodied object interaction: PICK beside the printer, then DROP beside the table.

    `table` is a filled 2 × 3 rectangle of cells, in either orientation.
    """

    family: ClassVar[str] = "minibehaviour"

    size: int
    agent: Cell
    printer: Cell
    table: frozenset[Cell]

    def __post_init__(self) -> None:
        normalise(self, cells=("agent", "printer"), sets=("table",))
        rows, columns = ({cell[i] for cell in self.table} for i in (0, 1))
        shape = tuple(max(v) - min(v) + 1 if v else 0 for v in (rows, columns))
        area = TABLE_ROWS * TABLE_COLUMNS
        if len(self.table) != area or shape not in (
            (TABLE_ROWS, TABLE_COLUMNS),
            (TABLE_COLUMNS, TABLE_ROWS),
        ):
            raise StateError(f"table must be a filled 2 × 3 rectangle, not {sorted(self.table)}")
        if self.agent == self.printer:
            raise StateError(f"agent and printer are in the same cell {self.agent}")
        for name in ("agent", "printer"):
            if getattr(self, name) in self.table:
                raise StateError(f"{name} {getattr(self, name)} is on the table")

    def beside(self, cells: Iterable[Cell]) -> frozenset[Cell]:
        """Return the cells that share a side with one of `cells`, outside them, off the table."""
        inside = set(cells)
        around = {
            (r + dr, c + dc)
            for r, c in inside
            for dr, dc, _ in _SIDES.values()
            if 0 <= r + dr < self.size and 0 <= c + dc < self.size
        }
        return frozenset(around - inside - self.table)


def state_to_dict(state: State) -> dict[str, Any]:
    """Return a JSON-ready dictionary with sorted cells: equal states give equal dictionaries."""
    data: dict[str, Any] = {"family": state.family}
    for field in dataclasses.fields(state):
        value = getattr(state, field.name)
        data[field.name] = sorted(value) if isinstance(value, frozenset) else value
    return json.loads(json.dumps(data))


def state_from_dict(data: Mapping[str, Any]) -> State:
    """Build a state from what `state_to_dict` returned.

    Raises:
        StateError: a field is missing, unknown, or of the wrong type or shape.
        UnknownFamilyError, FamilyError: there is no such family, or it cannot be loaded.
    """
    if not isinstance(data, Mapping) or not isinstance(data.get("family"), str):
        raise StateError("a state must be an object with a text field 'family'")
    cls: Any = find_family(data["family"]).state
    fields = {k: v for k, v in data.items() if k != "family"}
    expected = {f.name for f in dataclasses.fields(cls)}
    if set(fields) != expected:
        raise StateError(
            f"a {cls.family} state has the fields {sorted(expected)}, not {sorted(fields)}"
        )
    try:
        state: State = cls(**fields)
    except TypeError as error:  # a list, say, where a family of one's own compares texts
        raise StateError(f"a {cls.family} state cannot have these fields: {error}") from error
    return state


def state_digest(state: State) -> str:
    """Return the SHA-256 (hex) of the state's canonical JSON: its identity across machines."""
    text = json.dumps(state_to_dict(state), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _cell(name: str, value: object, size: int) -> Cell:
    if (
        not isinstance(value, Sequence)
        or isinstance(value, str)
        or len(value) != 2
        or any(not isinstance(v, int) or isinstance(v, bool) for v in value)
    ):
        raise StateError(f"{name} must be a cell (row, column), not {value!r}")
    row, column = value
    if not (0 <= row < size and 0 <= column < size):
        raise StateError(f"{name} ({row}, {column}) is outside a grid of side {size}")
    return (row, column)


def _cells(name: str, value: object, size: int) -> frozenset[Cell]:
    if not isinstance(value, Iterable) or isinstance(value, str):
        raise StateError(f"{name} must be cells, not {value!r}")
    return frozenset(_cell(name, v, size) for v in value)


def _wall_bits(rows: object, size: int) -> tuple[tuple[int, ...], ...]:
    if not isinstance(rows, Sequence) or len(rows) != size:
        raise StateError(f"walls must be {size} rows")
    grid: list[list[int]] = []
    for r, row in enumerate(rows):
        if not isinstance(row, Sequence) or len(row) != size:
            raise StateError(f"row {r} of walls must hold {size} values")
        for c, bits in enumerate(row):
            if not isinstance(bits, int) or isinstance(bits, bool) or not 0 <= bits <= 15:
                raise StateError(f"wall bits at ({r}, {c}) must be 0 to 15, not {bits!r}")
        grid.append(list(row))
    for r in range(size):
        for c in range(size):
            for bit, (dr, dc, opposite) in _SIDES.items():
                nr, nc = r + dr, c + dc
                if not (0 <= nr < size and 0 <= nc < size):
                    grid[r][c] |= bit
                elif bool(grid[r][c] & bit) != bool(grid[nr][nc] & opposite):
                    raise StateError(f"cells ({r}, {c}) and ({nr}, {nc}) disagree on their wall")
    return tuple(tuple(row) for row in grid)
