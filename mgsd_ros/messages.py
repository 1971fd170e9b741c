"""Plans -> ROS messages. The only place where numbers become message fields.

By default rclpy does not check the type of what is assigned to a field, and a NumPy number or an
int in a float64 field arrives as another number altogether. So every value goes through `float`,
`int` or `str` here, and nowhere else are messages filled in.
"""

from __future__ import annotations

import array
from collections.abc import Mapping, Sequence

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion, Vector3
from nav_msgs.msg import Path
from numpy.typing import NDArray
from sensor_msgs.msg import Image
from std_msgs.msg import ColorRGBA, Header, String
from visualization_msgs.msg import Marker, MarkerArray

from mgsd_ros import plan_shapes
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
                orientation=_quaternion(pose.yaw),
            ),
        )
        for pose in poses
    ]
    return Path(header=header, poses=stamped)


def _quaternion(yaw: float) -> Quaternion:
    x, y, z, w = plan_shapes.heading(float(yaw))
    return Quaternion(x=x, y=y, z=z, w=w)


def text_message(text: str) -> String:
    """Return a std_msgs/String."""
    return String(data=str(text))


def image_message(rgb: NDArray[np.uint8], image: FrameHeader) -> Image:
    """Return a sensor_msgs/Image, rgb8, of a picture uint8 [H, W, 3]."""
    height, width = rgb.shape[:2]
    return Image(
        header=header_message(image, image.frame_id),
        height=int(height),
        width=int(width),
        encoding="rgb8",
        is_bigendian=0,
        step=int(3 * width),
        data=array.array("B", np.ascontiguousarray(rgb).tobytes()),
    )


def markers_message(
    poses: Sequence[PlanarPose], cell_size: float, image: FrameHeader, frame_id: str
) -> MarkerArray:
    """Return the route as a line with a sphere where it ends; whatever was shown before goes.

    Args:
        poses: [m] and [rad] in `frame_id`; none leaves nothing to be seen.
        cell_size: side of a cell [m], which line and sphere are measured by.
        image: header of the image that the plan was made from.
        frame_id: frame of the poses.
    """
    header = header_message(image, frame_id)
    markers = [Marker(header=header, ns="plan", id=0, action=Marker.DELETEALL)]
    if poses:
        points = [Point(x=float(pose.x), y=float(pose.y), z=0.0) for pose in poses]
        width, ball = plan_shapes.LINE * float(cell_size), plan_shapes.SPHERE * float(cell_size)
        red, green, blue, opacity = plan_shapes.COLOUR
        colour = ColorRGBA(r=red, g=green, b=blue, a=opacity)
        upright = Pose(orientation=_quaternion(0.0))
        markers.append(
            Marker(
                header=header,
                ns="plan",
                id=1,
                type=Marker.LINE_STRIP,
                action=Marker.ADD,
                pose=upright,
                scale=Vector3(x=width, y=0.0, z=0.0),
                color=colour,
                points=points,
            )
        )
        markers.append(
            Marker(
                header=header,
                ns="plan",
                id=2,
                type=Marker.SPHERE,
                action=Marker.ADD,
                pose=Pose(position=points[-1], orientation=upright.orientation),
                scale=Vector3(x=ball, y=ball, z=ball),
                color=colour,
            )
        )
    return MarkerArray(markers=markers)


def diagnostics_message(
    name: str,
    hardware_id: str,
    level: int,
    text: str,
    values: Mapping[str, str],
    stamp: tuple[int, int],
) -> DiagnosticArray:
    """Return one status.

    Args:
        name: of what it is about.
        hardware_id: of what it runs on.
        level: 0 OK, 1 warning, 2 error, 3 stale.
        text: the level in words.
        values: details by name.
        stamp: seconds and nanoseconds.
    """
    status = DiagnosticStatus(
        level=bytes([int(level)]),
        name=str(name),
        message=str(text),
        hardware_id=str(hardware_id),
        values=[KeyValue(key=str(key), value=str(value)) for key, value in values.items()],
    )
    header = Header(stamp=Time(sec=int(stamp[0]), nanosec=int(stamp[1])), frame_id="")
    return DiagnosticArray(header=header, status=[status])
