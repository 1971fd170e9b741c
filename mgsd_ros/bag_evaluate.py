"""Plans on the frames of a bag as the node would and judges the plans.

Every frame is planned on and no clock is read (`EVERY_FRAME`), or those that a node would get to
while its planner is busy (`LATENCY_AWARE`). The same bag, bundle, parameters and program give the
same files to the byte, apart from timings.json; where planning takes as long as it takes, it
decides which frames are planned on.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.typesys import Stores

from mgsd_core.evaluation.summary import summarise
from mgsd_core.installed import package_version
from mgsd_ros.answers import to_json
from mgsd_ros.bag_digests import bag_digest, code_digest
from mgsd_ros.bag_parameters import parameters_to_dict
from mgsd_ros.bag_places import check_places
from mgsd_ros.bag_plans import PlansTo, new_plans_bag
from mgsd_ros.bag_run import BagRun, OnFrame
from mgsd_ros.bag_schedule import take_every, take_newest
from mgsd_ros.bags import (
    TRUTH_TOPIC,
    TYPESTORE,
    BagError,
    count_frames,
    image_type,
    info_topic_of,
    open_bag,
)
from mgsd_ros.frame_answer import FrameAnswerer
from sim.files import write_file

SCHEMA_VERSION = 2

EVERY_FRAME, LATENCY_AWARE = "every-frame", "latency-aware"


def evaluate_bag(
    answerer: FrameAnswerer,
    bag: Path,
    topic: str,
    out: Path,
    *,
    info_topic: str | None = None,
    truth_topic: str = TRUTH_TOPIC,
    typestore: Stores = TYPESTORE,
    mode: str = EVERY_FRAME,
    latency: float | None = None,
    plans: PlansTo | None = None,
    on_frame: OnFrame | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> dict[str, Any]:
    """Plan on a bag's images and write what came of it into the directory `out`.

    frames.jsonl holds a line for every frame that the planner took: the answer
    (`mgsd_ros.answers`, without timings), `index` in the bag, `true_state`, and `record`, the plan
    judged by the true state; both null where the bag does not say what is true. summary.json holds
    what is returned but for `stages` and `errors`; timings.json the seconds.

    In `LATENCY_AWARE` mode the clock is that of the times of receipt. `max_rate`,
    `change_threshold` and `max_frame_age` act as in the node; `EVERY_FRAME` passes over them.

    Args:
        answerer: what plans.
        bag: sqlite3 or mcap. Of one that is damaged or cut off what comes before is evaluated.
        topic: of sensor_msgs/Image or sensor_msgs/CompressedImage.
        out: made when missing; its files of an earlier run are replaced at the end.
        info_topic: of sensor_msgs/CameraInfo, read where the parameters ask for it; None: the topic
            `camera_info` beside that of the images. A frame is seen by the newest before it.
        truth_topic: see `mgsd_ros.bags.read_frames`.
        typestore: definitions of types that the bag itself does not define.
        mode: `EVERY_FRAME` or `LATENCY_AWARE`.
        latency: how long a plan takes [s] in `LATENCY_AWARE` mode; None: as long as it takes.
        plans: a bag that is written as well.
        on_frame: called for every plan with the frame's index, the picture uint8 [H, W, 3] that was
            planned on, and the line of frames.jsonl.
        progress: called with the number of frames done and that of all frames.

    Returns:
        `complete`, and `problem`: why the bag could not be read to its end, else None; `note`: what
        else there is to be said about the bag, else None;
        `received`: frames read; `dropped`: the indices of those that the planner did not take,
        `replaced` by a newer one, `stale` or `unchanged`; `frames`: those that it took, of them
        `unusable` (images that cannot be planned on) and `failed` (the engine did); with a known
        truth both count as failed plans; `by_recovered_state`: shares of `frames` that the model's
        own state calls legal and successful; `stability`: of `pairs` of planned frames, one after
        the other and with the same true state where that is known, the shares with the same
        recovered `state` and the same `plan`; `ages` [s] of frames when planning began and when the
        plan came, None in `EVERY_FRAME` mode; `digests`, `version` and `parameters` that it all
        depends on; what `mgsd_core.evaluation.summary.summarise` says of the `count` frames whose
        truth is known; `stages`, the times {stage: {"median", "p95", "max"}} [s]; and `errors`,
        those of the frames with how often there were any, the most frequent first.

    Raises:
        BagError: not one frame can be read: no bag, no images on the topic, no camera_info where
            it is needed, another family's truth; or all are passed over; or results or plans would
            take the bag's place. Nothing is written then.
        OSError: a file cannot be written.
    """
    is_timed = mode == LATENCY_AWARE
    check_places(bag, out, None if plans is None else plans.path)
    with ExitStack() as stack:
        reader = stack.enter_context(open_bag(bag, typestore))
        image_type(reader, topic)
        total = count_frames(reader, topic)
        digest = bag_digest(bag)
        plans_bag = None
        if plans is not None:
            plans_bag = stack.enter_context(
                new_plans_bag(plans, reader, topic, answerer.settings.grid())
            )
        info_topic = info_topic or info_topic_of(topic)
        run = BagRun(answerer, reader, info_topic, is_timed, latency, plans_bag, on_frame)
        frames = run.frames(topic, truth_topic, lambda done: progress(done, total))
        # Otherwise the number of passes for the first frame depends on what was planned before.
        answerer.warm_up()
        if is_timed:
            rate = answerer.settings.max_rate
            replaced = take_newest(frames, run.work, round(1e9 / rate) if rate else 0)
        else:
            replaced = take_every(frames, run.work)
        dropped = {"replaced": replaced, "stale": run.stale, "unchanged": run.unchanged}
        if not run.lines:
            limit = answerer.settings.max_frame_age
            raise BagError(run.problem or f"{bag}: {_passed_over(run.received, dropped, limit)}")
    planner = answerer.planner
    stages = stage_times(run.timings)
    summary = {
        "schema_version": SCHEMA_VERSION,
        "bag": bag.name,
        "topic": topic,
        "truth_topic": truth_topic,
        "family": planner.family,
        "bundle": planner.bundle_digest,
        "backend": planner.backend,
        "complete": run.problem is None,
        "problem": run.problem,
        "note": reader.note or None,
        "mode": mode,
        "latency": latency,
        "received": run.received,
        "dropped": dropped,
        "frames": len(run.lines),
        "unusable": run.unusable,
        "failed": run.failed,
        "by_recovered_state": {name: _share(run.lines, name) for name in ("legal", "success")},
        "stability": stability(run.lines),
        "ages": _ages(run.ages) if is_timed and run.ages else None,
        "digests": {
            "bag": digest,
            "bundle": planner.bundle_digest,
            "code": code_digest(),
        },
        "version": package_version(),
        "parameters": parameters_to_dict(answerer.settings),
        **summarise(run.records),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / "frames.jsonl", "".join(to_json(line) + "\n" for line in run.lines))
    write_file(out / "timings.json", _indented({"stages": stages, "frames": run.timings}))
    write_file(out / "summary.json", _indented(summary))
    errors = Counter(line["error"] for line in run.lines if line["error"] is not None)
    return summary | {"stages": stages, "errors": errors.most_common()}


def _passed_over(received: int, dropped: dict[str, list[int]], max_age: float) -> str:
    words = {
        "stale": f"older than max_frame_age ({max_age:g} s) by their stamps",
        "replaced": "replaced by a newer one",
        "unchanged": "unchanged",
    }
    why = ", ".join(f"{len(dropped[name])} {says}" for name, says in words.items() if dropped[name])
    return f"none of {received} frames was planned on: {why}"


def stage_times(timings: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return {stage: {"median", "p95", "max"}} [s] over frames."""
    stages: dict[str, list[float]] = {}
    for frame in timings:
        for stage, seconds in frame.items():
            stages.setdefault(stage, []).append(seconds)
    return {stage: _spread(seconds) for stage, seconds in stages.items()}


def stability(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how often the answer stays while the scene does.

    Args:
        lines: of frames.jsonl.

    Returns:
        `pairs`: frames with a response, each with the next such, that show the same true state, or
        of which nobody knows it; `state`, `plan`: shares of these in which the same was recovered
        and planned; None where there are no pairs.
    """
    planned = [line for line in lines if line["verdict"] is not None]
    pairs = [(a, b) for a, b in pairwise(planned) if a["true_state"] == b["true_state"]]

    def share(name: str) -> float | None:
        same = sum(a[name] is not None and a[name] == b[name] for a, b in pairs)
        return same / len(pairs) if pairs else None

    return {"pairs": len(pairs), "state": share("state"), "plan": share("actions")}


def _ages(ages: list[tuple[float, float]]) -> dict[str, dict[str, float]]:
    began, came = zip(*ages, strict=True)
    return {"began": _spread(began), "came": _spread(came)}


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    return {
        "median": float(np.median(seconds)),
        "p95": float(np.percentile(seconds, 95)),
        "max": max(seconds),
    }


def _share(lines: list[dict[str, Any]], measure: str) -> float | None:
    good = sum(line["verdict"] is not None and line["verdict"][measure] for line in lines)
    return good / len(lines) if lines else None


def _indented(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=2, sort_keys=True, allow_nan=False) + "\n"
