from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rclpy", reason="rclpy is not installed (extra ros)")

from nav_msgs.msg import Path as PathMessage
from rclpy.serialization import deserialize_message, serialize_message
from std_msgs.msg import String

from mgsd_ros.answers import FrameHeader, to_json
from mgsd_ros.grid_frame import PlanarPose
from mgsd_ros.messages import path_message, text_message

METRES = st.floats(-1e6, 1e6)
POSES = st.builds(PlanarPose, METRES, METRES, st.floats(-math.pi, math.pi))
HEADERS = st.builds(
    FrameHeader, st.integers(0, 2**31 - 1), st.integers(0, 10**9 - 1), st.sampled_from(["", "eye"])
)


@given(poses=st.lists(POSES, max_size=5), header=HEADERS)
def test_a_path_arrives_exactly(poses: list[PlanarPose], header: FrameHeader) -> None:
    sent = path_message(poses, header, "map")
    got = deserialize_message(serialize_message(sent), PathMessage)

    assert len(got.poses) == len(poses)
    for own in (got.header, *(stamped.header for stamped in got.poses)):
        assert (own.stamp.sec, own.stamp.nanosec, own.frame_id) == (
            header.sec,
            header.nanosec,
            "map",
        )
    for stamped, pose in zip(got.poses, poses, strict=True):
        place, turn = stamped.pose.position, stamped.pose.orientation
        assert (place.x, place.y, place.z) == (pose.x, pose.y, 0.0)
        assert math.hypot(turn.x, turn.y, turn.z, turn.w) == pytest.approx(1)
        heading = 2 * math.atan2(turn.z, turn.w)
        assert abs(math.remainder(heading - pose.yaw, math.tau)) < 1e-9


def test_numpy_numbers_and_integers_become_what_the_fields_hold() -> None:
    pose = PlanarPose(np.float32(1.5), 2, np.float64(0.0))  # type: ignore[arg-type]
    header = FrameHeader(np.int64(7), np.uint32(8), np.str_("eye"))  # type: ignore[arg-type]
    sent = path_message([pose], header, np.str_("map"))
    [got] = deserialize_message(serialize_message(sent), PathMessage).poses
    assert (got.pose.position.x, got.pose.position.y) == (1.5, 2.0)
    assert (got.header.stamp.sec, got.header.stamp.nanosec) == (7, 8)


@given(text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_text_arrives_exactly(text: str) -> None:
    sent = text_message(to_json({"text": text}))
    got = deserialize_message(serialize_message(sent), String)
    assert json.loads(got.data) == {"text": text}
