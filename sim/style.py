"""Styles: all that may differ between two pictures of one state, drawn from one seed.

A set of styles says how much may differ. `plain` has one style, with nothing drawn. `overhead` is a
camera fixed above a work area: close to straight down, little noise, no clutter. `varied` is
everything a camera on a robot meets: tilted up to 45°, off the middle, any light and exposure,
noise, blur and clutter.
"""

from __future__ import annotations

import colorsys
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Colour = tuple[int, int, int]
Point = tuple[float, float, float]

#: The sets of styles.
STYLES = ("plain", "overhead", "varied")


class StyleError(ValueError):
    """A set of styles that is none of `STYLES`."""


@dataclass(frozen=True, slots=True)
class View:
    """Where the camera stands and how it looks.

    Attributes:
        distance: from the point it looks at, in grid sides.
        offset: of that point from the grid's centre (x, y), in grid sides.
        tilt: angle between its optical axis and straight down [rad].
        azimuth: direction from the grid in which it stands when tilted [rad]; -π/2 is below the
            bottom of the picture.
        roll: turn of the picture about the optical axis [rad].
        zoom: focal length as a share of the one with which the grid just fits.
    """

    distance: float
    offset: tuple[float, float]
    tilt: float
    azimuth: float
    roll: float
    zoom: float


@dataclass(frozen=True, slots=True)
class Photo:
    """What a camera does to the light that it takes in.

    Attributes:
        exposure: gain of each channel (red, green, blue), white balance included.
        blur: standard deviation of a Gaussian [px of a picture 256 px wide].
        noise: standard deviation [grey levels of 255].
    """

    exposure: tuple[float, float, float]
    blur: float
    noise: float


@dataclass(frozen=True, slots=True)
class Style:
    """All that may differ between two scenes of one state.

    Attributes:
        seed: that it was drawn from; None for the plain style.
        styles: the set it belongs to, one of `STYLES`.
        colours: sRGB 0 to 255 by material.
        textures: key of `sim.textures.TEXTURES` by kind of surface; "" for none.
        models: number of the model by kind of thing, to be taken modulo `sim.models.MODELS`.
        light: unit vector towards the light, world frame.
        intensity: brightness of faces that look straight up.
        ambient: brightness of faces in shadow as a share of `intensity`.
        robot_yaw: heading of the robot [rad].
        turns: quarter turns of the printer and the goal.
        wall_height: [cells].
        clutter: how many things lie about.
        view: of the camera.
        photo: what the camera makes of it.
    """

    seed: int | None
    styles: str
    colours: Mapping[str, Colour]
    textures: Mapping[str, str]
    models: Mapping[str, int]
    light: Point
    intensity: float
    ambient: float
    robot_yaw: float
    turns: int
    wall_height: float
    clutter: int
    view: View
    photo: Photo


_Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class _Look:
    """One way a material may look: what is drawn from, and what goes with it.

    Attributes:
        hue, saturation, value: ranges of its colour; hue in degrees.
        textures: that suit it; "" for none.
        model: number of the model that it is made for; None for any.
    """

    hue: _Range
    saturation: _Range
    value: _Range
    textures: tuple[str, ...] = ("",)
    model: int | None = None


# Material -> its looks; the first, with its first texture, is the plain style's. The colours of one
# scene stay apart whatever the seed, so that a person and a small network tell the objects by
# colour alone: floors are pale, walls and holes dark, the robot red, the goal green.
_LOOKS: dict[str, tuple[_Look, ...]] = {
    "ice": (
        _Look((185, 208), (0.10, 0.24), (0.90, 0.99), ("ice", "speckle")),
        _Look((190, 220), (0.00, 0.06), (0.90, 0.99), ("snow",)),
        _Look((30, 55), (0.05, 0.16), (0.82, 0.93), ("flagstones", "gravel", "mosaic")),
        _Look((28, 40), (0.24, 0.40), (0.82, 0.93), ("planks",)),
    ),
    "snow": (_Look((190, 220), (0.00, 0.06), (0.90, 0.98)),),
    "water": (
        _Look((208, 232), (0.80, 0.95), (0.28, 0.39), ("ripples",), model=0),
        _Look((0, 360), (0.05, 0.30), (0.10, 0.16), ("gravel", "flagstones"), model=1),
        _Look((204, 226), (0.80, 0.95), (0.20, 0.32), ("ripples", "ice"), model=2),
    ),
    "concrete": (
        _Look((25, 60), (0.03, 0.14), (0.80, 0.93), ("speckle", "plaster", "terrazzo")),
        _Look((28, 42), (0.22, 0.40), (0.80, 0.93), ("parquet", "planks")),
        _Look((25, 215), (0.03, 0.12), (0.80, 0.93), ("flagstones", "mosaic", "marble")),
        _Look((66, 84), (0.22, 0.36), (0.76, 0.86), ("grass",)),
    ),
    "carpet": (
        _Look((40, 150), (0.06, 0.18), (0.78, 0.90), ("weave", "pile")),
        _Look((190, 260), (0.05, 0.18), (0.78, 0.90), ("pile", "weave")),
        _Look((25, 60), (0.03, 0.14), (0.84, 0.95), ("mosaic", "terrazzo")),
        _Look((30, 180), (0.05, 0.18), (0.80, 0.92), ("marble", "speckle")),
    ),
    "skirting": (_Look((20, 60), (0.05, 0.15), (0.50, 0.65)),),
    "brick": (
        _Look((355, 375), (0.35, 0.55), (0.26, 0.35), ("brick",), model=0),
        _Look((200, 380), (0.08, 0.40), (0.22, 0.34), ("plaster", "flagstones", "brick"), model=0),
        _Look((84, 108), (0.40, 0.60), (0.24, 0.33), ("leaves",), model=1),
        _Look((14, 30), (0.40, 0.60), (0.22, 0.34), ("planks", "grain"), model=2),
        _Look((200, 260), (0.10, 0.45), (0.22, 0.34), ("metal", "plaster"), model=2),
    ),
    "ground": (
        _Look((0, 360), (0.03, 0.14), (0.30, 0.46), ("asphalt", "gravel")),
        _Look((70, 110), (0.20, 0.40), (0.28, 0.42), ("grass",)),
        _Look((0, 360), (0.08, 0.30), (0.30, 0.46), ("speckle", "weave", "pile")),
        _Look((20, 36), (0.25, 0.45), (0.30, 0.42), ("planks", "gravel", "parquet")),
    ),
    "goal": (_Look((104, 140), (0.78, 0.95), (0.58, 0.78)),),
    "robot": (_Look((-12, 18), (0.84, 0.96), (0.84, 0.98)),),
    "mark": (_Look((48, 58), (0.30, 0.90), (0.95, 1.00)),),
    "printer": (
        _Look((200, 280), (0.08, 0.25), (0.18, 0.30)),
        _Look((200, 240), (0.04, 0.16), (0.36, 0.46)),
    ),
    "paper": (_Look((40, 60), (0.00, 0.05), (0.94, 1.00)),),
    "wood": (
        _Look((18, 30), (0.58, 0.75), (0.42, 0.58), ("grain", "planks")),
        _Look((24, 34), (0.48, 0.62), (0.54, 0.66), ("grain", "parquet")),
    ),
    "clutter": (_Look((0, 360), (0.10, 0.40), (0.35, 0.75)),),
}

# Kind of surface -> the material that it is made of, whose textures it may have.
_SURFACES = {
    "lake floor": "ice",
    "maze floor": "concrete",
    "office floor": "carpet",
    "wall": "brick",
    "ground": "ground",
    "hole": "water",
    "table": "wood",
}

_PLAIN_VIEW = View(2.8, (0, 0), 0, 0, 0, 1)
_PLAIN_PHOTO = Photo((1, 1, 1), 0, 0)
_WALL_HEIGHTS = (0.2, 0.28)


def check_styles(styles: str) -> str:
    """Return `styles`, or raise StyleError where it is no set of styles."""
    if styles not in STYLES:
        raise StyleError(f"unknown styles {styles!r}; there are: {', '.join(STYLES)}")
    return styles


def make_style(seed: int | None, styles: str = "varied") -> Style:
    """Return a style of a set, deterministic in the arguments.

    Without a seed, and always in the set `plain`, it is the plain one. Raises StyleError.
    """
    check_styles(styles)
    if seed is None or styles == "plain":
        looks = {material: choices[0] for material, choices in _LOOKS.items()}
        return Style(
            seed=seed,
            styles="plain",
            colours=_colours(looks, lambda low, high: (low + high) / 2),
            textures={
                surface: looks[material].textures[0] for surface, material in _SURFACES.items()
            },
            models=dict.fromkeys(_MODELLED, 0),
            light=_direction(2.2, 0.6),
            intensity=1.0,
            ambient=0.55,
            robot_yaw=0.0,
            turns=0,
            wall_height=sum(_WALL_HEIGHTS) / 2,
            clutter=0,
            view=_PLAIN_VIEW,
            photo=_PLAIN_PHOTO,
        )
    # Seeding by text goes through SHA-512: independent streams for neighbouring seeds.
    rng = random.Random(f"style/{styles}/{seed}")
    looks = {material: rng.choice(choices) for material, choices in _LOOKS.items()}
    made_for = {
        surface: model
        for surface, material in _SURFACES.items()
        if (model := looks[material].model) is not None
    }
    return Style(
        seed=seed,
        styles=styles,
        colours=_colours(looks, rng.uniform),
        textures={
            surface: rng.choice(looks[material].textures) for surface, material in _SURFACES.items()
        },
        models={kind: rng.randrange(1 << 16) for kind in _MODELLED} | made_for,
        light=_direction(rng.uniform(0, math.tau), rng.uniform(0.3, 0.9)),
        intensity=rng.uniform(0.88, 1.05),
        ambient=rng.uniform(0.45, 0.65),
        robot_yaw=rng.uniform(-math.pi, math.pi),
        turns=rng.randrange(4),
        wall_height=rng.uniform(*_WALL_HEIGHTS),
        clutter=rng.randrange(12) if styles == "varied" else 0,
        view=_VIEWS[styles](rng),
        photo=_PHOTOS[styles](rng),
    )


_MODELLED = ("wall", "hole", "goal", "robot", "printer", "table", "clutter")


def _overhead_view(rng: random.Random) -> View:
    return View(
        distance=rng.uniform(2.3, 3.4),
        offset=(rng.uniform(-0.03, 0.03), rng.uniform(-0.03, 0.03)),
        tilt=rng.uniform(0, math.radians(8)),
        azimuth=rng.uniform(-math.pi, math.pi),
        roll=rng.uniform(-math.radians(2), math.radians(2)),
        zoom=1.0,
    )


def _varied_view(rng: random.Random) -> View:
    tilt = math.radians(rng.choice((0.0, rng.uniform(0, 20), rng.uniform(15, 45))))
    # A camera that looks down steeply may stand anywhere, one that looks ahead stands below the
    # picture: what is up in the picture must stay up on the grid.
    spread = math.pi if tilt < math.radians(15) else math.radians(30)
    return View(
        distance=rng.uniform(2.0, 4.0),
        offset=(rng.uniform(-0.12, 0.12), rng.uniform(-0.12, 0.12)),
        tilt=tilt,
        azimuth=-math.pi / 2 + rng.uniform(-spread, spread),
        roll=rng.uniform(-math.radians(6), math.radians(6)),
        zoom=rng.uniform(0.85, 1.0),
    )


def _overhead_photo(rng: random.Random) -> Photo:
    exposure = rng.uniform(0.9, 1.08)
    return Photo((exposure, exposure, exposure), 0.0, rng.uniform(0, 1.5))


def _varied_photo(rng: random.Random) -> Photo:
    exposure = rng.uniform(0.7, 1.25)
    warmth, tint = rng.uniform(-0.07, 0.07), rng.uniform(-0.03, 0.03)
    gains = (exposure * (1 + warmth), exposure * (1 + tint), exposure * (1 - warmth))
    blur = rng.choice((0.0, rng.uniform(0.3, 1.2)))
    return Photo(gains, blur, rng.uniform(0, 6))


def _colours(
    looks: Mapping[str, _Look], pick: Callable[[float, float], float]
) -> dict[str, Colour]:
    """Return a colour for every material, each channel picked from its look's range."""
    colours = {
        material: _rgb(pick(*look.hue), pick(*look.saturation), pick(*look.value))
        for material, look in looks.items()
    }
    # What lies on a wall goes with it, a little lighter.
    return colours | {"coping": scaled_colour(colours["brick"], 1.3)}


_VIEWS = {"overhead": _overhead_view, "varied": _varied_view}
_PHOTOS = {"overhead": _overhead_photo, "varied": _varied_photo}


def scaled_colour(colour: Colour, factor: float) -> Colour:
    """Return a colour with every channel multiplied, at most 255."""
    red, green, blue = (min(255, round(value * factor)) for value in colour)
    return (red, green, blue)


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value)
    return (round(red * 255), round(green * 255), round(blue * 255))


def _direction(azimuth: float, from_zenith: float) -> Point:
    flat = math.sin(from_zenith)
    return (flat * math.cos(azimuth), flat * math.sin(azimuth), math.cos(from_zenith))
