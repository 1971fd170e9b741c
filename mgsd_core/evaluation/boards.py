"""What a model saw and where its plan leads, as outlines over a picture or on a board of its own.

Knows of SVG how a path is written, and nothing of pages. What is right, wrong or missed is told by
comparing the state that was seen with the true one, field by field: whatever holds a cell or a set
of cells, of any family, and the walls of mazes.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from mgsd_core.evaluation.results import Matrix
from sim import Cell, Failure, Maze, Outcome, Plan, State, simulate
from sim.actions import MOVES
from sim.states import WALL_DOWN, WALL_RIGHT, all_cells

#: Side of the drawing, of whole numbers; whatever is drawn is stretched over the picture's sides.
SIDE = 1000

#: Longest part of a plan that is drawn [actions].
MOST_STEPS = 300

# Margin around a board without a picture, as a share of its side.
_MARGIN = 0.03

# All in cells: half of a mark's side, and how much smaller another in the same cell is; letters and
# words; what lies beside a way that is gone twice; an arrow's length and width; a cross.
_MARK, _SMALLER = 0.43, 0.07
_LETTER, _WORD = 0.27, 0.2
_LANE = 0.09
_ARROW_LENGTH, _ARROW_WIDTH = 0.24, 0.2
_CROSS, _DISC = 0.15, 0.11

# Where the letters of one cell stand, from its centre: (rows, columns).
_CORNERS = ((-0.25, -0.27), (-0.25, 0.27), (0.27, -0.27), (0.27, 0.27))

_SAYS = {"right": "recovered", "wrong": "not there", "missed": "not recovered"}

Place = tuple[float, float]  # (row, column), whole numbers at the cells' centres
ToPoint = Callable[[Place], Place]


@dataclass(frozen=True, slots=True)
class Shape:
    """Something with an outline.

    Attributes:
        kind: of a state `right`, `wrong` (seen, but not there) or `missed`; of a plan `route`,
            `heads`, `act`, `arrived`, `stopped`, `astray` (the action that cannot be carried out)
            or `fails`.
        outline: SVG path data, `SIDE` to the drawing's side.
        says: what it is, for people.
    """

    kind: str
    outline: str
    says: str


@dataclass(frozen=True, slots=True)
class Letter:
    """A text, centred on (x, y); `kind` as of a Shape, `size` is its height."""

    kind: str
    x: int
    y: int
    size: int
    text: str


@dataclass(frozen=True, slots=True)
class Board:
    """What is drawn.

    Attributes:
        lines: outline of all cells where there is no picture below, else "".
        state: what was seen, and what was missed.
        letters: that name the fields, see `field_letters`.
        plan: where it leads in the true state.
        words: the actions that are no moves.
    """

    lines: str
    state: Sequence[Shape]
    letters: Sequence[Letter]
    plan: Sequence[Shape]
    words: Sequence[Letter]


def draw_board(true: State, seen: State | None, plan: Plan | None, grid: Matrix | None) -> Board:
    """Draw the recovered state against the true one, and the plan's way in the true state.

    Args:
        true: the true state.
        seen: the recovered one; where there is none, all is missed.
        plan: None where there is none.
        grid: where the cells are in the picture, see `results.Shown` and `is_usable`; None draws a
            board without a picture.
    """
    to_point = _flat(true.size) if grid is None else _over(grid)
    state, letters = _state(true, seen, to_point)
    outcome = None if plan is None else simulate(true, plan[:MOST_STEPS])
    return Board(
        lines=_grid_lines(true.size, to_point) if grid is None else "",
        state=state,
        letters=letters,
        plan=[] if plan is None or outcome is None else _route(true, plan, outcome, to_point),
        words=[] if plan is None or outcome is None else _acts(plan, outcome, to_point),
    )


def is_usable(grid: Matrix, size: int) -> bool:
    """Return whether all of a grid of `size` × `size` cells is somewhere in or near a picture."""
    corners = [(r, c) for r in (-0.5, size - 0.5) for c in (-0.5, size - 0.5)]
    depths = [grid[2][0] * c + grid[2][1] * r + grid[2][2] for r, c in corners]
    if not all(math.isfinite(depth) and depth > 1e-9 for depth in depths):
        return False
    to_point = _over(grid)
    # A board of which not half can be on the picture is none that belongs to it.
    return all(-SIDE <= value <= 2 * SIDE for corner in corners for value in to_point(corner))


def field_letters(state: State) -> dict[str, str]:
    """Return the letter that stands for each field with cells, no two alike as far as possible."""
    letters: dict[str, str] = {}
    for name in _cells(state):
        free = [c for c in name.upper() if c.isalnum() and c not in letters.values()]
        letters[name] = free[0] if free else "•"
    return letters


def drawn_fields(state: State) -> set[str]:
    """Return the names of the fields that are drawn."""
    return {*_cells(state), *(["walls"] if isinstance(state, Maze) else [])}


# --- the state ----------------------------------------------------------------------------------


def _state(true: State, seen: State | None, to_point: ToPoint) -> tuple[list[Shape], list[Letter]]:
    is_same_size = seen is not None and seen.size == true.size
    # Who sees another number of cells sees them all over the board.
    seen_point = to_point if is_same_size else _rescaled(to_point, true, seen)
    known = {} if seen is None else _cells(seen)
    letters = field_letters(true)
    shapes: list[Shape] = []
    texts: list[Letter] = []
    taken: Counter[Cell] = Counter()
    for name, cells in _cells(true).items():
        found = known.get(name, frozenset())
        for kind, some in _compared(cells, found, is_same_size).items():
            point = seen_point if kind == "wrong" else to_point
            outline = ""
            for place in sorted(some):
                order = taken[place]
                taken[place] += 1
                half = max(_MARK - _SMALLER * order, 0.1)
                outline += _closed(_square(place, half), point)
                row, column = _CORNERS[order % len(_CORNERS)]
                at = (place[0] + row, place[1] + column)
                texts.append(_letter(kind, at, place, point, _LETTER, letters[name]))
            if outline:
                shapes.append(Shape(kind, outline, f"{_spoken(name)}: {_SAYS[kind]}"))
    if isinstance(true, Maze):
        found_walls = _walls(seen) if isinstance(seen, Maze) else frozenset()
        for kind, walls in _compared(_walls(true), found_walls, is_same_size).items():
            point = seen_point if kind == "wrong" else to_point
            if walls:
                outline = "".join(_open(sorted(wall), point) for wall in sorted(walls, key=sorted))
                shapes.append(Shape(kind, outline, f"walls: {_SAYS[kind]}"))
    return shapes, texts


def _compared(true: frozenset, seen: frozenset, is_same_size: bool) -> dict[str, frozenset]:
    same = true & seen if is_same_size else frozenset()
    return {"right": same, "missed": true - same, "wrong": seen - same}


def _cells(state: State) -> dict[str, frozenset[Cell]]:
    """Return the cells by field, of the fields that hold a cell or any number of cells."""
    found: dict[str, frozenset[Cell]] = {}
    for field in dataclasses.fields(state):
        value = getattr(state, field.name)
        if _is_cell(value, state.size):
            found[field.name] = frozenset([value])
        elif isinstance(value, frozenset) and all(_is_cell(v, state.size) for v in value):
            found[field.name] = value
    return found


def _is_cell(value: object, size: int) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(type(v) is int and 0 <= v < size for v in value)
    )


def _walls(maze: Maze) -> frozenset[frozenset[Place]]:
    """Return the walls between cells, each as its two ends."""
    walls = set()
    for row, column in all_cells(maze.size):
        corner = (row + 0.5, column + 0.5)
        if column + 1 < maze.size and not maze.is_open((row, column), WALL_RIGHT):
            walls.add(frozenset([(row - 0.5, column + 0.5), corner]))
        if row + 1 < maze.size and not maze.is_open((row, column), WALL_DOWN):
            walls.add(frozenset([(row + 0.5, column - 0.5), corner]))
    return frozenset(walls)


# --- the plan -----------------------------------------------------------------------------------


def _route(true: State, plan: Plan, outcome: Outcome, to_point: ToPoint) -> list[Shape]:
    path = outcome.path
    gone = [path[0], *(after for before, after in pairwise(path) if after != before)]
    edges = Counter(frozenset(edge) for edge in pairwise(gone))
    lane = _LANE if edges and max(edges.values()) > 1 else 0.0
    shapes = []
    if len(gone) > 1:
        shapes.append(Shape("route", _open(_lanes(gone, lane), to_point), "way of the plan"))
        heads = "".join(_arrow(a, b, lane, to_point) for a, b in pairwise(gone))
        shapes.append(Shape("heads", heads, "way of the plan"))
    acts = "".join(_closed(_diamond(cell, 0.12), to_point) for cell in _act_cells(plan, outcome))
    if acts:
        shapes.append(Shape("act", acts, "done here"))
    return shapes + _end(true, plan, outcome, to_point)


def _end(true: State, plan: Plan, outcome: Outcome, to_point: ToPoint) -> list[Shape]:
    last = outcome.path[-1]
    if outcome.success:
        return [Shape("arrived", _closed(_disc(last, _DISC), to_point), "the task is achieved")]
    if outcome.failure == Failure.INCOMPLETE or outcome.steps >= len(plan):
        return [Shape("stopped", _closed(_disc(last, 0.17), to_point), "the plan ends here")]
    change = MOVES.get(plan[outcome.steps])
    if change is None:
        return [Shape("fails", _cross(last, to_point), "this cannot be done here")]
    there = (last[0] + change[0], last[1] + change[1])
    is_inside = all(0 <= value < true.size for value in there)
    # A wall or the edge is met halfway.
    reach = 1.0 if is_inside and outcome.failure != Failure.WALL else 0.5
    met = (last[0] + reach * change[0], last[1] + reach * change[1])
    return [
        Shape("astray", _open([last, met], to_point), "the plan fails here"),
        Shape("fails", _cross(met, to_point), "the plan fails here"),
    ]


def _lanes(cells: Sequence[Cell], lane: float) -> list[Place]:
    """Return the corners of a way that keeps to the right, so that one can see it come back."""
    # Ahead (row, column) has (column, -row) at its right.
    sides = [(b[1] - a[1], a[0] - b[0]) for a, b in pairwise(cells)]
    corners = [_moved(cells[0], sides[0], lane)]
    for cell, before, after in zip(cells[1:-1], sides[:-1], sides[1:], strict=True):
        if before == (-after[0], -after[1]):  # it turns round
            corners += [_moved(cell, before, lane), _moved(cell, after, lane)]
        elif before != after:
            corners.append(_moved(_moved(cell, before, lane), after, lane))
    return [*corners, _moved(cells[-1], sides[-1], lane)]


def _arrow(before: Cell, after: Cell, lane: float, to_point: ToPoint) -> str:
    ahead = (after[0] - before[0], after[1] - before[1])
    aside = (ahead[1], -ahead[0])
    middle = _moved(((before[0] + after[0]) / 2, (before[1] + after[1]) / 2), aside, lane)
    back = _moved(middle, ahead, -_ARROW_LENGTH / 2)
    return _closed(
        [
            _moved(middle, ahead, _ARROW_LENGTH / 2),
            _moved(back, aside, _ARROW_WIDTH / 2),
            _moved(back, aside, -_ARROW_WIDTH / 2),
        ],
        to_point,
    )


def _act_cells(plan: Plan, outcome: Outcome) -> dict[Cell, str]:
    """Return what is done, other than moving, by cell."""
    done: dict[Cell, list[str]] = {}
    for action, (before, after) in zip(plan, pairwise(outcome.path), strict=False):
        if before == after:
            done.setdefault(before, []).append(action.value)
    return {cell: " ".join(words) for cell, words in done.items()}


def _acts(plan: Plan, outcome: Outcome, to_point: ToPoint) -> list[Letter]:
    return [
        _letter("act", (cell[0] + 0.3, cell[1]), cell, to_point, _WORD, words)
        for cell, words in _act_cells(plan, outcome).items()
    ]


# --- outlines -----------------------------------------------------------------------------------


def _over(grid: Matrix) -> ToPoint:
    def to_point(place: Place) -> Place:
        x, y, w = (row[0] * place[1] + row[1] * place[0] + row[2] for row in grid)
        return SIDE * x / w, SIDE * y / w

    return to_point


def _flat(size: int) -> ToPoint:
    cell = SIDE * (1 - 2 * _MARGIN) / size

    def to_point(place: Place) -> Place:
        return SIDE * _MARGIN + (place[1] + 0.5) * cell, SIDE * _MARGIN + (place[0] + 0.5) * cell

    return to_point


def _rescaled(to_point: ToPoint, true: State, seen: State | None) -> ToPoint:
    scale = 1.0 if seen is None else true.size / seen.size

    def seen_point(place: Place) -> Place:
        return to_point(((place[0] + 0.5) * scale - 0.5, (place[1] + 0.5) * scale - 0.5))

    return seen_point


def _grid_lines(size: int, to_point: ToPoint) -> str:
    edge = size - 0.5
    lines = [[(i - 0.5, -0.5), (i - 0.5, edge)] for i in range(size + 1)]
    lines += [[(-0.5, i - 0.5), (edge, i - 0.5)] for i in range(size + 1)]
    return "".join(_open(line, to_point) for line in lines)


def _letter(
    kind: str, at: Place, cell: Cell, to_point: ToPoint, height: float, text: str
) -> Letter:
    row, column = cell
    across = math.dist(to_point((row, column - 0.5)), to_point((row, column + 0.5)))
    down = math.dist(to_point((row - 0.5, column)), to_point((row + 0.5, column)))
    x, y = to_point(at)
    return Letter(kind, round(x), round(y), round(height * min(across, down)), text)


def _square(cell: Place, half: float) -> list[Place]:
    row, column = cell
    return [(row + r * half, column + c * half) for r, c in ((-1, -1), (-1, 1), (1, 1), (1, -1))]


def _diamond(cell: Place, half: float) -> list[Place]:
    row, column = cell
    return [(row + r * half, column + c * half) for r, c in ((-1, 0), (0, 1), (1, 0), (0, -1))]


def _disc(cell: Place, radius: float) -> list[Place]:
    angles = [i * math.tau / 16 for i in range(16)]
    return [(cell[0] + radius * math.sin(a), cell[1] + radius * math.cos(a)) for a in angles]


def _cross(at: Place, to_point: ToPoint) -> str:
    first, second, third, fourth = _square(at, _CROSS)
    return _open([first, third], to_point) + _open([second, fourth], to_point)


def _moved(place: Place, by: Place, times: float = 1.0) -> Place:
    return (place[0] + times * by[0], place[1] + times * by[1])


def _open(places: Iterable[Place], to_point: ToPoint) -> str:
    points = (to_point(place) for place in places)
    return "M" + "L".join(f"{round(x)} {round(y)}" for x, y in points)


def _closed(places: Iterable[Place], to_point: ToPoint) -> str:
    return _open(places, to_point) + "Z"


def _spoken(name: str) -> str:
    return name.replace("_", " ")
