"""The evaluation of a bag as a page: what went well, what did not, when, and in pictures."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mgsd_core.evaluation.summary import in_percent
from mgsd_core.html import picture_url, render
from mgsd_ros.overlay import draw_answer
from sim.files import write_file

#: Most pictures on a page; of more frames the failures come first, then some of the others.
MOST_PICTURES = 120

#: Width of the pictures on a page [px].
PICTURE_WIDTH = 280

# In the order of a frame's way.
_STAGES = ("preprocess", "vision", "prefill", "decode", "check", "total", "frame")

# The chart's sides, and where its line may be, in units of the drawing.
_WIDTH, _HEIGHT, _TOP, _BOTTOM = 1000, 116, 36, 114

# Most bars of the chart; several frames share one beyond that, and the worst of them shows.
_MOST_BARS = 500

_MOST_REASONS = 12


@dataclass(frozen=True, slots=True)
class _Kind:
    """What became of a frame."""

    name: str
    tone: str
    with_truth: str
    without_truth: str


_SUCCESS = _Kind("success", "good", "achieves the task", "achieves the task in the state seen")
_FAILED = _Kind("failed", "bad", "fails in the true state", "does not achieve it in the state seen")
_REFUSED = _Kind("refused", "poor", "not to be followed", "not to be followed")
_UNUSABLE = _Kind("unusable", "none", "no answer", "no answer")
_KINDS = (_SUCCESS, _FAILED, _REFUSED, _UNUSABLE)


class Thumbnails:
    """Keeps small pictures of the frames that a page would show, however many frames there are.

    Failures are kept up to half of `MOST_PICTURES`, of the others every first, second, fourth, …
    """

    def __init__(self) -> None:
        self._failures: dict[int, str] = {}
        self._others: dict[int, str] = {}
        self._every = 1

    @property
    def urls(self) -> dict[int, str]:
        """Data URLs by index of the frame."""
        return self._failures | self._others

    def add(self, index: int, rgb: NDArray[np.uint8], line: Mapping[str, Any]) -> None:
        """Look at a frame that was planned on; `mgsd_ros.bag_run.OnFrame`."""
        most = MOST_PICTURES // 2
        if _kind(line) is not _SUCCESS:
            if len(self._failures) < most:
                self._failures[index] = picture_url(draw_answer(rgb, line), PICTURE_WIDTH)
        elif index % self._every == 0:
            self._others[index] = picture_url(draw_answer(rgb, line), PICTURE_WIDTH)
            if len(self._others) > most:
                self._every *= 2
                self._others = {i: u for i, u in self._others.items() if i % self._every == 0}


def write_report(out: Path, thumbnails: Thumbnails) -> None:
    """Write report.html beside the results that `mgsd_ros.bag_evaluate.evaluate_bag` left in `out`.

    Raises:
        OSError: a file cannot be read or written.
    """
    summary, timings = (
        json.loads((out / name).read_text()) for name in ("summary.json", "timings.json")
    )
    lines = [json.loads(line) for line in (out / "frames.jsonl").read_text().splitlines()]
    write_file(out / "report.html", bag_report(summary, lines, timings, thumbnails.urls))


def bag_report(
    summary: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]],
    timings: Mapping[str, Any],
    pictures: Mapping[int, str],
) -> str:
    """Return the page, self-contained HTML. The same arguments give the same bytes.

    Args:
        summary, lines, timings: what summary.json, frames.jsonl and timings.json hold; see
            `mgsd_ros.bag_evaluate.evaluate_bag`.
        pictures: data URLs by a line's `index`; see `Thumbnails`.
    """
    has_truth = any(line["record"] is not None for line in lines)
    labels = {kind: kind.with_truth if has_truth else kind.without_truth for kind in _KINDS}
    kinds = [_kind(line) for line in lines]
    counts = Counter(kinds)
    cards = [
        {
            "index": line["index"],
            "url": pictures[line["index"]],
            "kind": kind,
            "label": labels[kind],
            "confidence": line["confidence"],
            "says": _says(line),
        }
        for line, kind in zip(lines, kinds, strict=True)
        if line["index"] in pictures
    ]
    reasons = Counter(_without_numbers(reason) for line in lines if (reason := _reason(line)))
    most = reasons.most_common(_MOST_REASONS)
    if others := reasons.total() - sum(count for _, count in most):
        most.append(("others", others))
    stamps = [line["stamp"]["sec"] + 1e-9 * line["stamp"]["nanosec"] for line in lines]
    return render(
        "mgsd_ros/bag_report.html",
        summary=summary,
        duration=max(stamps) - min(stamps),
        tiles=_tiles(summary, timings["stages"], has_truth),
        chart=_chart(lines, kinds, labels, [times["frame"] for times in timings["frames"]]),
        kinds=[(kind, labels[kind], counts[kind]) for kind in _KINDS if counts[kind]],
        reasons=most,
        stages={name: timings["stages"][name] for name in _STAGES if name in timings["stages"]},
        shown=(
            "Each with its plan, as the model saw it."
            if len(cards) == len(lines)
            else f"{len(cards)} of {len(lines)}, each with its plan, as the model saw it."
        ),
        in_gallery={card["kind"] for card in cards},
        cards=cards,
        provenance=json.dumps(summary, indent=2, sort_keys=True),
    )


def _kind(line: Mapping[str, Any]) -> _Kind:
    verdict, record = line["verdict"], line["record"]
    if verdict is None:
        return _UNUSABLE
    if line["error"] is not None:
        return _REFUSED
    return _SUCCESS if (verdict if record is None else record)["success"] else _FAILED


def _reason(line: Mapping[str, Any]) -> str | None:
    """Return why a frame is none of the good ones; None of one that is."""
    if line["error"] is not None:
        return str(line["error"])
    judged = line["verdict"] if line["record"] is None else line["record"]
    if judged["success"]:
        return None
    where = "in the state that the model sees" if line["record"] is None else "in the true state"
    return f"the plan fails {where}: {judged['failure']}"


def _without_numbers(reason: str) -> str:
    """Return a reason without what differs from frame to frame: cells, shares, seconds."""
    return re.sub(r"\d+(\.\d+)?", "…", reason)


def _says(line: Mapping[str, Any]) -> str:
    plan = " ".join(line["actions"] or ["no plan"])
    reason = _reason(line)
    return plan if reason is None else f"{plan} – {reason}"


def _tiles(
    summary: Mapping[str, Any], stages: Mapping[str, Mapping[str, float]], has_truth: bool
) -> list[tuple[str, str, str]]:
    """Return the figures on top: name, value, and what it is about."""
    seen, stable = summary["by_recovered_state"], summary["stability"]
    tiles = []
    if has_truth:
        macro = summary["macro"]
        tiles += [
            ("success", in_percent(macro["success"]), f"of {summary['count']} frames, true state"),
            ("state recovered", in_percent(macro["state"]), "wholly right"),
        ]
    dropped = sum(map(len, summary["dropped"].values()))
    tiles += [
        (
            "by its own state",
            in_percent(seen["success"]),
            f"succeed; {in_percent(seen['legal'])} are legal",
        ),
        ("stable plans", in_percent(stable["plan"]), f"state {in_percent(stable['state'])}"),
        ("frame to plan", _ms(stages["frame"]["median"]), f"95 %: {_ms(stages['frame']['p95'])}"),
        ("frames", str(summary["frames"]), f"of {summary['received']}; {dropped} passed over"),
        ("no answer", str(summary["unusable"] + summary["failed"]), "image or engine at fault"),
    ]
    if summary["ages"] is not None:
        ages = summary["ages"]
        came = f"at the plan {_ms(ages['came']['median'])}, at most {_ms(ages['came']['max'])}"
        tiles.append(("age of the frame", _ms(ages["began"]["median"]), came))
    return tiles


def _chart(
    lines: Sequence[Mapping[str, Any]],
    kinds: Sequence[_Kind],
    labels: Mapping[_Kind, str],
    seconds: Sequence[float],
) -> dict[str, Any]:
    """Return a bar for every frame, or for several, and the line of their times."""
    each = -(-len(lines) // _MOST_BARS)
    groups = [range(i, min(i + each, len(lines))) for i in range(0, len(lines), each)]
    width = _WIDTH / len(groups)
    highest = max(seconds)
    bars, line = [], []
    for place, group in enumerate(groups):
        worst = max((kinds[i] for i in group), key=_WORSE.index)
        first, last = lines[group[0]]["index"], lines[group[-1]]["index"]
        which = f"frame {first}" if first == last else f"frames {first} to {last}"
        bars.append(
            {
                "tone": worst.tone,
                "x": _number(place * width),
                "width": _number(max(0.5, width - (1 if width > 4 else 0))),
                "says": f"{which}: {labels[worst]}",
            }
        )
        height = (_BOTTOM - _TOP) * max(seconds[i] for i in group) / highest
        line.append(f"{_number((place + 0.5) * width)},{_number(_BOTTOM - height)}")
    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "bottom": _BOTTOM,
        "bars": bars,
        "line": " ".join(line),
        "highest": _ms(highest),
    }


# Which of several frames' kinds shows.
_WORSE = (_SUCCESS, _UNUSABLE, _REFUSED, _FAILED)


def _number(value: float) -> str:
    return f"{value:.1f}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.{1 if seconds < 0.1 else 0}f} ms"
