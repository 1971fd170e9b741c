"""Plans on the frames of a bag one by one, as the node would, and keeps what came of each."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mgsd_core.evaluation.score import NO_ANSWER, REFUSED, UNPARSABLE, Record, record_dict, score
from mgsd_core.prompts import ParsedResponse
from mgsd_core.runtime import Response
from mgsd_ros.answers import failure_to_dict
from mgsd_ros.bag_plans import PlansBag
from mgsd_ros.bags import BagError, BagFrame, BagReader, read_calibrations, read_frames
from mgsd_ros.changes import difference, summary
from mgsd_ros.frame_answer import NOT_USABLE, FrameAnswerer, not_usable, planning_failed
from mgsd_ros.work_area import CameraCalibration
from sim import state_to_dict

#: Is called with a planned frame's index, the picture uint8 [H, W, 3] and its line of frames.jsonl.
OnFrame = Callable[[int, NDArray[np.uint8], dict[str, Any]], object]


class BagRun:
    """What becomes of a bag's frames.

    Args:
        answerer: what plans.
        reader: the bag.
        info_topic: of sensor_msgs/CameraInfo, for parameters that ask for it.
        is_timed: the planner is busy for a while with each plan, and the parameters that make the
            node pass over frames do so here.
        latency: how long it is busy [s]; None: as long as it takes.
        plans: takes what the node would have published.
        on_frame: is told of every plan.

    Attributes:
        received: frames that were read.
        problem: why not all of them could be, or None.
        lines: of frames.jsonl, one for each frame that was taken.
        records: of those whose truth is known.
        timings: seconds by stage for each of `lines`, "frame" from the message to the answer.
        ages: of each of `lines` when planning began and when its answer came [s].
        unusable, failed: how many of `lines` have no plan because of the image, or of the engine.
        stale, unchanged: indices of the frames that the node's parameters pass over.

    Raises:
        BagError: camera_info is needed, and the bag has none on `info_topic`.
    """

    def __init__(
        self,
        answerer: FrameAnswerer,
        reader: BagReader,
        info_topic: str,
        is_timed: bool = False,
        latency: float | None = None,
        plans: PlansBag | None = None,
        on_frame: OnFrame | None = None,
    ) -> None:
        self.received = self.unusable = self.failed = 0
        self.problem: str | None = None
        self.lines: list[dict[str, Any]] = []
        self.records: list[Record] = []
        self.timings: list[dict[str, float]] = []
        self.ages: list[tuple[float, float]] = []
        self.stale: list[int] = []
        self.unchanged: list[int] = []
        self._answerer, self._settings = answerer, answerer.settings
        self._reader, self._info_topic = reader, info_topic
        self._is_timed, self._latency = is_timed, latency
        self._plans, self._on_frame = plans, on_frame
        self._calibrations: list[tuple[int, CameraCalibration | None]] = []
        if self._settings.needs_camera_info:
            self._calibrations = read_calibrations(reader, info_topic)
        self._seen: NDArray[np.float32] | None = None

    def frames(
        self, topic: str, truth_topic: str, progress: Callable[[int], object]
    ) -> Iterator[BagFrame]:
        """Yield a topic's frames as far as they can be used; then `problem` says why no further.

        `progress` is called with the number of frames that are done with.
        """
        family = self._answerer.planner.family
        try:
            for frame in read_frames(self._reader, topic, truth_topic):
                if frame.truth is not None and frame.truth.state.family != family:
                    raise BagError(
                        f"{self._reader.path}: frame {self.received} shows a "
                        f"{frame.truth.state.family} state, but plans for {family} were asked for"
                    )
                if self._plans is not None:
                    self._plans.add_image(frame)
                yield frame
                self.received += 1
                progress(self.received)
        except BagError as error:
            self.problem = str(error)

    def work(self, index: int, frame: BagFrame, began: int) -> int:
        """Plan on a frame that the planner takes at the time `began` [ns] of the bag's clock.

        Returns:
            How long the planner is busy with it [ns]; 0 without such a clock.
        """
        age = (began - frame.header.nanoseconds) * 1e-9
        if self._is_timed and 0 < self._settings.max_frame_age < age:
            self.stale.append(index)
            return 0
        started = perf_counter()
        planner, header, rgb, response = self._answerer.planner, frame.header, None, None
        is_usable = True
        try:
            rgb = self._answerer.picture(frame.image, self._calibration(began), self._info_topic)
            if self._is_timed and self._is_unchanged(rgb):
                self.unchanged.append(index)
                return self._busy(perf_counter() - started, has_planned=False)
            response = planner.plan(rgb)
            least = self._settings.min_confidence
            answer = self._answerer.answer(response, header, least)
        except NOT_USABLE as error:
            self.unusable += 1
            is_usable = False
            answer = failure_to_dict(not_usable(error), header, planner)
        except Exception as error:
            # As in the node: whatever the engine says about this frame, the next may be better.
            self._seen = None
            self.failed += 1
            answer = failure_to_dict(planning_failed(error), header, planner)
        seconds = perf_counter() - started
        busy = self._busy(seconds, has_planned=is_usable)
        self.timings.append({**answer.pop("timings"), "frame": seconds})
        waited = (began - frame.received) * 1e-9
        self.ages.append((waited, waited + busy * 1e-9))
        if self._plans is not None and is_usable:
            # Without timings, for a bag that is the same every time.
            sent = answer | {"timings": {}}
            shown = None if response is None else rgb
            self._plans.add_answer(sent, header, began + busy, shown)
        record = _judge(index, frame, response, answer["error"])
        if record is not None:
            self.records.append(record)
        line = answer | {"index": index} | _truth(frame, record)
        self.lines.append(line)
        if response is not None and rgb is not None and self._on_frame is not None:
            self._on_frame(index, rgb, line)
        return busy

    def _busy(self, seconds: float, has_planned: bool) -> int:
        """Return how long [ns] the planner is busy with a frame that has taken so many seconds."""
        if not self._is_timed:
            return 0
        if self._latency is None:
            return round(1e9 * seconds)
        return round(1e9 * self._latency) if has_planned else 0

    def _calibration(self, now: int) -> CameraCalibration | None:
        """Return what the newest CameraInfo at a time [ns] says."""
        before = bisect_right(self._calibrations, now, key=lambda known: known[0])
        return self._calibrations[before - 1][1] if before else None

    def _is_unchanged(self, rgb: NDArray[np.uint8]) -> bool:
        threshold = self._settings.change_threshold
        if not threshold:
            return False
        seen = summary(rgb)
        if self._seen is not None and difference(seen, self._seen) <= threshold:
            return True
        self._seen = seen
        return False


def _judge(
    index: int, frame: BagFrame, response: Response | None, error: str | None
) -> Record | None:
    """Judge what the node would publish: a plan that is refused, an `error`, is none."""
    if frame.truth is None:
        return None
    state, plan, text = (
        (None, None, "") if response is None else (response.state, response.plan, response.text)
    )
    failed = NO_ANSWER if response is None else UNPARSABLE if plan is None else REFUSED
    parsed = ParsedResponse(state, plan if error is None else None, error)
    truth = frame.truth
    return score(f"frame-{index}", truth.state, truth.plan, parsed, text, failed)


def _truth(frame: BagFrame, record: Record | None) -> dict[str, Any]:
    if frame.truth is None or record is None:
        return {"true_state": None, "record": None}
    judged = record_dict(record)
    del judged["text"]  # the answer has it
    return {"true_state": state_to_dict(frame.truth.state), "record": judged}
