"""Scenes: a symbolic state built in metres, with a style. Knows shapes, not renderers.

World frame: z up, x to the right and y to the top of a picture taken straight down, the grid
centred on the origin, its floor at z = 0, metres.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np

from sim import models
from sim.camera import Camera, looking_pose
from sim.grid import CELL_SIZE, Grid, cell_centre, make_grid
from sim.models import MODELS, PIT_DEPTH, RIM, Parts, Point
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
from sim.style import Style, make_style

#: Room between the grid and each edge of the picture, as a share of the grid's side.
MARGIN = 0.08

#: What a pixel or a thing in a renderer's world shows. 0 is nothing.
SEMANTIC_IDS: dict[str, int] = {
    "ground": 1,
    "floor": 2,
    "hole": 3,
    "goal": 4,
    "robot": 5,
    "wall": 6,
    "printer": 7,
    "table": 8,
    "clutter": 9,
}

#: Roles that a state is about.
FOREGROUND = ("hole", "goal", "robot", "wall", "printer", "table")

# How far [cells] from the middle of an object's cell nothing may hang before it.
_CLEAR = 0.3
_CABLE_HEIGHTS = (0.45, 0.9)
_CABLE_TRIES = 8


@dataclass(frozen=True, slots=True)
class SceneObject:
    """A thing in the world: what it is, where it stands, how it looks.

    Attributes:
        name: unique in its scene.
        role: a key of `SEMANTIC_IDS`.
        position: of its frame's origin in the world [m].
        yaw: turn about z [rad], counter-clockwise seen from above; 0 heads along +x.
        parts: its shapes [cells].
        texture: of all its surfaces, a key of `sim.textures.TEXTURES`; "" for none.
    """

    name: str
    role: str
    position: Point
    yaw: float
    parts: Parts
    texture: str = ""

    @property
    def semantic_id(self) -> int:
        """The role's number in semantic pictures."""
        return SEMANTIC_IDS[self.role]


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
    styles: str = "varied",
) -> Scene:
    """Build a state in metres, deterministic in its arguments.

    `width` and `height` [px] are those of the style's camera. Raises sim.style.StyleError.
    """
    style = make_style(style_seed, styles)
    camera = make_camera(state.size, style, width, height, cell_size)
    build = _Builder(state, style, cell_size)
    parts = models.ground(state.size, style.colours)
    build.thing("ground", "ground", (0, 0), parts, "ground", z=-PIT_DEPTH)
    if isinstance(state, FrozenLake):
        _lake(build, state)
    elif isinstance(state, Maze):
        _maze(build, state)
    else:
        _office(build, state)
    _clutter(build, camera)
    return Scene(state, style, cell_size, tuple(build.objects), camera)


def grid_of(scene: Scene) -> Grid:
    """Return the maps between the scene's cells, the world and its camera's picture."""
    return make_grid(scene.state.size, scene.camera, scene.cell_size)


def make_camera(
    size: int, style: Style, width: int, height: int, cell_size: float = CELL_SIZE
) -> Camera:
    """Return the style's camera over a grid of `size` × `size` cells.

    The focal length is such that the grid and its `MARGIN` just fit into the picture, times the
    view's zoom.
    """
    view, side = style.view, size * cell_size
    target = np.array([*view.offset, 0.0]) * side
    sideways = math.sin(view.tilt)
    back = (
        sideways * math.cos(view.azimuth),
        sideways * math.sin(view.azimuth),
        math.cos(view.tilt),
    )
    up = (-math.sin(view.roll), math.cos(view.roll), 0.0)
    eye = target + view.distance * side * np.array(back)
    pose = looking_pose(eye.tolist(), target.tolist(), up)
    matrix = np.array(pose)
    reach = side / 2 * (1 + 2 * MARGIN)
    corners = np.array([(x, y, 0.0) for x in (-reach, reach) for y in (-reach, reach)])
    seen = (corners - matrix[:3, 3]) @ matrix[:3, :3]
    spread = np.abs(seen[:, :2] / seen[:, 2:]).max(axis=0)  # of the picture at focal length 1
    focal = float(min(width / 2 / spread[0], height / 2 / spread[1])) * view.zoom
    return Camera(width, height, focal, focal, (width - 1) / 2, (height - 1) / 2, pose)


class _Builder:
    """Collects the objects of one scene; places are given in cells from the grid's middle."""

    def __init__(self, state: State, style: Style, cell_size: float) -> None:
        self.state, self.style, self.size = state, style, state.size
        self.objects: list[SceneObject] = []
        self.cell_size = cell_size

    def model(self, kind: str) -> int:
        """Return the number of the style's model of a kind of thing."""
        return self.style.models[kind] % MODELS[kind]

    def thing(
        self,
        name: str,
        role: str,
        place: tuple[float, float],
        parts: Parts,
        surface: str = "",
        yaw: float = 0.0,
        z: float = 0.0,
    ) -> None:
        scale = self.cell_size
        position = (place[0] * scale, place[1] * scale, z * scale)
        texture = self.style.textures[surface] if surface else ""
        self.objects.append(SceneObject(name, role, position, yaw, parts, texture))

    def place(self, cell: Cell) -> tuple[float, float]:
        return cell_centre(cell, self.size, 1.0)

    def floor(self, colour: str, contrast: float, surface: str, without: frozenset[Cell]) -> None:
        # Two shades as on a chess board: cells can be counted.
        shades = [
            models.tile(self.style.colours[colour], shade, self.size)
            for shade in (1.0, 1.0 - contrast)
        ]
        for row in range(self.size):
            for column in range(self.size):
                if (row, column) not in without:
                    parts = shades[(row + column) % 2]
                    name = f"floor_{row}_{column}"
                    self.thing(name, "floor", self.place((row, column)), parts, surface)

    def rim(self, colour: str) -> None:
        half, quarter = self.size / 2 + RIM / 2, math.pi / 2
        kerb = models.rim(self.size + 2 * RIM, self.style.colours[colour])
        places = ((0, half, 0.0), (0, -half, 0.0), (half, 0, quarter), (-half, 0, quarter))
        for i, (x, y, yaw) in enumerate(places):
            self.thing(f"rim_{i}", "ground", (x, y), kerb, yaw=yaw)

    def robot(self, cell: Cell) -> None:
        parts = models.robot(self.model("robot"), self.style.colours)
        self.thing("robot", "robot", self.place(cell), parts, yaw=self.style.robot_yaw)

    def goal(self, cell: Cell) -> None:
        parts = models.goal(self.model("goal"), self.style.colours)
        self.thing("goal", "goal", self.place(cell), parts, yaw=self.style.turns * math.pi / 2)


def _lake(build: _Builder, state: FrozenLake) -> None:
    build.rim("snow")
    build.floor("ice", 0.12, "lake floor", state.holes)
    hole = models.hole(build.model("hole"), build.style.colours)
    for cell in sorted(state.holes):
        build.thing(f"hole_{cell[0]}_{cell[1]}", "hole", build.place(cell), hole, "hole")
    build.goal(state.goal)
    build.robot(state.start)


def _maze(build: _Builder, state: Maze) -> None:
    build.floor("concrete", 0.08, "maze floor", frozenset())
    parts = models.wall(build.model("wall"), build.style.wall_height, build.style.colours)
    size, quarter = state.size, math.pi / 2
    # Every inner wall is named by both its cells: take up and left of each, and the far border.
    for row in range(size):
        for column in range(size):
            bits = state.walls[row][column]
            x, y = build.place((row, column))
            sides = [(WALL_UP, x, y + 0.5, 0.0), (WALL_LEFT, x - 0.5, y, quarter)]
            if row == size - 1:
                sides.append((WALL_DOWN, x, y - 0.5, 0.0))
            if column == size - 1:
                sides.append((WALL_RIGHT, x + 0.5, y, quarter))
            for bit, wall_x, wall_y, yaw in sides:
                if bits & bit:
                    name = f"wall_{row}_{column}_{bit}"
                    build.thing(name, "wall", (wall_x, wall_y), parts, "wall", yaw)
    build.goal(state.goal)
    build.robot(state.start)


def _office(build: _Builder, state: MiniBehaviour) -> None:
    build.rim("skirting")
    build.floor("carpet", 0.10, "office floor", frozenset())
    rows, columns = ([cell[i] for cell in state.table] for i in (0, 1))
    corners = [build.place((pick(rows), pick(columns))) for pick in (min, max)]
    middle = (sum(x for x, _ in corners) / 2, sum(y for _, y in corners) / 2)
    along_x = len(set(columns)) > len(set(rows))
    parts = models.table(build.model("table"), build.style.colours)
    build.thing("table", "table", middle, parts, "table", 0.0 if along_x else math.pi / 2)
    parts = models.printer(build.model("printer"), build.style.colours)
    yaw = build.style.turns * math.pi / 2
    build.thing("printer", "printer", build.place(state.printer), parts, yaw=yaw)
    build.robot(state.agent)


def _clutter(build: _Builder, camera: Camera) -> None:
    """Put things that mean nothing around the grid, on corners of free cells and above it."""
    if not build.style.clutter:
        return
    rng = random.Random(f"clutter/{build.style.seed}")
    half, size = build.size / 2, build.size
    corners = _free_corners(build.state)
    for i in range(build.style.clutter):
        parts = models.clutter(rng.randrange(MODELS["clutter"]), build.style.colours)
        if corners and rng.random() < 0.4:
            row, column = corners.pop(rng.randrange(len(corners)))
            place = (column - half, half - row)
            z = 0.0
        else:
            along, away = rng.uniform(-half, half), half + RIM + rng.uniform(0.3, 0.5 + 0.1 * size)
            place = models.turned((along, away), rng.randrange(4) * math.pi / 2)
            z = -PIT_DEPTH
        yaw = rng.uniform(-math.pi, math.pi)
        build.thing(f"clutter_{i}", "clutter", place, parts, yaw=yaw, z=z)
    if rng.random() < 0.3:
        _cable(build, camera, rng)


def _free_corners(state: State) -> list[tuple[int, int]]:
    """Return the corners (row, column) between four cells where nothing stands or gapes."""
    if isinstance(state, Maze):
        return []  # walls meet there
    taken = state.holes if isinstance(state, FrozenLake) else state.table
    return [
        (row, column)
        for row in range(1, state.size)
        for column in range(1, state.size)
        if not taken & {(row - r, column - c) for r in (0, 1) for c in (0, 1)}
    ]


def _cable(build: _Builder, camera: Camera, rng: random.Random) -> None:
    """Hang a cable above the grid where it hides the middle of no object's cell."""
    half, cell_size = build.size / 2, build.cell_size
    marks = [t.position for t in build.objects if t.role in ("hole", "goal", "robot", "printer")]
    if isinstance(build.state, MiniBehaviour):
        marks += [(*cell_centre(c, build.size, cell_size), 0.0) for c in build.state.table]
    pixels = camera.project(marks)
    clear = _CLEAR * camera.fx * cell_size / camera.depth_of([(0, 0, 0)])[0]
    for _ in range(_CABLE_TRIES):
        x, y, yaw = rng.uniform(-half, half), rng.uniform(-half, half), rng.uniform(0, math.pi)
        height = rng.uniform(*_CABLE_HEIGHTS)
        along = np.array([math.cos(yaw), math.sin(yaw), 0]) * build.size
        one, other = camera.project(np.add((x, y, height), ((-along), along)) * cell_size)
        ahead = (other - one) / np.linalg.norm(other - one)
        away = np.abs((pixels - one) @ (-ahead[1], ahead[0]))
        if away.min() > clear:
            parts = models.cable(build.size * 2.0, height, build.style.colours)
            build.thing("cable", "clutter", (x, y), parts, yaw=yaw)
            return
