"""The node as a process of its own; frames come from another process, over DDS."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ros_processes import ROOT, StartNode, node_command

from mgsd_core.installed import shipped_bundle
from mgsd_core.runtime.bundle import read_bundle
from mgsd_ros.bags import IMAGE_TOPIC, open_bag, read_frames
from mgsd_ros.grid_frame import GridFrame
from sim import sample, simulate, solve, state_to_dict

pytest.importorskip("rclpy", reason="rclpy is not installed (extra ros)")

GRID = GridFrame("field", 1.5, -2.0, 0.5, 0.25)
PLACED = (
    *("-p", "grid.frame_id:=field"),
    *("-p", "grid.origin_x:=1.5"),
    *("-p", "grid.origin_y:=-2.0"),
    *("-p", "grid.yaw:=0.5"),
    *("-p", "grid.cell_size:=0.25"),
)


def start_playing(bag: Path, env: dict[str, str], out: Path, *options: str) -> subprocess.Popen:
    """Begin to send a bag's frames from a process of its own."""
    command = [sys.executable, "-m", "mgsd_core.cli", "play-bag", "--bag", str(bag)]
    return subprocess.Popen(
        [*command, "--out", str(out), "--rate", "100", *options],
        env=env,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def play(bag: Path, env: dict[str, str], out: Path, *options: str) -> list[dict[str, Any]]:
    """Send a bag's frames and return a line for each: its header and what came back."""
    process = start_playing(bag, env, out, *options)
    _, errors = process.communicate(timeout=120)
    assert process.returncode in (0, 1), errors.decode()
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert process.returncode == int(any(line["played"] is None for line in lines))
    return lines


def test_thirty_frames_come_back_as_plans(
    start_node: StartNode, ros_env: dict[str, str], lake_bag: Path, tmp_path: Path
) -> None:
    node = start_node(*PLACED)
    lines = play(lake_bag, ros_env, tmp_path / "answers.jsonl")

    with open_bag(lake_bag) as reader:
        frames = list(read_frames(reader, IMAGE_TOPIC))
    assert len(lines) == len(frames) == 30
    for line, frame in zip(lines, frames, strict=True):
        answer, truth = line["played"]["answer"], frame.truth
        assert truth is not None
        assert answer["stamp"] == {"sec": frame.header.sec, "nanosec": frame.header.nanosec}
        assert answer["frame_id"] == "camera"
        assert answer["schema_version"] == 1
        assert answer["error"] is None
        assert answer["family"] == "frozenlake"
        # The student knows these pictures by heart.
        assert answer["state"] == state_to_dict(truth.state)
        assert answer["actions"] == [action.value for action in truth.plan]
        assert answer["verdict"] == {"legal": True, "success": True, "failure": None}
        assert len(answer["bundle"]) == 64
        assert answer["timings"]["total"] > 0
        path = simulate(truth.state, truth.plan).path
        assert answer["path"] == [list(cell) for cell in path]
        assert line["played"]["frame_id"] == "field"
        expected = [(pose.x, pose.y, pose.yaw) for pose in GRID.poses(path)]
        np.testing.assert_allclose(line["played"]["path"], expected, atol=1e-12)
    assert node.warnings() == []
    assert node.end() == 0
    assert "planned on 30 of 30 frames" in node.log()


def test_picking_and_dropping_add_no_poses(
    start_node: StartNode, ros_env: dict[str, str], lake_bag: Path, tmp_path: Path
) -> None:
    state = sample("minibehaviour", 6, 3)
    plan = solve(state)
    assert plan is not None
    path = simulate(state, plan).path
    know = f"know {json.dumps(state_to_dict(state))}"
    start_node(*PLACED, module="changed_planner", PLAN=know)

    line = play(lake_bag, ros_env, tmp_path / "answers.jsonl")[0]["played"]

    assert line["answer"]["actions"] == [action.value for action in plan]
    assert len(line["answer"]["path"]) == len(plan) + 1
    assert len(line["path"]) == len(plan) + 1 - 2
    expected = [(pose.x, pose.y, pose.yaw) for pose in GRID.poses(path)]
    for got, want in zip(line["path"], expected, strict=True):
        assert got[:2] == list(want[:2])  # float64 all the way: not a bit is lost
        assert abs(math.remainder(got[2] - want[2], math.tau)) < 1e-12


def test_without_calibration_there_are_no_metres(
    start_node: StartNode, ros_env: dict[str, str], lake_bag: Path, tmp_path: Path
) -> None:
    node = start_node()
    for line in play(lake_bag, ros_env, tmp_path / "answers.jsonl"):
        assert line["played"]["path"] == []
        assert line["played"]["frame_id"] == "camera"
        assert line["played"]["answer"]["error"] is None
        assert line["played"]["answer"]["actions"]
    assert len(node.warnings()) == 1
    assert "grid.cell_size is 0" in node.warnings()[0]


def test_a_failing_plan_is_repaired_where_the_node_may(
    start_node: StartNode, ros_env: dict[str, str], odd_bag: Path, tmp_path: Path
) -> None:
    """The pictures of noise are read as some state or other; the plan then succeeds there."""
    play_odd = (odd_bag, ros_env, tmp_path / "answers.jsonl", "--topic", "/noise")
    start_node(*PLACED, "-p", "repair:=true")
    answers = [line["played"]["answer"] for line in play(*play_odd)]
    assert any(answer["repaired"] for answer in answers)
    for answer in answers:
        if answer["repaired"]:
            assert answer["verdict"] == {"legal": True, "success": True, "failure": None}
            assert answer["error"] is None and answer["path"]


def test_an_answer_that_is_not_to_be_followed_is_an_empty_path_with_the_reason(
    start_node: StartNode, ros_env: dict[str, str], odd_bag: Path, tmp_path: Path
) -> None:
    start_node(*PLACED)
    lines = play(odd_bag, ros_env, tmp_path / "answers.jsonl", "--topic", "/noise")
    answers = [line["played"]["answer"] for line in lines]
    refused = [answer for answer in answers if not answer["verdict"]["legal"]]
    assert refused, "no picture of noise confuses the student: the test shows nothing"
    for line, answer in zip(lines, answers, strict=True):
        assert (answer["error"] is None) == answer["verdict"]["legal"]
        assert (line["played"]["path"] == []) == (answer["error"] is not None)
        assert line["played"]["frame_id"] == "field"


def test_an_image_that_cannot_be_used_gets_one_warning_and_the_node_lives(
    start_node: StartNode, ros_env: dict[str, str], odd_bag: Path, tmp_path: Path
) -> None:
    node = start_node(*PLACED)
    lines = play(odd_bag, ros_env, tmp_path / "answers.jsonl", "--timeout", "1.5")

    # good, five that are not, good
    assert [line["played"] is not None for line in lines] == [True, *[False] * 5, True]
    assert lines[-1]["played"]["answer"]["error"] is None
    warnings = node.warnings()
    assert len(warnings) == 5, warnings
    for warning, says in zip(
        warnings,
        (
            "step is 100 bytes",
            "the data are 1000 bytes",
            "encoding 'jpeg2000' is not supported",
            "0 × 0 pixels",
            "encoding 32FC1 holds depth",
        ),
        strict=True,
    ):
        assert warning.startswith("image not usable: ")
        assert says in warning
    assert node.end() == 0


def test_when_planning_fails_the_robot_is_told_and_the_node_lives(
    start_node: StartNode, ros_env: dict[str, str], lake_bag: Path, tmp_path: Path
) -> None:
    node = start_node(*PLACED, module="changed_planner", PLAN="fail")
    for line in play(lake_bag, ros_env, tmp_path / "answers.jsonl"):
        assert line["played"]["path"] == []
        error = line["played"]["answer"]["error"]
        assert error == "planning failed: RuntimeError: the engine is on fire"
    assert len(node.warnings()) == 1
    assert node.end() == 0
    assert "30 failed" in node.log()


def test_frames_that_are_too_old_are_dropped(
    start_node: StartNode, ros_env: dict[str, str], odd_bag: Path, tmp_path: Path
) -> None:
    node = start_node("-p", "max_frame_age:=0.5", *PLACED)  # the bag is of 1970
    lines = play(odd_bag, ros_env, tmp_path / "answers.jsonl", "--timeout", "0.5")
    assert [line["played"] for line in lines] == [None] * len(lines)
    [warning] = node.warnings()
    assert warning.startswith("frame dropped: its stamp is ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_planning_ends_the_node(
    start_node: StartNode,
    ros_env: dict[str, str],
    lake_bag: Path,
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    node = start_node(module="changed_planner", PLAN="sleep 0.8")
    player = start_playing(lake_bag, ros_env, tmp_path / "answers.jsonl", "--timeout", "5")
    node.wait_for_log("a plan is at work")
    assert node.end(number) == 0
    assert "Traceback" not in node.log()
    assert "planned on" in node.log()
    player.send_signal(signal.SIGINT)
    player.communicate(timeout=20)


def test_a_plan_that_does_not_end_is_given_up(
    start_node: StartNode, ros_env: dict[str, str], lake_bag: Path, tmp_path: Path
) -> None:
    node = start_node(module="changed_planner", PLAN="sleep 600")
    player = start_playing(lake_bag, ros_env, tmp_path / "answers.jsonl", "--timeout", "5")
    node.wait_for_log("a plan is at work")
    began = time.monotonic()
    assert node.end() == 0
    assert time.monotonic() - began < 6
    assert "given up" in node.log()
    player.send_signal(signal.SIGINT)
    player.communicate(timeout=20)


def test_without_a_bundle_the_model_of_the_package_plans(
    start_node: StartNode, ros_env: dict[str, str], lake_bag: Path, tmp_path: Path
) -> None:
    node = start_node("--params-file", str(ROOT / "config" / "planner.yaml"), bundle=None)
    assert f"loaded {ROOT / 'models' / 'nano'} " in node.log()
    lines = play(lake_bag, ros_env, tmp_path / "answers.jsonl")
    bundle = read_bundle(shipped_bundle())
    assert [line["played"]["answer"]["bundle"] for line in lines] == [bundle.digest] * 30
    assert node.end() == 0


def test_the_shipped_parameter_file_is_taken_and_strangers_are_named(
    start_node: StartNode, tmp_path: Path
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("/**/planner:\n  ros__parameters:\n    grid: {cel_size: 0.5}\n    famly: maze\n")
    shipped = ROOT / "config" / "planner.yaml"
    node = start_node(
        *("--params-file", str(shipped)),
        *("--params-file", str(own)),
        *("-r", "__ns:=/robots/one"),
    )
    famly, cel_size, uncalibrated = node.warnings()
    assert famly.startswith("parameter famly is not one of this node's")
    assert cel_size.startswith("parameter grid.cel_size is not one of this node's")
    assert uncalibrated.startswith("grid.cell_size is 0")
    assert "/robots/one/image_raw" in node.log()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("-p", "bundle:="), "'-p bundle:='"),
        (("-p", "bundle:=/not/here"), "/not/here"),
        (("-p", "family:=chess"), "chess"),
        (("-p", "reliability:=maybe", "-p", "bundle:=x"), "parameter reliability must be one of"),
        (("-p", "max_frame_age:=-1.0", "-p", "bundle:=x"), "max_frame_age must be from 0.0 to"),
        (("-p", "max_frame_age:=.nan", "-p", "bundle:=x"), "max_frame_age must be from 0.0 to"),
        (("-p", "grid.cell_size:=1", "-p", "bundle:=x"), "grid.cell_size must be a decimal"),
        (("-p", "repair:=1", "-p", "bundle:=x"), "repair must be true or false"),
        (
            (
                "-p",
                "backend:=abacus",
            ),
            "parameter backend must be one of",
        ),
        (("--params-file", "/not/here.yaml"), "/not/here.yaml"),
        (("--log-level", "shout"), "shout"),
        (("-p", "use_sim_time:=1"), "use_sim_time"),
    ],
)
def test_what_cannot_work_ends_with_status_2_and_one_line(
    ros_env: dict[str, str], bundle_dir: Path, arguments: tuple[str, ...], says: str
) -> None:
    if not any("bundle:=" in a for a in arguments):
        arguments = (*arguments, "-p", f"bundle:={bundle_dir}")
    done = subprocess.run(node_command(*arguments), env=ros_env, capture_output=True, timeout=60)
    errors = done.stderr.decode()
    assert done.returncode == 2, errors
    assert says in errors
    assert "Traceback" not in errors
    ours = [line for line in errors.splitlines() if "planner" in line and "[rcl]" not in line]
    assert len(ours) == 1, errors


@pytest.mark.parametrize("arguments", [("-p", "family:=maze"), ("family:=maze",), ("--foo",)])
def test_parameters_outside_of_ros_args_are_not_passed_over(
    ros_env: dict[str, str], arguments: tuple[str, ...]
) -> None:
    command = [sys.executable, "-m", "mgsd_ros.run_node", *arguments]
    done = subprocess.run(command, env=ros_env, capture_output=True, timeout=60, text=True)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(f"planner: unknown arguments {' '.join(arguments)}")
    done = subprocess.run([*command[:3], "--help"], env=ros_env, capture_output=True, timeout=60)
    assert done.returncode == 0 and b"--ros-args -p family:=maze" in done.stdout


def test_a_middleware_that_refuses_is_one_line_too(ros_env: dict[str, str], tmp_path: Path) -> None:
    """With or without its security libraries, Fast DDS makes no participant of no keys."""
    (tmp_path / "enclaves" / "planner").mkdir(parents=True)
    env = ros_env | {
        "ROS_SECURITY_ENABLE": "true",
        "ROS_SECURITY_STRATEGY": "Enforce",
        "ROS_SECURITY_KEYSTORE": str(tmp_path),
        "ROS_SECURITY_ENCLAVE_OVERRIDE": "/planner",
    }
    done = subprocess.run(node_command(), env=env, capture_output=True, timeout=60)
    errors = done.stderr.decode()
    assert done.returncode == 2, errors
    assert "Traceback" not in errors
    assert len([line for line in errors.splitlines() if "[planner]" in line]) == 1, errors
