"""Picture files, which may be anything, into arrays."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mgsd_core.runtime.preprocess import MAX_PIXELS, ImageError

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
            with Image.open(file, formats=FORMATS) as picture:
                width, height = picture.size
                # The header says it; nothing has been decoded yet.
                if width * height > MAX_PIXELS:
                    raise ImageError(f"more than {MAX_PIXELS} pixels: {width} × {height}")
                ImageOps.exif_transpose(picture, in_place=True)
                return np.asarray(picture.convert("RGB"))
        except Image.UnidentifiedImageError:
            reason = f"not a picture in one of the formats {', '.join(FORMATS)}"
        except (
            OSError,
            ValueError,
            SyntaxError,  # Pillow's word for a broken PNG
            EOFError,
            struct.error,
            Image.DecompressionBombError,
        ) as error:
            reason = str(error) or type(error).__name__
    raise ImageError(f"cannot read the picture {path}: {reason}")


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
