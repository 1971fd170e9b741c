"""The bags of a camera above a work area: its images and calibration, and what they really show.

Read and written without ROS. Bags come from anywhere: whatever is wrong with one ends as a
`BagError`.
"""

from __future__ import annotations

import json
import operator
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rosbags.rosbag2 import StoragePlugin, Writer

from mgsd_ros.answers import FrameHeader
from mgsd_ros.bag_places import check_directory
from mgsd_ros.bag_reader import TYPESTORE, BagError, BagReader, find_typestore, open_bag
from mgsd_ros.work_area import CameraCalibration, WorkAreaError
from sim import Plan, State, parse_plan, state_from_dict

__all__ = [
    "COMPRESSED",
    "COMPRESSED_TYPE",
    "IMAGE_TOPIC",
    "IMAGE_TYPE",
    "INFO_TOPIC",
    "INFO_TYPE",
    "STORAGES",
    "TEXT_TYPE",
    "TRUTH_TOPIC",
    "TYPESTORE",
    "BagError",
    "BagFrame",
    "BagReader",
    "Truth",
    "count_frames",
    "find_typestore",
    "image_type",
    "info_topic_of",
    "new_bag",
    "open_bag",
    "read_calibrations",
    "read_frames",
]

IMAGE_TOPIC = "/camera/image_raw"
INFO_TOPIC = "/camera/camera_info"
TRUTH_TOPIC = "/ground_truth/state"

#: What image_transport adds to the topic of images for that of the compressed ones.
COMPRESSED = "/compressed"

IMAGE_TYPE = "sensor_msgs/msg/Image"
COMPRESSED_TYPE = "sensor_msgs/msg/CompressedImage"
INFO_TYPE = "sensor_msgs/msg/CameraInfo"
TEXT_TYPE = "std_msgs/msg/String"

STORAGES: dict[str, StoragePlugin] = {
    "sqlite3": StoragePlugin.SQLITE3,
    "mcap": StoragePlugin.MCAP,
}


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
        image: the message (sensor_msgs/Image or sensor_msgs/CompressedImage), not yet judged.
        truth: what it shows, where the bag says so.
        received: when it was recorded [ns].
        data: the message in bytes, as the bag has it.
    """

    header: FrameHeader
    image: Any
    truth: Truth | None
    received: int
    data: bytes


@contextmanager
def new_bag(path: Path, storage: str, overwrite: bool) -> Iterator[Writer]:
    """Open a bag for writing that appears at `path` whole, when the block ends without an error.

    Raises:
        BagError: `path` exists and is not to be overwritten, or is something else than a bag.
        NotADirectoryError: `path` is to lie below a file.
    """
    path = path.absolute()
    check_directory(path.parent)
    if path.exists():
        if not overwrite:
            raise BagError(f"{path} exists already; give --overwrite to replace it")
        if not (path / "metadata.yaml").is_file():
            raise BagError(f"{path} is no bag, so --overwrite does not replace it")
    # A bag's files are named after its directory, so the unfinished one has its name already and
    # lies in a directory of its own.
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    missing = [place for place in path.parents if not place.exists()]
    partial.mkdir(parents=True)
    try:
        with Writer(partial / path.name, version=9, storage_plugin=STORAGES[storage]) as writer:
            yield writer
        if path.exists():
            path.replace(partial / "replaced")
        (partial / path.name).replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):
            # Where there is no bag in the end, there was no use for these; else they are not empty.
            for place in missing:
                place.rmdir()


def image_type(reader: BagReader, topic: str) -> str:
    """Return what a topic's images are: `IMAGE_TYPE` or `COMPRESSED_TYPE`.

    Raises:
        BagError: there are none; the message lists the topics that the bag has.
    """
    kinds = sorted({connection.msgtype for connection in reader.on(topic)})
    has = f"it has: {reader.topics()}"
    if kinds and kinds not in ([IMAGE_TYPE], [COMPRESSED_TYPE]):
        raise BagError(
            f"{reader.path}: {topic} holds {', '.join(kinds)}, not {IMAGE_TYPE} or "
            f"{COMPRESSED_TYPE}; {has}"
        )
    if count_frames(reader, topic) == 0:
        raise BagError(f"{reader.path} has no images on {topic}; {has}")
    return kinds[0]


def count_frames(reader: BagReader, topic: str) -> int:
    """Return how many messages a bag says to hold on a topic."""
    return sum(connection.msgcount for connection in reader.on(topic))


def info_topic_of(topic: str) -> str:
    """Return the topic of the sensor_msgs/CameraInfo beside one of images."""
    return f"{topic.removesuffix(COMPRESSED).rpartition('/')[0]}/camera_info"


def read_frames(
    reader: BagReader, topic: str, truth_topic: str = TRUTH_TOPIC
) -> Iterator[BagFrame]:
    """Yield the frames of a topic in the order of their time in the bag.

    Of a bag that is cut off or damaged come the frames before that, then the error.

    Args:
        reader: the bag.
        topic: of the images.
        truth_topic: of std_msgs/String, what they show; empty: do not look. `TRUTH_TOPIC` may be
            missing or of another type, and then nobody knows.

    Raises:
        BagError: the bag has no images on that topic, those of several cameras, or less than it
            should; or what it says to be the truth is none.
    """
    kind = image_type(reader, topic)
    count = count_frames(reader, topic)
    truths = dict(_read_truths(reader, truth_topic))
    frame_id, read = None, 0
    for received, image, data in reader.messages(topic):
        try:
            header = FrameHeader.of(image)
        except (AttributeError, TypeError, ValueError) as error:
            raise BagError(
                f"{reader.path}: image {read} on {topic} is no {kind}: {error}"
            ) from error
        if frame_id is None:
            frame_id = header.frame_id
        elif header.frame_id != frame_id:
            raise BagError(
                f"{reader.path}: the images on {topic} are of several cameras: image {read} has "
                f"frame_id {header.frame_id!r}, those before {frame_id!r}"
            )
        read += 1
        yield BagFrame(header, image, truths.get(header.nanoseconds), received, data)
    if reader.damage:
        raise BagError(
            f"{reader.path} is cut off or damaged ({reader.damage}); {read} images on {topic} "
            "could be read"
        )
    if read != count:
        raise BagError(f"{reader.path} is cut off: {read} of {count} images on {topic} are there")


def read_calibrations(reader: BagReader, topic: str) -> list[tuple[int, CameraCalibration | None]]:
    """Return what a topic of sensor_msgs/CameraInfo says, in the order of time.

    Returns:
        When each message was received [ns], and what it says; None where it cannot be used.

    Raises:
        BagError: there is no such topic; the message lists those that the bag has.
    """
    if {connection.msgtype for connection in reader.on(topic)} != {INFO_TYPE}:
        raise BagError(f"{reader.path} has no {INFO_TYPE} on {topic}; it has: {reader.topics()}")
    return [(received, _calibration(info)) for received, info, _ in reader.messages(topic)]


def _calibration(info: Any) -> CameraCalibration | None:
    try:
        return CameraCalibration.from_message(info)
    except WorkAreaError:
        return None


def _read_truths(reader: BagReader, topic: str) -> Iterator[tuple[int, Truth]]:
    if not topic:
        return
    if {connection.msgtype for connection in reader.on(topic)} != {TEXT_TYPE}:
        if topic == TRUTH_TOPIC:
            return
        raise BagError(f"{reader.path} has no {TEXT_TYPE} on {topic}; it has: {reader.topics()}")
    for number, (_, message, _) in enumerate(reader.messages(topic)):
        try:
            data = json.loads(message.data)
            state = state_from_dict(data["state"])
            plan = parse_plan(data["plan"], state.family)
            # A text or a list could be multiplied, too, into gigabytes.
            seconds, rest = (operator.index(data["stamp"][key]) for key in ("sec", "nanosec"))
            stamp = seconds * 10**9 + rest
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise BagError(
                f"{reader.path}: message {number} of {topic} holds no true state "
                f"({type(error).__name__}: {error}); --truth-topic names another topic, or none"
            ) from error
        yield stamp, Truth(state, plan)
