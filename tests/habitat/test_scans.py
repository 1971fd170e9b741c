"""Scans of flats whose rooms are known, in the real simulator."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import struct
from pathlib import Path

import flats
import numpy as np
import pytest

pytest.importorskip("habitat_sim", reason="habitat-sim is not installed")

import magnum as mn
from flats import ATTIC, CELL, PLAN

from sim.commands_scan import register
from sim.dataset import DatasetError, load_episodes
from sim.habitat import HabitatError, semantic_picture, to_habitat
from sim.occupancy import ScanError, cut_state
from sim.planning import simulate, solve
from sim.readback import ReadbackError
from sim.sampling import split_of
from sim.scan_dataset import read_goals, write_scan
from sim.scan_request import ScanRequest
from sim.scans import MARKERS, Scan
from sim.states import FrozenLake, Maze
from sim.style import make_style

UPSTAIRS = flats.HEIGHT + 0.6  # floor of the storey above [m]


@pytest.fixture(scope="module")
def flat(tmp_path_factory) -> Path:
    """A house of two storeys with ceilings and a roof, without a navigation mesh."""
    pieces = flats.storey(PLAN) + flats.storey(ATTIC, UPSTAIRS)
    return flats.write_stage(tmp_path_factory.mktemp("flat"), "flat", pieces)


@pytest.fixture(scope="module")
def homes(tmp_path_factory) -> Path:
    """A scene dataset with the furnished scene `home`."""
    return flats.write_furnished(tmp_path_factory.mktemp("homes"))


def request_for(scene: Path | str, **more) -> ScanRequest:
    asked = {"family": "maze", "level": 4, "split": "train", "seed": 0, "count": 2, "size": 192}
    return ScanRequest(str(scene), **({"dataset": ""} | asked | more))


OBLIQUE = {"view": "oblique", "projection": "orthographic", "cut_height": 0.3}
VIEWS = {
    "top": {},
    "top, orthographic": {"projection": "orthographic"},
    "oblique": OBLIQUE,
    "oblique, steep": OBLIQUE | {"tilt": 15.0},
}


def corner_of(scan: Scan) -> tuple[int, int]:
    """Return the cell of a scan's grid that is cell (0, 0) of its plan, at the world's origin."""
    x, y = scan.grid.origin
    row, column = y / CELL, -x / CELL
    assert abs(row - round(row)) < 0.15
    assert abs(column - round(column)) < 0.15
    return round(row), round(column)


def bits_of(scan: Scan, shape: tuple[int, int]) -> np.ndarray:
    """Return the wall bits of the part of a scan's grid where its plan is."""
    top, left = corner_of(scan)
    grid = scan.grid
    level = max(shape)
    padded = dataclasses.replace(
        grid,
        free=np.pad(grid.free, [(0, level), (0, level)]),
        right=np.pad(grid.right, [(0, level), (0, level)]),
        down=np.pad(grid.down, [(0, level), (0, level)]),
    )
    start, goal = map(tuple, np.argwhere(grid.region)[:2].tolist())
    maze = cut_state(padded, "maze", level, (top, left), start, goal)
    assert isinstance(maze, Maze)
    return np.array(maze.walls)[: shape[0], : shape[1]]


# --- From rooms to walls ---


def test_the_rooms_of_a_flat_become_its_walls(flat):
    with Scan(request_for(flat)) as scan:
        top, left = corner_of(scan)
        meant = flats.wall_bits(PLAN)
        assert bits_of(scan, meant.shape).tolist() == meant.tolist()
        free = np.zeros_like(scan.grid.free)
        free[top : top + meant.shape[0], left : left + meant.shape[1]] = flats.free_cells(PLAN)
        assert (scan.grid.free == free).all()  # and nothing outside
        # The room at the bottom left has no door.
        assert scan.grid.region.sum() == free.sum() - 6


def test_storeys_are_told_apart_and_a_roof_is_none_of_the_first(flat):
    with Scan(request_for(flat)) as scan:
        assert scan.floor == pytest.approx(0.0, abs=0.01)
        assert scan.storeys[0] == pytest.approx(0.0, abs=0.1)
        assert scan.storeys[1] == pytest.approx(UPSTAIRS, abs=0.1)
    with Scan(request_for(flat, floor=UPSTAIRS, level=3)) as scan:
        assert scan.floor == pytest.approx(UPSTAIRS, abs=0.01)
        meant = flats.wall_bits(ATTIC)
        assert bits_of(scan, meant.shape).tolist() == meant.tolist()


def test_steps_of_the_grid_can_be_walked_in_the_simulator(flat):
    with Scan(request_for(flat)) as scan:
        find = scan.simulator.pathfinder
        for cell in map(tuple, np.argwhere(scan.grid.free).tolist()):
            start = find.snap_point(to_habitat((*scan.grid.centre(cell), scan.floor)))
            around = set(scan.grid.neighbours(cell))
            for there in around:
                end = to_habitat((*scan.grid.centre(there), start.y))
                walked = find.try_step_no_sliding(start, end)
                assert np.hypot(walked[0] - end.x, walked[2] - end.z) < 0.01


def test_a_navigation_mesh_beside_the_scene_is_taken(flat, tmp_path):
    config = Path(shutil.copytree(flat.parent, tmp_path / "copy")) / flat.name
    with Scan(request_for(config, floor=UPSTAIRS, level=3, agent_radius=0.08)) as scan:
        cells = int(scan.grid.region.sum())
        scan.simulator.pathfinder.save_nav_mesh(str(config.with_name("flat.navmesh")))
        assert cells == 9
    # It was made for a robot that fits; a larger one is only asked about where it is computed anew.
    large = {"floor": UPSTAIRS, "level": 2, "agent_radius": 0.3, "cell_size": 0.25}
    text = json.loads(config.read_text()) | {"nav_asset": "flat.navmesh"}
    config.write_text(json.dumps(text))
    with Scan(request_for(config, **large)) as scan:
        kept = int(scan.grid.region.sum())
    with Scan(request_for(config, recompute=True, **large)) as scan:
        assert int(scan.grid.region.sum()) < kept


def test_things_that_could_move_are_in_the_way_like_walls(homes):
    with Scan(request_for("home", dataset=str(homes))) as scan:
        top, left = corner_of(scan)
        assert not scan.grid.free[top + 1, left + 1]
        assert not scan.grid.free[top + 5, left + 6]
        assert scan.grid.free.sum() == flats.free_cells(PLAN).sum() - 2


# --- Tasks and pictures ---


@pytest.mark.parametrize("view", VIEWS)
def test_robot_and_goal_are_seen_where_the_grid_says(flat, view):
    with Scan(request_for(flat, **VIEWS[view])) as scan:
        for seed in range(6):
            episode, target = scan.draw(seed)
            assert target is None
            shown = semantic_picture(
                scan.simulator, episode.camera, scan.floor + scan.request.cut_height
            )
            for role, cell in (("robot", episode.state.start), ("goal", episode.state.goal)):
                u, v = episode.grid.pixels([cell])[0].round().astype(int)
                assert shown[v, u] == MARKERS[role]
                # And in the middle of what is seen of it: within a third of a cell.
                middle = np.argwhere(shown == MARKERS[role]).mean(axis=0)[::-1]
                step = np.linalg.norm(np.subtract(*episode.grid.pixels([(0, 0), (0, 1)])))
                assert np.linalg.norm(middle - (u, v)) < step / 3


@pytest.mark.parametrize("view", VIEWS)
def test_no_ceiling_hides_the_floor_and_columns_go_right_and_rows_down(flat, view):
    with Scan(request_for(flat, styles="plain", **VIEWS[view])) as scan:
        for seed in range(4):
            episode, _ = scan.draw(seed)
            pixels = episode.image.astype(int)
            blue = (pixels[..., 2] > pixels[..., 0] + 40) & (pixels[..., 2] > pixels[..., 1] + 20)
            assert not blue.any()
            origin, right, down = episode.grid.pixels([(0, 0), (0, 1), (1, 0)])
            assert right[0] > origin[0] and abs(right[1] - origin[1]) < 1
            assert down[1] > origin[1] and abs(down[0] - origin[0]) < 1
            # The floor is seen in the middle of most free cells, else walls hide what they bound.
            floor = np.array((205, 190, 160))
            state = episode.state
            seen = [
                np.abs(pixels[v, u] - floor).max() < 12
                for row in range(state.size)
                for column in range(state.size)
                if state.walls[row][column] != 15 and (row, column) not in (state.start, state.goal)
                for u, v in [episode.grid.pixels([(row, column)])[0].round().astype(int)]
            ]
            assert np.mean(seen) > 0.9


def test_a_ceiling_would_hide_all_without_the_cut(flat):
    request = request_for(flat, styles="plain", cut_height=2.55)
    with Scan(request) as scan, pytest.raises(ScanError, match="take a lower --cut-height"):
        scan.draw(0)


def test_pictures_match_the_world_in_metres(flat):
    with Scan(request_for(flat)) as scan:
        episode, _ = scan.draw(3)
        corner = scan.task(3).corner
        for cell in ((0, 0), (3, 1)):
            x, y, z = episode.grid.world([cell])[0]
            meant = scan.grid.centre((corner[0] + cell[0], corner[1] + cell[1]))
            assert (x, y) == pytest.approx(meant)
            assert z == scan.floor
            assert episode.grid.pixels([cell]) == pytest.approx(episode.camera.project([(x, y, z)]))


def test_draws_are_deterministic_and_do_not_depend_on_what_was_drawn_before(flat):
    with Scan(request_for(flat)) as scan:
        first = scan.draw(5)[0]
        scan.draw(1)
        again = scan.draw(5)[0]
    with Scan(request_for(flat)) as scan:
        elsewhere = scan.draw(5)[0]
    for episode in (again, elsewhere):
        assert (episode.image == first.image).all()
        assert (episode.state, episode.plan, episode.grid) == (first.state, first.plan, first.grid)


def test_a_robot_that_stands_elsewhere_is_refused_with_both_states(flat, monkeypatch):
    with Scan(request_for(flat)) as scan:
        place = scan.place

        def misplace(task, style):
            place(task, style)
            robot = scan._markers()["robot"]
            other = next(
                cell
                for cell in map(tuple, np.argwhere(scan.grid.free).tolist())
                if cell not in _ends(task)
                and all(0 <= cell[i] - task.corner[i] < task.state.size for i in (0, 1))
            )
            robot.translation = to_habitat((*scan.grid.centre(other), scan.floor))

        monkeypatch.setattr(scan, "place", misplace)
        with pytest.raises(ReadbackError, match=r"found \{.*'start'.*meant \{.*'start'"):
            scan.draw(0)


def test_a_robot_off_its_cell_or_gone_is_refused(flat):
    with Scan(request_for(flat)) as scan:
        task = scan.task(0)
        scan.place(task, make_style(0))
        assert scan.read_state(task.corner) == task.state
        robot = scan._markers()["robot"]
        place = robot.translation
        robot.translation = place + mn.Vector3(0.4 * CELL, 0, 0)
        with pytest.raises(ReadbackError, match="centre of no cell"):
            scan.read_state(task.corner)
        robot.translation = place + mn.Vector3(90, 0, 0)
        with pytest.raises(ReadbackError, match="where they cannot"):
            scan.read_state(task.corner)
        scan.simulator.get_rigid_object_manager().remove_object_by_id(robot.object_id)
        with pytest.raises(ReadbackError, match="no robot"):
            scan.read_state(task.corner)


def test_goals_are_before_the_things_of_a_dataset(homes):
    with Scan(request_for("home", dataset=str(homes))) as scan:
        top, left = corner_of(scan)
        found = {target.category: target for target in scan.targets}
        # Named by the dataset's lexicon, not by their models.
        assert set(found) == {"armchair", "indoor-plant"}
        for category, (row, column) in (("armchair", (1, 1)), ("indoor-plant", (5, 6))):
            cell = found[category].cell
            assert abs(cell[0] - top - row) + abs(cell[1] - left - column) == 1
        drawn = [scan.draw(seed) for seed in range(12)]
        assert {target.category for _, target in drawn} == set(found)
        for episode, target in drawn:
            assert episode.grid.world([episode.state.goal])[0][:2] == pytest.approx(
                scan.grid.centre(target.cell)
            )


def test_goals_are_before_the_things_of_an_annotated_scan(tmp_path):
    config = flats.write_annotated(tmp_path)
    with Scan(request_for(config)) as scan:
        top, left = corner_of(scan)
        [target] = scan.targets
        assert target.category == "ottoman"
        # The block in cell (1, 5); the floor is annotated too, but nobody is sent to a floor.
        assert abs(target.cell[0] - top - 1) + abs(target.cell[1] - left - 5) == 1


# --- Data sets ---


def test_a_data_set_reads_back_like_any_other(flat, tmp_path):
    out = tmp_path / "data"
    told = []
    summary = write_scan(out, request_for(flat, count=12, level=5), progress=told.append)
    assert (summary["episodes"], summary["written"], summary["shards"]) == (12, 12, 1)
    assert summary["states"] >= 10
    assert sum(told) == 12
    episodes = load_episodes(out, "train", level=5)
    assert [episode.seed for episode in episodes] == list(range(12))
    for episode in episodes:
        assert isinstance(episode.state, Maze)
        assert split_of(episode.state) == "train"
        assert simulate(episode.state, episode.plan).optimal
        assert episode.plan == solve(episode.state)
        assert len(episode.plan) >= 2
        assert episode.image.shape == (192, 192, 3)
        assert episode.renderer == "habitat"
    assert {path.name for path in out.iterdir()} == {"maze-5-train-00000.parquet", "dataset.json"}
    assert read_goals(out / "maze-5-train-00000.parquet") == [None] * 12


def test_lakes_of_any_level_hold_the_furniture_as_holes(flat, tmp_path):
    write_scan(tmp_path / "data", request_for(flat, family="frozenlake", level=3, count=8))
    episodes = load_episodes(tmp_path / "data", "train", "frozenlake", 3)
    assert len(episodes) == 8
    for episode in episodes:
        assert isinstance(episode.state, FrozenLake)
        assert len(episode.state.holes) == 1  # the block in the upper right room


def test_another_run_draws_nothing_again_and_repairs_what_is_broken(flat, tmp_path, monkeypatch):
    monkeypatch.setattr("sim.scan_dataset.shard_size", lambda size: 4)
    out = tmp_path / "data"
    request = request_for(flat, count=7)
    write_scan(out, request, workers=2)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert len(before) == 3
    assert write_scan(out, request)["written"] == 0
    (out / "maze-4-train-00001.parquet").write_bytes(b"broken")
    assert write_scan(out, request)["written"] == 3
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    with pytest.raises(DatasetError, match="cell_size"):
        write_scan(out, dataclasses.replace(request, cell_size=0.6))


def test_another_scan_of_the_same_name_is_refused(flat, tmp_path):
    copy = Path(shutil.copytree(flat.parent, tmp_path / "copy")) / flat.name
    other = flats.write_stage(tmp_path / "other", "flat", flats.storey(PLAN))
    out = tmp_path / "data"
    write_scan(out, request_for(flat))
    assert write_scan(out, request_for(copy))["written"] == 0
    for split in ("train", "validation"):
        with pytest.raises(DatasetError, match="was made with scan_sha256"):
            write_scan(out, request_for(other, split=split))


def test_things_at_the_goals_are_named_in_the_file(homes, tmp_path):
    request = request_for("home", dataset=str(homes), count=6)
    summary = write_scan(tmp_path / "data", request)
    goals = read_goals(tmp_path / "data" / "maze-4-train-00000.parquet")
    assert len(goals) == 6
    assert {goal["category"] for goal in goals} <= {"armchair", "indoor-plant"}
    assert sum(summary["categories"].values()) == 6
    assert summary["targets"] == 2


def test_the_command_writes_oblique_views_that_are_cut_low(flat, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers())
    text = f"generate-scan --scene {flat} --level 4 --count 2 --size 64 --view oblique --out"
    args = parser.parse_args([*text.split(), str(tmp_path / "data")])
    assert args.run(args) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["written"] == 2
    assert summary["cells"] == 40
    index = json.loads((tmp_path / "data" / "dataset.json").read_text())
    scan = index["common"]["scan"]
    assert (scan["projection"], scan["cut_height"]) == ("orthographic", 0.3)
    assert scan["scene"] == flat.name  # and no folder of this machine
    camera = load_episodes(tmp_path / "data", "train", level=4)[0].camera
    assert camera.projection == "orthographic"


# --- What cannot be ---


def refused(scene: Path | str, tmp_path: Path, match: str, kind=ScanError, **more) -> None:
    """Check that a data set is refused in one line and nothing is written."""
    with pytest.raises(kind, match=match) as caught:
        write_scan(tmp_path / "out", request_for(scene, **more))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_scene_that_is_not_there(tmp_path):
    refused(tmp_path / "none.glb", tmp_path, "no such file")


def test_files_that_are_no_scenes(tmp_path):
    for name, data, match in (
        ("a.glb", b"hello", "does not begin with glTF"),
        ("b.glb", struct.pack("<4sIII4s", b"glTF", 1, 20, 0, b"JSON"), "version 1"),
        ("c.ply", b"hello", "no PLY file"),
        ("d.ply", b"ply\nformat ascii 1.0\nend_header\n", "nothing follows"),
        ("e.txt", b"hello", "name must end"),
        ("f.stage_config.json", b"[", "not readable as JSON"),
        ("g.stage_config.json", b"{}", "names no render_asset"),
        ("h.stage_config.json", b'{"render_asset": "no.glb"}', "no such file"),
        ("i.stage_config.json", b'{"render_asset": "i.stage_config.json"}', "no .glb or .ply"),
    ):
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, tmp_path, match)


def test_a_file_cut_short_anywhere(flat, tmp_path):
    whole = flat.with_name("flat.glb").read_bytes()
    for length in (0, 11, 19, 300, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.glb").write_bytes(whole[:length])
        refused(tmp_path / "cut.glb", tmp_path, "damaged|no GLB")


def test_a_file_whose_parts_do_not_fit_together(flat, tmp_path):
    whole = flat.with_name("flat.glb").read_bytes()
    size = struct.unpack_from("<I", whole, 12)[0]
    document, body = json.loads(whole[20 : 20 + size]), whole[20 + size :]

    def changed(change) -> bytes:
        own = json.loads(json.dumps(document))
        change(own)
        text = json.dumps(own).encode()
        text += b" " * (-len(text) % 4)
        length = 20 + len(text) + len(body)
        head = struct.pack("<4sIII4s", b"glTF", 2, length, len(text), b"JSON")
        return head + text + body

    def set_in(path: list, value: object):
        def change(own) -> None:
            for key in path[:-1]:
                own = own[key]
            own[path[-1]] = value

        return change

    path = tmp_path / "odd.glb"
    path.write_bytes(changed(lambda own: None))
    write_scan(tmp_path / "fine", request_for(_config_for(path)))
    for change in (
        set_in(["meshes"], []),
        set_in(["meshes"], 7),
        set_in(["buffers", 0, "byteLength"], 1 << 40),
        set_in(["bufferViews", 0, "byteLength"], 1 << 40),
        set_in(["bufferViews", 0, "byteOffset"], -8),
        set_in(["bufferViews", 0, "buffer"], 9),
        set_in(["accessors", 0, "count"], 1 << 40),
        set_in(["accessors", 0, "bufferView"], 99),
        set_in(["accessors", 0, "componentType"], 1),
        set_in(["meshes", 0, "primitives", 0, "attributes", "POSITION"], 99),
        set_in(["meshes", 0, "primitives", 0, "indices"], "x"),
    ):
        path.write_bytes(changed(change))
        refused(path, tmp_path, "damaged")


def test_a_scan_that_ends_the_simulator_is_one_line(flat, tmp_path):
    whole = bytearray(flat.with_name("flat.glb").read_bytes())
    size = struct.unpack_from("<I", whole, 12)[0]
    document = json.loads(whole[20 : 20 + size])
    indices = document["meshes"][0]["primitives"][0]["indices"]
    view = document["bufferViews"][document["accessors"][indices]["bufferView"]]
    start = 28 + size + view["byteOffset"]
    # Triangles of corners that are not there: whoever follows them reads outside their memory.
    whole[start : start + view["byteLength"]] = b"\xf0\xff\xff\x7f" * (view["byteLength"] // 4)
    (tmp_path / "wild.glb").write_bytes(whole)
    refused(tmp_path / "wild.glb", tmp_path, "died over|no floor", kind=(ScanError, HabitatError))


def test_a_navigation_mesh_that_is_noise_is_computed_anew(flat, tmp_path):
    config = Path(shutil.copytree(flat.parent, tmp_path / "copy")) / flat.name
    text = json.loads(config.read_text()) | {"nav_asset": "flat.navmesh"}
    config.write_text(json.dumps(text))
    mesh = config.with_name("flat.navmesh")
    with Scan(request_for(flat)) as scan:
        scan.simulator.pathfinder.save_nav_mesh(str(mesh))
        cells = scan.grid.region.sum()
    whole = mesh.read_bytes()
    for data in (b"", bytes(range(256)) * 8, whole[: len(whole) // 2]):
        mesh.write_bytes(data)
        with Scan(request_for(config)) as scan:
            assert scan.grid.region.sum() == cells


def test_a_scan_without_floor(tmp_path):
    wall = flats.box((0.0, 0.0, 0.0), (0.02, 3.0, 3.0), (9, 9, 9))
    refused(flats.write_stage(tmp_path, "wall", [wall]), tmp_path, "has no floor for a robot")


def test_scenes_and_datasets_that_are_unknown(homes, tmp_path):
    refused("villa", tmp_path, r"has no scene 'villa'; it has 2: flat, home", dataset=str(homes))
    refused("", tmp_path, "name a scene", dataset=str(homes))
    refused("home", tmp_path, "no such file", dataset=str(tmp_path / "x.scene_dataset_config.json"))
    refused("home", tmp_path, "name must end", dataset=str(homes.parent / "lexicon.json"))
    broken = tmp_path / "b.scene_dataset_config.json"
    broken.write_text("{")
    refused("home", tmp_path, "not readable as JSON", dataset=str(broken))


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"level": 9}, "level 9 is larger than the floor"),
        ({"family": "frozenlake", "level": 6}, "which no lake has"),
        ({"floor": 17.0}, r"no floor lies near 17 m; there are floors at 0\.\d+, 3\.\d+ m"),
        ({"agent_radius": 1.9}, r"no floor for a robot of radius 1\.9 m"),
    ],
)
def test_tasks_that_a_scan_does_not_have(flat, more, match):
    with pytest.raises(ScanError, match=match):
        Scan(request_for(flat, **more))


def test_a_level_too_large_leaves_nothing_behind(flat, tmp_path):
    refused(flat, tmp_path, "level 9 is larger than the floor, 6 × 8 cells", level=9)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"level": 1}, "level must be 2 to 64"),
        ({"level": 65}, "level must be 2 to 64"),
        ({"family": "minibehaviour"}, "maze or frozenlake"),
        ({"view": "side"}, "view must be"),
        ({"view": "oblique"}, "needs --projection orthographic"),
        ({"projection": "fisheye"}, "projection must be"),
        ({"cell_size": 0.0}, "cell-size must be 0.1 to 5 m"),
        ({"cell_size": float("nan")}, "cell-size"),
        ({"cut_height": -1.0}, "cut-height"),
        ({"tilt": 80.0}, "tilt"),
        ({"agent_radius": 0.0}, "agent-radius"),
        ({"agent_height": 99.0}, "agent-height"),
        ({"floor": float("inf")}, "floor"),
        ({"count": 0}, "count"),
        ({"size": 8}, "size"),
        ({"split": "dev"}, "split"),
        ({"styles": "wild"}, "styles"),
    ],
)
def test_requests_that_make_no_sense(more, match):
    with pytest.raises(ValueError, match=match):
        request_for("flat.glb", **more)


def _config_for(glb: Path) -> Path:
    config = {"render_asset": glb.name, "up": [0, 1, 0], "front": [0, 0, -1]}
    path = glb.with_name(f"{glb.stem}.stage_config.json")
    path.write_text(json.dumps(config))
    return path


def _ends(task) -> list[tuple[int, int]]:
    ends = (task.state.start, task.state.goal)
    return [(r + task.corner[0], c + task.corner[1]) for r, c in ends]
