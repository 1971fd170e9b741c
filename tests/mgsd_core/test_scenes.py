"""Scenes: where the cells are in their pictures, and cases of public benchmarks as scenes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mgsd_core.runtime.preprocess import ImageSpec, fit
from mgsd_core.scenes import Scenes, load_case_scenes, load_scenes
from sim import FrozenLake, MiniBehaviour, State, find_family, sample, solve, state_to_dict
from sim.cases import CaseError
from sim.dataset import load_episodes, write_dataset
from sim.planning import step
from sim.request import DatasetRequest

SPEC = ImageSpec(size=96, patch=8)
CASES = Path(__file__).parents[3] / "shared" / "cases"


def centres(scenes: Scenes, i: int) -> np.ndarray:
    """Where the middle of every cell is, in shares of the picture: [row, column, (x, y)]."""
    size, grid = scenes.states[i].size, scenes.grids[i]
    assert grid is not None
    rows, columns = np.mgrid[:size, :size]
    points = np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ np.array(grid).T
    return points[..., :2] / points[..., 2:]


def colour(scenes: Scenes, i: int, cell: tuple[int, int]) -> np.ndarray:
    """The mean colour of a few pixels around the middle of a cell."""
    side = scenes.images.shape[1]
    x, y = (centres(scenes, i)[cell] * side).astype(int)
    return scenes.images[i, y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3).mean(axis=0)


def bluest(scenes: Scenes, i: int, count: int) -> set[tuple[int, int]]:
    """The cells that are bluest in the picture: in plain lakes those with holes."""
    cells = list(np.ndindex(scenes.states[i].size, scenes.states[i].size))

    def blue(cell: tuple[int, int]) -> float:
        red, _, blue = colour(scenes, i, cell)
        return float(blue - red)

    return set(sorted(cells, key=blue)[-count:]) if count else set()


def with_holes(count: int, size: int = 4) -> list[FrozenLake]:
    lakes = (sample("frozenlake", size, seed) for seed in range(1000))
    return [lake for lake, _ in zip(filter(lambda s: s.holes, lakes), range(count), strict=False)]


# --- Where the cells are ---


def test_grids_say_where_the_cells_of_a_data_set_are(tmp_path):
    pairs = [("frozenlake", 4), ("minibehaviour", 5)]
    write_dataset(
        tmp_path / "plain", DatasetRequest(pairs, "train", 0, 6, 128, "flat", styles="plain")
    )
    scenes = load_scenes(tmp_path / "plain", "train", SPEC)
    for i, state in enumerate(scenes.states):
        # A plain office has a margin of one cell, a plain lake has none.
        margin = 1 if isinstance(state, MiniBehaviour) else 0
        expected = (np.mgrid[: state.size, : state.size] + 0.5 + margin) / (state.size + 2 * margin)
        np.testing.assert_allclose(centres(scenes, i), np.moveaxis(expected[::-1], 0, -1))
        if isinstance(state, FrozenLake):
            assert bluest(scenes, i, len(state.holes)) == state.holes


@pytest.mark.parametrize("renderer", ["flat", "panda"])
def test_grids_hold_in_the_fitted_picture_of_any_camera(tmp_path, renderer):
    if renderer == "panda":
        pytest.importorskip("panda3d", reason="panda3d is not installed")
    write_dataset(
        tmp_path, DatasetRequest([("frozenlake", 3)], "train", 0, 3, 64, renderer, styles="varied")
    )
    scenes = load_scenes(tmp_path, "train", SPEC)
    for i, episode in enumerate(load_episodes(tmp_path, "train")):
        pixels = episode.grid.pixels(list(np.ndindex(3, 3))).reshape(3, 3, 2)
        np.testing.assert_allclose(centres(scenes, i), (pixels + 0.5) / 64)


def test_a_grid_goes_with_its_picture(tmp_path):
    write_dataset(
        tmp_path, DatasetRequest([("frozenlake", 3)], "train", 0, 4, 32, "flat", styles="varied")
    )
    scenes = load_scenes(tmp_path, "train", SPEC)
    assert len(set(scenes.grids)) == 4
    assert list(scenes.part([2, 0]).grids) == [scenes.grids[2], scenes.grids[0]]
    swapped, shown = scenes.swapped()
    assert list(swapped.grids) == [scenes.grids[i] for i in shown]
    assert (swapped.images == scenes.images[shown]).all()
    assert swapped.states == scenes.states


def test_nobody_knows_where_the_cells_of_a_photograph_are(tmp_path):
    Image.new("RGB", (48, 64)).save(tmp_path / "a.png")
    entry = {"image": "a.png", "state": state_to_dict(sample("maze", 3, 0))}
    (tmp_path / "test.jsonl").write_text(json.dumps(entry) + "\n")
    scenes = load_scenes(tmp_path, "test", SPEC)
    assert list(scenes.grids) == [None]
    assert list(replace(scenes, grids=()).part([0, 0]).grids) == [None, None]


# --- Cases of benchmarks ---


def row(state: Any) -> str:
    """A row of VisualPlanning, with the solver's plan."""
    poses = [find_family(state.family).begin(state)]
    for action in solve(state) or ():
        poses.append(step(state, poses[-1], action))
    if isinstance(state, MiniBehaviour):
        points: list[Any] = [[list(pose.cell), pose.carrying] for pose in poses]
        meta: dict[str, Any] = {
            "start_pos": list(state.agent),
            "printer_pos": list(state.printer),
            "table_pos": [list(cell) for cell in state.table],
            "printer_neighbors": [list(cell) for cell in state.beside([state.printer])],
            "table_neighbors": [list(cell) for cell in state.beside(state.table)],
        }
    else:
        points = [pose.cell[0] * state.size + pose.cell[1] for pose in poses]
        ways = {cell: solve(replace(state, start=cell)) for cell in free(state)}
        steps = {r * state.size + c: len(way) for (r, c), way in ways.items() if way is not None}
        meta = {
            "start_pos": points[0],
            "target_pos": points[-1],
            "layout": [list(letters) for letters in state.rows()],
            "distance_map": {str(cell): count for cell, count in steps.items()},
        }
    return json.dumps({"input_state": points, "meta": meta | {"level": state.size}})


def free(lake: FrozenLake) -> list[tuple[int, int]]:
    """The cells of a lake that a robot can begin in."""
    cells = np.ndindex(lake.size, lake.size)
    return [cell for cell in cells if cell not in lake.holes and cell != lake.goal]


def table(lake: FrozenLake) -> str:
    letters = {"S": "@", "G": "*", "H": "#", "F": "_"}
    lines = ["| | " + " | ".join(f"Col {c + 1}" for c in range(lake.size)) + " |"]
    for number, cells in enumerate(lake.rows(), 1):
        lines.append(f"| Row {number} | " + " | ".join(letters[c] for c in cells) + " |")
    return "\n".join(lines)


def board(lake: FrozenLake, cell: int = 20) -> Image.Image:
    """A board without a margin, as Visual Spatial Planning draws them: holes are blue."""
    picture = np.full((lake.size, lake.size, 3), 250, np.uint8)
    for hole in lake.holes:
        picture[hole] = (40, 160, 250)
    return Image.fromarray(picture.repeat(cell, 0).repeat(cell, 1))


def test_rows_become_scenes_with_pictures_drawn_for_them(tmp_path):
    states: list[State] = [*with_holes(3), sample("minibehaviour", 5, 0)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(row, states)))
    scenes = load_case_scenes(file, SPEC)
    assert scenes.states == states
    assert scenes.plans == [solve(state) for state in states]
    assert list(scenes.names) == [f"rows/{number}" for number in range(1, 5)]
    assert scenes.images.shape == (4, 96, 96, 3) and scenes.images.dtype == np.uint8
    for i, lake in enumerate(states[:3]):
        assert bluest(scenes, i, len(lake.holes)) == lake.holes
    assert scenes.tasks() == [("frozenlake", 4), ("minibehaviour", 5)]
    # The same cases are the same data, others are others.
    assert load_case_scenes(tmp_path, SPEC).digest == scenes.digest
    file.write_text("\n".join(map(row, states[::-1])))
    assert load_case_scenes(file, SPEC).digest != scenes.digest


def test_maps_show_the_benchmark_s_own_pictures(tmp_path):
    lakes = with_holes(2)
    (tmp_path / "level4").mkdir()
    for i, lake in enumerate(lakes):
        (tmp_path / "level4" / f"{i}.txt").write_text(table(lake))
        board(lake).save(tmp_path / "level4" / f"{i}.png")
    (tmp_path / "level4" / "1.png").unlink()
    scenes = load_case_scenes(tmp_path, SPEC)
    assert list(scenes.names) == ["level4/0", "level4/1"]
    # Prepared as a robot's pictures are.
    assert (scenes.images[0] == fit(np.asarray(board(lakes[0])), SPEC)).all()
    for i, lake in enumerate(lakes):
        assert bluest(scenes, i, len(lake.holes)) == lake.holes
    assert scenes.grids[0] is not None and scenes.grids[1] is not None
    np.testing.assert_allclose(scenes.grids[0], scenes.grids[1], atol=1e-12)


def test_nobody_knows_where_the_cells_of_other_boards_are(tmp_path):
    (tmp_path / "level2" / "text").mkdir(parents=True)
    (tmp_path / "level2" / "image").mkdir()
    lines = ["task=maze", "start_row=0", "start_col=0", "target_row=1", "target_col=1", "layout:"]
    (tmp_path / "level2" / "text" / "0.txt").write_text("\n".join([*lines, "5 9", "6 10"]))
    Image.new("RGB", (80, 80), (9, 9, 9)).save(tmp_path / "level2" / "image" / "0.png")
    scenes = load_case_scenes(tmp_path, SPEC)
    assert list(scenes.grids) == [None] and (scenes.images == 9).all()


def damaged_cases(tmp_path: Path) -> Path:
    """Two rows that are right, on lines 1 and 6, between such that are not."""
    first, second = (json.loads(row(lake)) for lake in with_holes(2))
    other = json.loads(json.dumps(second))
    other["meta"]["distance_map"][str(other["meta"]["start_pos"])] += 1
    lines = [json.dumps(first), "{", "", json.dumps(other), '{"meta": {}}', json.dumps(second)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    (tmp_path / "level4").mkdir()
    (tmp_path / "level4" / "0.txt").write_text(table(with_holes(1)[0]))
    (tmp_path / "level4" / "0.png").write_bytes(b"no picture")
    return tmp_path


def test_what_is_wrong_is_reported_with_file_and_line_and_the_rest_is_there(tmp_path):
    cases = damaged_cases(tmp_path)
    found: list[CaseError] = []
    scenes = load_case_scenes(cases, SPEC, report=found.append)
    assert list(scenes.names) == ["rows/1", "rows/6"] and scenes.states == with_holes(2)
    assert [error.where for error in found] == [
        str(cases / "level4" / "0.png"),
        *(f"{cases / 'rows.jsonl'}:{number}" for number in (2, 4, 5)),
    ]
    assert "steps listed" in str(found[2])
    with pytest.raises(CaseError, match=r"0\.png: the picture cannot be decoded"):
        load_case_scenes(cases, SPEC)
    with pytest.raises(CaseError, match=r"rows\.jsonl:2: no JSON"):
        load_case_scenes(cases / "rows.jsonl", SPEC)


def test_a_limit_counts_families_and_levels_and_takes_the_first_that_are_right(tmp_path):
    cases = damaged_cases(tmp_path)
    small = [sample("frozenlake", 3, seed) for seed in range(3)]
    with (cases / "rows.jsonl").open("a") as file:
        file.write("\n" + "\n".join(map(row, small)))
    scenes = load_case_scenes(cases, SPEC, limit=2, report=lambda error: None)
    assert list(scenes.names) == ["rows/1", "rows/6", "rows/7", "rows/8"]
    scenes = load_case_scenes(cases, SPEC, limit=1, report=lambda error: None)
    assert list(scenes.names) == ["rows/1", "rows/7"]


def test_where_no_case_is_left_that_is_said(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("{\n{\n")
    found: list[CaseError] = []
    with pytest.raises(CaseError, match=r"rows\.jsonl: there is no case that can be planned"):
        load_case_scenes(file, SPEC, report=found.append)
    assert [error.where for error in found] == [f"{file}:1", f"{file}:2"]
    with pytest.raises(CaseError, match="no such file"):
        load_case_scenes(tmp_path / "nowhere", SPEC, report=found.append)


@pytest.mark.skipif(
    not CASES.is_dir(), reason=f"the sample cases are not beside the project ({CASES})"
)
def test_the_grid_of_the_benchmark_s_own_pictures_is_right():
    scenes = load_case_scenes(CASES / "vsp-frozenlake", SPEC)
    assert len(scenes.states) == 24 and len(set(scenes.names)) == 24
    for i, lake in enumerate(scenes.states):
        assert isinstance(lake, FrozenLake)
        assert bluest(scenes, i, len(lake.holes)) == lake.holes, scenes.names[i]
