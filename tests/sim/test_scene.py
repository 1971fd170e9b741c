"""Scenes: geometry in metres, deterministic styles, and the state read back from placed things."""

from __future__ import annotations

import colorsys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim import LEVELS, FrozenLake, MiniBehaviour, State, sample
from sim.drawing import canonical_cell_to_pixel
from sim.readback import Placed, ReadbackError, checked_state, read_state
from sim.scene import (
    CELL_SIZE,
    SEMANTIC_IDS,
    Part,
    Scene,
    SceneObject,
    build_scene,
    cell_centre,
    lit,
    make_style,
    mesh_of,
    point_to_cell,
    to_world,
)

seeds = st.integers(0, 2**63 - 1)
PAIRS = [(family, level) for family in LEVELS for level in LEVELS[family]]


@st.composite
def sampled_states(draw: st.DrawFn) -> State:
    family, level = draw(st.sampled_from(PAIRS))
    return sample(family, level, draw(st.integers(0, 10**6)))


def placed(scene: Scene) -> list[Placed]:
    """What a faithful renderer would say that it holds."""
    mesh = mesh_of(scene.objects)
    vertices, _ = to_world(scene.objects, mesh)
    parts = np.split(vertices, mesh.vertex_ends[:-1])
    return [
        Placed(thing.role, thing.position, tuple(own.min(0)), tuple(own.max(0)))
        for thing, own in zip(scene.objects, parts, strict=True)
    ]


def test_cell_centres_by_hand() -> None:
    assert cell_centre((0, 0), 3) == (-0.5, 0.5)
    assert cell_centre((1, 1), 3) == (0, 0)
    assert cell_centre((3, 0), 4, 1.0) == (-1.5, -1.5)


@given(st.integers(2, 64), st.data())
def test_point_to_cell_inverts_cell_centre(size: int, data: st.DataObject) -> None:
    cell = (data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size - 1)))
    x, y = cell_centre(cell, size)
    inside = st.floats(-0.49, 0.49)
    dx, dy = data.draw(inside) * CELL_SIZE, data.draw(inside) * CELL_SIZE
    assert point_to_cell(x + dx, y + dy, size) == cell


def test_points_beside_the_grid_are_in_no_cell() -> None:
    for x, y in ((-0.76, 0), (0.76, 0), (0, -0.76), (0, 0.76)):
        assert point_to_cell(x, y, 3) is None


@given(sampled_states(), seeds)
def test_a_scene_is_deterministic_and_placed_exactly(state: State, seed: int) -> None:
    scene = build_scene(state, seed)
    assert scene == build_scene(state, seed)
    names = [thing.name for thing in scene.objects]
    assert len(set(names)) == len(names)
    assert read_state(placed(scene)) == state


def test_another_style_is_another_scene() -> None:
    state = sample("frozenlake", 4, 0)
    one, other = build_scene(state, 1), build_scene(state, 2)
    assert one.style != other.style and one.camera != other.camera


@given(sampled_states(), seeds, st.sampled_from([(128, 128), (64, 200), (640, 480)]))
def test_the_camera_sees_the_whole_grid(state: State, seed: int, shape: tuple[int, int]) -> None:
    width, height = shape
    camera = build_scene(state, seed, width, height).camera
    half = state.size * CELL_SIZE / 2
    pixels = camera.project([(x, y, 0) for x in (-half, half) for y in (-half, half)])
    assert (pixels > 0).all() and (pixels < (width - 1, height - 1)).all()
    # …and does not waste the picture.
    assert max(np.ptp(pixels[:, 0]) / width, np.ptp(pixels[:, 1]) / height) > 0.7


@given(sampled_states(), st.integers(32, 512), st.integers(32, 512))
def test_the_plain_camera_is_the_canonical_one(state: State, width: int, height: int) -> None:
    camera = build_scene(state, None, width, height).camera
    to_pixel = canonical_cell_to_pixel(state.size, height, width)
    for cell in ((0, 0), (state.size - 1, 1), (0, state.size - 1)):
        pixel = camera.project([(*cell_centre(cell, state.size), 0)])[0]
        assert np.allclose(pixel, to_pixel(cell), atol=1e-9)


@given(seeds)
def test_colours_stay_in_their_hue_families(seed: int) -> None:
    colours = make_style(seed).colours
    hsv = {name: colorsys.rgb_to_hsv(*(v / 255 for v in rgb)) for name, rgb in colours.items()}
    assert 0.25 < hsv["goal"][0] < 0.42 and hsv["goal"][1] > 0.7
    assert not 0.06 < hsv["robot"][0] < 0.95 and hsv["robot"][1] > 0.7
    assert hsv["ice"][2] - hsv["water"][2] > 0.4
    assert hsv["concrete"][2] - hsv["brick"][2] > 0.35


def test_a_robots_style_does_not_move_it() -> None:
    state = sample("maze", 3, 5)
    robots = [
        next(t for t in build_scene(state, seed).objects if t.role == "robot") for seed in range(5)
    ]
    assert len({robot.position for robot in robots}) == 1
    assert len({robot.yaw for robot in robots}) == 5


# --- Triangles ---


@pytest.mark.parametrize("shape", ["box", "cylinder", "pit"])
@pytest.mark.parametrize("yaw", [0.0, 0.7])
def test_faces_look_along_their_normals_and_fill_their_box(shape: str, yaw: float) -> None:
    part = Part(shape, (1.0, 2.0, 3.0), (0.4, 0.6, 0.2), (10, 20, 30), yaw)
    mesh = mesh_of([SceneObject("thing", "goal", (0, 0, 0), 0.0, (part,))])
    corners = mesh.vertices[mesh.faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert (np.linalg.norm(across, axis=1) > 1e-6).all()
    for i in range(3):
        assert ((across * mesh.normals[mesh.faces[:, i]]).sum(axis=1) > 0).all()
    assert np.allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-5)
    turn = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
    local = mesh.vertices - (1, 2, 3)
    local[:, :2] = local[:, :2] @ turn.T
    assert np.allclose(local.min(axis=0), (-0.2, -0.3, -0.1), atol=2e-3)
    assert np.allclose(local.max(axis=0), (0.2, 0.3, 0.1), atol=2e-3)
    assert (mesh.colours == (10, 20, 30)).all()


def test_meshes_keep_to_their_objects() -> None:
    scene = build_scene(sample("minibehaviour", 5, 3), 4)
    mesh = mesh_of(scene.objects)
    assert mesh.vertex_ends[-1] == len(mesh.vertices) and mesh.face_ends[-1] == len(mesh.faces)
    for thing, low, high, start, end in zip(
        scene.objects,
        [0, *mesh.vertex_ends],
        mesh.vertex_ends,
        [0, *mesh.face_ends],
        mesh.face_ends,
        strict=False,
    ):
        alone = mesh_of([thing])
        assert np.array_equal(mesh.vertices[low:high], alone.vertices)
        assert np.array_equal(mesh.colours[low:high], alone.colours)
        assert np.array_equal(mesh.faces[start:end] - low, alone.faces)


def test_the_world_frame_turns_and_moves() -> None:
    part = Part("box", (1, 0, 0), (2, 0.2, 0.2), (9, 9, 9))
    thing = SceneObject("arm", "wall", (5, 6, 0), np.pi / 2, (part,))
    vertices, normals = to_world([thing], mesh_of([thing]))
    # An arm along +x turned a quarter to the left points along +y.
    assert np.allclose(vertices.min(0), (4.9, 6, -0.1), atol=1e-6)
    assert np.allclose(vertices.max(0), (5.1, 8, 0.1), atol=1e-6)
    assert np.allclose(np.abs(normals).max(1), 1, atol=1e-6)


def test_light_darkens_faces_that_turn_away() -> None:
    style = replace(make_style(None), light=(0.6, 0.0, 0.8), intensity=1.0, ambient=0.5)
    normals = np.array([(0, 0, 1), (1, 0, 0), (-1, 0, 0)], np.float32)
    shown = lit(np.full((3, 3), 200, np.uint8), normals, style)
    assert shown[0].tolist() == [200] * 3
    assert shown[2].tolist() == [100] * 3
    assert shown[1].tolist() == [175] * 3  # 0.5 + 0.5 · 0.6 / 0.8 of 200


def test_every_role_has_its_own_id_and_none_is_zero() -> None:
    ids = list(SEMANTIC_IDS.values())
    assert len(set(ids)) == len(ids) and min(ids) > 0


# --- Read-back refuses what is no state ---

LAKE = FrozenLake.from_rows(["SFH", "FFF", "FHG"])
OFFICE = MiniBehaviour(5, (2, 4), (1, 1), frozenset((r, c) for r in (3, 4) for c in (1, 2, 3)))
MAZE = sample("maze", 3, 1)


def things(state: State) -> list[Placed]:
    return placed(build_scene(state, 7))


def moved(thing: Placed, dx: float, dy: float) -> Placed:
    def shift(point: tuple[float, float, float]) -> tuple[float, float, float]:
        return (point[0] + dx, point[1] + dy, point[2])

    return Placed(thing.role, shift(thing.position), shift(thing.low), shift(thing.high))


def index_of(found: list[Placed], role: str) -> int:
    return next(i for i, thing in enumerate(found) if thing.role == role)


@pytest.mark.parametrize(
    ("state", "role"),
    [
        (LAKE, "floor"),
        (LAKE, "hole"),
        (LAKE, "goal"),
        (LAKE, "robot"),
        (MAZE, "goal"),
        (OFFICE, "table"),
        (OFFICE, "robot"),
    ],
)
def test_a_missing_or_doubled_thing_is_refused(state: State, role: str) -> None:
    found = things(state)
    i = index_of(found, role)
    for changed in (found[:i] + found[i + 1 :], [*found, found[i]]):
        with pytest.raises(ReadbackError):
            read_state(changed)


@pytest.mark.parametrize(
    ("state", "role"), [(LAKE, "goal"), (LAKE, "floor"), (MAZE, "wall"), (OFFICE, "printer")]
)
def test_a_thing_off_its_place_is_refused(state: State, role: str) -> None:
    found = things(state)
    i = index_of(found, role)
    found[i] = moved(found[i], 0.1, 0.0)
    with pytest.raises(ReadbackError):
        read_state(found)


def test_an_empty_world_is_refused() -> None:
    with pytest.raises(ReadbackError, match="no floor"):
        read_state([])


def test_a_thing_in_another_cell_gives_another_state_and_both_are_shown() -> None:
    found = things(LAKE)
    i = index_of(found, "goal")
    found[i] = moved(found[i], -CELL_SIZE * 2, 0.0)
    assert read_state(found) == FrozenLake(3, (0, 0), (2, 0), LAKE.holes)
    with pytest.raises(ReadbackError, match=r"found .*\[2, 0\].* meant .*\[2, 2\]"):
        checked_state(found, LAKE)


def test_a_missing_wall_gives_another_maze() -> None:
    found = things(MAZE)
    inner = next(
        i
        for i, thing in enumerate(found)
        if thing.role == "wall" and max(map(abs, thing.position[:2])) < 1.4 * CELL_SIZE
    )
    with pytest.raises(ReadbackError, match="not the one"):
        checked_state(found[:inner] + found[inner + 1 :], MAZE)


def test_a_robot_in_a_hole_is_refused() -> None:
    found = things(LAKE)
    robot, hole = index_of(found, "robot"), index_of(found, "hole")
    dx, dy = np.subtract(found[hole].position, found[robot].position)[:2]
    found[robot] = moved(found[robot], dx, dy)
    with pytest.raises(ReadbackError, match="hole"):
        read_state(found)
