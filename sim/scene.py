"""Scenes: a symbolic state built in metres, with a style. Knows shapes, not renderers.

World frame: z up, x to the right and y to the top of a picture taken straight down, the grid
centred on the origin, its floor at z = 0, metres.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sim import models
from sim.camera import Camera, looking_pose, product
from sim.family import FamilyError, find_family
from sim.grid import CELL_SIZE, Grid, cell_centre, make_grid
from sim.models import MODELS, PIT_DEPTH, RIM, Parts, Point
from sim.states import (
    WALL_DOWN,
    WALL_LEFT,
    WALL_RIGHT,
    WALL_UP,
    Cell,
    State,
    all_cells,
)
from sim.style import Style, make_style

#: Room between the grid and each edge of the picture, as a share of the grid's side.
MARGIN = 0.08

#: What a pixel or a thing in a renderer's world shows. 0 is nothing; `OWN_ID` is any thing whose
#: role is a family's own.
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
OWN_ID = 10

#: Roles that a state is about.
FOREGROUND = ("hole", "goal", "robot", "wall", "printer", "table")

#: Roles of what no state is about and nobody reads back.
BACKGROUND = ("ground", "clutter")

# How far [cells] from the middle of an object's cell nothing may hang before it.
_CLEAR = 0.3
_CABLE_HEIGHTS = (0.45, 0.9)
_CABLE_TRIES = 8


@dataclass(frozen=True, slots=True)
class SceneObject:
    """A thing in the world: what it is, where it stands, how it looks.

    Attributes:
        name: unique in its scene.
        role: a key of `SEMANTIC_IDS`, or one of a family's own.
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
        return SEMANTIC_IDS.get(self.role, OWN_ID)


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

    `width` and `height` [px] are those of the style's camera.

    Raises:
        sim.style.StyleError: there is no such set of styles.
        sim.family.FamilyError: the state's family is not drawn.
    """
    put = find_family(state.family).build
    if put is None:
        raise FamilyError(f"{state.family} is not drawn by a renderer: bring pictures of your own")
    style = make_style(style_seed, styles)
    camera = make_camera(state.size, style, width, height, cell_size)
    build = SceneBuilder(state, style, cell_size)
    parts = models.ground(state.size, style.colours)
    build.thing("ground", "ground", (0, 0), parts, "ground", z=-PIT_DEPTH)
    put(build, state)
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
    seen = product(corners - matrix[:3, 3], matrix[:3, :3])
    spread = np.abs(seen[:, :2] / seen[:, 2:]).max(axis=0)  # of the picture at focal length 1
    focal = float(min(width / 2 / spread[0], height / 2 / spread[1])) * view.zoom
    return Camera(width, height, focal, focal, (width - 1) / 2, (height - 1) / 2, pose)


class SceneBuilder:
    """Collects the objects of one scene; places are given in cells from the grid's middle.

    Attributes:
        state: that is built.
        style: of the scene.
        size: side of the grid [cells].
        cell_size: side of a cell [m].
        objects: what there is so far.
        taken: cells with something at whose corners nothing else may lie.
        covered: cells of a table, which nothing that hangs may hide.
    """

    def __init__(self, state: State, style: Style, cell_size: float) -> None:
        self.state, self.style, self.size = state, style, state.size
        self.cell_size = cell_size
        self.objects: list[SceneObject] = []
        self.taken: set[Cell] = set()
        self.covered: frozenset[Cell] = frozenset()
        self._names: set[str] = set()
        self._parts: dict[str, Parts] = {}

    # --- What a family puts there ---

    def floor(
        self,
        colour: str = "concrete",
        contrast: float = 0.08,
        surface: str = "maze floor",
        without: frozenset[Cell] = frozenset(),
    ) -> None:
        """Lay a tile on every cell but those of `without`, which are to be holes.

        Args:
            colour: key of the style's colours.
            contrast: of the two shades of the tiles, 0 to 1.
            surface: key of the style's textures.
            without: cells.
        """
        # Two shades as on a chess board: cells can be counted.
        shades = [
            models.tile(self.style.colours[colour], shade, self.size)
            for shade in (1.0, 1.0 - contrast)
        ]
        for cell in all_cells(self.size):
            if cell not in without:
                name, parts = f"floor_{cell[0]}_{cell[1]}", shades[sum(cell) % 2]
                self.thing(name, "floor", self.place(cell), parts, surface)

    def rim(self, colour: str = "skirting") -> None:
        """Put a kerb around the grid, in a colour of the style's."""
        half, quarter = self.size / 2 + RIM / 2, math.pi / 2
        kerb = models.rim(self.size + 2 * RIM, self.style.colours[colour])
        places = ((0, half, 0.0), (0, -half, 0.0), (half, 0, quarter), (-half, 0, quarter))
        for i, (x, y, yaw) in enumerate(places):
            self.thing(f"rim_{i}", "ground", (x, y), kerb, yaw=yaw)

    def robot(self, cell: Cell) -> None:
        """Put the robot into a cell."""
        self._put("robot", cell, self._looks("robot"), self.style.robot_yaw)

    def goal(self, cell: Cell) -> None:
        """Put a goal, a green place to go to, into a cell."""
        self._put("goal", cell, self._looks("goal"), self.style.turns * math.pi / 2)

    def hole(self, cell: Cell) -> None:
        """Put a hole where `floor` left out its tile."""
        self.taken.add(cell)
        name = f"hole_{cell[0]}_{cell[1]}"
        self.thing(name, "hole", self.place(cell), self._looks("hole"), "hole")

    def printer(self, cell: Cell) -> None:
        """Put a printer into a cell."""
        self._put("printer", cell, self._looks("printer"), self.style.turns * math.pi / 2)

    def table(self, cells: frozenset[Cell]) -> None:
        """Put the table over a rectangle of 2 × 3 or 3 × 2 cells."""
        rows, columns = ([cell[i] for cell in cells] for i in (0, 1))
        corners = [self.place((pick(rows), pick(columns))) for pick in (min, max)]
        middle = (sum(x for x, _ in corners) / 2, sum(y for _, y in corners) / 2)
        along_x = len(set(columns)) > len(set(rows))
        self.taken |= cells
        self.covered |= cells
        yaw = 0.0 if along_x else math.pi / 2
        self.thing("table", "table", middle, self._looks("table"), "table", yaw)

    def walls(self, bits: Sequence[Sequence[int]]) -> None:
        """Put walls between cells, given by wall bits as `sim.Maze` has them."""
        height = self.style.wall_height
        parts = models.wall(self.model("wall"), height, self.style.colours)
        last, quarter = self.size - 1, math.pi / 2
        # Every inner wall is named by both its cells: take up and left of each, and the far border.
        for row, column in all_cells(self.size):
            x, y = self.place((row, column))
            sides = [(WALL_UP, x, y + 0.5, 0.0), (WALL_LEFT, x - 0.5, y, quarter)]
            if row == last:
                sides.append((WALL_DOWN, x, y - 0.5, 0.0))
            if column == last:
                sides.append((WALL_RIGHT, x + 0.5, y, quarter))
            for bit, wall_x, wall_y, yaw in sides:
                if bits[row][column] & bit:
                    name = f"wall_{row}_{column}_{bit}"
                    self.thing(name, "wall", (wall_x, wall_y), parts, "wall", yaw)
        self.taken |= set(all_cells(self.size))  # walls meet at the corners

    def own(self, role: str, cell: Cell, parts: Parts, yaw: float = 0.0) -> None:
        """Put a thing of a family's own into a cell.

        Args:
            role: what it is, by which `sim.readback.World` finds it again.
            cell: where its middle is.
            parts: its shapes, x to the right and y to the top of a picture from above, the floor at
                z = 0, all lengths in cells. It must stay in its cell.
            yaw: turn about z [rad], counter-clockwise seen from above.

        Raises:
            FamilyError: the role is one of `SEMANTIC_IDS`.
        """
        if role in SEMANTIC_IDS:
            raise FamilyError(f"{role!r} has a look already: give your own thing another role")
        self.taken.add(cell)
        self._put(role, cell, parts, yaw)

    # --- What that is made of ---

    def model(self, kind: str) -> int:
        """Return the number of the style's model of a kind of thing."""
        return self.style.models[kind] % MODELS[kind]

    def place(self, cell: Cell) -> tuple[float, float]:
        """Return the middle of a cell (x, y)."""
        return cell_centre(cell, self.size, 1.0)

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
        """Put a thing anywhere; see `SceneObject`. `surface` is a key of the style's textures."""
        scale = self.cell_size
        position = (place[0] * scale, place[1] * scale, z * scale)
        texture = self.style.textures[surface] if surface else ""
        self._names.add(name)
        self.objects.append(SceneObject(name, role, position, yaw, parts, texture))

    def _looks(self, kind: str) -> Parts:
        # One tuple for all of a kind: light and shade are computed once for it.
        if kind not in self._parts:
            model = getattr(models, kind)
            self._parts[kind] = model(self.model(kind), self.style.colours)
        return self._parts[kind]

    def _put(self, role: str, cell: Cell, parts: Parts, yaw: float) -> None:
        name = role if role not in self._names else f"{role}_{cell[0]}_{cell[1]}"
        self.thing(name, role, self.place(cell), parts, yaw=yaw)


def _clutter(build: SceneBuilder, camera: Camera) -> None:
    """Put things that mean nothing around the grid, on corners of free cells and above it."""
    if not build.style.clutter:
        return
    rng = random.Random(f"clutter/{build.style.seed}")
    half, size = build.size / 2, build.size
    corners = _free_corners(build)
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


def _free_corners(build: SceneBuilder) -> list[tuple[int, int]]:
    """Return the corners (row, column) between four cells where nothing stands or gapes."""
    return [
        (row, column)
        for row in range(1, build.size)
        for column in range(1, build.size)
        if not build.taken & {(row - r, column - c) for r in (0, 1) for c in (0, 1)}
    ]


def _cable(build: SceneBuilder, camera: Camera, rng: random.Random) -> None:
    """Hang a cable above the grid where it hides the middle of no object's cell."""
    half, cell_size = build.size / 2, build.cell_size
    spread = ("floor", "wall", "table", *BACKGROUND)
    marks = [thing.position for thing in build.objects if thing.role not in spread]
    marks += [(*cell_centre(c, build.size, cell_size), 0.0) for c in build.covered]
    pixels = camera.project(marks)
    clear = _CLEAR * camera.fx * cell_size / camera.depth_of([(0, 0, 0)])[0]
    for _ in range(_CABLE_TRIES):
        x, y, yaw = rng.uniform(-half, half), rng.uniform(-half, half), rng.uniform(0, math.pi)
        height = rng.uniform(*_CABLE_HEIGHTS)
        along = np.array([math.cos(yaw), math.sin(yaw), 0]) * build.size
        one, other = camera.project(np.add((x, y, height), ((-along), along)) * cell_size)
        u, v = (other - one) / math.hypot(*(other - one))
        away = np.abs(product(pixels - one, np.array([[-v], [u]])))
        if away.min() > clear:
            parts = models.cable(build.size * 2.0, height, build.style.colours)
            build.thing("cable", "clutter", (x, y), parts, yaw=yaw)
            return
