"""Plans on every frame of a bag and judges the plans; the same bag and bundle give the same files.

Unlike a node on a replayed bag, no frame is ever dropped and no clock is read: only the timings,
which have a file of their own, differ from run to run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mgsd_core.evaluate import Record, record_dict, score, summarise
from mgsd_core.prompts import ParsedResponse
from mgsd_core.runtime import ImageError, Planner, Response
from mgsd_ros.answers import answer_to_dict, failure_to_dict, to_json
from mgsd_ros.bags import BagError, BagFrame, count_frames, open_bag, read_frames
from mgsd_ros.conversions import ConversionError, rgb_from_image
from sim import state_to_dict
from sim.files import write_file

SCHEMA_VERSION = 1


def evaluate_bag(
    planner: Planner,
    bag: Path,
    topic: str,
    out: Path,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> dict[str, Any]:
    """Plan on all frames of a bag's topic and write what came of it into the directory `out`.

    frames.jsonl holds a line for every frame: the answer (`mgsd_ros.answers`, without timings),
    `index`, `true_state`, and `record`, the plan judged by the true state; both null in a bag that
    does not say what is true. results.json holds the summary, timings.json the seconds.

    Args:
        planner: what plans.
        bag: sqlite3 or mcap.
        topic: of sensor_msgs/Image.
        out: made when missing; its files of an earlier run are replaced once all frames are done.
        progress: called with the number of frames done and that of all frames.

    Returns:
        What results.json holds, and `stages`, the times. results.json: `frames`, `unusable`
        (images that cannot be planned on; with a known truth they count as failed),
        `by_recovered_state` (shares of all frames that the model's own state calls legal and
        successful), and what `mgsd_core.evaluate.summarise` says of the `count` frames whose
        truth is known.

    Raises:
        BagError: the bag cannot be read, has no images on the topic, or shows another family.
        OSError: a file cannot be written.
    """
    lines: list[dict[str, Any]] = []
    timings: list[dict[str, float]] = []
    records: list[Record] = []
    with open_bag(bag) as reader:
        total = count_frames(reader, bag, topic)
        for index, frame in enumerate(read_frames(reader, bag, topic)):
            if frame.truth is not None and frame.truth.state.family != planner.family:
                raise BagError(
                    f"{bag}: frame {index} shows a {frame.truth.state.family} state, "
                    f"but plans for {planner.family} were asked for"
                )
            answer, response = _plan(planner, frame)
            timings.append(answer.pop("timings"))
            record = _judge(frame, response, answer["error"])
            if record is not None:
                records.append(record)
            lines.append(answer | {"index": index} | _truth(frame, record))
            progress(index + 1, total)
    summary = {
        "schema_version": SCHEMA_VERSION,
        "bag": bag.name,
        "topic": topic,
        "family": planner.family,
        "bundle": planner.bundle_digest,
        "backend": planner.backend,
        "frames": len(lines),
        "unusable": sum(line["verdict"] is None for line in lines),
        "by_recovered_state": {name: _share(lines, name) for name in ("legal", "success")},
        **summarise(records),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / "frames.jsonl", "".join(to_json(line) + "\n" for line in lines))
    write_file(out / "timings.json", _indented({"stages": stage_times(timings), "frames": timings}))
    write_file(out / "results.json", _indented(summary))
    return summary | {"stages": stage_times(timings)}


def stage_times(timings: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return {stage: {"median", "p95", "max"}} [s] over frames."""
    stages: dict[str, list[float]] = {}
    for frame in timings:
        for stage, seconds in frame.items():
            stages.setdefault(stage, []).append(seconds)
    return {
        stage: {
            "median": float(np.median(seconds)),
            "p95": float(np.percentile(seconds, 95)),
            "max": max(seconds),
        }
        for stage, seconds in stages.items()
    }


def _plan(planner: Planner, frame: BagFrame) -> tuple[dict[str, Any], Response | None]:
    try:
        response = planner.plan(rgb_from_image(frame.image))
    except (ConversionError, ImageError) as error:
        return failure_to_dict(f"image not usable: {error}", frame.header, planner), None
    return answer_to_dict(response, frame.header, planner), response


def _judge(frame: BagFrame, response: Response | None, error: str | None) -> Record | None:
    if frame.truth is None:
        return None
    state, plan, text = (
        (None, None, "") if response is None else (response.state, response.plan, response.text)
    )
    parsed = ParsedResponse(state, plan, error)
    return score(frame.truth.state, len(frame.truth.plan), parsed, text)


def _truth(frame: BagFrame, record: Record | None) -> dict[str, Any]:
    if frame.truth is None or record is None:
        return {"true_state": None, "record": None}
    judged = record_dict(record)
    del judged["text"]  # the answer has it
    return {"true_state": state_to_dict(frame.truth.state), "record": judged}


def _share(lines: list[dict[str, Any]], measure: str) -> float:
    good = sum(line["verdict"] is not None and line["verdict"][measure] for line in lines)
    return good / len(lines)


def _indented(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=2, sort_keys=True, allow_nan=False) + "\n"
