"""Plans -> ROS messages. The only place where numbers become message fields.

By default rclpy does not check the type of what is assigned to a field, and a NumPy number or an
int in a float64 field arrives as another number altogether. So every value goes through `float`,
`int` or `str` here, and nowhere else are messages filled in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion
from nav_msgs.msg import Path
from std_msgs.msg import Header, String

from mgsd_ros.answers import FrameHeader
from mgsd_ros.grid_frame import PlanarPose


def header_message(image: FrameHeader, frame_id: str) -> Header:
    """Return a header with the time of the image."""
    return Header(
        stamp=Time(sec=int(image.sec), nanosec=int(image.nanosec)), frame_id=str(frame_id)
    )


def path_message(poses: Sequence[PlanarPose], image: FrameHeader, frame_id: str) -> Path:
    """Return a path on the floor of `frame_id`, stamped with the time of the image.

    Args:
        poses: [m] and [rad] in `frame_id`; none is the empty path.
        image: header of the image that the plan was made from.
        frame_id: frame of the poses.
    """
    header = header_message(image, frame_id)
    # Every pose shares the one header: messages are copied when they are published.
    stamped = [
        PoseStamped(
            header=header,
            pose=Pose(
                position=Point(x=float(pose.x), y=float(pose.y), z=0.0),
                orientation=Quaternion(
                    x=0.0, y=0.0, z=math.sin(pose.yaw / 2), w=math.cos(pose.yaw / 2)
                ),
            ),
        )
        for pose in poses
    ]
    return Path(header=header, poses=stamped)


def text_message(text: str) -> String:
    """Return a std_msgs/String."""
    return String(data=str(text))
