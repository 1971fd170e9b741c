"""Encoded pictures, which may be anything, into arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sim.errors import one_line


class PictureError(ValueError):
    """Bytes that are no picture, or a damaged one; the message says why."""


def decode_picture(
    file: IO[bytes],
    formats: list[str] | tuple[str, ...],
    check_size: Callable[[int, int], None],
    upright: bool = False,
) -> NDArray[np.uint8]:
    """Return an encoded picture as uint8 [H, W, 3].

    Args:
        file: the picture.
        formats: that it may have, in Pillow's words.
        check_size: called with width and height [px] before anything is decoded, since a few bytes
            can claim to be a picture of any size; what it raises is passed on.
        upright: turn it as its camera meant it.

    Raises:
        PictureError: it has none of the formats, or is damaged.
    """
    try:
        picture = Image.open(file, formats=formats)
    except Image.UnidentifiedImageError:
        raise PictureError(f"not a picture in the format {' or '.join(formats)}") from None
    except Exception as error:
        raise _damaged(error) from error
    with picture:
        check_size(picture.width, picture.height)
        try:
            if upright:
                ImageOps.exif_transpose(picture, in_place=True)
            if picture.mode.startswith("I"):  # 16 bits: converting to RGB would cut off at 255
                grey = (np.asarray(picture) >> 8).astype(np.uint8)
                return np.repeat(grey[:, :, np.newaxis], 3, axis=2)
            return np.array(picture.convert("RGB"))
        except Exception as error:
            raise _damaged(error) from error


def _damaged(error: Exception) -> PictureError:
    # Bytes that are cut off or made up raise nearly anything in the parsers beneath.
    return PictureError(one_line(error)[:200])
