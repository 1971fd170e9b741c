"""Camera images as messages carry them -> RGB arrays, without copying a pixel.

Imports no ROS: any object with the fields of sensor_msgs/Image will do, so rclpy's messages and
those read from a bag take the same way and are judged by the same rules.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mgsd_core.runtime.preprocess import MAX_PIXELS

# Encoding -> (bytes of a pixel, which of them are red, green, blue).
_LAYOUTS: dict[str, tuple[int, slice]] = {
    "rgb8": (3, slice(None)),
    "bgr8": (3, slice(None, None, -1)),
    "rgba8": (4, slice(0, 3)),
    "bgra8": (4, slice(2, None, -1)),
    "mono8": (1, slice(None)),
}

#: Encodings of sensor_msgs/Image that `rgb_from_image` takes.
ENCODINGS: tuple[str, ...] = tuple(_LAYOUTS)

_DEPTH_ENCODINGS = ("16UC1", "32FC1")


class ConversionError(ValueError):
    """An image message that cannot be used; the message says which field is wrong and why."""


class EncodingError(ConversionError):
    """The encoding is not one that holds a colour or grey picture we can read."""


class DepthError(EncodingError):
    """The image holds distances, not a picture."""


class SizeError(ConversionError):
    """Height or width is not positive, or absurdly large."""


class StepError(ConversionError):
    """A row is shorter than its pixels."""


class DataError(ConversionError):
    """The data are not as long as step and height say."""


def rgb_from_image(message: Any) -> NDArray[np.uint8]:
    """Return the picture in a sensor_msgs/Image as a view of the message's own bytes.

    Args:
        message: has `height`, `width`, `step`, `encoding` and `data` (`array.array`, bytes or a
            uint8 array, `step * height` long). Rows may be padded: `step >= width * channels`.
            `is_bigendian` says nothing about 8-bit channels and is not read.

    Returns:
        uint8 [height, width, 3], red, green, blue. It may be read-only and is in general not
        contiguous (padded rows, reversed or repeated channels); it lives as long as the data.

    Raises:
        DepthError: 16UC1 or 32FC1.
        EncodingError: any other that is none of `ENCODINGS`.
        SizeError, StepError, DataError: height or width, step, or the length of the data is
            wrong.
    """
    encoding = message.encoding
    if encoding in _DEPTH_ENCODINGS:
        raise DepthError(f"encoding {encoding} holds depth, not colour; give the colour topic")
    if encoding not in _LAYOUTS:
        raise EncodingError(
            f"encoding {str(encoding)[:40]!r} is not supported; these are: {', '.join(ENCODINGS)}"
        )
    height, width, step = int(message.height), int(message.width), int(message.step)
    if height <= 0 or width <= 0:
        raise SizeError(f"the image is {width} × {height} pixels; both must be positive")
    if height * width > MAX_PIXELS:
        raise SizeError(
            f"the image is {width} × {height} pixels; at most {MAX_PIXELS} pixels are taken"
        )
    channels, colours = _LAYOUTS[encoding]
    if step < width * channels:
        raise StepError(
            f"step is {step} bytes, but a row of {width} {encoding} pixels takes {width * channels}"
        )
    try:
        data = memoryview(message.data)
    except TypeError as error:
        raise DataError(f"the data are no bytes but {type(message.data).__name__}") from error
    if data.nbytes != step * height or not data.c_contiguous:
        raise DataError(
            f"the data are {data.nbytes} bytes, but {height} rows with a step of {step} are "
            f"{step * height}"
        )
    pixels: NDArray[np.uint8] = np.ndarray(
        (height, width, channels), np.uint8, data, strides=(step, channels, 1)
    )
    if channels == 1:
        return np.broadcast_to(pixels, (height, width, 3))
    return pixels[:, :, colours]
