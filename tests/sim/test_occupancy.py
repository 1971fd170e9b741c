from __future__ import annotations

from itertools import pairwise

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.occupancy import (
    ScanError,
    Target,
    cut_state,
    draw_task,
    find_aims,
    find_storeys,
    find_windows,
    make_occupancy,
    min_steps,
    nearest_cell,
    places_per_cell,
)
from sim.planning import simulate, solve
from sim.sampling import SPLITS, split_of
from sim.states import FrozenLake, Maze

CELL = 0.5
PLACES = places_per_cell(CELL)

# Two rooms with a door between them, a room without a door, a block in a cell's middle.
PLAN = """
+-+-+-+-+-+-+
|. . .|. . .|
+ + + + + + +
|. . . . # .|
+ + + + + + +
|. . .|. . .|
+-+-+-+-+-+-+
|. .|. . . .|
+ + + + + + +
|. .|. . . .|
+-+-+-+-+-+-+
"""

# The upper part of PLAN, by hand: up 1, down 2, left 4, right 8.
UPPER_BITS = [
    [5, 1, 9, 5, 3, 9],
    [4, 0, 0, 8, 15, 12],
    [6, 2, 10, 6, 3, 10],
]


def map_of(plan: str, gap: int = 1, shift: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Return where one can stand on a plan: not within `gap` places of walls or in cells with #."""
    lines = plan.strip().splitlines()
    size = (len(lines) // 2 * PLACES, len(lines[0]) // 2 * PLACES)
    navigable = np.ones(size, bool)
    for r, line in enumerate(lines):
        for c, mark in enumerate(line):
            top, left = r // 2 * PLACES, c // 2 * PLACES
            if mark == "#":
                navigable[top + 1 : top + PLACES - 1, left + 1 : left + PLACES - 1] = False
            elif mark == "-":
                rows = slice(max(0, top - gap), top + gap)
                navigable[rows, max(0, left - gap) : left + PLACES + gap] = False
            elif mark == "|":
                columns = slice(max(0, left - gap), left + gap)
                navigable[max(0, top - gap) : top + PLACES + gap, columns] = False
    return np.pad(navigable, [(n, 2) for n in shift])


def grid_of(plan: str = PLAN, **more):
    return make_occupancy(map_of(plan, **more), (0.0, 0.0), CELL)


def bits_of(grid, rows: int, columns: int) -> list[list[int]]:
    """Return the wall bits of the grid's first rows and columns of free cells."""
    top, left = np.argwhere(grid.free).min(axis=0)
    level = max(rows, columns)
    start, goal = sorted(map(tuple, np.argwhere(grid.region).tolist()))[:2]
    side = np.pad(grid.free, [(0, level), (0, level)])
    padded = type(grid)(
        side,
        np.pad(grid.right, [(0, level), (0, level)]),
        np.pad(grid.down, [(0, level), (0, level)]),
        side,
        grid.cell_size,
        grid.origin,
    )
    state = cut_state(padded, "maze", level, (int(top), int(left)), start, goal)
    return [list(row[:columns]) for row in state.walls[:rows]]


def test_rooms_become_the_walls_that_stand_between_them():
    assert bits_of(grid_of(), 3, 6) == UPPER_BITS


@pytest.mark.parametrize("shift", [(0, 4), (3, 0), (7, 8), (1, 5)])
@pytest.mark.parametrize("gap", [1, 2, 3])
def test_the_lattice_finds_the_rooms_wherever_the_map_begins(shift, gap):
    grid = grid_of(shift=shift, gap=gap)
    assert bits_of(grid, 3, 6) == UPPER_BITS
    first = tuple(np.argwhere(grid.free).min(axis=0).tolist())
    step = CELL / PLACES
    # Where the first cell's centre was drawn, in metres, y up.
    meant = ((shift[1] + PLACES // 2) * step, -(shift[0] + PLACES // 2) * step)
    assert np.allclose(grid.centre(first), meant, atol=1e-9)


def test_a_thin_wall_between_two_free_cells_closes_the_step():
    navigable = np.ones((PLACES, 2 * PLACES), bool)
    assert make_occupancy(navigable, (0, 0), CELL).right.all()
    navigable[:, PLACES] = False
    grid = make_occupancy(navigable, (0, 0), CELL)
    assert grid.free.sum() == 2
    assert not grid.right.any()


def test_what_cannot_be_walked_through_straight_is_closed():
    navigable = np.ones((PLACES, 2 * PLACES), bool)
    # Two half walls, one behind the other: a winding way leads through on no straight line.
    navigable[:5, PLACES - 1] = False
    navigable[4:, PLACES] = False
    grid = make_occupancy(navigable, (0, 0), CELL)
    assert grid.free.sum() == 2
    assert not grid.right.any()


def test_the_region_is_the_largest_set_of_cells_that_hang_together():
    grid = grid_of()
    assert grid.free.sum() == 29
    # The upper rooms have 17 free cells, the lower ones 4 and 8.
    assert grid.region.sum() == 17


def test_a_map_without_room_for_a_cell_is_refused():
    for navigable in (np.zeros((40, 40), bool), np.eye(40, dtype=bool)):
        with pytest.raises(ScanError, match=r"no cell of 0\.5 m is free"):
            make_occupancy(navigable, (0, 0), CELL)


@pytest.mark.parametrize(("cell_size", "places"), [(0.1, 9), (0.5, 9), (1.0, 17), (5.0, 83)])
def test_places_are_odd_in_number_and_close_together(cell_size, places):
    assert places_per_cell(cell_size) == places
    assert places % 2 == 1
    assert places == 9 or cell_size / places <= 0.0625


# --- Windows ---


def test_windows_lie_within_the_region():
    grid = grid_of()
    corners = find_windows(grid, "maze", 3)
    top, left = np.argwhere(grid.free).min(axis=0)
    assert {r - top for r, _ in corners} == {0}  # the lower rooms are another region
    assert [c - left for _, c in corners] == [1, 2, 3]  # nothing is in the way in the first


def test_lakes_are_only_cut_where_no_wall_stands_between_free_cells():
    grid = grid_of()
    corners = find_windows(grid, "frozenlake", 3)
    left = np.argwhere(grid.free).min(axis=0)[1]
    assert [c - left for _, c in corners] == [3]
    lake = cut_state(grid, "frozenlake", 3, corners[0], *_ends(corners[0], (0, 0), (2, 2)))
    assert isinstance(lake, FrozenLake)
    assert lake.rows() == ["SFF", "FHF", "FFG"]


def test_a_floor_of_thin_walls_alone_has_no_lake():
    plan = """
+-+-+-+
|.|. .|
+ + + +
|. .|.|
+ + + +
|.|. .|
+-+-+-+
"""
    with pytest.raises(ScanError, match=r"which no lake has: take --family maze"):
        find_windows(grid_of(plan), "frozenlake", 3)


def test_an_empty_room_has_windows_though_nothing_is_in_the_way():
    plan = """
+-+-+-+
|. . .|
+ + + +
|. . .|
+-+-+-+
"""
    assert len(find_windows(grid_of(plan), "maze", 2)) == 2


def test_a_level_larger_than_the_floor_is_refused_with_both_sizes():
    with pytest.raises(ScanError, match=r"level 4 is larger than the floor, 3 × 6 cells of 0.5 m"):
        find_windows(grid_of(), "maze", 4)


@pytest.mark.parametrize("level", [-1, 0, 1, 65])
def test_levels_that_no_state_has_are_refused(level):
    with pytest.raises(ScanError, match="level must be 2 to 64"):
        find_windows(grid_of(), "maze", level)


def test_families_that_no_scan_has_are_refused():
    with pytest.raises(ScanError, match="minibehaviour"):
        find_windows(grid_of(), "minibehaviour", 3)


def test_windows_of_large_grids_are_found():
    navigable = np.ones((70 * PLACES, 70 * PLACES), bool)
    navigable[33 * PLACES : 34 * PLACES, : 30 * PLACES] = False
    grid = make_occupancy(navigable, (0, 0), CELL)
    task = draw_task(grid, "frozenlake", 64, find_windows(grid, "frozenlake", 64), [], "train", 0)
    assert task.state.size == 64
    assert len(solve(task.state)) >= 32


# --- Tasks ---


def test_tasks_are_solvable_take_several_steps_and_are_of_their_split():
    grid = grid_of()
    windows = find_windows(grid, "maze", 3)
    seen = set()
    for split in SPLITS:
        for seed in range(8):
            task = draw_task(grid, "maze", 3, windows, [], split, seed)
            plan = solve(task.state)
            assert plan is not None
            assert len(plan) >= min_steps(3) == 2
            assert split_of(task.state) == split
            assert task.corner in windows
            assert task == draw_task(grid, "maze", 3, windows, [], split, seed)
            seen.add(task.state)
    assert len(seen) > 15


def test_another_attempt_of_a_seed_is_another_task():
    grid = grid_of()
    windows = find_windows(grid, "maze", 3)
    tasks = {draw_task(grid, "maze", 3, windows, [], "train", 0, i).state for i in range(8)}
    assert len(tasks) > 4


def test_plans_lead_along_the_grid():
    grid = grid_of()
    windows = find_windows(grid, "maze", 3)
    for seed in range(20):
        task = draw_task(grid, "maze", 3, windows, [], "train", seed)
        path = simulate(task.state, solve(task.state)).path
        cells = [(r + task.corner[0], c + task.corner[1]) for r, c in path]
        assert all(b in list(grid.neighbours(a)) for a, b in pairwise(cells))


def test_goals_are_before_targets_and_categories_are_drawn_alike():
    grid = grid_of()
    top, left = np.argwhere(grid.free).min(axis=0).tolist()
    chairs = [Target(f"chair {i}", "chair", (top + i, left + 1)) for i in range(3)]
    targets = [*chairs, Target("bed", "bed", (top, left + 5))]
    windows = find_windows(grid, "maze", 3)
    aims = find_aims(targets, windows, 3)
    assert {target.name for target, _ in aims} == {"chair 0", "chair 1", "chair 2", "bed"}
    drawn = [draw_task(grid, "maze", 3, windows, aims, "train", seed) for seed in range(60)]
    for task in drawn:
        assert isinstance(task.state, Maze)
        goal = task.state.goal
        assert (goal[0] + task.corner[0], goal[1] + task.corner[1]) == task.target.cell
    assert 15 <= sum(task.target.category == "bed" for task in drawn) <= 45


def test_targets_outside_all_windows_are_no_aims():
    assert (
        find_aims([Target("far", "chair", (90, 90))], find_windows(grid_of(), "maze", 3), 3) == []
    )


def test_the_cell_before_a_thing_is_the_nearest_one_of_the_region():
    grid = grid_of()
    top, left = np.argwhere(grid.free).min(axis=0).tolist()
    x, y = grid.centre((top + 1, left + 4))  # the block
    # It stands a little to the right of its cell's middle.
    assert nearest_cell(grid, (x, y - 0.1), (x + 0.2, y + 0.1)) == (top + 1, left + 5)
    assert nearest_cell(grid, (x + 9, y), (x + 9.5, y + 0.5)) is None


def test_cutting_refuses_ends_that_are_not_in_the_window():
    with pytest.raises(ValueError, match="outside"):
        cut_state(grid_of(), "maze", 3, (1, 1), (1, 1), (9, 9))


# --- Storeys ---


def test_storeys_come_by_room_and_tables_are_none():
    heights = np.array([0.0, 0.05, 0.1, 0.75, 2.6, 2.65, 1.3])
    room = np.array([10.0, 10.0, 5.0, 1.0, 20.0, 20.0, 1.5])
    found = find_storeys(heights, room)
    assert found == pytest.approx([2.625, 0.04], abs=0.03)


def test_a_stair_does_not_join_two_storeys():
    heights = np.concatenate([np.zeros(40), np.linspace(0, 3, 31), np.full(30, 3.0)])
    found = find_storeys(heights, np.ones(len(heights)))
    assert found == pytest.approx([0.0, 3.0], abs=0.1)


def _ends(corner, start, goal):
    return [(corner[0] + r, corner[1] + c) for r, c in (start, goal)]


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(bool, st.tuples(st.integers(9, 40), st.integers(9, 40)), elements=st.booleans()),
    st.integers(0, 3),
)
def test_every_step_of_any_grid_is_free_from_centre_to_centre(noise, thinning):
    navigable = noise
    for _ in range(thinning):  # fewer and fewer places that are not free
        navigable = navigable | np.roll(noise, (thinning, 2), axis=(0, 1))
    try:
        grid = make_occupancy(navigable, (3.0, -2.0), CELL)
    except ScanError:
        return
    step = CELL / PLACES

    def place(cell) -> tuple[int, int]:
        x, y = grid.centre(cell)
        return round((-2.0 - y) / step), round((x - 3.0) / step)

    for cell in map(tuple, np.argwhere(grid.free).tolist()):
        row, column = place(cell)
        assert navigable[row, column]
        for there in grid.neighbours(cell):
            assert grid.free[there]
            assert cell in list(grid.neighbours(there))
            end = place(there)
            rows, columns = (sorted(pair) for pair in zip((row, column), end, strict=True))
            assert navigable[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1].all()
