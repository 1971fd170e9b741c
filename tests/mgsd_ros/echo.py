"""Sends every message of the types that the planner publishes back as it understood it.

Run as a process by the tests: unpacks what comes on <name> and publishes that on <name>/echo, once
somebody listens to that.
"""

from __future__ import annotations

import signal

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Path
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image
from std_msgs.msg import String
from visualization_msgs.msg import MarkerArray

TYPES = {
    "plan": Path,
    "actions": String,
    "overlay": Image,
    "markers": MarkerArray,
    "diagnostics": DiagnosticArray,
}

if __name__ == "__main__":
    # Ended by rclpy's own handler, a process that spins now and then stays.
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("echo")
    publishers = {name: node.create_publisher(TYPES[name], f"{name}/echo", 10) for name in TYPES}
    for name, publisher in publishers.items():
        while not stopped and not publisher.get_subscription_count():
            rclpy.spin_once(node, timeout_sec=0.05)
        node.create_subscription(TYPES[name], name, publisher.publish, 10)
    while not stopped:
        rclpy.spin_once(node, timeout_sec=0.1)
    rclpy.shutdown()
