"""Objects: they keep to their places, hide nothing they must not, and are told by their colours."""

from __future__ import annotations

import colorsys
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sim import models, sample
from sim.mesh import mesh_of
from sim.models import MODELS, PIT_DEPTH, WALL_THICKNESS, Part, Parts
from sim.panda import PandaRenderer
from sim.scene import Scene, SceneObject, build_scene
from sim.shapes import SHAPES, SLAB_SQUARES, shape
from sim.style import Colour, make_style

seeds = st.integers(0, 2**63 - 1)
PLAIN = make_style(None).colours
SLABS = {f"slab{squares}" for squares in SLAB_SQUARES}
TOPS_ONLY = {"lid", "frame", "sheet", "checks", "wave"} | SLABS


def build(
    kind: str, variant: int, colours: dict[str, Colour] = PLAIN, height: float = 0.28
) -> Parts:
    if kind == "wall":
        return models.wall(variant, height, colours)
    return getattr(models, kind)(variant, colours)


ALL = [(kind, variant) for kind in MODELS for variant in range(MODELS[kind])]


def of(*kinds: str) -> list[tuple[str, int]]:
    return [pair for pair in ALL if pair[0] in kinds]


def part_corners(part: Part) -> NDArray[np.float64]:
    """Triangles [F, 3, 3] of a part in its object's frame, worked out apart from sim.mesh."""
    unit = shape(part.shape)
    x, y, z = (unit.vertices * part.size).T
    cosine, sine = math.cos(part.yaw), math.sin(part.yaw)
    placed = np.stack([cosine * x - sine * y, sine * x + cosine * y, z], axis=1) + part.centre
    return placed[unit.faces]


def corners_of(parts: Parts) -> NDArray[np.float64]:
    return np.concatenate([part_corners(part) for part in parts])


def normals_of(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return across / np.linalg.norm(across, axis=1, keepdims=True)


def first_hits(
    corners: NDArray[np.float64], starts: NDArray[np.float64], ray: NDArray[np.float64]
) -> NDArray[np.float64]:
    """How far along `ray` each start sees the front of a triangle; inf: nowhere.

    Möller and Trumbore's intersection of rays and triangles.
    """
    one, two = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    across = np.cross(ray, two)
    scale = (one * across).sum(axis=1)
    front = scale > 1e-12
    one, two, across, scale = one[front], two[front], across[front], scale[front]
    away = starts[:, None] - corners[front, 0]
    u = (away * across).sum(axis=2) / scale
    turned = np.cross(away, one)
    v = (turned @ ray) / scale
    far = (turned * two).sum(axis=2) / scale
    inside = (u >= -1e-9) & (v >= -1e-9) & (u + v <= 1 + 1e-9)
    return np.where(inside, far, np.inf).min(axis=1, initial=np.inf)


# --- Shapes ---


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_fill_their_box_and_face_outwards(name: str) -> None:
    unit = shape(name)
    assert len(unit.faces) <= 128
    low, high = unit.vertices.min(axis=0), unit.vertices.max(axis=0)
    wide = 2 if name in TOPS_ONLY else 3
    if name == "bolt":
        assert np.allclose(high - low, (0.84, 1, 1))
    else:
        assert np.allclose(low[:wide], -0.5) and np.allclose(high[:wide], 0.5)
    assert np.isclose(high[2], 0.5)
    corners = unit.vertices[unit.faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert (np.linalg.norm(across, axis=1) > 1e-4).all()
    for i in range(3):
        assert ((across * unit.normals[unit.faces[:, i]]).sum(axis=1) > 0).all()


@pytest.mark.parametrize("name", sorted(set(SHAPES) - TOPS_ONLY - {"pit", "ragged", "ring"}))
@pytest.mark.parametrize("azimuth", np.linspace(0, math.tau, 7))
def test_bodies_have_no_gaps_from_above(name: str, azimuth: float) -> None:
    # A ray at the middle of a closed body meets it whichever way it comes down.
    ray = np.array([math.cos(azimuth), math.sin(azimuth), -1.3])
    assert np.isfinite(
        first_hits(corners_of((Part(name, (0, 0, 0), (1, 1, 1), (9, 9, 9)),)), -2 * ray[None], ray)
    )


# --- Places ---


@pytest.mark.parametrize(("kind", "variant"), ALL)
def test_models_are_few_solid_parts(kind: str, variant: int) -> None:
    parts = build(kind, variant)
    assert len(parts) <= 14
    for part in parts:
        thinnest = min(part.size[:2]) if part.shape in TOPS_ONLY else min(part.size)
        assert thinnest >= 0.03 - 1e-9, part


LIMITS = {  # kind -> half extents along x and y, greatest height
    "goal": (0.45, 0.45, 0.40),
    "printer": (0.42, 0.42, 0.42),
    "table": (1.45, 0.95, 0.34),
}


@pytest.mark.parametrize(("kind", "variant"), of(*LIMITS))
def test_objects_keep_to_their_cells(kind: str, variant: int) -> None:
    x, y, z = np.abs(corners_of(build(kind, variant)).reshape(-1, 3)).max(axis=0)
    assert (np.array([x, y, z]) <= np.array(LIMITS[kind]) + 1e-9).all()
    assert corners_of(build(kind, variant))[:, :, 2].min() >= -1e-9


@pytest.mark.parametrize(("kind", "variant"), of("robot", "clutter"))
def test_what_may_turn_keeps_to_its_circle(kind: str, variant: int) -> None:
    points = corners_of(build(kind, variant)).reshape(-1, 3)
    radius, height = {"robot": (0.42, 0.40), "clutter": (0.2, 0.2)}[kind]
    assert np.hypot(points[:, 0], points[:, 1]).max() <= radius + 1e-9
    assert points[:, 2].min() >= -1e-9 and points[:, 2].max() <= height + 1e-9


@pytest.mark.parametrize(("kind", "variant"), of("hole"))
def test_holes_lie_below_the_floor(kind: str, variant: int) -> None:
    points = corners_of(build(kind, variant)).reshape(-1, 3)
    assert np.abs(points[:, :2]).max() <= 0.5 + 1e-9
    assert points[:, 2].min() >= -PIT_DEPTH - 1e-9 and points[:, 2].max() <= 1e-9


@pytest.mark.parametrize(("kind", "variant"), of("hole"))
def test_holes_have_no_gaps(kind: str, variant: int) -> None:
    # The ground below must not be seen through them, nor the sides of the tiles around.
    across = np.linspace(-0.49, 0.49, 25)
    starts = np.array([(x, y, 0.0) for x in across for y in across])
    far = first_hits(corners_of(build(kind, variant)), starts, np.array([0, 0, -1.0]))
    assert np.isfinite(far).all()


@pytest.mark.parametrize("height", [0.2, 0.28])
@pytest.mark.parametrize(("kind", "variant"), of("wall"))
def test_walls_fill_their_edge_up_to_their_height(kind: str, variant: int, height: float) -> None:
    corners = corners_of(build(kind, variant, height=height))
    low, high = corners.reshape(-1, 3).min(axis=0), corners.reshape(-1, 3).max(axis=0)
    length = 1 + WALL_THICKNESS
    assert np.allclose(low, (-length / 2, -WALL_THICKNESS / 2, -PIT_DEPTH))
    assert np.allclose(high, (length / 2, WALL_THICKNESS / 2, height))
    starts = np.array(
        [
            (x, -1.0, z)
            for x in np.linspace(-0.5, 0.5, 41) * (length - 1e-6)
            for z in np.linspace(-PIT_DEPTH + 1e-6, height - 1e-6, 40)
        ]
    )
    assert (first_hits(corners, starts, np.array([0, 1.0, 0])) < 1).all()
    starts[:, 1:] = 0, 1
    assert np.allclose(first_hits(corners, starts, np.array([0, 0, -1.0])), 1 - height)


@pytest.mark.parametrize(("kind", "variant"), of("robot", "goal", "printer"))
def test_the_middle_of_the_cell_is_covered_from_every_camera(kind: str, variant: int) -> None:
    corners = corners_of(build(kind, variant))
    for tilt, azimuth in itertools.product(np.linspace(0, math.pi / 4, 6), np.arange(24) / 24):
        flat = math.sin(tilt)
        turn = azimuth * math.tau
        ray = -np.array([flat * math.cos(turn), flat * math.sin(turn), math.cos(tilt)])
        assert first_hits(corners, -4 * ray[None], ray)[0] < 4, (tilt, turn)


@pytest.mark.parametrize(("kind", "variant"), of("robot"))
def test_a_robot_stands_up_over_the_middle_of_its_cell(kind: str, variant: int) -> None:
    far = first_hits(
        corners_of(build(kind, variant)), np.array([[0, 0, 1.0]]), np.array([0, 0, -1.0])
    )
    assert 1 - far[0] >= 0.15


@pytest.mark.parametrize(("kind", "variant"), of("table"))
def test_a_table_covers_its_six_cells(kind: str, variant: int) -> None:
    corners = corners_of(build(kind, variant))
    low, high = corners.reshape(-1, 3).min(axis=0), corners.reshape(-1, 3).max(axis=0)
    assert np.allclose(high[:2], (1.44, 0.94)) and np.allclose(low[:2], (-1.44, -0.94))
    # All of it but the tips of the corners.
    starts = np.array([(x, y, 1.0) for x in np.linspace(-1.4, 1.4, 29) for y in (-0.7, 0, 0.7)])
    assert (1 - first_hits(corners, starts, np.array([0, 0, -1.0])) >= 0.24).all()


def _inside(points: NDArray[np.float64], part: Part) -> NDArray[np.bool_]:
    """Whether points lie well inside a body; of those that are no boxes only the core is asked."""
    if part.shape in TOPS_ONLY | {"pit", "ragged", "ring"}:
        return np.zeros(len(points), bool)
    x, y, z = (points - part.centre).T
    cosine, sine = math.cos(part.yaw), math.sin(part.yaw)
    local = np.stack([cosine * x + sine * y, cosine * y - sine * x, z], axis=1)
    share = 0.5 if part.shape == "box" else 0.3
    half = np.array(part.size) * (share, share, 0.5)
    if part.shape in ("wheel", "roller", "track", "hedge", "ramp", "dome", "ball", "cone"):
        half = np.array(part.size) * 0.25
    return (np.abs(local) < half).all(axis=1)


@pytest.mark.parametrize(("kind", "variant"), ALL)
def test_no_two_faces_fight_for_one_place(kind: str, variant: int) -> None:
    """Parallel faces that overlap are at least 0.01 apart, or hidden: depth buffers are coarse."""
    parts = build(kind, variant)
    share = np.array([(a, b, 1 - a - b) for a in (0.08, 0.33, 0.6) for b in (0.08, 0.25, 0.33)])
    for part, other in itertools.permutations(parts, 2):
        own, theirs = part_corners(part), part_corners(other)
        own_normals, their_normals = normals_of(own), normals_of(theirs)
        for face, normal in zip(own, own_normals, strict=True):
            points = share @ face
            near = (their_normals @ normal > 0.999) & (
                np.abs(((theirs[:, 0] - points[0]) * normal).sum(axis=1)) < 0.0095
            )
            if not near.any():
                continue
            hits = np.isfinite(first_hits(theirs[near], points + normal, -normal))
            seen = hits & ~np.any([_inside(points + 0.011 * normal, p) for p in parts], axis=0)
            assert not seen.any(), (part, other)


# --- Colours ---


def _hsv(colour: Colour) -> tuple[float, float, float]:
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in colour))
    return (hue * 360, saturation, value)


def _luma(colour: Colour) -> float:
    return float(np.dot(colour, (0.299, 0.587, 0.114)))


def _shares(parts: Parts) -> list[tuple[Colour, float]]:
    """How much of an object each colour is, seen from straight above."""
    corners = [part_corners(part) for part in parts]
    owner = np.repeat(np.arange(len(parts)), [len(own) for own in corners])
    everything = np.concatenate(corners)
    across = np.linspace(-0.45, 0.45, 31)
    starts = np.array([(x, y, 1.0) for x in across for y in across])
    down = np.array([0, 0, -1.0])
    far = np.stack([first_hits(everything[owner == i], starts, down) for i in range(len(parts))])
    top = far.argmin(axis=0)[np.isfinite(far.min(axis=0))]
    return [(part.colour, float((top == i).mean())) for i, part in enumerate(parts)]


@pytest.mark.parametrize(("kind", "variant"), of("robot", "goal"))
def test_robots_are_red_and_goals_green_from_above(kind: str, variant: int) -> None:
    for seed in range(8):
        parts = build(kind, variant, make_style(seed).colours)
        right = 0.0
        for colour, share in _shares(parts):
            hue, saturation, _ = _hsv(colour)
            red = (hue < 21 or hue > 345) and saturation > 0.7
            green = 95 < hue < 145 and saturation > 0.6
            right += share * (red if kind == "robot" else green)
            assert not (green if kind == "robot" else red)
        assert right > (0.55 if kind == "robot" else 0.4)


@settings(deadline=None, max_examples=50)
@given(seeds)
def test_holes_and_walls_are_much_darker_than_any_floor(seed: int) -> None:
    style = make_style(seed)
    lake, maze = style.colours["ice"], style.colours["concrete"]
    for part in build("hole", style.models["hole"] % MODELS["hole"], style.colours):
        assert _luma(part.colour) < 0.72 * _luma(lake), part
    for part in build("wall", style.models["wall"] % MODELS["wall"], style.colours):
        assert _luma(part.colour) < 0.6 * _luma(maze), part


@settings(deadline=None, max_examples=50)
@given(seeds)
def test_floors_stand_out_from_the_ground(seed: int) -> None:
    colours = make_style(seed).colours
    for floor in ("ice", "concrete", "carpet"):
        assert _luma(colours[floor]) > 1.5 * _luma(colours["ground"])


@settings(deadline=None, max_examples=50)
@given(seeds)
def test_clutter_is_pale_beside_what_matters(seed: int) -> None:
    colours = make_style(seed).colours
    for variant in range(MODELS["clutter"]):
        for part in build("clutter", variant, colours):
            assert _hsv(part.colour)[1] < 0.5


# --- In scenes ---


@pytest.fixture(scope="module")
def renderer() -> Iterator[PandaRenderer]:
    with PandaRenderer() as opened:
        yield opened


@pytest.mark.parametrize(
    ("family", "level", "kinds"),
    [
        ("frozenlake", 5, ("hole", "goal", "robot", "clutter")),
        ("maze", 4, ("wall", "goal", "robot")),
        ("minibehaviour", 5, ("printer", "table", "robot", "clutter")),
    ],
)
def test_every_model_is_drawn_and_read_back(
    renderer: PandaRenderer, family: str, level: int, kinds: tuple[str, ...]
) -> None:
    used: dict[str, set[int]] = {kind: set() for kind in kinds}
    for seed in range(60):
        scene = build_scene(sample(family, level, seed), seed)
        assert renderer.read_state(scene) == scene.state
        for kind in set(kinds) - {"clutter"}:
            used[kind].add(scene.style.models[kind] % MODELS[kind])
        mesh = mesh_of(scene)
        assert np.isfinite(mesh.vertices).all() and mesh.faces.max() < len(mesh.vertices)
    assert {kind: len(found) for kind, found in used.items() if kind != "clutter"} == {
        kind: MODELS[kind] for kind in kinds if kind != "clutter"
    }


def test_a_large_lake_is_cheap_to_draw() -> None:
    counts = [len(mesh_of(build_scene(sample("frozenlake", 8, i), i)).faces) for i in range(30)]
    assert max(counts) < 12_000


def test_models_do_not_depend_on_anything_but_their_arguments() -> None:
    colours = make_style(3).colours
    for kind, variant in ALL:
        assert build(kind, variant, colours) == build(kind, variant, dict(colours))


@pytest.mark.parametrize(("kind", "variant"), of("robot", "printer", "goal", "clutter"))
def test_an_object_alone_has_the_extent_of_its_parts(kind: str, variant: int) -> None:
    parts = build(kind, variant)
    scene = build_scene(sample("frozenlake", 3, 0), None)
    thing = SceneObject("thing", kind, (0, 0, 0), 0.0, parts)
    alone: Scene = replace(scene, objects=(thing,))
    found = mesh_of(alone).vertices / scene.cell_size
    meant = corners_of(parts).reshape(-1, 3)
    assert np.allclose(found.min(axis=0), meant.min(axis=0), atol=1e-5)
    assert np.allclose(found.max(axis=0), meant.max(axis=0), atol=1e-5)
