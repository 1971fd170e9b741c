"""Plans, images and calibrations -> messages of a bag, as `mgsd_ros.messages` makes them for rclpy.

rosbags wants every field of a message given, and numbers in arrays as NumPy's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rosbags.typesys import get_typestore

from mgsd_ros import plan_shapes
from mgsd_ros.answers import FrameHeader
from mgsd_ros.bag_reader import TYPESTORE
from mgsd_ros.grid_frame import PlanarPose

if TYPE_CHECKING:
    from sim.camera import Camera

STORE = get_typestore(TYPESTORE)

_TIME, _DURATION = "builtin_interfaces/msg/Time", "builtin_interfaces/msg/Duration"


def make(kind: str, *values: Any, **fields: Any) -> Any:
    """Return a message of a type, such as "geometry_msgs/msg/Point", with all its fields."""
    return STORE.types[kind](*values, **fields)


def header_message(image: FrameHeader, frame_id: str) -> Any:
    """Return a std_msgs/Header with the time of the image."""
    return make("std_msgs/msg/Header", make(_TIME, image.sec, image.nanosec), frame_id)


def text_message(text: str) -> Any:
    """Return a std_msgs/String."""
    return make("std_msgs/msg/String", text)


def image_message(rgb: NDArray[np.uint8], image: FrameHeader) -> Any:
    """Return a sensor_msgs/Image, rgb8, of a picture uint8 [H, W, 3]."""
    height, width, _ = rgb.shape
    return make(
        "sensor_msgs/msg/Image",
        header=header_message(image, image.frame_id),
        height=height,
        width=width,
        encoding="rgb8",
        is_bigendian=0,
        step=3 * width,
        data=np.ascontiguousarray(rgb).reshape(-1),
    )


def compressed_message(data: bytes, form: str, image: FrameHeader) -> Any:
    """Return a sensor_msgs/CompressedImage of a file's bytes; `form` is its `format`."""
    return make(
        "sensor_msgs/msg/CompressedImage",
        header_message(image, image.frame_id),
        form,
        np.frombuffer(data, np.uint8),
    )


def info_message(camera: Camera, image: FrameHeader) -> Any:
    """Return a sensor_msgs/CameraInfo; only a pinhole camera's says what it sees."""
    projection = np.array(
        [[camera.fx, 0, camera.cx, 0], [0, camera.fy, camera.cy, 0], [0, 0, 1, 0]], np.float64
    )
    rectification = np.eye(3)
    if camera.projection != "pinhole":
        # No CameraInfo can say what such a camera sees; zeros stand for an uncalibrated one.
        projection, rectification = np.zeros((3, 4)), np.zeros((3, 3))
    return make(
        "sensor_msgs/msg/CameraInfo",
        header=header_message(image, image.frame_id),
        height=camera.height,
        width=camera.width,
        distortion_model="plumb_bob",
        d=np.zeros(5),
        k=projection[:, :3].reshape(-1).copy(),
        r=rectification.reshape(-1),
        p=projection.reshape(-1),
        binning_x=0,
        binning_y=0,
        roi=make("sensor_msgs/msg/RegionOfInterest", 0, 0, 0, 0, False),
    )


def path_message(poses: Sequence[PlanarPose], image: FrameHeader, frame_id: str) -> Any:
    """Return a nav_msgs/Path on the floor of `frame_id`, stamped with the time of the image.

    Args:
        poses: [m] and [rad] in `frame_id`; none is the empty path.
        image: header of the image that the plan was made from.
        frame_id: frame of the poses.
    """
    header = header_message(image, frame_id)
    stamped = [make("geometry_msgs/msg/PoseStamped", header, _pose(pose)) for pose in poses]
    return make("nav_msgs/msg/Path", header, stamped)


def markers_message(
    poses: Sequence[PlanarPose], cell_size: float, image: FrameHeader, frame_id: str
) -> Any:
    """Return a visualization_msgs/MarkerArray: the route as a line with a sphere where it ends.

    Args:
        poses: [m] and [rad] in `frame_id`; none leaves nothing to be seen.
        cell_size: side of a cell [m].
        image: header of the image that the plan was made from.
        frame_id: frame of the poses.
    """
    kind = STORE.types["visualization_msgs/msg/Marker"]
    nothing = _empty_marker(header_message(image, frame_id))
    markers = [replace(nothing, action=kind.DELETEALL)]
    if poses:
        shown = replace(nothing, action=kind.ADD, color=_colour())
        width, ball = plan_shapes.LINE * cell_size, plan_shapes.SPHERE * cell_size
        line = make("geometry_msgs/msg/Vector3", width, 0.0, 0.0)
        points = [_pose(pose).position for pose in poses]
        markers.append(replace(shown, id=1, type=kind.LINE_STRIP, scale=line, points=points))
        sphere = make("geometry_msgs/msg/Vector3", ball, ball, ball)
        end = make("geometry_msgs/msg/Pose", points[-1], nothing.pose.orientation)
        markers.append(replace(shown, id=2, type=kind.SPHERE, scale=sphere, pose=end))
    return make("visualization_msgs/msg/MarkerArray", markers)


def _pose(pose: PlanarPose) -> Any:
    orientation = make("geometry_msgs/msg/Quaternion", *plan_shapes.heading(pose.yaw))
    return make(
        "geometry_msgs/msg/Pose", make("geometry_msgs/msg/Point", pose.x, pose.y, 0.0), orientation
    )


def _colour() -> Any:
    return make("std_msgs/msg/ColorRGBA", *plan_shapes.COLOUR)


def _empty_marker(header: Any) -> Any:
    nowhere = FrameHeader(0, 0, "")
    return make(
        "visualization_msgs/msg/Marker",
        header=header,
        ns="plan",
        id=0,
        type=0,
        action=0,
        pose=_pose(PlanarPose(0.0, 0.0, 0.0)),
        scale=make("geometry_msgs/msg/Vector3", 0.0, 0.0, 0.0),
        color=make("std_msgs/msg/ColorRGBA", 0.0, 0.0, 0.0, 0.0),
        lifetime=make(_DURATION, 0, 0),
        frame_locked=False,
        points=[],
        colors=[],
        texture_resource="",
        texture=compressed_message(b"", "", nowhere),
        uv_coordinates=[],
        text="",
        mesh_resource="",
        mesh_file=make("visualization_msgs/msg/MeshFile", "", np.zeros(0, np.uint8)),
        mesh_use_embedded_materials=False,
    )
