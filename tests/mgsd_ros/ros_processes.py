"""ROS processes of the tests: on this machine only, in a domain that nobody else is in."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PROFILE = ROOT / "config" / "fastdds_loopback.xml"
STARTED = "planning on the images"


def free_domain() -> int:
    """Return a ROS domain that has no participant on this machine."""
    # 1 to 101 keep clear of the ports that Linux gives to clients.
    for offset in range(101):
        domain = 1 + (os.getpid() + offset) % 101
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                # Where the domain's first participant is discovered (RTPS 2.2, 9.6.1.1).
                probe.bind(("127.0.0.1", 7400 + 250 * domain + 10))
            except OSError:
                continue
        return domain
    raise RuntimeError("every ROS domain is taken")


def ros_environment(log: Path) -> dict[str, str]:
    """Return the environment for a test's ROS processes; they log to the directory `log`."""
    return os.environ | {
        "FASTDDS_DEFAULT_PROFILES_FILE": str(PROFILE),
        "RMW_IMPLEMENTATION": "rmw_fastrtps_cpp",
        "ROS_DOMAIN_ID": str(free_domain()),
        "ROS_PYTHON_CHECK_FIELDS": "1",
        "ROS_LOG_DIR": str(log),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }


def node_command(*arguments: str, module: str = "mgsd_ros.run_node") -> list[str]:
    """Return the command that runs a node with ROS arguments."""
    return [sys.executable, "-m", module, "--ros-args", *arguments]


@dataclass
class Node:
    """A planner node that runs as a process of its own."""

    process: subprocess.Popen[bytes]
    output: Path

    def log(self) -> str:
        return self.output.read_text()

    def warnings(self) -> list[str]:
        return re.findall(
            r"^\[WARN\] \[[\d.]+\] \[[\w.]*planner\]: (.*)$", self.log(), re.MULTILINE
        )

    def wait_for_log(self, text: str, timeout: float = 30) -> None:
        deadline = time.monotonic() + timeout
        while text not in self.log():
            assert self.process.poll() is None, f"the node has ended:\n{self.log()}"
            assert time.monotonic() < deadline, f"no {text!r} within {timeout} s:\n{self.log()}"
            time.sleep(0.02)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


StartNode = Callable[..., Node]


class Client:
    """A participant in the test's own process that talks to the node `planner`."""

    def __init__(self, domain: int) -> None:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor

        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node("tester", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)

    def spin_until(self, is_so: Callable[[], Any], timeout: float = 20) -> Any:
        """Spin until `is_so` returns something true, and return that."""
        deadline = time.monotonic() + timeout
        while not (found := is_so()):
            assert time.monotonic() < deadline, f"not within {timeout} s"
            self.executor.spin_once(timeout_sec=0.02)
        return found

    def spin_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.executor.spin_once(timeout_sec=0.01)

    def call(self, kind: Any, service: str, timeout: float = 20, **fields: Any) -> Any:
        """Call a service of the planner, or one by its full name, and return the response."""
        name = service if service.startswith("/") else f"/planner/{service}"
        client = self.node.create_client(kind, name)
        self.spin_until(client.service_is_ready)
        future = client.call_async(kind.Request(**fields))
        self.spin_until(future.done, timeout)
        self.node.destroy_client(client)
        return future.result()

    def transition(self, label: str) -> bool:
        """Ask for a transition and return whether it succeeded."""
        from lifecycle_msgs.msg import Transition
        from lifecycle_msgs.srv import ChangeState

        return bool(
            self.call(ChangeState, "change_state", transition=Transition(label=label)).success
        )

    def state(self) -> str:
        from lifecycle_msgs.srv import GetState

        return str(self.call(GetState, "get_state").current_state.label)

    def set_parameter(self, name: str, value: Any) -> tuple[bool, str]:
        """Set a parameter; return whether it was taken, and if not, why."""
        from rcl_interfaces.srv import SetParameters
        from rclpy.parameter import Parameter

        parameter = Parameter(name, value=value).to_parameter_msg()
        [result] = self.call(SetParameters, "set_parameters", parameters=[parameter]).results
        return bool(result.successful), str(result.reason)

    def listen(self, kind: Any, topic: str, latched: bool = False) -> list[Any]:
        """Return a list that fills with a topic's messages."""
        from rclpy.qos import DurabilityPolicy, QoSProfile

        heard: list[Any] = []
        profile = QoSProfile(depth=100)
        if latched:
            profile.durability = DurabilityPolicy.TRANSIENT_LOCAL
        self.node.create_subscription(kind, topic, heard.append, profile)
        return heard

    def camera(self, topic: str = "/image_raw") -> Callable[..., None]:
        """Return a function that publishes a picture to the active node."""
        from rclpy.qos import QoSProfile, ReliabilityPolicy
        from sensor_msgs.msg import Image

        from mgsd_ros.answers import FrameHeader
        from mgsd_ros.messages import image_message

        profile = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        publisher = self.node.create_publisher(Image, topic, profile)
        self.spin_until(publisher.get_subscription_count)
        self.spin_for(0.5)  # the node must have found the camera, too: nothing is sent again

        def publish(rgb: Any, frame_id: str = "camera") -> None:
            seconds, nanoseconds = self.node.get_clock().now().seconds_nanoseconds()
            publisher.publish(image_message(rgb, FrameHeader(seconds, nanoseconds, frame_id)))

        return publish

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()
