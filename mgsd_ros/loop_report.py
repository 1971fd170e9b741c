"""What came of closed loops against open loop and the optimum; by family, level, macro."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from mgsd_core.evaluation.summary import aligned
from mgsd_ros.closed_loop import Attempt, Run

#: Averaged measures of attempts.
MEASURES = ("success", "spl", "extra_steps")


def summarise(rows: Iterable[tuple[str, int, int, Attempt]]) -> dict[str, Any]:
    """Average attempts: by level, then over the levels of a family, then over families (macro).

    Args:
        rows: family, level, optimum and attempt of each scene.

    Returns:
        `{"macro": {...}, "families": {family: {..., "levels": {level: {...}}}}, "count": N}`; every
        `{...}` holds `success`, `spl` (success weighted by optimum over steps), `extra_steps` (mean
        steps of the successes beyond the optimum; None without one) and, by level, `count`.
    """
    groups: dict[str, dict[int, list[tuple[int, Attempt]]]] = {}
    for family, level, optimum, attempt in rows:
        groups.setdefault(family, {}).setdefault(level, []).append((optimum, attempt))
    families: dict[str, Any] = {}
    for family, by_level in sorted(groups.items()):
        levels = {str(level): _level(by_level[level]) for level in sorted(by_level)}
        families[family] = {**_average(list(levels.values())), "levels": levels}
    count = sum(len(attempts) for by_level in groups.values() for attempts in by_level.values())
    return {"macro": _average(list(families.values())), "families": families, "count": count}


def report(runs: Sequence[tuple[str, int, Run]]) -> dict[str, Any]:
    """Return the summaries of runs, each with its family and level, as `results.json` has them."""
    ways = {
        way: summarise(
            (family, level, run.optimum, getattr(run, way)) for family, level, run in runs
        )
        for way in ("closed_loop", "open_loop")
    }
    failures: dict[str, int] = {}
    for _, _, run in runs:
        if run.closed_loop.failure is not None:
            failures[run.closed_loop.failure] = failures.get(run.closed_loop.failure, 0) + 1
    waits = [seconds for _, _, run in runs for seconds in run.seconds]
    return ways | {
        "failures": dict(sorted(failures.items())),
        "plans": len(waits),
        "actions": sum(len(run.actions) for _, _, run in runs),
        "open_loop_steps": sum(run.open_loop_steps for _, _, run in runs),
        "kept_steps": sum(run.kept_steps for _, _, run in runs),
        "seconds_per_plan": {
            "median": statistics.median(waits),
            "p95": float(np.percentile(waits, 95)),
        },
    }


def table(results: dict[str, Any]) -> str:
    """Return closed and open loop side by side as text for people."""
    families = sorted(results["closed_loop"]["families"])
    lines = [["", "success %", "SPL %", "extra steps", *(f"{f} success %" for f in families)]]
    for way in ("closed_loop", "open_loop"):
        summary = results[way]
        macro, extra = summary["macro"], summary["macro"]["extra_steps"]
        shares = [summary["families"][family]["success"] for family in families]
        lines.append(
            [
                way.replace("_", " "),
                *(f"{100 * macro[measure]:.1f}" for measure in ("success", "spl")),
                "–" if extra is None else f"{extra:.2f}",
                *(f"{100 * share:.1f}" for share in shares),
            ]
        )
    return aligned(lines)


def run_dict(run: Run) -> dict[str, Any]:
    """Return a run as plain data for JSON lines: the closed loop's fields are the line's own."""
    data = asdict(run)
    return data.pop("closed_loop") | data


def _level(attempts: list[tuple[int, Attempt]]) -> dict[str, Any]:
    done = [(optimum, attempt.steps) for optimum, attempt in attempts if attempt.success]
    return {
        "success": len(done) / len(attempts),
        "spl": sum(optimum / steps for optimum, steps in done) / len(attempts),
        "extra_steps": sum(steps - optimum for optimum, steps in done) / len(done)
        if done
        else None,
        "count": len(attempts),
    }


def _average(groups: list[dict[str, Any]]) -> dict[str, Any]:
    averaged: dict[str, Any] = {}
    for name in MEASURES:
        values = [group[name] for group in groups if group[name] is not None]
        averaged[name] = sum(values) / len(values) if values else None
    return averaged
