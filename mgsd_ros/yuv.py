"""RGB from luma and chroma: BT.601, limited range.

Messages do not say which matrix and range they were made with. V4L2, where such pictures come from,
takes BT.601 in limited range (luma 16 to 235, chroma 16 to 240) unless a driver says otherwise, and
OpenCV, hence cv_bridge, undoes just that. The numbers below follow from the definition:

    Y' = 16 + 219 (Kr R + Kg G + Kb B)      Kr = 0.299, Kb = 0.114, Kg = 1 - Kr - Kb
    Cb = 128 + 224 (B - Y) / 2 (1 - Kb)     Cr = 128 + 224 (R - Y) / 2 (1 - Kr)

with R, G, B and their weighted sum Y in [0, 1].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_KR, _KB = 0.299, 0.114
_KG = 1 - _KR - _KB

# What one step of luma, Cb or Cr adds to a colour in [0, 255].
_LUMA = np.float32(255 / 219)
_RED_CR = np.float32(2 * (1 - _KR) * 255 / 224)
_BLUE_CB = np.float32(2 * (1 - _KB) * 255 / 224)
_GREEN_CR = np.float32(-2 * (1 - _KR) * _KR / _KG * 255 / 224)
_GREEN_CB = np.float32(-2 * (1 - _KB) * _KB / _KG * 255 / 224)

# Black is at luma 16; the half makes rounding of what is then cut off.
_BLACK = np.float32(16 * 255 / 219 - 0.5)

# Rows of chroma that are worked on at a time: their sums stay in the cache.
_BAND = 16


def rgb_from_yuv(
    luma: NDArray[np.uint8], cb: NDArray[np.uint8], cr: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Return the picture that luma and chroma hold.

    Args:
        luma: uint8 [H, W].
        cb, cr: uint8, each [ceil(H / down), ceil(W / across)] with `down` and `across` 1 or 2. A
            chroma value is that of all its pixels: nothing is interpolated.

    Returns:
        uint8 [H, W, 3], red, green, blue; rounded, and cut off at 0 and 255.
    """
    height, width = luma.shape
    down, across = -(-height // cb.shape[0]), -(-width // cb.shape[1])
    rgb = np.empty((height, width, 3), np.uint8)
    for top in range(0, len(cb), _BAND):
        blues = cb[top : top + _BAND].astype(np.float32) - 128
        reds = cr[top : top + _BAND].astype(np.float32) - 128
        chroma = (_RED_CR * reds, _GREEN_CB * blues + _GREEN_CR * reds, _BLUE_CB * blues)
        for values in chroma:
            values -= _BLACK
        rows = slice(top * down, (top + _BAND) * down)
        # Pixels that share a chroma value take turns, so that it need not be repeated.
        for y in range(down):
            for x in range(across):
                light = _LUMA * luma[rows][y::down, x::across]
                pixels = rgb[rows][y::down, x::across]
                for channel, values in enumerate(chroma):
                    colour = light + values[: light.shape[0], : light.shape[1]]
                    np.maximum(colour, 0, out=colour)
                    np.minimum(colour, 255, out=colour)
                    pixels[..., channel] = colour
    return rgb
