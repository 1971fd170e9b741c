"""Textures: small tileable pictures that surfaces are multiplied with, made from nothing here.

A texture carries grain, joints and stains and no colour; colour comes from the material. None has
lines as far apart as a cell's joints: cells must be counted on the floor, not on its texture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

#: Side of every texture [px]; a power of two, so that any renderer can repeat it.
SIDE = 128

#: What a texture multiplies a surface with on average.
MEAN = 0.9

Picture = NDArray[np.floating]
_V, _U = np.mgrid[:SIDE, :SIDE].astype(np.int32)


@cache
def texture(name: str) -> NDArray[np.uint8]:
    """Return a texture by its key in `TEXTURES`: uint8 [SIDE, SIDE, 3], grey, tileable."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    picture = TEXTURES[name](np.random.default_rng(seed))
    picture = picture - picture.mean() + MEAN
    pixels = np.clip(picture * 255 + 0.5, 0, 255).astype(np.uint8)
    return np.repeat(pixels[:, :, None], 3, axis=2)


# --- What textures are made of ---


def _noise(rng: np.random.Generator, scale_u: float, scale_v: float | None = None) -> Picture:
    """Return tileable noise [SIDE, SIDE] of mean 0 and deviation 1, smooth over `scale` px."""
    scale_v = scale_u if scale_v is None else scale_v
    white = np.fft.rfft2(rng.standard_normal((SIDE, SIDE)))
    v = np.fft.fftfreq(SIDE)[:, None]
    u = np.fft.rfftfreq(SIDE)[None]
    smooth = np.fft.irfft2(white * np.exp(-((u * scale_u) ** 2 + (v * scale_v) ** 2) * 10))
    return (smooth - smooth.mean()) / smooth.std()


def _stones(rng: np.random.Generator, side: int) -> tuple[Picture, Picture, Picture]:
    """Scatter `side` × `side` points and give every pixel to the nearest, around the edges too.

    Returns a random level of mean 0 per stone, the distance to its point and how much farther the
    next point is (0 on the edge of a stone) [px].
    """
    # One point in each square of a board, so that stones are about equally large and only the
    # squares around a pixel's own need to be looked at.
    length = np.float32(SIDE / side)
    points = rng.uniform(0.1, 0.9, (2, side, side)).astype(np.float32)
    levels = rng.uniform(-1, 1, (side, side)).astype(np.float32)
    row, column = (_V // length).astype(np.intp), (_U // length).astype(np.intp)
    first, second = np.full((2, SIDE, SIDE), np.inf, np.float32)
    level = np.zeros((SIDE, SIDE), np.float32)
    for i in range(-2, 3):
        for j in range(-2, 3):
            square = (row + i) % side, (column + j) % side
            away = np.hypot(
                (row + i + points[0][square]) * length - _V,
                (column + j + points[1][square]) * length - _U,
            )
            nearer = away < first
            second = np.where(nearer, first, np.minimum(second, away))
            first = np.where(nearer, away, first)
            level = np.where(nearer, levels[square], level)
    return level, first, second - first


def _warped(rng: np.random.Generator, picture: Picture, scale: float, by: float) -> Picture:
    """Return a picture whose pixels come from about `by` px away."""
    v, u = (np.rint(by * _noise(rng, scale)).astype(np.intp) for _ in range(2))
    return picture[(_V + v) % SIDE, (_U + u) % SIDE]


def _line(distance: Picture, width: float) -> Picture:
    """Return 1 where `distance` [px] is 0, falling to 0 at `width`."""
    return np.clip(1 - distance / width, 0, 1)


def _edge(place: Picture, length: int) -> Picture:
    """Return how far [px] places are from the next multiple of `length`."""
    return np.minimum(place % length, length - place % length)


# --- The textures ---


def _speckle(rng: np.random.Generator) -> Picture:
    return 0.03 * _noise(rng, 1.5) + 0.025 * _noise(rng, 12)


def _plaster(rng: np.random.Generator) -> Picture:
    return 0.02 * _noise(rng, 2, 5) + 0.03 * _noise(rng, 18)


def _asphalt(rng: np.random.Generator) -> Picture:
    return 0.07 * _noise(rng, 1.2) + 0.04 * _noise(rng, 16)


def _snow(rng: np.random.Generator) -> Picture:
    drift = _noise(rng, 14)
    return 0.012 * _noise(rng, 2) + 0.022 * (drift + np.roll(drift, 9, axis=1)) / 1.5


def _ice(rng: np.random.Generator) -> Picture:
    frost = 0.025 * _noise(rng, 10) + 0.012 * _noise(rng, 2)
    cracks = _warped(rng, _line(_stones(rng, 3)[2], 2.5), 6, 4)
    fading = np.clip(_noise(rng, 14) + 0.6, 0, 1)
    return frost - 0.15 * fading * cracks


def _boards(rng: np.random.Generator, across: int, joint: float) -> Picture:
    """Return boards along u, `across` px wide, each with its own shade, grain and two ends."""
    rows = _V // across
    shade = rng.uniform(-0.05, 0.05, SIDE // across)[rows]
    grain = 0.02 * _noise(rng, 24, 1.5)
    ends = rng.integers(0, SIDE, SIDE // across)[rows]
    gaps = np.maximum(_line(_edge(_V, across), 2), _line(_edge(_U - ends, SIDE), 2))
    return shade + grain - joint * gaps


def _planks(rng: np.random.Generator) -> Picture:
    return _boards(rng, 16, 0.16)


def _grain(rng: np.random.Generator) -> Picture:
    bend = 0.35 * _noise(rng, 30, 10)
    rings = np.sin(2 * np.pi * (6 * _V / SIDE + bend))
    return 0.035 * rings + 0.025 * _noise(rng, 24, 1.5)


def _parquet(rng: np.random.Generator) -> Picture:
    block, strip = SIDE // 4, SIDE // 16
    lies = (_U // block + _V // block) % 2 == 0
    along, across = np.where(lies, _U, _V), np.where(lies, _V, _U)
    shades = rng.uniform(-0.06, 0.06, (SIDE // block, SIDE // block, block // strip))
    shade = shades[_V // block, _U // block, across % block // strip]
    gaps = np.maximum(_line(_edge(along, block), 1.5), _line(_edge(across, strip), 1.5))
    return shade + 0.015 * _noise(rng, 3) - 0.09 * gaps


def _flagstones(rng: np.random.Generator) -> Picture:
    level, _, edge = _stones(rng, 4)
    bent = edge + 0.7 * _noise(rng, 3)
    return 0.045 * level + 0.02 * _noise(rng, 3) - 0.16 * _line(bent, 3)


def _gravel(rng: np.random.Generator) -> Picture:
    level, away, edge = _stones(rng, 12)
    return 0.08 * level - 0.01 * away - 0.10 * _line(edge, 2)


def _mosaic(rng: np.random.Generator) -> Picture:
    side = SIDE // 8
    shade = rng.uniform(-0.035, 0.035, (8, 8))[_V // side, _U // side]
    gaps = np.maximum(_line(_edge(_U, side), 1.6), _line(_edge(_V, side), 1.6))
    return shade + 0.01 * _noise(rng, 2) - 0.10 * gaps


def _brick(rng: np.random.Generator) -> Picture:
    course, length = SIDE // 16, SIDE // 4
    row = _V // course
    along = (_U + row % 2 * (length // 2)) % SIDE
    shade = rng.uniform(-0.10, 0.04, (16, 4))[row, along // length]
    mortar = np.maximum(_line(_edge(along, length), 2), _line(_edge(_V, course), 2))
    return shade * (1 - mortar) + 0.02 * _noise(rng, 1.5) + 0.10 * mortar


def _weave(rng: np.random.Generator) -> Picture:
    thread = 2 * np.pi * 16 / SIDE
    return 0.045 * np.sin(thread * _U) * np.sin(thread * _V) + 0.03 * _noise(rng, 1.5)


def _pile(rng: np.random.Generator) -> Picture:
    return 0.045 * _noise(rng, 1.5) + 0.03 * _noise(rng, 7)


def _grass(rng: np.random.Generator) -> Picture:
    blades = np.maximum(_noise(rng, 1, 4), _noise(rng, 3, 1.2))
    return 0.06 * blades + 0.035 * _noise(rng, 14)


def _leaves(rng: np.random.Generator) -> Picture:
    level, away, edge = _stones(rng, 14)
    return 0.10 * level - 0.012 * away - 0.08 * _line(edge, 2) + 0.03 * _noise(rng, 10)


def _marble(rng: np.random.Generator) -> Picture:
    veins = _line(np.abs(_noise(rng, 11)), 0.25) + 0.7 * _line(np.abs(_noise(rng, 6)), 0.2)
    return 0.025 * _noise(rng, 14) - 0.05 * veins


def _terrazzo(rng: np.random.Generator) -> Picture:
    level, away, edge = _stones(rng, 12)
    chips = (away < 4) & (edge > 2)
    return np.where(chips, 0.09 * level, 0.0) + 0.012 * _noise(rng, 1.5)


def _ripples(rng: np.random.Generator) -> Picture:
    bend = 0.16 * _noise(rng, 14)
    swell = np.sin(2 * np.pi * (4 * _V / SIDE + bend))
    return 0.10 * np.maximum(swell, 0) ** 2 + 0.03 * _noise(rng, 8, 3)


def _metal(rng: np.random.Generator) -> Picture:
    return 0.035 * _noise(rng, 30, 1.0) + 0.02 * _noise(rng, 16)


#: Name -> how it is drawn: what it adds to `MEAN`, before its own mean is taken off.
TEXTURES: dict[str, Callable[[np.random.Generator], Picture]] = {
    "speckle": _speckle,
    "plaster": _plaster,
    "asphalt": _asphalt,
    "snow": _snow,
    "ice": _ice,
    "planks": _planks,
    "grain": _grain,
    "parquet": _parquet,
    "flagstones": _flagstones,
    "gravel": _gravel,
    "mosaic": _mosaic,
    "brick": _brick,
    "weave": _weave,
    "pile": _pile,
    "grass": _grass,
    "leaves": _leaves,
    "marble": _marble,
    "terrazzo": _terrazzo,
    "ripples": _ripples,
    "metal": _metal,
}
