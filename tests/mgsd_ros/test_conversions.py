from __future__ import annotations

import array
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgsd_ros.conversions import (
    ENCODINGS,
    MAX_PIXELS,
    ConversionError,
    DataError,
    DepthError,
    EncodingError,
    SizeError,
    StepError,
    rgb_from_image,
)

# Channels of an encoding, and where red, green and blue are among them.
LAYOUTS = {
    "rgb8": (3, (0, 1, 2)),
    "bgr8": (3, (2, 1, 0)),
    "rgba8": (4, (0, 1, 2)),
    "bgra8": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)),
}
CONTAINERS = {
    "array": lambda data: array.array("B", data),
    "bytes": bytes,
    "numpy": lambda data: np.frombuffer(data, np.uint8),
}


def image(encoding: str, height: int, width: int, step: int, data: Any) -> SimpleNamespace:
    return SimpleNamespace(
        encoding=encoding, height=height, width=width, step=step, data=data, is_bigendian=1
    )


def test_the_encodings_are_those_promised() -> None:
    assert set(ENCODINGS) == set(LAYOUTS)


@given(
    encoding=st.sampled_from(ENCODINGS),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    padding=st.integers(0, 5),
    container=st.sampled_from(sorted(CONTAINERS)),
    data=st.data(),
)
def test_every_pixel_arrives(
    encoding: str, height: int, width: int, padding: int, container: str, data: st.DataObject
) -> None:
    channels, colours = LAYOUTS[encoding]
    step = width * channels + padding
    raw = data.draw(st.binary(min_size=step * height, max_size=step * height))
    message = image(encoding, height, width, step, CONTAINERS[container](raw))

    rgb = rgb_from_image(message)

    assert rgb.shape == (height, width, 3)
    assert rgb.dtype == np.uint8
    for y in range(height):
        for x in range(width):
            expected = [raw[y * step + x * channels + c] for c in colours]
            assert rgb[y, x].tolist() == expected


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_no_pixel_is_copied(encoding: str) -> None:
    data = array.array("B", bytes(4 * 40))
    rgb = rgb_from_image(image(encoding, 4, 6, 40, data))
    data[0] = data[1] = data[2] = 77
    assert rgb[0, 0].tolist() == [77, 77, 77]


@given(
    encoding=st.one_of(st.sampled_from([*ENCODINGS, "16UC1", "32FC1", "yuv422", ""]), st.text()),
    height=st.integers(-2, 6) | st.integers(-(2**31), 2**32),
    width=st.integers(-2, 6) | st.integers(-(2**31), 2**32),
    step=st.integers(-2, 30) | st.integers(-(2**31), 2**32),
    data=st.binary(max_size=120),
)
def test_anything_else_is_one_clear_line(
    encoding: str, height: int, width: int, step: int, data: bytes
) -> None:
    try:
        rgb = rgb_from_image(image(encoding, height, width, step, array.array("B", data)))
    except ConversionError as error:
        assert str(error)
        assert "\n" not in str(error)
    else:
        assert rgb.shape == (height, width, 3)
        assert len(data) == height * step
        assert step >= width * LAYOUTS[encoding][0]


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1"])
def test_depth_is_refused_as_depth(encoding: str) -> None:
    with pytest.raises(DepthError, match=f"{encoding} holds depth"):
        rgb_from_image(image(encoding, 1, 1, 4, bytes(4)))


@pytest.mark.parametrize(
    ("message", "kind", "says"),
    [
        (image("rgb8", 2, 2, 5, bytes(10)), StepError, "step is 5 bytes, but a row of 2 rgb8"),
        (image("rgb8", 2, 2, 6, bytes(11)), DataError, "the data are 11 bytes"),
        (image("rgb8", 2, 2, 6, bytes(13)), DataError, "the data are 13 bytes"),
        (image("rgb8", 2, 2, 6, b""), DataError, "the data are 0 bytes"),
        (image("rgb8", 2, 2, 6, [0] * 12), DataError, "no bytes but list"),
        (image("rgb8", 0, 2, 6, b""), SizeError, "2 × 0 pixels"),
        (image("rgb8", 2, 0, 0, b""), SizeError, "0 × 2 pixels"),
        (image("mono8", MAX_PIXELS, 2, 2, b""), SizeError, "at most 64000000 pixels"),
        (image("yuv422", 2, 2, 4, bytes(8)), EncodingError, "'yuv422' is not supported; these"),
    ],
)
def test_the_field_that_is_wrong_is_named(
    message: SimpleNamespace, kind: type[ConversionError], says: str
) -> None:
    with pytest.raises(kind, match=says):
        rgb_from_image(message)
