from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import pytest
from ros_processes import (
    PROFILE,
    STARTED,
    Client,
    Node,
    StartNode,
    node_command,
    ros_environment,
)

# Read when message types are first imported: a number of the wrong type is then an error.
os.environ["ROS_PYTHON_CHECK_FIELDS"] = "1"
# Read when the first participant of this process is made: nothing leaves the machine.
os.environ["FASTDDS_DEFAULT_PROFILES_FILE"] = str(PROFILE)


@pytest.fixture
def ros_env(tmp_path: Path) -> dict[str, str]:
    """The environment of a test's ROS processes."""
    pytest.importorskip("rclpy", reason="rclpy is not installed (extra ros)")
    return ros_environment(tmp_path / "log")


@pytest.fixture
def start_node(ros_env: dict[str, str], tmp_path: Path, bundle_dir: Path) -> Iterator[StartNode]:
    """Start a planner node with parameters; it listens when the call returns."""
    nodes: list[Node] = []

    def start(
        *arguments: str,
        module: str = "mgsd_ros.run_node",
        bundle: Path | None = bundle_dir,
        until: str = STARTED,
        **env: str,
    ) -> Node:
        if bundle is not None:
            arguments = (*arguments, "-p", f"bundle:={bundle}")
        # Tests look at single frames, on machines that may be slow.
        arguments = ("-p", "frame_timeout:=60.0", *arguments)
        output = tmp_path / f"node{len(nodes)}.log"
        with output.open("wb") as file:
            process = subprocess.Popen(
                node_command(*arguments, module=module),
                env=ros_env | env,
                cwd=Path(__file__).parent,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        nodes.append(Node(process, output))
        nodes[-1].wait_for_log(until)
        return nodes[-1]

    yield start
    for node in nodes:
        if node.process.poll() is None:
            # Not killed: that would leave its shared memory behind.
            node.end()


@pytest.fixture
def client(ros_env: dict[str, str]) -> Iterator[Client]:
    """Another participant of the test's domain."""
    client = Client(int(ros_env["ROS_DOMAIN_ID"]))
    yield client
    client.close()


@pytest.fixture(scope="session")
def lake_bag(lake_episodes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bag of 30 frames, all of which the student of `bundle_dir` knows."""
    from mgsd_ros.bag_record import write_episodes

    path = tmp_path_factory.mktemp("bags") / "lakes"
    frames = islice(cycle(lake_episodes), 30)
    assert len(list(write_episodes(path, frames, 10.0, "mcap", False))) == 30
    return path


@pytest.fixture(scope="session")
def odd_bag(lake_episodes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """From the camera a good frame, five that cannot be used and a good one; on /noise noise."""
    from odd_images import write_odd_bag

    path = tmp_path_factory.mktemp("bags") / "odd"
    write_odd_bag(path, lake_episodes[0].image)
    return path
