from __future__ import annotations

import array
import struct
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgsd_ros.conversions import (
    ENCODINGS,
    MAX_PIXELS,
    ConversionError,
    DataError,
    DepthError,
    EncodingError,
    FieldError,
    SizeError,
    StepError,
    rgb_from_image,
    rgb_from_message,
)

# Packed encodings: channels, bytes of each, and where red, green and blue are among them.
PACKED = {
    "rgb8": (3, 1, (0, 1, 2)),
    "bgr8": (3, 1, (2, 1, 0)),
    "rgba8": (4, 1, (0, 1, 2)),
    "bgra8": (4, 1, (2, 1, 0)),
    "mono8": (1, 1, (0, 0, 0)),
    "8UC1": (1, 1, (0, 0, 0)),
    "8UC3": (3, 1, (2, 1, 0)),
    "8UC4": (4, 1, (2, 1, 0)),
    "rgb16": (3, 2, (0, 1, 2)),
    "bgr16": (3, 2, (2, 1, 0)),
    "rgba16": (4, 2, (0, 1, 2)),
    "bgra16": (4, 2, (2, 1, 0)),
    "mono16": (1, 2, (0, 0, 0)),
}
ORDERS = ("rggb", "bggr", "gbrg", "grbg")
BAYER = tuple(f"bayer_{order}{bits}" for order in ORDERS for bits in (8, 16))
YUV = ("yuv422", "uyvy", "yuv422_yuy2", "yuyv", "nv12", "nv21", "nv24")

CONTAINERS = {
    "array": lambda data: array.array("B", data),
    "bytes": bytes,
    "numpy": lambda data: np.frombuffer(data, np.uint8),
}
PADDING = 0xAA


def image(encoding: Any, height: Any, width: Any, step: Any, data: Any, big: Any = 1) -> Any:
    return SimpleNamespace(
        encoding=encoding, height=height, width=width, step=step, data=data, is_bigendian=big
    )


def rows_of(values: np.ndarray, bits: int, big: bool, padding: int) -> tuple[int, bytes]:
    """Return step and data of rows of numbers."""
    form = (">" if big else "<") + ("B" if bits == 8 else "H") * values.shape[1]
    rows = [struct.pack(form, *row) + bytes([PADDING]) * padding for row in values.tolist()]
    return len(rows[0]), b"".join(rows)


def numbers(seed: int, *shape: int, bits: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**bits, shape)


def test_the_encodings_are_those_promised() -> None:
    assert sorted(ENCODINGS) == sorted([*PACKED, *BAYER, *YUV])


# --- Packed ---


@given(
    encoding=st.sampled_from(sorted(PACKED)),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    padding=st.integers(0, 5),
    big=st.booleans(),
    container=st.sampled_from(sorted(CONTAINERS)),
    data=st.data(),
)
def test_every_pixel_arrives(
    encoding: str,
    height: int,
    width: int,
    padding: int,
    big: bool,
    container: str,
    data: st.DataObject,
) -> None:
    channels, size, colours = PACKED[encoding]
    step = width * channels * size + padding
    raw = data.draw(st.binary(min_size=step * height, max_size=step * height))
    message = image(encoding, height, width, step, CONTAINERS[container](raw), int(big))

    rgb = rgb_from_image(message)

    assert rgb.shape == (height, width, 3)
    assert rgb.dtype == np.uint8
    for y in range(height):
        for x in range(width):
            places = [y * step + (x * channels + colour) * size for colour in colours]
            if size == 1:
                expected = [raw[place] for place in places]
            else:
                order = "big" if big else "little"
                expected = [int.from_bytes(raw[p : p + 2], order) // 256 for p in places]
            assert rgb[y, x].tolist() == expected


@pytest.mark.parametrize("big", [False, True])
def test_of_sixteen_bits_the_upper_eight_are_kept(big: bool) -> None:
    step, data = rows_of(np.array([[0x00FF, 0x0100, 0x1234], [0x7FFF, 0x8000, 0xFFFF]]), 16, big, 3)
    rgb = rgb_from_image(image("mono16", 2, 3, step, data, int(big)))
    assert rgb[:, :, 1].tolist() == [[0, 1, 0x12], [0x7F, 0x80, 0xFF]]


@pytest.mark.parametrize("encoding", sorted(PACKED))
def test_no_packed_pixel_is_copied(encoding: str) -> None:
    data = array.array("B", bytes(4 * 60))
    rgb = rgb_from_image(image(encoding, 4, 6, 60, data))
    assert np.shares_memory(rgb, np.frombuffer(data, np.uint8))
    for place in range(6):
        data[place] = 77
    assert rgb[0, 0].tolist() == [77, 77, 77]


# --- Bayer ---


def colour_at(order: str, y: int, x: int) -> int:
    """Return which of red, green, blue a pixel of a mosaic measures; the name spells a square."""
    return "rgb".index(order[2 * (y % 2) + x % 2])


def filled_in(mosaic: np.ndarray, order: str) -> np.ndarray:
    """Return the picture of which every missing colour is the mean of the pixels around with it."""
    height, width = mosaic.shape
    rows, columns = [*range(height), height - 2, 1], [*range(width), width - 2, 1]  # -1 is 1
    rgb = np.zeros((height, width, 3), int)
    for y in range(height):
        for x in range(width):
            near = [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
            for colour in range(3):
                if colour_at(order, y, x) == colour:
                    rgb[y, x, colour] = mosaic[y, x]
                    continue
                with_it = [
                    int(mosaic[rows[v], columns[u]])
                    for v, u in near
                    if colour_at(order, v, u) == colour
                ]
                rgb[y, x, colour] = (2 * sum(with_it) + len(with_it)) // (2 * len(with_it))
    return rgb


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("height", "width"), [(2, 2), (2, 5), (5, 2), (3, 3), (6, 8), (71, 9)])
def test_missing_colours_are_means_of_those_around(
    height: int, width: int, order: str, bits: int, big: bool
) -> None:
    mosaic = numbers(height, height, width, bits=bits)
    step, data = rows_of(mosaic, bits, big, padding=height % 4)
    rgb = rgb_from_image(image(f"bayer_{order}{bits}", height, width, step, data, int(big)))
    assert rgb.tolist() == filled_in(mosaic >> (bits - 8), order).tolist()


def test_the_smallest_mosaic() -> None:
    rgb = rgb_from_image(image("bayer_rggb8", 2, 2, 2, bytes([10, 20, 31, 40])))
    assert rgb[:, :, 0].tolist() == [[10, 10], [10, 10]]
    assert rgb[:, :, 1].tolist() == [[26, 20], [31, 26]]
    assert rgb[:, :, 2].tolist() == [[40, 40], [40, 40]]


@pytest.mark.parametrize("order", ORDERS)
def test_a_smooth_picture_survives_its_mosaic(order: str) -> None:
    y, x = np.mgrid[0:40, 0:53]
    scene = np.stack([200 - 4 * y, 30 + 3 * x, 2 * y + 2 * x], axis=2)
    mosaic = np.array([[scene[v, u, colour_at(order, v, u)] for u in range(53)] for v in range(40)])
    step, data = rows_of(mosaic, 8, False, padding=0)
    rgb = rgb_from_image(image(f"bayer_{order}8", 40, 53, step, data)).astype(int)
    # Where nothing is mirrored, a mean between neighbours is exact on a slope.
    assert rgb[1:-1, 1:-1].tolist() == scene[1:-1, 1:-1].tolist()
    assert np.abs(rgb - scene).max() <= 8


def test_a_mosaic_of_one_row_lacks_a_colour() -> None:
    with pytest.raises(SizeError, match=r"bayer_rggb8 of 4 × 1 pixels lacks a colour"):
        rgb_from_image(image("bayer_rggb8", 1, 4, 4, bytes(4)))
    with pytest.raises(SizeError, match=r"1 × 4 pixels lacks a colour"):
        rgb_from_image(image("bayer_rggb16", 4, 1, 2, bytes(8)))


# --- YUV ---


def yuv_message(
    encoding: str, luma: np.ndarray, cb: np.ndarray, cr: np.ndarray, padding: int
) -> Any:
    """Lay out luma [H, W] and chroma as the encoding's definition says."""
    height, width = luma.shape
    rows: list[list[int]] = []
    if encoding in ("nv12", "nv21", "nv24"):
        even = width if encoding == "nv24" else width + width % 2
        step = even + padding
        rows = [[*row, *[PADDING] * (step - width)] for row in luma.tolist()]
        first, second = (cr, cb) if encoding == "nv21" else (cb, cr)
        own = 2 * padding if encoding == "nv24" else padding
        for ones, twos in zip(first.tolist(), second.tolist(), strict=True):
            pairs = [value for pair in zip(ones, twos, strict=True) for value in pair]
            rows.append([*pairs, *[PADDING] * own])
    else:
        step = 4 * cb.shape[1] + padding
        for y in range(height):
            row = []
            for pair in range(cb.shape[1]):
                one, two = luma[y, 2 * pair], luma[y, min(2 * pair + 1, width - 1)]
                u, v = cb[y, pair], cr[y, pair]
                row += [u, one, v, two] if encoding in ("yuv422", "uyvy") else [one, u, two, v]
            rows.append([*map(int, row), *[PADDING] * padding])
    data = bytes(value for row in rows for value in row)
    return image(encoding, height, width, step, array.array("B", data))


def true_rgb(y: int, cb: int, cr: int) -> list[Fraction]:
    """Solve the definition of Y'CbCr in ITU-R BT.601 for red, green and blue, in [0, 255]."""
    kr, kb = Fraction(299, 1000), Fraction(114, 1000)
    luma = Fraction(y - 16, 219)
    red = luma + Fraction(cr - 128, 224) * 2 * (1 - kr)
    blue = luma + Fraction(cb - 128, 224) * 2 * (1 - kb)
    green = (luma - kr * red - kb * blue) / (1 - kr - kb)
    return [min(max(255 * colour, Fraction(0)), Fraction(255)) for colour in (red, green, blue)]


def shared_by(encoding: str) -> tuple[int, int]:
    """Return of how many rows and columns a chroma value is."""
    if encoding == "nv24":
        return 1, 1
    return (2, 2) if encoding.startswith("nv") else (1, 2)


@pytest.mark.parametrize("encoding", YUV)
@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 2), (3, 5), (4, 7), (70, 6), (35, 3)])
def test_luma_and_chroma_give_the_colours_of_bt601(
    height: int, width: int, padding: int, encoding: str
) -> None:
    down, across = shared_by(encoding)
    luma = numbers(1, height, width)
    cb, cr = numbers(2, 2, -(-height // down), -(-width // across))
    rgb = rgb_from_image(yuv_message(encoding, luma, cb, cr, padding))
    assert rgb.shape == (height, width, 3)
    assert rgb.dtype == np.uint8
    for y in range(height):
        for x in range(width):
            place = y // down, x // across
            exact = true_rgb(int(luma[y, x]), int(cb[place]), int(cr[place]))
            for colour, value in zip(exact, rgb[y, x].tolist(), strict=True):
                assert abs(value - colour) <= Fraction(1, 2) + Fraction(1, 1000)


# BT.601 in limited range, 100 % bars, as everybody writes them.
BARS = {
    (235, 128, 128): (255, 255, 255),
    (210, 16, 146): (255, 255, 0),
    (170, 166, 16): (0, 255, 255),
    (145, 54, 34): (0, 255, 0),
    (106, 202, 222): (255, 0, 255),
    (81, 90, 240): (255, 0, 0),
    (41, 240, 110): (0, 0, 255),
    (16, 128, 128): (0, 0, 0),
}


@pytest.mark.parametrize("encoding", YUV)
@pytest.mark.parametrize(("yuv", "rgb"), BARS.items())
def test_colour_bars(yuv: tuple[int, int, int], rgb: tuple[int, int, int], encoding: str) -> None:
    down, across = shared_by(encoding)
    planes = (np.full((4, 4), yuv[0]), *(np.full((4 // down, 4 // across), c) for c in yuv[1:]))
    found = rgb_from_image(yuv_message(encoding, *planes, padding=0)).astype(int)
    assert np.abs(found - rgb).max() <= 1


# --- Anything else ---


def enough(encoding: str, height: int, width: int, step: int) -> int:
    """Return how long the data of an image are."""
    rows = {"nv12": -(-height // 2), "nv21": -(-height // 2), "nv24": 2 * height}
    return step * (height + rows.get(encoding, 0))


def shortest_row(encoding: str, width: int) -> int:
    if encoding in PACKED:
        channels, size, _ = PACKED[encoding]
        return width * channels * size
    if encoding in BAYER:
        return width * int(encoding.removeprefix("bayer_")[4:]) // 8
    even = width + width % 2
    return {"nv12": even, "nv21": even, "nv24": width}.get(encoding, 2 * even)


JUNK: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.lists(st.integers(), max_size=3),
    st.just(10**5000),
    st.just(-(10**5000)),
    st.just(np.zeros(3)),
    st.just(np.zeros((2, 3), "M8[s]")),
    st.just(np.zeros((4, 4), np.uint8)[:, ::2]),
    st.just(np.array(7, np.uint8)),
    st.just({"a": 1}),
)


@settings(max_examples=1000, deadline=None)
@given(
    encoding=st.sampled_from(ENCODINGS)
    | st.sampled_from(["16UC1", "32FC1", "16UC3", "yuv444", "unknown", "RGB8", ""])
    | st.text()
    | JUNK,
    height=st.integers(-2, 6) | st.integers(-(2**31), 2**32) | JUNK,
    width=st.integers(-2, 6) | st.integers(-(2**31), 2**32) | JUNK,
    step=st.integers(-2, 30) | st.integers(-(2**31), 2**32) | JUNK,
    data=st.binary(max_size=120) | JUNK,
    big=st.integers(0, 1) | JUNK,
)
def test_anything_else_is_one_clear_line(
    encoding: Any, height: Any, width: Any, step: Any, data: Any, big: Any
) -> None:
    message = image(encoding, height, width, step, data, big)
    try:
        rgb = rgb_from_message(message)
    except ConversionError as error:
        assert str(error)
        assert "\n" not in str(error)
    else:
        assert rgb.shape == (height, width, 3)
        assert memoryview(data).nbytes == enough(encoding, height, width, step)
        assert step >= shortest_row(encoding, width)


@settings(max_examples=1000, deadline=None)
@given(
    encoding=st.sampled_from(ENCODINGS),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    step_error=st.sampled_from([0, 0, 0, -1, -2, 1, 3]),
    data_error=st.sampled_from([0, 0, -1, 1, -5, 7]),
    container=st.sampled_from(sorted(CONTAINERS)),
)
def test_what_is_nearly_right_is_taken_only_when_it_is_right(
    encoding: str, height: int, width: int, step_error: int, data_error: int, container: str
) -> None:
    step = shortest_row(encoding, width) + step_error
    length = max(0, enough(encoding, height, width, step) + data_error)
    message = image(encoding, height, width, step, CONTAINERS[container](bytes(length)))
    lacks_colour = encoding in BAYER and min(height, width) < 2
    if step_error < 0 or data_error != 0 or lacks_colour:
        with pytest.raises((StepError, DataError, SizeError)):
            rgb_from_message(message)
    else:
        assert rgb_from_message(message).shape == (height, width, 3)


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1"])
def test_depth_is_refused_as_depth(encoding: str) -> None:
    with pytest.raises(DepthError, match=f"{encoding} holds depth"):
        rgb_from_image(image(encoding, 1, 1, 4, bytes(4)))


@pytest.mark.parametrize(
    ("message", "kind", "says"),
    [
        (image("rgb8", 2, 2, 5, bytes(10)), StepError, "step is 5 bytes, but a row of 2 rgb8"),
        (image("rgb16", 2, 2, 11, bytes(22)), StepError, "2 rgb16 pixels takes 12"),
        (image("yuyv", 2, 3, 6, bytes(12)), StepError, "3 yuyv pixels takes 8"),
        (image("nv12", 2, 3, 3, bytes(9)), StepError, "3 nv12 pixels takes 4"),
        (image("nv24", 2, 3, 2, bytes(12)), StepError, "3 nv24 pixels takes 3"),
        (image("rgb8", 2, 2, 6, bytes(11)), DataError, "the data are 11 bytes"),
        (image("rgb8", 2, 2, 6, bytes(13)), DataError, "the data are 13 bytes"),
        (image("nv12", 2, 2, 2, bytes(4)), DataError, "4 bytes, but 2 rows of nv12 .* are 6"),
        (image("nv24", 2, 2, 2, bytes(8)), DataError, "8 bytes, but 2 rows of nv24 .* are 12"),
        (image("rgb8", 2, 2, 6, b""), DataError, "the data are 0 bytes"),
        (image("rgb8", 2, 2, 6, [0] * 12), DataError, "no bytes but list"),
        (image("rgb8", 2, 2, 6, np.zeros(12, "<f4")), DataError, "no bytes in a row but ndarray"),
        (image("rgb8", 0, 2, 6, b""), SizeError, "2 × 0 pixels"),
        (image("rgb8", 2, 0, 0, b""), SizeError, "0 × 2 pixels"),
        (image("rgb8", 2, -2, 6, b""), SizeError, "-2 × 2 pixels"),
        (image("mono8", MAX_PIXELS, 2, 2, b""), SizeError, "at most 64000000 pixels"),
        (image("rgb8", 2.0, 2, 6, bytes(12)), FieldError, "height is no whole number but float"),
        (image("rgb8", 2, 10**5000, 6, bytes(12)), FieldError, "width is absurdly large"),
        (image("mono16", 1, 1, 2, bytes(2), None), FieldError, "is_bigendian is no whole number"),
        (image(7, 2, 2, 6, bytes(12)), FieldError, "encoding is no text but int"),
        (image("16UC3", 1, 1, 6, bytes(6)), EncodingError, "'16UC3' is not supported; these"),
        (image("yuv\n", 2, 2, 4, bytes(8)), EncodingError, r"'yuv\\n' is not supported; these"),
        (SimpleNamespace(encoding="rgb8"), FieldError, "height is no whole number but NoneType"),
        (SimpleNamespace(data=b""), FieldError, "neither encoding nor format"),
    ],
)
def test_the_field_that_is_wrong_is_named(
    message: SimpleNamespace, kind: type[ConversionError], says: str
) -> None:
    with pytest.raises(kind, match=says):
        rgb_from_message(message)


# --- Messages as they really come ---


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_messages_of_rclpy(encoding: str) -> None:
    messages = pytest.importorskip("sensor_msgs.msg", reason="rclpy is not installed (extra ros)")
    step = shortest_row(encoding, 5) + 3
    data = array.array("B", numbers(0, enough(encoding, 3, 5, step)).astype(np.uint8).tobytes())
    message = messages.Image(height=3, width=5, encoding=encoding, step=step, is_bigendian=0)
    message.data = data
    assert isinstance(message.data, array.array)
    rgb = rgb_from_message(message)
    assert np.shares_memory(rgb, np.asarray(memoryview(message.data))) == (encoding in PACKED)
    assert rgb.tolist() == rgb_from_image(image(encoding, 3, 5, step, data, 0)).tolist()


def test_messages_of_a_bag(tmp_path: Path) -> None:
    highlevel = pytest.importorskip("rosbags.highlevel", reason="rosbags is not installed")
    from odd_images import write_images

    def one(encoding: str) -> dict[str, Any]:
        step = shortest_row(encoding, 5) + 3
        data = numbers(0, enough(encoding, 3, 5, step)).astype(np.uint8)
        return {"encoding": encoding, "height": 3, "width": 5, "step": step, "data": data}

    sent = [one(encoding) for encoding in ENCODINGS]
    write_images(tmp_path / "bag", {"/camera": sent})
    with highlevel.AnyReader([tmp_path / "bag"]) as reader:
        read = [reader.deserialize(data, c.msgtype) for c, _, data in reader.messages()]
    assert [message.encoding for message in read] == list(ENCODINGS)
    for message, fields in zip(read, sent, strict=True):
        rgb = rgb_from_message(message)
        assert np.shares_memory(rgb, message.data) == (message.encoding in PACKED)
        assert rgb.tolist() == rgb_from_image(image(*fields.values(), big=0)).tolist()
