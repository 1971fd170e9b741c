"""Sends a bag's frames to a running planner node and waits for what it makes of each.

Stands in for the camera and for the robot at once, where there is no ROS installation whose
`ros2 bag play` could. Frames go out one after another, each when the one before is answered.
"""

from __future__ import annotations

import array
import time
from collections.abc import Iterable, Iterator

from sensor_msgs.msg import CompressedImage, Image

from mgsd_ros.bags import COMPRESSED, BagFrame
from mgsd_ros.messages import header_message
from mgsd_ros.planner_client import PlannerClient, Played


def play_frames(
    frames: Iterable[BagFrame],
    compressed: bool,
    image_topic: str,
    planner: str,
    rate: float,
    timeout: float,
) -> Iterator[tuple[BagFrame, Played | None]]:
    """Publish frames and yield each with what the node answered, or None after `timeout` seconds.

    Stamps are those of the bag. rclpy must have been initialised.

    Args:
        frames: of one bag.
        compressed: they are sensor_msgs/CompressedImage, else sensor_msgs/Image.
        image_topic: of the images; compressed ones go to `image_topic`/compressed.
        planner: full name of the node, such as /planner.
        rate: most frames a second [Hz].
        timeout: longest wait for an answer [s].

    Raises:
        NodeError: no node listens to that topic and answers on `planner`'s topics.
    """
    topic, kind, message = image_topic, Image, _image_message
    if compressed:
        topic, kind, message = image_topic + COMPRESSED, CompressedImage, _compressed_message
    with PlannerClient("bag_player", topic, planner, kind) as client:
        for frame in frames:
            began = time.monotonic()
            yield frame, client.ask(message(frame), timeout)
            client.wait_until(began + 1 / rate)


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


def _compressed_message(frame: BagFrame) -> CompressedImage:
    return CompressedImage(
        header=header_message(frame.header, frame.header.frame_id),
        format=str(frame.image.format),
        data=array.array("B", frame.image.data.tobytes()),
    )
