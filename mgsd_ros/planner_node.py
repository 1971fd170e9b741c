"""The lifecycle node `planner`: camera images in, plans out.

Subscribes `image_raw` (sensor_msgs/Image), or beside it `image_raw/compressed`, and `camera_info`
where the work area is found by it. For every frame that it plans on it publishes, with the stamp
of the image and latched for whoever joins late:

    ~/plan     nav_msgs/Path in `grid.frame_id`; empty in the image's frame when the grid is not
               calibrated, and empty when the answer is not to be followed
    ~/actions  std_msgs/String, the JSON of `mgsd_ros.answers`

and while somebody listens `~/overlay` (sensor_msgs/Image, the picture with the plan drawn on it)
and, on a calibrated grid, `~/markers` (visualization_msgs/MarkerArray). `/diagnostics` says once a
second how it does. Services: `~/enable` (std_srvs/SetBool) stops and resumes planning,
`~/plan_once` (std_srvs/Trigger) plans on the next frame that comes and returns the JSON of
`~/actions`.

configure loads the bundle and warms it up, activate begins to listen, deactivate stops and leaves
an empty path behind, cleanup lets go of everything. Frames that cannot be used are counted and
warned about; they give no plan. When nothing else has come for `frame_timeout`, or planning is
switched off, an empty path takes the last one's place. This module is the wiring: what an image, an
answer or a message is, the modules it imports know.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Path
from numpy.typing import NDArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import InvalidParameterTypeException
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription
from rclpy.task import Future
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger
from visualization_msgs.msg import MarkerArray

from mgsd_core.runtime import Planner
from mgsd_ros import messages, parameters
from mgsd_ros.answers import FrameHeader, failure_to_dict, to_json
from mgsd_ros.changes import difference, summary
from mgsd_ros.conversions import ConversionError
from mgsd_ros.frame_answer import (
    NOT_USABLE,
    FrameAnswerer,
    bundle_of,
    not_usable,
    planning_failed,
    route,
)
from mgsd_ros.frame_statistics import FrameStatistics, Level
from mgsd_ros.frame_worker import FrameWorker
from mgsd_ros.once_requests import OnceRequests
from mgsd_ros.overlay import draw_answer
from mgsd_ros.parameters import ParameterError
from mgsd_ros.work_area import CameraCalibration, WorkAreaError
from sim.errors import one_line

# One kind of trouble is logged at most this often [s], with the number of frames it has cost.
WARNING_PERIOD = 5.0

# How often the spinning thread looks whether a signal has come [s].
_SIGNAL_PERIOD = 0.1

# A plan that takes longer than this to end is given up on the way out [s]: a launch file sends its
# second, harder signal 5 s after the first.
_STOP_TIMEOUT = 4.0

_DIAGNOSTICS_PERIOD = 1.0

# `~/plan_once` waits for a frame, and for its plan, this long [s].
_ONCE_TIMEOUT = 10.0

# When a frame came, by `time.monotonic` [s], and its message as it came.
_Frame = tuple[float, bytes]

_USAGE = """\
usage: planner_node [--ros-args [-p NAME:=VALUE] [--params-file FILE] [-r FROM:=TO] …]

The ROS 2 node `planner`: camera images in, plans out. Parameters, by `ros2 param describe` or in
docs/parameters.md; those of most use: family, bundle, grid.cell_size. For example

    planner_node --ros-args -p family:=maze -r image_raw:=/camera/image_raw
"""


def _transition(
    callback: Callable[[PlannerNode], None],
) -> Callable[[PlannerNode, LifecycleState], TransitionCallbackReturn]:
    """Make a method a transition that says why it failed; rclpy itself would say nothing."""

    @functools.wraps(callback)
    def run(node: PlannerNode, _: LifecycleState) -> TransitionCallbackReturn:
        try:
            callback(node)
        except (ValueError, OSError) as error:  # what a person can put right
            node.get_logger().fatal(one_line(error))
        except Exception:
            node.get_logger().fatal(f"{callback.__name__} failed: {traceback.format_exc()}")
        else:
            return TransitionCallbackReturn.SUCCESS
        return TransitionCallbackReturn.FAILURE

    return run


class PlannerNode(LifecycleNode):
    """Plans on the newest frame, one at a time, in a thread beside the executor's.

    The image callback only leaves the frame, as it came, in the worker's slot; whatever takes time
    or can fail happens in the worker.

    Attributes:
        settings: the parameters.
        statistics: of the frames since the node was activated.
        is_shut_down: it is in its last state.

    Raises:
        ParameterError: a parameter that it is started with is wrong.
    """

    def __init__(self) -> None:
        super().__init__("planner")
        self.settings = parameters.declare(self)
        parameters.warn_unknown(self)
        self.add_on_set_parameters_callback(self._on_parameters)
        self.statistics = FrameStatistics()
        self.is_shut_down = False
        self._given_up: list[FrameWorker[_Frame]] = []
        self._is_followed = False
        self._listeners = 0
        self._planner: Planner | None = None
        self._worker: FrameWorker[_Frame] | None = None
        self._enabled = True
        self._once = OnceRequests()
        # Held to publish: an empty path is the last word, whatever is at work in the other thread.
        self._publishing = threading.RLock()
        self._answerer: FrameAnswerer | None = None
        self._infos: Subscription | None = None
        self._calibration: CameraCalibration | None = None
        self._seen: NDArray[np.float32] | None = None
        self._warned: dict[str, tuple[float, int]] = {}

    # --- transitions ----------------------------------------------------------------------------

    @property
    def gave_up(self) -> bool:
        """Whether a plan that did not end in time is still at work."""
        return not all(worker.stop(0.0) for worker in self._given_up)

    @_transition
    def on_configure(self) -> None:
        """Load the bundle, plan once on nothing, and offer topics and services."""
        settings = self.settings = parameters.read(self)
        started = time.monotonic()
        self._answerer = FrameAnswerer.load(settings)
        planner = self._answerer.planner
        loaded = time.monotonic()
        self._answerer.warm_up()
        self.get_logger().info(
            f"loaded {bundle_of(settings)} in {loaded - started:.1f} s, warmed up in "
            f"{time.monotonic() - loaded:.1f} s: family {planner.family}, digest "
            f"{planner.bundle_digest[:12]}, backend {planner.backend_reason}"
        )
        if settings.grid() is None:
            self.get_logger().warning(
                "grid.cell_size is 0: without a calibrated grid ~/plan stays empty and only "
                "~/actions carries the plan"
            )
        latched = DurabilityPolicy.TRANSIENT_LOCAL
        self._plans = self.create_publisher(Path, "~/plan", _newest(latched))
        self._actions = self.create_publisher(String, "~/actions", _newest(latched))
        self._overlays = self.create_publisher(Image, "~/overlay", _newest())
        self._markers = self.create_publisher(MarkerArray, "~/markers", _newest(latched))
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._enable = self.create_service(SetBool, "~/enable", self._on_enable)
        # It waits for a frame; in the group of the others it would keep the frames from coming.
        waiting = ReentrantCallbackGroup()
        self._plan_once = self.create_service(
            Trigger, "~/plan_once", self._on_plan_once, callback_group=waiting
        )
        # By a clock that goes on while simulated time stands still or jumps back.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self.create_timer(_DIAGNOSTICS_PERIOD, self._on_timer, clock=steady)
        self._planner, self._enabled = planner, True

    @_transition
    def on_activate(self) -> None:
        """Begin to plan on what the camera sends."""
        if self.gave_up:  # an engine does one thing at a time
            raise ValueError("a plan that was given up is still at work; try again later")
        self.statistics, self._seen, self._calibration = FrameStatistics(), None, None
        self._worker = FrameWorker(self._plan_frame, self._period)
        reliability = ReliabilityPolicy[self.settings.reliability.upper()]
        topic, kind = self.resolve_topic_name("image_raw"), Image
        if self.settings.image_transport == "compressed":
            topic, kind = f"{topic}/compressed", CompressedImage
        # As bytes: a frame that gives way to a newer one is never unpacked.
        self._images = self.create_subscription(
            kind, topic, self._on_image, _newest(reliability=reliability), raw=True
        )
        if self.settings.needs_camera_info:
            self._infos = self.create_subscription(
                CameraInfo, "camera_info", self._on_info, _newest(reliability=reliability)
            )
        self.get_logger().info(f"planning on the images of {self._images.topic_name}")

    @_transition
    def on_deactivate(self) -> None:
        """Stop listening, and leave an empty path behind: nothing is to be followed any more."""
        self._stop("the planner was deactivated")

    @_transition
    def on_cleanup(self) -> None:
        """Let go of the bundle, topics and services."""
        self._let_go()

    @_transition
    def on_shutdown(self) -> None:
        """Stop whatever state it is in."""
        self._stop("the planner was shut down")
        self._let_go(for_good=True)
        self.is_shut_down = True

    @_transition
    def on_error(self) -> None:
        """Go back to the beginning after a transition that broke half-way."""
        self._stop("the planner failed")
        self._let_go()

    def _stop(self, why: str) -> None:
        with self._publishing:
            worker, self._worker = self._worker, None
        if worker is None:
            return
        self.destroy_subscription(self._images)
        if self._infos is not None:
            self.destroy_subscription(self._infos)
            self._infos = None
        if not worker.stop(_STOP_TIMEOUT):
            self._given_up.append(worker)
            self.get_logger().warning("the plan at work did not end in time and is given up")
        counts = self.statistics.counts
        counts["replaced"] = worker.replaced
        self.get_logger().info(
            f"planned on {counts['planned']} of {counts['received']} frames; "
            f"{counts['replaced']} gave way to newer ones, {counts['stale']} were too old, "
            f"{counts['unchanged']} unchanged, {counts['unusable']} not usable, "
            f"{counts['failed']} failed"
        )
        # By now whatever was published counts.
        self._once.answer(self._leave_empty(why))

    def _let_go(self, for_good: bool = False) -> None:
        if self._planner is None:
            return
        for publisher in (
            self._plans,
            self._actions,
            self._overlays,
            self._markers,
            self._diagnostics,
        ):
            self.destroy_publisher(publisher)
        self.destroy_service(self._enable)
        if not for_good:
            # Else a request that was answered just now is lost with it, and rclpy fails over that;
            # the service ends with the node.
            self.destroy_service(self._plan_once)
        self.destroy_timer(self._timer)
        self._planner = self._answerer = None

    # --- parameters and services ----------------------------------------------------------------

    def _on_parameters(self, given: Sequence[Parameter]) -> SetParametersResult:
        values = {parameter.name: parameter.value for parameter in given}
        try:
            self.settings = parameters.changed(self.settings, values, self._planner is not None)
        except ParameterError as error:
            return SetParametersResult(successful=False, reason=str(error))
        self._seen = None  # the same picture may now lead elsewhere
        return SetParametersResult(successful=True)

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        with self._publishing:
            self._enabled, self._seen = bool(request.data), None
            if not self._enabled and self._worker is not None:
                self._withdraw("planning was switched off")
        response.success = True
        response.message = "planning" if self._enabled else "not planning"
        self.get_logger().info(f"~/enable: {response.message}")
        return response

    async def _on_plan_once(
        self, _: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        if self._worker is None:
            response.message = "the planner is not active"
            return response
        future: Future = Future(executor=self.executor)
        self._once.add(future, time.monotonic())
        answer = await future
        if answer is None:
            response.message = f"no frame was planned on within {_ONCE_TIMEOUT:.0f} s"
            return response
        response.success, response.message = answer["error"] is None, to_json(answer)
        return response

    # --- frames ---------------------------------------------------------------------------------

    def _on_image(self, message: bytes) -> None:
        arrived = time.monotonic()
        self.statistics.received()
        worker = self._worker
        if not self._is_wanted(arrived):
            self.statistics.counts["disabled"] += 1
        elif worker is not None:
            worker.put((arrived, message))

    def _is_wanted(self, arrived: float) -> bool:
        return self._enabled or self._once.want(arrived)

    def _on_info(self, message: CameraInfo) -> None:
        try:
            self._calibration = CameraCalibration.from_message(message)
        except WorkAreaError as error:
            self._calibration = None
            self._warn("camera_info", f"camera_info not usable: {one_line(error)}")

    def _period(self) -> float:
        return 1 / self.settings.max_rate if self.settings.max_rate and not self._once else 0.0

    def _plan_frame(self, frame: _Frame) -> None:
        """Plan on one frame and publish; whatever goes wrong with a frame ends here."""
        arrived, data = frame
        settings, statistics, answerer = self.settings, self.statistics, self._the_answerer()
        if not self._is_wanted(arrived):  # switched off while it waited
            statistics.counts["disabled"] += 1
            return
        planner = answerer.planner
        began = time.monotonic()
        header = None
        try:
            compressed = settings.image_transport == "compressed"
            message = _unpacked(data, CompressedImage if compressed else Image)
            header = FrameHeader.of(message)
            age = self._age(header)
            if 0 < settings.max_frame_age < age:
                text = f"frame dropped: its stamp is {age:.3f} s old"
                statistics.trouble("stale", Level.WARN, text)
                self._warn("stale", text)
                return
            infos = self.resolve_topic_name("camera_info")
            rgb = answerer.picture(message, self._calibration, infos)
            if self._is_unchanged(rgb, arrived):
                statistics.seen()
                statistics.counts["unchanged"] += 1
                return
            statistics.seen()
            response = planner.plan(rgb)
            answer = answerer.answer(response, header, settings.min_confidence)
            if not self._tell(answer, header, arrived, statistics, rgb):
                return
        except NOT_USABLE as error:
            text = not_usable(error)
            statistics.trouble("unusable", Level.WARN, text)
            self._warn(type(error).__name__, text)
            failure = failure_to_dict(text, header or FrameHeader(0, 0, ""), planner)
            self._once.answer(failure, arrived)
        except Exception as error:
            # Whatever the engine says about this frame, the next one may be better; a robot that
            # follows the last plan must learn that there is none for what it sees now.
            text = planning_failed(error)
            statistics.trouble("failed", Level.ERROR, text)
            self._warn("failed", text)
            self._seen = None
            if header is not None:
                self._tell(failure_to_dict(text, header, planner), header, arrived, statistics)
        else:
            statistics.planned(time.monotonic() - began, self._age(header))
            statistics.counts["refused"] += answer["error"] is not None

    def _age(self, header: FrameHeader) -> float:
        """Return the age of a frame [s]; below 0 where a clock or a bag has gone back."""
        return (self.get_clock().now().nanoseconds - header.nanoseconds) * 1e-9

    def _is_unchanged(self, rgb: NDArray[np.uint8], arrived: float) -> bool:
        """Has nothing changed since the last plan? Remembers what it has seen if something has."""
        threshold = self.settings.change_threshold
        if not threshold:
            self._seen = None
            return False
        listeners = self._overlays.get_subscription_count()
        listeners += self._markers.get_subscription_count()
        if listeners > self._listeners:
            self._seen = None  # whoever has come since has seen nothing yet
        self._listeners = listeners
        seen = summary(rgb)
        known = None if self._once.want(arrived) else self._seen
        if known is not None and difference(seen, known) <= threshold:
            return True
        self._seen = seen
        return False

    def _tell(
        self,
        answer: dict[str, Any],
        header: FrameHeader,
        arrived: float,
        statistics: FrameStatistics,
        rgb: NDArray[np.uint8] | None = None,
    ) -> bool:
        """Publish what a frame led to, and return whether it was.

        Where the node was deactivated or switched off meanwhile it is not: the empty path that was
        left then is the last word.
        """
        with self._publishing:
            if self._worker is None or statistics is not self.statistics:
                return False
            if not self._is_wanted(arrived):
                statistics.counts["disabled"] += 1
                return False
            self._publish(answer, header, rgb)
        self._once.answer(answer, arrived)
        return True

    def _publish(
        self, answer: dict[str, Any], image: FrameHeader, rgb: NDArray[np.uint8] | None = None
    ) -> None:
        """Publish an answer on all topics that somebody listens to; `rgb` was planned on."""
        grid = self.settings.grid()
        frame_id = image.frame_id if grid is None else grid.frame_id
        poses = route(answer, grid)
        self._plans.publish(messages.path_message(poses, image, frame_id))
        self._actions.publish(messages.text_message(to_json(answer)))
        self._is_followed = answer["error"] is None
        if grid is not None:
            # Where nobody listens nothing is drawn, and nothing of before is left for late joiners.
            shown = poses if self._markers.get_subscription_count() else []
            markers = messages.markers_message(shown, grid.cell_size, image, frame_id)
            self._markers.publish(markers)
        if rgb is not None and self._overlays.get_subscription_count():
            drawn = draw_answer(rgb, answer)
            self._overlays.publish(messages.image_message(drawn, image))

    def _withdraw(self, why: str) -> None:
        """Leave an empty path behind if there is one to be followed."""
        with self._publishing:
            self._seen = None  # the same picture leads to a path again
            if self._is_followed:
                self._leave_empty(why)

    def _leave_empty(self, why: str) -> dict[str, Any]:
        """Publish an empty path; return what is said with it."""
        seconds, nanoseconds = self.get_clock().now().seconds_nanoseconds()
        header = FrameHeader(seconds, nanoseconds, self.settings.grid_frame_id)
        answer = failure_to_dict(why, header, self._the_planner())
        with self._publishing:
            self._publish(answer, header)
        return answer

    # --- what it tells --------------------------------------------------------------------------

    def _on_timer(self) -> None:
        self._once.answer(None, before=time.monotonic() - _ONCE_TIMEOUT)
        statistics, planner, worker = self.statistics, self._planner, self._worker
        if planner is None:
            return
        if worker is None:
            level, text = Level.WARN, "not active"
        elif not self._enabled:
            level, text = Level.OK, "not enabled"
        else:
            statistics.counts["replaced"] = worker.replaced
            level, text = statistics.health(self.settings.frame_timeout)
            if (blind := statistics.blind) > self.settings.frame_timeout:
                self._withdraw(f"nothing usable has been seen for {blind:.1f} s")
            if level is Level.OK and self.settings.grid() is None:
                level, text = Level.WARN, "the grid is not calibrated: ~/plan stays empty"
        values = {
            "backend": planner.backend,
            "family": planner.family,
            **statistics.values(),
        }
        self._diagnostics.publish(
            messages.diagnostics_message(
                self.get_fully_qualified_name(),
                planner.bundle_digest[:12],
                level,
                text,
                values,
                self.get_clock().now().seconds_nanoseconds(),
            )
        )

    def _warn(self, kind: str, text: str) -> None:
        now = time.monotonic()
        last, silent = self._warned.get(kind, (-WARNING_PERIOD, 0))
        if now - last < WARNING_PERIOD:
            self._warned[kind] = (last, silent + 1)
            return
        self._warned[kind] = (now, 0)
        more = f" (and {silent} more since the last warning)" if silent else ""
        self.get_logger().warning(text + more)

    def _the_answerer(self) -> FrameAnswerer:
        assert self._answerer is not None, "the node is not configured"
        return self._answerer

    def _the_planner(self) -> Planner:
        assert self._planner is not None, "the node is not configured"
        return self._planner


def main(args: Sequence[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM.

    Returns:
        0 after a signal; 2 when the arguments or a parameter are wrong or, with autostart, the
        bundle is. `mgsd_ros.run_node` sees to the signals that come before.
    """
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _frame: signals.append(received))
    extra = _outside_of_ros_args((sys.argv if args is None else args)[1:])
    if extra:
        if extra in (["-h"], ["--help"]):
            print(_USAGE)
            return 0
        print(
            f"planner: unknown arguments {' '.join(extra)}: parameters and remappings stand after "
            "--ros-args",
            file=sys.stderr,
        )
        return 2
    try:
        # Our own handlers, because rclpy's take the publishers away from a plan that is at work.
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:
        print(f"planner: {one_line(error)}", file=sys.stderr)
        return 2
    try:
        node = PlannerNode()
    # The second where the middleware refuses, the third from parameters of rclpy's own.
    except (ParameterError, RuntimeError, InvalidParameterTypeException) as error:
        rclpy.logging.get_logger("planner").fatal(one_line(error))
        rclpy.shutdown()
        return 2
    success = TransitionCallbackReturn.SUCCESS
    steps = (node.trigger_configure, node.trigger_activate) if node.settings.autostart else ()
    for step in steps:
        if not signals and step() != success:
            node.destroy_node()
            rclpy.shutdown()
            return 2
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    while not signals:
        executor.spin_once(timeout_sec=_SIGNAL_PERIOD)
    for number in (signal.SIGINT, signal.SIGTERM):
        # Python takes our handlers away before it has ended: one more would then kill it.
        signal.signal(number, signal.SIG_IGN)
    if not node.is_shut_down:
        node.trigger_shutdown()
    executor.shutdown()
    gave_up = node.gave_up
    node.destroy_node()
    rclpy.shutdown()
    if gave_up:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # its thread still runs in the engine and must not outlive what it uses
    return 0


def _outside_of_ros_args(arguments: Sequence[str]) -> list[str]:
    """Return the arguments that are not between --ros-args and --, which rcl would pass over."""
    outside: list[str] = []
    is_inside = False
    for argument in arguments:
        if argument == ("--" if is_inside else "--ros-args"):
            is_inside = not is_inside
        elif not is_inside:
            outside.append(argument)
    return outside


def _newest(
    durability: DurabilityPolicy = DurabilityPolicy.VOLATILE,
    reliability: ReliabilityPolicy = ReliabilityPolicy.RELIABLE,
) -> QoSProfile:
    """Return a profile of its own for each topic: overrides change the one that is passed in."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=1, durability=durability, reliability=reliability
    )


def _unpacked(data: bytes, kind: type) -> Any:
    """Return the message in a frame as it came.

    Raises:
        ConversionError: the bytes are no message of that kind.
    """
    try:
        return deserialize_message(data, kind)
    except Exception as error:  # each middleware has its own
        raise ConversionError(f"the message cannot be unpacked: {one_line(error)}") from error
