"""Textures: they repeat without a seam, stay gentle, and each is used by some style."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sim.style import STYLES, make_style
from sim.textures import MEAN, SIDE, TEXTURES, texture

_FAR = 16  # pixels of a cell's side in a picture taken from far away


def levels(name: str) -> NDArray[np.float64]:
    return texture(name)[:, :, 0] / 255


@pytest.mark.parametrize("name", TEXTURES)
def test_textures_are_grey_pictures_of_one_size(name: str) -> None:
    picture = texture(name)
    assert picture.shape == (SIDE, SIDE, 3) and picture.dtype == np.uint8
    assert SIDE & (SIDE - 1) == 0
    assert (picture == picture[:, :, :1]).all()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", TEXTURES)
def test_textures_go_on_where_they_end(name: str, axis: int) -> None:
    # The step from the last row to the first is no larger than steps between rows are.
    rows = levels(name) if axis == 0 else levels(name).T
    steps = np.abs(rows - np.roll(rows, 1, axis=0)).mean(axis=1)
    assert steps[0] <= 1.1 * steps[1:].max()


@pytest.mark.parametrize("name", TEXTURES)
def test_textures_are_visible_but_gentle(name: str) -> None:
    picture = levels(name)
    assert abs(picture.mean() - MEAN) < 0.015
    assert 0.02 < picture.std() < 0.08
    assert picture.min() > 0.5


@pytest.mark.parametrize("name", TEXTURES)
def test_from_far_away_a_texture_is_nearly_even(name: str) -> None:
    # So that it cannot be taken for a hole, an object or a cell's joint.
    side = SIDE // _FAR
    blurred = levels(name).reshape(_FAR, side, _FAR, side).mean(axis=(1, 3))
    assert blurred.std() < 0.06 and blurred.min() > 0.72


def test_textures_differ() -> None:
    assert len({texture(name).tobytes() for name in TEXTURES}) == len(TEXTURES)


def test_textures_are_the_same_in_every_process() -> None:
    code = (
        "import hashlib; from sim.textures import TEXTURES, texture;"
        "print(hashlib.sha256(b''.join(texture(n).tobytes() for n in TEXTURES)).hexdigest())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            env=environment,
        ).stdout
        for environment in ({"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2"})
    ]
    assert runs[0] == runs[1] and len(runs[0].strip()) == 64


@given(st.integers(0, 2**63 - 1), st.sampled_from(STYLES))
def test_styles_ask_for_textures_that_exist(seed: int, styles: str) -> None:
    assert set(make_style(seed, styles).textures.values()) <= {"", *TEXTURES}


def test_every_texture_is_used() -> None:
    used = {name for seed in range(400) for name in make_style(seed).textures.values()}
    assert set(TEXTURES) <= used
