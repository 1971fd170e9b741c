"""What the planner publishes, through another process and back over DDS: not a bit is lost."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from ros_processes import Client

pytest.importorskip("rclpy", reason="rclpy is not installed (extra ros)")

from echo import TYPES
from rclpy.serialization import deserialize_message, serialize_message

from mgsd_ros.answers import FrameHeader, to_json
from mgsd_ros.grid_frame import PlanarPose
from mgsd_ros.messages import (
    diagnostics_message,
    image_message,
    markers_message,
    path_message,
    text_message,
)

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
SECONDS, NANOSECONDS = st.integers(-(2**31), 2**31 - 1), st.integers(0, 2**32 - 1)
HEADERS = st.builds(FrameHeader, SECONDS, NANOSECONDS, TEXTS)
POSES = st.lists(
    st.builds(PlanarPose, st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(-4, 4)), max_size=6
)

Echo = Callable[[str, Any], Any]


@pytest.fixture
def echo(client: Client, ros_env: dict[str, str]) -> Iterator[Echo]:
    """Sends a message to the other process and returns what comes back."""
    process = subprocess.Popen([sys.executable, Path(__file__).with_name("echo.py")], env=ros_env)
    heard = {name: client.listen(kind, f"/{name}/echo") for name, kind in TYPES.items()}
    senders = {
        name: client.node.create_publisher(kind, f"/{name}", 10) for name, kind in TYPES.items()
    }
    # The other process begins to listen when it has found its listeners.
    for sender in senders.values():
        client.spin_until(sender.get_subscription_count)
    client.spin_for(1.0)

    def send(name: str, message: Any) -> Any:
        heard[name].clear()
        senders[name].publish(message)
        [got] = client.spin_until(lambda: heard[name])
        # Of a colour, which is float32, only that much can come back.
        assert got == deserialize_message(serialize_message(message), TYPES[name])
        return got

    yield send
    process.terminate()
    process.wait(20)


through_dds = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def bits(*values: float) -> bytes:
    return struct.pack(f"{len(values)}d", *values)


def check_header(got: Any, header: FrameHeader, frame_id: str) -> None:
    assert (got.stamp.sec, got.stamp.nanosec) == (header.sec, header.nanosec)
    assert got.frame_id == frame_id


def test_all_that_the_planner_publishes_arrives_exactly(echo: Echo) -> None:
    """In one test, because it takes a second to start the other process."""

    @through_dds
    @given(poses=POSES, header=HEADERS, frame_id=TEXTS)
    def a_path(poses: list[PlanarPose], header: FrameHeader, frame_id: str) -> None:
        got = echo("plan", path_message(poses, header, frame_id))
        check_header(got.header, header, frame_id)
        for stamped, pose in zip(got.poses, poses, strict=True):
            check_header(stamped.header, header, frame_id)
            place, turn = stamped.pose.position, stamped.pose.orientation
            assert bits(place.x, place.y, place.z) == bits(pose.x, pose.y, 0.0)
            half = pose.yaw / 2
            expected = bits(0.0, 0.0, math.sin(half), math.cos(half))
            assert bits(turn.x, turn.y, turn.z, turn.w) == expected

    @through_dds
    @given(text=TEXTS, number=st.floats(allow_nan=False, allow_infinity=False))
    def an_answer(text: str, number: float) -> None:
        got = json.loads(echo("actions", text_message(to_json({text: number}))).data)
        assert list(got) == [text] and bits(got[text]) == bits(number)

    @through_dds
    @given(
        rgb=arrays(np.uint8, st.tuples(st.integers(0, 9), st.integers(0, 9), st.just(3))),
        header=HEADERS,
    )
    def an_overlay(rgb: np.ndarray, header: FrameHeader) -> None:
        got = echo("overlay", image_message(rgb, header))
        check_header(got.header, header, header.frame_id)
        assert (got.height, got.width, 3) == rgb.shape
        assert (got.step, got.encoding, got.is_bigendian) == (3 * rgb.shape[1], "rgb8", 0)
        assert got.data.tobytes() == rgb.tobytes()

    @through_dds
    @given(poses=POSES, size=st.floats(1e-3, 1e3), header=HEADERS, frame_id=TEXTS)
    def markers(poses: list[PlanarPose], size: float, header: FrameHeader, frame_id: str) -> None:
        got = echo("markers", markers_message(poses, size, header, frame_id)).markers
        for marker in got:
            check_header(marker.header, header, frame_id)
        assert len(got) == (3 if poses else 1)
        if poses:
            _, line, ball = got
            for point, pose in zip(line.points, poses, strict=True):
                assert bits(point.x, point.y, point.z) == bits(pose.x, pose.y, 0.0)
            end = ball.pose.position
            assert bits(end.x, end.y) == bits(poses[-1].x, poses[-1].y)
            assert bits(line.scale.x, ball.scale.z) == bits(0.08 * size, 0.35 * size)

    @through_dds
    @given(
        names=st.tuples(TEXTS, TEXTS, TEXTS),
        level=st.integers(0, 3),
        values=st.dictionaries(TEXTS, TEXTS, max_size=5),
        stamp=st.tuples(SECONDS, NANOSECONDS),
    )
    def diagnostics(
        names: tuple[str, str, str], level: int, values: dict[str, str], stamp: tuple[int, int]
    ) -> None:
        name, hardware, text = names
        got = echo("diagnostics", diagnostics_message(name, hardware, level, text, values, stamp))
        [status] = got.status
        assert (got.header.stamp.sec, got.header.stamp.nanosec) == stamp
        assert (status.name, status.hardware_id, status.message) == (name, hardware, text)
        assert status.level == bytes([level])
        assert {pair.key: pair.value for pair in status.values} == values

    for check in (a_path, an_answer, an_overlay, markers, diagnostics):
        check()
