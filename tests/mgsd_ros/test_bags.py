"""Bags that are written, and bags that are read, whole or not."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_images import COMPRESSED, IMAGE, fields, write_images
from rosbags.typesys import get_typestore

from mgsd_core.cli import main
from mgsd_ros.bag_record import write_episodes
from mgsd_ros.bags import (
    IMAGE_TOPIC,
    INFO_TOPIC,
    STORAGES,
    TRUTH_TOPIC,
    TYPESTORE,
    BagError,
    BagFrame,
    find_typestore,
    new_bag,
    open_bag,
    read_frames,
)
from mgsd_ros.conversions import rgb_from_image, rgb_from_message
from sim import state_to_dict
from sim.dataset import write_dataset
from sim.request import DatasetRequest


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
        return [(stamp, bytes(data)) for stamp, _, data in reader.messages(topic)]


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
        for frame, episode in zip(read_frames(reader, IMAGE_TOPIC), lake_episodes, strict=True):
            assert frame.truth is not None
            assert frame.received == frame.header.nanoseconds
            assert (frame.truth.state, frame.truth.plan) == (episode.state, episode.plan)


@pytest.mark.parametrize(("compressed", "storage"), [("jpeg", "mcap"), ("png", "sqlite3")])
def test_compressed_images_are_recorded_as_image_transport_sends_them(
    compressed: str, storage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = ["--family", "maze", "--level", "3", "--count", "3", "--size", "64", "--seed", "1"]
    for name, options in (("raw", []), ("small", ["--compressed", compressed])):
        out = ["--storage", storage, "--out", str(tmp_path / name)]
        assert main(["record-bag", *drawn, *options, *out]) == 0
    topic = f"{IMAGE_TOPIC}/compressed"
    sent = messages(tmp_path / "small", topic)
    assert [image.format for _, image in sent] == [f"rgb8; {compressed} compressed bgr8"] * 3
    with open_bag(tmp_path / "small") as reader, open_bag(tmp_path / "raw") as raw:
        kinds = {connection.topic: connection.msgtype for connection in reader.connections}
        assert (kinds.get(IMAGE_TOPIC), kinds[topic]) == (None, COMPRESSED)
        for small, whole in zip(
            read_frames(reader, topic), read_frames(raw, IMAGE_TOPIC), strict=True
        ):
            assert (small.header, small.truth) == (whole.header, whole.truth)
            exact, rgb = rgb_from_image(whole.image), rgb_from_message(small.image)
            error = np.abs(exact.astype(int) - rgb).mean()
            assert error == 0 if compressed == "png" else 0 < error < 8


def test_recording_from_a_data_set_or_on_the_spot_gives_the_same_frames(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(
        tmp_path / "data", DatasetRequest([("maze", 3)], "test", seed=5, count=3, size=64)
    )
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


def test_a_folder_of_pictures_is_no_recording(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test.jsonl").write_text("{}\n")
    words = ["record-bag", "--data", str(tmp_path), "--out", str(tmp_path / "bag")]
    assert main(words) == 2
    assert "lists pictures; bags are made of what generate wrote" in only_line(capsys)


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


def test_a_recording_below_a_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    drawn = ["--family", "maze", "--level", "3", "--count", "1", "--size", "64"]
    assert main(["record-bag", *drawn, "--out", str(tmp_path / "file" / "bag")]) == 2
    assert f"{tmp_path / 'file'} is a file, not a directory" in only_line(capsys)


def frames_of(bag: Path, topic: str = IMAGE_TOPIC) -> tuple[list[BagFrame], str]:
    """Return the frames that can be read, and the error after them, empty for none."""
    frames: list[BagFrame] = []
    try:
        with open_bag(bag) as reader:
            for frame in read_frames(reader, topic):
                frames.append(frame)
    except BagError as error:
        return frames, str(error)
    return frames, ""


@pytest.fixture(scope="module", params=sorted(STORAGES))
def long_bag(request, lake_episodes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bag of 60 frames; in mcap about 20 of them are one chunk."""
    path = tmp_path_factory.mktemp("long") / "bag"
    episodes = islice(cycle(lake_episodes), 60)
    assert len(list(write_episodes(path, episodes, 30.0, request.param, False))) == 60
    return path


def data_file(bag: Path) -> Path:
    [data] = [path for path in bag.iterdir() if path.name != "metadata.yaml"]
    return data


def content(frame: BagFrame) -> tuple[Any, ...]:
    return (frame.received, frame.header, frame.truth, bytes(frame.data))


def test_of_a_bag_that_was_cut_off_the_frames_before_are_read(
    long_bag: Path, tmp_path: Path
) -> None:
    """Wherever it was cut, and whether or not a recorder still wrote metadata.yaml."""
    whole, nothing_wrong = frames_of(long_bag)
    assert (len(whole), nothing_wrong) == (60, "")
    size = data_file(long_bag).stat().st_size
    random, counts = np.random.default_rng(1), []
    for number in range(24):
        bag = tmp_path / f"bag{number}"
        shutil.copytree(long_bag, bag)
        cut = int(random.integers(0, size)) if number else size - 1
        with data_file(bag).open("rb+") as file:
            file.truncate(cut)
        if number % 2:
            (bag / "metadata.yaml").unlink()
        frames, problem = frames_of(bag)
        assert str(bag) in problem and "\n" not in problem
        assert ("could be read" in problem) == bool(frames)
        counts.append(len(frames))
        same = [content(f) for f in whole[: len(frames)]]
        assert [content(frame) for frame in frames[:-1]] == same[:-1]
        # The truth of the last one is written after its image.
        assert not frames or bytes(frames[-1].data) == same[-1][-1]
        # At most one chunk of an mcap file, or some pages at the end of a database, are lost.
        assert len(frames) > 60 * (cut - 100_000) / size - 21
        shutil.rmtree(bag)
    assert counts[0] >= 58 and min(counts) < 30


@pytest.mark.parametrize("name", ["data", "metadata.yaml"])
def test_a_damaged_bag_is_read_whole_or_as_far_as_it_goes(
    name: str, long_bag: Path, tmp_path: Path
) -> None:
    whole, _ = frames_of(long_bag)
    random = np.random.default_rng(2)
    for number in range(20):
        bag = tmp_path / f"bag{number}"
        shutil.copytree(long_bag, bag)
        file = data_file(bag) if name == "data" else bag / name
        damaged = bytearray(file.read_bytes())
        place = int(random.integers(0, len(damaged)))
        damaged[place : place + 64] = random.integers(0, 256, 64, np.uint8).tobytes()
        file.write_bytes(damaged)
        frames, problem = frames_of(bag)
        if problem:
            assert str(bag) in problem and "\n" not in problem
        else:
            # Damage inside a picture is no damage of the bag.
            assert len(frames) == 60
        if name == "metadata.yaml":
            assert [content(f) for f in frames] == [content(f) for f in whole[: len(frames)]]
            # What the messages are, their files say themselves.
            assert len(frames) in (0, 60)
        shutil.rmtree(bag)


def test_a_recording_in_several_files_is_read_as_far_as_it_goes(
    lake_episodes, tmp_path: Path
) -> None:
    """As a recorder leaves it that was told to split and lost its power: bag_9 before bag_10."""
    parts = tmp_path / "parts"
    (tmp_path / "bag").mkdir()
    for number in (9, 10):
        list(write_episodes(parts, iter(lake_episodes), 10.0, "mcap", True))
        shutil.copy(parts / "parts.mcap", tmp_path / "bag" / f"bag_{number}.mcap")
    frames, problem = frames_of(tmp_path / "bag")
    assert len(frames) == 32 and problem == ""
    with open_bag(tmp_path / "bag") as reader:
        assert "metadata.yaml" in reader.note
    with (tmp_path / "bag" / "bag_10.mcap").open("rb+") as file:
        file.truncate(1000)
    assert len(frames_of(tmp_path / "bag")[0]) == 16
    with (tmp_path / "bag" / "bag_9.mcap").open("rb+") as file:
        file.truncate(1000)
    frames, problem = frames_of(tmp_path / "bag")
    assert frames == [] and "cannot be read as a ROS 2 bag" in problem


def test_without_metadata_damage_is_still_seen(long_bag: Path, tmp_path: Path) -> None:
    shutil.copytree(long_bag, tmp_path / "bag")
    (tmp_path / "bag" / "metadata.yaml").unlink()
    frames, problem = frames_of(tmp_path / "bag")
    assert (len(frames), problem) == (60, "")
    data = data_file(tmp_path / "bag")
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) - 1])
    assert "cut off or damaged" in frames_of(tmp_path / "bag")[1]
    data.write_bytes(whole)
    # What SQLite has not yet put into the database.
    data.with_name(f"{data.name}-wal").write_bytes(b"more")
    assert "cut off or damaged" in frames_of(tmp_path / "bag")[1]


@pytest.mark.parametrize("name", ["record-bag", "evaluate-bag", "play-bag", "closed-loop", "demo"])
def test_help_shows_only_defaults_that_say_something(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: " in text
    assert "(default: None)" not in text and "(default: False)" not in text


def test_a_bag_to_play_that_is_not_there_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rclpy", reason="rclpy is not installed (extra ros)")
    (tmp_path / "file").touch()
    for bag, out, says in (
        ("no", "new/answers", "no such bag"),
        ("no", "file/answers", f"{tmp_path / 'file'} is a file, not a directory"),
    ):
        words = ["play-bag", "--bag", str(tmp_path / bag), "--out", str(tmp_path / out)]
        assert main(words) == 2
        assert says in only_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("storage", sorted(STORAGES))
def test_one_file_of_a_bag_is_a_bag(storage: str, lake_episodes, tmp_path: Path) -> None:
    list(write_episodes(tmp_path / "bag", iter(lake_episodes), 10.0, storage, False))
    frames, problem = frames_of(data_file(tmp_path / "bag"))
    assert (len(frames), problem) == (16, "")


def test_images_of_two_cameras_on_one_topic_are_told_apart(lake_episodes, tmp_path: Path) -> None:
    rgb = lake_episodes[0].image
    left, right = fields(rgb), fields(rgb, frame_id="right")
    write_images(tmp_path / "bag", {IMAGE_TOPIC: [left, left, right, left]})
    frames, problem = frames_of(tmp_path / "bag")
    assert len(frames) == 2
    assert "image 2 has frame_id 'right', those before 'camera'" in problem


@pytest.mark.parametrize(
    "change",
    [
        lambda database: database.execute("DROP TABLE message_definitions"),
        lambda database: database.executescript(
            "DROP TABLE message_definitions; DROP TABLE schema; DROP TABLE metadata;"
            "ALTER TABLE topics DROP COLUMN type_description_hash"
        ),
    ],
    ids=["cut", "before Iron"],
)
def test_a_bag_without_definitions_is_read_by_those_of_a_distribution(
    change: Callable[[sqlite3.Connection], object], lake_episodes, tmp_path: Path
) -> None:
    bag = tmp_path / "bag"
    list(write_episodes(bag, iter(lake_episodes), 10.0, "sqlite3", False))
    with closing(sqlite3.connect(data_file(bag))) as database, database:
        change(database)
    for name in ("ros2_foxy", "ros2_humble", "ros2_jazzy"):
        with open_bag(bag, find_typestore(name)) as reader:
            frames = []
            try:
                frames += read_frames(reader, IMAGE_TOPIC)
            except BagError as error:
                assert "definitions" in str(error)
            assert [f.truth.state for f in frames if f.truth] == [e.state for e in lake_episodes]


def write_defined(bag: Path, topic: str, kind: str, definition: str, data: list[bytes]) -> None:
    """Write messages of a type with a definition of our own."""
    with new_bag(bag, "mcap", overwrite=False) as writer:
        digest = "RIHS01_" + 64 * "0"
        connection = writer.add_connection(topic, kind, msgdef=definition, rihs01=digest)
        for number, message in enumerate(data):
            writer.write(connection, 10**9 + number, message)


def test_the_bags_own_definitions_come_first(lake_episodes, tmp_path: Path) -> None:
    """Here an image has a field more than in any distribution; its header is defined elsewhere."""
    bag, store = tmp_path / "bag", get_typestore(TYPESTORE)
    usual, _ = store.generate_msgdef(IMAGE, ros_version=2)
    own = usual.split("=" * 80)[0] + "uint8 mood\n"
    write_images(tmp_path / "usual", {IMAGE_TOPIC: [fields(lake_episodes[0].image)]})
    [(_, usual_data)] = raw_messages(tmp_path / "usual", IMAGE_TOPIC)
    write_defined(bag, IMAGE_TOPIC, IMAGE, own, [usual_data + b"\x07"])
    [frame], problem = frames_of(bag)
    assert (frame.image.mood, problem) == (7, "")
    assert (rgb_from_message(frame.image) == lake_episodes[0].image).all()


def test_definitions_in_idl_are_understood(tmp_path: Path) -> None:
    text = "module std_msgs { module msg { struct String { string data; }; }; };\n"
    idl = "=" * 80 + "\nIDL: std_msgs/msg/String\n" + text
    store = get_typestore(TYPESTORE)
    kind = "std_msgs/msg/String"
    data = bytes(store.serialize_cdr(store.types[kind]("hello"), kind))
    write_defined(tmp_path / "bag", "/said", kind, idl, [data])
    with open_bag(tmp_path / "bag") as reader:
        assert [message.data for _, message, _ in reader.messages("/said")] == ["hello"]


def test_an_unknown_type_is_named(tmp_path: Path) -> None:
    definition = "std_msgs/Header header\nfleet_msgs/Mood[] moods\n"
    write_defined(tmp_path / "bag", IMAGE_TOPIC, IMAGE, definition, [b"\0\1\0\0"])
    _, problem = frames_of(tmp_path / "bag")
    assert f"the type fleet_msgs/msg/Mood on {IMAGE_TOPIC} is defined neither" in problem
    assert "--typestore" in problem
    with pytest.raises(BagError, match="unknown typestore 'ros2_x'; there are: ros2_dashing"):
        find_typestore("ros2_x")


@pytest.mark.parametrize("definition", ["", "uint8 header\n", "string data\n", "nonsense ☃"])
def test_a_definition_that_makes_no_image_is_one_line(definition: str, tmp_path: Path) -> None:
    write_defined(tmp_path / "bag", IMAGE_TOPIC, IMAGE, definition, [b"\0\1\0\0\1\0\0\0\0"])
    frames, problem = frames_of(tmp_path / "bag")
    assert frames == [] and str(tmp_path / "bag") in problem and "\n" not in problem


def test_damage_that_only_the_truth_has_is_told_at_the_end(lake_episodes, tmp_path: Path) -> None:
    bag, store = tmp_path / "bag", get_typestore(TYPESTORE)
    write_images(tmp_path / "usual", {IMAGE_TOPIC: [fields(lake_episodes[0].image)]})
    [(_, image)] = raw_messages(tmp_path / "usual", IMAGE_TOPIC)
    with new_bag(bag, "sqlite3", overwrite=False) as writer:
        eye = writer.add_connection(IMAGE_TOPIC, IMAGE, typestore=store)
        truth = writer.add_connection(TRUTH_TOPIC, "std_msgs/msg/String", typestore=store)
        for time in (1, 2, 3):
            writer.write(eye, time, image)
        writer.write(truth, 2, b"\0\1\0\0\xff\xff\xff\xff")
    frames, problem = frames_of(bag)
    assert len(frames) == 3 and "is cut off or damaged" in problem
