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


def node_command(*arguments: str, module: str = "mgsd_ros.planner_node") -> list[str]:
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
