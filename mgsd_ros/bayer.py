"""Colour from a Bayer mosaic, in which every pixel was measured in one colour."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Rows that are worked on at a time: their sums stay in the cache. Even, so that every band begins
# with the same colours.
_BAND = 32


def demosaic(mosaic: NDArray[np.uint8], red: tuple[int, int]) -> NDArray[np.uint8]:
    """Fill in the two missing colours of every pixel: bilinear, at the picture's full size.

    A missing colour is the mean, rounded half up, of the two or four nearest pixels that have it.
    The picture is mirrored in its outermost pixels, so that none beyond them is needed. What finer
    methods sharpen at edges is gone when the picture is shrunk to the model's size.

    Args:
        mosaic: uint8 [H, W], both at least 2.
        red: row and column of the red pixel among the first 2 × 2; blue lies diagonally from it.

    Returns:
        uint8 [H, W, 3], red, green, blue.
    """
    padded = np.pad(mosaic, 1, mode="reflect")
    rgb = np.empty((*mosaic.shape, 3), np.uint8)
    for top in range(0, len(mosaic), _BAND):
        _fill(rgb[top : top + _BAND], padded[top : top + _BAND + 2], red)
    return rgb


def _fill(rgb: NDArray[np.uint8], padded: NDArray[np.uint8], red: tuple[int, int]) -> None:
    own = padded[1:-1, 1:-1]
    beside = np.add(padded[:, :-2], padded[:, 2:], dtype=np.uint16)
    above_below = np.add(padded[:-2, 1:-1], padded[2:, 1:-1], dtype=np.uint16)
    diagonal = (beside[:-2] + beside[2:] + 2) >> 2
    cross = (beside[1:-1] + above_below + 2) >> 2
    beside = (beside[1:-1] + 1) >> 1
    above_below = (above_below + 1) >> 1

    row, column = red
    sites = {
        (row, column): (own, cross, diagonal),
        (row, 1 - column): (beside, own, above_below),
        (1 - row, column): (above_below, own, beside),
        (1 - row, 1 - column): (diagonal, cross, own),
    }
    for (y, x), colours in sites.items():
        for channel, values in enumerate(colours):
            rgb[y::2, x::2, channel] = values[y::2, x::2]
