"""Flat boards: their truth, their looks, and data sets of them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgsd_core.cli import main
from sim import FAMILIES, LEVELS, Maze, MiniBehaviour, State, sample, solve
from sim.camera import Camera
from sim.dataset import generate_episodes, load_episodes
from sim.execution import Execution
from sim.flat import FlatError, FlatRenderer
from sim.grid import make_grid
from sim.readback import ReadbackError
from sim.renderers import open_renderer
from sim.scene import SEMANTIC_IDS, Scene, build_scene, grid_of
from sim.style import STYLES

TASKS = [(family, level) for family in FAMILIES for level in LEVELS[family]]
states = st.builds(lambda task, seed: sample(*task, seed), st.sampled_from(TASKS), st.integers(0))
style_seeds = st.one_of(st.none(), st.integers(0, 2**63 - 1))
sets = st.sampled_from(STYLES)

FLAT = FlatRenderer()


@given(states, style_seeds, sets)
def test_the_state_is_read_back_from_what_is_drawn(
    state: State, seed: int | None, styles: str
) -> None:
    assert FLAT.read_state(FLAT.build(state, seed, 64, styles)) == state


def test_what_is_not_there_is_not_read_back() -> None:
    scene = FLAT.build(sample("maze", 4, 1), 3, 64, "overhead")
    for role in ("goal", "robot", "floor"):
        less = tuple(thing for thing in scene.objects if thing.role != role)
        with pytest.raises(ReadbackError):
            FLAT.read_state(replace(scene, objects=less))
    odd = replace(scene.objects[-1], role="volcano")
    with pytest.raises(ReadbackError, match="no icon for a volcano"):
        FLAT.render(replace(scene, objects=(*scene.objects, odd)))


@settings(deadline=None)
@given(states, style_seeds, sets, st.integers(96, 200))
def test_things_are_where_the_grid_says(
    state: State, seed: int | None, styles: str, size: int
) -> None:
    scene = FLAT.build(state, seed, size, styles)
    grid = grid_of(scene)
    assert scene.camera.projection == "orthographic"
    ids = FLAT.render(scene, semantic=True).semantic
    assert ids is not None
    # The whole board is in the picture.
    last = state.size - 1
    corners = grid.pixels([(0, 0), (last, last)])
    half = (corners[1, 0] - corners[0, 0]) / last / 2 if last else 0
    assert corners.min() - half > -0.51 and corners.max() + half < size - 0.49
    things = [(thing.role, thing) for thing in scene.objects]
    for role, thing in things:
        if role in ("goal", "robot", "printer", "hole"):
            v, u = np.nonzero(ids == SEMANTIC_IDS[role])
            at = grid.pixels([_cell(thing.position, scene)])[0]
            near = np.abs(np.stack([u, v], axis=1) - at).max(axis=1) < half
            # Every cell of such a thing shows it, around the cell's middle.
            assert near.mean() > 0.03
            middle = np.stack([u[near], v[near]], axis=1).mean(axis=0)
            assert np.abs(middle - at).max() < 0.2 * 2 * half
            if role != "hole":
                assert near.all()
    if isinstance(state, MiniBehaviour):
        for u, v in grid.pixels(sorted(state.table)):
            assert ids[round(v), round(u)] == SEMANTIC_IDS["table"]
    if isinstance(state, Maze):
        _check_walls(ids, state, grid.pixels, half)


def _cell(position: tuple[float, float, float], scene: Scene) -> tuple[int, int]:
    middle = (scene.state.size - 1) / 2
    x, y, _ = position
    return round(middle - y / scene.cell_size), round(middle + x / scene.cell_size)


def _check_walls(ids: np.ndarray, maze: Maze, pixels, half: float) -> None:
    """Between two cells the picture shows a wall where there is one, and nowhere else."""
    for row in range(maze.size):
        for column in range(maze.size):
            u, v = pixels([(row, column)])[0]
            for bit, du, dv in ((8, half, 0), (2, 0, half)):
                if (column if bit == 8 else row) == maze.size - 1:
                    continue
                u0, v0 = u + du, v + dv
                around = ids[round(v0 - 0.5) : round(v0 + 1.5), round(u0 - 0.5) : round(u0 + 1.5)]
                shown = (around == SEMANTIC_IDS["wall"]).any()
                assert shown == bool(maze.walls[row][column] & bit)


@settings(deadline=None)
@given(states, style_seeds, sets)
def test_all_that_matters_stands_out(state: State, seed: int | None, styles: str) -> None:
    scene = FLAT.build(state, seed, 160, styles)
    frame = FLAT.render(scene, semantic=True)
    assert frame.semantic is not None
    rgb = frame.rgb.astype(float)

    def shades(role: str) -> np.ndarray:
        return rgb[frame.semantic == SEMANTIC_IDS[role]]

    floor = np.median(shades("floor"), axis=0)
    for role in {thing.role for thing in scene.objects} - {"floor"}:
        # Half of what shows it differs clearly from the floor.
        assert np.median(np.abs(shades(role) - floor).max(axis=1)) > 30, role


@settings(deadline=None)
@given(st.sampled_from([t for t in TASKS if t[0] != "maze"]), style_seeds, sets)
def test_cells_can_be_counted(task: tuple[str, int], seed: int | None, styles: str) -> None:
    state = sample(*task, 5)
    scene = FLAT.build(state, seed, 160, styles)
    frame = FLAT.render(scene, semantic=True)
    assert frame.semantic is not None
    grid = grid_of(scene)
    floor = frame.semantic == SEMANTIC_IDS["floor"]
    grey = frame.rgb.astype(float).mean(axis=2)
    pale = np.median(grey[floor])
    seen = []
    for row in range(state.size):
        for column in range(state.size - 1):
            cells = [(row, column), (row, column + 1)]
            (u, v), (to_u, _) = grid.pixels(cells)
            edge, here = round((u + to_u) / 2), round(v)
            if floor[here - 2 : here + 3, edge - 4 : edge + 5].all():
                across = grey[here - 2 : here + 3, edge - 2 : edge + 3].mean(axis=0)
                seen.append(np.abs(across - pale).max())
    assert np.median(seen) > 8 if seen else True


# --- One board, one picture ---


def test_equal_arguments_give_equal_bytes_and_others_do_not() -> None:
    state = sample("frozenlake", 4, 2)
    one = FLAT.render(FLAT.build(state, 5, 96, "varied")).rgb
    with FlatRenderer() as other:
        other.render(other.build(sample("maze", 3, 1), 1, 50, "plain"))
        assert np.array_equal(other.render(other.build(state, 5, 96, "varied")).rgb, one)
        for seed, styles in ((6, "varied"), (5, "overhead"), (None, "plain")):
            assert not np.array_equal(other.render(other.build(state, seed, 96, styles)).rgb, one)
    with pytest.raises(OSError, match="closed"):
        other.render(FLAT.build(state, 5, 96, "varied"))


def test_plain_boards_do_not_depend_on_a_seed() -> None:
    for family in FAMILIES:
        state = sample(family, 5, 2)
        one = FLAT.render(FLAT.build(state, None, 96, "overhead")).rgb
        assert np.array_equal(FLAT.render(FLAT.build(state, 7, 96, "plain")).rgb, one)


def test_only_what_is_asked_for() -> None:
    scene = FLAT.build(sample("maze", 3, 1), 5, 64, "overhead")
    frame = FLAT.render(scene)
    assert frame.depth is None and frame.semantic is None
    assert frame.rgb.shape == (64, 64, 3) and frame.rgb.dtype == np.uint8
    frame = FLAT.render(scene, depth=True, semantic=True)
    assert frame.depth is not None and frame.semantic is not None
    floor = scene.camera.depth_of([(0, 0, 0)])[0]
    assert frame.depth.dtype == np.float32 and np.allclose(frame.depth, floor)
    assert frame.semantic.dtype == np.uint16 and frame.semantic.shape == (64, 64)


@pytest.mark.parametrize("side", [32, 33, 500, 2048])
def test_picture_sizes(side: int) -> None:
    scene = FLAT.build(sample("minibehaviour", 5, 1), 4, side, "overhead")
    assert FLAT.render(scene).rgb.shape == (side, side, 3)


def test_other_cameras_that_look_straight_down() -> None:
    state = sample("maze", 3, 1)
    scene = FLAT.build(state, None, 64, "plain")
    # The plain pinhole camera sees the floor as squares, too.
    pinhole = build_scene(state, None, 80, 60).camera
    frame = FLAT.render(scene, pinhole, semantic=True)
    assert frame.rgb.shape == (60, 80, 3) and frame.semantic is not None
    u, v = make_grid(3, pinhole).pixels([state.start])[0]
    assert frame.semantic[round(v), round(u)] == SEMANTIC_IDS["robot"]
    tilted = Camera.looking_at((0, -2, 3), (0, 0, 0), (0, 1, 0), 64, 64, 20, "orthographic")
    turned = Camera.looking_at((0, 0, 3), (0, 0, 0), (1, 1, 0), 64, 64, 20, "orthographic")
    for camera in (tilted, turned):
        with pytest.raises(FlatError, match="straight above"):
            FLAT.render(scene, camera)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_is_carried_out_on_a_flat_board(family: str) -> None:
    state = sample(family, 5, 3)
    execution = Execution(FLAT, state, 4, 96, "overhead")
    pictures = [execution.picture()]
    for action in solve(state) or ():
        execution.act(action)
        pictures.append(execution.picture())
    assert execution.done
    for before, after in pairwise(pictures):
        assert not np.array_equal(before, after)


# --- Data sets ---


def test_episodes_tell_their_camera_and_grid() -> None:
    for episode in generate_episodes("maze", 4, "train", 0, 3, 64, "flat", "overhead"):
        assert episode.renderer == "flat"
        assert episode.camera.projection == "orthographic"
        assert episode.grid == make_grid(4, episode.camera)
        assert episode.plan == solve(episode.state)
        u, v = episode.grid.pixels([episode.state.goal])[0]
        assert episode.grid.cell_at(u, v) == episode.state.goal


def test_generate_gives_the_same_bytes_with_two_workers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    what = ["generate", "--renderer", "flat", "--level", "3-5", "--count", "3", "--size", "48"]
    for name, more in (("one", []), ("two", ["--workers", "2", "--preview", "4"])):
        assert main([*what, *more, "--out", str(tmp_path / name)]) == 0
        assert json.loads(capsys.readouterr().out)["written"] == 21
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("one", "two"))
    assert two.pop("preview.png").startswith(b"\x89PNG")
    assert one == two
    assert {episode.renderer for episode in load_episodes(tmp_path / "one", "train")} == {"flat"}


def test_it_needs_no_library_of_the_other_renderers() -> None:
    script = (
        "import sys\n"
        "sys.modules['panda3d'] = sys.modules['habitat_sim'] = None\n"
        "from sim.dataset import generate_episodes\n"
        "list(generate_episodes('maze', 3, 'train', 0, 1, 64, 'flat'))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_it_opens_by_its_name() -> None:
    with open_renderer("flat") as renderer:
        assert renderer.name == "flat"
