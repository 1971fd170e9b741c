"""Camera images as messages carry them -> RGB arrays.

Imports no ROS: any object with the fields of sensor_msgs/Image or sensor_msgs/CompressedImage will
do, so rclpy's messages and those read from a bag take the same way and are judged by the same
rules. Packed pixels are not copied; mosaics, luma and chroma, and compressed data become new
arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mgsd_core.runtime.preprocess import MAX_PIXELS
from mgsd_ros.bayer import demosaic
from mgsd_ros.compressed import decode, source_encoding
from mgsd_ros.image_fields import (
    DEPTH_ENCODINGS,
    ConversionError,
    DataError,
    DepthError,
    EncodingError,
    FieldError,
    SizeError,
    StepError,
    check_size,
    data_bytes,
    number,
    quoted,
    text,
)
from mgsd_ros.yuv import rgb_from_yuv

__all__ = [
    "ENCODINGS",
    "MAX_PIXELS",
    "ConversionError",
    "DataError",
    "DepthError",
    "EncodingError",
    "FieldError",
    "SizeError",
    "StepError",
    "rgb_from_compressed",
    "rgb_from_image",
    "rgb_from_message",
]

_RGB, _BGR = slice(0, 3), slice(2, None, -1)

# Encoding -> (channels, bytes of each, which of them are red, green, blue). 8UC* are OpenCV's grey,
# BGR and BGRA; its 16UC3 and the like are not here, as they hold points or flow as well as colours.
_PACKED: dict[str, tuple[int, int, slice]] = {
    "rgb8": (3, 1, _RGB),
    "bgr8": (3, 1, _BGR),
    "rgba8": (4, 1, _RGB),
    "bgra8": (4, 1, _BGR),
    "mono8": (1, 1, _RGB),
    "8UC1": (1, 1, _RGB),
    "8UC3": (3, 1, _BGR),
    "8UC4": (4, 1, _BGR),
    "rgb16": (3, 2, _RGB),
    "bgr16": (3, 2, _BGR),
    "rgba16": (4, 2, _RGB),
    "bgra16": (4, 2, _BGR),
    "mono16": (1, 2, _RGB),
}

# Row and column of the red pixel among the first 2 × 2. A name spells these four, row by row; those
# of OpenCV spell the four that begin at the second pixel of the second row.
_RED = {"rggb": (0, 0), "grbg": (0, 1), "gbrg": (1, 0), "bggr": (1, 1)}

# Encoding -> (bytes of a pixel, where red is).
_MOSAICS: dict[str, tuple[int, tuple[int, int]]] = {
    f"bayer_{order}{8 * size}": (size, red) for size in (1, 2) for order, red in _RED.items()
}

# Two pixels in four bytes: encoding -> the place of the first pixel's luma (the second's is two
# further), of Cb and of Cr. The names of early distributions and those of today.
_PAIRS: dict[str, tuple[int, int, int]] = {
    "yuv422": (1, 0, 2),
    "uyvy": (1, 0, 2),
    "yuv422_yuy2": (0, 1, 3),
    "yuyv": (0, 1, 3),
}

# All luma, then chroma in pairs: encoding -> (pixels that share a pair, in rows and in columns;
# the place of Cb and of Cr in the pair).
_PLANES: dict[str, tuple[int, int, int]] = {
    "nv12": (2, 0, 1),
    "nv21": (2, 1, 0),
    "nv24": (1, 0, 1),
}

#: Encodings of sensor_msgs/Image that `rgb_from_image` takes.
ENCODINGS: tuple[str, ...] = (*_PACKED, *_MOSAICS, *_PAIRS, *_PLANES)


def rgb_from_message(message: Any) -> NDArray[np.uint8]:
    """Return the picture in a sensor_msgs/Image or a sensor_msgs/CompressedImage.

    Args:
        message: has `encoding` (see `rgb_from_image`) or `format` (see `rgb_from_compressed`).

    Returns:
        uint8 [height, width, 3], red, green, blue, possibly a read-only view of the message.

    Raises:
        ConversionError: and nothing else, whatever the message holds.
    """
    if hasattr(message, "encoding"):
        return rgb_from_image(message)
    if hasattr(message, "format"):
        return rgb_from_compressed(message)
    raise FieldError(f"{type(message).__name__} is no image: it has neither encoding nor format")


def rgb_from_compressed(message: Any) -> NDArray[np.uint8]:
    """Return the picture in a sensor_msgs/CompressedImage; see `mgsd_ros.compressed.decode`.

    Args:
        message: has `format` and `data`: JPEG or PNG in an `array.array`, bytes or uint8 array.

    Returns:
        uint8 [height, width, 3], red, green, blue, possibly read-only.

    Raises:
        DepthError: compressedDepth, or 16UC1 or 32FC1 compressed as if they were pictures.
        EncodingError: neither JPEG nor PNG.
        SizeError, DataError: empty or absurdly large; truncated or corrupt.
    """
    encoding = source_encoding(message)
    picture = decode(message)
    if picture.ndim == 3:
        return picture
    if encoding in _MOSAICS and "png" in message.format:
        # image_transport stores a mosaic in PNG as it is; for JPEG it makes grey of it first.
        return _demosaic(picture, encoding)
    return np.broadcast_to(picture[:, :, None], (*picture.shape, 3))


def rgb_from_image(message: Any) -> NDArray[np.uint8]:
    """Return the picture in a sensor_msgs/Image, where possible as a view of the message's bytes.

    Args:
        message: has `height`, `width`, `step`, `encoding`, `is_bigendian` and `data`, which is an
            `array.array`, bytes or a uint8 array. Rows may be padded to `step`. `is_bigendian` is
            read for 16-bit channels only. There are `height` rows; in nv12 and nv21 half as many
            of chroma follow with the same step (odd sizes rounded up), in nv24 as many with twice
            the step, as V4L2 lays them out.

    Returns:
        uint8 [height, width, 3], red, green, blue. Of packed encodings a view: it may be read-only,
        is in general not contiguous (padded rows, reversed or repeated channels) and lives as long
        as the data. Bayer mosaics (`mgsd_ros.bayer`) and YUV (`mgsd_ros.yuv`) are new arrays.

    Raises:
        DepthError: 16UC1 or 32FC1.
        EncodingError: any other that is none of `ENCODINGS`.
        FieldError: a field is missing or no number.
        SizeError, StepError, DataError: height or width, step, or the length of the data is
            wrong.
    """
    encoding = text(message, "encoding")
    if encoding in DEPTH_ENCODINGS:
        raise DepthError(f"encoding {encoding} holds depth, not colour; give the colour topic")
    if encoding not in ENCODINGS:
        raise EncodingError(
            f"encoding {quoted(encoding)} is not supported; these are: {', '.join(ENCODINGS)}"
        )
    height, width = number(message, "height"), number(message, "width")
    check_size(height, width)
    if encoding in _PACKED:
        channels, size, colours = _PACKED[encoding]
        pixels = _packed(message, height, width, channels, size)
        if channels == 1:
            return np.broadcast_to(pixels, (height, width, 3))
        return pixels[:, :, colours]
    if encoding in _MOSAICS:
        size, _ = _MOSAICS[encoding]
        return _demosaic(_packed(message, height, width, 1, size)[:, :, 0], encoding)
    if encoding in _PAIRS:
        return rgb_from_yuv(*_pairs(message, height, width))
    return rgb_from_yuv(*_planes(message, height, width))


def _packed(message: Any, height: int, width: int, channels: int, size: int) -> NDArray[np.uint8]:
    """Return [height, width, channels] of the channels' high bytes.

    Of 16 bits the high byte is kept: it cuts the range into 256 equal parts, gives back what was 8
    bits before, however it was widened (v << 8 or v * 257), and is there already. A sensor's 10 or
    12 bits must fill the 16 from above; nothing in the message tells when they do not.
    """
    step = _step(message, width * channels * size)
    data = _data(message, step * height)
    high = size - 1 if size > 1 and not number(message, "is_bigendian") else 0
    return np.ndarray(
        (height, width, channels), np.uint8, data, high, (step, channels * size, size)
    )


def _demosaic(mosaic: NDArray[np.uint8], encoding: str) -> NDArray[np.uint8]:
    height, width = mosaic.shape
    if height < 2 or width < 2:
        raise SizeError(f"{encoding} of {width} × {height} pixels lacks a colour; 2 × 2 have all")
    return demosaic(mosaic, _MOSAICS[encoding][1])


def _pairs(message: Any, height: int, width: int) -> tuple[NDArray[np.uint8], ...]:
    """Return luma [height, width], Cb and Cr [height, ceil(width / 2)]."""
    pairs = -(-width // 2)
    step = _step(message, 4 * pairs)
    data = _data(message, step * height)
    luma, *chroma = _PAIRS[message.encoding]
    return (
        np.ndarray((height, width), np.uint8, data, luma, (step, 2)),
        *(np.ndarray((height, pairs), np.uint8, data, place, (step, 4)) for place in chroma),
    )


def _planes(message: Any, height: int, width: int) -> tuple[NDArray[np.uint8], ...]:
    """Return luma [height, width], Cb and Cr [ceil(height / shared), ceil(width / shared)]."""
    shared, *chroma = _PLANES[message.encoding]
    rows, columns = -(-height // shared), -(-width // shared)
    # A pair of chroma bytes serves `shared` pixels of a row, so that a row of chroma, with its
    # padding, is this much wider than one of luma.
    wider = 2 // shared
    step = _step(message, shared * columns)
    data = _data(message, step * (height + wider * rows))
    start, shape, strides = step * height, (rows, columns), (wider * step, 2)
    return (
        np.ndarray((height, width), np.uint8, data, 0, (step, 1)),
        *(np.ndarray(shape, np.uint8, data, start + place, strides) for place in chroma),
    )


def _step(message: Any, needed: int) -> int:
    step = number(message, "step")
    if step < needed:
        raise StepError(
            f"step is {step} bytes, but a row of {message.width} {message.encoding} pixels "
            f"takes {needed}"
        )
    return step


def _data(message: Any, expected: int) -> memoryview:
    data = data_bytes(message)
    if data.nbytes != expected:
        raise DataError(
            f"the data are {data.nbytes} bytes, but {message.height} rows of "
            f"{message.encoding} with a step of {message.step} are {expected}"
        )
    return data
