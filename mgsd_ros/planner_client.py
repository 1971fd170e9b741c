"""The other end of a running planner node: sends it images, waits for what it makes of each.

Stands in for the camera and for the robot at once. rclpy must have been initialised.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import rclpy
from geometry_msgs.msg import Pose
from nav_msgs.msg import Path
from rclpy.parameter import parameter_value_to_python
from rclpy.parameter_client import AsyncParameterClient
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from mgsd_ros.answers import FrameHeader

# Longest wait for the node to appear, and for its parameters [s].
_DISCOVERY = 20.0

# An unanswered frame is sent again after this time [s].
_PATIENCE = 1.0


class NodeError(OSError):
    """The node is not there, does not answer, or is not the one that was expected."""


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


class PlannerClient(AbstractContextManager["PlannerClient"]):
    """A node that publishes images to a planner node and hears its plans; use it with `with`.

    Args:
        name: of this node.
        image_topic: where the planner listens.
        planner: full name of the planner, such as /planner.
        kind: of the images: Image or CompressedImage.

    Raises:
        NodeError: no node listens to `image_topic` and answers on `planner`'s topics.
    """

    def __init__(self, name: str, image_topic: str, planner: str, kind: type = Image) -> None:
        self._planner = planner
        self._latest: dict[str, Any] = {}
        self._node = rclpy.create_node(name)
        latched = QoSProfile(
            depth=1,
            reliability=ReliabilityPolicy.RELIABLE,
            durability=DurabilityPolicy.TRANSIENT_LOCAL,
        )
        self._node.create_subscription(Path, f"{planner}/plan", self._on_plan, latched)
        self._node.create_subscription(String, f"{planner}/actions", self._on_actions, latched)
        # Reliable: a node with `reliability:=reliable` hears it, too.
        self._images = self._node.create_publisher(kind, image_topic, QoSProfile(depth=1))
        if not self._spin_until(_DISCOVERY, self._is_connected):
            self._node.destroy_node()
            raise NodeError(
                f"no planner on {image_topic} and {planner}/plan within {_DISCOVERY:g} s; "
                "is the node running, with the same ROS_DOMAIN_ID?"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._node.destroy_node()

    def ask(self, image: Image | CompressedImage, timeout: float) -> Played | None:
        """Publish an image and return what the node makes of it, None after `timeout` seconds."""
        began = time.monotonic()
        self._latest.clear()  # the answer to an earlier image of the same stamp is not this one's
        answered = partial(self._has_answered, FrameHeader.of(image))
        while (left := timeout - (time.monotonic() - began)) > 0:
            # A best-effort subscription may lose a frame, as it would miss one of a real camera's.
            self._images.publish(image)
            if self._spin_until(min(left, _PATIENCE), answered):
                return self._played(time.monotonic() - began)
        return None

    def now(self, frame_id: str) -> FrameHeader:
        """Return the header of an image that is taken now, by this node's clock."""
        seconds, nanoseconds = self._node.get_clock().now().seconds_nanoseconds()
        return FrameHeader(seconds, nanoseconds, frame_id)

    def wait_until(self, end: float) -> None:
        """Let messages come until the time `end` (of `time.monotonic`) [s]."""
        self._spin_until(end - time.monotonic(), lambda: False)

    def parameters(self, names: Sequence[str]) -> list[Any]:
        """Return the values of the planner's parameters.

        Raises:
            NodeError: it does not tell them.
        """
        client = AsyncParameterClient(self._node, self._planner)
        if self._spin_until(_DISCOVERY, client.services_are_ready):
            future = client.get_parameters(list(names))
            if self._spin_until(_DISCOVERY, future.done):
                return [parameter_value_to_python(value) for value in future.result().values]
        raise NodeError(f"{self._planner} does not tell its parameters within {_DISCOVERY:g} s")

    def _on_plan(self, message: Path) -> None:
        self._latest["plan"] = message

    def _on_actions(self, message: String) -> None:
        self._latest["actions"] = json.loads(message.data)

    def _is_connected(self) -> bool:
        return self._images.get_subscription_count() > 0 and all(
            self._node.count_publishers(f"{self._planner}/{topic}") > 0
            for topic in ("plan", "actions")
        )

    def _spin_until(self, timeout: float, condition: Callable[[], bool]) -> bool:
        end = time.monotonic() + timeout
        while not condition():
            left = end - time.monotonic()
            if left <= 0:
                return False
            rclpy.spin_once(self._node, timeout_sec=min(left, 0.1))
        return True

    def _has_answered(self, header: FrameHeader) -> bool:
        if len(self._latest) < 2:
            return False
        stamp = self._latest["actions"]["stamp"]
        return FrameHeader.of(self._latest["plan"]).nanoseconds == header.nanoseconds and (
            stamp["sec"],
            stamp["nanosec"],
        ) == (header.sec, header.nanosec)

    def _played(self, seconds: float) -> Played:
        plan = self._latest["plan"]
        path = tuple(_place(stamped.pose) for stamped in plan.poses)
        return Played(self._latest["actions"], plan.header.frame_id, path, seconds)


def _place(pose: Pose) -> tuple[float, float, float]:
    yaw = 2 * math.atan2(pose.orientation.z, pose.orientation.w)
    return (pose.position.x, pose.position.y, yaw)
