"""The Habitat-Sim renderer: truth from the simulator, and the same pictures as Panda3D draws."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("habitat_sim", reason="habitat-sim is not installed (see README)")

from sim import LEVELS, FrozenLake, MiniBehaviour, State, sample
from sim import habitat as module
from sim.camera import Camera, CameraError
from sim.dataset import load_episodes, write_dataset
from sim.episodes import style_seed
from sim.habitat import HabitatError, HabitatRenderer, read_state
from sim.panda import PandaRenderer
from sim.readback import ReadbackError, check_state
from sim.request import DatasetRequest
from sim.sampling import sample_split
from sim.scene import FOREGROUND, SEMANTIC_IDS, Scene, build_scene, grid_of
from sim.style import STYLES

PAIRS = [(family, level) for family in LEVELS for level in LEVELS[family]]
NUMBERS = [SEMANTIC_IDS[role] for role in FOREGROUND]


@pytest.fixture(scope="module")
def habitat() -> Iterator[HabitatRenderer]:
    with HabitatRenderer() as opened:
        yield opened


@pytest.fixture(scope="module")
def panda() -> Iterator[PandaRenderer]:
    with PandaRenderer() as opened:
        yield opened


def scenes(count: int, side: int = 128) -> Iterator[Scene]:
    """Scenes of all families, levels and sets of styles in turn."""
    for i in range(count):
        state = sample(*PAIRS[i % len(PAIRS)], i)
        yield build_scene(state, i * 7919, side, side, styles=STYLES[i % 5 % 3])


def object_cells(state: State) -> dict[tuple[int, int], str]:
    if isinstance(state, MiniBehaviour):
        own = dict.fromkeys(state.table, "table")
        return own | {state.printer: "printer", state.agent: "robot"}
    holes = dict.fromkeys(state.holes, "hole") if isinstance(state, FrozenLake) else {}
    return holes | {state.goal: "goal", state.start: "robot"}


def test_the_state_is_read_back_from_the_simulator(habitat: HabitatRenderer) -> None:
    for scene in scenes(60):
        assert habitat.read_state(scene) == scene.state
        assert habitat.simulator is not None
        # The function needs nothing but the simulator.
        assert read_state(habitat.simulator) == scene.state


def test_cells_of_another_size(habitat: HabitatRenderer) -> None:
    for cell_size in (0.2, 1.5):
        for pair in PAIRS:
            scene = build_scene(sample(*pair, 5), 3, 64, 64, cell_size)
            assert habitat.read_state(scene) == scene.state


def test_both_renderers_show_the_same_geometry(
    habitat: HabitatRenderer, panda: PandaRenderer
) -> None:
    for scene in scenes(24, 256):
        one = habitat.render(scene, depth=True, semantic=True)
        other = panda.render(scene, depth=True, semantic=True)
        assert one.semantic is not None and other.semantic is not None
        assert one.depth is not None and other.depth is not None
        masks = [np.isin(frame.semantic, NUMBERS) for frame in (one, other)]
        assert (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum() > 0.95
        same = one.semantic == other.semantic
        assert same.mean() > 0.99
        # Pixels on edges see one surface in one picture and another in the other.
        assert np.quantile(np.abs(one.depth - other.depth)[same], 0.95) < 0.005
        assert np.abs(one.rgb.astype(int) - other.rgb).mean() < 8


def test_every_objects_projected_cell_centre_lies_in_its_mask(habitat: HabitatRenderer) -> None:
    for scene in scenes(60):
        semantic = habitat.render(scene, semantic=True).semantic
        assert semantic is not None and semantic.dtype == np.uint16
        assert set(np.unique(semantic)) <= {0, *SEMANTIC_IDS.values()}
        for cell, role in object_cells(scene.state).items():
            u, v = np.rint(grid_of(scene).pixels([cell])[0]).astype(int)
            assert semantic[v, u] == SEMANTIC_IDS[role], (scene.state, cell, role)


@pytest.mark.parametrize("projection", ["pinhole", "orthographic"])
def test_depth_is_the_distance_along_the_optical_axis(
    habitat: HabitatRenderer, panda: PandaRenderer, projection: str
) -> None:
    scene = build_scene(sample("minibehaviour", 5, 2), 6)
    focal = 150.0 if projection == "pinhole" else 40.0
    camera = Camera.looking_at((0.4, -2, 3), (0, 0, 0), (0, 1, 0), 160, 120, focal, projection)
    one = habitat.render(scene, camera, depth=True, semantic=True)
    other = panda.render(scene, camera, depth=True, semantic=True)
    assert one.depth is not None and other.depth is not None
    assert one.semantic is not None and one.depth.dtype == np.float32
    same = one.semantic == other.semantic
    assert same.mean() > 0.98
    assert np.median(np.abs(one.depth - other.depth)[same]) < 1e-3
    floor = (one.semantic == SEMANTIC_IDS["floor"]) & same
    v, u = np.nonzero(floor)
    expected = camera.depth_of(camera.to_ground(np.stack([u, v], axis=1)))
    assert np.median(np.abs(one.depth[v, u] - expected)) < 1e-3


def test_same_scene_same_bytes_whatever_was_drawn_before(
    habitat: HabitatRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = list(scenes(12))
    first = [habitat.render(scene).rgb for scene in wanted]
    # Simulators take turns after three scenes each.
    monkeypatch.setattr(module, "_SCENES_PER_SIMULATOR", 3)
    with HabitatRenderer() as fresh:
        for scene, rgb in reversed(list(zip(wanted, first, strict=True))):
            assert np.array_equal(fresh.render(scene).rgb, rgb)
    assert len({rgb.tobytes() for rgb in first}) == len(first)


def test_a_simulator_starts_in_a_second_anywhere_with_the_same_picture(tmp_path: Path) -> None:
    # Habitat would read this setting from below the working directory.
    (tmp_path / "data").mkdir()
    lighting = {"enable_ibl": True, "direct_light_intensity": 9.0}
    (tmp_path / "data/default.pbr_config.json").write_text(json.dumps(lighting))
    program = (
        "import hashlib, time\n"
        "from sim import sample\n"
        "from sim.habitat import HabitatRenderer\n"
        "from sim.scene import build_scene\n"
        "scene = build_scene(sample('maze', 4, 0), 3)\n"
        "with HabitatRenderer() as r:\n"
        "    began = time.monotonic()\n"
        "    rgb = r.render(scene).rgb\n"
        "    print(hashlib.sha256(rgb).hexdigest(), time.monotonic() - began)\n"
    )
    digests = set()
    for folder in (tmp_path, Path.cwd()):
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=folder,
            env={"PATH": "", "PYTHONPATH": ":".join([str(Path.cwd()), *sys.path])},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (done.returncode, done.stderr) == (0, "")
        digest, seconds = done.stdout.split()
        digests.add(digest)
        assert float(seconds) < 5  # with image-based lighting it takes at least ten
    assert len(digests) == 1


def test_opening_leaves_the_working_directory_and_no_files(tmp_path: Path) -> None:
    here = Path.cwd()
    with HabitatRenderer() as renderer:
        renderer.render(next(scenes(1)))
        folder = Path(renderer._folder.name)
        assert Path.cwd() == here
        assert [path.name for path in folder.glob("*.glb")] == ["stage.glb"]
    assert not folder.exists()


def test_a_data_set_has_the_same_bytes_with_one_worker_two_and_in_parts(tmp_path: Path) -> None:
    pairs = [("maze", 3), ("minibehaviour", 5)]

    def written(name: str, **how: Any) -> dict[str, bytes]:
        write_dataset(tmp_path / name, DatasetRequest(pairs, "train", 7, 6, 64, "habitat"), **how)
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    one = written("one")
    assert written("two", workers=2) == one
    written("parts", part=(1, 2))
    assert written("parts", part=(0, 2)) == one
    assert {e.renderer for e in load_episodes(tmp_path / "one", "train")} == {"habitat"}


def test_a_cell_that_coarser_voxels_lose_is_found(habitat: HabitatRenderer) -> None:
    state = sample_split("frozenlake", 5, "train", 1336)
    style = style_seed("frozenlake", 5, "train", 1336)
    assert habitat.read_state(build_scene(state, style, 64, 64)) == state


def test_picture_sizes_change_without_a_trace(habitat: HabitatRenderer) -> None:
    state = sample("minibehaviour", 5, 2)
    shapes = ((64, 64), (200, 90), (48, 300), (64, 64))
    wanted = [build_scene(state, 3, *shape) for shape in shapes]
    drawn = [habitat.render(scene).rgb for scene in wanted]
    assert [rgb.shape[1::-1] for rgb in drawn] == list(shapes)
    assert np.array_equal(drawn[0], drawn[3])


def test_a_scene_that_was_built_wrong_is_refused(habitat: HabitatRenderer) -> None:
    scene = build_scene(sample("frozenlake", 4, 1), 0)
    robot = next(thing for thing in scene.objects if thing.role == "robot")
    rest = tuple(thing for thing in scene.objects if thing is not robot)
    elsewhere = next(t for t in rest if t.role == "floor" and t.position != robot.position)
    moved = replace(scene, objects=(*rest, replace(robot, position=elsewhere.position)))
    with pytest.raises(ReadbackError, match=r"found .* meant "):
        check_state(habitat.read_state(moved), scene.state)
    with pytest.raises(ReadbackError, match="one robot"):
        habitat.read_state(replace(scene, objects=rest))


def test_a_missing_wall_and_a_filled_hole_are_seen_in_the_navigation_mesh(
    habitat: HabitatRenderer,
) -> None:
    maze = build_scene(sample("maze", 4, 1), 0)
    half = maze.state.size * maze.cell_size / 2
    inner = next(
        thing
        for thing in maze.objects
        if thing.role == "wall" and max(map(abs, thing.position[:2])) < half - 0.1
    )
    without = replace(maze, objects=tuple(t for t in maze.objects if t is not inner))
    assert habitat.read_state(without) != maze.state

    lake = build_scene(sample("frozenlake", 4, 1), 0)
    hole = next(thing for thing in lake.objects if thing.role == "hole")
    tile = next(thing for thing in lake.objects if thing.role == "floor")
    filled = replace(tile, name="filled", position=hole.position)
    found = habitat.read_state(
        replace(lake, objects=(*(t for t in lake.objects if t is not hole), filled))
    )
    assert isinstance(found, FrozenLake) and isinstance(lake.state, FrozenLake)
    assert len(found.holes) == len(lake.state.holes) - 1


def test_a_camera_that_habitat_has_not_is_refused(habitat: HabitatRenderer) -> None:
    scene = build_scene(sample("maze", 3, 0), 0)
    for change in ({"cx": 3.0}, {"fy": 7.0}):
        with pytest.raises(CameraError, match="middle"):
            habitat.render(scene, replace(scene.camera, **change))


def test_a_closed_renderer_says_so() -> None:
    renderer = HabitatRenderer()
    renderer.close()
    renderer.close()
    with pytest.raises(HabitatError, match="closed"):
        renderer.render(build_scene(sample("maze", 3, 0), 0))


def test_what_falls_on_the_table_stays_there(habitat: HabitatRenderer) -> None:
    import habitat_sim

    habitat.render(build_scene(sample("minibehaviour", 5, 0), 0, styles="plain"))
    simulator = habitat.simulator
    assert simulator is not None
    bullet = habitat_sim.physics.PhysicsSimulationLibrary.Bullet
    assert simulator.get_physics_simulation_library() == bullet
    objects = simulator.get_rigid_object_manager()
    table = next(
        thing
        for thing in objects.get_objects_by_handle_substring("").values()
        if thing.semantic_id == SEMANTIC_IDS["table"]
    )
    templates = simulator.get_object_template_manager()
    template = templates.get_template_by_handle(templates.get_template_handles("cubeSolid")[0])
    template.scale = np.full(3, 0.05)  # of a cube of 2 m
    number = templates.register_template(template, "die")
    die = objects.add_object_by_template_id(number)
    die.translation = table.translation + type(table.translation)(0, 0.6, 0)
    simulator.step_physics(2.0)
    top = table.translation.y + table.aabb.top
    assert abs(die.translation.y - 0.05 - top) < 0.02
    objects.remove_object_by_id(die.object_id)
