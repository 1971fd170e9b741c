"""What a camera makes of the light that it takes in: exposure, blur and noise.

Every renderer passes its pictures through `develop`, so that they differ in nothing but how they
were drawn.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from sim.style import Photo

_BLUR_WIDTH = 256  # [px], to which `Photo.blur` refers
_BANK = 1 << 21
_LEVELS = 32  # steps of a standard deviation in the bank


def develop(picture: Image.Image, photo: Photo, seed: int) -> NDArray[np.uint8]:
    """Return an RGB picture as the camera gives it, uint8 [H, W, 3]; `seed` draws the noise."""
    if photo.blur:
        picture = picture.filter(ImageFilter.GaussianBlur(photo.blur * picture.width / _BLUR_WIDTH))
    if photo.exposure != (1, 1, 1):
        picture = picture.point(
            np.rint(np.minimum(np.outer(photo.exposure, np.arange(256)), 255))
            .astype(int)
            .ravel()
            .tolist()
        )
    rgb = np.asarray(picture)
    if not photo.noise:
        return rgb.copy()
    # Slices of one long row of noise: drawing fresh noise would take longer than the picture.
    bank = _noise()
    start = seed % (_BANK - min(rgb.size, _BANK // 2))
    noise = bank[start : start + rgb.size]
    if noise.size < rgb.size:
        noise = np.resize(noise, rgb.size)
    noise = noise.reshape(rgb.shape)
    amplitude = round(photo.noise * 256 / _LEVELS)
    noisy = rgb + (noise * np.int16(amplitude) >> 8)
    return np.clip(noisy, 0, 255, out=noisy).astype(np.uint8)


@cache
def _noise() -> NDArray[np.int16]:
    """Return standard normal noise in steps of 1 / `_LEVELS`, int16 [_BANK]."""
    values = np.random.default_rng(0).standard_normal(_BANK, np.float32) * _LEVELS
    return np.rint(np.clip(values, -127, 127)).astype(np.int16)
