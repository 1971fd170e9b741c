"""Plans on pictures: where the marks land, and that the picture itself stays as it was."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim import Action, parse_plan, sample, simulate, solve
from sim.drawing import MIN_SHORT_SIDE, canonical_cell_to_pixel, contact_sheet, draw_plan

BLANK = np.full((128, 128, 3), 90, np.uint8)


def changed(drawn: np.ndarray, blank: int = 90) -> np.ndarray:
    return (drawn != blank).any(axis=2)


def test_canonical_pixels_by_hand() -> None:
    # A grid of side 4 with 8 % of its side around it in 116 px: a cell has 25 px.
    to_pixel = canonical_cell_to_pixel(4, 116, 116)
    assert np.allclose(to_pixel((0, 0)), (20, 20))
    assert np.allclose(to_pixel((3, 1)), (45, 95))
    # In a wide picture the grid stays in the middle.
    assert np.allclose(canonical_cell_to_pixel(4, 116, 216)((0, 0)), (70, 20))


@given(st.sampled_from(["frozenlake", "maze", "minibehaviour"]), st.integers(0, 10**6))
def test_the_route_passes_its_cells_and_no_others(family: str, seed: int) -> None:
    state = sample(family, 5, seed)
    plan = solve(state)
    assert plan is not None
    path = simulate(state, plan).path
    to_pixel = canonical_cell_to_pixel(5, 128, 128)
    moves = [action for action in plan if action not in (Action.PICK, Action.DROP)]
    drawn = changed(draw_plan(BLANK, path, to_pixel, moves))
    scale = drawn.shape[0] // 128
    for row in range(5):
        for column in range(5):
            u, v = (round(x * scale + (scale - 1) / 2) for x in to_pixel((row, column)))
            cell = drawn[v - 6 : v + 7, u - 6 : u + 7]
            # PICK at once and DROP beside it: a path of one cell shows its start dot.
            assert cell.any() == ((row, column) in path)


def test_pick_and_drop_are_marked_even_in_one_cell() -> None:
    to_pixel = canonical_cell_to_pixel(5, 400, 400)
    blank = np.full((400, 400, 3), 90, np.uint8)
    path = ((2, 2), (2, 3), (2, 3), (2, 3))
    none = changed(draw_plan(blank, path, to_pixel))
    one = changed(
        draw_plan(blank, path[:3], to_pixel, parse_plan("<answer>R PICK</answer>", "minibehaviour"))
    )
    both = changed(
        draw_plan(
            blank, path, to_pixel, parse_plan("<answer>R PICK DROP</answer>", "minibehaviour")
        )
    )
    assert none.sum() < one.sum() < both.sum()


def test_small_pictures_are_enlarged_and_large_ones_are_not() -> None:
    to_pixel = canonical_cell_to_pixel(3, 64, 96)
    small = draw_plan(np.full((64, 96, 3), 90, np.uint8), [], to_pixel)
    assert small.shape == (MIN_SHORT_SIDE, MIN_SHORT_SIDE * 96 // 64, 3)
    assert (small == 90).all()
    assert draw_plan(np.zeros((500, 400, 3), np.uint8), [], to_pixel).shape == (500, 400, 3)


def test_the_picture_given_is_not_changed() -> None:
    picture = np.zeros((400, 400, 3), np.uint8)
    drawn = draw_plan(picture, [(0, 0), (0, 1)], canonical_cell_to_pixel(3, 400, 400))
    assert drawn.any() and not picture.any()


def test_a_caption_is_a_strip_below_that_grows_with_the_text() -> None:
    to_pixel = canonical_cell_to_pixel(3, 128, 128)
    plain, short, long = (
        draw_plan(BLANK, [], to_pixel, caption=text) for text in ("", "a plan", "a plan " * 40)
    )
    assert plain.shape[0] < short.shape[0] < long.shape[0]
    assert plain.shape[1] == short.shape[1] == long.shape[1]
    assert np.array_equal(short[: plain.shape[0]], plain)
    # The last line is inside the strip, not cut off.
    assert (long[-3:] == long[-1, -1]).all()


def test_a_contact_sheet_holds_every_picture_in_order() -> None:
    pictures = [np.full((4, 6, 3), value, np.uint8) for value in (10, 20, 30)]
    sheet = contact_sheet(pictures, columns=2, gap=1)
    assert sheet.shape == (9, 13, 3)
    assert (
        (sheet[:4, :6] == 10).all() and (sheet[:4, 7:] == 20).all() and (sheet[5:, :6] == 30).all()
    )
    assert (sheet[5:, 7:] == 255).all()


@pytest.mark.parametrize("picture", [np.zeros((8, 8)), np.zeros((8, 8), np.uint8)])
def test_what_is_no_picture_is_refused(picture: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        draw_plan(picture, [], canonical_cell_to_pixel(3, 8, 8))
    with pytest.raises(ValueError, match="uint8"):
        contact_sheet([picture], 1)


def test_an_empty_contact_sheet_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([], 3)
