"""The closed loop: its rules with planners that answer as told, the command with a real node."""

from __future__ import annotations

import dataclasses
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from ros_processes import Client

pytest.importorskip("rclpy", reason="rclpy is not installed (extra ros)")

from mgsd_core.cli import main
from mgsd_core.runtime import BundleError
from mgsd_ros.closed_loop import Attempt, Moment, Run, carry_out, check_path, most_steps
from mgsd_ros.film import FilmError, Reel, encode_film
from mgsd_ros.grid_frame import GridFrame
from mgsd_ros.loop_report import report, summarise
from mgsd_ros.loop_scenes import Settings, check_planner
from mgsd_ros.node_process import free_domain, own_environment, planner_node
from mgsd_ros.planner_client import NodeError, Played
from sim import (
    FAMILIES,
    Action,
    FrozenLake,
    Plan,
    State,
    sample,
    sample_split,
    simulate,
    solve,
    state_to_dict,
)
from sim.execution import Execution
from sim.panda import PandaRenderer

# Three to the right, two down, three to the left, one down.
LAKE = FrozenLake.from_rows(["SFFF", "HHHF", "FFFF", "GFFF"])
BEST = 9
FRAMES = st.builds(
    GridFrame,
    st.sampled_from(["map", "odom"]),
    st.floats(-100, 100),
    st.floats(-100, 100),
    st.floats(-6, 6),
    st.floats(0.05, 5),
)


@pytest.fixture(scope="module")
def renderer() -> Iterator[PandaRenderer]:
    with PandaRenderer() as opened:
        yield opened


def answer(seen: State, plan: Plan | None, error: str | None = None) -> dict[str, Any]:
    """What a node says to a picture in which its model sees `seen`."""
    return {
        "family": seen.family,
        "state": state_to_dict(seen),
        "actions": None if plan is None else [action.value for action in plan],
        "path": [list(cell) for cell in simulate(seen, plan or ()).path],
        "error": error,
    }


def run(
    renderer: PandaRenderer,
    state: State,
    plans: Callable[[int, State], Plan | None],
    **options: Any,
) -> Run:
    """Carry out a state; `plans` gives the plan for the nth picture, None is an error."""
    execution = Execution(renderer, state, None, 64, "plain")
    asked = 0

    def ask(rgb: np.ndarray) -> Played:
        nonlocal asked
        seen = execution.present_state()
        assert seen is not None, "a picture that no state says was planned on"
        plan = plans(asked, seen)
        asked += 1
        return Played(answer(seen, plan, None if plan else "it is dark"), "map", (), 0.01)

    return carry_out(execution, ask, **options)


def shortest(_: int, seen: State) -> Plan:
    plan = solve(seen)
    assert plan is not None
    return plan


@pytest.mark.parametrize("family", ["frozenlake", "maze", "minibehaviour"])
def test_a_perfect_planner_is_done_in_the_fewest_steps(renderer, family) -> None:
    for seed in range(4):
        state = sample(family, 5, seed)
        plan = shortest(0, state)
        done = run(renderer, state, shortest)
        assert done.closed_loop == done.open_loop == Attempt(True, len(plan), None)
        assert done.cells == simulate(state, plan).path
        after_pick = len(plan) - plan.index(Action.PICK) - 1 if Action.PICK in plan else 0
        assert done.open_loop_steps == after_pick
        assert len(done.seconds) == len(plan) - after_pick


def test_a_better_plan_on_the_way_is_followed(renderer) -> None:
    detour = (Action.R, Action.L, *shortest(0, LAKE))
    done = run(renderer, LAKE, lambda n, seen: shortest(n, seen) if n else detour)
    assert (done.closed_loop.steps, done.open_loop.steps) == (BEST, BEST + 2)
    kept = run(renderer, LAKE, lambda n, seen: shortest(n, seen) if n else detour, keep_plan=True)
    assert (kept.closed_loop.steps, kept.kept_steps) == (BEST + 2, BEST + 1)


def test_going_to_and_fro_is_given_up(renderer) -> None:
    def undecided(n: int, seen: State) -> Plan:
        return (Action.R,) if n % 2 == 0 else (Action.L,)

    given_up = run(renderer, LAKE, undecided)
    assert given_up.closed_loop == Attempt(False, most_steps(BEST), "too long")
    assert given_up.open_loop == Attempt(False, 1, "incomplete")


def test_an_answer_that_is_not_to_be_followed_ends_it_unless_a_plan_is_at_hand(renderer) -> None:
    def once_dark(n: int, seen: State) -> Plan | None:
        return None if n == 2 else shortest(n, seen)

    stopped = run(renderer, LAKE, once_dark)
    assert stopped.closed_loop == Attempt(False, 2, "no plan: it is dark")
    assert stopped.open_loop.success
    went_on = run(renderer, LAKE, once_dark, keep_plan=True)
    assert went_on.closed_loop == Attempt(True, BEST, None)
    blind = run(renderer, LAKE, lambda n, seen: None, keep_plan=True)
    assert blind.closed_loop == blind.open_loop == Attempt(False, 0, "no plan: it is dark")


def test_an_illegal_action_ends_it(renderer) -> None:
    fallen = run(renderer, LAKE, lambda n, seen: (Action.R, Action.D)[n:])
    assert fallen.closed_loop == fallen.open_loop == Attempt(False, 1, "hole")
    assert fallen.cells == ((0, 0), (0, 1))


def test_a_lost_action_is_seen_and_made_good(renderer) -> None:
    done = run(renderer, LAKE, shortest, is_lost=lambda step: step in (1, 5))
    assert done.closed_loop == Attempt(True, BEST + 2, None)
    assert done.lost_steps == 2
    assert done.open_loop == Attempt(False, 3, "hole")  # R, nothing, R, then down too early
    kept = run(renderer, LAKE, shortest, keep_plan=True, is_lost=lambda step: step in (1, 5))
    assert kept.closed_loop == done.closed_loop
    row = FrozenLake.from_rows(["SFG", "HHH", "HHH"])
    spare = run(renderer, row, lambda n, seen: 3 * (Action.R,), is_lost=lambda step: step == 0)
    assert spare.open_loop == Attempt(True, 3, None)


def test_a_plan_that_picks_is_carried_to_its_end_as_it_is(renderer) -> None:
    office = sample("minibehaviour", 5, 0)
    picked = shortest(0, office)[: shortest(0, office).index(Action.PICK) + 1]

    def stops_there(n: int, seen: State) -> Plan:
        return picked[n:]

    stopped = run(renderer, office, stops_there)
    assert stopped.closed_loop == Attempt(False, len(picked), "no plan: incomplete")
    assert stopped.open_loop == Attempt(False, len(picked), "incomplete")


def path_of(said: dict[str, Any], grid: GridFrame) -> tuple[tuple[float, float, float], ...]:
    return tuple((pose.x, pose.y, pose.yaw) for pose in grid.poses(said["path"]))


@given(grid=FRAMES, seed=st.integers(0, 1000), family=st.sampled_from(FAMILIES))
def test_a_path_agrees_with_the_actions_it_was_made_from(
    grid: GridFrame, seed: int, family: str
) -> None:
    state = sample(family, 5, seed)
    said = answer(state, shortest(0, state))
    check_path(Played(said, grid.frame_id, path_of(said, grid), 0.0), grid)
    check_path(Played(said, "camera", (), 0.0), None)
    check_path(Played(said | {"error": "it is dark"}, "camera", (), 0.0), grid)


@given(grid=FRAMES, seed=st.integers(0, 1000))
def test_a_path_that_leads_elsewhere_is_refused(grid: GridFrame, seed: int) -> None:
    state = sample("maze", 4, seed)
    said = answer(state, shortest(0, state))
    poses = path_of(said, grid)
    for wrong in (
        Played(said, grid.frame_id, poses[1:], 0.0),
        Played(said, grid.frame_id, (), 0.0),
        Played(said, "elsewhere", poses, 0.0),
        Played(said | {"actions": said["actions"][1:]}, grid.frame_id, poses, 0.0),
        Played(said | {"error": "it is dark"}, grid.frame_id, poses, 0.0),
    ):
        with pytest.raises(NodeError, match="~/plan goes along"):
            check_path(wrong, grid)
    with pytest.raises(NodeError, match="~/plan goes along"):
        check_path(Played(said, grid.frame_id, poses, 0.0), None)


def test_summaries_average_levels_then_families() -> None:
    good, long, bad = (Attempt(True, 4, None), Attempt(True, 6, None), Attempt(False, 1, "hole"))
    rows = [
        ("maze", 3, 4, good),
        ("maze", 3, 4, bad),
        ("maze", 4, 4, good),
        ("frozenlake", 3, 4, long),
        ("frozenlake", 4, 4, bad),
    ]
    summary = summarise(rows)
    assert summary["count"] == 5
    assert summary["families"]["maze"]["levels"]["3"] == {
        "success": 0.5,
        "spl": 0.5,
        "extra_steps": 0.0,
        "count": 2,
    }
    assert summary["families"]["frozenlake"]["levels"]["4"]["extra_steps"] is None
    assert summary["families"]["frozenlake"]["spl"] == pytest.approx(1 / 3)
    assert summary["macro"]["success"] == pytest.approx((0.75 + 0.5) / 2)
    assert summary["macro"]["extra_steps"] == pytest.approx((0 + 2) / 2)
    lost = Run(bad, bad, 4, (), ((0, 0),), 0, 0, 0, (0.02,))
    assert report([("maze", 3, lost)])["failures"] == {"hole": 1}
    waits = report([("maze", 3, dataclasses.replace(lost, seconds=(0.1, 1.1)))])["seconds_per_plan"]
    assert waits == {"median": pytest.approx(0.6), "p95": pytest.approx(1.05)}


def test_a_film_holds_every_moment_and_keeps_to_its_size(renderer) -> None:
    reels = []
    for lake in (LAKE, FrozenLake.from_rows(["SG", "FF"])):
        execution = Execution(renderer, lake, None, 128, "plain")
        reels.append(Reel("frozenlake", execution.grid))

        def ask(rgb: np.ndarray, execution: Execution = execution) -> Played:
            seen = execution.present_state()
            assert seen is not None
            return Played(answer(seen, shortest(0, seen)), "map", (), 0.01)

        carry_out(execution, ask, watch=reels[-1].add)
    large = encode_film(reels)
    film = Image.open(io.BytesIO(large))
    assert film.n_frames == BEST + 1
    small = encode_film(reels, len(large) // 2)
    assert len(small) <= len(large) // 2
    assert Image.open(io.BytesIO(small)).width < film.width
    with pytest.raises(FilmError, match="film fewer"):
        encode_film(reels, 1000)


def test_a_film_says_what_ended_a_run(renderer) -> None:
    grid = Execution(renderer, LAKE, None, 64, "plain").grid
    black = np.zeros((64, 64, 3), np.uint8)
    texts = set()
    for verdict in ("done", "hole", "no plan: \N{SNOWMAN}\n" + 500 * "x"):
        reel = Reel("lake", grid)
        reel.add(Moment(black, (), (), False, False, verdict, 3))
        texts.add(reel.frames(96)[0].tobytes())
    assert len(texts) == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--level", "9"], "level 9 is out of range"),
        (["--count", "0"], "count must be 1 to"),
        (["--family", "chess"], "unknown family 'chess'"),
        (["--gif", "91"], "--gif must be 0 to 90"),
        (["--slip", "1"], "slip must be at least 0 and below 1"),
        (["--slip", "nan"], "slip must be at least 0 and below 1"),
        (["--node", "/planner"], "a running node plans for one family"),
        (["--node", "/planner", "--family", "maze", "--repair"], "settings of the running node"),
        (["--bundle", "nowhere"], "no bundle at nowhere"),
        (["--styles", "wild"], "wild"),
    ],
)
def test_bad_input_is_said_in_one_line(tmp_path, capsys, arguments, says) -> None:
    out = tmp_path / "loop"
    assert main(["closed-loop", "--out", str(out), *arguments]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert says in said[0]
    assert not out.exists()


def test_results_below_a_file_are_refused_in_one_line(tmp_path, capsys) -> None:
    file = tmp_path / "file"
    file.touch()
    for out in (file, file / "loop"):
        assert main(["closed-loop", "--out", str(out)]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert f"{file} is a file, not a directory" in line


def test_a_family_that_the_bundle_has_not_learned_is_named() -> None:
    with pytest.raises(BundleError, match="cannot plan for 'parcels'; it has: frozenlake, maze"):
        check_planner(Settings(), ["maze", "parcels"])


def closed_loop(out: Path, env: dict[str, str], *arguments: object) -> tuple[int, str]:
    command = [sys.executable, "-m", "mgsd_core.cli", "closed-loop", "--out", str(out)]
    command += map(str, arguments)
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=200, check=False
    )
    return done.returncode, done.stdout + done.stderr


def check_files(out: Path, count: int) -> list[dict[str, Any]]:
    """What is written must be what the rules say of the actions that were carried out."""
    lines = [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]
    assert len(lines) == count
    for line in lines:
        state = sample_split(line["family"], line["level"], "test", line["seed"])
        outcome = simulate(state, tuple(map(Action, line["actions"])))
        assert (outcome.success, outcome.steps) == (line["success"], len(line["actions"]))
        assert [list(cell) for cell in outcome.path] == line["cells"]
        assert line["optimum"] == len(shortest(0, state))
        assert line["steps"] == len(line["actions"]) + line["lost_steps"]
        assert len(line["seconds"]) >= 1
    results = json.loads((out / "results.json").read_text())
    assert results["closed_loop"]["count"] == count
    families = results["closed_loop"]["families"]
    success = [family["success"] for family in families.values()]
    assert results["closed_loop"]["macro"]["success"] == pytest.approx(sum(success) / len(success))
    return lines


def test_the_shipped_model_drives(tmp_path: Path, ros_env: dict[str, str]) -> None:
    arguments = ("--family", "all", "--level", "3-5", "--count", 1, "--seed", 20, "--gif", 2)
    status, said = closed_loop(tmp_path / "a", ros_env, *arguments, "--keep-plan")
    assert status == 0, said
    assert "closed loop" in said
    lines = check_files(tmp_path / "a", 7)
    assert sum(line["success"] for line in lines) >= 4
    film = Image.open(tmp_path / "a" / "loop.gif")
    assert film.n_frames > 1
    assert (tmp_path / "a" / "loop.gif").stat().st_size <= 2_000_000
    lakes = ("--family", "frozenlake", *arguments[2:8])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "loop.gif").write_text("of another run")
    status, said = closed_loop(tmp_path / "b", ros_env, *lakes, "--keep-plan")
    assert not (tmp_path / "b" / "loop.gif").exists()
    assert status == 0, said
    again = check_files(tmp_path / "b", 3)
    assert [line | {"seconds": 0} for line in lines[:3]] == [
        line | {"seconds": 0} for line in again
    ]


def test_a_film_that_is_too_long_takes_no_result_with_it(
    tmp_path: Path,
    ros_env: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in ros_env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("mgsd_ros.film.encode_film", partial(encode_film, most_bytes=100))
    lake = ["--family", "frozenlake", "--level", "3", "--count", "1", "--gif", "1"]
    assert main(["closed-loop", *lake, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("does not fit into 100 bytes: film fewer\n")
    check_files(tmp_path, 1)
    assert not (tmp_path / "loop.gif").exists()


def test_a_running_node_drives_wherever_its_grid_lies(
    tmp_path: Path, ros_env: dict[str, str]
) -> None:
    grid = {"frame_id": "hall", "origin_x": 3.5, "origin_y": -2.0, "yaw": 0.7, "cell_size": 0.25}
    parameters = {"family": "maze"} | {f"grid.{name}": value for name, value in grid.items()}
    arguments = ("--node", "/planner", "--level", 3, "--count", 2, "--slip", 0.3)
    with planner_node(ros_env, parameters):
        status, said = closed_loop(tmp_path / "loop", ros_env, "--family", "maze", *arguments)
        assert status == 0, said
        assert sum(line["lost_steps"] for line in check_files(tmp_path / "loop", 2)) > 0
        status, said = closed_loop(tmp_path / "no", ros_env, "--family", "frozenlake", *arguments)
    assert status == 2
    assert said.splitlines()[-1].endswith("the node plans for maze, not for frozenlake")
    assert not list((tmp_path / "no").glob("*"))


def children(process: int) -> list[int]:
    """Return the processes that a process has started."""
    try:
        return [
            int(child)
            for task in Path(f"/proc/{process}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except FileNotFoundError:
        return []


def test_a_loop_that_is_terminated_takes_its_node_along(
    tmp_path: Path, ros_env: dict[str, str]
) -> None:
    command = [sys.executable, "-m", "mgsd_core.cli", "closed-loop", "--family", "maze"]
    command += ["--level", "3", "--out", str(tmp_path / "loop"), "--count", "200"]
    with subprocess.Popen(command, env=ros_env, stderr=subprocess.DEVNULL) as loop:
        deadline = time.monotonic() + 60
        while not (nodes := children(loop.pid)):
            assert loop.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(3)
        loop.send_signal(signal.SIGTERM)
        assert loop.wait(30) == 143
    assert not [node for node in nodes if Path(f"/proc/{node}").exists()]


def test_a_node_that_does_not_start_is_reported() -> None:
    with (
        pytest.raises(OSError, match="ended with status 2"),
        planner_node(own_environment(), {"family": "chess"}) as node,
    ):
        node.wait(30)


def test_a_domain_of_ones_own_has_nobody_else_in_it(ros_env: dict[str, str]) -> None:
    client = Client(int(ros_env["ROS_DOMAIN_ID"]))
    try:
        assert free_domain() != int(ros_env["ROS_DOMAIN_ID"])
    finally:
        client.close()


@pytest.mark.parametrize(
    ("distro", "name"),
    [("jazzy", "FASTRTPS"), ("humble", "FASTRTPS"), ("kilted", "FASTDDS"), (None, "FASTDDS")],
)
def test_profile_under_the_name_that_the_distribution_knows(
    monkeypatch: pytest.MonkeyPatch, distro: str | None, name: str
) -> None:
    for other in ("FASTRTPS", "FASTDDS"):
        monkeypatch.delenv(f"{other}_DEFAULT_PROFILES_FILE", raising=False)
    if distro is None:
        monkeypatch.delenv("ROS_DISTRO", raising=False)
    else:
        monkeypatch.setenv("ROS_DISTRO", distro)
    profiles = {key: value for key, value in own_environment().items() if "PROFILES" in key}
    assert list(profiles) == [f"{name}_DEFAULT_PROFILES_FILE"]
    assert Path(profiles[f"{name}_DEFAULT_PROFILES_FILE"]).is_file()
