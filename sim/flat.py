"""Draws scenes as flat boards: colour fields, grid lines and icons, seen from straight above.

That is how the pictures of public planning benchmarks look. Everything lies on the floor, so a
picture has no perspective: the cells are squares of equal size, and their camera is orthographic.
What is drawn is a list of things with their places; the state is read back from the same list.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sim.camera import Camera, Frame
from sim.photo import develop
from sim.readback import Placed, ReadbackError, read_state
from sim.renderers import Renderer
from sim.scene import BACKGROUND, SEMANTIC_IDS, Scene, SceneObject, build_scene
from sim.states import TABLE_COLUMNS, TABLE_ROWS, State
from sim.style import Colour, Photo, Style

#: Samples along each side of a pixel; an odd number, so that one lies at a pixel's centre.
SUPERSAMPLING = 3

#: Pictures so large that their samples would take more are drawn with fewer.
MAX_BUFFER_SIDE = 4096

#: Height of the camera over the board, in board sides.
_HEIGHT = 2.0

# What lies over what.
_ORDER = ("floor", "hole", "table", "wall", "goal", "printer", "robot")

#: A printer that is carried is drawn smaller, over the robot.
_CARRIED = 0.55

Point = tuple[float, float]


class FlatError(ValueError):
    """A camera that does not look straight down, or a thing that has no icon."""


class FlatRenderer(Renderer):
    """Draws one scene after another; holds no library's resources."""

    name = "flat"

    def __init__(self) -> None:
        self._open = True

    def build(self, state: State, style_seed: int | None, size: int, styles: str) -> Scene:
        """Return a scene without clutter under an orthographic camera that fits the board."""
        scene = build_scene(state, style_seed, size, size, styles=styles)
        style = replace(scene.style, photo=_unsaturated(scene.style.photo))
        look = make_look(style, state.family)
        side = (state.size + 2 * look.margin) * scene.cell_size
        x, y = (shift * look.margin * scene.cell_size for shift in look.shift)
        camera = Camera.looking_at(
            (x, y, _HEIGHT * side), (x, y, 0), (0, 1, 0), size, size, size / side, "orthographic"
        )
        board = tuple(thing for thing in scene.objects if thing.role not in BACKGROUND)
        return replace(scene, style=style, objects=board, camera=camera)

    def render(
        self,
        scene: Scene,
        camera: Camera | None = None,
        depth: bool = False,
        semantic: bool = False,
    ) -> Frame:
        """Return what `camera` (default: the scene's own) sees of a scene.

        Equal arguments give equal bytes. Depth is the camera's height at every pixel.

        Raises:
            FlatError: the camera does not see the floor as squares that are upright in the
                picture, or there is a thing that no picture of this kind shows.
        """
        camera = scene.camera if camera is None else camera
        things = self._load(scene)
        look = make_look(scene.style, scene.state.family)
        pen = _Pen(camera, scene.cell_size, look.colours["ground"], semantic)
        _draw_board(pen, things, look, scene.cell_size)
        rgb = develop(pen.picture(), scene.style.photo, scene.style.seed or 0)
        height = camera.depth_of([(0, 0, 0)])[0]
        size = (camera.height, camera.width)
        return Frame(
            rgb,
            np.full(size, height, np.float32) if depth else None,
            pen.semantic() if semantic else None,
        )

    def read_state(self, scene: Scene) -> State:
        """Return the state that the things make up which are drawn for a scene.

        Raises:
            sim.readback.ReadbackError: they make no state.
        """
        return read_state(self._load(scene), scene.cell_size, scene.state.family)

    def close(self) -> None:
        """Draw no more: afterwards drawing raises OSError."""
        self._open = False

    def _load(self, scene: Scene) -> list[Placed]:
        """Return what is drawn for a scene, in the order in which it is drawn."""
        if not self._open:
            raise OSError("the renderer is closed")
        things = [_placed(t, scene.cell_size) for t in scene.objects if t.role not in BACKGROUND]
        for thing in things:
            if thing.role not in _ORDER:
                raise ReadbackError(f"a flat board has no icon for a {thing.role}")
        return sorted(things, key=lambda thing: (thing.low[2] > 0, _ORDER.index(thing.role)))


def _unsaturated(photo: Photo) -> Photo:
    """Return a photo that is no brighter than the board: pale lines stay apart from white."""
    brightest = max(1.0, *photo.exposure)
    red, green, blue = (gain / brightest for gain in photo.exposure)
    return replace(photo, exposure=(red, green, blue))


# --- Looks ---


@dataclass(frozen=True, slots=True)
class Look:
    """How the boards of one style look; lengths in cells.

    Attributes:
        margin: around the board.
        shift: of the board in the margin (x, y), -1 to 1.
        line: width of the grid lines, 0 for none.
        wall: width of walls.
        icon: size of icons.
        facing: quarter turns of a robot that points somewhere.
        colours: sRGB by what has them.
        icons: name of the icon by role.
        lines_over_table: whether the table shows the grid lines.
        strokes: lines that every floor tile shows, as (x, y, x, y), -0.5 to 0.5.
        blob: radii of a hole with a wavy edge, at equal angles.
    """

    margin: float
    shift: Point
    line: float
    wall: float
    icon: float
    facing: int
    colours: Mapping[str, Colour]
    icons: Mapping[str, str]
    lines_over_table: bool
    strokes: tuple[tuple[float, float, float, float], ...]
    blob: tuple[float, ...]


_ROBOTS = ("figure", "arrow", "disc", "face")
# A disc is a goal only where no hole and no robot is blue.
_GOALS = {"frozenlake": ("gift", "flag", "star"), "maze": ("flag", "disc goal", "star", "gift")}

_PLAIN_ICONS = {
    "frozenlake": {"robot": "figure", "goal": "gift", "hole": "blob", "printer": "laser"},
    "maze": {"robot": "disc", "goal": "flag", "hole": "blob", "printer": "laser"},
    "minibehaviour": {"robot": "arrow", "goal": "flag", "hole": "blob", "printer": "laser"},
}
_PLAIN_BLOB = (0.42, 0.40, 0.43, 0.41, 0.42, 0.43, 0.40, 0.41, 0.43, 0.39, 0.42, 0.41)
_PLAIN_STROKES = ((-0.4, -0.3, -0.1, -0.2), (0.05, -0.35, 0.3, -0.25), (-0.2, 0.1, 0.1, 0.2))


def make_look(style: Style, family: str) -> Look:
    """Return how boards of a family look in a style, deterministic in the style's seed and set.

    The plain look is close to the benchmarks' own. Others have other colours, line widths, margins
    and icons; what a thing is can always be told from its shape, and its place from its cell.
    """
    icons = _PLAIN_ICONS.get(family, _PLAIN_ICONS["frozenlake"])
    office = family == "minibehaviour"
    if style.styles == "plain":
        return Look(
            margin=1.0 if office else 0.0,
            shift=(0.0, 0.0),
            line={"frozenlake": 0.03, "minibehaviour": 0.03}.get(family, 0.0),
            wall=0.05,
            icon=0.72,
            facing=2,
            colours=_colours(random.Random(0), family, dark=office, wild=0.0),
            icons=icons,
            lines_over_table=True,
            strokes=_PLAIN_STROKES if family == "frozenlake" else (),
            blob=_PLAIN_BLOB,
        )
    # Seeding by text goes through SHA-512: independent streams for neighbouring seeds.
    rng = random.Random(f"flat/{style.styles}/{style.seed}")
    varied = style.styles == "varied"
    dark = rng.random() < (0.5 if office else 0.2)
    margin = rng.choice((0.0, rng.uniform(0, 0.5), 1.0 if office else rng.uniform(0, 1)))
    shift = (rng.uniform(-1, 1), rng.uniform(-1, 1)) if varied else (0.0, 0.0)
    line = rng.uniform(0.015, 0.07)
    thin, thick = rng.uniform(0.04, 0.09), rng.uniform(0.12, 0.28)
    goals = _GOALS.get(family, _GOALS["frozenlake"])
    return Look(
        margin=margin,
        shift=shift,
        # Without lines, cells could not be counted where there are no walls.
        line=0.0 if family == "maze" and rng.random() < 0.5 else line,
        wall=rng.choice((thin, thick)),
        icon=rng.uniform(0.55, 0.85),
        facing=rng.randrange(4),
        colours=_colours(rng, family, dark, wild=1.0 if varied else 0.5),
        icons={
            "robot": rng.choice((icons["robot"], rng.choice(_ROBOTS))),
            "goal": rng.choice((icons["goal"], rng.choice(goals))),
            "hole": rng.choice(("blob", "blob", "round hole", "square hole")),
            "printer": rng.choice(("laser", "copier")),
        },
        lines_over_table=rng.random() < 0.5,
        strokes=_strokes(rng) if family == "frozenlake" and rng.random() < 0.6 else (),
        blob=tuple(rng.uniform(0.37, 0.45) for _ in range(12)),
    )


def _strokes(rng: random.Random) -> tuple[tuple[float, float, float, float], ...]:
    slope = rng.uniform(-0.6, 0.6)
    strokes = []
    for _ in range(rng.randrange(3, 7)):
        x, y, length = rng.uniform(-0.45, 0.2), rng.uniform(-0.35, 0.35), rng.uniform(0.1, 0.25)
        strokes.append((x, y, x + length, y + slope * length))
    return tuple(strokes)


def _colours(rng: random.Random, family: str, dark: bool, wild: float) -> dict[str, Colour]:
    """Return the colours of a look; `wild` is how far from the benchmarks' they may be, 0 to 1."""

    def pick(
        hue: Point, saturation: Point, value: Point, other_hue: float = 0.0
    ) -> tuple[float, float, float]:
        def within(low_high: Point) -> float:
            low, high = low_high
            return (low + high) / 2 + (rng.random() - 0.5) * (high - low) * min(1.0, 2 * wild)

        turned = rng.random() < other_hue * wild
        return (rng.uniform(0, 360) if turned else within(hue), within(saturation), within(value))

    lake = family == "frozenlake"
    if dark:
        floor = pick((200, 260), (0.0, 0.4), (0.0, 0.14), 0.5)
        line = pick((200, 260), (0.0, 0.2), (0.26, 0.44))
        wall = pick((40, 220), (0.0, 0.2), (0.78, 0.98))
        hole = pick((188, 222), (0.65, 0.95), (0.75, 0.95))
        printer = pick((0, 360), (0.0, 0.05), (0.88, 1.0))
        table = pick((24, 40), (0.36, 0.58), (0.56, 0.76))
    else:
        floor = pick((196, 224), (0.0, 0.16) if lake else (0.0, 0.05), (0.95, 1.0), 0.5)
        line = pick((205, 225), (0.1, 0.4) if lake else (0.0, 0.1), (0.66, 0.84), 0.3)
        wall = pick((0, 360), (0.0, 0.5 * wild), (0.0, 0.28))
        water = pick((190, 214), (0.6, 0.9), (0.80, 0.98))
        deep = pick((210, 250), (0.2, 0.9), (0.10, 0.32))
        hole = deep if rng.random() < 0.35 * wild else water
        printer = pick((200, 260), (0.0, 0.3), (0.10, 0.26))
        table = pick((20, 38), (0.45, 0.7), (0.40, 0.66))
    grey = pick((0, 360), (0.0, 0.2 * wild), (0.32, 0.46), 0.5)
    ground = grey if family == "minibehaviour" or rng.random() < 0.7 else floor
    # Warm to green: a blue one would be the goal's disc.
    warm = pick((-10, 16), (0.85, 1.0), (0.85, 1.0))
    robots = {"maze": pick((110, 136), (0.8, 1.0), (0.50, 0.66)), "minibehaviour": warm}
    robot = robots.get(family, pick((350, 366), (0.7, 0.9), (0.7, 0.9)))
    if rng.random() < 0.6 * wild:
        robot = pick((-10, 140), (0.8, 1.0), (0.60, 0.95))
    goals = {"maze": pick((340, 356), (0.75, 0.95), (0.75, 0.95))}
    goal = goals.get(family, pick((22, 36), (0.75, 0.95), (0.62, 0.90)))
    if rng.random() < 0.6 * wild:
        goal = pick((290, 420), (0.7, 1.0), (0.6, 0.95))
    chosen = {
        "floor": floor,
        "line": line,
        "wall": wall,
        "hole": hole,
        "printer": printer,
        "table": table,
        "ground": ground,
        "robot": robot,
        "goal": goal,
        "disc goal": pick((212, 240), (0.85, 1.0), (0.75, 1.0)),
        "box": pick((205, 235), (0.3, 0.6), (0.28, 0.45), 0.4),
        "skin": pick((22, 32), (0.25, 0.5), (0.75, 0.98)),
    }
    colours = {name: _rgb(*hsv) for name, hsv in chosen.items()}
    colours["outline"] = (235, 235, 235) if dark else (40, 36, 44)
    # What is on a printer stands out against it, and eyes against any face.
    colours["sheet"] = (30, 30, 30) if dark else (250, 250, 250)
    colours |= {"paper": (250, 250, 250), "ink": (20, 20, 24)}
    for name, of, share in (
        ("stroke", "line", 0.5),
        ("rim", "hole", -0.45),
        ("shine", "hole", 0.5),
    ):
        towards = (255, 255, 255) if share > 0 else (0, 0, 0)
        colours[name] = _mixed(colours[of], towards, abs(share))
    if lake and not dark:
        colours["stroke"] = _mixed(colours["line"], colours["floor"], 0.45)
    return colours


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    # As colorsys has it, without the float that hits 360.
    sector, part = divmod(hue % 360 / 60, 1)
    low = value * (1 - saturation)
    down, up = value * (1 - saturation * part), value * (1 - saturation * (1 - part))
    red, green, blue = (
        (value, up, low),
        (down, value, low),
        (low, value, up),
        (low, down, value),
        (up, low, value),
        (value, low, down),
    )[int(sector) % 6]
    return (round(red * 255), round(green * 255), round(blue * 255))


def _mixed(one: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return (red, green, blue)


# --- Where things are ---


def _placed(thing: SceneObject, cell_size: float) -> Placed:
    """Return what is drawn for an object: the cells, or for a wall the edge, that it stands on."""
    along, across = 0.5, 0.5
    if thing.role == "wall":
        across = 0.0
    elif thing.role == "table":
        along, across = TABLE_COLUMNS / 2, TABLE_ROWS / 2
    if round(thing.yaw / (math.pi / 2)) % 2 and thing.role in ("wall", "table"):
        along, across = across, along
    x, y, z = thing.position
    reach_x, reach_y = along * cell_size, across * cell_size
    return Placed(
        thing.role, (x, y, z), (x - reach_x, y - reach_y, z), (x + reach_x, y + reach_y, z)
    )


# --- Drawing ---


class _Pen:
    """Draws shapes on the floor of the world, given in metres, into a picture of samples.

    Attributes:
        role: of what is drawn next; "" for what leaves a semantic picture as it is.
        pixel: side of a pixel [m].
    """

    def __init__(self, camera: Camera, cell_size: float, ground: Colour, semantic: bool) -> None:
        corners = np.array([(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0)]) * cell_size
        origin, *others = camera.project(corners)
        scale = (others[0][0] - origin[0]) / cell_size
        squares = np.array([(1, 0), (0, -1), (1, -1)]) * scale * cell_size
        if not scale > 0 or not np.allclose(others - origin, squares, atol=1e-3):
            raise FlatError(
                "a flat board is seen from straight above, its rows level: by a camera "
                "that `FlatRenderer.build` gives to a scene, or one like it"
            )
        samples = SUPERSAMPLING
        while samples > 1 and max(camera.width, camera.height) * samples > MAX_BUFFER_SIDE:
            samples -= 2
        self._samples = samples
        # From here on in samples, the edge of the picture at 0.
        self._scale = float(scale) * samples
        self._u, self._v = ((float(value) + 0.5) * samples for value in origin)
        self.pixel = 1 / float(scale)
        size = (camera.width * samples, camera.height * samples)
        self._image = Image.new("RGB", size, ground)
        self._rgb = ImageDraw.Draw(self._image)
        self._ids = Image.new("L", size if semantic else (1, 1), SEMANTIC_IDS["ground"])
        self._id = ImageDraw.Draw(self._ids) if semantic else None
        self.role = ""

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        """Fill a polygon of points (x, y)."""
        at = [self._at(point) for point in points]
        self._rgb.polygon(at, colour)
        if self._id and self.role:
            self._id.polygon(at, SEMANTIC_IDS[self.role])

    def rectangle(self, low: Point, high: Point, colour: Colour) -> None:
        """Fill a rectangle between its lower left and upper right corner."""
        (left, bottom), (right, top) = self._at(low), self._at(high)
        # The samples whose centres lie inside.
        box = (math.ceil(left), math.ceil(top), math.ceil(right) - 1, math.ceil(bottom) - 1)
        if box[0] > box[2] or box[1] > box[3]:
            return
        self._rgb.rectangle(box, colour)
        if self._id and self.role:
            self._id.rectangle(box, SEMANTIC_IDS[self.role])

    def disc(self, centre: Point, radius: float, colour: Colour) -> None:
        """Fill a circle."""
        x, y = self._at(centre)
        reach = radius * self._scale
        box = (x - reach, y - reach, x + reach, y + reach)
        self._rgb.ellipse(box, colour)
        if self._id and self.role:
            self._id.ellipse(box, SEMANTIC_IDS[self.role])

    def picture(self) -> Image.Image:
        """Return the picture, samples averaged."""
        return self._image.reduce(self._samples) if self._samples > 1 else self._image

    def semantic(self) -> NDArray[np.uint16]:
        """Return what the samples at the pixels' centres show."""
        every = slice(self._samples // 2, None, self._samples)
        return np.asarray(self._ids)[every, every].astype(np.uint16)

    def _at(self, point: Point) -> Point:
        # Pillow has the centre of its first pixel at 0.
        x, y = point
        return (self._u + x * self._scale - 0.5, self._v - y * self._scale - 0.5)


class _Icon:
    """Draws shapes around the middle of a thing; lengths are shares of the icon's side, y up."""

    def __init__(self, pen: _Pen, thing: Placed, side: float) -> None:
        self._pen, self._side = pen, side
        self._x, self._y = thing.position[:2]

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        self._pen.polygon([self._at(point) for point in points], colour)

    def rectangle(self, low: Point, high: Point, colour: Colour) -> None:
        self._pen.rectangle(self._at(low), self._at(high), colour)

    def disc(self, centre: Point, radius: float, colour: Colour) -> None:
        self._pen.disc(self._at(centre), radius * self._side, colour)

    def stroke(self, start: Point, end: Point, width: float, colour: Colour) -> None:
        """Draw a straight line that is `width` thick."""
        (x, y), (to_x, to_y) = start, end
        share = width / 2 / math.dist(start, end)
        dx, dy = (y - to_y) * share, (to_x - x) * share
        self.polygon(
            [(x + dx, y + dy), (to_x + dx, to_y + dy), (to_x - dx, to_y - dy), (x - dx, y - dy)],
            colour,
        )

    def _at(self, point: Point) -> Point:
        return (self._x + point[0] * self._side, self._y + point[1] * self._side)


def _draw_board(pen: _Pen, things: Sequence[Placed], look: Look, cell_size: float) -> None:
    """Draw fields, table, grid lines, then everything that stands on them."""
    fields = [thing for thing in things if thing.role in ("floor", "hole")]
    tables = [thing for thing in things if thing.role == "table"]
    for thing in fields:
        pen.role = "floor"
        pen.rectangle(thing.low[:2], thing.high[:2], look.colours["floor"])
        icon = _Icon(pen, thing, cell_size)
        for x, y, to_x, to_y in look.strokes:
            icon.stroke((x, y), (to_x, to_y), 0.05, look.colours["stroke"])
    if look.lines_over_table:
        _draw_tables(pen, tables, look)
    if look.line:
        pen.role = ""
        _draw_lines(pen, fields, look, cell_size)
    if not look.lines_over_table:
        _draw_tables(pen, tables, look)
    robots = {thing.position[:2] for thing in things if thing.role == "robot"}
    for thing in things:
        pen.role = thing.role
        if thing.role == "wall":
            _draw_wall(pen, thing, look, cell_size)
        elif thing.role in look.icons:
            side = cell_size if thing.role == "hole" else cell_size * look.icon
            if thing.role == "printer" and thing.position[:2] in robots:
                side *= _CARRIED
            _ICONS[look.icons[thing.role]](_Icon(pen, thing, side), look)


def _draw_tables(pen: _Pen, tables: Sequence[Placed], look: Look) -> None:
    for thing in tables:
        pen.role = "table"
        pen.rectangle(thing.low[:2], thing.high[:2], look.colours["table"])


def _draw_lines(pen: _Pen, fields: Sequence[Placed], look: Look, cell_size: float) -> None:
    """Draw the lines between the cells and around them, each at least one pixel wide."""
    half = max(look.line * cell_size, pen.pixel) / 2
    left, bottom = (min(thing.low[axis] for thing in fields) for axis in (0, 1))
    right, top = (max(thing.high[axis] for thing in fields) for axis in (0, 1))
    for i in range(round((right - left) / cell_size) + 1):
        x, y = left + i * cell_size, bottom + i * cell_size
        for low, high in (((x, bottom), (x, top)), ((left, y), (right, y))):
            corners = (low[0] - half, low[1] - half), (high[0] + half, high[1] + half)
            pen.rectangle(*corners, look.colours["line"])


def _draw_wall(pen: _Pen, thing: Placed, look: Look, cell_size: float) -> None:
    # Longer by its width, so that corners are closed.
    half = max(look.wall * cell_size, pen.pixel) / 2
    low = (thing.low[0] - half, thing.low[1] - half)
    pen.rectangle(low, (thing.high[0] + half, thing.high[1] + half), look.colours["wall"])


# --- Icons ---


def _blob(icon: _Icon, look: Look) -> None:
    edge = [
        (radius * math.cos(angle), radius * math.sin(angle))
        for radius, angle in zip(
            look.blob, np.arange(len(look.blob)) * math.tau / len(look.blob), strict=True
        )
    ]
    icon.polygon(edge, look.colours["rim"])
    icon.polygon([(0.86 * x, 0.86 * y - 0.03) for x, y in edge], look.colours["hole"])
    icon.stroke((-0.2, 0.02), (0.02, 0.14), 0.06, look.colours["shine"])
    icon.stroke((-0.08, -0.18), (0.2, -0.03), 0.06, look.colours["shine"])


def _round_hole(icon: _Icon, look: Look) -> None:
    icon.disc((0, 0), 0.44, look.colours["rim"])
    icon.disc((0, 0), 0.38, look.colours["hole"])


def _square_hole(icon: _Icon, look: Look) -> None:
    icon.rectangle((-0.47, -0.47), (0.47, 0.47), look.colours["rim"])
    icon.rectangle((-0.42, -0.42), (0.42, 0.42), look.colours["hole"])


def _figure(icon: _Icon, look: Look) -> None:
    """Draw a person with a pointed hat."""
    body, outline = look.colours["robot"], look.colours["outline"]
    icon.polygon([(-0.28, -0.42), (-0.17, 0.06), (0.17, 0.06), (0.28, -0.42)], outline)
    icon.polygon([(-0.23, -0.38), (-0.14, 0.04), (0.14, 0.04), (0.23, -0.38)], body)
    icon.rectangle((-0.2, -0.48), (-0.04, -0.38), outline)
    icon.rectangle((0.04, -0.48), (0.2, -0.38), outline)
    icon.disc((0, 0.1), 0.19, outline)
    icon.disc((0, 0.1), 0.16, look.colours["skin"])
    icon.polygon([(-0.25, 0.14), (0, 0.5), (0.25, 0.14)], outline)
    icon.polygon([(-0.18, 0.17), (0, 0.44), (0.18, 0.17)], body)


def _arrow(icon: _Icon, look: Look) -> None:
    """Draw a triangle that points where the robot heads."""
    for scale, colour in ((1.0, "outline"), (0.82, "robot")):
        corners = ((0.46, 0.0), (-0.38, 0.4), (-0.38, -0.4))
        points = [_quarter((0.04 + scale * (x - 0.04), scale * y), look.facing) for x, y in corners]
        icon.polygon(points, look.colours[colour])


def _disc(icon: _Icon, look: Look) -> None:
    icon.disc((0, 0), 0.36, look.colours["robot"])


def _face(icon: _Icon, look: Look) -> None:
    """Draw a robot's head: a box with two eyes and an antenna."""
    body, outline = look.colours["robot"], look.colours["outline"]
    icon.stroke((0, 0.2), (0, 0.46), 0.06, outline)
    icon.disc((0, 0.44), 0.07, body)
    icon.rectangle((-0.4, -0.4), (0.4, 0.28), outline)
    icon.rectangle((-0.34, -0.34), (0.34, 0.22), body)
    for x in (-0.16, 0.16):
        icon.disc((x, 0.02), 0.09, look.colours["paper"])
        icon.disc((x, 0.02), 0.045, look.colours["ink"])
    icon.rectangle((-0.18, -0.24), (0.18, -0.17), look.colours["ink"])


def _gift(icon: _Icon, look: Look) -> None:
    """Draw a box with a ribbon and its bow."""
    ribbon, outline = look.colours["goal"], look.colours["outline"]
    for x in (-0.14, 0.14):
        icon.disc((x, 0.34), 0.13, outline)
        icon.disc((x, 0.34), 0.095, ribbon)
    icon.rectangle((-0.4, -0.46), (0.4, 0.16), outline)
    icon.rectangle((-0.46, 0.04), (0.46, 0.3), outline)
    icon.rectangle((-0.36, -0.42), (0.36, 0.06), look.colours["box"])
    icon.rectangle((-0.42, 0.08), (0.42, 0.26), look.colours["box"])
    icon.rectangle((-0.08, -0.42), (0.08, 0.26), ribbon)
    icon.rectangle((-0.36, -0.2), (0.36, -0.09), ribbon)


def _flag(icon: _Icon, look: Look) -> None:
    """Draw a pennant on a pole."""
    outline = look.colours["outline"]
    icon.rectangle((-0.26, -0.46), (-0.17, 0.46), outline)
    icon.rectangle((-0.38, -0.48), (-0.05, -0.41), outline)
    icon.polygon([(-0.18, 0.47), (0.42, 0.22), (-0.18, -0.04)], look.colours["goal"])


def _star(icon: _Icon, look: Look) -> None:
    for scale, colour in ((1.0, "outline"), (0.8, "goal")):
        points = []
        for i in range(10):
            radius, angle = scale * (0.48 if i % 2 == 0 else 0.22), math.pi * (0.5 + i / 5)
            points.append((radius * math.cos(angle), radius * math.sin(angle)))
        icon.polygon(points, look.colours[colour])


def _disc_goal(icon: _Icon, look: Look) -> None:
    icon.disc((0, 0), 0.36, look.colours["disc goal"])


def _laser(icon: _Icon, look: Look) -> None:
    """Draw a printer from the front: paper above, a box with a slot, paper below."""
    body, paper = look.colours["printer"], look.colours["sheet"]
    icon.rectangle((-0.26, 0.0), (0.26, 0.46), body)
    icon.rectangle((-0.2, 0.1), (0.2, 0.4), paper)
    icon.rectangle((-0.46, -0.3), (0.46, 0.16), body)
    icon.rectangle((-0.32, -0.14), (0.32, -0.06), paper)
    icon.rectangle((-0.26, -0.46), (0.26, -0.1), body)
    icon.rectangle((-0.2, -0.4), (0.2, -0.14), paper)


def _copier(icon: _Icon, look: Look) -> None:
    """Draw a printer from above: a box with a lid, keys and a tray."""
    body, paper = look.colours["printer"], look.colours["sheet"]
    icon.rectangle((-0.46, -0.32), (0.46, 0.44), body)
    icon.rectangle((-0.38, -0.06), (0.2, 0.36), paper)
    for y in (0.28, 0.14, 0.0):
        icon.disc((0.33, y), 0.05, paper)
    icon.rectangle((-0.3, -0.48), (0.3, -0.26), body)
    icon.rectangle((-0.24, -0.44), (0.24, -0.18), paper)


def _quarter(point: Point, turns: int) -> Point:
    x, y = point
    for _ in range(turns % 4):
        x, y = -y, x
    return (x, y)


_ICONS: dict[str, Callable[[_Icon, Look], None]] = {
    "blob": _blob,
    "round hole": _round_hole,
    "square hole": _square_hole,
    "figure": _figure,
    "arrow": _arrow,
    "disc": _disc,
    "face": _face,
    "gift": _gift,
    "flag": _flag,
    "star": _star,
    "disc goal": _disc_goal,
    "laser": _laser,
    "copier": _copier,
}
