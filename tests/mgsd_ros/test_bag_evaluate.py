"""Evaluations of bags: what they find, that they repeat, and what is left of a bag that breaks."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice, pairwise
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest
from odd_images import IMAGE, fields, write_images, write_odd_bag
from ros_processes import ROOT, StartNode
from rosbags.typesys import get_typestore

from mgsd_core.cli import main
from mgsd_core.runtime import Planner, Response
from mgsd_ros.bag_digests import bag_digest, code_digest
from mgsd_ros.bag_evaluate import LATENCY_AWARE, evaluate_bag
from mgsd_ros.bag_parameters import parameters_to_dict
from mgsd_ros.bag_plans import PlansTo
from mgsd_ros.bag_record import write_episodes
from mgsd_ros.bags import (
    IMAGE_TOPIC,
    INFO_TOPIC,
    STORAGES,
    TRUTH_TOPIC,
    TYPESTORE,
    BagError,
    new_bag,
    open_bag,
    read_frames,
)
from mgsd_ros.frame_answer import FrameAnswerer
from mgsd_ros.grid_frame import GridFrame
from mgsd_ros.parameters import PlannerParameters
from sim import state_to_dict

FILES = ("frames.jsonl", "report.html", "summary.json", "timings.json")
SAME = ("frames.jsonl", "summary.json")
COMPRESSED_TOPIC = f"{IMAGE_TOPIC}/compressed"

GRID = GridFrame("field", 1.5, -2.0, 0.5, 0.25)
ON_THE_GRID = PlannerParameters(
    grid_frame_id="field",
    grid_origin_x=1.5,
    grid_origin_y=-2.0,
    grid_yaw=0.5,
    grid_cell_size=0.25,
)


@pytest.fixture(scope="module")
def planner(bundle_dir: Path) -> Planner:
    return Planner.load(bundle_dir, family="frozenlake")


@pytest.fixture(scope="module")
def answerer(planner: Planner) -> FrameAnswerer:
    return FrameAnswerer(planner, PlannerParameters())


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    [line] = capsys.readouterr().err.splitlines()
    return line


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "frames.jsonl").read_text().splitlines()]


def summary_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "summary.json").read_text())


def command(bag: Path, bundle: Path, out: Path, *options: object) -> list[str]:
    words = ["evaluate-bag", "--bundle", bundle, "--bag", bag, "--out", out, *options]
    return [str(word) for word in words]


def messages(bag: Path) -> list[tuple[str, int, Any, bytes]]:
    """Read a bag without our own reader: topic, time, message and its bytes."""
    from rosbags.highlevel import AnyReader

    with AnyReader([bag]) as reader:
        return [
            (c.topic, stamp, reader.deserialize(data, c.msgtype), bytes(data))
            for c, stamp, data in reader.messages()
        ]


# --- What is found ---


@pytest.mark.parametrize(
    ("storage", "compressed"), [("mcap", None), ("sqlite3", "png"), ("mcap", "jpeg")]
)
def test_evaluation_judges_every_frame_and_repeats_to_the_byte(
    storage: str,
    compressed: str | None,
    lake_episodes,
    bundle_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bag = tmp_path / "bag"
    list(write_episodes(bag, iter(lake_episodes), 10.0, storage, False, compressed))
    topic = IMAGE_TOPIC if compressed is None else COMPRESSED_TOPIC
    for name in ("one", "two"):
        plans = ["--plans-bag", tmp_path / name / "plans", "--storage", storage]
        out = tmp_path / name
        assert main(command(bag, bundle_dir, out, "--topic", topic, *plans)) == 0
        assert sorted(p.name for p in out.iterdir()) == sorted([*FILES, "plans"])
    for name in (*SAME, f"plans/plans.{'db3' if storage == 'sqlite3' else storage}"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert "100.0" in capsys.readouterr().out

    summary = summary_of(tmp_path / "one")
    assert summary["received"] == summary["frames"] == summary["count"] == 16
    assert summary["unusable"] == summary["failed"] == 0
    assert (summary["complete"], summary["problem"]) == (True, None)
    assert (summary["mode"], summary["ages"]) == ("every-frame", None)
    assert summary["dropped"] == {"replaced": [], "stale": [], "unchanged": []}
    # The student knows these pictures by heart.
    for measure in ("success", "optimal", "legal", "state"):
        assert summary["macro"][measure] == 1.0
        assert summary["families"]["frozenlake"]["levels"]["3"][measure] == 1.0
    for number, (line, episode) in enumerate(
        zip(lines_of(tmp_path / "one"), lake_episodes, strict=True)
    ):
        assert line["index"] == number
        assert line["stamp"] == {"sec": 1 + number // 10, "nanosec": number % 10 * 10**8}
        assert line["actions"] == [action.value for action in episode.plan]
        assert line["true_state"] == line["state"] == state_to_dict(episode.state)
        assert line["record"]["success"] and line["verdict"]["success"]
        assert "timings" not in line
    timings = json.loads((tmp_path / "one" / "timings.json").read_text())
    assert len(timings["frames"]) == 16
    assert 0 < timings["stages"]["total"]["median"] <= timings["stages"]["total"]["p95"]
    for frame in timings["frames"]:
        assert frame["frame"] >= frame["total"] > 0


def test_a_summary_names_all_that_it_depends_on(
    lake_bag: Path, answerer: FrameAnswerer, tmp_path: Path
) -> None:
    summary = evaluate_bag(answerer, lake_bag, IMAGE_TOPIC, tmp_path / "out")
    names = sorted(path.name for path in lake_bag.iterdir())
    sums = "".join(
        f"{hashlib.sha256((lake_bag / name).read_bytes()).hexdigest()}  {name}\n" for name in names
    )
    assert summary["digests"] == {
        "bag": hashlib.sha256(sums.encode()).hexdigest(),
        "bundle": answerer.planner.bundle_digest,
        "code": code_digest(),
    }
    assert summary["parameters"] == parameters_to_dict(answerer.settings)
    assert summary["parameters"]["grid.frame_id"] == "map"

    shutil.copytree(lake_bag, tmp_path / "copy")
    assert bag_digest(tmp_path / "copy") == bag_digest(lake_bag)
    with (tmp_path / "copy" / "metadata.yaml").open("a") as file:
        file.write("\n")
    assert bag_digest(tmp_path / "copy") != bag_digest(lake_bag)
    copy = tmp_path / "code"
    for name in ("sim", "mgsd_core", "mgsd_ros"):
        shutil.copytree(ROOT / name, copy / name, ignore=lambda *_: ["__pycache__"])
    code = "from mgsd_ros.bag_digests import code_digest; print(code_digest())"

    def digest_there() -> str:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert digest_there() == code_digest()
    with (copy / "sim" / "files.py").open("a") as file:
        file.write("# another program\n")
    assert digest_there() != code_digest()


def test_what_the_node_would_not_have_followed_is_no_success(
    lake_bag: Path, planner: Planner, tmp_path: Path
) -> None:
    never = FrameAnswerer(planner, PlannerParameters(min_confidence=1.0))
    summary = evaluate_bag(never, lake_bag, IMAGE_TOPIC, tmp_path / "out")
    lines = lines_of(tmp_path / "out")
    refused = [line for line in lines if line["error"] is not None]
    assert refused and all("not sure enough" in line["error"] for line in refused)
    assert not any(line["record"]["success"] for line in refused)
    assert {line["record"]["failure"] for line in refused} == {"refused"}
    # What was read off the picture is judged all the same.
    assert summary["macro"]["state"] == 1.0
    followed = sum(line["error"] is None and line["record"]["success"] for line in lines)
    assert summary["macro"]["success"] == followed / len(lines) < 1.0


def test_a_wrong_truth_is_seen(lake_episodes, answerer: FrameAnswerer, tmp_path: Path) -> None:
    """Frames under other frames' truths: an evaluation that always says yes would not notice."""
    shifted = [
        replace(episode, state=other.state, plan=other.plan)
        for episode, other in pairwise(lake_episodes)
    ]
    bag = tmp_path / "bag"
    list(write_episodes(bag, iter(shifted), 10.0, "mcap", False))
    summary = evaluate_bag(answerer, bag, IMAGE_TOPIC, tmp_path / "out")
    assert summary["by_recovered_state"] == {"legal": 1.0, "success": 1.0}
    assert summary["macro"]["state"] < 0.2
    assert summary["macro"]["success"] < 0.9


def test_without_truth_the_models_own_state_judges(
    lake_episodes, answerer: FrameAnswerer, tmp_path: Path
) -> None:
    bag = tmp_path / "bag"
    write_images(bag, {"/eye": [fields(episode.image) for episode in lake_episodes[:4]]}, "sqlite3")
    summary = evaluate_bag(answerer, bag, "/eye", tmp_path / "out")
    assert (summary["frames"], summary["count"]) == (4, 0)
    assert summary["by_recovered_state"] == {"legal": 1.0, "success": 1.0}
    assert summary["macro"]["success"] is None
    assert all(f["true_state"] is None and f["record"] is None for f in lines_of(tmp_path / "out"))
    assert summary["stability"] == {"pairs": 3, "state": 0.0, "plan": 0.0}


def test_stability_is_that_of_neighbours_that_show_the_same(
    lake_episodes, answerer: FrameAnswerer, tmp_path: Path
) -> None:
    a, b = lake_episodes[:2]
    noise = np.random.default_rng(0).integers(0, 256, a.image.shape, np.uint8)
    # The second picture lies about what it shows.
    shown = [a, replace(a, image=b.image), a, a, b, replace(b, image=noise)]
    list(write_episodes(tmp_path / "bag", iter(shown), 10.0, "mcap", False))
    summary = evaluate_bag(answerer, tmp_path / "bag", IMAGE_TOPIC, tmp_path / "out")
    assert summary["stability"] == {"pairs": 4, "state": 0.25, "plan": 0.25}
    images = [fields(e.image) for e in shown[:4]]
    # What cannot be planned on is between two frames, and no frame of its own.
    images.insert(3, fields(a.image, encoding="jpeg2000"))
    write_images(tmp_path / "blind", {IMAGE_TOPIC: images})
    summary = evaluate_bag(answerer, tmp_path / "blind", IMAGE_TOPIC, tmp_path / "out")
    assert summary["stability"] == {"pairs": 3, "state": 1 / 3, "plan": 1 / 3}


def test_images_that_cannot_be_used_are_counted(
    lake_episodes, answerer: FrameAnswerer, tmp_path: Path
) -> None:
    bag, plans = tmp_path / "bag", tmp_path / "plans"
    write_odd_bag(bag, lake_episodes[0].image)
    summary = evaluate_bag(answerer, bag, IMAGE_TOPIC, tmp_path / "out", plans=PlansTo(plans))
    assert (summary["frames"], summary["unusable"], summary["failed"]) == (7, 5, 0)
    errors = [line["error"] for line in lines_of(tmp_path / "out")]
    assert errors[0] is errors[-1] is None
    assert all(error.startswith("image not usable: ") for error in errors[1:-1])
    # The node says nothing about these.
    assert [topic for topic, *_ in messages(plans)].count("/planner/actions") == 2


def test_an_engine_that_fails_costs_a_frame(
    lake_bag: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    planner = Planner.load(bundle_dir, family="frozenlake")
    really, count = planner.plan, iter(range(100))

    def plan(rgb: np.ndarray) -> Response:
        if next(count) in (3, 4):  # the first is the warming up
            raise RuntimeError("the engine\nis on fire")
        return really(rgb)

    planner.plan = plan  # type: ignore[method-assign]
    answerer = FrameAnswerer(planner, PlannerParameters())
    plans = PlansTo(tmp_path / "plans")
    summary = evaluate_bag(answerer, lake_bag, IMAGE_TOPIC, tmp_path / "out", plans=plans)
    assert (summary["frames"], summary["failed"], summary["unusable"]) == (30, 2, 0)
    failed = "planning failed: RuntimeError: the engine is on fire"
    errors = [line["error"] for line in lines_of(tmp_path / "out")]
    assert errors == [None, None, failed, failed, *[None] * 26]
    assert summary["macro"]["success"] == 28 / 30
    told = [json.loads(m.data)["error"] for topic, _, m, _ in messages(plans.path)
            if topic == "/planner/actions"]  # fmt: skip
    assert told == errors


def test_pictures_and_lines_are_handed_out(
    lake_episodes, answerer: FrameAnswerer, tmp_path: Path
) -> None:
    bag = tmp_path / "bag"
    write_odd_bag(bag, lake_episodes[0].image)
    seen: list[tuple[int, np.ndarray, dict[str, Any]]] = []
    evaluate_bag(
        answerer, bag, IMAGE_TOPIC, tmp_path / "out", on_frame=lambda *frame: seen.append(frame)
    )
    lines = lines_of(tmp_path / "out")
    assert [index for index, _, _ in seen] == [0, 6]
    for index, rgb, line in seen:
        np.testing.assert_array_equal(rgb, lake_episodes[0].image)
        assert line == lines[index]


# --- The node's parameters ---


def far_away(rgb: np.ndarray, u: int = 150, v: int = 60) -> np.ndarray:
    """A wide picture with another one in it, at (u, v)."""
    wide = np.full((300, 400, 3), 90, np.uint8)
    wide[v : v + rgb.shape[0], u : u + rgb.shape[1]] = rgb
    return wide


def area_in(u: int = 150, v: int = 60) -> tuple[float, ...]:
    """Where the grid's corners are in `far_away`."""
    from sim.scene import MARGIN

    side = 128 / (1 + 2 * MARGIN)
    low, high = (128 - side) / 2 - 0.5, (128 + side) / 2 - 0.5
    corners = ((low, low), (high, low), (high, high), (low, high))
    return tuple(float(offset) for x, y in corners for offset in (u + x, v + y))


@pytest.fixture(scope="module")
def far_bag(lake_episodes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lakes seen by a camera that sees much else."""
    bag = tmp_path_factory.mktemp("far") / "bag"
    far = (replace(e, image=far_away(e.image)) for e in lake_episodes)
    list(write_episodes(bag, far, 10.0, "mcap", False))
    return bag


def test_the_work_area_is_seen_from_above_as_on_the_robot(
    far_bag: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    file = tmp_path / "robot.yaml"
    corners = ", ".join(map(str, area_in()))
    file.write_text(
        "/**/planner:\n  ros__parameters:\n    family: maze\n"
        f"    area: {{cells: 3, corners: [{corners}]}}\n"
        "    grid: {cell_size: 0.25, frame_id: field}\n"
    )
    plans = ["--plans-bag", tmp_path / "plans"]
    options = ["--family", "frozenlake", "--params-file", file, *plans]
    assert main(command(far_bag, bundle_dir, tmp_path / "out", *options)) == 0
    summary = summary_of(tmp_path / "out")
    assert summary["macro"]["success"] == summary["macro"]["state"] == 1.0
    assert summary["parameters"]["area.cells"] == 3
    assert summary["parameters"]["family"] == "frozenlake"
    paths = [m for topic, _, m, _ in messages(tmp_path / "plans") if topic == "/planner/plan"]
    assert {path.header.frame_id for path in paths} == {"field"}
    assert all(path.poses for path in paths)
    assert main(command(far_bag, bundle_dir, tmp_path / "blind")) == 0
    assert summary_of(tmp_path / "blind")["macro"]["success"] < 0.5


@pytest.mark.parametrize("seconds", [[1], "7", 1.5, None])
def test_a_stamp_of_the_truth_that_is_no_whole_number_is_one_line(
    lake_episodes, bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], seconds
) -> None:
    store, text = get_typestore(TYPESTORE), "std_msgs/msg/String"
    list(write_episodes(tmp_path / "own", iter(lake_episodes[:1]), 10.0, "mcap", False))
    with new_bag(tmp_path / "bag", "mcap", overwrite=False) as writer:
        image = writer.add_connection(IMAGE_TOPIC, IMAGE, typestore=store)
        truth = writer.add_connection(TRUTH_TOPIC, text, typestore=store)
        for topic, time, message, data in messages(tmp_path / "own"):
            if topic == IMAGE_TOPIC:
                writer.write(image, time, data)
            elif topic == TRUTH_TOPIC:
                said = json.loads(message.data)
                said["stamp"]["sec"] = seconds
                said = store.types[text](json.dumps(said))
                writer.write(truth, time, store.serialize_cdr(said, text))
    assert main(command(tmp_path / "bag", bundle_dir, tmp_path / "out")) == 2
    assert f"message 0 of {TRUTH_TOPIC} holds no true state (TypeError" in only_line(capsys)


def test_links_that_lead_to_each_other_are_one_line(
    lake_bag: Path, bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for bag, out in ((tmp_path / "loop", tmp_path / "out"), (lake_bag, tmp_path / "loop")):
        assert main(command(bag, bundle_dir, out)) == 2
        assert "loop" in only_line(capsys)


def test_an_area_of_other_cells_is_not_followed(
    far_bag: Path, planner: Planner, tmp_path: Path
) -> None:
    settings = PlannerParameters(area_cells=4, area_corners=area_in())
    summary = evaluate_bag(FrameAnswerer(planner, settings), far_bag, IMAGE_TOPIC, tmp_path / "out")
    errors = {line["error"] for line in lines_of(tmp_path / "out")}
    assert "the model sees 3 cells a side, and the work area has 4" in errors
    assert summary["frames"] == 16


def write_seen(bag: Path, infos: Sequence[tuple[int, np.ndarray]], rgb: np.ndarray) -> None:
    """Write three images, 0.1 s apart from 1 s on, and CameraInfos: time [ns] and K [9]."""
    from mgsd_ros.answers import FrameHeader
    from mgsd_ros.bag_messages import STORE, image_message, info_message
    from sim.camera import Camera

    class Lens:
        width, height, projection = 400, 300, "pinhole"
        fx = fy = 300.0
        cx, cy = 199.5, 149.5

    assert {"fx", "fy", "cx", "cy"} <= set(Camera.__dataclass_fields__)
    with new_bag(bag, "mcap", overwrite=False) as writer:
        eye = writer.add_connection("/eye/image", IMAGE, typestore=STORE)
        info_type = "sensor_msgs/msg/CameraInfo"
        info = writer.add_connection("/eye/camera_info", info_type, typestore=STORE)
        for time, k in infos:
            message = info_message(Lens(), FrameHeader(0, 0, "eye"))  # type: ignore[arg-type]
            message.k = k
            writer.write(info, time, STORE.serialize_cdr(message, info_type))
        for number in range(3):
            message = image_message(rgb, FrameHeader(1, number * 10**8, "eye"))
            time = 10**9 + number * 10**8
            writer.write(eye, time, STORE.serialize_cdr(message, IMAGE))


def test_a_frame_is_seen_by_the_newest_camera_info_before_it(
    lake_episodes, planner: Planner, tmp_path: Path
) -> None:
    good = np.array([300.0, 0, 199.5, 0, 300, 149.5, 0, 0, 1])
    infos = [(10**9 + 5 * 10**7, good), (10**9 + 15 * 10**7, np.zeros(9))]
    write_seen(tmp_path / "bag", infos, far_away(lake_episodes[0].image))
    settings = PlannerParameters(area_cells=3, area_corners=area_in(), camera_use_info=True)
    answerer = FrameAnswerer(planner, settings)
    evaluate_bag(answerer, tmp_path / "bag", "/eye/image", tmp_path / "out")
    first, second, third = lines_of(tmp_path / "out")
    nothing = "image not usable: nothing usable has come on /eye/camera_info yet"
    assert (first["error"], third["error"]) == (nothing, nothing)
    assert second["state"] == state_to_dict(lake_episodes[0].state)

    with pytest.raises(BagError, match="has no sensor_msgs/msg/CameraInfo on /eye/image; it has: "):
        evaluate_bag(
            answerer,
            tmp_path / "bag",
            "/eye/image",
            tmp_path / "none",
            info_topic="/eye/image",
        )
    assert not (tmp_path / "none").exists()


# --- What the node would have published ---


def test_the_plans_are_a_bag_as_the_node_would_have_published_them(
    lake_episodes, lake_bag: Path, planner: Planner, tmp_path: Path
) -> None:
    bag = tmp_path / "plans"
    answerer = FrameAnswerer(planner, ON_THE_GRID)
    evaluate_bag(answerer, lake_bag, IMAGE_TOPIC, tmp_path / "out", plans=PlansTo(bag))
    lines, said = lines_of(tmp_path / "out"), messages(bag)
    topics = {topic: [m for t, *m in said if t == topic] for topic, *_ in said}
    assert {topic: len(m) for topic, m in topics.items()} == dict.fromkeys(
        (
            IMAGE_TOPIC,
            "/planner/plan",
            "/planner/actions",
            "/planner/overlay",
            "/planner/markers",
        ),
        30,
    )
    images = [m for topic, *m in messages(lake_bag) if topic == IMAGE_TOPIC]
    for (time, _, data), (sent, _, original) in zip(topics[IMAGE_TOPIC], images, strict=True):
        assert (time, data) == (sent, original)
    for number, line in enumerate(lines):
        stamp = line["stamp"]
        for topic in ("/planner/plan", "/planner/actions", "/planner/overlay", "/planner/markers"):
            assert topics[topic][number][0] == images[number][0]
        path = topics["/planner/plan"][number][1]
        assert path.header.frame_id == "field"
        assert path.header.stamp.sec == stamp["sec"]
        assert path.header.stamp.nanosec == stamp["nanosec"]
        expected = GRID.poses([tuple(cell) for cell in line["path"]])
        assert len(path.poses) == len(expected)
        for stamped, pose in zip(path.poses, expected, strict=True):
            position, turn = stamped.pose.position, stamped.pose.orientation
            assert (position.x, position.y, position.z) == (pose.x, pose.y, 0)
            assert 2 * np.arctan2(turn.z, turn.w) == pytest.approx(pose.yaw)
        answer = json.loads(topics["/planner/actions"][number][1].data)
        assert answer == {k: line[k] for k in answer if k != "timings"} | {"timings": {}}
        overlay = topics["/planner/overlay"][number][1]
        assert overlay.header.frame_id == "camera"
        assert len(overlay.data) == overlay.height * overlay.step > 0
        clear, route, end = topics["/planner/markers"][number][1].markers
        assert (clear.action, route.action, end.action) == (clear.DELETEALL, clear.ADD, clear.ADD)
        assert (route.type, end.type) == (clear.LINE_STRIP, clear.SPHERE)
        assert [(p.x, p.y) for p in route.points] == [(pose.x, pose.y) for pose in expected]
        assert (end.pose.position.x, end.pose.position.y) == (expected[-1].x, expected[-1].y)
        assert (route.scale.x, end.scale.x) == pytest.approx((0.02, 0.0875))


def test_messages_of_plans_are_those_of_the_node() -> None:
    """Field by field, for what `mgsd_ros.messages` makes for rclpy."""
    pytest.importorskip("rclpy", reason="rclpy is not installed (extra ros)")
    from rclpy.serialization import serialize_message

    from mgsd_ros import bag_messages
    from mgsd_ros import messages as ros
    from mgsd_ros.answers import FrameHeader

    header = FrameHeader(7, 8, "camera")
    for poses in ([], GRID.poses([(0, 0), (0, 1), (1, 1)])):
        pairs = [
            (ros.path_message(poses, header, "field"), "nav_msgs/msg/Path",
             bag_messages.path_message(poses, header, "field")),
            (ros.markers_message(poses, 0.25, header, "field"),
             "visualization_msgs/msg/MarkerArray",
             bag_messages.markers_message(poses, 0.25, header, "field")),
        ]  # fmt: skip
        for message, kind, ours in pairs:
            store = bag_messages.STORE
            sent = serialize_message(message), store.serialize_cdr(ours, kind)
            theirs, own = (store.deserialize_cdr(data, kind) for data in sent)
            assert repr(theirs) == repr(own)


def test_without_calibration_paths_are_empty_and_there_are_no_markers(
    lake_bag: Path, answerer: FrameAnswerer, tmp_path: Path
) -> None:
    plans = PlansTo(tmp_path / "plans")
    evaluate_bag(answerer, lake_bag, IMAGE_TOPIC, tmp_path / "out", plans=plans)
    said = messages(plans.path)
    assert not [m for topic, _, m, _ in said if topic == "/planner/markers"]
    paths = [m for topic, _, m, _ in said if topic == "/planner/plan"]
    assert all(path.poses == [] and path.header.frame_id == "camera" for path in paths)


def test_a_bag_of_plans_takes_no_other_bags_place(
    lake_bag: Path, bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(lake_bag, tmp_path / "bag")
    shutil.copytree(lake_bag, tmp_path / "old")
    (tmp_path / "text").write_text("years of work")
    for place, options, says in (
        ("bag", ["--overwrite"], "is the bag that is evaluated"),
        ("old", [], "exists already; give --overwrite"),
        ("text", ["--overwrite"], "is no bag"),
    ):
        plans = ["--plans-bag", tmp_path / place, *options]
        assert main(command(tmp_path / "bag", bundle_dir, tmp_path / "out", *plans)) == 2
        assert says in only_line(capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bag", "old", "text"]
    for name in ("bag", "old"):
        assert bag_digest(tmp_path / name) == bag_digest(lake_bag)
    plans = ["--plans-bag", tmp_path / "old", "--overwrite"]
    assert main(command(tmp_path / "bag", bundle_dir, tmp_path / "out", *plans)) == 0
    assert "/planner/plan" in {topic for topic, *_ in messages(tmp_path / "old")}


def test_a_recording_is_never_in_the_way_of_its_plans_or_results(
    lake_bag: Path, bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag, out = tmp_path / "bag", tmp_path / "out"
    shutil.copytree(lake_bag, bag)
    (tmp_path / "link").symlink_to(bag)
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "bag").symlink_to(bag)
    [data] = bag.glob("*.mcap")
    for recording, plans in (
        (data, bag),
        (data, tmp_path / "link"),
        (tmp_path / "link", bag),
        (bag, bag / "plans"),
        (bag, tmp_path / "link" / "plans"),
        (bag, tmp_path),
        (tmp_path / "far" / "bag", tmp_path / "far"),
    ):
        options = ["--plans-bag", plans, "--overwrite"]
        assert main(command(recording, bundle_dir, out, *options)) == 2
        assert "give the plans a place of their own" in only_line(capsys)
    for recording, results in ((bag, bag), (bag, tmp_path / "link"), (data, bag)):
        assert main(command(recording, bundle_dir, results)) == 2
        assert "give --out a place of its own" in only_line(capsys)
    assert bag_digest(bag) == bag_digest(lake_bag) and not out.exists()
    assert sorted(path.name for path in bag.iterdir()) == sorted(
        path.name for path in lake_bag.iterdir()
    )


def test_results_that_have_no_place_are_told_before_the_work(
    lake_bag: Path, bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("years of work")
    plans = ["--plans-bag", tmp_path / "plans"]
    for bag in (lake_bag, tmp_path / "not there either"):
        for out in (file, file / "below"):
            assert main(command(bag, bundle_dir, out, *plans)) == 2
            assert f"{file} is a file, not a directory" in only_line(capsys)
    plans = ["--plans-bag", file / "plans"]
    assert main(command(lake_bag, bundle_dir, tmp_path / "out", *plans)) == 2
    assert f"{file} is a file, not a directory" in only_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_evaluation_that_is_terminated_leaves_nothing(
    lake_episodes, bundle_dir: Path, tmp_path: Path
) -> None:
    bag = tmp_path / "bag"
    list(write_episodes(bag, islice(cycle(lake_episodes), 300), 10.0, "mcap", False))
    words = command(bag, bundle_dir, tmp_path / "out", "--plans-bag", tmp_path / "plans")
    program = [sys.executable, "-m", "mgsd_core.cli", *words]
    with subprocess.Popen(program, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        deadline = monotonic() + 60
        while not (tmp_path / ".plans.partial").exists():
            assert process.poll() is None and monotonic() < deadline
            sleep(0.005)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
    assert [path.name for path in tmp_path.iterdir()] == ["bag"]


# --- A planner that takes its time ---


def test_a_planner_that_is_busy_drops_frames_and_repeats_to_the_byte(
    lake_episodes, bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten frames a second, a quarter of a second for a plan."""
    bag = tmp_path / "bag"
    list(write_episodes(bag, iter(lake_episodes[:10]), 10.0, "mcap", False))
    for name in ("one", "two"):
        options = ["--mode", LATENCY_AWARE, "--latency", 0.25]
        options += ["--plans-bag", tmp_path / name / "plans"]
        assert main(command(bag, bundle_dir, tmp_path / name, *options)) == 0
    for name in (*SAME, "plans/plans.mcap"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    summary = summary_of(tmp_path / "one")
    # Begun at 0, 0.25, 0.5, 0.75, 1.0 s, each time on the newest frame that came before that.
    assert [line["index"] for line in lines_of(tmp_path / "one")] == [0, 2, 4, 7, 9]
    assert summary["dropped"]["replaced"] == [1, 3, 5, 6, 8]
    assert (summary["received"], summary["frames"], summary["count"]) == (10, 5, 5)
    assert summary["ages"]["began"] == pytest.approx({"median": 0.05, "p95": 0.1, "max": 0.1})
    assert summary["ages"]["came"] == pytest.approx({"median": 0.3, "p95": 0.35, "max": 0.35})
    assert summary["latency"] == 0.25
    said = messages(tmp_path / "one" / "plans")
    plans = [time for topic, time, *_ in said if topic == "/planner/plan"]
    assert plans == [10**9 + 25 * 10**7 * number for number in range(1, 6)]
    assert [topic for topic, *_ in said].count(IMAGE_TOPIC) == 10
    out = capsys.readouterr().out
    assert "10 frames, 5 replaced; planned on 5" in out
    assert "age of frames when the plan came: median 300.0 ms" in out


def test_measured_latencies_decide_without_a_given_one(
    lake_episodes, answerer: FrameAnswerer, tmp_path: Path
) -> None:
    bag = tmp_path / "bag"
    episodes = islice(cycle(lake_episodes), 100)
    list(write_episodes(bag, episodes, 20_000.0, "mcap", False))
    summary = evaluate_bag(answerer, bag, IMAGE_TOPIC, tmp_path / "out", mode=LATENCY_AWARE)
    replaced = summary["dropped"]["replaced"]
    taken = [line["index"] for line in lines_of(tmp_path / "out")]
    # A plan takes longer, on any machine, than the 50 microseconds to the next frame.
    assert len(replaced) > 30 and taken[0] == 0 and taken[-1] == 99
    assert sorted([*replaced, *taken]) == list(range(100))
    timings = json.loads((tmp_path / "out" / "timings.json").read_text())
    slowest = max(frame["frame"] for frame in timings["frames"])
    ages = summary["ages"]
    # Ages are whole nanoseconds, times are not.
    assert ages["came"]["max"] > slowest - 1e-9 and slowest > ages["began"]["median"]


def test_the_nodes_parameters_pass_over_frames(
    lake_episodes, planner: Planner, tmp_path: Path
) -> None:
    rgb, other = lake_episodes[0].image, lake_episodes[1].image
    bag = tmp_path / "bag"
    late = 10**9 + 6 * 10**8 + 5 * 10**8
    write_images(
        bag,
        {
            IMAGE_TOPIC: [
                *(fields(picture) for picture in (rgb, rgb, other, other, rgb, rgb)),
                fields(other, received=late),
            ]
        },
    )

    def dropped(mode: str = LATENCY_AWARE, **changes: float) -> dict[str, list[int]]:
        answerer = FrameAnswerer(planner, PlannerParameters(**changes))  # type: ignore[arg-type]
        out = tmp_path / "out"
        summary = evaluate_bag(answerer, bag, IMAGE_TOPIC, out, mode=mode, latency=0.0)
        assert summary["received"] == 7
        return {why: frames for why, frames in summary["dropped"].items() if frames}

    assert dropped() == {}
    assert dropped(change_threshold=5.0) == {"unchanged": [1, 3, 5]}
    assert dropped(max_frame_age=0.4) == {"stale": [6]}
    # Begun at 0, 0.25, 0.5 s and when the late one came.
    assert dropped(max_rate=4.0) == {"replaced": [1, 3]}
    assert dropped("every-frame", change_threshold=5.0, max_rate=4.0, max_frame_age=0.4) == {}


def test_where_every_frame_is_passed_over_it_is_said_why(
    lake_episodes, bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rgb, day = lake_episodes[0].image, 86_400 * 10**9
    late = [fields(rgb, received=day + number) for number in range(3)]
    write_images(tmp_path / "bag", {IMAGE_TOPIC: late})
    (tmp_path / "robot.yaml").write_text("planner: {ros__parameters: {max_frame_age: 0.5}}")
    options = ["--mode", LATENCY_AWARE, "--latency", 0, "--plans-bag", tmp_path / "out" / "plans"]
    options += ["--params-file", tmp_path / "robot.yaml"]
    assert main(command(tmp_path / "bag", bundle_dir, tmp_path / "out", *options)) == 2
    says = "none of 3 frames was planned on: 3 older than max_frame_age (0.5 s)"
    assert says in only_line(capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bag", "robot.yaml"]


def test_images_of_which_none_can_be_used_are_status_1_with_the_reasons(
    lake_episodes, bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rgb = lake_episodes[0].image
    odd = [fields(rgb, encoding="jpeg2000"), fields(rgb, encoding="jpeg2000"), fields(rgb, step=1)]
    write_images(tmp_path / "bag", {IMAGE_TOPIC: odd})
    assert main(command(tmp_path / "bag", bundle_dir, tmp_path / "out")) == 1
    said = capsys.readouterr().out.splitlines()
    [often] = [line for line in said if "jpeg2000" in line]
    assert often.strip().startswith("2 x image not usable: ")
    [once] = [line for line in said if "step" in line]
    assert once.strip().startswith("1 x image not usable: ")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)


def test_only_texts_are_read_as_the_truth_and_the_topic_can_be_chosen(
    lake_episodes, bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, text = get_typestore(TYPESTORE), "std_msgs/msg/String"
    list(write_episodes(tmp_path / "own", iter(lake_episodes[:2]), 10.0, "mcap", False))
    kinds = {"foreign": "builtin_interfaces/msg/Time", "other text": text}
    for name, kind in kinds.items():
        with new_bag(tmp_path / name, "mcap", overwrite=False) as writer:
            image = writer.add_connection(IMAGE_TOPIC, IMAGE, typestore=store)
            foreign = writer.add_connection(TRUTH_TOPIC, kind, typestore=store)
            truth = writer.add_connection("/truth", text, typestore=store)
            message = store.types[kind]("on") if kind == text else store.types[kind](1, 2)
            writer.write(foreign, 1, store.serialize_cdr(message, kind))
            for topic, time, _, data in messages(tmp_path / "own"):
                if topic in (IMAGE_TOPIC, TRUTH_TOPIC):
                    writer.write(image if topic == IMAGE_TOPIC else truth, time, data)

    def count(name: str, *options: object) -> int:
        out = tmp_path / "out"
        assert main(command(tmp_path / name, bundle_dir, out, *options)) == 0
        capsys.readouterr()
        return summary_of(out)["count"]

    assert count("own") == count("foreign", "--truth-topic", "/truth") == 2
    assert count("own", "--truth-topic", "") == count("foreign") == 0
    assert count("other text", "--truth-topic", "/truth") == 2
    for name, options, says in (
        ("other text", [], f"message 0 of {TRUTH_TOPIC} holds no true state"),
        ("own", ["--truth-topic", "/truth"], "no std_msgs/msg/String on /truth; it has: "),
        ("own", ["--truth-topic", IMAGE_TOPIC], f"no std_msgs/msg/String on {IMAGE_TOPIC}; it"),
    ):
        assert main(command(tmp_path / name, bundle_dir, tmp_path / "no", *options)) == 2
        assert says in only_line(capsys) and not (tmp_path / "no").exists()


def test_unknown_names_in_a_parameter_file_are_warned_of(
    lake_bag: Path, bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "robot.yaml"
    file.write_text(
        "/a/planner: {ros__parameters: {famly: maze, repair: true}}\n"
        "/b/planner: {ros__parameters: {repair: false}}\n"
    )
    options = ["--params-file", file, "--node", "/a/planner"]
    assert main(command(lake_bag, bundle_dir, tmp_path / "out", *options)) == 0
    said = capsys.readouterr().err.splitlines()
    [line] = [line for line in said if "famly" in line]
    assert line.startswith("mgsd evaluate-bag: ") and "has no effect" in line
    assert summary_of(tmp_path / "out")["parameters"]["repair"] is True
    assert main(command(lake_bag, bundle_dir, tmp_path / "no", "--node", "/a/planner")) == 2
    assert "--node is for --params-file" in only_line(capsys)


def test_a_bag_of_which_only_metadata_is_missing_is_complete(
    lake_bag: Path, bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(lake_bag, tmp_path / "bag")
    (tmp_path / "bag" / "metadata.yaml").unlink()
    assert main(command(tmp_path / "bag", bundle_dir, tmp_path / "out")) == 0
    summary = summary_of(tmp_path / "out")
    assert (summary["complete"], summary["problem"], summary["frames"]) == (True, None, 30)
    assert "metadata.yaml" in summary["note"]
    assert "metadata.yaml" in capsys.readouterr().out


# --- Bags that break ---


@pytest.fixture(scope="module")
def long_bags(lake_episodes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bag of 60 frames in each storage; in mcap about 20 of them are one chunk."""
    place = tmp_path_factory.mktemp("long")
    for storage in STORAGES:
        episodes = islice(cycle(lake_episodes), 60)
        list(write_episodes(place / storage, episodes, 30.0, storage, False))
    return {storage: place / storage for storage in STORAGES}


@pytest.mark.parametrize("storage", sorted(STORAGES))
def test_of_a_bag_that_was_cut_off_partial_results_are_kept(
    storage: str,
    long_bags: dict[str, Path],
    bundle_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(command(long_bags[storage], bundle_dir, tmp_path / "whole")) == 0
    whole = lines_of(tmp_path / "whole")
    capsys.readouterr()
    random, counts = np.random.default_rng(3), []
    for number in range(6):
        bag, out = tmp_path / f"bag{number}", tmp_path / f"out{number}"
        shutil.copytree(long_bags[storage], bag)
        [data] = [path for path in bag.iterdir() if path.name != "metadata.yaml"]
        share = 0.001 if number == 0 else random.uniform(0.1, 1)
        with data.open("rb+") as file:
            file.truncate(int(share * data.stat().st_size))
        if number % 2:
            (bag / "metadata.yaml").unlink()
        plans = ["--plans-bag", tmp_path / f"plans{number}"]
        assert main(command(bag, bundle_dir, out, *plans)) == 2
        line = only_line(capsys)
        assert str(bag) in line
        if not out.exists():
            assert "partial" not in line
            assert not (tmp_path / f"plans{number}").exists()
            counts.append(0)
            continue
        assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
        summary, lines = summary_of(out), lines_of(out)
        assert line.endswith(f"partial results of {len(lines)} frames are kept in {out}")
        assert summary["complete"] is False
        assert summary["problem"] in line and str(bag) in summary["problem"]
        assert summary["frames"] == summary["received"] == len(lines)
        # The last one's truth may be beyond the cut.
        assert lines[:-1] == whole[: len(lines) - 1]
        assert lines[-1]["actions"] == whole[len(lines) - 1]["actions"]
        said = [topic for topic, *_ in messages(tmp_path / f"plans{number}")]
        assert said.count("/planner/plan") == said.count(IMAGE_TOPIC) == len(lines)
        counts.append(len(lines))
    assert counts[0] == 0 and max(counts) > 20


def test_partial_results_of_two_cameras_and_of_another_family(
    lake_episodes,
    bundle_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rgb = lake_episodes[0].image
    pictures = [fields(rgb), fields(rgb), fields(rgb, frame_id="right")]
    write_images(tmp_path / "bag", {IMAGE_TOPIC: pictures})
    for mode in ("every-frame", LATENCY_AWARE):
        out = tmp_path / mode
        assert main(command(tmp_path / "bag", bundle_dir, out, "--mode", mode)) == 2
        line = only_line(capsys)
        assert "frame_id 'right', those before 'camera'; partial results of 2 frames" in line
        assert len(lines_of(out)) == 2 and not summary_of(out)["complete"]

    # A maze after a lake.
    drawn = ["--family", "maze", "--level", "3", "--count", "1", "--size", "64"]
    assert main(["record-bag", *drawn, "--out", str(tmp_path / "maze")]) == 0
    with open_bag(tmp_path / "maze") as reader:
        [maze] = read_frames(reader, IMAGE_TOPIC)
    assert maze.truth is not None
    odd = replace(lake_episodes[1], state=maze.truth.state, plan=maze.truth.plan)
    list(write_episodes(tmp_path / "odd", iter([lake_episodes[0], odd]), 10.0, "mcap", False))
    for bag, frame in (("odd", 1), ("maze", 0)):
        out = tmp_path / f"of {bag}"
        capsys.readouterr()
        assert main(command(tmp_path / bag, bundle_dir, out)) == 2
        says = f"frame {frame} shows a maze state, but plans for frozenlake were asked for"
        assert says in only_line(capsys)
        assert out.exists() == (frame > 0)


def test_bags_that_cannot_be_evaluated_are_one_line_each(
    lake_bag: Path,
    lake_episodes,
    bundle_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    blind, lying = tmp_path / "blind", tmp_path / "lying"
    list(write_episodes(blind, iter(()), 10.0, "mcap", False))
    store = get_typestore(TYPESTORE)
    text = "std_msgs/msg/String"
    with new_bag(lying, "mcap", overwrite=False) as writer:
        image = writer.add_connection(IMAGE_TOPIC, IMAGE, typestore=store)
        truth = writer.add_connection(TRUTH_TOPIC, text, typestore=store)
        with open_bag(lake_bag) as reader:
            writer.write(image, 1, next(read_frames(reader, IMAGE_TOPIC)).data)
        writer.write(truth, 1, store.serialize_cdr(store.types[text]('{"state": [1]}'), text))
    two = tmp_path / "two.yaml"
    two.write_text("{/a/planner: {ros__parameters: {}}, /b/planner: {ros__parameters: {}}}")
    empty = tmp_path / "empty"
    empty.mkdir()
    pose = tmp_path / "pose.yaml"
    pose.write_text(
        "planner: {ros__parameters: {area: {cells: 3}, grid: {cell_size: 0.1}, camera: {z: 1.0}}}"
    )

    for bag, options, says in (
        (tmp_path / "none", [], "no such bag"),
        (empty, [], "2 bag: no metadata.yaml and no .mcap or .db3 file in it"),
        (blind, [], f"has no images on {IMAGE_TOPIC}; it has: {INFO_TOPIC} (sensor_msgs/msg/"),
        (lake_bag, ["--topic", "/eye"], f"no images on /eye; it has: {INFO_TOPIC} "),
        (lake_bag, ["--topic", TRUTH_TOPIC], f"{TRUTH_TOPIC} holds std_msgs/msg/String"),
        (lying, [], f"message 0 of {TRUTH_TOPIC} holds no true state"),
        (lake_bag, ["--typestore", "ros3"], "unknown typestore 'ros3'; there are: ros2_"),
        (lake_bag, ["--latency", "1"], "--latency is for --mode latency-aware"),
        (lake_bag, ["--mode", LATENCY_AWARE, "--latency", "-1"], "latency must be from 0 to 3600"),
        (lake_bag, ["--mode", LATENCY_AWARE, "--latency", "nan"], "latency must be from 0 to 3600"),
        (lake_bag, ["--params-file", tmp_path / "no.yaml"], "no.yaml: No such file"),
        (lake_bag, ["--params-file", two], "parameters of several nodes: /a/planner, /b/planner"),
        (lake_bag, ["--params-file", pose, "--info-topic", "/x"], "has no sensor_msgs/msg/CameraI"),
        (lake_bag, ["--family", "maze"], "cannot plan for 'maze'"),
    ):
        out = tmp_path / "out"
        assert main(command(bag, bundle_dir, out, *options)) == 2
        assert says in only_line(capsys)
        assert not out.exists()


def test_the_shipped_model_plans_where_no_bundle_is_named(tmp_path: Path) -> None:
    drawn = ["--family", "maze", "--level", "3", "--count", "3", "--styles", "overhead"]
    assert main(["record-bag", *drawn, "--size", "256", "--out", str(tmp_path / "bag")]) == 0
    file = tmp_path / "robot.yaml"
    file.write_text("planner: {ros__parameters: {family: maze}}")
    options = ["--params-file", file, "--bag", tmp_path / "bag", "--out", tmp_path / "out"]
    assert main(["evaluate-bag", *map(str, options)]) == 0
    assert summary_of(tmp_path / "out")["family"] == "maze"
    assert summary_of(tmp_path / "out")["macro"]["success"] > 0.5


# --- Playing ---


def test_compressed_images_are_played_as_image_transport_sends_them(
    lake_episodes, start_node: StartNode, ros_env: dict[str, str], tmp_path: Path
) -> None:
    bag, out = tmp_path / "bag", tmp_path / "answers.jsonl"
    list(write_episodes(bag, iter(lake_episodes[:4]), 10.0, "mcap", False, "png"))
    start_node("-p", "image_transport:=compressed")
    play = ["play-bag", "--bag", str(bag), "--topic", COMPRESSED_TOPIC, "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "mgsd_core.cli", *play], env=ros_env, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0
    played = [json.loads(line)["played"]["answer"] for line in out.read_text().splitlines()]
    assert [answer["state"] for answer in played] == [
        state_to_dict(episode.state) for episode in lake_episodes[:4]
    ]


def test_the_node_and_the_evaluation_answer_alike(
    lake_episodes, start_node: StartNode, ros_env: dict[str, str], bundle_dir: Path, tmp_path: Path
) -> None:
    """Over DDS and without, from the same parameter file; JPEG, as that is decoded on the way."""
    bag, file = tmp_path / "bag", tmp_path / "robot.yaml"
    far = (replace(e, image=far_away(e.image)) for e in lake_episodes[:6])
    list(write_episodes(bag, far, 10.0, "mcap", False, "jpeg"))
    corners = ", ".join(map(str, area_in()))
    file.write_text(
        f"/**/planner:\n  ros__parameters:\n    bundle: {bundle_dir}\n    repair: true\n"
        "    image_transport: compressed\n"
        f"    area: {{cells: 3, corners: [{corners}]}}\n    grid: {{cell_size: 0.25}}\n"
    )
    start_node("--params-file", str(file), bundle=None)
    out = tmp_path / "answers.jsonl"
    play = ["play-bag", "--bag", str(bag), "--topic", COMPRESSED_TOPIC, "--out", str(out)]
    subprocess.run(
        [sys.executable, "-m", "mgsd_core.cli", *play],
        env=ros_env,
        cwd=ROOT,
        timeout=60,
        check=True,
    )
    plans = ["--plans-bag", tmp_path / "plans", "--params-file", file]
    options = ["--bag", bag, "--topic", COMPRESSED_TOPIC, "--out", tmp_path / "out", *plans]
    assert main(["evaluate-bag", *map(str, options)]) == 0
    played = [json.loads(line)["played"] for line in out.read_text().splitlines()]
    for line, node in zip(lines_of(tmp_path / "out"), played, strict=True):
        # How many passes it took depends on the frame before.
        told = {k: v for k, v in node["answer"].items() if k not in ("timings", "passes")}
        assert told == {key: line[key] for key in told}
    paths = [m for topic, _, m, _ in messages(tmp_path / "plans") if topic == "/planner/plan"]
    for path, node in zip(paths, played, strict=True):
        ours = [(s.pose.position.x, s.pose.position.y) for s in path.poses]
        assert ours == [tuple(place[:2]) for place in node["path"]] and ours
