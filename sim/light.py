"""Light and shadow, made part of the colours so that every renderer shows the same.

One distant light, an even sky. Shadows are found on a map of heights over the grid: a point lies in
shadow where the way to the light runs into higher ground.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim.camera import product
from sim.models import PIT_DEPTH, Parts
from sim.scene import SceneObject
from sim.style import Style

#: Places along a cell's side at which the map of heights is taken.
_RESOLUTION = 8

_BORDER = 2  # cells around the grid that the map holds
_LOW = 0.05  # what is lower than this casts no shadow [cells]
_AFLOAT = 0.4  # what hangs higher casts no shadow
_REACH = 0.7  # as far as the lowest light throws the shadow of a wall or a pit's edge [cells]
_GROUND = -PIT_DEPTH + 0.001  # what is lower lies in the light [cells]
_SOFT = 0.08  # height by which something must stand in the way to hide the light [cells]
_SKY = 0.35  # share of the sky that the bottom of a deep place does not see


def lit(
    colours: NDArray[np.uint8],
    points: NDArray[np.float32],
    normals: NDArray[np.float32],
    objects: tuple[SceneObject, ...],
    size: int,
    cell_size: float,
    style: Style,
) -> NDArray[np.uint8]:
    """Return colours [V, 3] as the style's light shows them at world `points` [m] with `normals`.

    Lambertian surfaces (brightness goes with the cosine between normal and light); faces that look
    up keep their colour at intensity 1.
    """
    sun = np.array(style.light, np.float32)
    facing = np.maximum(0.0, product(normals, sun[:, None])[:, 0]) / sun[2]
    heights = _heights(objects, size, cell_size)
    cells = points / np.float32(cell_size)
    direct = np.minimum(facing, 1.2) * _open_to(sun, cells, heights)
    # The clip above keeps sides that face a low sun from glaring.
    sky = 1 - _SKY * np.clip(-cells[:, 2] / PIT_DEPTH, 0, 1)
    brightness = style.intensity * (style.ambient * sky + (1 - style.ambient) * direct)
    return np.minimum(255.0, colours * brightness[:, None] + 0.5).astype(np.uint8)


def _heights(objects: tuple[SceneObject, ...], size: int, cell_size: float) -> NDArray[np.float32]:
    """Return the height of what stands at each place [cells], float32 [y, x]."""
    side = (size + 2 * _BORDER) * _RESOLUTION
    heights = np.full((side, side), -PIT_DEPTH, np.float32)
    inside = slice(_BORDER * _RESOLUTION, -_BORDER * _RESOLUTION)
    heights[inside, inside] = 0
    standing = [thing for thing in objects if thing.role != "floor"]
    if not standing:
        return heights
    # Objects that look the same share one tuple of parts.
    shared = {id(thing.parts): thing.parts for thing in standing if thing.role != "hole"}
    found = {key: _blocks(parts) for key, parts in shared.items()}
    blocks = [_PIT if thing.role == "hole" else found[id(thing.parts)] for thing in standing]
    frames = np.array([(*thing.position, thing.yaw) for thing in standing])
    frame = np.repeat(frames, [len(block) for block in blocks], axis=0)
    x, y, low, top, w, d = np.concatenate(blocks).T
    cosine, sine = np.cos(frame[:, 3]), np.sin(frame[:, 3])
    middle = frame[:, :2] / cell_size
    z = frame[:, 2] / cell_size
    # The box around each part once its object is turned; parts' own turns are ignored.
    across = middle[:, 0] + cosine * x - sine * y
    along = middle[:, 1] + sine * x + cosine * y
    half_x = (np.abs(cosine) * w + np.abs(sine) * d) / 2
    half_y = (np.abs(sine) * w + np.abs(cosine) * d) / 2
    edges = np.stack([across - half_x, across + half_x, along - half_y, along + half_y], axis=1)
    spans = np.rint(edges * _RESOLUTION + side / 2).astype(int).clip(0).tolist()
    pit, high, hangs = top < 0, z + top > _LOW, z + low > _AFLOAT
    for i in np.flatnonzero(pit | (high & ~hangs)).tolist():
        left, right, bottom, upper = spans[i]
        patch = heights[bottom:upper, left:right]
        if pit[i]:
            patch[:] = top[i]
        else:
            np.maximum(patch, z[i] + top[i], out=patch)
    return heights


# x, y, low, top, width and depth of a hole [cells].
_PIT = np.array([(0, 0, -PIT_DEPTH, -PIT_DEPTH, 1, 1)], np.float64)


def _blocks(parts: Parts) -> NDArray[np.float64]:
    """Return x, y, low, top, width and depth of each part's box [cells], float64 [parts, 6]."""
    boxes = np.array([(*part.centre, *part.size) for part in parts])
    x, y, z, w, d, h = boxes.T
    return np.stack([x, y, z - h / 2, z + h / 2, w, d], axis=1)


def _open_to(
    sun: NDArray[np.float32], cells: NDArray[np.float32], heights: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return how much of the light reaches points [cells], float32 [V], 0 to 1."""
    flat = float(np.hypot(sun[0], sun[1]))
    if flat < 1e-6:
        return np.ones(len(cells), np.float32)
    step = sun / flat / _RESOLUTION  # from one place of the map to the next
    place = cells * _RESOLUTION + np.float32(len(heights) / 2)
    stride = step * _RESOLUTION
    blocked = np.zeros(len(cells), np.float32)
    last = np.float32(len(heights) - 1)
    for i in range(1, round(_REACH * _RESOLUTION) + 1):
        x = np.clip(place[:, 0] + i * stride[0], 0, last).astype(np.intp)
        y = np.clip(place[:, 1] + i * stride[1], 0, last).astype(np.intp)
        higher = heights[y, x] - (cells[:, 2] + i * step[2])
        np.maximum(blocked, higher, out=blocked)
    # The ground around the grid has too few corners to show a shadow's shape.
    blocked[cells[:, 2] < _GROUND] = 0
    return 1 - np.clip(blocked / _SOFT, 0, 1)
