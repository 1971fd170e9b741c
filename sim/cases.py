"""Cases of public benchmarks: their states, pictures, listed plans and distances.

Three kinds of files are read, see docs/benchmarks.md: FrozenLake maps as tables (Visual Spatial
Planning), test sets as JSON lines (VisualPlanning), and mazes with one integer a cell. What a file
lists besides the state is checked by `check_case` against this package's solver and simulator.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sim.actions import MOVES
from sim.camera import Camera
from sim.case_files import Case, CaseError, Read, read_rows, read_table, read_walls
from sim.grid import CELL_SIZE, Grid, make_grid
from sim.pictures import PictureError, decode_picture
from sim.planning import Pose, simulate, solve, step
from sim.scene import grid_of
from sim.states import Cell, MiniBehaviour, State, all_cells, state_digest

if TYPE_CHECKING:
    from sim.flat import FlatRenderer

__all__ = [
    "KINDS",
    "Case",
    "CaseError",
    "case_picture",
    "check_case",
    "excluded_states",
    "load_cases",
    "show_case",
]

_READERS: dict[str, Callable[[Path, str], Iterator[Read]]] = {
    "vsp": read_table,
    "visualplanning": read_rows,
    "walls": read_walls,
}

#: Kinds of files: tables of maps, JSON lines, and mazes of integers.
KINDS = tuple(_READERS)

#: Longest side of a case's picture [px].
MAX_PICTURE_SIDE = 4096

Report = Callable[[CaseError], object]


def load_cases(
    path: str | Path, kind: str | None = None, report: Report | None = None
) -> Iterator[Case]:
    """Yield the cases in a file, or in a folder and those below it, in the order of their names.

    Args:
        path: file or folder.
        kind: one of `KINDS`; by default it is recognised from what is there.
        report: called with the CaseError of every case that cannot be read, and the rest goes on.
            Without it the error is raised.

    Raises:
        CaseError: there are no cases at `path`, or a case cannot be read and `report` is None.
    """
    if kind is not None and kind not in KINDS:
        raise CaseError(str(path), f"unknown kind {kind!r}; kinds are: {', '.join(KINDS)}")
    root = Path(path)
    for file, own_kind in _files(root, kind):
        relative = file.relative_to(root) if root.is_dir() else Path(file.name)
        name = relative.with_suffix("").as_posix()
        if own_kind == "visualplanning" and file.with_suffix("").is_dir():
            name = relative.as_posix()  # maps in that folder have the shorter names
        for read in _READERS[own_kind](file, name):
            if isinstance(read, Case):
                yield read
            elif report is None:
                raise read
            else:
                report(read)


def check_case(case: Case) -> Case:
    """Return a case; raise CaseError where what it lists is not what solver and simulator find."""
    state = case.state
    shortest = solve(state)
    if shortest is None:
        raise CaseError(case.where, "the state has no plan")
    if case.plan is not None:
        outcome = simulate(state, case.plan)
        if not outcome.success:
            raise CaseError(
                case.where,
                f"the listed plan fails after {outcome.steps} actions: {outcome.failure}",
            )
        if len(case.plan) != len(shortest):
            raise CaseError(
                case.where,
                f"the listed plan has {len(case.plan)} actions, the shortest has {len(shortest)}",
            )
    if case.distances is not None:
        _check_distances(case, case.distances)
    for thing, listed in (case.neighbours or {}).items():
        assert isinstance(state, MiniBehaviour)
        found = state.beside(state.table if thing == "table" else [state.printer])
        if listed != found:
            raise CaseError(
                case.where, f"beside the {thing} are {sorted(found)}, not {sorted(listed)}"
            )
    return case


def excluded_states(
    paths: Iterable[str | Path],
) -> dict[tuple[str, int], frozenset[str]]:
    """Return the digests (`sim.states.state_digest`) of the cases' states by family and level.

    Raises:
        CaseError: there are no cases at a path, or one of them cannot be read.
    """
    found: dict[tuple[str, int], set[str]] = {}
    for path in paths:
        for case in load_cases(path):
            state = case.state
            found.setdefault((state.family, state.size), set()).add(state_digest(state))
    return {pair: frozenset(digests) for pair, digests in found.items()}


def case_picture(case: Case, size: int) -> NDArray[np.uint8]:
    """Return a case's picture, uint8 [size, size, 3]; where it has none, the renderer `flat` draws.

    Raises:
        CaseError: its file is no square PNG of at most `MAX_PICTURE_SIDE` px, or is damaged.
    """
    from sim.flat import FlatRenderer

    with FlatRenderer() as drawer:
        picture = Image.fromarray(show_case(case, size, drawer)[0])
    return np.array(picture.resize((size, size), Image.Resampling.LANCZOS))


def show_case(case: Case, size: int, drawer: FlatRenderer) -> tuple[NDArray[np.uint8], Grid | None]:
    """Return a picture of a case, uint8 [side, side, 3], and where the cells are in it.

    That is the case's own picture with the side that it has; where there is none, one with the side
    `size` [px] that `drawer` draws. None for the grid: nobody knows.

    Raises:
        CaseError: its file is no square PNG of at most `MAX_PICTURE_SIDE` px, or is damaged.
    """
    if case.picture is None:
        scene = drawer.build(case.state, None, size, "plain")
        return drawer.render(scene).rgb, grid_of(scene)
    picture = _own_picture(case.picture)
    return picture, _filling_grid(case.state.size, len(picture)) if case.fills else None


def _own_picture(file: Path) -> NDArray[np.uint8]:
    def check_size(width: int, height: int) -> None:
        if width != height or width > MAX_PICTURE_SIDE:
            raise CaseError(str(file), f"{width} × {height} px is no board")

    try:
        with file.open("rb") as data:
            return decode_picture(data, ["PNG"], check_size)
    except (OSError, PictureError) as error:
        raise CaseError(str(file), f"the picture cannot be decoded ({error})") from error


def _filling_grid(size: int, side: int) -> Grid:
    """Return the grid of a board of `size` × `size` cells that fills its picture of `side` px."""
    metres = size * CELL_SIZE
    camera = Camera.looking_at(
        (0, 0, metres), (0, 0, 0), (0, 1, 0), side, side, side / metres, "orthographic"
    )
    return make_grid(size, camera)


# --- Files ---


def _files(root: Path, kind: str | None) -> list[tuple[Path, str]]:
    if root.is_dir():
        found = sorted(
            {
                (file, own_kind)
                for own_kind, patterns in _PATTERNS.items()
                if kind in (None, own_kind)
                for pattern in patterns
                for file in root.rglob(pattern)
                if file.is_file() and _is_case_file(file, own_kind)
            },
            key=lambda entry: _natural(entry[0]),
        )
        if not found:
            raise CaseError(str(root), f"no cases are there; kinds are: {', '.join(KINDS)}")
        return found
    if not root.is_file():
        raise CaseError(str(root), "no such file or folder")
    return [(root, kind or _kind_of(root))]


_PATTERNS = {"vsp": ("*.txt",), "visualplanning": ("*.jsonl",), "walls": ("text/*.txt",)}


def _is_case_file(file: Path, kind: str) -> bool:
    """Return whether a file in a folder is meant as a case; there are others beside them."""
    if kind == "visualplanning":
        return file.name != "train_dataset.jsonl"
    level = file.parent if file.parent.name not in ("table", "text") else file.parent.parent
    if not re.fullmatch(r"level\d+", level.name) or not file.stem.isdecimal():
        return False
    return kind == "walls" or file.parent.name != "text"


def _kind_of(file: Path) -> str:
    if file.suffix == ".jsonl":
        return "visualplanning"
    with file.open("rb") as opened:
        first = opened.read(1000).lstrip()
    if first.startswith(b"|"):
        return "vsp"
    if first.startswith(b"task="):
        return "walls"
    raise CaseError(
        str(file), f"neither a map nor a test set nor a maze; kinds are: {', '.join(KINDS)}"
    )


def _natural(file: Path) -> list[tuple[int, int, str]]:
    """Return what sorts 10 after 9."""
    parts = re.split(r"(\d+)", file.as_posix())
    return [(int(p[:18]), len(p), "") if p.isdecimal() else (0, 0, p) for p in parts]


# --- Distances ---


def _check_distances(case: Case, listed: Mapping[Cell, int]) -> None:
    state: Any = case.state
    found = _steps_to_goal(state)
    for cell, steps in listed.items():
        if found.get(cell) != steps:
            there = f"{found[cell]} steps" if cell in found else "no way"
            raise CaseError(
                case.where, f"from {cell} there are {steps} steps listed, but {there} to the goal"
            )
    # Cells that lie behind the goal may be left out, and the goal itself.
    unlisted = _within_reach(state) - set(listed) - {state.goal}
    if unlisted:
        raise CaseError(case.where, f"no distance is listed of {min(unlisted)}")


def _steps_to_goal(state: Any) -> dict[Cell, int]:
    """Return the fewest steps to the goal from every cell that has a way there, by the rules."""
    before: dict[Cell, list[Cell]] = {}
    for cell in all_cells(state.size):
        if cell not in getattr(state, "holes", ()):
            for after in _next_cells(state, cell):
                before.setdefault(after, []).append(cell)
    steps = {state.goal: 0}
    queue = deque([state.goal])
    while queue:
        here = queue.popleft()
        for cell in before.get(here, ()):
            if cell not in steps:
                steps[cell] = steps[here] + 1
                queue.append(cell)
    return steps


def _within_reach(state: Any) -> set[Cell]:
    """Return the cells that a robot can be in until it has reached the goal."""
    seen = {state.start}
    queue = deque([state.start])
    while queue:
        here = queue.popleft()
        for cell in _next_cells(state, here) if here != state.goal else ():
            if cell not in seen:
                seen.add(cell)
                queue.append(cell)
    return seen


def _next_cells(state: State, cell: Cell) -> list[Cell]:
    poses = (step(state, Pose(cell), action) for action in MOVES)
    return [pose.cell for pose in poses if isinstance(pose, Pose)]
