"""Judged responses as averages: by level, over a family's levels, and over families (macro)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mgsd_core.evaluation.score import Record

#: Measures of a record that are averaged.
MEASURES = ("success", "optimal", "progress", "spl", "legal", "parsed", "state")

#: Averages over some of the records alone, see `conditional`.
CONDITIONAL = ("success_given_state", "consistent")

# Columns of the table for people.
_COLUMNS = ("success", "optimal", "progress", "legal", "state")

Groups = dict[str, dict[int, list[Record]]]


def summarise(records: Iterable[Record]) -> dict[str, Any]:
    """Average records.

    Returns:
        `{"macro": {…}, "families": {family: {…, "levels": {level: {…}}}}, "count": N}`; every
        `{…}` holds the `MEASURES` and the `CONDITIONAL` averages (None where there is nothing to
        average) and, by level, `fields` (share of states in which a field was recovered),
        `failures` (responses by failure and cause) and `count`.
    """
    groups = by_level(records)
    families: dict[str, Any] = {}
    for family, levels in groups.items():
        of_levels = {str(level): _level(found) for level, found in levels.items()}
        families[family] = {**_average(list(of_levels.values())), "levels": of_levels}
    count = sum(len(found) for levels in groups.values() for found in levels.values())
    return {"macro": _average(list(families.values())), "families": families, "count": count}


def by_level(records: Iterable[Record]) -> Groups:
    """Return records by family and level, both sorted."""
    groups: Groups = {}
    for record in sorted(records, key=lambda record: (record.family, record.level)):
        groups.setdefault(record.family, {}).setdefault(record.level, []).append(record)
    return groups


def conditional(name: str, records: Sequence[Record]) -> list[bool]:
    """Return the values that one of the `CONDITIONAL` averages is of.

    `success_given_state` is success where the state was recovered; `consistent` whether the plan
    succeeds in the state that the model itself described, where it described one.
    """
    if name == "success_given_state":
        return [r.success for r in records if r.state]
    return [r.consistent for r in records if r.consistent is not None]


def table(rows: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Return summaries side by side as text for people: a row each, in percent.

    Macro success has its interval where the summary holds one (`intervals.add_intervals`).
    """
    names = sorted({f for _, summary in rows for f in summary["families"]})
    head = ["", *(f"{m} %" for m in _COLUMNS), *(f"{n} success %" for n in names)]
    lines = [head]
    for title, summary in rows:
        cells = [percent(summary["macro"][m]) for m in _COLUMNS]
        if "intervals" in summary["macro"]:
            cells[0] += " [{}, {}]".format(*map(percent, summary["macro"]["intervals"]["success"]))
        cells += [percent(summary["families"].get(n, {}).get("success")) for n in names]
        lines.append([title, *cells])
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells as a text table: the first line is its head, numbers to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def percent(share: float | None) -> str:
    """Return a share of 1 in percent, such as `91.1`; `–` where there is none."""
    return "–" if share is None else f"{100 * share:.1f}"


def in_percent(share: float | None) -> str:
    """Return a share of 1 in percent with its sign, such as `91.1 %`; `–` where there is none."""
    return "–" if share is None else f"{percent(share)} %"


def _level(records: list[Record]) -> dict[str, Any]:
    count = len(records)
    summary: dict[str, Any] = {m: sum(getattr(r, m) for r in records) / count for m in MEASURES}
    for name in CONDITIONAL:
        values = conditional(name, records)
        summary[name] = sum(values) / len(values) if values else None
    summary["fields"] = {n: sum(r.fields[n] for r in records) / count for n in records[0].fields}
    failures: dict[str, dict[str, int]] = {}
    for record in sorted(records, key=lambda r: (r.failure or "", r.cause or "")):
        if record.failure is not None and record.cause is not None:
            causes = failures.setdefault(record.failure, {})
            causes[record.cause] = causes.get(record.cause, 0) + 1
    summary["failures"] = failures
    summary["count"] = count
    return summary


def _average(groups: list[dict[str, Any]]) -> dict[str, Any]:
    averaged: dict[str, Any] = {}
    for name in (*MEASURES, *CONDITIONAL):
        values = [g[name] for g in groups if g[name] is not None]
        averaged[name] = sum(values) / len(values) if values else None
    return averaged
