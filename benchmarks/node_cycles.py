"""The lifecycle node brought up and down, over and over, while a camera never stops.

python benchmarks/node_cycles.py --cycles 200 --json node_cycles.json

A camera process publishes frames over DDS; the node (shipped model) is configured, activated,
deactivated and cleaned up, and of every second activation a plan is awaited. After each cycle: the
node's memory, threads and open files; after a tenth of the cycles and at the end also the memory
that is in use once the allocator has given back what it keeps. Ends with status 1 when there are
more threads or files at the end than after that tenth, more than 5 % more memory is in use, or a
transition did not succeed in time. Everything stays on this machine (config/fastdds_loopback.xml).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from node_load import CAMERA, ROOT

NODE = """
import ctypes, signal, sys
libc = ctypes.CDLL("libc.so.6")
signal.signal(signal.SIGUSR1, lambda *_: libc.malloc_trim(0))
from mgsd_ros.planner_node import main
raise SystemExit(main(["node", "--ros-args", *sys.argv[1:]]))
"""

GROWTH = 1.05
STEPS = ("configure", "activate", "deactivate", "cleanup")

# Longest time that a transition, and a plan after an activation, may take [s].
PATIENCE = 20.0


def used(pid: int) -> tuple[float, int, int]:
    """Return the memory [MiB], threads and open files of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    resident, threads = (re.search(rf"{key}:\s+(\d+)", status) for key in ("VmRSS", "Threads"))
    assert resident and threads
    return int(resident[1]) / 1024, int(threads[1]), len(list(Path(f"/proc/{pid}/fd").iterdir()))


def in_use(node: subprocess.Popen[bytes]) -> float:
    """Return the memory that the node really uses [MiB]."""
    node.send_signal(signal.SIGUSR1)
    time.sleep(0.5)
    return used(node.pid)[0]


def measure(cycles: int, rate: float, width: int, height: int) -> dict[str, Any]:
    """Run node and camera; return what came of it.

    Raises:
        TimeoutError: a transition or a plan did not come.
    """
    import rclpy
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState
    from std_msgs.msg import String

    options = ("--log-level", "error", "-p", "autostart:=false")
    node = subprocess.Popen([sys.executable, "-c", NODE, *options], cwd=ROOT)
    size = (str(rate), str(width), str(height))
    camera = subprocess.Popen(
        [sys.executable, "-c", CAMERA, *size], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    rclpy.init()
    manager = rclpy.create_node("manager")
    answers: list[String] = []
    manager.create_subscription(String, "/planner/actions", answers.append, 10)
    client = manager.create_client(ChangeState, "/planner/change_state")

    def wait(is_so: Callable[[], Any], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not is_so():
            if time.monotonic() > end:
                raise TimeoutError(f"not within {PATIENCE:g} s: {what}")
            rclpy.spin_once(manager, timeout_sec=0.02)

    found: list[tuple[float, int, int]] = []
    seconds: list[float] = []
    plans, warm, in_use_warm = 0, cycles // 10, 0.0
    try:
        wait(client.service_is_ready, "the node's services")
        for cycle in range(cycles):
            for label in STEPS:
                began = time.monotonic()
                future = client.call_async(ChangeState.Request(transition=Transition(label=label)))
                wait(future.done, f"{label} in cycle {cycle}")
                if not future.result().success:
                    raise TimeoutError(f"{label} failed in cycle {cycle}")
                seconds.append(time.monotonic() - began)
                if label == "activate" and cycle % 2:
                    answers.clear()
                    wait(lambda: answers, f"a plan in cycle {cycle}")
                    plans += 1
            found.append(used(node.pid))
            if cycle == warm:
                in_use_warm = in_use(node)
        in_use_end = in_use(node)
    finally:
        for process in (camera, node):
            process.terminate()
            process.wait(20)
        rclpy.shutdown()
    memory, threads, files = zip(*found, strict=True)
    return {
        "cycles": cycles,
        "plans_awaited": plans,
        "longest_transition_s": max(seconds),
        "memory_warm_mib": memory[warm],
        "memory_end_mib": memory[-1],
        "in_use_warm_mib": in_use_warm,
        "in_use_end_mib": in_use_end,
        "threads_warm": threads[warm],
        "threads_end": threads[-1],
        "files_warm": files[warm],
        "files_end": files[-1],
        "exit_status": node.returncode,
        "memory_mib": memory,
    }


def main() -> int:
    """Measure and print a table; write JSON; return 1 when something was left behind."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file of the results")
    parser.add_argument("--cycles", type=int, default=200, help="from configure to cleanup")
    parser.add_argument("--rate", type=float, default=30.0, help="of the camera [Hz]")
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480), help="of a frame [px]")
    parser.add_argument("--domain", type=int, default=74, help="ROS domain")
    args = parser.parse_args()
    os.environ["FASTDDS_DEFAULT_PROFILES_FILE"] = str(ROOT / "config" / "fastdds_loopback.xml")
    os.environ["ROS_DOMAIN_ID"] = str(args.domain)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    began = time.monotonic()
    try:
        results = measure(args.cycles, args.rate, *args.size)
    except TimeoutError as error:
        print(f"node_cycles: {error}", file=sys.stderr)
        return 1
    results["seconds"] = time.monotonic() - began
    for name, value in results.items():
        if name != "memory_mib":
            print(f"{name:<24} {value:.5g}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    kept = results["in_use_end_mib"] <= GROWTH * results["in_use_warm_mib"]
    same = all(results[f"{k}_end"] <= results[f"{k}_warm"] for k in ("threads", "files"))
    return int(not (kept and same and results["exit_status"] == 0))


if __name__ == "__main__":
    raise SystemExit(main())
