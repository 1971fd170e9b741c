"""Cases of public benchmarks: written in each of their formats by these tests and read back, the
sample that stands beside the project, where it does, and data sets that keep clear of them."""

from __future__ import annotations

import io
import json
import re
import struct
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mgsd_core.cli import main
from sim import (
    FrozenLake,
    LevelError,
    Maze,
    MiniBehaviour,
    Plan,
    State,
    find_family,
    parse_plan,
    sample,
    sample_split,
    solve,
    split_of,
    state_digest,
)
from sim.cases import Case, CaseError, case_picture, check_case, excluded_states, load_cases
from sim.dataset import INDEX_NAME, generate_episodes, load_episodes, write_dataset
from sim.planning import step
from sim.request import DatasetRequest

CASES = Path(__file__).parents[3] / "shared" / "cases"
beside = pytest.mark.skipif(
    not CASES.is_dir(), reason=f"the sample cases are not beside the project ({CASES})"
)

lakes = st.builds(
    lambda size, seed: sample("frozenlake", size, seed), st.integers(3, 8), st.integers(0)
)
mazes = st.builds(lambda size, seed: sample("maze", size, seed), st.integers(3, 6), st.integers(0))
offices = st.builds(
    lambda size, seed: sample("minibehaviour", size, seed), st.integers(5, 6), st.integers(0)
)


# All examples of a property share one folder: to make thousands would take long.
_FOLDER = tempfile.TemporaryDirectory()
FOLDER = Path(_FOLDER.name)


# --- The formats, as the benchmarks write them ---


def table(lake: FrozenLake) -> str:
    letters = {"S": "@", "G": "*", "H": "#", "F": "_"}
    lines = ["| | " + " | ".join(f"Col {c + 1}" for c in range(lake.size)) + " |"]
    for r, row in enumerate(lake.rows(), 1):
        lines.append(f"| Row {r} | " + " | ".join(letters[cell] for cell in row) + " |")
    return "\n".join(lines)


def trajectory(state: State, plan: Plan) -> list[Any]:
    """The poses of a plan."""
    poses = [find_family(state.family).begin(state)]
    for action in plan:
        poses.append(step(state, poses[-1], action))
    return poses


def distances(state: Any) -> dict[str, int]:
    """The steps to the goal, by the solver: of every cell from which there is a way."""
    found = {str(state.goal[0] * state.size + state.goal[1]): 0}
    for index in range(state.size**2):
        cell = divmod(index, state.size)
        if cell != state.goal and cell not in getattr(state, "holes", ()):
            plan = solve(replace(state, start=cell))
            if plan is not None:
                found[str(index)] = len(plan)
    return found


def sides(maze: Maze) -> list[list[dict[str, bool]]]:
    bits = {"north": 1, "south": 2, "west": 4, "east": 8}
    return [
        [{side: bool(cell & bit) for side, bit in bits.items()} for cell in row]
        for row in maze.walls
    ]


def row(state: Any) -> dict[str, Any]:
    """A row of VisualPlanning."""
    plan = solve(state)
    assert plan is not None
    poses = trajectory(state, plan)
    if isinstance(state, MiniBehaviour):
        carrying = [False]
        for action in plan:
            carrying.append({"PICK": True, "DROP": False}.get(action.value, carrying[-1]))
        points = [[list(p.cell), c] for p, c in zip(poses, carrying, strict=True)]
        meta = {
            "level": state.size,
            "start_pos": list(state.agent),
            "start_dir": 2,
            "printer_pos": list(state.printer),
            "table_pos": [list(cell) for cell in state.table],
            "printer_neighbors": [list(cell) for cell in state.beside([state.printer])],
            "table_neighbors": [list(cell) for cell in state.beside(state.table)],
            "idx": 3,
        }
        return {"input_tokens": [5, 6], "input_state": points, "meta": meta}
    flat = [p.cell[0] * state.size + p.cell[1] for p in poses]
    layout = sides(state) if isinstance(state, Maze) else [list(r) for r in state.rows()]
    return {
        "input_tokens": [5, 6],
        "output_tokens": [7],
        "input_state": flat,
        "meta": {
            "start_pos": flat[0],
            "target_pos": flat[-1],
            "layout": layout,
            "distance_map": distances(state),
            "level": state.size,
        },
    }


def walls(maze: Maze) -> str:
    plan = solve(maze)
    assert plan is not None
    words = {"L": "left", "D": "down", "R": "right", "U": "up"}
    lines = [
        "task=maze",
        "split=test",
        f"level={maze.size}",
        "index=7",
        f"start_row={maze.start[0]}",
        f"start_col={maze.start[1]}",
        f"target_row={maze.goal[0]}",
        f"target_col={maze.goal[1]}",
        f"start_pos={maze.start[0] * maze.size + maze.start[1]}",
        f"target_pos={maze.goal[0] * maze.size + maze.goal[1]}",
        f"path_length={len(plan)}",
        f"solution_actions={json.dumps([words[a.value] for a in plan])}",
        f"trajectory_states={json.dumps([list(p.cell) for p in trajectory(maze, plan)])}",
        f"layout_json={json.dumps(sides(maze), separators=(',', ':'))}",
        f"distance_map={json.dumps(distances(maze), sort_keys=True)}",
        "layout:",
        *(" ".join(map(str, bits)) for bits in maze.walls),
    ]
    return "\n".join(lines) + "\n"


def written(name: str, text: str | bytes) -> Path:
    file = FOLDER / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def only(path: Path, kind: str | None = None) -> Case:
    (case,) = load_cases(path, kind)
    return case


def problems(path: Path, kind: str | None = None) -> list[CaseError]:
    found: list[CaseError] = []
    assert list(load_cases(path, kind, found.append)) == []
    return found


# --- Reading back what was written ---


@given(lakes)
def test_tables_are_read_back(lake: FrozenLake) -> None:
    case = only(written("map.txt", table(lake)))
    assert case.state == lake and case.where == f"{FOLDER / 'map.txt'}:1"
    assert (case.name, case.picture, case.plan, case.distances) == ("map", None, None, None)
    check_case(case)


@settings(deadline=None)
@given(st.lists(st.one_of(lakes, mazes, offices), min_size=1, max_size=3))
def test_rows_are_read_back(states: list[Any]) -> None:
    text = "\n".join(json.dumps(row(state)) for state in states)
    cases = list(load_cases(written("rows.jsonl", text)))
    assert [case.state for case in cases] == states
    for number, (case, state) in enumerate(zip(cases, states, strict=True), 1):
        assert case.where == f"{FOLDER / 'rows.jsonl'}:{number}"
        assert case.plan == solve(state)
        assert check_case(case) is case
        if isinstance(state, MiniBehaviour):
            assert case.neighbours is not None and case.distances is None
        else:
            assert case.distances is not None and case.distances[state.goal] == 0


@settings(deadline=None)
@given(mazes)
def test_mazes_of_integers_are_read_back(maze: Maze) -> None:
    case = only(written("maze.txt", walls(maze)))
    assert (case.state, case.plan) == (maze, solve(maze))
    assert check_case(case).distances is not None


def test_a_maze_of_integers_as_it_is_written() -> None:
    text = "task=maze\nstart_row=0\nstart_col=0\ntarget_row=2\ntarget_col=2\nlayout:\n"
    case = only(written("small.txt", text + "13 5 9\n6 8 12\n5 2 10\n"))
    assert case.state == Maze.from_wall_bits([[13, 5, 9], [6, 8, 12], [5, 2, 10]], (0, 0), (2, 2))


# --- Text that is damaged ---


@st.composite
def damaged(draw: st.DrawFn, text: bytes) -> bytes:
    """A text with a piece replaced by another, or cut off."""
    start = draw(st.integers(0, len(text)))
    end = draw(st.integers(start, min(len(text), start + 12)))
    piece = draw(
        st.one_of(
            st.binary(max_size=8),
            st.sampled_from(
                [
                    b"null",
                    b"-1",
                    b"1e999",
                    b"NaN",
                    b"true",
                    b"[]",
                    b"{}",
                    b'""',
                    b"[[[",
                    b"9" * 5000,
                ]
            ),
        )
    )
    return text[:start] + piece + (text[end:] if draw(st.booleans()) else b"")


LAKE = sample("frozenlake", 3, 1)
MAZE = sample("maze", 3, 1)
OFFICE = sample("minibehaviour", 5, 1)
SOUND = {
    "map.txt": ("vsp", table(LAKE).encode()),
    "maze.txt": ("walls", walls(MAZE).encode()),
    "rows.jsonl": (
        "visualplanning",
        "\n".join(json.dumps(row(state)) for state in (LAKE, MAZE, OFFICE)).encode(),
    ),
}


@settings(max_examples=400, deadline=None)
@given(st.data(), st.sampled_from(sorted(SOUND)))
def test_damaged_text_is_reported_with_file_and_line(data: st.DataObject, name: str) -> None:
    kind, text = SOUND[name]
    file = written(name, data.draw(damaged(text)))
    found: list[CaseError] = []
    for case in load_cases(file, kind, found.append):
        try:
            check_case(case)
        except CaseError as error:
            found.append(error)
    for error in found:
        assert re.fullmatch(re.escape(str(file)) + r":\d+", error.where)
        assert str(error).startswith(f"{error.where}: ") and str(error).isprintable()


@given(st.binary(max_size=60), st.sampled_from(["vsp", "visualplanning", "walls"]))
def test_any_bytes_are_no_case(data: bytes, kind: str) -> None:
    file = written("any", data)
    for error in problems(file, kind):
        assert re.fullmatch(re.escape(str(file)) + r":\d+", error.where)


def test_what_is_sound_is_read_around_what_is_damaged() -> None:
    lines = [json.dumps(row(LAKE)), "{", "", json.dumps(row(OFFICE)), json.dumps({"meta": {}})]
    file = written("mixed.jsonl", "\n".join(lines))
    found: list[CaseError] = []
    assert [case.state for case in load_cases(file, report=found.append)] == [LAKE, OFFICE]
    assert [error.where for error in found] == [f"{file}:2", f"{file}:5"]
    with pytest.raises(CaseError, match=r"mixed\.jsonl:2: no JSON"):
        list(load_cases(file))


def test_lines_without_end_are_refused() -> None:
    file = written("long.jsonl", b"[" * 3_000_000 + b"\n" + json.dumps(row(LAKE)).encode())
    found: list[CaseError] = []
    assert [case.state for case in load_cases(file, report=found.append)] == [LAKE]
    assert [error.where for error in found] == [f"{file}:1"]
    assert "longer than" in str(found[0])
    (error,) = problems(written("long.txt", b"| " * 1_000_000))
    assert "longer than" in str(error)
    (error,) = problems(written("deep.jsonl", b'{"meta":' + b"[" * 500_000))
    assert error.where.endswith("deep.jsonl:1")


def test_lists_within_lists_are_refused() -> None:
    for depth in range(850, 1000):  # from those that can be shown to those that cannot be read
        lists = "[" * depth + "]" * depth
        for name, text in (
            (
                "deep.jsonl",
                json.dumps(row(LAKE)).replace('"start_pos": ', f'"start_pos": {lists}, "": '),
            ),
            ("deep.txt", walls(MAZE).replace("start_row=", f"start_row={lists}\nold=")),
        ):
            (error,) = problems(written(name, text))
            assert re.search(r":\d+$", error.where)


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("| Row 2 |", "| Row 3 |", 3, "Row 2"),
        ("| Col 1", "| Cal 1", 1, "head"),
        ("@", "_", 1, "exactly one S"),
        ("_", "?", 2, "'?' is none of @ * # _"),
        (" |\n| Row 2", "\n| Row 2", 2, "not a row"),
    ],
)
def test_tables_say_what_is_wrong(old: str, new: str, line: int, says: str) -> None:
    text = "| | Col 1 | Col 2 |\n| Row 1 | @ | _ |\n| Row 2 | _ | * |"
    assert only(written("two.txt", text)).state == FrozenLake.from_rows(["SF", "FG"])
    (error,) = problems(written("two.txt", text.replace(old, new, 1)))
    assert error.where == f"{FOLDER / 'two.txt'}:{line}" and says in str(error)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("level", "4", "level is '4', but the rest says 3"),
        ("start_pos", "9", "start_pos"),
        ("path_length", "99", "path_length"),
        ("solution_actions", '["jump"]', "JUMP"),
        ("solution_actions", "[1]", "list of words"),
        ("distance_map", '{"9": 1}', "distance_map"),
        ("distance_map", "{", "distance_map"),
        ("layout_json", "[]", "size must be"),
        ("trajectory_states", "[]", "trajectory_states"),
    ],
)
def test_mazes_say_what_is_wrong(key: str, value: str, says: str) -> None:
    lines = walls(MAZE).splitlines()
    number = next(i for i, line in enumerate(lines) if line.startswith(f"{key}="))
    lines[number] = f"{key}={value}"
    (error,) = problems(written("maze.txt", "\n".join(lines)))
    assert error.where == f"{FOLDER / 'maze.txt'}:{number + 1}" and says in str(error)


@pytest.mark.parametrize(
    ("state", "change", "says"),
    [
        (LAKE, {"level": 4}, "level 4 of a grid of side 3"),
        (LAKE, {"target_pos": 99}, "target_pos 99 is no cell"),
        (LAKE, {"start_pos": None}, "start_pos of meta must be a whole number"),
        (LAKE, {"distance_map": {"0": True}}, "distance_map"),
        (LAKE, {"layout": ["SFF", "FXF", "FFG"]}, "'X'"),
        (MAZE, {"layout": [[{"north": 1}] * 3] * 3}, "four sides"),
        (OFFICE, {"table_pos": [[0, 0]]}, "filled 2 × 3 rectangle"),
        (OFFICE, {"printer_pos": [9, 9]}, "outside"),
        (OFFICE, {"printer_neighbors": [[0]]}, "printer_neighbors"),
    ],
)
def test_rows_say_what_is_wrong(state: State, change: dict[str, Any], says: str) -> None:
    data = row(state)
    data["meta"] |= change
    (error,) = problems(written("row.jsonl", json.dumps(data)))
    assert says in str(error)


def test_trajectories_must_be_actions() -> None:
    for state, points in (
        (LAKE, []),
        (LAKE, [LAKE.goal[0] * 3 + LAKE.goal[1]]),
        (LAKE, [*row(LAKE)["input_state"], 99]),
        (OFFICE, [[list(OFFICE.agent), True]]),
        (OFFICE, [[list(OFFICE.agent), False], [list(OFFICE.agent), False]]),
        (OFFICE, [[list(OFFICE.agent), False, 3]]),
    ):
        (error,) = problems(written("row.jsonl", json.dumps(row(state) | {"input_state": points})))
        assert "input_state" in str(error)


# --- What is listed against solver and simulator ---


def refused(case: Case) -> str:
    with pytest.raises(CaseError) as error:
        check_case(case)
    assert error.value.where == case.where
    return str(error.value)


def test_wrong_listings_are_refused() -> None:
    case = only(written("row.jsonl", json.dumps(row(LAKE))))
    assert case.plan is not None and case.distances is not None
    assert "fails after 0 actions" in refused(replace(case, plan=()))
    around = FrozenLake.from_rows(["SFF", "FFF", "FGF"])
    detour = parse_plan("<answer>RRDLD</answer>", "frozenlake")
    bare = replace(case, state=around, plan=detour, distances=None)
    assert "has 5 actions, the shortest has 3" in refused(bare)
    further = parse_plan("<answer>DDRR</answer>", "frozenlake")
    assert "has 4 actions, the shortest has 3" in refused(replace(bare, plan=further))
    assert check_case(replace(bare, plan=parse_plan("<answer>RDD</answer>", "frozenlake")))
    walled_in = FrozenLake.from_rows(["SHF", "HFF", "FGF"])
    assert "has no plan" in refused(replace(bare, state=walled_in))


@given(lakes, st.data())
def test_wrong_distances_are_refused(lake: FrozenLake, data: st.DataObject) -> None:
    listed = {divmod(int(i), lake.size): steps for i, steps in distances(lake).items()}
    case = Case("lake", lake, None, None, listed, None, "file:1")
    check_case(case)
    cell = data.draw(st.sampled_from(sorted(listed)))
    assert "steps listed" in refused(replace(case, distances=listed | {cell: listed[cell] + 1}))
    if lake.holes:
        assert "no way" in refused(replace(case, distances=listed | {min(lake.holes): 1}))
    on_the_way = {key: steps for key, steps in listed.items() if key != lake.start}
    assert f"no distance is listed of {lake.start}" in refused(replace(case, distances=on_the_way))


def test_distances_behind_the_goal_may_be_left_out() -> None:
    lake = FrozenLake.from_rows(["SGF", "HHF", "FFF"])
    case = Case("lake", lake, None, None, {(0, 0): 1}, None, "file:1")
    assert check_case(case) is case


@given(offices)
def test_wrong_neighbours_are_refused(office: MiniBehaviour) -> None:
    beside = {
        "printer": office.beside([office.printer]),
        "table": office.beside(office.table),
    }
    case = Case("office", office, None, None, None, beside, "file:1")
    check_case(case)
    for thing, cells in beside.items():
        less = beside | {thing: cells - {min(cells)}}
        assert f"beside the {thing}" in refused(replace(case, neighbours=less))


# --- Files and folders ---


def benchmark(root: Path) -> Path:
    """A folder with cases of all kinds, and with files that are none."""
    for number in range(11):
        lake = sample("frozenlake", 3, number)
        level = root / "maps" / "level3"
        written(str(level / "table" / f"{number}.txt"), table(lake))
        written(str(level / "pure_text" / f"{number}.txt"), "This is a 3x3 map.")
        (level / "img").mkdir(exist_ok=True)
        Image.new("RGB", (96, 96), (number, 0, 0)).save(level / "img" / f"{number}.png")
        maze = root / "maze" / "level3"
        written(str(maze / "text" / f"{number:04d}.txt"), walls(sample("maze", 3, number)))
    written(str(root / "maps" / "prompt.txt"), "Plan!")
    rows = root / "minibehaviour" / "SFT"
    written(str(rows / "test_dataset.jsonl"), json.dumps(row(OFFICE)))
    written(str(rows / "train_dataset.jsonl"), '{"input_state": 3}')
    return root


def test_a_folder_is_read_whole(tmp_path: Path) -> None:
    cases = list(load_cases(benchmark(tmp_path)))
    assert [case.name for case in cases] == [
        *(f"maps/level3/table/{i}" for i in range(11)),
        *(f"maze/level3/text/{i:04d}" for i in range(11)),
        "minibehaviour/SFT/test_dataset/1",
    ]
    assert [case.picture is not None for case in cases] == [True] * 11 + [False] * 12
    assert [case.state for case in load_cases(tmp_path, "walls")] == [
        sample("maze", 3, number) for number in range(11)
    ]
    assert len(list(load_cases(tmp_path / "maps" / "level3"))) == 11


def test_no_two_cases_have_one_name(tmp_path: Path) -> None:
    written(str(tmp_path / "level3" / "1.txt"), table(LAKE))
    written(str(tmp_path / "level3.jsonl"), json.dumps(row(LAKE)))
    names = [case.name for case in load_cases(tmp_path)]
    assert sorted(names) == ["level3.jsonl/1", "level3/1"]


def test_plans_are_listed_beside_the_levels(tmp_path: Path) -> None:
    for number in range(2):
        written(str(tmp_path / "level3" / f"{number}.txt"), table(LAKE))
    plan = "".join(action.value for action in solve(LAKE) or ())
    plans = tmp_path / "plans.json"
    plans.write_text(f'{{\n"level3/0": "{plan}"\n}}')
    first, second = load_cases(tmp_path)
    assert (first.plan, second.plan) == (solve(LAKE), None)
    plans.write_text(f'{{\n"level3/0": "{plan}",\n"level3/1": "X"\n}}')
    found: list[CaseError] = []
    assert len(list(load_cases(tmp_path, report=found.append))) == 1
    assert [error.where for error in found] == [f"{plans}:3"]
    plans.write_text('{\n"level3/0": L\n}')
    assert [error.where for error in problems(tmp_path)] == [f"{plans}:2"] * 2


def test_a_map_must_be_of_its_level(tmp_path: Path) -> None:
    (error,) = problems(written(str(tmp_path / "level4" / "0.txt"), table(LAKE)))
    assert "side 3 in the folder level4" in str(error)


@pytest.mark.parametrize(
    ("name", "says"), [("nowhere", "no such file"), ("", "no cases"), ("note.txt", "neither a map")]
)
def test_where_there_are_no_cases(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "note.txt").write_text("Hello")
    with pytest.raises(CaseError, match=says):
        list(load_cases(tmp_path / name))
    with pytest.raises(CaseError, match="unknown kind 'chess'"):
        list(load_cases(tmp_path, "chess"))


# --- Pictures ---


def test_a_case_shows_its_own_picture_or_one_that_is_drawn(tmp_path: Path) -> None:
    case = only(benchmark(tmp_path) / "maps" / "level3" / "table" / "7.txt")
    assert (case_picture(case, 64) == (7, 0, 0)).all()
    drawn = case_picture(replace(case, picture=None), 64)
    assert drawn.shape == (64, 64, 3) and len(np.unique(drawn)) > 20
    for data in (b"no picture", case.picture.read_bytes()[:60] if case.picture else b""):
        damaged = written(str(tmp_path / "bad.png"), data)
        with pytest.raises(CaseError, match=r"bad\.png: the picture cannot be decoded"):
            case_picture(replace(case, picture=damaged), 64)
    for data in odd_pngs():
        damaged = written(str(tmp_path / "odd.png"), data)
        with pytest.raises(CaseError, match=r"odd\.png: the picture cannot be decoded"):
            case_picture(replace(case, picture=damaged), 64)
    Image.new("RGB", (30, 20)).save(tmp_path / "wide.png")
    with pytest.raises(CaseError, match="30 × 20 px is no board"):
        case_picture(replace(case, picture=tmp_path / "wide.png"), 64)


def odd_pngs() -> list[bytes]:
    """Pictures with a text that swells to 2 MB, and with a chunk that is cut off."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "PNG")
    data = file.getvalue()
    chunks = ((b"zTXt", b"a\0\0" + zlib.compress(bytes(2 << 20))), (b"cHRM", b"abc"))
    return [
        data[:33]
        + struct.pack(">I", len(body))
        + name
        + body
        + struct.pack(">I", zlib.crc32(name + body))
        + data[33:]
        for name, body in chunks
    ]


# --- Training data that keeps clear ---


def all_lakes() -> Iterator[FrozenLake]:
    """All 3 × 3 lakes with at most two holes."""
    cells = [divmod(i, 3) for i in range(9)]
    for start, goal in ((a, b) for a in cells for b in cells if a != b):
        free = [cell for cell in cells if cell not in (start, goal)]
        for number in range(3):
            for holes in combinations(free, number):
                yield FrozenLake(3, start, goal, frozenset(holes))


def test_excluded_states_are_never_sampled() -> None:
    drawn = [sample_split("frozenlake", 3, "train", seed) for seed in range(300)]
    few = {state_digest(lake) for lake in all_lakes() if split_of(lake) == "train"}
    again = [sample_split("frozenlake", 3, "train", seed, few) for seed in range(300)]
    assert not {state_digest(state) for state in again} & few
    hit = [state_digest(state) in few for state in drawn]
    assert 20 < sum(hit) < 280
    # Others stay as they were.
    for before, after, left_out in zip(drawn, again, hit, strict=True):
        assert (before != after) == left_out
        assert split_of(after) == "train"


def test_a_level_of_which_nothing_is_left_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.sampling._MOST_DRAWS", 100)  # 10,000 take long

    class Everything(frozenset[str]):
        def __contains__(self, digest: object) -> bool:
            return True

        def __bool__(self) -> bool:
            return True

    with pytest.raises(LevelError, match="once the excluded states are left out"):
        sample_split("minibehaviour", 5, "validation", 0, Everything())


def with_cases(tmp_path: Path, split: str = "train") -> tuple[Path, set[str]]:
    """A file of cases that training data would hold, and their digests."""
    states = [e.state for e in generate_episodes("frozenlake", 3, split, 0, 12, 32, "flat")]
    lines = [json.dumps(row(state)) for state in states[::2]]
    file = written(str(tmp_path / "cases.jsonl"), "\n".join(lines))
    return file, {state_digest(state) for state in states[::2]}


PAIRS = [("frozenlake", 3), ("maze", 3)]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_data_set_has_no_excluded_state(tmp_path: Path, split: str) -> None:
    file, digests = with_cases(tmp_path, split)
    exclude = excluded_states([file])
    assert exclude == {("frozenlake", 3): digests}
    write_dataset(tmp_path / "with", DatasetRequest(PAIRS, split, 0, 12, 32, "flat"))
    write_dataset(
        tmp_path / "without", DatasetRequest(PAIRS, split, 0, 12, 32, "flat", exclude=exclude)
    )
    before = load_episodes(tmp_path / "with", split, "frozenlake")
    after = load_episodes(tmp_path / "without", split, "frozenlake")
    assert {state_digest(e.state) for e in before} >= digests
    assert not {state_digest(e.state) for e in after} & digests
    assert [a.state for a in after if a.state in [b.state for b in before]]
    # What has none of these states is the same as without.
    name = f"maze-3-{split}-00000.parquet"
    assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
    # Files that a killed run had not entered say themselves what they were drawn without.
    (tmp_path / "without" / INDEX_NAME).unlink()
    drawn = write_dataset(tmp_path / "without", DatasetRequest(PAIRS, split, 0, 12, 32, "flat"))
    assert drawn["written"] == 12
    assert contents(tmp_path / "without") == contents(tmp_path / "with")


def test_the_test_split_may_have_them(tmp_path: Path) -> None:
    exclude = {pair: frozenset({"0" * 64}) for pair in PAIRS}
    for name, left_out in (("with", {}), ("without", exclude)):
        write_dataset(
            tmp_path / name, DatasetRequest(PAIRS, "test", 0, 3, 32, "flat", exclude=left_out)
        )
    files = [contents(tmp_path / n) for n in ("with", "without")]
    assert files[0] == files[1]


def generate(*args: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    common = ["--renderer", "flat", "--family", "all", "--level", "3-5", "--count", "4"]
    status = main(["generate", *common, "--size", "32", *args])
    output, errors = capsys.readouterr()
    return status, output or errors


def test_generate_excludes_and_resumes_byte_by_byte(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, digests = with_cases(tmp_path)
    what = ["--exclude", str(file)]
    assert generate(*what, "--out", str(tmp_path / "a"), capsys=capsys)[0] == 0
    again = ["--exclude", str(file), "--workers", "2"]  # twice the same is once
    assert generate(*what, *again, "--out", str(tmp_path / "b"), capsys=capsys)[0] == 0
    a, b = (contents(tmp_path / n) for n in "ab")
    assert a == b
    assert not {state_digest(e.state) for e in load_episodes(tmp_path / "a", "train")} & digests
    (tmp_path / "a" / "frozenlake-3-train-00000.parquet").unlink()
    status, said = generate(*what, "--out", str(tmp_path / "a"), capsys=capsys)
    assert status == 0 and json.loads(said)["written"] == 4
    assert contents(tmp_path / "a") == a
    # With or without: it is another data set.
    for wrong in ([], ["--exclude", str(written(str(tmp_path / "x.txt"), table(LAKE)))]):
        status, said = generate(*wrong, "--out", str(tmp_path / "a"), capsys=capsys)
        assert status == 2 and "was made with exclude" in said
        assert contents(tmp_path / "a") == a


def test_generate_refuses_cases_that_it_cannot_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(str(tmp_path / "bad.jsonl"), "{")
    status, said = generate("--exclude", str(file), "--out", str(tmp_path / "x"), capsys=capsys)
    assert status == 2 and f"{file}:1: no JSON" in said and len(said.splitlines()) == 1
    assert not (tmp_path / "x").exists()


# --- mgsd cases ---


def test_cases_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark(tmp_path)
    assert main(["cases", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["family", "level", "cases", "pictures", "plans", "problems"],
        ["frozenlake", "3", "11", "11", "0", "0"],
        ["maze", "3", "11", "0", "11", "0"],
        ["minibehaviour", "5", "1", "0", "1", "0"],
    ]


def test_cases_ends_with_1_where_there_are_problems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = row(OFFICE)
    longer["meta"]["table_neighbors"].pop()
    lines = [json.dumps(row(LAKE)), json.dumps(longer), "{"]
    file = written(str(tmp_path / "some.jsonl"), "\n".join(lines))
    assert main(["cases", str(file), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["cases"] == 2 and found["unreadable"] == 1
    assert found["families"]["minibehaviour"]["5"]["problems"] == 1
    assert found["families"]["frozenlake"]["3"] == {
        "cases": 1,
        "pictures": 0,
        "plans": 1,
        "problems": 0,
    }
    assert [problem.split(": ")[0] for problem in found["problems"]] == [f"{file}:3", f"{file}:2"]
    assert main(["cases", str(file)]) == 1
    output = capsys.readouterr().out
    assert f"{file}:3: no JSON" in output and "unreadable" in output


def test_cases_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "drawn"
    root = benchmark(tmp_path / "cases")
    assert main(["cases", str(root), "--draw", str(out), "--size", "48"]) == 0
    files = sorted(out.rglob("*.png"))
    assert len(files) == 23
    assert {Image.open(file).size for file in files} == {(48, 48)}
    assert main(["cases", str(root), "--size", "9"]) == 2
    assert main(["cases", str(tmp_path / "nowhere")]) == 2
    assert "no such file" in capsys.readouterr().err


# --- The sample beside the project ---


@beside
def test_the_sample_agrees_with_solver_and_simulator() -> None:
    cases = [check_case(case) for case in load_cases(CASES)]
    maps = [case for case in cases if case.picture is not None]
    rows = [case for case in cases if case.picture is None]
    assert len(maps) == 24 and len(rows) == 16
    assert all(case.plan is not None for case in cases)
    plans = json.loads((CASES / "vsp-frozenlake" / "plans.json").read_text())
    assert {case.name.removeprefix("vsp-frozenlake/") for case in maps} == set(plans)
    for case in rows:
        assert (case.distances is None) == (case.state.family == "minibehaviour")
    for case in maps:
        assert case_picture(case, 64).shape == (64, 64, 3)
