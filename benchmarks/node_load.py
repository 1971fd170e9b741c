"""The node under load: 30 Hz of 1920 × 1080 frames and a planner that takes half a second.

python benchmarks/node_load.py --seconds 60 --json node_load.json

A camera process publishes frames over DDS, stamped as it sends them; the node plans with the
shipped model, slowed down. For every plan: how old was its frame when planning began (its stamp
against when the answer came, less the time that planning took)? And of the node's process: CPU time
beside inference, as a share of one core, and memory at the beginning and the end. Everything stays
on this machine (config/fastdds_loopback.xml).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]

NODE = """
import sys, time
from mgsd_core.runtime import Planner
really = Planner.plan
def plan(self, rgb):
    began, used = time.perf_counter(), time.thread_time()
    time.sleep(float(sys.argv[1]))
    response = really(self, rgb)
    response.timings["total"] = time.perf_counter() - began
    response.timings["cpu"] = time.thread_time() - used
    return response
Planner.plan = plan
from mgsd_ros.planner_node import main
raise SystemExit(main(["node", "--ros-args", *sys.argv[2:]]))
"""

CAMERA = """
import array, sys, time
import numpy as np
import rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
rate, width, height = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
rclpy.init()
node = rclpy.create_node("camera")
profile = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
publisher = node.create_publisher(Image, "image_raw", profile)
random = np.random.default_rng(0)
message = Image(height=height, width=width, step=3 * width, encoding="rgb8")
message.data = array.array("B", random.integers(0, 256, 3 * width * height, np.uint8).tobytes())
due = time.monotonic()
while True:
    message.header.stamp = node.get_clock().now().to_msg()
    publisher.publish(message)
    due += 1 / rate
    time.sleep(max(0.0, due - time.monotonic()))
"""


def usage(pid: int) -> tuple[float, float]:
    """Return the CPU time [s] and memory [MiB] of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    resident = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert resident is not None
    return ticks / os.sysconf("SC_CLK_TCK"), int(resident[1]) / 1024


def measure(seconds: float, rate: float, width: int, height: int, slow: float) -> dict[str, float]:
    """Run node and camera; return what came of it."""
    import rclpy
    from diagnostic_msgs.msg import DiagnosticArray
    from rclpy.qos import QoSProfile
    from std_msgs.msg import String

    node = subprocess.Popen([sys.executable, "-c", NODE, str(slow)], cwd=ROOT)
    camera = None
    rclpy.init()
    listener = rclpy.create_node("listener")
    answers: list[tuple[float, dict]] = []
    diagnostics: list[DiagnosticArray] = []

    def on_answer(message: String) -> None:
        answers.append((listener.get_clock().now().nanoseconds * 1e-9, json.loads(message.data)))

    listener.create_subscription(String, "/planner/actions", on_answer, QoSProfile(depth=10))
    listener.create_subscription(DiagnosticArray, "/diagnostics", diagnostics.append, 10)

    def spin(until: float) -> None:
        while time.monotonic() < until:
            rclpy.spin_once(listener, timeout_sec=0.05)

    try:
        spin(time.monotonic() + 5)
        size = (str(rate), str(width), str(height))
        camera = subprocess.Popen(
            [sys.executable, "-c", CAMERA, *size], cwd=ROOT, stderr=subprocess.DEVNULL
        )
        spin(time.monotonic() + 5)
        answers.clear()
        cpu, memory = usage(node.pid)
        began = time.monotonic()
        spin(began + seconds)
        took = time.monotonic() - began
        cpu_after, memory_after = usage(node.pid)
    finally:
        for process in (camera, node):
            if process is not None:
                process.terminate()
                process.wait(20)
        rclpy.shutdown()
    planning = sum(answer["timings"]["cpu"] for _, answer in answers)
    ages = [
        came
        - answer["stamp"]["sec"]
        - answer["stamp"]["nanosec"] * 1e-9
        - answer["timings"]["total"]
        for came, answer in answers
    ]
    values = {pair.key: pair.value for pair in diagnostics[-1].status[0].values}
    return {
        "seconds": took,
        "plans": len(answers),
        "frames_received": int(values["frames received"]),
        "frames_replaced": int(values["frames replaced"]),
        "age_at_start_p50_ms": float(np.percentile(ages, 50)) * 1e3,
        "age_at_start_max_ms": max(ages) * 1e3,
        "period_ms": 1e3 / rate,
        "cpu_beside_inference": (cpu_after - cpu - planning) / took,
        "memory_begin_mib": memory,
        "memory_end_mib": memory_after,
    }


def main() -> None:
    """Measure and print a table; write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file of the results")
    parser.add_argument("--seconds", type=float, default=60.0, help="measured time [s]")
    parser.add_argument("--rate", type=float, default=30.0, help="of the camera [Hz]")
    parser.add_argument("--size", type=int, nargs=2, default=(1920, 1080), help="of a frame [px]")
    parser.add_argument("--slow", type=float, default=0.5, help="added to every plan [s]")
    parser.add_argument("--domain", type=int, default=73, help="ROS domain")
    args = parser.parse_args()
    os.environ["FASTDDS_DEFAULT_PROFILES_FILE"] = str(ROOT / "config" / "fastdds_loopback.xml")
    os.environ["ROS_DOMAIN_ID"] = str(args.domain)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    results = measure(args.seconds, args.rate, *args.size, args.slow)
    for name, value in results.items():
        print(f"{name:<24} {value:.4g}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
