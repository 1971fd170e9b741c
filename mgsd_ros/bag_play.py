"""Sends a bag's frames to a running planner node and waits for what it makes of each.

Stands in for the camera and for the robot at once, where there is no ROS installation whose
`ros2 bag play` could. Frames go out one after another, each when the one before is answered.
"""

from __future__ import annotations

import array
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import rclpy
from geometry_msgs.msg import Pose
from nav_msgs.msg import Path
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import String

from mgsd_ros.answers import FrameHeader
from mgsd_ros.bags import BagFrame
from mgsd_ros.messages import header_message

# Longest wait for the node to appear [s].
_DISCOVERY = 20.0

# An unanswered frame is sent again after this time [s].
_PATIENCE = 1.0


class PlayError(OSError):
    """The node that the frames are for is not there."""


@dataclass(frozen=True, slots=True)
class Played:
    """What came back for a frame.

    Attributes:
        answer: the JSON of `~/actions`.
        frame_id: of the path.
        path: places (x, y) [m] and headings [rad] of `~/plan` in `frame_id`.
        seconds: from publishing the frame to having both.
    """

    answer: dict[str, Any]
    frame_id: str
    path: tuple[tuple[float, float, float], ...]
    seconds: float


def play_frames(
    frames: Iterable[BagFrame], image_topic: str, planner: str, rate: float, timeout: float
) -> Iterator[tuple[BagFrame, Played | None]]:
    """Publish frames and yield each with what the node answered, or None after `timeout` seconds.

    Stamps are those of the bag. rclpy must have been initialised.

    Args:
        frames: of one bag.
        image_topic: where the node listens.
        planner: full name of the node, such as /planner.
        rate: most frames a second [Hz].
        timeout: longest wait for an answer [s].

    Raises:
        PlayError: no node listens to `image_topic` and answers on `planner`'s topics.
    """
    node = rclpy.create_node("bag_player")
    try:
        yield from _play(node, frames, image_topic, planner, rate, timeout)
    finally:
        node.destroy_node()


def _play(
    node: Node,
    frames: Iterable[BagFrame],
    image_topic: str,
    planner: str,
    rate: float,
    timeout: float,
) -> Iterator[tuple[BagFrame, Played | None]]:
    latched = QoSProfile(
        depth=1,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
    )
    latest: dict[str, Any] = {}
    node.create_subscription(Path, f"{planner}/plan", lambda m: latest.update(plan=m), latched)
    node.create_subscription(
        String, f"{planner}/actions", lambda m: latest.update(actions=json.loads(m.data)), latched
    )
    images = node.create_publisher(Image, image_topic, QoSProfile(depth=1))
    if not _spin_until(node, _DISCOVERY, lambda: _is_connected(node, images, planner)):
        raise PlayError(
            f"no planner on {image_topic} and {planner}/plan within {_DISCOVERY:g} s; "
            "is the node running, with the same ROS_DOMAIN_ID?"
        )
    for frame in frames:
        began = time.monotonic()
        message, answers = _image_message(frame), partial(_answers, latest, frame.header)
        answered = False
        while not answered and (left := timeout - (time.monotonic() - began)) > 0:
            # A best-effort subscription may lose a frame, as it would miss one of a real camera's.
            images.publish(message)
            answered = _spin_until(node, min(left, _PATIENCE), answers)
        seconds = time.monotonic() - began
        yield frame, _played(latest, seconds) if answered else None
        _spin_until(node, began + 1 / rate - time.monotonic(), lambda: False)


def _is_connected(node: Node, images: Any, planner: str) -> bool:
    return images.get_subscription_count() > 0 and all(
        node.count_publishers(f"{planner}/{topic}") > 0 for topic in ("plan", "actions")
    )


def _spin_until(node: Node, timeout: float, condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + timeout
    while not condition():
        left = end - time.monotonic()
        if left <= 0:
            return False
        rclpy.spin_once(node, timeout_sec=min(left, 0.1))
    return True


def _answers(latest: dict[str, Any], header: FrameHeader) -> bool:
    if len(latest) < 2:
        return False
    stamp = latest["actions"]["stamp"]
    return FrameHeader.of(latest["plan"]).nanoseconds == header.nanoseconds and (
        stamp["sec"],
        stamp["nanosec"],
    ) == (header.sec, header.nanosec)


def _played(latest: dict[str, Any], seconds: float) -> Played:
    plan = latest["plan"]
    path = tuple(_place(stamped.pose) for stamped in plan.poses)
    return Played(latest["actions"], plan.header.frame_id, path, seconds)


def _place(pose: Pose) -> tuple[float, float, float]:
    yaw = 2 * math.atan2(pose.orientation.z, pose.orientation.w)
    return (pose.position.x, pose.position.y, yaw)


def _image_message(frame: BagFrame) -> Image:
    image = frame.image
    return Image(
        header=header_message(frame.header, frame.header.frame_id),
        height=int(image.height),
        width=int(image.width),
        encoding=str(image.encoding),
        is_bigendian=int(image.is_bigendian),
        step=int(image.step),
        data=array.array("B", image.data.tobytes()),
    )
