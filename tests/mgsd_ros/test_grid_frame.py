from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgsd_ros.grid_frame import GridFrame
from sim import Action, sample, simulate, solve
from sim.actions import MOVES
from sim.scene import CELL_SIZE, cell_centre

ANGLES = st.floats(-math.tau, math.tau)
METRES = st.floats(-100, 100)
SIZES = st.floats(0.01, 10)
CELLS = st.tuples(st.integers(0, 63), st.integers(0, 63))
GRIDS = st.builds(GridFrame, st.just("map"), METRES, METRES, ANGLES, SIZES)

#: Heading of a move where columns run along x and rows against y.
HEADINGS = {Action.R: 0.0, Action.U: math.pi / 2, Action.L: math.pi, Action.D: -math.pi / 2}


def same_angle(a: float, b: float) -> bool:
    return abs(math.remainder(a - b, math.tau)) < 1e-6


def test_the_grid_lies_as_the_picture_shows_it() -> None:
    grid = GridFrame("map", 1.0, 2.0, 0.0, 0.5)
    assert grid.position((0, 0)) == (1.0, 2.0)
    assert grid.position((0, 2)) == pytest.approx((2.0, 2.0))
    assert grid.position((2, 0)) == pytest.approx((1.0, 1.0))
    turned = GridFrame("map", 1.0, 2.0, math.pi / 2, 0.5)
    assert turned.position((0, 2)) == pytest.approx((1.0, 3.0))
    assert turned.position((2, 0)) == pytest.approx((2.0, 2.0))


@pytest.mark.parametrize("size", [3, 8])
def test_the_simulators_scenes_are_one_such_grid(size: int) -> None:
    x, y = cell_centre((0, 0), size)
    grid = GridFrame("world", x, y, 0.0, CELL_SIZE)
    for row in range(size):
        for column in range(size):
            assert grid.position((row, column)) == pytest.approx(cell_centre((row, column), size))


@given(grid=GRIDS, cell=CELLS, across=st.floats(-0.49, 0.49), down=st.floats(-0.49, 0.49))
def test_every_point_of_a_cell_is_in_it(
    grid: GridFrame, cell: tuple[int, int], across: float, down: float
) -> None:
    x, y = grid.position((cell[0] + down, cell[1] + across))  # type: ignore[arg-type]
    assert grid.cell_at(x, y) == cell


@given(
    grid=GRIDS,
    family=st.sampled_from(["frozenlake", "maze", "minibehaviour"]),
    seed=st.integers(0, 500),
)
def test_poses_follow_the_path_and_face_along_it(grid: GridFrame, family: str, seed: int) -> None:
    state = sample(family, 5, seed)
    plan = solve(state)
    assert plan is not None
    path = simulate(state, plan).path
    moves = [action for action in plan if action in MOVES]

    poses = grid.poses(path)

    assert len(poses) == len(moves) + 1
    assert grid.cell_at(poses[0].x, poses[0].y) == path[0]
    assert grid.cell_at(poses[-1].x, poses[-1].y) == path[-1]
    for move, here, there in zip(moves, poses, poses[1:], strict=False):
        assert math.dist((here.x, here.y), (there.x, there.y)) == pytest.approx(grid.cell_size)
        assert same_angle(here.yaw, grid.yaw + HEADINGS[move])
    if moves:
        assert same_angle(poses[-1].yaw, poses[-2].yaw)


def test_a_path_without_a_move_faces_along_the_columns() -> None:
    [pose] = GridFrame("map", 0.0, 0.0, 0.3, 1.0).poses([(1, 1), (1, 1)])
    assert pose.yaw == pytest.approx(0.3)
    assert GridFrame("map", 0.0, 0.0, 0.3, 1.0).poses([]) == []


@pytest.mark.parametrize(
    "numbers", [(math.nan, 0, 0, 1), (0, math.inf, 0, 1), (0, 0, 0, 0), (0, 0, 0, -1)]
)
def test_a_grid_that_is_nowhere_is_refused(numbers: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match="positive cell size"):
        GridFrame("map", *numbers)
