"""Picture files, which may be anything, into arrays."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mgsd_core.runtime.preprocess import ImageError, check_size
from sim.pictures import PictureError, decode_picture

#: Formats that are read; Pillow knows more, some of which run other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm")


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read a picture file as uint8 [H, W, 3], upright as its camera meant it.

    Raises:
        ImageError: not a picture, truncated, empty or absurdly large.
        OSError: it cannot be opened.
    """
    with Path(path).open("rb") as file:
        try:
            size = partial(check_size, where=str(path))
            return decode_picture(file, FORMATS, size, upright=True)
        except PictureError as error:
            raise ImageError(f"cannot read the picture {path}: {error}") from error


def find_images(paths: list[Path]) -> list[Path]:
    """Return the picture files named by files and directories; a directory's in order of name.

    Raises:
        ImageError: a path does not exist, or a directory holds no picture.
    """
    found = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise ImageError(f"no pictures in {path} (looked for {', '.join(SUFFIXES)})")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise ImageError(f"no picture at {path}")
    return found
