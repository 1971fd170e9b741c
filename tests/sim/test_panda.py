"""The Panda3D renderer: its pictures agree with the camera, its scene graph with the state."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sim import LEVELS, FrozenLake, Maze, MiniBehaviour, State, sample
from sim.camera import Camera
from sim.grid import cell_centre
from sim.models import Part
from sim.panda import PandaRenderer, RendererError
from sim.readback import ReadbackError, check_state
from sim.scene import SEMANTIC_IDS, Scene, SceneObject, build_scene, grid_of
from sim.style import STYLES

PAIRS = [(family, level) for family in LEVELS for level in LEVELS[family]]
shared = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60
)


@pytest.fixture(scope="module")
def renderer() -> Iterator[PandaRenderer]:
    with PandaRenderer() as opened:
        yield opened


# Seen from the side, the ridge of a hedge lies between two pixels.
HEDGES = Maze(
    size=6,
    start=(2, 2),
    goal=(3, 4),
    walls=(
        (5, 3, 1, 3, 11, 13),
        (12, 7, 10, 5, 3, 10),
        (12, 5, 3, 10, 5, 9),
        (12, 6, 9, 5, 10, 12),
        (4, 11, 6, 10, 5, 10),
        (6, 3, 3, 3, 2, 11),
    ),
)


@st.composite
def scenes(draw: st.DrawFn, side: int = 128) -> Scene:
    family, level = draw(st.sampled_from(PAIRS))
    state = sample(family, level, draw(st.integers(0, 10**6)))
    styles = draw(st.sampled_from(STYLES))
    return build_scene(state, draw(st.integers(0, 2**63 - 1)), side, side, styles=styles)


def roles_by_cell(state: State) -> dict[tuple[int, int], str]:
    """What a camera above must see at the centre of each cell."""
    roles = {(r, c): "floor" for r in range(state.size) for c in range(state.size)}
    if isinstance(state, FrozenLake):
        roles |= dict.fromkeys(state.holes, "hole")
    if isinstance(state, MiniBehaviour):
        roles |= dict.fromkeys(state.table, "table")
        return roles | {state.printer: "printer", state.agent: "robot"}
    return roles | {state.goal: "goal", state.start: "robot"}


@shared
@given(scene=scenes())
def test_the_state_is_read_back_from_the_scene_graph(renderer: PandaRenderer, scene: Scene) -> None:
    assert renderer.read_state(scene) == scene.state


@shared
@given(scene=scenes())
def test_every_objects_projected_cell_centre_lies_in_its_mask(
    renderer: PandaRenderer, scene: Scene
) -> None:
    semantic = renderer.render(scene, semantic=True).semantic
    assert semantic is not None and semantic.dtype == np.uint16
    assert set(np.unique(semantic)) <= {0, *SEMANTIC_IDS.values()}
    straight_down = scene.style.view.tilt == 0 and not scene.style.clutter
    for cell, role in roles_by_cell(scene.state).items():
        u, v = np.rint(grid_of(scene).pixels([cell])[0]).astype(int)
        # A wall or a table may stand before bare floor, but not before an object.
        if role != "floor" or straight_down:
            assert semantic[v, u] == SEMANTIC_IDS[role], (cell, role)


@shared
@example(scene=build_scene(HEDGES, 51572517, 128, 128, styles="varied"))
@given(scene=scenes())
def test_walls_are_seen_where_they_stand(renderer: PandaRenderer, scene: Scene) -> None:
    if not isinstance(scene.state, Maze):
        return
    semantic = renderer.render(scene, semantic=True).semantic
    assert semantic is not None
    top = scene.style.wall_height * scene.cell_size
    for thing in scene.objects:
        if thing.role == "wall":
            point = (*thing.position[:2], top)
            # One of the four pixels around it: seen from the side, a hedge ends in its ridge.
            u, v = np.floor(scene.camera.project([point])[0]).astype(int)
            # Only a cable hangs higher.
            seen = {SEMANTIC_IDS["wall"], SEMANTIC_IDS["clutter"]}
            assert seen & set(semantic[v : v + 2, u : u + 2].flat), thing.name


@shared
@given(scene=scenes())
def test_depth_is_the_distance_along_the_optical_axis(
    renderer: PandaRenderer, scene: Scene
) -> None:
    frame = renderer.render(scene, depth=True, semantic=True)
    depth, semantic = frame.depth, frame.semantic
    assert depth is not None and depth.dtype == np.float32 and depth.shape == (128, 128)
    assert semantic is not None
    free = [cell for cell, role in roles_by_cell(scene.state).items() if role == "floor"]
    for cell in free[:10]:
        pixel = np.rint(scene.camera.project([(*cell_centre(cell, scene.state.size), 0)]))
        expected = scene.camera.depth_of(scene.camera.to_ground(pixel))[0]
        u, v = pixel[0].astype(int)
        if semantic[v, u] == SEMANTIC_IDS["floor"]:
            assert abs(depth[v, u] - expected) < 1e-4


def flat_scene(camera: Camera, low: tuple[float, float], high: tuple[float, float]) -> Scene:
    """A white plate at z = 0 over a black ground 1 m below."""
    x, y = (low[0] + high[0]) / 2, (low[1] + high[1]) / 2
    size = (high[0] - low[0], high[1] - low[1], 0.001)  # so thin that its sides are not seen
    plate = Part("box", (0, 0, -0.0005), size, (255, 255, 255))
    ground = Part("box", (0, 0, -0.5), (50, 50, 1), (0, 0, 0))
    objects = (
        SceneObject("ground", "ground", (0, 0, -1), 0.0, (ground,)),
        SceneObject("plate", "goal", (x, y, 0), 0.0, (plate,)),
    )
    plain = build_scene(sample("frozenlake", 3, 0), None, styles="plain")
    bright = replace(plain.style, ambient=1.0)
    return replace(plain, objects=objects, camera=camera, cell_size=1.0, style=bright)


@pytest.mark.parametrize("shift", [0.0, 0.003, 0.007, 0.011, 0.016])
@pytest.mark.parametrize(("cx", "cy"), [(39.5, 29.5), (10.25, 50.6)])
def test_edges_lie_where_the_camera_says(
    renderer: PandaRenderer, shift: float, cx: float, cy: float
) -> None:
    down = Camera.looking_at((0, 0, 2), (0, 0, 0), (0, 1, 0), 80, 60, 100.0)
    camera = Camera(80, 60, 100.0, 80.0, cx, cy, down.pose)
    x0, y0 = ((20.0 - cx) / 100 * 2 + shift, (cy - 40.0) / 80 * 2 + shift)
    x1, y1 = x0 + 0.5, y0 + 0.4
    frame = renderer.render(flat_scene(camera, (x0, y0), (x1, y1)), semantic=True, depth=True)
    left, bottom = camera.project([(x0, y0, 0)])[0]
    right, top = camera.project([(x1, y1, 0)])[0]
    v, u = np.mgrid[:60, :80]
    inside = np.minimum.reduce([u - left, right - u, v - top, bottom - v])
    assert frame.semantic is not None and frame.depth is not None
    plate = frame.semantic == SEMANTIC_IDS["goal"]
    # Samples are a seventh of a pixel apart.
    assert plate[inside > 0.15].all() and not plate[inside < -0.15].any()
    assert np.allclose(frame.depth[inside > 0.15], 2, atol=1e-4)
    assert np.allclose(frame.depth[inside < -0.15], 3, atol=1e-4)
    white = frame.rgb[:, :, 0] / 255.0
    centre = [(white * axis).sum() / white.sum() for axis in (u, v)]
    assert np.allclose(centre, [(left + right) / 2, (top + bottom) / 2], atol=0.2)


def test_an_orthographic_camera_sees_along_parallel_rays(renderer: PandaRenderer) -> None:
    camera = Camera.looking_at((0, 0, 2), (0, 0, 0), (0, 1, 0), 80, 60, 20.0, "orthographic")
    frame = renderer.render(flat_scene(camera, (-0.5, -1.0), (1.0, 0.5)), semantic=True, depth=True)
    left, bottom = camera.project([(-0.5, -1.0, 0)])[0]
    right, top = camera.project([(1.0, 0.5, 0)])[0]
    # By hand: 20 px a metre around (39.5, 29.5).
    assert np.allclose((left, right, top, bottom), (29.5, 59.5, 19.5, 49.5))
    v, u = np.mgrid[:60, :80]
    inside = np.minimum.reduce([u - left, right - u, v - top, bottom - v])
    assert frame.semantic is not None and frame.depth is not None
    assert np.array_equal(frame.semantic == SEMANTIC_IDS["goal"], inside > 0)
    assert np.allclose(frame.depth, np.where(inside > 0, 2, 3), atol=1e-4)


def test_only_what_is_asked_for(renderer: PandaRenderer) -> None:
    scene = build_scene(sample("maze", 3, 1), 5, 96, 64)
    frame = renderer.render(scene)
    assert frame.depth is None and frame.semantic is None
    assert frame.rgb.shape == (64, 96, 3) and frame.rgb.dtype == np.uint8
    both = renderer.render(scene, depth=True, semantic=True)
    assert np.array_equal(both.rgb, frame.rgb)
    assert renderer.render(scene, semantic=True).depth is None


@pytest.mark.parametrize("side", [32, 1000, 2048])
def test_picture_sizes(renderer: PandaRenderer, side: int) -> None:
    scene = build_scene(sample("frozenlake", 3, 1), None, side, side)
    frame = renderer.render(scene, semantic=True)
    assert frame.semantic is not None and frame.rgb.shape == (side, side, 3)
    pixel = scene.camera.project([(*cell_centre(scene.state.goal, 3), 0)])[0]  # type: ignore[union-attr]
    u, v = np.rint(pixel).astype(int)
    assert frame.semantic[v, u] == SEMANTIC_IDS["goal"]


def test_another_camera_shows_the_same_scene(renderer: PandaRenderer) -> None:
    scene = build_scene(sample("frozenlake", 4, 2), 8)
    tilted = Camera.looking_at((0, -2.5, 2.5), (0, 0, 0), (0, 1, 0), 160, 120, 150.0)
    semantic = renderer.render(scene, tilted, semantic=True).semantic
    assert semantic is not None
    for cell, role in roles_by_cell(scene.state).items():
        if role == "floor":
            point = (*cell_centre(cell, 4), 0)
            u, v = np.rint(tilted.project([point])[0]).astype(int)
            # At 45° a thing in front may hide a floor cell, but no hole may appear there.
            assert semantic[v, u] != SEMANTIC_IDS["hole"]


def test_objects_show_their_colours(renderer: PandaRenderer) -> None:
    scene = build_scene(sample("frozenlake", 3, 4), None, 96, 96, styles="plain")
    frame = renderer.render(scene, semantic=True)
    assert frame.semantic is not None
    mean = {
        role: frame.rgb[frame.semantic == number].mean(axis=0)
        for role, number in SEMANTIC_IDS.items()
        if (frame.semantic == number).any()
    }
    assert mean["goal"].argmax() == 1 and mean["robot"].argmax() == 0
    assert mean["hole"].argmax() == 2 and mean["hole"].max() < mean["floor"].min()


def test_same_scene_same_bytes_whatever_was_drawn_before(renderer: PandaRenderer) -> None:
    wanted = [build_scene(sample(*pair, 3), 11) for pair in PAIRS]
    first = [renderer.render(scene).rgb for scene in wanted]
    with PandaRenderer() as fresh:
        for scene, rgb in reversed(list(zip(wanted, first, strict=True))):
            assert np.array_equal(fresh.render(scene).rgb, rgb)
    assert len({rgb.tobytes() for rgb in first}) == len(first)


def test_several_renderers_after_and_beside_each_other() -> None:
    scene = build_scene(sample("maze", 4, 0), 0)
    with PandaRenderer() as outer:
        expected = outer.render(scene).rgb
        for _ in range(5):
            with PandaRenderer() as inner:
                assert np.array_equal(inner.render(scene).rgb, expected)
        assert np.array_equal(outer.render(scene).rgb, expected)


def test_a_renderer_changes_size_without_a_trace() -> None:
    state = sample("minibehaviour", 5, 2)
    wanted = [build_scene(state, 3, *size) for size in ((64, 64), (200, 90), (48, 300), (64, 64))]
    with PandaRenderer() as one:
        drawn = [one.render(scene).rgb for scene in wanted]
    for scene, rgb in zip(wanted, drawn, strict=True):
        with PandaRenderer() as fresh:
            assert np.array_equal(fresh.render(scene).rgb, rgb)


def test_memory_stays_flat() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    def work(first: int) -> None:
        for seed in range(first, first + 30):
            with PandaRenderer() as opened:
                for style in range(10):
                    scene = build_scene(sample("frozenlake", 3, seed), seed * 10 + style)
                    opened.render(scene)
                    opened.read_state(scene)

    work(0)
    before = resident()
    work(30)
    # A buffer kept per renderer would be 35 MB, a cached transform per node 6 MB.
    assert resident() - before < 4e6


def test_a_closed_renderer_says_so() -> None:
    renderer = PandaRenderer()
    renderer.close()
    renderer.close()
    with pytest.raises(RendererError, match="closed"):
        renderer.render(build_scene(sample("maze", 3, 0), 0))


def test_a_scene_that_was_built_wrong_is_refused(renderer: PandaRenderer) -> None:
    scene = build_scene(sample("frozenlake", 4, 1), 0)
    robot = next(thing for thing in scene.objects if thing.role == "robot")
    rest = tuple(thing for thing in scene.objects if thing is not robot)
    elsewhere = next(t for t in rest if t.role == "floor" and t.position != robot.position)
    wrong = replace(scene, objects=(*rest, replace(robot, position=elsewhere.position)))
    with pytest.raises(ReadbackError):
        check_state(renderer.read_state(wrong), scene.state)


def test_drawing_is_quiet_and_needs_no_display() -> None:
    program = (
        "from sim import sample\n"
        "from sim.panda import PandaRenderer\n"
        "from sim.scene import build_scene\n"
        "with PandaRenderer() as r: r.render(build_scene(sample('maze', 3, 0), 0))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={"PATH": "", "PYTHONPATH": ":".join(sys.path)},
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
