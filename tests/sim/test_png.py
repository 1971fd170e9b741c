"""PNG files: every reader sees the picture that was written."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from sim.png import encode_png

shapes = st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3))


def decoded(png: bytes) -> NDArray[np.uint8]:
    picture = Image.open(io.BytesIO(png), formats=["PNG"])
    assert picture.mode == "RGB"
    return np.asarray(picture)


@settings(deadline=None)
@given(shapes.flatmap(lambda shape: arrays(np.uint8, shape)))
def test_pictures_come_back(rgb: NDArray[np.uint8]) -> None:
    assert np.array_equal(decoded(encode_png(rgb)), rgb)


def test_views_and_large_pictures_come_back() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (700, 900, 4), dtype=np.uint8)
    for view in (rgb[:, :, :3], rgb[::2, ::-3, :3]):
        assert np.array_equal(decoded(encode_png(view)), view)


def test_flat_pictures_shrink() -> None:
    assert len(encode_png(np.full((256, 256, 3), 77, np.uint8))) < 2000


def test_damage_is_noticed() -> None:
    png = bytearray(encode_png(np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)))
    png[60] ^= 1
    with pytest.raises((OSError, SyntaxError)):
        decoded(bytes(png))
