"""Has the picture changed since it was planned on? Imports no ROS."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: A picture is compared by the mean colours of so many blocks a side.
BLOCKS = 16

# Pixels per side of a block that are looked at; of a large picture the others are passed over.
_LOOKED_AT = 8


def summary(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the mean colours of a picture's blocks, float32 [BLOCKS, BLOCKS, 3], 0 to 255.

    Args:
        rgb: uint8 [H, W, 3]; sides that are shorter than `BLOCKS` give their pixels as they are.
    """
    means: NDArray[np.float32] = _looked_at(_looked_at(rgb, 0), 1).astype(np.float32)
    for axis in (0, 1):
        side = means.shape[axis]
        if side >= BLOCKS:
            edges = np.linspace(0, side, BLOCKS + 1).astype(int)
            shape = [1, 1, 1]
            shape[axis] = BLOCKS
            counts = np.diff(edges).astype(np.float32).reshape(shape)
            means = (np.add.reduceat(means, edges[:-1], axis) / counts).astype(np.float32)
    return means


def _looked_at(rgb: NDArray[np.uint8], axis: int) -> NDArray[np.uint8]:
    side = rgb.shape[axis]
    places = np.linspace(0, side - 1, min(side, BLOCKS * _LOOKED_AT)).round().astype(int)
    return rgb.take(places, axis)


def difference(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Return the largest difference of a block's colour between two summaries, 0 to 255.

    The largest and not the mean: a robot that moves by one cell changes a few blocks only.
    """
    if first.shape != second.shape:
        return 255.0
    return float(np.abs(first - second).max(initial=0.0))
