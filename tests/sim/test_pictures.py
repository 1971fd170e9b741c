"""Encoded pictures: what comes out of sound ones, and one kind of error of anything else."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sim.pictures import PictureError, decode_picture

RGB = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)


def encoded(format: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, format)
    return file.getvalue()


FILES = {"PNG": encoded("PNG"), "JPEG": encoded("JPEG"), "WEBP": encoded("WEBP")}


def decoded(data: bytes) -> np.ndarray:
    return decode_picture(io.BytesIO(data), list(FILES), lambda width, height: None)


def test_a_sound_picture_is_read() -> None:
    assert np.array_equal(decoded(FILES["PNG"]), RGB)


@pytest.mark.parametrize("format", ["PNG", "PPM"])
def test_of_16_bits_the_high_byte_is_kept(format: str) -> None:
    grey = (RGB[:, :, 0].astype(np.int32) << 8) | 0x7F
    file = io.BytesIO()
    Image.fromarray(grey if format == "PPM" else grey.astype(np.uint16)).save(file, format)
    file.seek(0)
    picture = decode_picture(file, ["PNG", "PPM"], lambda width, height: None)
    assert np.array_equal(picture, np.repeat(RGB[:, :, :1], 3, axis=2))


def test_the_size_is_checked_before_anything_is_decoded() -> None:
    def check_size(width: int, height: int) -> None:
        raise LookupError(f"{width} × {height}")

    with pytest.raises(LookupError, match="12 × 9"):
        decode_picture(io.BytesIO(FILES["PNG"][:60]), ["PNG"], check_size)


def test_other_formats_are_not_read() -> None:
    with pytest.raises(PictureError, match="not a picture in the format PNG"):
        decode_picture(io.BytesIO(FILES["JPEG"]), ["PNG"], lambda width, height: None)


# After the pixels Pillow reads on, and its parsers of short chunks raise what Python raises.
@pytest.mark.parametrize("kind", ["gAMA", "cHRM", "tRNS", "iCCP", "pHYs", "sRGB", "IHDR", "acTL"])
@pytest.mark.parametrize("data", [b"", b"\0", b"a\0"])
def test_a_short_chunk_is_damage_or_nothing(kind: str, data: bytes) -> None:
    name = kind.encode()
    chunk = struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    png = FILES["PNG"]
    end = png.index(b"IEND") - 4
    try:
        picture = decoded(png[:end] + chunk + png[end:])
    except PictureError as error:
        assert "\n" not in str(error)
    else:
        assert np.array_equal(picture, RGB)


@given(data=st.data())
def test_damage_is_told_or_changes_pixels_only(data: st.DataObject) -> None:
    content = bytearray(FILES[data.draw(st.sampled_from(sorted(FILES)))])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(1, len(content))) :]
    try:
        picture = decoded(bytes(content))
    except PictureError as error:
        assert str(error)
    else:
        assert picture.dtype == np.uint8
        assert picture.shape[2] == 3
