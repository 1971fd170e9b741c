"""ROS 2 bags, written and read without ROS: camera frames and the true state that each one shows.

A bag is a directory. Bags come from anywhere: whatever is wrong with one ends as a `BagError`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from mgsd_ros.answers import FrameHeader, to_json
from sim import Plan, State, format_plan, parse_plan, state_from_dict, state_to_dict

if TYPE_CHECKING:
    from sim.camera import Camera
    from sim.dataset import Episode

IMAGE_TOPIC = "/camera/image_raw"
INFO_TOPIC = "/camera/camera_info"
TRUTH_TOPIC = "/ground_truth/state"

#: Frame of the recorded images, with the optical axes of REP-103 (x right, y down, z forward).
CAMERA_FRAME = "camera"

STORAGES: dict[str, StoragePlugin] = {
    "sqlite3": StoragePlugin.SQLITE3,
    "mcap": StoragePlugin.MCAP,
}

#: Message definitions for bags without any of their own, and those of the bags we write.
TYPESTORE = Stores.ROS2_JAZZY

#: Time of the first recorded frame [s]: not 0, which in a stamp means that none was given.
_FIRST_STAMP = 1

_IMAGE, _INFO, _TEXT = "sensor_msgs/msg/Image", "sensor_msgs/msg/CameraInfo", "std_msgs/msg/String"


class BagError(ValueError):
    """A bag that cannot be written or read; the message names it and says what is wrong."""


@dataclass(frozen=True, slots=True)
class Truth:
    """What a recorded frame really shows, and the optimal plan there."""

    state: State
    plan: Plan


@dataclass(frozen=True, slots=True, eq=False)
class BagFrame:
    """A frame of a bag.

    Attributes:
        header: of the image.
        image: the message (sensor_msgs/Image), not yet judged.
        truth: what it shows, where the bag says so.
    """

    header: FrameHeader
    image: Any
    truth: Truth | None


# --- Writing ---


@contextmanager
def new_bag(path: Path, storage: str, overwrite: bool) -> Iterator[Writer]:
    """Open a bag for writing that appears at `path` whole, when the block ends without an error.

    Raises:
        BagError: `path` exists and is not to be overwritten, or is something else than a bag.
    """
    path = path.absolute()
    if path.exists():
        if not overwrite:
            raise BagError(f"{path} exists already; give --overwrite to replace it")
        if not (path / "metadata.yaml").is_file():
            raise BagError(f"{path} is no bag, so --overwrite does not replace it")
    # A bag's files are named after its directory, so the unfinished one has its name already and
    # lies in a directory of its own.
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with Writer(partial / path.name, version=9, storage_plugin=STORAGES[storage]) as writer:
            yield writer
        if path.exists():
            path.replace(partial / "replaced")
        (partial / path.name).replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_episodes(
    path: Path, episodes: Iterator[Episode], rate: float, storage: str, overwrite: bool
) -> Iterator[Episode]:
    """Write episodes as the frames of a camera; yield each once it is written.

    Args:
        path: of the bag.
        episodes: one frame each.
        rate: frames a second; stamps grow by its inverse.
        storage: a key of `STORAGES`.
        overwrite: replace a bag that is there already.

    Raises:
        BagError: see `new_bag`.
    """
    store = get_typestore(TYPESTORE)
    types = store.types
    with new_bag(path, storage, overwrite) as writer:
        topics = {
            topic: writer.add_connection(topic, kind, typestore=store)
            for topic, kind in ((INFO_TOPIC, _INFO), (IMAGE_TOPIC, _IMAGE), (TRUTH_TOPIC, _TEXT))
        }
        for number, episode in enumerate(episodes):
            stamp = _FIRST_STAMP * 10**9 + round(number * 1e9 / rate)
            header = FrameHeader(stamp // 10**9, stamp % 10**9, CAMERA_FRAME)
            messages = {
                INFO_TOPIC: _info_message(types, header, episode.camera),
                IMAGE_TOPIC: _image_message(types, header, episode.image),
                TRUTH_TOPIC: types[_TEXT](to_json(_truth_dict(header, episode))),
            }
            for topic, message in messages.items():
                kind = topics[topic]
                writer.write(kind, stamp, store.serialize_cdr(message, kind.msgtype))
            yield episode


def _header_message(types: Any, header: FrameHeader) -> Any:
    stamp = types["builtin_interfaces/msg/Time"](header.sec, header.nanosec)
    return types["std_msgs/msg/Header"](stamp, header.frame_id)


def _image_message(types: Any, header: FrameHeader, rgb: np.ndarray) -> Any:
    height, width, _ = rgb.shape
    return types[_IMAGE](
        header=_header_message(types, header),
        height=height,
        width=width,
        encoding="rgb8",
        is_bigendian=0,
        step=3 * width,
        data=np.ascontiguousarray(rgb).reshape(-1),
    )


def _info_message(types: Any, header: FrameHeader, camera: Camera) -> Any:
    projection = np.array(
        [[camera.fx, 0, camera.cx, 0], [0, camera.fy, camera.cy, 0], [0, 0, 1, 0]], np.float64
    )
    rectification = np.eye(3)
    if camera.projection != "pinhole":
        # No CameraInfo can say what such a camera sees; zeros stand for an uncalibrated one.
        projection, rectification = np.zeros((3, 4)), np.zeros((3, 3))
    return types[_INFO](
        header=_header_message(types, header),
        height=camera.height,
        width=camera.width,
        distortion_model="plumb_bob",
        d=np.zeros(5),
        k=projection[:, :3].reshape(-1).copy(),
        r=rectification.reshape(-1),
        p=projection.reshape(-1),
        binning_x=0,
        binning_y=0,
        roi=types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False),
    )


def _truth_dict(header: FrameHeader, episode: Episode) -> dict[str, Any]:
    return {
        **header.to_dict(),
        "state": state_to_dict(episode.state),
        "plan": format_plan(episode.plan),
        "camera": episode.camera.to_dict(),
        "seed": episode.seed,
    }


# --- Reading ---


@contextmanager
def open_bag(path: Path) -> Iterator[AnyReader]:
    """Open a bag, sqlite3 or mcap.

    Raises:
        BagError: there is none at `path`, or it cannot be read.
    """
    if not path.exists():
        raise BagError(f"{path}: no such bag")
    with _only_bag_errors(path):
        reader = AnyReader([path], default_typestore=get_typestore(TYPESTORE))
        reader.open()
    try:
        yield reader
    finally:
        reader.close()


def count_frames(reader: AnyReader, path: Path, topic: str) -> int:
    """Return how many images a bag says to hold on a topic.

    Raises:
        BagError: there are none; the message lists the topics that the bag has.
    """
    here = [connection for connection in reader.connections if connection.topic == topic]
    kinds = sorted({connection.msgtype for connection in here})
    if kinds and kinds != [_IMAGE]:
        raise BagError(f"{path}: {topic} holds {', '.join(kinds)}, not {_IMAGE}")
    count = sum(connection.msgcount for connection in here)
    if count == 0:
        topics = sorted(f"{c.topic} ({c.msgtype}, {c.msgcount})" for c in reader.connections)
        raise BagError(
            f"{path} has no images on {topic}; it has: {', '.join(topics) or 'no topics at all'}"
        )
    return count


def read_frames(reader: AnyReader, path: Path, topic: str) -> Iterator[BagFrame]:
    """Yield the frames of a topic in the order of their time in the bag.

    Raises:
        BagError: the bag has no images on that topic, is cut off or damaged, or what it says to be
            the truth is none.
    """
    count = count_frames(reader, path, topic)
    truths = dict(_read_truths(reader, path))
    read = 0
    for image in _messages(reader, path, topic):
        header = FrameHeader.of(image)
        read += 1
        yield BagFrame(header, image, truths.get(header.nanoseconds))
    if read != count:
        raise BagError(f"{path} is cut off: {read} of {count} images on {topic} are there")


def _read_truths(reader: AnyReader, path: Path) -> Iterator[tuple[int, Truth]]:
    for number, message in enumerate(_messages(reader, path, TRUTH_TOPIC)):
        try:
            data = json.loads(message.data)
            state = state_from_dict(data["state"])
            plan = parse_plan(data["plan"], state.family)
            stamp = data["stamp"]["sec"] * 10**9 + data["stamp"]["nanosec"]
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise BagError(
                f"{path}: message {number} of {TRUTH_TOPIC} holds no true state "
                f"({type(error).__name__}: {error})"
            ) from error
        yield stamp, Truth(state, plan)


def _messages(reader: AnyReader, path: Path, topic: str) -> Iterator[Any]:
    connections = [connection for connection in reader.connections if connection.topic == topic]
    if not connections:
        return
    with _only_bag_errors(path):
        for connection, _, data in reader.messages(connections):
            yield reader.deserialize(data, connection.msgtype)


@contextmanager
def _only_bag_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except BagError:
        raise
    except Exception as error:
        # A file that is cut off or made up raises nearly anything in the parsers beneath.
        text = " ".join(str(error).split()) or type(error).__name__
        raise BagError(f"{path} cannot be read as a ROS 2 bag: {text}") from error
