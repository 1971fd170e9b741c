"""Grids: cells, metres and pixels, and refusal of what no grid is."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.camera import Camera
from sim.grid import CELL_SIZE, Grid, GridError, cell_centre, make_grid, point_to_cell

DOWN = Camera.looking_at((0, 0, 2), (0, 0, 0), (0, 1, 0), 101, 101, 100.0)
GRID = make_grid(3, DOWN)


def test_cell_centres_by_hand() -> None:
    assert cell_centre((0, 0), 3) == (-0.5, 0.5)
    assert cell_centre((1, 1), 3) == (0, 0)
    assert cell_centre((3, 0), 4, 1.0) == (-1.5, -1.5)


@given(st.integers(2, 64), st.data())
def test_point_to_cell_inverts_cell_centre(size: int, data: st.DataObject) -> None:
    cell = (data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size - 1)))
    x, y = cell_centre(cell, size)
    inside = st.floats(-0.49, 0.49)
    dx, dy = data.draw(inside) * CELL_SIZE, data.draw(inside) * CELL_SIZE
    assert point_to_cell(x + dx, y + dy, size) == cell


def test_points_beside_the_grid_are_in_no_cell() -> None:
    for x, y in ((-0.76, 0), (0.76, 0), (0, -0.76), (0, 0.76)):
        assert point_to_cell(x, y, 3) is None


def test_pixels_and_metres_by_hand() -> None:
    # 100 px focal length, 2 m away: 50 px a metre, 25 px a cell, the middle at (50, 50).
    assert np.allclose(GRID.pixels([(0, 0), (1, 1), (2, 0)]), [(25, 25), (50, 50), (25, 75)])
    assert np.allclose(GRID.world([(0, 0), (2, 1)]), [(-0.5, 0.5, 0), (0, -0.5, 0)])
    assert GRID.pixel((2, 0)) == pytest.approx((25, 75))
    assert GRID.cell_at(26, 30) == (0, 0) and GRID.cell_at(62, 61) == (1, 1)
    assert GRID.cell_at(12, 30) is None


def test_a_grid_elsewhere() -> None:
    grid = make_grid(4, DOWN, 0.25, (0.1, 0.3, -1.0))
    assert np.allclose(grid.world([(0, 0), (1, 2)]), [(0.1, 0.3, -1), (0.6, 0.05, -1)])
    assert np.allclose(grid.pixels([(1, 2)]), DOWN.project([(0.6, 0.05, -1)]))


def test_a_grid_survives_json() -> None:
    assert Grid.from_dict(json.loads(json.dumps(GRID.to_dict()))) == GRID


BROKEN = {
    "size": 1,
    "cell_size": 0.0,
    "floor": math.nan,
    "cell_to_world": [[1, 0], [0, 1]],
    "cell_to_pixel": [[1, 0, 0], [2, 0, 0], [0, 0, 1]],
}


@pytest.mark.parametrize("field", ["size", "cell_size", "floor"])
def test_a_number_beyond_floats_is_refused(field: str) -> None:
    with pytest.raises(GridError, match=field):
        Grid.from_dict(GRID.to_dict() | {field: 10**400})


def test_a_matrix_beyond_floats_is_refused() -> None:
    with pytest.raises(GridError, match="cell_to_world"):
        Grid.from_dict(GRID.to_dict() | {"cell_to_world": [[10**400, 0, 0], [0, 1, 0], [0, 0, 1]]})


@pytest.mark.parametrize("field", BROKEN)
def test_a_wrong_field_is_named(field: str) -> None:
    with pytest.raises(GridError, match=field):
        Grid.from_dict(GRID.to_dict() | {field: BROKEN[field]})


@pytest.mark.parametrize("data", [None, [], {}, GRID.to_dict() | {"zoom": 1}])
def test_missing_and_unknown_fields_are_refused(data: object) -> None:
    with pytest.raises(GridError, match="fields"):
        Grid.from_dict(data)  # type: ignore[arg-type]
