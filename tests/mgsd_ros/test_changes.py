from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgsd_ros.changes import BLOCKS, difference, summary


@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 255))
@settings(deadline=None, max_examples=60)
def test_a_picture_of_one_colour_is_that_colour_everywhere(height, width, value):
    found = summary(np.full((height, width, 3), value, np.uint8))
    assert found.shape == (min(height, BLOCKS), min(width, BLOCKS), 3)
    assert found.dtype == np.float32 and np.allclose(found, value, atol=1e-3)


@pytest.mark.parametrize("size", [(128, 128), (480, 640), (1080, 1920)])
def test_what_changes_in_one_place_is_noticed_and_noise_is_not(size):
    random = np.random.default_rng(0)
    picture = random.integers(60, 190, (*size, 3), dtype=np.uint8)
    noisy = picture + random.integers(-4, 5, (*size, 3)).astype(np.int16)
    assert difference(summary(picture), summary(noisy.astype(np.uint8))) < 3
    moved = picture.copy()
    side = size[0] // 8
    moved[side : 2 * side, side : 2 * side] = 255
    assert difference(summary(picture), summary(moved)) > 60
    assert difference(summary(picture), summary(picture)) == 0


def test_pictures_of_another_shape_have_changed():
    assert difference(
        summary(np.zeros((4, 4, 3), np.uint8)), summary(np.zeros((8, 8, 3), np.uint8))
    )
