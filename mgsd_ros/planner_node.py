"""The node `planner`: camera images in, plans out.

Subscribes `image_raw` (sensor_msgs/Image). For every frame that it plans on it publishes, both
latched for whoever joins late and with the stamp of the image:

    ~/plan     nav_msgs/Path in `grid.frame_id`; empty in the image's frame when the grid is not
               calibrated, and empty when the answer is not to be followed
    ~/actions  std_msgs/String, the JSON of `mgsd_ros.answers`

Images that cannot be used are counted and warned about; they give no plan. This module is the
wiring: what an image, an answer or a message is, the modules it imports know.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import rclpy
from nav_msgs.msg import Path
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image
from std_msgs.msg import String

from mgsd_core.installed import shipped_bundle
from mgsd_core.runtime import ImageError, Planner
from mgsd_ros import parameters
from mgsd_ros.answers import FrameHeader, answer_to_dict, failure_to_dict, to_json
from mgsd_ros.conversions import ConversionError, rgb_from_image
from mgsd_ros.frame_worker import FrameWorker
from mgsd_ros.messages import path_message, text_message

# One kind of trouble is logged at most this often [s], with the number of frames it has cost.
WARNING_PERIOD = 5.0

# How often the spinning thread looks whether a signal has come [s].
_SIGNAL_PERIOD = 0.1

# A plan that takes longer than this to end is given up on the way out [s]: a launch file sends its
# second, harder signal 5 s after the first.
_STOP_TIMEOUT = 4.0


class PlannerNode(Node):
    """Plans on the newest frame, one at a time, in a thread beside the executor's.

    `configure` loads, `activate` begins to listen, `deactivate` stops. The image callback only
    leaves the frame in the worker's slot; whatever takes time or can fail happens in the worker.

    Attributes:
        frames: what became of the frames so far: received, planned, stale, unusable, failed.
    """

    def __init__(self) -> None:
        super().__init__("planner")
        self.frames: Counter[str] = Counter()
        self._warned: dict[str, tuple[float, int]] = {}

    def configure(self) -> None:
        """Read the parameters and load the bundle.

        Raises:
            ValueError, OSError: a parameter or the bundle is wrong; one line says which and how.
        """
        self._parameters = parameters.declare(self)
        parameters.warn_unknown(self)
        self._grid = self._parameters.grid()
        bundle = self._parameters.bundle or shipped_bundle()
        started = time.monotonic()
        self._planner = Planner.load(
            bundle,
            backend=self._parameters.backend,
            family=self._parameters.family,
            repair=self._parameters.repair,
        )
        self.get_logger().info(
            f"loaded {bundle} in {time.monotonic() - started:.1f} s: family "
            f"{self._planner.family}, backend {self._planner.backend}, "
            f"digest {self._planner.bundle_digest[:12]}"
        )
        if self._grid is None:
            self.get_logger().warning(
                "grid.cell_size is 0: without a calibrated grid ~/plan stays empty and only "
                "~/actions carries the plan"
            )

    def activate(self) -> None:
        """Create the publishers and begin to plan on what `image_raw` brings."""
        latched = QoSProfile(
            history=HistoryPolicy.KEEP_LAST,
            depth=1,
            reliability=ReliabilityPolicy.RELIABLE,
            durability=DurabilityPolicy.TRANSIENT_LOCAL,
        )
        self._plans = self.create_publisher(Path, "~/plan", latched)
        self._actions = self.create_publisher(String, "~/actions", latched)
        self._worker = FrameWorker(self._plan_frame)
        newest = QoSProfile(
            history=HistoryPolicy.KEEP_LAST,
            depth=1,
            reliability=ReliabilityPolicy[self._parameters.reliability.upper()],
        )
        self._images = self.create_subscription(Image, "image_raw", self._on_image, newest)
        self.get_logger().info(f"planning on the images of {self._images.topic_name}")

    def deactivate(self, timeout: float) -> bool:
        """Stop listening and wait up to `timeout` seconds for the plan at work.

        Returns:
            Whether it ended. If not, its thread still uses this node.
        """
        self.destroy_subscription(self._images)
        ended = self._worker.stop(timeout)
        frames = self.frames
        self.get_logger().info(
            f"planned on {frames['planned']} of {frames['received']} frames; "
            f"{self._worker.replaced} gave way to newer ones, {frames['stale']} were too old, "
            f"{frames['unusable']} not usable, {frames['failed']} failed"
        )
        return ended

    def _on_image(self, message: Image) -> None:
        self.frames["received"] += 1
        self._worker.put(message)

    def _plan_frame(self, message: Image) -> None:
        """Plan on one frame and publish; whatever goes wrong with a frame ends here."""
        header = FrameHeader.of(message)
        age = (self.get_clock().now().nanoseconds - header.nanoseconds) * 1e-9
        if 0 < self._parameters.max_frame_age < age:
            self.frames["stale"] += 1
            self._warn("stale", f"frame dropped: its stamp is {age:.3f} s old")
            return
        try:
            response = self._planner.plan(rgb_from_image(message))
        except (ConversionError, ImageError) as error:
            self.frames["unusable"] += 1
            self._warn(type(error).__name__, f"image not usable: {_one_line(error)}")
        except Exception as error:
            # Whatever the engine says about this frame, the next one may be better; a robot that
            # follows the last plan must learn that there is none for what it sees now.
            self.frames["failed"] += 1
            text = f"planning failed: {type(error).__name__}: {_one_line(error)}"
            self._warn("failed", text)
            self._publish(failure_to_dict(text, header, self._planner), header)
        else:
            self.frames["planned"] += 1
            self._publish(answer_to_dict(response, header, self._planner), header)

    def _publish(self, answer: dict[str, Any], image: FrameHeader) -> None:
        if self._grid is None or answer["error"] is not None:
            path = path_message([], image, self._grid.frame_id if self._grid else image.frame_id)
        else:
            path = path_message(self._grid.poses(answer["path"]), image, self._grid.frame_id)
        self._plans.publish(path)
        self._actions.publish(text_message(to_json(answer)))

    def _warn(self, kind: str, text: str) -> None:
        now = time.monotonic()
        last, silent = self._warned.get(kind, (-WARNING_PERIOD, 0))
        if now - last < WARNING_PERIOD:
            self._warned[kind] = (last, silent + 1)
            return
        self._warned[kind] = (now, 0)
        more = f" (and {silent} more since the last warning)" if silent else ""
        self.get_logger().warning(text + more)


def main(args: Sequence[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM.

    Returns:
        0 after a signal; 2 when the arguments, a parameter or the bundle are wrong.
    """
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _frame: signals.append(received))
    try:
        # Our own handlers, because rclpy's take the publishers away from a plan that is at work.
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:
        print(f"planner: {_one_line(error)}", file=sys.stderr)
        return 2
    node = PlannerNode()
    try:
        node.configure()
    except (ValueError, OSError) as error:
        node.get_logger().fatal(_one_line(error))
        rclpy.shutdown()
        return 2
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    node.activate()
    try:
        while not signals:
            executor.spin_once(timeout_sec=_SIGNAL_PERIOD)
    finally:
        ended = node.deactivate(_STOP_TIMEOUT)
    if not ended:
        node.get_logger().warning("the plan at work did not end in time and is given up")
    executor.shutdown()
    node.destroy_node()
    rclpy.shutdown()
    if not ended:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # its thread still runs in the engine and must not outlive what it uses
    return 0


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    raise SystemExit(main())
