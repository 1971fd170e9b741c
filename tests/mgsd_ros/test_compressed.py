from __future__ import annotations

import array
import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mgsd_ros.conversions import (
    ConversionError,
    DataError,
    DepthError,
    EncodingError,
    FieldError,
    SizeError,
    rgb_from_compressed,
    rgb_from_message,
)

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6


def compressed(form: Any, data: Any) -> Any:
    return SimpleNamespace(format=form, data=data)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    values: np.ndarray, colours: int, bits: int = 8, size: tuple[int, int] | None = None, extra=b""
) -> bytes:
    """Write [H, W * channels] numbers as a PNG file, from the format's definition."""
    channels = {GREY: 1, COLOUR: 3, PALETTE: 1, GREY_ALPHA: 2, COLOUR_ALPHA: 4}[colours]
    width, height = size or (values.shape[1] // channels, values.shape[0])
    form = ">" + {8: "B", 16: "H"}[bits] * values.shape[1]
    rows = b"".join(b"\0" + struct.pack(form, *row) for row in values.tolist())
    head = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return SIGNATURE + chunk(b"IHDR", head) + extra + pixels + chunk(b"IEND", b"")


def jpeg(picture: np.ndarray, **options: Any) -> bytes:
    file = BytesIO()
    Image.fromarray(picture).save(file, "JPEG", **options)
    return file.getvalue()


def colours(height: int = 24, width: int = 40) -> np.ndarray:
    """A picture of three areas, red, green and blue, that JPEG keeps nearly as it is."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[:, :16, 0] = rgb[:, 16:32, 1] = rgb[:, 32:, 2] = 250
    return rgb


def numbers(*shape: int, bits: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**bits, shape)


JPEG_FORMATS = ["jpeg", "jpg", "", "rgb8; jpeg compressed bgr8", "bgr8; jpeg compressed bgr8"]
PNG_FORMATS = ["png", "", "rgb8; png compressed bgr8", "bgr8; png compressed bgr8"]


@pytest.mark.parametrize("container", [bytes, lambda d: array.array("B", d), bytearray])
@pytest.mark.parametrize("form", [*JPEG_FORMATS, "png"])
def test_jpeg_has_the_colours_of_the_file(form: str, container: Any) -> None:
    data = container(jpeg(colours(), quality=95, subsampling=0))
    rgb = rgb_from_message(compressed(form, data))
    assert rgb.shape == (24, 40, 3)
    assert rgb.dtype == np.uint8
    assert np.abs(rgb.astype(int) - colours()).max() <= 8


def test_grey_jpeg() -> None:
    grey = np.full((8, 16), 90, np.uint8)
    rgb = rgb_from_message(compressed("mono8; jpeg compressed mono8", jpeg(grey, quality=95)))
    assert rgb.shape == (8, 16, 3)
    assert np.abs(rgb.astype(int) - 90).max() <= 1


def test_jpeg_of_a_webcam_without_huffman_tables() -> None:
    whole = jpeg(colours(), quality=90)
    bare, place = whole[:2], 2
    while whole[place + 1] != 0xDA:  # scan
        length = 2 + int.from_bytes(whole[place + 2 : place + 4], "big")
        if whole[place + 1] != 0xC4:  # Huffman table; the decoder knows the usual ones
            bare += whole[place : place + length]
        place += length
    bare += whole[place:]
    assert len(bare) < len(whole) - 400
    pictures = [rgb_from_compressed(compressed("jpeg", data)) for data in (whole, bare)]
    assert np.array_equal(*pictures)


@pytest.mark.parametrize("form", PNG_FORMATS)
def test_png_has_the_colours_of_the_file(form: str) -> None:
    values = numbers(5, 7 * 3)
    rgb = rgb_from_message(compressed(form, png(values, COLOUR)))
    assert rgb.tolist() == values.reshape(5, 7, 3).tolist()


def test_png_of_every_kind() -> None:
    grey, deep = numbers(5, 7), numbers(5, 7, bits=16)
    rgb16, rgba = numbers(5, 21, bits=16), numbers(5, 28)
    palette = numbers(256, 3).astype(np.uint8)
    cases = [
        (png(grey, GREY), np.stack([grey] * 3, 2)),
        (png(deep, GREY, 16), np.stack([deep // 256] * 3, 2)),
        (png(numbers(5, 14), GREY_ALPHA), np.stack([numbers(5, 14)[:, ::2]] * 3, 2)),
        (png(rgb16, COLOUR, 16), rgb16.reshape(5, 7, 3) // 256),
        (png(rgba, COLOUR_ALPHA), rgba.reshape(5, 7, 4)[:, :, :3]),
        (
            png(grey, PALETTE, extra=chunk(b"PLTE", palette.tobytes())),
            palette[grey],
        ),
        (
            png(grey, PALETTE, extra=chunk(b"PLTE", palette.tobytes()) + chunk(b"tRNS", bytes(9))),
            palette[grey],
        ),
    ]
    for data, expected in cases:
        rgb = rgb_from_compressed(compressed("png", data))
        assert rgb.dtype == np.uint8
        assert rgb.tolist() == expected.tolist()


@pytest.mark.parametrize("bits", [8, 16])
def test_a_mosaic_in_png_is_filled_in(bits: int) -> None:
    # image_transport compresses it as it is: red 200, green 100, blue 50.
    mosaic = np.tile([[200, 100], [100, 50]], (3, 4)) << (bits - 8)
    form = f"bayer_rggb{bits}; png compressed "
    rgb = rgb_from_message(compressed(form, png(mosaic, GREY, bits)))
    assert rgb.reshape(-1, 3).tolist() == [[200, 100, 50]] * 48


def test_a_mosaic_in_jpeg_is_grey_already() -> None:
    data = jpeg(np.full((8, 8), 90, np.uint8), quality=95)
    rgb = rgb_from_message(compressed("bayer_rggb8; jpeg compressed mono8", data))
    assert np.abs(rgb.astype(int) - 90).max() <= 1
    data = jpeg(colours(), quality=95, subsampling=0)
    rgb = rgb_from_message(compressed("bayer_rggb8; jpeg compressed bgr8", data))
    assert np.abs(rgb.astype(int) - colours()).max() <= 8


def test_an_orientation_in_exif_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90°
    data = jpeg(colours(), exif=exif)
    assert rgb_from_compressed(compressed("jpeg", data)).shape == (24, 40, 3)


@pytest.mark.parametrize(
    "form",
    [
        "16UC1; compressedDepth",
        "16UC1; compressedDepth png",
        "32FC1; compressedDepth rvl",
        "16UC1; png compressed ",
        "32FC1; png compressed ",
        "compressedDepth",
    ],
)
def test_compressed_depth_is_refused_as_depth(form: str) -> None:
    with pytest.raises(DepthError, match="holds depth, not colour"):
        rgb_from_message(compressed(form, png(numbers(4, 4, bits=16), GREY, 16)))


@pytest.mark.parametrize(
    ("message", "kind", "says"),
    [
        (compressed("h264", b"\0\0\0\1g"), EncodingError, "neither JPEG nor PNG; format is 'h264'"),
        (compressed("mono8; tiff compressed ", b"II*\0"), EncodingError, "neither JPEG nor PNG"),
        (compressed("gif", b"GIF89a" + bytes(30)), EncodingError, "neither JPEG nor PNG"),
        (compressed("jpeg", b""), DataError, "the data are empty"),
        (compressed("jpeg", "words"), DataError, "no bytes but str"),
        (compressed("jpeg", [255, 216]), DataError, "no bytes but list"),
        (compressed(None, b""), FieldError, "format is no text but NoneType"),
        (compressed("png", SIGNATURE), DataError, "cannot be decoded"),
        (compressed("jpeg", b"\xff\xd8\xff"), DataError, "cannot be decoded"),
        (
            compressed("png", png(numbers(2, 6), COLOUR, size=(100_000, 100_000))),
            SizeError,
            "100000 × 100000 pixels; at most 64000000",
        ),
        (
            compressed("png", png(numbers(2, 6), COLOUR, size=(2**31 - 1, 2**31 - 1))),
            SizeError,
            "at most 64000000",
        ),
        (
            compressed("png", png(numbers(2, 6), COLOUR, size=(0, 5))),
            DataError,
            "cannot be decoded",
        ),
    ],
)
def test_what_is_wrong_is_said(message: Any, kind: type[ConversionError], says: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(kind, match=says):
            rgb_from_message(message)


def test_an_absurd_jpeg_is_not_decoded() -> None:
    data = bytearray(jpeg(colours()))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65001)
    with pytest.raises(SizeError, match="65001 × 65000 pixels"):
        rgb_from_message(compressed("jpeg", bytes(data)))


NOISE = numbers(19, 23, 3).astype(np.uint8)
FILES = {
    "baseline": jpeg(NOISE, quality=90),
    "progressive": jpeg(NOISE, progressive=True),
    "grey": jpeg(NOISE[:, :, 0]),
    "png": png(NOISE.reshape(19, 69), COLOUR),
    "png16": png(numbers(19, 23, bits=16), GREY, 16),
    "alpha": png(numbers(8, 32), COLOUR_ALPHA),
}


@pytest.mark.parametrize("kind", sorted(FILES))
def test_a_file_cut_off_anywhere_is_refused(kind: str) -> None:
    whole = FILES[kind]
    # What follows the last byte of a PNG's pixels says nothing about them: their checksum, IEND.
    needed = len(whole) - 20 if whole.startswith(SIGNATURE) else len(whole)
    for length in range(needed):
        with pytest.raises(ConversionError) as caught:
            rgb_from_message(compressed("", whole[:length]))
        assert "\n" not in str(caught.value)
    rgb_from_message(compressed("", whole))


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    data = bytearray(FILES[draw(st.sampled_from(sorted(FILES)))])
    for _ in range(draw(st.integers(1, 4))):
        # The header is short and says most.
        place = draw(st.integers(0, 40) | st.integers(0, len(data)))
        change = draw(st.sampled_from(["set", "cut", "insert", "remove"]))
        if change == "set":
            data[place : place + 1] = draw(st.binary(min_size=1, max_size=4))
        elif change == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=20))
        elif change == "remove":
            del data[place : place + draw(st.integers(1, 20))]
        else:
            del data[max(place, 1) :]
    return bytes(data)


@settings(max_examples=1000, deadline=None)
@given(
    form=st.sampled_from([*JPEG_FORMATS, *PNG_FORMATS, "bayer_rggb8; png compressed ", "; ;"])
    | st.text()
    | st.none()
    | st.integers(),
    data=damaged_files() | st.binary() | st.none() | st.text() | st.just(np.zeros(4)),
)
def test_anything_else_is_one_clear_line(form: Any, data: Any) -> None:
    try:
        rgb = rgb_from_message(compressed(form, data))
    except ConversionError as error:
        assert str(error)
        assert "\n" not in str(error)
    else:
        assert rgb.ndim == 3
        assert rgb.shape[2] == 3
        assert rgb.dtype == np.uint8


def test_messages_of_rclpy() -> None:
    messages = pytest.importorskip("sensor_msgs.msg", reason="rclpy is not installed (extra ros)")
    message = messages.CompressedImage(format="rgb8; png compressed bgr8")
    message.data = array.array("B", FILES["png"])
    assert rgb_from_message(message).tolist() == NOISE.tolist()


def test_messages_of_a_bag(tmp_path: Path) -> None:
    highlevel = pytest.importorskip("rosbags.highlevel", reason="rosbags is not installed")
    from odd_images import COMPRESSED, write_images

    sent = [
        {"format": form, "data": np.frombuffer(FILES[kind], np.uint8)}
        for form, kind in (("png", "png"), ("rgb8; jpeg compressed bgr8", "baseline"))
    ]
    write_images(tmp_path / "bag", {"/camera/compressed": sent})
    with highlevel.AnyReader([tmp_path / "bag"]) as reader:
        assert [c.msgtype for c in reader.connections] == [COMPRESSED]
        read = [reader.deserialize(data, c.msgtype) for c, _, data in reader.messages()]
    pictures = [rgb_from_message(message) for message in read]
    assert pictures[0].tolist() == NOISE.tolist()
    assert pictures[1].shape == NOISE.shape
