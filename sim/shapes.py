"""The shapes that objects are put together from: triangles that fill the cube from -0.5 to 0.5.

What looks down has no triangles: cameras look from above.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

#: Squares that a slab's top may have along each side: light and shade are drawn at their corners.
SLAB_SQUARES = range(3, 9)

_SHEET_SQUARES = 3
_FRAME_INSIDE = 0.82
_PIT_FLOOR = 0.8  # its banks slope, so that they are seen from straight above

# Corners of a ragged hole between the cell's middle (0) and its edge (1), at equal angles.
_RAGGED = (0.80, 0.95, 0.88, 0.76, 0.90, 0.96, 0.78, 0.88, 0.97, 0.82, 0.94, 0.86)

Outline = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """Triangles.

    Attributes:
        vertices: float64 [V, 3], within -0.5 to 0.5.
        normals: float64 [V, 3], outwards, not of unit length where the shape is no cube.
        faces: int64 [F, 3], counter-clockwise seen from outside.
    """

    vertices: NDArray[np.float64]
    normals: NDArray[np.float64]
    faces: NDArray[np.int64]


@cache
def shape(name: str) -> Shape:
    """Return a shape by its key in `SHAPES`."""
    return SHAPES[name]()


def _box() -> Shape:
    return _joined(
        [
            _patch([(x, y, 0.5) for x, y in _SQUARE], (0, 0, 1)),
            *_sides(_SQUARE, _SQUARE),
        ]
    )


def _lid() -> Shape:
    """Return the top of a box alone."""
    return _grid(1)


def _frame() -> Shape:
    """Return the edge of a lid, as wide as can be seen beside and below a tile that covers it."""
    inside = _FRAME_INSIDE
    return _joined(
        [
            _patch(
                [
                    (*a, 0.5),
                    (*b, 0.5),
                    (b[0] * inside, b[1] * inside, 0.5),
                    (a[0] * inside, a[1] * inside, 0.5),
                ],
                (0, 0, 1),
            )
            for a, b in zip(_SQUARE, (*_SQUARE[1:], _SQUARE[0]), strict=True)
        ]
    )


def _sheet() -> Shape:
    """Return the top of a box alone, in fewer squares."""
    return _grid(_SHEET_SQUARES)


def _pit() -> Shape:
    """Return the inside of a box without a lid, smaller at the bottom."""
    floor = [(x * _PIT_FLOOR, y * _PIT_FLOOR) for x, y in _SQUARE]
    return _joined(
        [
            _patch([(x, y, -0.5) for x, y in floor], (0, 0, 1)),
            *_sides(floor[::-1], _SQUARE[::-1]),
        ]
    )


def _ragged() -> Shape:
    """Return banks between a square at the top and a ragged hole, which gets smaller below."""
    count = len(_RAGGED)
    # From a corner on, so that the square's corners are among them.
    angles = np.arange(count) / count * math.tau + math.pi / 4
    inwards = -np.stack([np.cos(angles), np.sin(angles)], axis=1)
    square = -inwards / (2 * np.abs(inwards).max(axis=1, keepdims=True))
    hole = square * np.array(_RAGGED)[:, None]
    lines = ((square, 0.5, 2.0), (hole, 0.4, 2.0), (hole, 0.4, 0.3), (0.8 * hole, -0.5, 0.3))
    i = np.arange(count)
    j = (i + 1) % count
    faces = [
        np.stack(corners, axis=1) + start * count
        for start in (0, 2)
        for corners in ((i, j, j + count), (i, j + count, i + count))
    ]
    return Shape(
        np.concatenate([np.column_stack([line, np.full(count, z)]) for line, z, _ in lines]),
        np.concatenate([np.column_stack([inwards, np.full(count, up)]) for _, _, up in lines]),
        np.concatenate(faces),
    )


def _checks() -> Shape:
    """Return the dark squares of a board of 4 × 4 squares, as the tops of boxes."""
    squares = []
    for row in range(4):
        for column in range(row % 2, 4, 2):
            x, y = column / 4 - 0.5, row / 4 - 0.5
            corners = [(x, y), (x + 0.25, y), (x + 0.25, y + 0.25), (x, y + 0.25)]
            squares.append(_patch([(*corner, 0.5) for corner in corners], (0, 0, 1)))
    return _joined(squares)


# --- Prisms: an outline, drawn out along an axis ---

_SQUARE: Outline = ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))
_CROSS: Outline = tuple(
    (x / 2, y / 2)
    for x, y in (
        *((0.34, -1), (0.34, -0.34), (1, -0.34), (1, 0.34), (0.34, 0.34), (0.34, 1)),
        *((-0.34, 1), (-0.34, 0.34), (-1, 0.34), (-1, -0.34), (-0.34, -0.34), (-0.34, -1)),
    )
)
_BOLT: Outline = (
    *((-0.16, -0.5), (0.42, 0.1), (0.08, 0.1)),
    *((0.16, 0.5), (-0.42, -0.1), (-0.08, -0.1)),
)


_SHARD: Outline = ((-0.5, -0.2), (0.1, -0.5), (0.5, 0.1), (0.2, 0.5), (-0.4, 0.4))


def _polygon(sides: int, inner: float = 1.0) -> Outline:
    """Return a polygon, or a star whose every other corner is `inner` times as far out."""
    radii = [1.0 if i % 2 == 0 else inner for i in range(sides)]
    angles = [math.tau * i / sides for i in range(sides)]
    x = [r * math.cos(a) for r, a in zip(radii, angles, strict=True)]
    y = [r * math.sin(a) for r, a in zip(radii, angles, strict=True)]
    filled = [[(v - min(line)) / (max(line) - min(line)) - 0.5 for v in line] for line in (x, y)]
    return tuple(zip(*filled, strict=True))


def _rounded(cut: float) -> Outline:
    """Return a square with its corners cut off twice."""
    near = cut * 0.3
    quarter: Outline = ((0.5, -0.5 + cut), (0.5, 0.5 - cut), (0.5 - near, 0.5 - near))
    outline: list[tuple[float, float]] = []
    for _ in range(4):
        outline += quarter
        quarter = [(-y, x) for x, y in quarter]
    return tuple(outline)


def _prism(outline: Outline, axis: int = 2, taper: float = 1.0) -> Shape:
    """Draw an outline, counter-clockwise and seen whole from its middle, out along an axis.

    The axes' order stays: along x the outline lies in y and z, along y in z and x. Its far end is
    `taper` times as large.
    """
    far = [(x * taper, y * taper) for x, y in outline]
    patches = [_fan(far, 0.5), *_sides(outline, far)]
    if axis != 2:
        patches.append(_fan(outline[::-1], -0.5))
    upright = _joined(patches)
    turn = axis + 1
    return Shape(
        np.roll(upright.vertices, turn, axis=1),
        np.roll(upright.normals, turn, axis=1),
        upright.faces,
    )


# --- Turned on a lathe: a profile, from the outside below to the inside above ---

_DOME = tuple((0.5 * math.cos(a), math.sin(a) - 0.5) for a in (0, 0.45, 0.9, math.pi / 2))
_BALL = tuple((0.5 * math.cos(a), 0.5 * math.sin(a)) for a in (-math.pi / 2, -0.8, 0, 0.8, 1.5707))
_POINT = 1e-3  # a smaller radius is none
_RING = ((0.5, -0.5), (0.5, 0.1), (0.4, 0.5), (0.28, 0.1), (0.28, -0.5))


def _lathe(profile: Outline, sides: int, smooth: bool = False) -> Shape:
    """Turn a profile of (radius, z) about z; where it ends in the open, a lid closes it.

    Light changes gently around the axis, and along the profile where it is `smooth`.
    """
    angles = np.arange(sides) / sides * math.tau
    around = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    steps = np.diff(np.array(profile), axis=0)
    across = np.stack([steps[:, 1], -steps[:, 0]], axis=1)  # normal to each step of the profile
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    patches = []
    for i, ends in enumerate(itertools.pairwise(profile)):
        vertices, normals = [], []
        for (radius, z), neighbour in zip(ends, (i - 1, i + 1), strict=True):
            beside = across[neighbour] if smooth and 0 <= neighbour < len(across) else 0
            out, up = across[i] + beside
            vertices.append(np.column_stack([radius * around, np.full(sides, z)]))
            normals.append(np.column_stack([out * around, np.full(sides, up)]))
        low = np.arange(sides)
        after = (low + 1) % sides
        faces = []
        if ends[0][0] > _POINT:
            faces.append(np.stack([low, after, after + sides], axis=1))
        if ends[1][0] > _POINT:
            faces.append(np.stack([low, after + sides, low + sides], axis=1))
        patches.append(
            Shape(np.concatenate(vertices), np.concatenate(normals), np.concatenate(faces))
        )
    radius, z = profile[-1]
    if radius > _POINT and z == 0.5:
        patches.append(_fan((radius * around).tolist(), z))
    return _joined(patches)


# --- Patches ---


def _grid(squares: int) -> Shape:
    """Return the top of a box in squares."""
    n = squares
    y, x = np.mgrid[: n + 1, : n + 1] / n - 0.5
    vertices = np.stack([x.ravel(), y.ravel(), np.full(x.size, 0.5)], axis=1)
    row, column = np.mgrid[:n, :n]
    corner = (row * (n + 1) + column).ravel()
    faces = np.concatenate(
        [
            np.stack([corner, corner + 1, corner + n + 2], axis=1),
            np.stack([corner, corner + n + 2, corner + n + 1], axis=1),
        ]
    )
    return Shape(vertices, np.tile([0.0, 0.0, 1.0], (len(vertices), 1)), faces)


def _patch(
    corners: Sequence[tuple[float, ...]], normal: tuple[float, float, float] | None = None
) -> Shape:
    """Return a flat four-cornered face, counter-clockwise; its normal is worked out if need be."""
    places = np.array(corners)
    if normal is None:
        normal = tuple(np.cross(places[2] - places[0], places[3] - places[1]))
    return Shape(places, np.tile(normal, (4, 1)).astype(float), np.array([(0, 1, 2), (0, 2, 3)]))


def _sides(low: Outline, high: Outline) -> list[Shape]:
    """Return the sides between an outline at the bottom and one at the top."""
    return [
        _patch([(*low[i], -0.5), (*low[j], -0.5), (*high[j], 0.5), (*high[i], 0.5)])
        for i, j in _round(len(low))
    ]


def _fan(outline: Outline, z: float) -> Shape:
    """Return an outline as a face at height `z`, seen from where it runs counter-clockwise."""
    middle = np.mean(outline, axis=0)
    vertices = np.column_stack([[middle, *outline], np.full(len(outline) + 1, z)])
    area = sum(
        outline[i][0] * outline[j][1] - outline[j][0] * outline[i][1]
        for i, j in _round(len(outline))
    )
    faces = np.array([(0, i + 1, j + 1) for i, j in _round(len(outline))])
    return Shape(vertices, np.tile([0.0, 0.0, np.sign(area)], (len(vertices), 1)), faces)


def _joined(shapes: Sequence[Shape]) -> Shape:
    starts = np.cumsum([0, *(len(part.vertices) for part in shapes)])
    return Shape(
        np.concatenate([part.vertices for part in shapes]),
        np.concatenate([part.normals for part in shapes]),
        np.concatenate([part.faces + at for part, at in zip(shapes, starts, strict=False)]),
    )


def _round(count: int) -> list[tuple[int, int]]:
    """Return the pairs of neighbours on a ring."""
    return [(i, (i + 1) % count) for i in range(count)]


_HEDGE: Outline = ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.36), (0.34, 0.5), (-0.34, 0.5), (-0.5, 0.36))
_RAMP: Outline = ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, -0.1))

#: Name -> how it is made. Those that lie point along the axis in their name.
SHAPES: dict[str, Callable[[], Shape]] = {
    "box": _box,
    "lid": _lid,
    "frame": _frame,
    **{f"slab{squares}": partial(_grid, squares) for squares in SLAB_SQUARES},
    "sheet": _sheet,
    "pit": _pit,
    "ragged": _ragged,
    "checks": _checks,
    "wave": lambda: _fan(_polygon(6), 0.5),
    "shard": lambda: _prism(_SHARD),
    "rounded": lambda: _prism(_rounded(0.16)),
    "board": lambda: _prism(_rounded(0.07)),
    "chamfered": lambda: _prism(_rounded(0.16), taper=0.8),
    "cross": lambda: _prism(_CROSS),
    "bolt": lambda: _prism(_BOLT),
    "star": lambda: _prism(_polygon(10, 0.45)),
    "leaves": lambda: _prism(_polygon(12, 0.5), taper=0.6),
    "wheel": lambda: _prism(_polygon(12), axis=1),
    "roller": lambda: _prism(_polygon(12), axis=0),
    "track": lambda: _prism(_rounded(0.3), axis=1),
    "hedge": lambda: _prism(_HEDGE, axis=0),
    "ramp": lambda: _prism(_RAMP, axis=0),
    "cylinder": lambda: _lathe(((0.5, -0.5), (0.5, 0.5)), 20),
    "post": lambda: _lathe(((0.5, -0.5), (0.5, 0.5)), 8),
    "cone": lambda: _lathe(((0.5, -0.5), (0.08, 0.5)), 12),
    "bowl": lambda: _lathe(((0.36, -0.5), (0.5, 0.5)), 12),
    "dome": lambda: _lathe(_DOME, 12, smooth=True),
    "ball": lambda: _lathe(_BALL, 12, smooth=True),
    "ring": lambda: _lathe(_RING, 12),
}
