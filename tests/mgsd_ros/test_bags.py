from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_images import IMAGE, fields, write_images, write_odd_bag

from mgsd_core.cli import main
from mgsd_core.runtime import Planner
from mgsd_ros.bag_evaluate import evaluate_bag
from mgsd_ros.bags import (
    IMAGE_TOPIC,
    INFO_TOPIC,
    STORAGES,
    TRUTH_TOPIC,
    TYPESTORE,
    BagError,
    get_typestore,
    new_bag,
    open_bag,
    read_frames,
    write_episodes,
)
from mgsd_ros.conversions import rgb_from_image
from sim import state_to_dict
from sim.dataset import write_dataset

EVALUATION = ("frames.jsonl", "results.json", "timings.json")


@pytest.fixture(scope="module")
def planner(bundle_dir: Path) -> Planner:
    return Planner.load(bundle_dir, family="frozenlake")


def messages(bag: Path, topic: str) -> list[Any]:
    """Read a topic without our own reader."""
    from rosbags.highlevel import AnyReader

    with AnyReader([bag]) as reader:
        connections = [c for c in reader.connections if c.topic == topic]
        return [
            (stamp, reader.deserialize(data, c.msgtype))
            for c, stamp, data in reader.messages(connections)
        ]


def raw_messages(bag: Path, topic: str) -> list[tuple[int, bytes]]:
    with open_bag(bag) as reader:
        connections = [c for c in reader.connections if c.topic == topic]
        return [(stamp, bytes(data)) for _, stamp, data in reader.messages(connections)]


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    [line] = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("storage", sorted(STORAGES))
def test_a_bag_holds_what_the_camera_saw_and_what_is_true(
    storage: str, lake_episodes, tmp_path: Path
) -> None:
    bag = tmp_path / "bag"
    assert len(list(write_episodes(bag, iter(lake_episodes), 30.0, storage, False))) == 16

    images, infos = messages(bag, IMAGE_TOPIC), messages(bag, INFO_TOPIC)
    truths = messages(bag, TRUTH_TOPIC)
    assert len(images) == len(infos) == len(truths) == len(lake_episodes)
    last = 0
    for number, episode in enumerate(lake_episodes):
        stamp, image = images[number]
        assert stamp == image.header.stamp.sec * 10**9 + image.header.stamp.nanosec > last
        assert stamp == pytest.approx(10**9 + number * 1e9 / 30, abs=1)
        last = stamp
        assert image.header.frame_id == "camera"
        assert image.encoding == "rgb8"
        np.testing.assert_array_equal(rgb_from_image(image), episode.image)

        info, camera = infos[number][1], episode.camera
        assert repr(info.header) == repr(image.header)
        assert (info.width, info.height) == (camera.width, camera.height)
        assert info.k.tolist() == [camera.fx, 0, camera.cx, 0, camera.fy, camera.cy, 0, 0, 1]
        assert info.p.reshape(3, 4)[:, :3].reshape(-1).tolist() == info.k.tolist()
        assert not info.d.any()

        truth = json.loads(truths[number][1].data)
        assert truth["state"] == state_to_dict(episode.state)
        assert truth["camera"] == camera.to_dict()
        assert truth["stamp"]["sec"] * 10**9 + truth["stamp"]["nanosec"] == stamp

    with open_bag(bag) as reader:
        for frame, episode in zip(
            read_frames(reader, bag, IMAGE_TOPIC), lake_episodes, strict=True
        ):
            assert frame.truth is not None
            assert (frame.truth.state, frame.truth.plan) == (episode.state, episode.plan)


def test_recording_from_a_data_set_or_on_the_spot_gives_the_same_frames(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path / "data", [("maze", 3)], "test", seed=5, count=3, size=64)
    common = ["--split", "test", "--rate", "5"]
    drawn = ["--family", "maze", "--level", "3", "--count", "3", "--seed", "5", "--size", "64"]
    data = ["--data", str(tmp_path / "data")]
    for name, source in (("drawn", drawn), ("read", data)):
        assert main(["record-bag", *source, *common, "--out", str(tmp_path / name)]) == 0
        assert json.loads(capsys.readouterr().out)["frames"] == 3
    for topic in (IMAGE_TOPIC, INFO_TOPIC, TRUTH_TOPIC):
        assert raw_messages(tmp_path / "drawn", topic) == raw_messages(tmp_path / "read", topic)


def test_an_orthographic_camera_is_recorded_as_uncalibrated(lake_episodes, tmp_path: Path) -> None:
    episode = lake_episodes[0]
    flat = replace(episode, camera=replace(episode.camera, projection="orthographic"))
    list(write_episodes(tmp_path / "bag", iter([episode, flat]), 10.0, "mcap", False))
    (_, pinhole), (_, other) = messages(tmp_path / "bag", INFO_TOPIC)
    assert pinhole.k[0] == episode.camera.fx and pinhole.p[0] == episode.camera.fx
    assert not other.k.any() and not other.p.any() and not other.r.any()


def test_a_bag_is_replaced_only_when_asked_and_only_a_bag(lake_episodes, tmp_path: Path) -> None:
    bag, two = tmp_path / "bag", lake_episodes[:2]
    list(write_episodes(bag, iter(lake_episodes), 10.0, "sqlite3", False))
    with pytest.raises(BagError, match="exists already"):
        list(write_episodes(bag, iter(two), 10.0, "mcap", False))
    assert len(messages(bag, IMAGE_TOPIC)) == 16
    list(write_episodes(bag, iter(two), 10.0, "mcap", True))
    assert len(messages(bag, IMAGE_TOPIC)) == 2
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    with pytest.raises(BagError, match="is no bag"):
        list(write_episodes(other, iter(two), 10.0, "mcap", True))
    assert (other / "thesis.tex").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bag", "thesis"]


def test_an_interrupted_recording_leaves_nothing(lake_episodes, tmp_path: Path) -> None:
    def broken():
        yield from lake_episodes[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(write_episodes(tmp_path / "bag", broken(), 10.0, "mcap", False))
    recording = write_episodes(tmp_path / "bag", iter(lake_episodes), 10.0, "mcap", False)
    next(recording)
    recording.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--family", "frozenlake"], "give --data, or --family and --level"),
        (["--family", "chess", "--level", "3"], "unknown family 'chess'"),
        (["--family", "maze", "--level", "9"], "level 9 is out of range"),
        (["--family", "maze", "--level", "3", "--rate", "0"], "rate must be above 0"),
        (["--family", "maze", "--level", "3", "--rate", "nan"], "rate must be above 0"),
        (["--family", "maze", "--level", "3", "--count", "0"], "count must be at least 1"),
        (["--data", "/not/here"], "/not/here: no such directory"),
    ],
)
def test_a_recording_that_cannot_be_is_one_line(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["record-bag", *arguments, "--out", str(tmp_path / "bag")]) == 2
    assert says in only_line(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("storage", sorted(STORAGES))
def test_evaluation_judges_every_frame_and_repeats_to_the_byte(
    storage: str,
    lake_episodes,
    bundle_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bag = tmp_path / "bag"
    list(write_episodes(bag, iter(lake_episodes), 10.0, storage, False))
    arguments = ["evaluate-bag", "--bundle", str(bundle_dir), "--bag", str(bag)]
    arguments += ["--family", "frozenlake", "--out"]
    for name in ("one", "two"):
        assert main([*arguments, str(tmp_path / name)]) == 0
        assert sorted(p.name for p in (tmp_path / name).iterdir()) == sorted(EVALUATION)
    for name in ("frames.jsonl", "results.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert "100.0" in capsys.readouterr().out

    results = json.loads((tmp_path / "one" / "results.json").read_text())
    assert results["frames"] == results["count"] == 16
    assert results["unusable"] == 0
    # The student knows these pictures by heart.
    for measure in ("success", "optimal", "legal", "state"):
        assert results["macro"][measure] == 1.0
        assert results["families"]["frozenlake"]["levels"]["3"][measure] == 1.0
    lines = (tmp_path / "one" / "frames.jsonl").read_text().splitlines()
    for number, (line, episode) in enumerate(zip(lines, lake_episodes, strict=True)):
        frame = json.loads(line)
        assert frame["index"] == number
        assert frame["stamp"] == {"sec": 1 + number // 10, "nanosec": number % 10 * 10**8}
        assert frame["actions"] == [action.value for action in episode.plan]
        assert frame["true_state"] == frame["state"] == state_to_dict(episode.state)
        assert frame["record"]["success"] and frame["verdict"]["success"]
        assert "timings" not in frame
    timings = json.loads((tmp_path / "one" / "timings.json").read_text())
    assert len(timings["frames"]) == 16
    assert 0 < timings["stages"]["total"]["median"] <= timings["stages"]["total"]["p95"]


def test_a_wrong_truth_is_seen(lake_episodes, planner: Planner, tmp_path: Path) -> None:
    """Frames under other frames' truths: an evaluation that always says yes would not notice."""
    shifted = [
        replace(episode, state=other.state, plan=other.plan)
        for episode, other in pairwise(lake_episodes)
    ]
    bag = tmp_path / "bag"
    list(write_episodes(bag, iter(shifted), 10.0, "mcap", False))
    results = evaluate_bag(planner, bag, IMAGE_TOPIC, tmp_path / "out")
    assert results["by_recovered_state"] == {"legal": 1.0, "success": 1.0}
    assert results["macro"]["state"] < 0.2
    assert results["macro"]["success"] < 0.9


def test_without_truth_the_models_own_state_judges(
    lake_episodes, planner: Planner, tmp_path: Path
) -> None:
    bag = tmp_path / "bag"
    write_images(bag, {"/eye": [fields(episode.image) for episode in lake_episodes[:4]]}, "sqlite3")
    results = evaluate_bag(planner, bag, "/eye", tmp_path / "out")
    assert (results["frames"], results["count"]) == (4, 0)
    assert results["by_recovered_state"] == {"legal": 1.0, "success": 1.0}
    assert results["macro"]["success"] is None
    frame = json.loads((tmp_path / "out" / "frames.jsonl").read_text().splitlines()[0])
    assert frame["true_state"] is None and frame["record"] is None


def test_images_that_cannot_be_used_are_counted(
    lake_episodes, planner: Planner, tmp_path: Path
) -> None:
    bag = tmp_path / "bag"
    write_odd_bag(bag, lake_episodes[0].image)
    results = evaluate_bag(planner, bag, IMAGE_TOPIC, tmp_path / "out")
    assert (results["frames"], results["unusable"]) == (7, 5)
    errors = [
        json.loads(line)["error"]
        for line in (tmp_path / "out" / "frames.jsonl").read_text().splitlines()
    ]
    assert errors[0] is errors[-1] is None
    assert all(error.startswith("image not usable: ") for error in errors[1:-1])


def test_bags_that_cannot_be_evaluated_are_one_line_each(
    lake_bag: Path,
    lake_episodes,
    bundle_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    blind, lying = tmp_path / "blind", tmp_path / "lying"
    list(write_episodes(blind, iter(()), 10.0, "mcap", False))
    list(write_episodes(lying, islice(lake_episodes, 1), 10.0, "mcap", False))
    store = get_typestore(TYPESTORE)
    text = "std_msgs/msg/String"
    with new_bag(lying, "mcap", overwrite=True) as writer:
        image = writer.add_connection(IMAGE_TOPIC, IMAGE, typestore=store)
        truth = writer.add_connection(TRUTH_TOPIC, text, typestore=store)
        with open_bag(lake_bag) as reader:
            first = next(read_frames(reader, lake_bag, IMAGE_TOPIC)).image
            writer.write(image, 1, reader.typestore.serialize_cdr(first, IMAGE))
        writer.write(truth, 1, store.serialize_cdr(store.types[text]('{"state": [1]}'), text))

    for bag, options, says in (
        (tmp_path / "none", [], "no such bag"),
        (tmp_path, [], "cannot be read as a ROS 2 bag"),
        (blind, [], f"has no images on {IMAGE_TOPIC}; it has: {INFO_TOPIC} (sensor_msgs/msg/"),
        (lake_bag, ["--topic", "/eye"], f"no images on /eye; it has: {INFO_TOPIC} "),
        (lake_bag, ["--topic", TRUTH_TOPIC], f"{TRUTH_TOPIC} holds std_msgs/msg/String"),
        (lying, [], f"message 0 of {TRUTH_TOPIC} holds no true state"),
    ):
        arguments = ["--bundle", str(bundle_dir), "--bag", str(bag), "--family", "frozenlake"]
        out = tmp_path / "out"
        assert main(["evaluate-bag", *arguments, *options, "--out", str(out)]) == 2
        assert says in only_line(capsys)
        assert not out.exists()


def test_another_family_is_refused(planner: Planner, tmp_path: Path) -> None:
    bag = tmp_path / "maze"
    drawn = ["--family", "maze", "--level", "3", "--count", "1", "--size", "64"]
    assert main(["record-bag", *drawn, "--out", str(bag)]) == 0
    with pytest.raises(BagError, match="frame 0 shows a maze state, but plans for frozenlake"):
        evaluate_bag(planner, bag, IMAGE_TOPIC, tmp_path / "out")


@pytest.mark.parametrize("storage", sorted(STORAGES))
def test_a_damaged_bag_is_read_whole_or_refused_in_one_line(
    storage: str, lake_episodes, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    list(write_episodes(whole, islice(lake_episodes, 6), 10.0, storage, False))
    [data] = [path.name for path in whole.iterdir() if path.name != "metadata.yaml"]
    random = np.random.default_rng(1)

    def frames(bag: Path) -> int:
        with open_bag(bag) as reader:
            return sum(1 for _ in read_frames(reader, bag, IMAGE_TOPIC))

    assert frames(whole) == 6
    for number in range(60):
        bag = tmp_path / f"bag{number}"
        shutil.copytree(whole, bag)
        name = data if number % 4 else "metadata.yaml"
        content = bytearray((bag / name).read_bytes())
        cut = int(random.integers(0, len(content)))
        is_cut = number % 2 == 1
        if is_cut:
            content = content[:cut]
        else:
            content[cut : cut + 64] = random.integers(0, 256, 64, np.uint8).tobytes()
        (bag / name).write_bytes(content)
        try:
            # Damage inside a picture is no damage of the bag.
            assert frames(bag) == 6
            assert not is_cut
        except BagError as error:
            assert str(bag) in str(error)
            assert "\n" not in str(error)
        shutil.rmtree(bag)
