"""Scenes: geometry in metres, deterministic styles, and the state read back from placed things."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim import LEVELS, FrozenLake, MiniBehaviour, State, sample
from sim.drawing import canonical_cell_to_pixel
from sim.grid import CELL_SIZE, cell_centre
from sim.light import lit
from sim.mesh import mesh_of
from sim.models import Part
from sim.readback import Placed, ReadbackError, check_state, read_state
from sim.scene import SEMANTIC_IDS, Scene, SceneObject, build_scene, grid_of
from sim.style import STYLES, StyleError, make_style

seeds = st.integers(0, 2**63 - 1)
PAIRS = [(family, level) for family in LEVELS for level in LEVELS[family]]


@st.composite
def sampled_states(draw: st.DrawFn) -> State:
    family, level = draw(st.sampled_from(PAIRS))
    return sample(family, level, draw(st.integers(0, 10**6)))


def placed(scene: Scene) -> list[Placed]:
    """What a faithful renderer would say that it holds."""
    mesh = mesh_of(scene)
    parts = np.split(mesh.world, mesh.vertex_ends[:-1])
    return [
        Placed(thing.role, thing.position, tuple(own.min(0)), tuple(own.max(0)))
        for thing, own in zip(scene.objects, parts, strict=True)
        if thing.role not in ("ground", "clutter")
    ]


@given(sampled_states(), seeds, st.sampled_from(STYLES))
def test_a_scene_is_deterministic_and_placed_exactly(state: State, seed: int, styles: str) -> None:
    scene = build_scene(state, seed, styles=styles)
    assert scene == build_scene(state, seed, styles=styles)
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
    assert max(np.ptp(pixels[:, 0]) / width, np.ptp(pixels[:, 1]) / height) > 0.55


@given(sampled_states(), seeds)
def test_the_grids_maps_are_the_cameras(state: State, seed: int) -> None:
    scene = build_scene(state, seed, 200, 160)
    grid = grid_of(scene)
    cells = [(row, column) for row in range(state.size) for column in range(state.size)]
    assert np.allclose(grid.pixels(cells), scene.camera.project(grid.world(cells)), atol=1e-6)
    things = {thing.role: thing for thing in scene.objects}
    robot = state.agent if isinstance(state, MiniBehaviour) else state.start
    assert np.allclose(grid.world([robot])[0], things["robot"].position)
    assert [grid.cell_at(u, v) for u, v in grid.pixels(cells)] == cells


@given(sampled_states(), seeds)
def test_up_in_the_picture_is_up_on_the_grid(state: State, seed: int) -> None:
    grid = grid_of(build_scene(state, seed, 200, 200))
    last = state.size - 1
    for k in range(state.size):
        top, bottom = grid.pixels([(0, k), (last, k)])
        left, right = grid.pixels([(k, 0), (k, last)])
        # Whichever way it looks, less than 45° off.
        assert bottom[1] - top[1] > abs(bottom[0] - top[0])
        assert right[0] - left[0] > abs(right[1] - left[1])


@given(sampled_states(), st.integers(32, 512), st.integers(32, 512))
def test_the_plain_camera_is_the_canonical_one(state: State, width: int, height: int) -> None:
    camera = build_scene(state, None, width, height).camera
    to_pixel = canonical_cell_to_pixel(state.size, height, width)
    for cell in ((0, 0), (state.size - 1, 1), (0, state.size - 1)):
        pixel = camera.project([(*cell_centre(cell, state.size), 0)])[0]
        assert np.allclose(pixel, to_pixel(cell), atol=1e-9)


def test_overhead_cameras_look_down_and_varied_ones_up_to_45_degrees() -> None:
    tilts = {
        styles: [np.degrees(make_style(seed, styles).view.tilt) for seed in range(300)]
        for styles in STYLES
    }
    assert max(tilts["plain"]) == 0 and max(tilts["overhead"]) <= 8
    assert 40 < max(tilts["varied"]) <= 45
    # A third looks straight down.
    assert 60 < sum(tilt == 0 for tilt in tilts["varied"]) < 150


def test_unknown_styles_are_refused() -> None:
    with pytest.raises(StyleError, match=r"'wild'.*plain, overhead, varied"):
        build_scene(sample("maze", 3, 0), 1, styles="wild")


def test_a_robots_style_does_not_move_it() -> None:
    state = sample("maze", 3, 5)
    robots = [
        next(t for t in build_scene(state, seed).objects if t.role == "robot") for seed in range(5)
    ]
    assert len({robot.position for robot in robots}) == 1
    assert len({robot.yaw for robot in robots}) == 5


# --- Triangles ---


def scene_of(*objects: SceneObject) -> Scene:
    """A scene of these alone, under a light that changes no colour that looks up."""
    plain = build_scene(sample("frozenlake", 3, 0), None, styles="plain")
    style = replace(plain.style, light=(0.0, 0.0, 1.0), intensity=1.0, ambient=1.0)
    return replace(plain, objects=objects, style=style)


@pytest.mark.parametrize("shape", ["box", "cylinder", "pit"])
@pytest.mark.parametrize("yaw", [0.0, 0.7])
def test_faces_are_seen_from_outside_and_stay_in_their_box(shape: str, yaw: float) -> None:
    part = Part(shape, (1.0, 2.0, 3.0), (0.4, 0.6, 0.2), (10, 20, 30), yaw)
    scene = scene_of(SceneObject("thing", "goal", (0, 0, 0), 0.0, (part,)))
    mesh = mesh_of(scene)
    corners = mesh.vertices[mesh.faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert (np.linalg.norm(across, axis=1) > 1e-7).all()
    turn = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
    local = mesh.vertices / scene.cell_size - (1, 2, 3)
    local[:, :2] = local[:, :2] @ turn.T
    assert (np.abs(local) < np.array((0.2, 0.3, 0.1)) + 1e-5).all()
    assert (mesh.colours == (10, 20, 30)).all()


def test_meshes_keep_to_their_objects() -> None:
    built = build_scene(sample("minibehaviour", 5, 3), 4)
    scene = scene_of(*built.objects)
    mesh = mesh_of(scene)
    assert mesh.vertex_ends[-1] == len(mesh.vertices) and mesh.face_ends[-1] == len(mesh.faces)
    for thing, low, high, start, end in zip(
        scene.objects,
        [0, *mesh.vertex_ends],
        mesh.vertex_ends,
        [0, *mesh.face_ends],
        mesh.face_ends,
        strict=False,
    ):
        alone = mesh_of(scene_of(thing))
        assert np.array_equal(mesh.vertices[low:high], alone.vertices)
        assert np.array_equal(mesh.uv[low:high], alone.uv)
        assert np.array_equal(mesh.faces[start:end] - low, alone.faces)


def test_the_world_frame_turns_and_moves() -> None:
    part = Part("box", (1, 0, 0), (2, 0.2, 0.2), (9, 9, 9))
    mesh = mesh_of(scene_of(SceneObject("arm", "wall", (5, 6, 0), np.pi / 2, (part,))))
    # An arm of two cells along +x turned a quarter to the left points along +y.
    assert np.allclose(mesh.world.min(0), (4.95, 6, -0.05), atol=1e-6)
    assert np.allclose(mesh.world.max(0), (5.05, 7, 0.05), atol=1e-6)


def test_neighbours_go_on_with_the_texture() -> None:
    part = Part("lid", (0, 0, 0), (1, 1, 0.1), (9, 9, 9))
    tiles = [SceneObject(f"t{i}", "floor", (0.5 * i, 0, 0), 0.0, (part,), "stones") for i in (0, 1)]
    mesh = mesh_of(scene_of(*tiles))
    ends = {}
    for place, uv in zip(mesh.world, mesh.uv, strict=True):
        ends.setdefault(tuple(place.round(4)), []).append(uv % 1)
    shared = [uvs for uvs in ends.values() if len(uvs) == 2]
    assert len(shared) == 2
    for one, other in shared:
        assert np.allclose(np.exp(2j * np.pi * one), np.exp(2j * np.pi * other), atol=1e-4)


def test_light_darkens_faces_that_turn_away() -> None:
    style = replace(make_style(None), light=(0.6, 0.0, 0.8), intensity=1.0, ambient=0.5)
    normals = np.array([(0, 0, 1), (1, 0, 0), (-1, 0, 0)], np.float32)
    high = np.full((3, 3), 1, np.float32)  # above anything
    shown = lit(np.full((3, 3), 200, np.uint8), high, normals, (), 3, 0.5, style)
    assert shown[0].tolist() == [200] * 3
    assert shown[2].tolist() == [100] * 3
    assert shown[1].tolist() == [175] * 3  # 0.5 + 0.5 · 0.6 / 0.8 of 200


def test_a_wall_throws_its_shadow_away_from_the_light() -> None:
    style = replace(make_style(None), light=(0.6, 0.0, 0.8), intensity=1.0, ambient=0.5)
    part = Part("box", (0, 0, 0.2), (0.2, 3.0, 0.4), (9, 9, 9))
    wall = SceneObject("wall", "wall", (0, 0, 0), 0.0, (part,))
    # The light comes from +x, 0.4 high: the shadow reaches 0.4 · 0.6 / 0.8 = 0.3 cells to -x.
    x = np.array([-0.9, -0.2, 0.2, 0.9])
    points = np.array([(v / 2, 0, 0) for v in x], np.float32)
    up = np.tile(np.array([0, 0, 1], np.float32), (4, 1))
    shown = lit(np.full((4, 3), 200, np.uint8), points, up, (wall,), 3, 0.5, style)
    assert (shown[:, 0] == 200).tolist() == [True, False, True, True]
    assert shown[1, 0] == 100


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
        check_state(read_state(found), LAKE)


def test_a_missing_wall_gives_another_maze() -> None:
    found = things(MAZE)
    inner = next(
        i
        for i, thing in enumerate(found)
        if thing.role == "wall" and max(map(abs, thing.position[:2])) < 1.4 * CELL_SIZE
    )
    with pytest.raises(ReadbackError, match="not the one"):
        check_state(read_state(found[:inner] + found[inner + 1 :]), MAZE)


def test_a_robot_in_a_hole_is_refused() -> None:
    found = things(LAKE)
    robot, hole = index_of(found, "robot"), index_of(found, "hole")
    dx, dy = np.subtract(found[hole].position, found[robot].position)[:2]
    found[robot] = moved(found[robot], dx, dy)
    with pytest.raises(ReadbackError, match="hole"):
        read_state(found)
