"""A planner node as a process of its own, which meets only those that it is meant for."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mgsd_core.installed import installed_path
from mgsd_core.steps import show

# Where the first participant of domain 0 is discovered, and from one domain to the next (RTPS 2.2,
# 9.6.1.1).
_FIRST_PORT, _PORTS = 7410, 250

# Domains that keep clear of the ports that Linux gives to clients.
_DOMAINS = 101

# Longest wait for a node to end by itself [s].
_ENDING = 10.0


def own_environment() -> dict[str, str]:
    """Return an environment for ROS processes that are to meet each other and nobody else.

    Nothing leaves the machine, and no other ROS system on it is disturbed.
    """
    # Fast DDS 2 (Humble, Jazzy) knows its profiles by the older name alone; 3 takes it, but warns.
    is_second = os.environ.get("ROS_DISTRO") in ("humble", "jazzy")
    profiles = f"{'FASTRTPS' if is_second else 'FASTDDS'}_DEFAULT_PROFILES_FILE"
    return os.environ | {
        profiles: str(installed_path("config/fastdds_loopback.xml")),
        "ROS_DOMAIN_ID": str(free_domain()),
        "RMW_IMPLEMENTATION": "rmw_fastrtps_cpp",
    }


def free_domain() -> int:
    """Return a ROS domain in which there is no participant on this machine.

    Raises:
        OSError: every domain is taken.
    """
    for offset in range(_DOMAINS):
        domain = 1 + (os.getpid() + offset) % _DOMAINS
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("127.0.0.1", _FIRST_PORT + _PORTS * domain))
            except OSError:
                continue
        return domain
    raise OSError(f"the ROS domains 1 to {_DOMAINS} are all taken on this machine")


@contextmanager
def planner_node(
    environment: Mapping[str, str], parameters: Mapping[str, Any]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a planner node while the context lasts; it may not listen yet when that begins.

    Args:
        environment: of the process.
        parameters: of the node by name; truth values as Python's, all else as ROS reads it.

    Raises:
        OSError: it did not end well.
    """
    command = [sys.executable, "-m", "mgsd_ros.run_node", "--ros-args"]
    for name, value in parameters.items():
        text = str(value).lower() if isinstance(value, bool) else value
        command += ["-p", f"{name}:={text}"]
    show(["planner_node", *command[3:], "&"])
    node = subprocess.Popen(command, env=dict(environment))
    try:
        yield node
    finally:
        node.send_signal(signal.SIGINT)
        try:
            node.wait(timeout=_ENDING)
        except subprocess.TimeoutExpired:
            node.kill()
            node.wait()
    if node.returncode != 0:
        raise OSError(f"the planner node ended with status {node.returncode}")
