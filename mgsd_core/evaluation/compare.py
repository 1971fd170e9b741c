"""Two evaluations of the same scenes, compared scene by scene."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mgsd_core.evaluation.intervals import paired
from mgsd_core.evaluation.results import Results
from mgsd_core.evaluation.score import Record
from mgsd_core.evaluation.summary import aligned, percent

#: What is compared: the first of these says which model plans better, the others why.
COMPARED = ("success", "optimal", "progress", "legal", "state")


class CompareError(ValueError):
    """Results that cannot be compared; the message says why."""


def compare(first: Results, second: Results, source: str = "image") -> dict[str, Any]:
    """Compare two models on the scenes that both have answered.

    Args:
        first, second: results; differences are the second's average minus the first's.
        source: what both have read, one of `results.SOURCES`.

    Returns:
        `first`, `second` (`model` and `model_digest`), `input`, `count` of common scenes,
        `left_out` (scenes that only one of them has), `other_pictures` (scenes of which they saw
        different pictures, as of another renderer), `macro` and `families` (with `levels`), each
        with what `intervals.paired` says by measure of `COMPARED` and both averages; and `changed`:
        the names of the scenes that `only_first` or `only_second` succeeds on.

    Raises:
        CompareError: one of them has not read that, or they have no scene in common, or one of the
            same name that is another.
    """
    ours, theirs = _by_scene(first, source), _by_scene(second, source)
    common = [scene for scene in ours if scene in theirs]
    if not common:
        raise CompareError(f"{first.path} and {second.path} have no scene in common")
    for scene in common:
        if first.states[scene] != second.states[scene]:
            raise CompareError(
                f"{scene} is another scene in {second.path} than in {first.path}: evaluate both on "
                "the same data"
            )
    pairs = [(ours[scene], theirs[scene]) for scene in common]
    return {
        "first": _about(first),
        "second": _about(second),
        "input": source,
        "count": len(common),
        "left_out": {"first": len(ours) - len(common), "second": len(theirs) - len(common)},
        "other_pictures": 0 if source == "text" else _other_pictures(first, second, common),
        **paired(pairs, COMPARED),
        "changed": {
            "only_first": [a.scene for a, b in pairs if a.success and not b.success],
            "only_second": [a.scene for a, b in pairs if b.success and not a.success],
        },
    }


def comparison_table(compared: Mapping[str, Any]) -> str:
    """Return a comparison as text for people: success in percent, and what changed."""
    lines = [
        ["success %", "first", "second", "difference", "95 % interval", "only 1st", "only 2nd"]
    ]
    rows = [("macro", compared["macro"])]
    for family, told in compared["families"].items():
        rows.append((family, told))
        rows += [(f"{family} {level}", found) for level, found in told["levels"].items()]
    for title, told in rows:
        lines.append([title, *_cells(told["success"])])
    others = [["macro %", "first", "second", "difference", "95 % interval"]]
    for measure in COMPARED[1:]:
        others.append([measure, *_cells(compared["macro"][measure])[:4]])
    whole = compared["macro"]["success"]
    said = [
        f"{compared['count']} scenes, read as {compared['input']}. McNemar's exact test, every "
        f"scene of the same weight: {whole['only_first']} to {whole['only_second']}, "
        f"p = {whole['p']:.3g}."
    ]
    left_out = compared["left_out"]
    if any(left_out.values()):
        said.append(f"Left out, as only one has them: {left_out['first']}, {left_out['second']}.")
    if compared["other_pictures"]:
        said.append(
            f"Not the same pictures in {compared['other_pictures']} scenes: part of the difference "
            "may be theirs, not the models'."
        )
    return "\n\n".join([aligned(lines), aligned(others), "\n".join(said)])


def _other_pictures(first: Results, second: Results, scenes: list[str]) -> int:
    pairs = [(first.pictures.get(scene), second.pictures.get(scene)) for scene in scenes]
    return sum(None not in pair and pair[0] != pair[1] for pair in pairs)


def _by_scene(results: Results, source: str) -> dict[str, Record]:
    if source not in results.records:
        raise CompareError(
            f"{results.path} has no responses to {source}; it has: {', '.join(results.records)}"
        )
    return {record.scene: record for record in results.records[source]}


def _about(results: Results) -> dict[str, Any]:
    return {name: results.report.get(name) for name in ("model", "model_digest")}


def _cells(told: Mapping[str, Any]) -> list[str]:
    low, high = (f"{100 * edge:+.1f}" for edge in told["interval"])
    return [
        percent(told["first"]),
        percent(told["second"]),
        f"{100 * told['difference']:+.1f}",
        f"[{low}, {high}]",
        str(told.get("only_first", "")),
        str(told.get("only_second", "")),
    ]
