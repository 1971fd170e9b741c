"""Scenes: a symbolic state built in metres, with a style. Knows shapes, not renderers.

World frame: z up, x to the right and y to the top of a picture taken straight down, the grid
centred on the origin, its floor at z = 0, metres. `mesh_of` turns objects into triangles that any
renderer can draw; light is part of their colours, so that two renderers show the same picture.
"""

from __future__ import annotations

import colorsys
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from sim.camera import Camera
from sim.states import (
    WALL_DOWN,
    WALL_LEFT,
    WALL_RIGHT,
    WALL_UP,
    Cell,
    FrozenLake,
    Maze,
    MiniBehaviour,
    State,
)

Point = tuple[float, float, float]
Colour = tuple[int, int, int]

#: Side of a cell [m].
CELL_SIZE = 0.5

#: Room between the grid and each edge of the picture, as a share of the grid's side.
MARGIN = 0.08

#: What a pixel or a node of a scene graph shows. 0 is nothing.
SEMANTIC_IDS: dict[str, int] = {
    "ground": 1,
    "floor": 2,
    "hole": 3,
    "goal": 4,
    "robot": 5,
    "wall": 6,
    "printer": 7,
    "table": 8,
}

# Sizes below are shares of a cell's side.
_PIT_DEPTH = 0.5
_PIT_FLOOR = 0.8  # its banks slope, so that they are seen from straight above
_TILE = 0.93
_RIM = 0.12
_WALL_HEIGHT, _WALL_THICKNESS = 0.28, 0.14

# Camera style. Distances are shares of the grid's side.
_CAMERA_HEIGHT = 2.8
_CAMERA_HEIGHTS = (2.3, 3.4)
_CAMERA_OFFSET = 0.03
_CAMERA_TILT = math.radians(8)
_CAMERA_ROLL = math.radians(2)


def cell_centre(cell: Cell, size: int, cell_size: float = CELL_SIZE) -> tuple[float, float]:
    """Return the centre (x, y) [m] of a cell of a grid of `size` × `size` cells."""
    row, column = cell
    middle = (size - 1) / 2
    return ((column - middle) * cell_size, (middle - row) * cell_size)


def point_to_cell(x: float, y: float, size: int, cell_size: float = CELL_SIZE) -> Cell | None:
    """Return the cell that holds the point (x, y) [m], or None outside the grid."""
    row = math.floor(size / 2 - y / cell_size)
    column = math.floor(size / 2 + x / cell_size)
    return (row, column) if 0 <= row < size and 0 <= column < size else None


@dataclass(frozen=True, slots=True)
class Part:
    """One shape of an object, in the object's frame.

    Attributes:
        shape: a key of `SHAPES`.
        centre: of its bounding box [m].
        size: of its bounding box [m].
        colour: sRGB, 0 to 255, before lighting.
        yaw: turn about z [rad], counter-clockwise seen from above.
    """

    shape: str
    centre: Point
    size: Point
    colour: Colour
    yaw: float = 0.0


@dataclass(frozen=True, slots=True)
class SceneObject:
    """A thing in the world: what it is, where it stands, how it looks.

    Attributes:
        name: unique in its scene.
        role: a key of `SEMANTIC_IDS`.
        position: of its frame's origin in the world [m].
        yaw: turn about z [rad], counter-clockwise seen from above; 0 heads along +x.
        parts: its shapes.
    """

    name: str
    role: str
    position: Point
    yaw: float
    parts: tuple[Part, ...]

    @property
    def semantic_id(self) -> int:
        """The role's number in semantic pictures."""
        return SEMANTIC_IDS[self.role]


@dataclass(frozen=True, slots=True)
class Style:
    """All that may differ between two scenes of one state.

    Attributes:
        seed: that it was drawn from; None for the plain style.
        colours: sRGB 0 to 255 by material.
        light: unit vector towards the light, world frame.
        intensity: brightness of faces that look straight up.
        ambient: brightness of faces in shadow as a share of `intensity`.
        robot_yaw: heading of the robot [rad].
        camera_height: distance of the camera from the point it looks at, in grid sides.
        camera_offset: of the point it looks at from the grid's centre (x, y), in grid sides.
        camera_tilt: angle between its optical axis and straight down [rad].
        camera_azimuth: direction from which it looks when tilted [rad].
        camera_roll: turn of the picture about the optical axis [rad].
    """

    seed: int | None
    colours: Mapping[str, Colour]
    light: Point
    intensity: float
    ambient: float
    robot_yaw: float
    camera_height: float
    camera_offset: tuple[float, float]
    camera_tilt: float
    camera_azimuth: float
    camera_roll: float


# Material -> ranges of hue [degrees], saturation and value. The hue families of one scene stay
# apart whatever the seed, so that a person and a small network tell the objects by colour alone.
_MATERIALS: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "ice": ((185, 208), (0.10, 0.24), (0.88, 0.97)),
    "snow": ((190, 220), (0.00, 0.06), (0.90, 0.98)),
    "water": ((208, 232), (0.80, 0.95), (0.26, 0.40)),
    "concrete": ((25, 60), (0.04, 0.16), (0.78, 0.92)),
    "carpet": ((40, 150), (0.06, 0.18), (0.74, 0.88)),
    "skirting": ((20, 60), (0.05, 0.15), (0.50, 0.65)),
    "brick": ((200, 380), (0.20, 0.45), (0.22, 0.36)),
    "ground": ((0, 360), (0.05, 0.25), (0.30, 0.50)),
    "goal": ((100, 142), (0.75, 0.95), (0.55, 0.78)),
    "robot": ((-12, 16), (0.80, 0.95), (0.78, 0.95)),
    "mark": ((48, 58), (0.30, 0.90), (0.95, 1.00)),
    "printer": ((200, 280), (0.08, 0.25), (0.16, 0.28)),
    "paper": ((40, 60), (0.00, 0.05), (0.94, 1.00)),
    "wood": ((18, 32), (0.58, 0.75), (0.42, 0.58)),
}


def make_style(seed: int | None) -> Style:
    """Return the style of a seed, or with None the plain one: no jitter, camera straight down."""
    if seed is None:
        colours = {
            name: _rgb(*((low + high) / 2 for low, high in ranges))
            for name, ranges in _MATERIALS.items()
        }
        return Style(
            None, colours, _direction(2.2, 0.6), 1.0, 0.55, 0.0, _CAMERA_HEIGHT, (0, 0), 0, 0, 0
        )
    rng = random.Random(f"style/{seed}")
    return Style(
        seed=seed,
        colours={
            name: _rgb(*(rng.uniform(*limits) for limits in ranges))
            for name, ranges in _MATERIALS.items()
        },
        light=_direction(rng.uniform(0, math.tau), rng.uniform(0.35, 0.9)),
        intensity=rng.uniform(0.88, 1.05),
        ambient=rng.uniform(0.45, 0.65),
        robot_yaw=rng.uniform(-math.pi, math.pi),
        camera_height=rng.uniform(*_CAMERA_HEIGHTS),
        camera_offset=(
            rng.uniform(-_CAMERA_OFFSET, _CAMERA_OFFSET),
            rng.uniform(-_CAMERA_OFFSET, _CAMERA_OFFSET),
        ),
        camera_tilt=rng.uniform(0, _CAMERA_TILT),
        camera_azimuth=rng.uniform(-math.pi, math.pi),
        camera_roll=rng.uniform(-_CAMERA_ROLL, _CAMERA_ROLL),
    )


@dataclass(frozen=True, slots=True)
class Scene:
    """A state built in metres.

    Attributes:
        state: that was built.
        style: it was built with.
        cell_size: side of a cell [m].
        objects: everything there is, the ground included.
        camera: that looks at it.
    """

    state: State
    style: Style
    cell_size: float
    objects: tuple[SceneObject, ...]
    camera: Camera


def build_scene(
    state: State,
    style_seed: int | None,
    width: int = 128,
    height: int = 128,
    cell_size: float = CELL_SIZE,
) -> Scene:
    """Build a state in metres, deterministic in its arguments.

    `width` and `height` [px] are those of the style's camera.
    """
    style = make_style(style_seed)
    if isinstance(state, FrozenLake):
        objects = _lake(state, style)
    elif isinstance(state, Maze):
        objects = _maze(state, style)
    else:
        objects = _office(state, style)
    ground = _ground(state.size, style)
    scaled = tuple(_scaled(thing, cell_size) for thing in (ground, *objects))
    camera = make_camera(state.size, style, width, height, cell_size)
    return Scene(state, style, cell_size, scaled, camera)


def make_camera(
    size: int, style: Style, width: int, height: int, cell_size: float = CELL_SIZE
) -> Camera:
    """Return the style's camera over a grid of `size` × `size` cells.

    The focal length is such that the grid and its `MARGIN` just fit into the picture.
    """
    side = size * cell_size
    target = np.array([*style.camera_offset, 0.0]) * side
    sideways = math.sin(style.camera_tilt)
    back = np.array(
        [
            sideways * math.cos(style.camera_azimuth),
            sideways * math.sin(style.camera_azimuth),
            math.cos(style.camera_tilt),
        ]
    )
    up = (-math.sin(style.camera_roll), math.cos(style.camera_roll), 0.0)
    eye = target + style.camera_height * side * back
    unit = Camera.looking_at(eye.tolist(), target.tolist(), up, width, height, 1.0)
    reach = side / 2 * (1 + 2 * MARGIN)
    corners = [(x, y, 0.0) for x in (-reach, reach) for y in (-reach, reach)]
    spread = np.abs(unit.project(corners) - (unit.cx, unit.cy)).max(axis=0)
    focal = float(min(width / 2 / spread[0], height / 2 / spread[1]))
    return Camera(width, height, focal, focal, unit.cx, unit.cy, unit.pose)


# --- Objects, in units of one cell's side; `build_scene` scales them to metres. ---


def _ground(size: int, style: Style) -> SceneObject:
    side = size * 4.0
    top = Part("box", (0, 0, -0.05), (side, side, 0.1), style.colours["ground"])
    return SceneObject("ground", "ground", (0, 0, -_PIT_DEPTH), 0.0, (top,))


def _lake(state: FrozenLake, style: Style) -> list[SceneObject]:
    objects = _rim(state.size, style.colours["snow"])
    for row in range(state.size):
        for column in range(state.size):
            if (row, column) in state.holes:
                objects.append(_hole((row, column), state.size, style))
            else:
                objects.append(_tile((row, column), state.size, style.colours["ice"], 0.12))
    objects.append(_goal(state.goal, state.size, style))
    objects.append(_robot(state.start, state.size, style))
    return objects


def _maze(state: Maze, style: Style) -> list[SceneObject]:
    objects = _floor(state.size, style.colours["concrete"], 0.08)
    objects += _walls(state, style.colours["brick"])
    objects.append(_goal(state.goal, state.size, style))
    objects.append(_robot(state.start, state.size, style))
    return objects


def _office(state: MiniBehaviour, style: Style) -> list[SceneObject]:
    objects = _rim(state.size, style.colours["skirting"])
    objects += _floor(state.size, style.colours["carpet"], 0.10)
    objects.append(_table(state, style))
    objects.append(_printer(state.printer, state.size, style))
    objects.append(_robot(state.agent, state.size, style))
    return objects


def _floor(size: int, colour: Colour, contrast: float) -> list[SceneObject]:
    cells = [(row, column) for row in range(size) for column in range(size)]
    return [_tile(cell, size, colour, contrast) for cell in cells]


def _tile(cell: Cell, size: int, colour: Colour, contrast: float) -> SceneObject:
    # Two shades as on a chess board and a dark joint between: cells can be counted.
    shade = _scaled_colour(colour, 1 - contrast * (sum(cell) % 2))
    joint = _scaled_colour(colour, 0.62)
    slab_top = -0.03
    parts = (
        Part("box", (0, 0, (slab_top - _PIT_DEPTH) / 2), (1, 1, _PIT_DEPTH + slab_top), joint),
        Part("box", (0, 0, slab_top / 2), (_TILE, _TILE, -slab_top), shade),
    )
    return _in_cell(f"floor_{cell[0]}_{cell[1]}", "floor", cell, size, parts)


def _hole(cell: Cell, size: int, style: Style) -> SceneObject:
    water = style.colours["water"]
    bank, wave = _mixed(water, style.colours["ice"], 0.4), _mixed(water, (140, 200, 255), 0.3)
    pit = Part("pit", (0, 0, -_PIT_DEPTH / 2), (1, 1, _PIT_DEPTH), bank)
    bottom = Part("box", (0, 0, -_PIT_DEPTH + 0.03), (_PIT_FLOOR, _PIT_FLOOR, 0.04), water)
    waves = (
        Part("box", (x, y, -_PIT_DEPTH + 0.06), (length, 0.06, 0.02), wave)
        for x, y, length in ((-0.14, 0.18, 0.30), (0.15, 0.0, 0.32), (-0.08, -0.18, 0.26))
    )
    name = f"hole_{cell[0]}_{cell[1]}"
    return _in_cell(name, "hole", cell, size, (pit, bottom, *waves))


def _rim(size: int, colour: Colour) -> list[SceneObject]:
    # A low kerb around grids that have no walls: it shows where the grid ends.
    half, length = size / 2 + _RIM / 2, size + 2 * _RIM
    kerb = Part(
        "box", (0, 0, 0.04 - (_PIT_DEPTH + 0.08) / 2), (length, _RIM, _PIT_DEPTH + 0.08), colour
    )
    places = (
        (0, half, 0.0),
        (0, -half, 0.0),
        (half, 0, math.pi / 2),
        (-half, 0, math.pi / 2),
    )
    return [
        SceneObject(f"rim_{i}", "ground", (x, y, 0), yaw, (kerb,))
        for i, (x, y, yaw) in enumerate(places)
    ]


def _walls(state: Maze, colour: Colour) -> list[SceneObject]:
    size, objects = state.size, []
    # Every inner wall is named by both its cells: take up and left of each, and the far border.
    for row in range(size):
        for column in range(size):
            bits = state.walls[row][column]
            x, y = cell_centre((row, column), size, 1.0)
            sides = [(WALL_UP, x, y + 0.5, 0.0), (WALL_LEFT, x - 0.5, y, math.pi / 2)]
            if row == size - 1:
                sides.append((WALL_DOWN, x, y - 0.5, 0.0))
            if column == size - 1:
                sides.append((WALL_RIGHT, x + 0.5, y, math.pi / 2))
            for bit, wall_x, wall_y, yaw in sides:
                if bits & bit:
                    name = f"wall_{row}_{column}_{bit}"
                    objects.append(_wall(name, wall_x, wall_y, yaw, colour))
    return objects


def _wall(name: str, x: float, y: float, yaw: float, colour: Colour) -> SceneObject:
    length = 1 + _WALL_THICKNESS  # so that walls which meet in a corner fill it
    body = Part(
        "box",
        (0, 0, (_WALL_HEIGHT - _PIT_DEPTH) / 2),
        (length, _WALL_THICKNESS, _WALL_HEIGHT + _PIT_DEPTH),
        colour,
    )
    return SceneObject(name, "wall", (x, y, 0), yaw, (body,))


def _goal(cell: Cell, size: int, style: Style) -> SceneObject:
    green, white = style.colours["goal"], style.colours["paper"]
    dark = _scaled_colour(green, 0.6)
    parts = (
        Part("box", (0, 0, 0.01), (0.80, 0.80, 0.04), green),
        Part("cylinder", (0, 0, 0.02), (0.58, 0.58, 0.05), white),
        Part("cylinder", (0, 0, 0.03), (0.34, 0.34, 0.06), green),
        Part("cylinder", (-0.31, 0.31, 0.2), (0.06, 0.06, 0.34), dark),
        Part("box", (-0.19, 0.31, 0.34), (0.24, 0.16, 0.04), dark),
    )
    return _in_cell("goal", "goal", cell, size, parts)


def _robot(cell: Cell, size: int, style: Style) -> SceneObject:
    body, mark = style.colours["robot"], style.colours["mark"]
    tyre = (40, 40, 44)
    parts = (
        Part("box", (0, 0.27, 0.08), (0.30, 0.10, 0.16), tyre),
        Part("box", (0, -0.27, 0.08), (0.30, 0.10, 0.16), tyre),
        Part("cylinder", (0, 0, 0.13), (0.62, 0.62, 0.18), _scaled_colour(body, 0.75)),
        Part("cylinder", (0, 0, 0.23), (0.52, 0.52, 0.04), body),
        Part("box", (0.14, 0, 0.26), (0.24, 0.12, 0.04), mark),
        Part("cylinder", (-0.08, 0, 0.27), (0.18, 0.18, 0.06), (60, 60, 66)),
    )
    return _in_cell("robot", "robot", cell, size, parts, style.robot_yaw)


def _printer(cell: Cell, size: int, style: Style) -> SceneObject:
    case, paper = style.colours["printer"], style.colours["paper"]
    parts = (
        Part("box", (0, 0.06, 0.17), (0.74, 0.52, 0.34), case),
        Part("box", (0, 0.10, 0.35), (0.58, 0.26, 0.03), _scaled_colour(case, 1.7)),
        Part("box", (0, -0.28, 0.12), (0.56, 0.24, 0.05), _scaled_colour(case, 1.4)),
        Part("box", (0, -0.24, 0.16), (0.42, 0.30, 0.03), paper),
        Part("box", (0, 0.29, 0.36), (0.42, 0.14, 0.10), paper),
        Part("box", (0.29, -0.12, 0.35), (0.08, 0.08, 0.03), (40, 200, 235)),
    )
    return _in_cell("printer", "printer", cell, size, parts)


def _table(state: MiniBehaviour, style: Style) -> SceneObject:
    wood = style.colours["wood"]
    rows, columns = ([cell[i] for cell in state.table] for i in (0, 1))
    top_left, bottom_right = (min(rows), min(columns)), (max(rows), max(columns))
    corners = [cell_centre(cell, state.size, 1.0) for cell in (top_left, bottom_right)]
    x, y = (sum(values) / 2 for values in zip(*corners, strict=True))
    yaw = 0.0 if len(set(columns)) > len(set(rows)) else math.pi / 2
    length, depth, height = 2.88, 1.88, 0.36
    parts = [
        Part("box", (sx * 1.34, sy * 0.84, height / 2), (0.1, 0.1, height), (60, 44, 34))
        for sx in (-1, 1)
        for sy in (-1, 1)
    ]
    for i, shade in enumerate((1.0, 0.88, 1.06, 0.94)):
        board = depth / 4
        centre = (0.0, (i - 1.5) * board, height + 0.03)
        parts.append(Part("box", centre, (length, board, 0.06), _scaled_colour(wood, shade)))
    return SceneObject("table", "table", (x, y, 0), yaw, tuple(parts))


def _in_cell(
    name: str, role: str, cell: Cell, size: int, parts: tuple[Part, ...], yaw: float = 0.0
) -> SceneObject:
    return SceneObject(name, role, (*cell_centre(cell, size, 1.0), 0.0), yaw, parts)


def _scaled(thing: SceneObject, scale: float) -> SceneObject:
    parts = tuple(
        Part(p.shape, _times(p.centre, scale), _times(p.size, scale), p.colour, p.yaw)
        for p in thing.parts
    )
    return SceneObject(thing.name, thing.role, _times(thing.position, scale), thing.yaw, parts)


def _times(vector: Point, scale: float) -> Point:
    return (vector[0] * scale, vector[1] * scale, vector[2] * scale)


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value)
    return (round(red * 255), round(green * 255), round(blue * 255))


def _scaled_colour(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, round(value * factor)) for value in colour)
    return (red, green, blue)


def _mixed(one: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return (red, green, blue)


def _direction(azimuth: float, from_zenith: float) -> Point:
    flat = math.sin(from_zenith)
    return (flat * math.cos(azimuth), flat * math.sin(azimuth), math.cos(from_zenith))


# --- Triangles ---


@dataclass(frozen=True, slots=True, eq=False)
class Mesh:
    """Triangles of some objects, each object in its own frame, one after the other.

    Attributes:
        vertices: float32 [V, 3], metres.
        normals: float32 [V, 3], unit length, outwards.
        colours: uint8 [V, 3], sRGB before lighting.
        faces: uint32 [F, 3], indices into `vertices`, counter-clockwise seen from outside.
        vertex_ends, face_ends: int64 [objects], where each object's vertices and faces end.
    """

    vertices: NDArray[np.float32]
    normals: NDArray[np.float32]
    colours: NDArray[np.uint8]
    faces: NDArray[np.uint32]
    vertex_ends: NDArray[np.int64]
    face_ends: NDArray[np.int64]


def mesh_of(objects: Sequence[SceneObject]) -> Mesh:
    """Return the triangles of objects, in their own frames."""
    parts = [part for thing in objects for part in thing.parts]
    shapes = [_shape(part.shape) for part in parts]
    vertex_ends = np.cumsum([len(shape.vertices) for shape in shapes])
    face_ends = np.cumsum([len(shape.faces) for shape in shapes])
    vertices = np.empty((vertex_ends[-1], 3), np.float32)
    normals = np.empty_like(vertices)
    colours = np.empty(vertices.shape, np.uint8)
    faces = np.empty((face_ends[-1], 3), np.uint32)
    # All parts of one shape at once: a lake of side 8 has 200 parts.
    for name in dict.fromkeys(part.shape for part in parts):
        shape = _shape(name)
        chosen = [i for i, part in enumerate(parts) if part.shape == name]
        centre = np.array([parts[i].centre for i in chosen])[:, None]
        size = np.array([parts[i].size for i in chosen])[:, None]
        yaw = np.array([parts[i].yaw for i in chosen])
        starts = vertex_ends[chosen] - len(shape.vertices)
        rows = _ranges(starts, len(shape.vertices))
        vertices[rows] = (_turned(shape.vertices * size, yaw) + centre).reshape(-1, 3)
        leaning = _turned(shape.normals / size, yaw).reshape(-1, 3)
        normals[rows] = leaning / np.linalg.norm(leaning, axis=1, keepdims=True)
        colours[rows] = np.repeat([parts[i].colour for i in chosen], len(shape.vertices), axis=0)
        rows = _ranges(face_ends[chosen] - len(shape.faces), len(shape.faces))
        faces[rows] = (shape.faces + starts[:, None, None]).reshape(-1, 3)
    last = np.cumsum([len(thing.parts) for thing in objects]) - 1
    return Mesh(vertices, normals, colours, faces, vertex_ends[last], face_ends[last])


def to_world(
    objects: Sequence[SceneObject], mesh: Mesh
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the mesh's vertices [m] and normals in the world frame, float32 [V, 3] each."""
    counts = np.diff(mesh.vertex_ends, prepend=0)
    yaw = np.repeat([thing.yaw for thing in objects], counts)
    position = np.repeat(np.array([thing.position for thing in objects], np.float32), counts, 0)
    return (
        _turned(mesh.vertices[:, None], yaw)[:, 0].astype(np.float32) + position,
        _turned(mesh.normals[:, None], yaw)[:, 0].astype(np.float32),
    )


def lit(
    colours: NDArray[np.uint8], normals: NDArray[np.float32], style: Style
) -> NDArray[np.uint8]:
    """Return colours [V, 3] as the style's light shows them on surfaces with world `normals`.

    A Lambertian surface under one distant light and an even sky; faces that look up keep their
    colour at intensity 1.
    """
    facing = np.maximum(0.0, normals @ np.array(style.light, np.float32)) / style.light[2]
    # The clip keeps sides that face a low sun from glaring.
    brightness = style.intensity * (style.ambient + (1 - style.ambient) * np.minimum(facing, 1.2))
    return np.minimum(255.0, colours * brightness[:, None] + 0.5).astype(np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class _Shape:
    """A shape that fills the cube from -0.5 to 0.5."""

    vertices: NDArray[np.float64]
    normals: NDArray[np.float64]
    faces: NDArray[np.int64]


def _ranges(starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Return the indices start, start + 1, … of `length` rows from each start."""
    return (starts[:, None] + np.arange(length)).ravel()


def _turned(vectors: NDArray, yaw: NDArray) -> NDArray:
    """Turn vectors [N, K, 3] about z by yaw [N]."""
    if not yaw.any():
        return vectors
    cosine, sine = np.cos(yaw)[:, None], np.sin(yaw)[:, None]
    x, y = vectors[..., 0], vectors[..., 1]
    return np.stack([cosine * x - sine * y, sine * x + cosine * y, vectors[..., 2]], axis=-1)


@cache
def _shape(name: str) -> _Shape:
    return SHAPES[name]()


def _box() -> _Shape:
    vertices: list[NDArray[np.float64]] = []
    normals: list[NDArray[np.float64]] = []
    faces: list[tuple[int, int, int]] = []
    for axis in range(3):
        for sign in (-1, 1):
            normal, first, second = np.zeros(3), np.zeros(3), np.zeros(3)
            normal[axis] = sign
            first[(axis + 1) % 3] = sign
            second[(axis + 2) % 3] = 1
            start = len(vertices)
            for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
                vertices.append((normal + a * first + b * second) / 2)
                normals.append(normal)
            faces += [(start, start + 1, start + 2), (start, start + 2, start + 3)]
    return _Shape(np.array(vertices), np.array(normals), np.array(faces))


def _pit() -> _Shape:
    # The inside of a box without a lid, smaller at the bottom.
    box = _box()
    vertices = box.vertices.copy()
    vertices[vertices[:, 2] < 0, :2] *= _PIT_FLOOR
    normals = -box.normals
    normals[np.abs(normals[:, 2]) < 0.5, 2] = (1 - _PIT_FLOOR) / 2
    kept = box.normals[box.faces[:, 0], 2] < 0.5
    return _Shape(vertices, normals, box.faces[kept][:, ::-1])


def _cylinder(sides: int = 20) -> _Shape:
    angle = np.arange(sides) / sides * math.tau
    ring = np.stack([np.cos(angle), np.sin(angle), np.zeros(sides)], axis=1)
    half, up = np.array([0.5, 0.5, 1.0]), np.array([0.0, 0.0, 0.5])
    i = np.arange(sides)
    j = (i + 1) % sides
    vertices = [ring * half + up, ring * half - up, ring * half + up, ring * half - up]
    normals = [ring, ring, np.tile(2 * up, (sides, 1)), np.tile(-2 * up, (sides, 1))]
    wall = [(i, sides + i, sides + j), (i, sides + j, j)]
    fan = np.arange(1, sides - 1)
    caps = [
        (np.full(sides - 2, 2 * sides), 2 * sides + fan, 2 * sides + fan + 1),
        (np.full(sides - 2, 3 * sides), 3 * sides + fan + 1, 3 * sides + fan),
    ]
    faces = np.concatenate([np.stack(triangle, axis=1) for triangle in (*wall, *caps)])
    return _Shape(np.concatenate(vertices), np.concatenate(normals), faces)


#: The shapes a part may have.
SHAPES = {"box": _box, "pit": _pit, "cylinder": _cylinder}
