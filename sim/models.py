"""What the objects of a scene look like: lists of coloured shapes, several models of each.

Lengths are shares of a cell's side; x ahead, y to the left, z up, the floor at z = 0. Every model
stays inside its cell and stands on its middle, so that a camera tilted by 45° that looks at the
middle of the cell's floor sees the object, and none is so high that it hides its neighbour's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sim.shapes import SLAB_SQUARES
from sim.style import Colour, scaled_colour

Point = tuple[float, float, float]

#: How deep a hole is below the floor.
PIT_DEPTH = 0.5

#: Width of the kerb around grids without walls.
RIM = 0.12

WALL_THICKNESS = 0.14

_THIN = 0.01  # thickness of what has a top only
_TILE, _JOINT = 0.93, 0.03  # width of a tile and depth of the joint around it
_SHADES = 18  # places across a grid at which light and shade are drawn
_DARK, _TYRE = (56, 56, 62), (38, 38, 42)
_PANEL, _LAMP = (34, 44, 84), (40, 200, 235)

Parts = tuple["Part", ...]


@dataclass(frozen=True, slots=True)
class Part:
    """One shape of an object, in the object's frame.

    Attributes:
        shape: a key of `sim.shapes.SHAPES`.
        centre: of its bounding box before it is turned [cells].
        size: of its bounding box before it is turned [cells].
        colour: sRGB, 0 to 255, before lighting and texture.
        yaw: turn about z through `centre` [rad], counter-clockwise seen from above.
    """

    shape: str
    centre: Point
    size: Point
    colour: Colour
    yaw: float = 0.0


Palette = Mapping[str, Colour]


def ground(size: int, colours: Palette) -> Parts:
    """Return what lies around a grid of `size` cells; its frame is at the pits' floor."""
    # Nothing below the grid: it would be drawn and never seen.
    inside, outside = size / 2, size * 3.5
    middle = (inside + outside) / 2
    wide = (2 * outside, outside - inside, _THIN)
    deep = (outside - inside, 2 * inside, _THIN)
    return tuple(
        Part("lid", (x, y, -_THIN / 2), extent, colours["ground"])
        for x, y, extent in (
            (0, middle, wide),
            (0, -middle, wide),
            (middle, 0, deep),
            (-middle, 0, deep),
        )
    )


def tile(colour: Colour, shade: float, size: int) -> Parts:
    """Return a floor tile of a grid of `size` cells.

    It is a slab with a dark joint around it, so that cells can be counted.
    """
    # As many places for light and shade across the grid, whatever its size.
    squares = min(max(round(_SHADES / size), SLAB_SQUARES[0]), SLAB_SQUARES[-1])
    return (
        _top("frame", -_JOINT, 1, scaled_colour(colour, 0.62)),
        _top(f"slab{squares}", 0, _TILE, scaled_colour(colour, shade)),
    )


def _top(shape: str, height: float, side: float, colour: Colour) -> Part:
    """Return one of the shapes that are nothing but the top of a box."""
    return Part(shape, (0, 0, height - _THIN / 2), (side, side, _THIN), colour)


def rim(length: float, colour: Colour) -> Parts:
    """Return one kerb along x: it shows where the grid ends."""
    height = PIT_DEPTH + 0.08
    return (Part("box", (0, 0, 0.04 - height / 2), (length, RIM, height), colour),)


# --- Walls: along x, from the ground below the floor to `height`. Nothing may show a gap between
# two that meet, so that each is one body from end to end and at most a cap.


def wall(variant: int, height: float, colours: Palette) -> Parts:
    """Return a wall between two cells."""
    length = 1 + WALL_THICKNESS  # so that walls which meet in a corner fill it
    return _WALLS[variant](length, height, colours)


def _coped_wall(length: float, height: float, colours: Palette) -> Parts:
    cap = 0.05
    return (
        _upright(length, 0.11, -PIT_DEPTH, height - cap, colours["brick"]),
        _upright(length, WALL_THICKNESS, height - cap, height, colours["coping"]),
    )


def _hedge(length: float, height: float, colours: Palette) -> Parts:
    return (_upright(length, WALL_THICKNESS, -PIT_DEPTH, height, colours["brick"], "hedge"),)


def _fence(length: float, height: float, colours: Palette) -> Parts:
    rail = 0.04
    return (
        _upright(length, 0.08, -PIT_DEPTH, height - rail, colours["brick"]),
        _upright(length, WALL_THICKNESS, height - rail, height, colours["coping"]),
    )


def _upright(
    length: float, thickness: float, low: float, high: float, colour: Colour, shape: str = "box"
) -> Part:
    return Part(shape, (0, 0, (low + high) / 2), (length, thickness, high - low), colour)


# --- Holes: in place of a tile; all of it lies below the floor and is darker.


def hole(variant: int, colours: Palette) -> Parts:
    """Return a hole in place of a tile."""
    return _HOLES[variant](colours)


def _pool(colours: Palette) -> Parts:
    water, wave = colours["water"], mixed(colours["water"], (150, 205, 255), 0.32)
    level = -0.3
    waves = ((-0.16, 0.20, 0.40, 0.3), (0.17, 0.0, 0.42, -0.2), (-0.12, -0.21, 0.36, 0.1))
    return (
        _banks("pit", mixed(water, colours["ice"], 0.35)),
        _top("sheet", level, 0.96, water),
        *(
            Part("wave", (x, y, level + 0.02), (length, 0.12, _THIN), wave, yaw)
            for x, y, length, yaw in waves
        ),
    )


def _shaft(colours: Palette) -> Parts:
    dark, stone = colours["water"], mixed(colours["water"], colours["ice"], 0.45)
    return (
        _banks("pit", dark),
        _top("sheet", -0.44, 0.88, scaled_colour(dark, 0.5)),
        # Stones around the edge, a step below the floor.
        Part("box", (-0.03, 0.44, -0.17), (0.84, 0.08, 0.18), stone),
        Part("box", (0.05, -0.44, -0.17), (0.80, 0.08, 0.18), scaled_colour(stone, 0.85)),
        Part("box", (0.44, 0.04, -0.19), (0.08, 0.76, 0.18), scaled_colour(stone, 0.92)),
        Part("box", (-0.44, -0.05, -0.19), (0.08, 0.78, 0.18), scaled_colour(stone, 0.8)),
    )


def _broken(colours: Palette) -> Parts:
    water = colours["water"]
    floe = mixed(water, colours["ice"], 0.38)
    level = -0.3
    return (
        _banks("ragged", mixed(water, colours["ice"], 0.45)),
        _top("sheet", level, 0.96, water),
        Part("shard", (-0.16, 0.17, level), (0.28, 0.24, 0.06), floe, 0.5),
        Part("shard", (0.20, 0.03, level), (0.22, 0.18, 0.08), floe, 2.4),
        Part("shard", (-0.08, -0.22, level), (0.24, 0.16, 0.06), floe, 4.2),
    )


def _banks(shape: str, colour: Colour) -> Part:
    # Their upper edge meets the joints of the tiles around.
    return Part(shape, (0, 0, -(PIT_DEPTH + _JOINT) / 2), (1, 1, PIT_DEPTH - _JOINT), colour)


# --- Goals: a green plate over the middle of the cell, with something that stands at its edge.


def goal(variant: int, colours: Palette) -> Parts:
    """Return the goal: a place to go to, green."""
    return _GOALS[variant](colours)


def _target(colours: Palette) -> Parts:
    green, white = colours["goal"], colours["paper"]
    dark = scaled_colour(green, 0.6)
    return (
        Part("box", (0, 0, 0.015), (0.84, 0.84, 0.03), green),
        Part("cylinder", (0, 0, 0.03), (0.60, 0.60, 0.04), white),
        Part("cylinder", (0, 0, 0.04), (0.34, 0.34, 0.06), green),
        Part("post", (-0.34, 0.34, 0.2), (0.06, 0.06, 0.38), dark),
        Part("ramp", (-0.21, 0.34, 0.32), (0.26, 0.05, 0.14), dark),
    )


def _charger(colours: Palette) -> Parts:
    green, white = colours["goal"], colours["paper"]
    dark, black = scaled_colour(green, 0.68), _DARK
    return (
        Part("rounded", (0, 0, 0.02), (0.86, 0.86, 0.04), green),
        Part("rounded", (0, -0.05, 0.04), (0.62, 0.62, 0.04), dark),
        Part("bolt", (0, -0.05, 0.06), (0.46, 0.56, 0.04), white),
        Part("box", (0, 0.36, 0.16), (0.44, 0.12, 0.32), dark),
        Part("box", (0, 0.36, 0.34), (0.36, 0.08, 0.04), green),
        Part("box", (-0.10, 0.29, 0.12), (0.05, 0.05, 0.05), black),
        Part("box", (0.10, 0.29, 0.12), (0.05, 0.05, 0.05), black),
    )


def _finish(colours: Palette) -> Parts:
    green, white = colours["goal"], colours["paper"]
    dark = scaled_colour(green, 0.6)
    corners = ((-0.35, 0.35), (0.35, 0.35), (-0.35, -0.35), (0.35, -0.35))
    return (
        Part("box", (0, 0, 0.015), (0.86, 0.86, 0.03), green),
        _top("checks", 0.05, 0.56, white),
        Part("box", (0, 0, 0.025), (0.58, 0.58, 0.03), dark),
        *(Part("cone", (x, y, 0.16), (0.16, 0.16, 0.28), green) for x, y in corners),
        *(Part("post", (x, y, 0.16), (0.11, 0.11, 0.06), white) for x, y in corners),
    )


def _beacon(colours: Palette) -> Parts:
    green, white = colours["goal"], colours["paper"]
    dark = scaled_colour(green, 0.7)
    return (
        Part("cylinder", (0, 0, 0.02), (0.88, 0.88, 0.04), green),
        Part("cylinder", (0, 0, 0.03), (0.70, 0.70, 0.06), dark),
        Part("star", (0.02, 0, 0.05), (0.60, 0.60, 0.06), white),
        Part("cylinder", (0, 0, 0.10), (0.20, 0.20, 0.12), dark),
        Part("dome", (0, 0, 0.20), (0.18, 0.18, 0.10), scaled_colour(green, 1.3)),
    )


# --- Robots: head along x; a body in the robot's colour over dark wheels.


def robot(variant: int, colours: Palette) -> Parts:
    """Return the robot; it heads along x."""
    return _ROBOTS[variant](colours)


def _vacuum(colours: Palette) -> Parts:
    body, mark = colours["robot"], colours["mark"]
    return (
        Part("track", (0, 0.34, 0.08), (0.24, 0.10, 0.16), _TYRE),
        Part("track", (0, -0.34, 0.08), (0.24, 0.10, 0.16), _TYRE),
        Part("cylinder", (0, 0, 0.12), (0.70, 0.70, 0.16), scaled_colour(body, 0.75)),
        Part("cylinder", (0, 0, 0.20), (0.64, 0.64, 0.06), body),
        Part("ramp", (0.18, 0, 0.24), (0.18, 0.18, 0.06), mark, -math.pi / 2),
        Part("cylinder", (-0.08, 0, 0.26), (0.24, 0.24, 0.10), _DARK),
        Part("cylinder", (-0.08, 0, 0.31), (0.16, 0.16, 0.04), body),
    )


def _rover(colours: Palette) -> Parts:
    body, mark = colours["robot"], colours["mark"]
    wheels = ((x, y) for x in (-0.17, 0.17) for y in (-0.27, 0.27))
    return (
        *(Part("wheel", (x, y, 0.10), (0.20, 0.10, 0.20), _TYRE) for x, y in wheels),
        Part("box", (0, 0, 0.16), (0.68, 0.42, 0.12), scaled_colour(body, 0.8)),
        Part("chamfered", (0, 0, 0.24), (0.66, 0.46, 0.06), body),
        Part("box", (-0.14, 0, 0.27), (0.16, 0.28, 0.05), _PANEL),
        Part("post", (0.16, 0, 0.30), (0.07, 0.07, 0.10), _DARK),
        Part("box", (0.18, 0, 0.355), (0.10, 0.22, 0.07), mark),
    )


def _carrier(colours: Palette) -> Parts:
    body, mark = colours["robot"], colours["mark"]
    return (
        Part("track", (0, 0.25, 0.10), (0.52, 0.14, 0.20), _TYRE),
        Part("track", (0, -0.25, 0.10), (0.52, 0.14, 0.20), _TYRE),
        Part("box", (0, 0, 0.15), (0.64, 0.38, 0.20), scaled_colour(body, 0.8)),
        Part("chamfered", (-0.02, 0, 0.27), (0.60, 0.52, 0.06), body),
        Part("box", (0.295, 0, 0.27), (0.08, 0.24, 0.05), mark),
        Part("cylinder", (0.10, 0, 0.32), (0.18, 0.18, 0.08), _DARK),
        Part("box", (-0.20, 0.12, 0.33), (0.05, 0.05, 0.10), _DARK),
    )


def _courier(colours: Palette) -> Parts:
    body, mark = colours["robot"], colours["mark"]
    wheels = ((x, y) for x in (-0.2, 0.2) for y in (-0.26, 0.26))
    return (
        *(Part("wheel", (x, y, 0.08), (0.16, 0.10, 0.16), _TYRE) for x, y in wheels),
        Part("rounded", (0, 0, 0.14), (0.64, 0.48, 0.16), scaled_colour(body, 0.75)),
        Part("dome", (-0.03, 0, 0.29), (0.52, 0.44, 0.16), body),
        Part("box", (0.27, 0, 0.20), (0.12, 0.30, 0.10), _DARK),
        Part("box", (0.27, 0, 0.26), (0.07, 0.20, 0.03), mark),
    )


# --- Printers: a case in the printer's colour, white paper; the paper comes out along -y.


def printer(variant: int, colours: Palette) -> Parts:
    """Return the printer."""
    return _PRINTERS[variant](colours)


def _laser(colours: Palette) -> Parts:
    case, paper = colours["printer"], colours["paper"]
    return (
        Part("box", (0, 0.06, 0.16), (0.74, 0.52, 0.32), case),
        Part("box", (0, 0.10, 0.34), (0.60, 0.28, 0.04), scaled_colour(case, 1.6)),
        Part("box", (0, -0.28, 0.12), (0.56, 0.24, 0.05), scaled_colour(case, 1.4)),
        Part("box", (0, -0.24, 0.16), (0.42, 0.30, 0.03), paper),
        Part("box", (0, 0.28, 0.36), (0.44, 0.12, 0.11), paper),
        Part("box", (0.29, -0.12, 0.34), (0.08, 0.08, 0.04), _LAMP),
    )


def _copier(colours: Palette) -> Parts:
    case, paper = colours["printer"], colours["paper"]
    light, dark = scaled_colour(case, 1.7), scaled_colour(case, 0.6)
    return (
        Part("box", (0.02, 0.06, 0.17), (0.60, 0.60, 0.34), case),
        Part("box", (0.02, -0.23, 0.10), (0.56, 0.06, 0.07), light),
        Part("box", (0.02, -0.23, 0.20), (0.56, 0.06, 0.07), light),
        Part("box", (0.02, 0.12, 0.36), (0.56, 0.42, 0.05), dark),
        Part("box", (-0.04, 0.14, 0.395), (0.38, 0.28, 0.05), paper),
        Part("box", (0.20, -0.17, 0.36), (0.18, 0.10, 0.06), _LAMP),
        Part("box", (-0.35, 0.06, 0.20), (0.12, 0.40, 0.05), light),
        Part("box", (-0.34, 0.06, 0.235), (0.10, 0.30, 0.04), paper),
        Part("box", (0.36, 0.06, 0.16), (0.10, 0.44, 0.05), light),
    )


def _open_lid(colours: Palette) -> Parts:
    case, paper = colours["printer"], colours["paper"]
    light, dark = scaled_colour(case, 1.6), scaled_colour(case, 0.6)
    return (
        Part("rounded", (0, 0.02, 0.12), (0.78, 0.62, 0.24), case),
        Part("box", (0, 0.04, 0.24), (0.62, 0.40, 0.03), dark),
        Part("box", (0.06, 0.04, 0.25), (0.44, 0.30, 0.05), paper),
        Part("ramp", (0, 0.31, 0.31), (0.74, 0.14, 0.20), light),
        Part("box", (0, -0.31, 0.09), (0.54, 0.20, 0.05), light),
        Part("box", (0, -0.31, 0.13), (0.40, 0.18, 0.05), paper),
        Part("box", (-0.26, -0.22, 0.25), (0.16, 0.06, 0.04), _LAMP),
    )


# --- Tables: three cells along x, two along y; brown.


def table(variant: int, colours: Palette) -> Parts:
    """Return the table, three cells along x and two along y."""
    return _TABLES[variant](colours)


_LENGTH, _DEPTH = 2.88, 1.88


def _plank_table(colours: Palette) -> Parts:
    wood = colours["wood"]
    board = _DEPTH / 4
    shades = (1.0, 0.86, 1.06, 0.93)
    return (
        *_legs(0.28, 0.1, scaled_colour(wood, 0.5)),
        *(
            Part(
                "box",
                (0, (i - 1.5) * board, 0.31),
                (_LENGTH, board, 0.06),
                scaled_colour(wood, shade),
            )
            for i, shade in enumerate(shades)
        ),
    )


def _desk(colours: Palette) -> Parts:
    wood = colours["wood"]
    edge, drawer = scaled_colour(wood, 0.62), scaled_colour(wood, 0.85)
    return (
        Part("box", (-1.0, 0, 0.12), (0.70, 1.6, 0.24), scaled_colour(wood, 0.7)),
        Part("box", (1.0, 0, 0.12), (0.70, 1.6, 0.24), scaled_colour(wood, 0.7)),
        *(
            Part("box", (x, -0.80, z), (0.58, 0.04, 0.07), drawer)
            for x in (-1.0, 1.0)
            for z in (0.07, 0.17)
        ),
        Part("board", (0, 0, 0.265), (_LENGTH, _DEPTH, 0.05), edge),
        Part("board", (0, 0, 0.29), (_LENGTH - 0.16, _DEPTH - 0.16, 0.04), wood),
        Part("box", (0, -0.36, 0.31), (1.1, 0.72, 0.03), scaled_colour(wood, 0.8)),
    )


def _bench(colours: Palette) -> Parts:
    wood = colours["wood"]
    steel = mixed(wood, (70, 72, 78), 0.75)
    return (
        *_legs(0.26, 0.14, steel),
        Part("box", (0, 0, 0.10), (2.6, 0.10, 0.08), steel),
        Part("box", (0, 0, 0.25), (_LENGTH, _DEPTH, 0.06), steel),
        Part("box", (0, 0, 0.29), (_LENGTH - 0.14, _DEPTH - 0.14, 0.04), wood),
        Part("box", (0, 0.72, 0.32), (_LENGTH - 0.3, 0.12, 0.04), scaled_colour(wood, 0.7)),
        Part("box", (-0.48, 0, 0.305), (0.04, 1.1, 0.03), scaled_colour(wood, 0.72)),
        Part("box", (0.48, 0, 0.305), (0.04, 1.1, 0.03), scaled_colour(wood, 0.72)),
    )


def _legs(height: float, thickness: float, colour: Colour) -> Parts:
    return tuple(
        Part("box", (x * 1.33, y * 0.83, height / 2), (thickness, thickness, height), colour)
        for x in (-1, 1)
        for y in (-1, 1)
    )


# --- Clutter: within 0.2 of its frame's z axis, at most 0.2 high.


def clutter(variant: int, colours: Palette) -> Parts:
    """Return a thing that means nothing and may lie anywhere."""
    return _CLUTTER[variant](colours["clutter"])


def _parcel(colour: Colour) -> Parts:
    return (
        Part("box", (0, 0, 0.07), (0.30, 0.22, 0.14), colour),
        Part("box", (0, 0, 0.08), (0.06, 0.24, 0.16), scaled_colour(colour, 0.7)),
    )


def _bottle(colour: Colour) -> Parts:
    return (
        Part("roller", (-0.05, 0, 0.06), (0.22, 0.12, 0.12), colour),
        Part("roller", (0.10, 0, 0.06), (0.10, 0.06, 0.06), scaled_colour(colour, 0.8)),
        Part("roller", (0.16, 0, 0.06), (0.05, 0.08, 0.08), _DARK),
    )


def _ball(colour: Colour) -> Parts:
    return (
        Part("ball", (0, 0, 0.10), (0.20, 0.20, 0.20), colour),
        Part("ring", (0, 0, 0.10), (0.23, 0.23, 0.05), scaled_colour(colour, 0.6)),
    )


def _plant(colour: Colour) -> Parts:
    leaf = mixed(colour, (62, 84, 50), 0.7)
    return (
        Part("bowl", (0, 0, 0.05), (0.18, 0.18, 0.10), scaled_colour(colour, 0.8)),
        Part("leaves", (0, 0, 0.12), (0.35, 0.35, 0.06), leaf),
        Part("leaves", (0, 0, 0.17), (0.24, 0.24, 0.05), scaled_colour(leaf, 1.25), 0.4),
    )


def _books(colour: Colour) -> Parts:
    return (
        Part("box", (0, 0, 0.025), (0.28, 0.22, 0.05), scaled_colour(colour, 0.7)),
        Part("box", (0.01, 0, 0.07), (0.24, 0.19, 0.05), colour, 0.3),
        Part("box", (0, 0.01, 0.11), (0.20, 0.15, 0.04), mixed(colour, (205, 200, 185), 0.5)),
    )


def _cone(colour: Colour) -> Parts:
    return (
        Part("box", (0, 0, 0.015), (0.26, 0.26, 0.03), scaled_colour(colour, 0.6)),
        Part("cone", (0, 0, 0.11), (0.20, 0.20, 0.18), colour),
        Part("post", (0, 0, 0.11), (0.14, 0.14, 0.05), mixed(colour, (220, 220, 215), 0.6)),
    )


def _coil(colour: Colour) -> Parts:
    return (
        Part("ring", (0, 0, 0.04), (0.36, 0.36, 0.08), scaled_colour(colour, 0.5)),
        Part("ring", (0, 0, 0.08), (0.30, 0.30, 0.08), scaled_colour(colour, 0.6)),
    )


def _bucket(colour: Colour) -> Parts:
    return (
        Part("bowl", (0, 0, 0.08), (0.26, 0.26, 0.16), colour),
        Part("ring", (0, 0, 0.16), (0.30, 0.30, 0.04), scaled_colour(colour, 0.7)),
    )


def cable(length: float, height: float, colours: Palette) -> Parts:
    """Return a cable along x that hangs `height` above the floor."""
    return (
        Part("box", (0, 0, height), (length, 0.05, 0.05), scaled_colour(colours["clutter"], 0.5)),
    )


_WALLS = (_coped_wall, _hedge, _fence)
_HOLES = (_pool, _shaft, _broken)
_GOALS = (_target, _charger, _finish, _beacon)
_ROBOTS = (_vacuum, _rover, _carrier, _courier)
_PRINTERS = (_laser, _copier, _open_lid)
_TABLES = (_plank_table, _desk, _bench)
_CLUTTER = (_parcel, _bottle, _ball, _plant, _books, _cone, _coil, _bucket)

#: How many models there are of each kind of thing.
MODELS: dict[str, int] = {
    "wall": len(_WALLS),
    "hole": len(_HOLES),
    "goal": len(_GOALS),
    "robot": len(_ROBOTS),
    "printer": len(_PRINTERS),
    "table": len(_TABLES),
    "clutter": len(_CLUTTER),
}


def mixed(one: Colour, other: Colour, share: float) -> Colour:
    """Return a colour that lies `share` of the way from one to the other."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return (red, green, blue)


def turned(point: tuple[float, float], yaw: float) -> tuple[float, float]:
    """Return a point (x, y) turned about the origin by `yaw` [rad], counter-clockwise."""
    x, y = point
    cosine, sine = math.cos(yaw), math.sin(yaw)
    return (cosine * x - sine * y, sine * x + cosine * y)
