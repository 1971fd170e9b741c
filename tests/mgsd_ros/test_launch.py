"""The launch files, started by the program `ros2` wherever it is installed."""

from __future__ import annotations

import io
import os
import runpy
import signal
import subprocess
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from installation import (
    FAMILY,
    check_plans,
    colcon_build,
    program,
    users_environment,
    with_setup,
)
from PIL import Image as PictureFile
from ros_processes import ROOT, STARTED, Client, Node

pytest.importorskip("rclpy", reason="rclpy is not installed (extra ros)")
pytest.importorskip(
    "launch_ros", reason="launch and launch_ros are not installed; a ROS 2 installation has them"
)

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from nav_msgs.msg import Path as PathMessage
from sensor_msgs.msg import CompressedImage

NO_ROS2 = "the program ros2 with its command launch is not installed"
NO_COLCON = "colcon is not installed (colcon-core, colcon-ros)"
needs_ros2 = pytest.mark.skipif(program("ros2") is None, reason=NO_ROS2)
needs_both = pytest.mark.skipif(
    program("ros2") is None or program("colcon") is None, reason=f"{NO_ROS2}, or {NO_COLCON}"
)

PLANNER, REPLAY = (str(ROOT / "launch" / f"{name}.launch.py") for name in ("planner", "replay"))

Launch = Callable[..., Node]


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and they in turn."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [found for child in children for found in (int(child), *descendants(int(child)))]


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.fixture(scope="module")
def install(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built with colcon; `ros2` finds it after the set-up."""
    return colcon_build(tmp_path_factory.mktemp("workspace"))


@pytest.fixture
def run_launch(ros_env: dict[str, str], tmp_path: Path) -> Iterator[Launch]:
    """Run `ros2 launch`; ended after the test if the test has not done so."""
    started: list[Node] = []

    def run(*arguments: str, install: Path | None = None, until: str = STARTED) -> Node:
        ros2 = program("ros2")
        assert ros2 is not None
        command = [ros2, "launch", *arguments]
        output = tmp_path / f"launch{len(started)}.log"
        with output.open("wb") as file:
            process = subprocess.Popen(
                command if install is None else with_setup(install, *command),
                env=users_environment(ros_env) | {"PYTHONUNBUFFERED": "1"},
                cwd=tmp_path,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        started.append(Node(process, output))
        started[-1].wait_for_log(until)
        return started[-1]

    yield run
    for node in started:
        if node.process.poll() is None:
            node.end(signal.SIGINT)


@needs_both
def test_ros2_launch_brings_up_a_node_that_plans_and_ends_it(
    run_launch: Launch, install: Path, client: Client
) -> None:
    node = run_launch(
        *("mgsd_ros", "planner.launch.py", f"family:={FAMILY}", "image:=/lens/image_raw"),
        *("loopback:=true", "autostart:=true", "use_sim_time:=False"),
        install=install,
    )
    check_plans(client, client.camera("/lens/image_raw"))
    assert client.state() == "active"
    processes = descendants(node.process.pid)
    assert processes
    assert node.end(signal.SIGINT) == 0
    assert f"loaded {install}" in node.log()
    assert "planned on 3 of 3 frames" in node.log()
    assert "process has finished cleanly" in node.log() and "Traceback" not in node.log()
    assert not [pid for pid in processes if is_alive(pid)]


@needs_both
def test_a_namespace_and_a_parameter_file_whose_values_the_arguments_replace(
    run_launch: Launch, install: Path, client: Client, tmp_path: Path
) -> None:
    parameters = tmp_path / "robot1.yaml"
    parameters.write_text(
        "/**/planner:\n"
        "  ros__parameters:\n"
        "    family: frozenlake\n"
        "    autostart: false\n"
        "    grid: {frame_id: field, cell_size: 0.5}\n"
    )
    node = run_launch(
        *("mgsd_ros", "planner.launch.py", "namespace:=robot1", f"params_file:={parameters}"),
        *("log_level:=warn", f"family:={FAMILY}"),
        install=install,
        until="process started",
    )
    # The file says that a manager is to start it, and no argument says otherwise.
    change = client.node.create_client(ChangeState, "/robot1/planner/change_state")
    client.spin_until(change.service_is_ready)
    for label in ("configure", "activate"):
        future = change.call_async(ChangeState.Request(transition=Transition(label=label)))
        client.spin_until(future.done)
        assert future.result().success, node.log()
    paths = client.listen(PathMessage, "/robot1/planner/plan")
    [answer] = check_plans(client, client.camera("/robot1/image_raw"), "/robot1/planner", count=1)
    client.spin_until(lambda: paths)
    assert paths[0].header.frame_id == "field"
    assert len(paths[0].poses) == len(answer["path"]) > 1
    assert node.end(signal.SIGINT) == 0
    assert "[INFO] [" not in node.log().partition("process started")[2].partition("SIGINT")[0]


@needs_ros2
def test_a_checkout_is_launched_by_the_path_of_its_file(run_launch: Launch, client: Client) -> None:
    node = run_launch(
        PLANNER,
        *(f"family:={FAMILY}", "image:=/lens/image_raw", "image_transport:=compressed"),
    )
    publisher = client.node.create_publisher(CompressedImage, "/lens/image_raw/compressed", 1)
    client.spin_until(publisher.get_subscription_count)
    client.spin_for(0.5)

    def publish(rgb: Any) -> None:
        data = io.BytesIO()
        PictureFile.fromarray(rgb).save(data, "PNG")
        publisher.publish(CompressedImage(format="png", data=array("B", data.getvalue())))

    check_plans(client, publish, count=1)
    assert node.end(signal.SIGINT) == 0


@needs_ros2
def test_a_node_that_has_ended_is_started_again_where_that_is_asked_for(
    run_launch: Launch, client: Client
) -> None:
    node = run_launch(PLANNER, f"family:={FAMILY}", "use_respawn:=true")
    [first] = descendants(node.process.pid)
    os.kill(first, signal.SIGTERM)
    deadline = time.monotonic() + 30
    while node.log().count(STARTED) < 2:
        assert time.monotonic() < deadline, node.log()
        time.sleep(0.05)
    [second] = descendants(node.process.pid)
    assert second != first
    check_plans(client, client.camera(), count=1)
    assert node.end(signal.SIGINT) == 0
    assert not is_alive(second)


@needs_ros2
@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("bag:=/not/here", "bag:=/not/here: no such bag"),
        ("params_file:=/not/here.yaml", "params_file:=/not/here.yaml: no such file"),
        (
            "image:=/lens/image_raw/compressed",
            "say image:=/lens/image_raw image_transport:=compressed instead",
        ),
        ("image_transport:=theora", "theora"),
    ],
)
def test_a_wrong_argument_is_named(run_launch: Launch, argument: str, says: str) -> None:
    node = run_launch(REPLAY if argument.startswith("bag") else PLANNER, argument, until="")
    assert node.process.wait(20) == 1
    errors = [line for line in node.log().splitlines() if "ERROR" in line]
    assert errors and all(says in line for line in errors)
    assert "Traceback" not in node.log()


def replayed(**arguments: str) -> tuple[list[str], dict[str, Any]]:
    """Return the command that plays the bag, and the other actions by the names of their kinds."""
    from launch.utilities import perform_substitutions

    from launch import LaunchContext

    functions = runpy.run_path(REPLAY)
    context = LaunchContext()
    for argument in functions["generate_launch_description"]().get_launch_arguments():
        default = argument.default_value
        if default is not None:
            text = perform_substitutions(context, default)
            context.launch_configurations[argument.name] = text
    context.launch_configurations.update(arguments)
    actions = {type(action).__name__: action for action in functions["_replay"](context)}
    command = actions["ExecuteProcess"].cmd
    return [perform_substitutions(context, word) for word in command], actions


def test_a_replay_plays_the_cameras_topics_and_nothing_else(tmp_path: Path) -> None:
    topics = ["/camera/image_raw", "/camera/image_raw/compressed", "/camera/camera_info"]
    bag = str(tmp_path)
    command, actions = replayed(bag=bag, rviz="false")
    assert command == [
        *("ros2", "bag", "play", bag, "--rate", "1.0", "--delay", "5.0", "--clock", "100"),
        *("--disable-keyboard-controls", "--topics", *topics, "/tf", "/tf_static"),
    ]
    assert list(actions) == ["IncludeLaunchDescription", "ExecuteProcess", "Node"]
    command, _ = replayed(
        bag=bag, image="/eye", loop="true", use_sim_time="false", rviz="false", rate="0.5"
    )
    assert "--loop" in command and "--clock" not in command
    assert command[command.index("--rate") + 1] == "0.5"
    assert command[-5:] == ["/eye", "/eye/compressed", "/camera_info", "/tf", "/tf_static"]


@needs_ros2
def test_the_arguments_of_a_replay_are_told(run_launch: Launch) -> None:
    node = run_launch(REPLAY, "--show-args", until="")
    assert node.process.wait(20) == 0
    for name in ("bag", "image", "family", "bundle", "rate", "loop", "rviz", "use_sim_time"):
        assert f"'{name}':" in node.log()
    missing = run_launch(REPLAY, until="")
    assert missing.process.wait(20) == 1
    assert "missing required argument 'bag'" in missing.log()


@needs_both
def test_without_rviz_nothing_is_started_that_was_to_be_seen_in_it(
    run_launch: Launch, install: Path, tmp_path: Path
) -> None:
    if program("rviz2"):
        pytest.skip("RViz is installed")
    arguments = ("mgsd_ros", "replay.launch.py", f"bag:={tmp_path}")
    node = run_launch(*arguments, install=install, until="")
    assert node.process.wait(20) == 1
    assert "rviz2" in node.log() and "process started" not in node.log()
