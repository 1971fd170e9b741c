"""The results of an evaluation as a page for people: how good, compared with what, and why not.

Everything on it may be somebody else's: figures are checked here, and texts are shown as texts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgsd_core.evaluation import cards, charts
from mgsd_core.evaluation.boards import SIDE, field_letters
from mgsd_core.evaluation.compare import COMPARED, compare
from mgsd_core.evaluation.results import Results, ResultsError, read_results
from mgsd_core.evaluation.summary import CONDITIONAL, MEASURES, in_percent
from mgsd_core.html import render
from sim.files import write_file

#: Columns of the tables: measure and head.
_COLUMNS = {
    "success": "success",
    "optimal": "optimal",
    "progress": "progress",
    "spl": "SPL",
    "legal": "legal",
    "state": "state recovered",
    "success_given_state": "success, state right",
    "consistent": "consistent",
    "parsed": "plan readable",
}

# Of results.json, what the page shows elsewhere.
_SHOWN = ("macro", "families", "symbolic", "image_swapped", "failed", "problems")

# Of a number that is a share or a count.
_LARGEST = 1e9


def write_report(out: Path) -> Path:
    """Write report.html beside the results in `out`, and return its path.

    Args:
        out: what `results.write_results` wrote.

    Raises:
        ResultsError: there are no results, or they are damaged.
        OSError: a file cannot be read or written.
    """
    write_file(out / "report.html", evaluation_report(read_results(out)))
    return out / "report.html"


def evaluation_report(results: Results, other: Results | None = None) -> str:
    """Return the page, self-contained HTML. The same arguments give the same bytes.

    Args:
        results: of an evaluation.
        other: another model's on the same scenes, to compare it with.

    Raises:
        ResultsError: something in `results` is of the wrong type, or missing.
        mgsd_core.evaluation.compare.CompareError: they cannot be compared.
    """
    source = next(iter(results.records))
    records = results.records[source]
    if not records:
        raise ResultsError(f"{results.path} holds no responses")
    told = _read(results)
    compared = None if other is None else compare(other, results, source)
    others = None if other is None else {r.scene: r for r in other.records[source]}
    shown = cards.gallery_cards(results, source, others)
    rows = {source: told.summary, **told.others}
    both = {name: summary for name, summary in rows.items() if name in ("image", "text")} or rows
    return render(
        "mgsd_core/evaluation_report.html",
        told=told,
        source=charts.TITLES[source],
        main=_main_tile(told) | {"made_of": charts.made_of(records)},
        tiles=_tiles(told, source),
        columns=list(_COLUMNS.values()),
        headline=[
            _table_row(charts.TITLES[name], summary["macro"]) for name, summary in rows.items()
        ],
        breakdown=_breakdown(told.summary),
        titles=charts.TITLES,
        sources=list(both),
        levels=charts.level_rows(both),
        gap=charts.gap_rows(told.summary, told.others["text"], told.gap_intervals)
        if told.gap is not None
        else [],
        parts=charts.part_rows(records),
        part_names=charts.PARTS,
        fields=charts.field_rows(told.summary),
        tables=cards.failure_tables(records, shown),
        causes=cards.CAUSES,
        cards=shown,
        filters=cards.gallery_filters(shown),
        letters=_letters(results, shown),
        side=SIDE,
        count=len(records),
        compared=None if compared is None else _comparison(compared),
        provenance=_provenance(results),
    )


# --- what results.json says ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Told:
    """What results.json says, checked.

    Attributes:
        model, digest, data, split: texts, "" where they are missing.
        summary: of the first input.
        others: of the other inputs, and of chance, by source.
        gap: symbolic text minus image, None where only one was asked for.
        gap_intervals: of it, by family and of `macro`, where they are known.
        unanswered, left_out: requests without an answer and cases that were not judged, in words.
    """

    model: str
    digest: str
    data: str
    split: str
    summary: charts.Summary
    others: Mapping[str, charts.Summary]
    gap: float | None
    gap_intervals: Mapping[str, charts.Interval]
    unanswered: Sequence[str]
    left_out: Sequence[str]


def _read(results: Results) -> _Told:
    report, file = results.report, str(results.path / "results.json")
    others = {}
    if report.get("symbolic") is not None:
        others["text"] = _summary(report["symbolic"], f"{file}: symbolic")
    swapped = report.get("image_swapped")
    if swapped is not None:
        others["swapped"] = _summary(swapped, f"{file}: image_swapped")
        if swapped.get("chance") is not None:
            others["chance"] = _summary(swapped["chance"], f"{file}: image_swapped: chance")
    has_gap = next(iter(results.records)) == "image" and "text" in others
    return _Told(
        model=_text(report, "model", file),
        digest=_text(report, "model_digest", file),
        data=_text(report, "data", file),
        split=_text(report, "split", file),
        summary=_summary(report, file),
        others=others,
        gap=_number(report, "modality_gap", file) if has_gap else None,
        gap_intervals=_gap_intervals(report, file),
        unanswered=[
            f"{_text(line, 'scene', file)}: {_text(line, 'reason', file)}"
            for line in _list(report, "failed", dict, file)
        ],
        left_out=_list(report, "problems", str, file),
    )


def _gap_intervals(report: Mapping[str, Any], where: str) -> dict[str, charts.Interval]:
    families = _mapping(report, "modality_gap_families", where)
    found = {family: _interval(told, "interval", where) for family, told in families.items()}
    found["macro"] = _interval(report, "modality_gap_interval", where)
    return {place: interval for place, interval in found.items() if interval is not None}


def _summary(told: Any, where: str) -> charts.Summary:
    """Return a summary as `summary.summarise` and `intervals.add_intervals` make it, checked."""
    families = {}
    for family, found in _mapping(told, "families", where).items():
        place = f"{where}: {family}"
        levels = {
            level: _averages(averages, f"{place}: {level}")
            for level, averages in _mapping(found, "levels", place).items()
        }
        families[family] = {**_averages(found, place), "levels": levels}
    return {"macro": _averages(_mapping(told, "macro", where), where), "families": families}


def _averages(told: Any, where: str) -> dict[str, Any]:
    """Return averages with their `intervals`, `fields` and `count`, which may all be missing."""
    intervals = _mapping(told, "intervals", where)
    fields = _mapping(told, "fields", where)
    of_fields = _mapping(intervals, "fields", where)
    names = (*MEASURES, *CONDITIONAL)
    return {
        **{name: _number(told, name, where) for name in names},
        "fields": {name: _number(fields, name, where) or 0.0 for name in fields},
        "count": _number(told, "count", where),
        "intervals": {
            **{name: _interval(intervals, name, where) for name in names},
            "fields": {name: _interval(of_fields, name, where) for name in of_fields},
        },
    }


def _mapping(told: Any, name: str, where: str) -> Mapping[str, Any]:
    value = told.get(name) if isinstance(told, Mapping) else told
    if not isinstance(told, Mapping) or not isinstance(value, Mapping | None):
        raise ResultsError(f"{where}: {name!r} is no object")
    return value or {}


def _number(told: Mapping[str, Any], name: str, where: str) -> float | None:
    value = told.get(name)
    return None if value is None else _checked(value, name, where)


def _interval(told: Any, name: str, where: str) -> charts.Interval | None:
    value = _mapping({"it": told}, "it", where).get(name)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise ResultsError(f"{where}: the interval of {name!r} is no pair of numbers")
    return (_checked(value[0], name, where), _checked(value[1], name, where))


def _checked(value: Any, name: str, where: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) <= _LARGEST:
        raise ResultsError(f"{where}: {name!r} is no number")
    return float(value)


def _text(told: Mapping[str, Any], name: str, where: str) -> str:
    value = told.get(name)
    if not isinstance(value, str | None):
        raise ResultsError(f"{where}: {name!r} is no text")
    return value or ""


def _list(told: Mapping[str, Any], name: str, kind: type, where: str) -> list[Any]:
    value = told.get(name) or []
    if not isinstance(value, list) or not all(isinstance(v, kind) for v in value):
        raise ResultsError(f"{where}: {name!r} is no list as it should be")
    return value


def _provenance(results: Results) -> str:
    rest = {name: value for name, value in results.report.items() if name not in _SHOWN}
    return json.dumps(rest, indent=2, ensure_ascii=False)


# --- figures ------------------------------------------------------------------------------------


def _main_tile(told: _Told) -> dict[str, Any]:
    macro = told.summary["macro"]
    interval = macro["intervals"]["success"]
    note = "mean over levels, then over families"
    if interval is not None:
        note = f"95 % interval {charts.span_text(interval)} %, {note}"
    return {"value": in_percent(macro["success"]), "note": note}


def _tiles(told: _Told, source: str) -> list[tuple[str, str, str]]:
    """Return the figures on top: name, value, and what it is about."""
    macro = told.summary["macro"]
    tiles = [
        ("optimal", in_percent(macro["optimal"]), "solved by a shortest plan"),
        ("progress", in_percent(macro["progress"]), "of a shortest plan, from its start"),
        ("SPL", in_percent(macro["spl"]), "success, weighted by length"),
        ("legal", in_percent(macro["legal"]), "no action that is illegal"),
        ("state recovered", in_percent(macro["state"]), "every field right"),
        (
            "success, state right",
            in_percent(macro["success_given_state"]),
            "of those whose state was recovered",
        ),
        (
            "consistent",
            in_percent(macro["consistent"]),
            "plans succeed in the state that was read",
        ),
    ]
    if told.gap is not None:
        note = f"symbolic text {in_percent(told.others['text']['macro']['success'])}"
        if "macro" in told.gap_intervals:
            low, high = map(charts.signed, told.gap_intervals["macro"])
            note += f"; {low} to {high}"
        tiles.append(("modality gap", f"{charts.signed(told.gap)}", f"points; {note}"))
    if "swapped" in told.others:
        swapped = told.others["swapped"]["macro"]["success"]
        chance = told.others["chance"]["macro"]["success"] if "chance" in told.others else None
        tiles.append(
            ("pictures swapped", in_percent(swapped), f"chance gives {in_percent(chance)}")
        )
    parsed = macro["parsed"]
    unread = None if parsed is None else 1 - parsed
    tiles.append(
        ("no plan to be read", in_percent(unread), f"of responses to {charts.TITLES[source]}")
    )
    return tiles


def _table_row(title: str, told: charts.Summary) -> dict[str, Any]:
    cells = [(in_percent(told[m]), charts.span_text(told["intervals"][m])) for m in _COLUMNS]
    return {"title": title, "cells": cells, "count": told["count"]}


def _breakdown(summary: charts.Summary) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the rows of every family: its levels, then all of them."""
    return [
        (
            family,
            [
                *(_table_row(level, found) for level, found in told["levels"].items()),
                _table_row("all levels", told),
            ],
        )
        for family, told in summary["families"].items()
    ]


def _letters(results: Results, shown: Sequence[cards.Card]) -> list[tuple[str, str]]:
    """Return what the letters on pictures stand for, by family."""
    found: dict[str, str] = {}
    for card in shown:
        if card.family not in found:
            letters = field_letters(results.states[card.scene])
            found[card.family] = ", ".join(
                f"{letter} {name.replace('_', ' ')}" for name, letter in letters.items()
            )
    return [(family, letters) for family, letters in found.items() if letters]


def _comparison(compared: Mapping[str, Any]) -> dict[str, Any]:
    macro = compared["macro"]
    rows = []
    for measure in COMPARED:
        told = macro[measure]
        low, high = map(charts.signed, told["interval"])
        rows.append(
            [
                _COLUMNS[measure],
                in_percent(told["second"]),
                in_percent(told["first"]),
                charts.signed(told["difference"]),
                f"{low} to {high}",
                str(told.get("only_second", "–")),
                str(told.get("only_first", "–")),
                f"{told['p']:.2g}" if "p" in told else "–",
            ]
        )
    success = macro["success"]
    low, high = success["interval"]
    better = "better" if low > 0 else "worse" if high < 0 else ""
    return {
        "other": str(compared["first"]["model"] or "the other model"),
        "count": compared["count"],
        "left_out": sum(compared["left_out"].values()),
        "other_pictures": compared["other_pictures"],
        "verdict": (
            f"It is {better}: the interval of the difference of macro success leaves out 0."
            if better
            else "Neither is shown to be better: the interval of the difference holds 0."
        ),
        "difference": charts.signed(success["difference"]),
        "rows": rows,
        "forest": charts.difference_rows(compared),
        "only_this": compared["changed"]["only_second"],
        "only_other": compared["changed"]["only_first"],
    }
