"""Files of public benchmarks, and how the cases in them are read; see docs/benchmarks.md.

A reader yields what it finds: a `Case`, or the `CaseError` of one that cannot be read. It checks
what a file says twice against itself; `sim.cases.check_case` checks it against the rules.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Union

from sim.actions import MOVES, Action, Plan, parse_plan
from sim.planning import simulate
from sim.states import (
    MAX_SIZE,
    WALL_DOWN,
    WALL_LEFT,
    WALL_RIGHT,
    WALL_UP,
    Cell,
    FrozenLake,
    Maze,
    MiniBehaviour,
    State,
    StateError,
)

#: Longest line of JSON and longest other file that is read [bytes].
MAX_BYTES = 1 << 20

PLANS_NAME = "plans.json"

_LETTERS = {"@": "S", "*": "G", "#": "H", "_": "F"}
_SIDES = {"north": WALL_UP, "south": WALL_DOWN, "west": WALL_LEFT, "east": WALL_RIGHT}
_MOVE_OF_STEP = {change: action for action, change in MOVES.items()}


class CaseError(ValueError):
    """A case that cannot be read or that contradicts itself.

    Attributes:
        where: the file, and after a colon the line (from 1) where there is one.
    """

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")
        self.where = where


@dataclass(frozen=True, slots=True)
class Case:
    """One task of a benchmark.

    Attributes:
        name: unique among the cases of one `load_cases`.
        state: of the task.
        picture: file of its picture, None where it has none.
        plan: that is listed as optimal, None where none is listed.
        distances: listed numbers of steps from cells to the goal, None where none are listed.
        neighbours: cells listed as those beside the `printer` and the `table`, or None.
        where: "file:line" of the state.
        fills: whether `picture` shows the board alone, from edge to edge.
    """

    name: str
    state: State
    picture: Path | None
    plan: Plan | None
    distances: Mapping[Cell, int] | None
    neighbours: Mapping[str, frozenset[Cell]] | None
    where: str
    fills: bool = False


Read = Union[Case, CaseError]


# --- Visual Spatial Planning: tables ---


def read_table(file: Path, name: str) -> Iterator[Read]:
    """Yield the map of a file that is a table, with its picture and its plan if there are any."""
    yield _tried(f"{file}:1", lambda: _table_case(file, name))


def _table_case(file: Path, name: str) -> Case:
    lines = _lines(file)
    while lines and not lines[-1]:
        lines.pop()
    size = len(lines) - 1
    rows = []
    for number, line in enumerate(lines, 1):
        cells = [cell.strip() for cell in line.split("|")]
        label = f"Row {number - 1}" if number > 1 else ""
        if len(cells) < 3 or cells[0] or cells[-1] or cells[1] != label:
            raise CaseError(f"{file}:{number}", f"not a row | {label} | … | of a table")
        if len(cells) - 3 != size:
            raise CaseError(f"{file}:{number}", f"{len(cells) - 3} cells, but {size} rows")
        if number == 1:
            if cells[2:-1] != [f"Col {column}" for column in range(1, size + 1)]:
                raise CaseError(f"{file}:1", "not the head | | Col 1 | … | of a table")
            continue
        for cell in cells[2:-1]:
            if cell not in _LETTERS:
                raise CaseError(f"{file}:{number}", f"{cell[:20]!r} is none of @ * # _")
        rows.append([_LETTERS[cell] for cell in cells[2:-1]])
    where = f"{file}:1"
    lake = _state(where, lambda: FrozenLake.from_rows(rows))
    level, picture = _level_and_picture(file, "table", "img")
    _check_level(where, level, lake)
    plans, lines_of = _plans(level.parent / PLANS_NAME)
    key = f"{level.name}/{file.stem}"
    listed = plans.get(key)
    plan = None
    if listed is not None:
        plan = _parsed(listed, "frozenlake", f"{level.parent / PLANS_NAME}:{lines_of[key]}")
    # In the benchmark's own pictures every cell is 64 × 64 px, and nothing is around them.
    return Case(name, lake, picture, plan, None, None, where, fills=picture is not None)


def _level_and_picture(file: Path, texts: str, pictures: str) -> tuple[Path, Path | None]:
    """Return the folder of a file's level, and the file of its picture."""
    inner = file.parent.name == texts
    level = file.parent.parent if inner else file.parent
    picture = (level / pictures if inner else level) / f"{file.stem}.png"
    return level, picture if picture.is_file() else None


def _check_level(where: str, level: Path, state: State) -> None:
    if re.fullmatch(r"level\d+", level.name) and level.name != f"level{state.size}":
        raise CaseError(where, f"a grid of side {state.size} in the folder {level.name}")


@lru_cache(maxsize=8)
def _read_plans(file: Path, changed: int) -> tuple[dict[str, str], dict[str, int]]:
    lines = _lines(file)
    try:
        plans = json.loads("\n".join(lines))
    except (ValueError, RecursionError) as error:
        raise CaseError(f"{file}:{getattr(error, 'lineno', 1)}", f"no JSON ({error})") from error
    if not isinstance(plans, dict) or not all(isinstance(plan, str) for plan in plans.values()):
        raise CaseError(f"{file}:1", "plans must be an object of texts by name")
    at: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        for name in re.findall(r'"([^"]*)"\s*:', line):
            at[name] = number
    return plans, dict.fromkeys(plans, 1) | at


def _plans(file: Path) -> tuple[dict[str, str], dict[str, int]]:
    """Return the listed plans by name, and the lines where they stand; none without the file."""
    return _read_plans(file, file.stat().st_mtime_ns) if file.is_file() else ({}, {})


# --- VisualPlanning: JSON lines ---


def read_rows(file: Path, name: str) -> Iterator[Read]:
    """Yield the cases of a file of JSON lines, each with the fields `meta` and `input_state`."""
    try:
        with file.open("rb") as opened:
            for number, line in enumerate(_json_lines(opened), 1):
                if line.strip():
                    yield _read_row(line, f"{name}/{number}", f"{file}:{number}")
    except OSError as error:
        yield CaseError(str(file), f"cannot be read ({error.strerror})")


def _json_lines(opened: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of a file; of those that are too long, more than `MAX_BYTES`."""
    while line := opened.readline(MAX_BYTES + 1):
        yield line
        while len(line) > MAX_BYTES and not line.endswith(b"\n"):
            line = opened.readline(MAX_BYTES + 1)


def _read_row(line: bytes, name: str, where: str) -> Read:
    if len(line) > MAX_BYTES:
        return CaseError(where, f"longer than {MAX_BYTES} bytes")
    return _tried(where, lambda: _row_case(line, name, where))


def _row_case(line: bytes, name: str, where: str) -> Case:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CaseError(where, f"no JSON ({str(error)[:100]})") from error
    fields = _Fields(row, where, "the row")
    meta = _Fields(fields.get("meta", dict), where, "meta")
    trajectory = fields.get("input_state", list)
    layout = meta.data.get("layout")
    if "printer_pos" in meta.data:
        case = _office_case(meta, trajectory, name, where)
    elif isinstance(layout, list) and layout and _is_walled(layout[0]):
        case = _grid_case(meta, _walled_maze, trajectory, name, where)
    else:
        case = _grid_case(meta, _lettered_lake, trajectory, name, where)
    listed = fields.data.get("family", case.state.family)
    if listed != case.state.family:
        raise CaseError(where, f"family {listed!r:.40} of a {case.state.family} row")
    if meta.get("level", int) != case.state.size:
        raise CaseError(where, f"level {meta.data['level']} of a grid of side {case.state.size}")
    return case


class _Fields:
    """An object of a JSON file whose fields must be there and of a type."""

    def __init__(self, data: object, where: str, what: str) -> None:
        if not isinstance(data, dict):
            raise CaseError(where, f"{what} must be an object")
        self.data, self.where, self._what = data, where, what

    def get(self, name: str, kind: type) -> Any:
        value = self.data.get(name)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            word = {dict: "an object", list: "a list", int: "a whole number"}[kind]
            raise CaseError(self.where, f"{name} of {self._what} must be {word}, not {value!r:.40}")
        return value


def _grid_case(
    meta: _Fields,
    make: Callable[[_Fields, Cell, Cell], State],
    trajectory: Sequence[Any],
    name: str,
    where: str,
) -> Case:
    """Return the case of a row whose cells are numbered row by row."""
    size = len(meta.get("layout", list))

    def cell(index: object, what: str) -> Cell:
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < size**2:
            raise CaseError(where, f"{what} {index!r:.40} is no cell of a grid of side {size}")
        return divmod(index, size)

    start, goal = (cell(meta.get(key, int), key) for key in ("start_pos", "target_pos"))
    state = _state(where, lambda: make(meta, start, goal))
    path = [cell(index, "input_state") for index in trajectory]
    plan = _plan_of(start, [(point, False) for point in path], where)
    distances = _distances(meta.get("distance_map", dict), size, where)
    return Case(name, state, None, plan, distances, None, where)


def _lettered_lake(meta: _Fields, start: Cell, goal: Cell) -> FrozenLake:
    rows = [row if isinstance(row, list | str) else [] for row in meta.data["layout"]]
    if not all(isinstance(cell, str) for row in rows for cell in row):
        raise StateError("layout must hold letters or the walls of cells")
    lake = FrozenLake.from_rows(rows)
    if (lake.start, lake.goal) != (start, goal):
        raise StateError(
            f"layout has start and goal at {lake.start} and {lake.goal}, start_pos and target_pos "
            f"at {start} and {goal}"
        )
    return lake


def _is_walled(row: object) -> bool:
    return isinstance(row, list) and bool(row) and isinstance(row[0], dict)


def _walled_maze(meta: _Fields, start: Cell, goal: Cell) -> Maze:
    return Maze.from_wall_bits(_bits_of(meta.data["layout"]), start, goal)


def _bits_of(layout: object) -> list[list[int]]:
    """Return the wall bits of a layout whose cells say on which sides there is a wall.

    Raises:
        StateError: it is something else.
    """
    bits: list[list[int]] = []
    for row in layout if isinstance(layout, list) else ():
        bits.append([])
        for cell in row if isinstance(row, list) else ():
            sides = cell if isinstance(cell, dict) else {}
            if not all(isinstance(sides.get(side), bool) for side in _SIDES):
                raise StateError(
                    "a cell of a layout must say of four sides whether there is a wall"
                )
            bits[-1].append(sum(bit for side, bit in _SIDES.items() if sides[side]))
    return bits


def _office_case(meta: _Fields, trajectory: Sequence[Any], name: str, where: str) -> Case:
    size = meta.get("level", int)

    def cells(key: str) -> list[Any]:
        listed = meta.get(key, list)
        if not all(_is_cell(cell, size) for cell in listed):
            raise CaseError(where, f"{key} must hold cells of a grid of side {size}")
        return [tuple(cell) for cell in listed]

    start, printer = meta.get("start_pos", list), meta.get("printer_pos", list)
    table = cells("table_pos")
    state = _state(where, lambda: MiniBehaviour(size, start, printer, frozenset(table)))
    for point in trajectory:
        if (
            not isinstance(point, list)
            or len(point) != 2
            or not _is_cell(point[0], size)
            or not isinstance(point[1], bool)
        ):
            raise CaseError(where, f"input_state holds {point!r:.40}, not [cell, carrying]")
    plan = _plan_of(state.agent, [(tuple(cell), carries) for cell, carries in trajectory], where)
    neighbours = {thing: frozenset(cells(f"{thing}_neighbors")) for thing in ("printer", "table")}
    return Case(name, state, None, plan, None, neighbours, where)


def _is_cell(value: object, size: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v < size for v in value)
    )


def _plan_of(start: Cell, trajectory: Sequence[tuple[Cell, bool]], where: str) -> Plan:
    """Return the actions between the points of a trajectory, (cell, whether it carries)."""
    if not trajectory or trajectory[0] != (start, False):
        raise CaseError(where, f"input_state does not begin at {start}")
    plan: list[StrEnum] = []
    for number, ((cell, carries), (after, carries_after)) in enumerate(pairwise(trajectory), 1):
        action = _MOVE_OF_STEP.get((after[0] - cell[0], after[1] - cell[1]))
        if after == cell and carries != carries_after:
            action = Action.PICK if carries_after else Action.DROP
        elif carries != carries_after:
            action = None
        if action is None:
            raise CaseError(where, f"step {number} of input_state, {cell} to {after}, is no action")
        plan.append(action)
    return tuple(plan)


# --- Mazes with one integer a cell ---


def read_walls(file: Path, name: str) -> Iterator[Read]:
    """Yield the maze of a file of `key=value` lines, `layout:` and one integer a cell."""
    yield _tried(f"{file}:1", lambda: _walls_case(file, name))


def _walls_case(file: Path, name: str) -> Case:
    head = _Head(file)
    start, goal = (
        (head.value(f"{what}_row"), head.value(f"{what}_col")) for what in ("start", "target")
    )
    maze: Maze = _state(head.end, lambda: Maze.from_wall_bits(head.bits, start, goal))
    size = maze.size
    head.agree("level", size)
    head.agree("start_pos", maze.start[0] * size + maze.start[1])
    head.agree("target_pos", maze.goal[0] * size + maze.goal[1])
    if head.has("layout_json"):
        where, layout = head.where("layout_json"), head.value("layout_json")
        again = _state(where, lambda: Maze.from_wall_bits(_bits_of(layout), start, goal))
        if again != maze:
            raise CaseError(where, "layout_json and layout disagree on the walls")
    plan = None
    if head.has("solution_actions"):
        where, words = head.where("solution_actions"), head.value("solution_actions")
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise CaseError(where, "solution_actions must be a list of words")
        plan = _parsed(" ".join(words), "maze", where)
        head.agree("path_length", len(plan))
        head.agree("trajectory_states", [list(cell) for cell in simulate(maze, plan).path])
    distances = None
    if head.has("distance_map"):
        where = head.where("distance_map")
        distances = _distances(head.value("distance_map"), size, where)
    level, picture = _level_and_picture(file, "text", "image")
    _check_level(head.end, level, maze)
    return Case(name, maze, picture, plan, distances, None, head.end)


class _Head:
    """The `key=value` lines of a maze's file and the integers below them.

    Attributes:
        bits: the integers, row by row.
        end: "file:line" of `layout:`.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._entries: dict[str, tuple[str, str]] = {}  # key -> text, where
        lines = _lines(file)
        if "task=maze" not in lines:
            raise CaseError(f"{file}:1", "no maze: there is no line task=maze")
        if "layout:" not in lines:
            raise CaseError(f"{file}:{len(lines)}", "no `layout:` with one integer a cell")
        end = lines.index("layout:")
        self.end = f"{file}:{end + 1}"
        for number, line in enumerate(lines[:end], 1):
            key, equals, text = line.partition("=")
            if not equals or key in self._entries:
                what = (
                    f"{key[:40]!r} a second time" if equals else "neither key=value nor `layout:`"
                )
                raise CaseError(f"{file}:{number}", what)
            self._entries[key] = text, f"{file}:{number}"
        self.bits: list[list[int]] = []
        for number, line in enumerate(lines[end + 1 :], end + 2):
            if not line:
                continue
            row = [_whole(word) for word in line.split()]
            if len(row) > MAX_SIZE or any(bits is None for bits in row):
                raise CaseError(f"{file}:{number}", "a row of a layout holds whole numbers only")
            self.bits.append([bits or 0 for bits in row])

    def has(self, key: str) -> bool:
        """Return whether there is such a line."""
        return key in self._entries

    def where(self, key: str) -> str:
        """Return "file:line" of a key."""
        return self._entries[key][1]

    def text(self, key: str) -> str:
        """Return what stands behind a key; CaseError where it is missing."""
        if key not in self._entries:
            raise CaseError(f"{self._file}:1", f"{key} is missing")
        return self._entries[key][0]

    def value(self, key: str) -> Any:
        """Return what stands behind a key, read as JSON."""
        text = self.text(key)
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            what = f"{key} cannot be read ({str(error)[:100]})"
            raise CaseError(self.where(key), what) from error

    def agree(self, key: str, found: object) -> None:
        """Raise CaseError where a key is there and does not say what was found."""
        if key in self._entries and json.dumps(self.value(key)) != json.dumps(found):
            says = f"{key} is {self.text(key)[:60]!r}, but the rest says {json.dumps(found)[:60]}"
            raise CaseError(self.where(key), says)


# --- What several kinds share ---


def _tried(where: str, read: Callable[[], Case]) -> Read:
    """Return a case, or why it cannot be read."""
    try:
        return read()
    except CaseError as error:
        return error
    except RecursionError:  # what can be read can still be too deep to be shown
        return CaseError(where, "lists within lists, too many")


def _lines(file: Path) -> list[str]:
    """Return the lines of a small text file."""
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise CaseError(str(file), f"cannot be read ({error.strerror})") from error
    if len(data) > MAX_BYTES:
        raise CaseError(f"{file}:1", f"longer than {MAX_BYTES} bytes")
    lines = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.isascii():
            raise CaseError(f"{file}:{number}", "there are characters that no map has")
    return [line.decode("ascii").rstrip() for line in lines]


def _state(where: str, make: Callable[[], State]) -> Any:
    try:
        return make()
    except StateError as error:
        raise CaseError(where, str(error)) from error


def _whole(text: str) -> int | None:
    """Return the whole number of a short text of digits, or None."""
    return int(text) if len(text) < 10 and text.isascii() and text.isdecimal() else None


def _parsed(words: str, family: str, where: str) -> Plan:
    try:
        return parse_plan(f"<answer>{words}</answer>", family)
    except ValueError as error:
        raise CaseError(where, str(error)) from error


def _distances(listed: object, size: int, where: str) -> dict[Cell, int]:
    """Return the steps by cell of an object that has them by the number of the cell, as text."""
    distances = {}
    for text, steps in _Fields(listed, where, "distance_map").data.items():
        index = _whole(text)
        if index is None or not index < size**2 or type(steps) is not int:
            raise CaseError(where, f"distance_map holds {text[:40]!r}: {steps!r:.40}")
        distances[divmod(index, size)] = steps
    return distances
