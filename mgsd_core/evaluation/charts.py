"""Charts of an evaluation as rows of dots and spans on an axis; how they look is the page's affair.

Places on an axis are texts in percent of its length, such as `12.5%`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mgsd_core.evaluation.score import Cause, Record
from mgsd_core.evaluation.summary import by_level, in_percent, percent, summarise

#: What was read, in words.
TITLES = {
    "image": "pictures",
    "text": "symbolic text",
    "swapped": "pictures swapped",
    "chance": "chance",
}

Summary = Mapping[str, Any]

#: Low and high of a share or of a difference.
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Dot:
    """A value with its interval; `low` and `high` are "" where there is none."""

    tone: str
    at: str
    low: str
    high: str
    says: str


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of the axis."""

    tone: str
    begin: str
    width: str
    says: str


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a chart.

    Attributes:
        label: what it is about; a row without dots and spans is the head of those below.
        value, note: what stands at its end, the second less prominent.
        dots, spans: on its axis.
        is_total: whether it sums up others.
    """

    label: str
    value: str = ""
    note: str = ""
    dots: Sequence[Dot] = ()
    spans: Sequence[Span] = ()
    is_total: bool = False


def level_rows(sources: Mapping[str, Summary]) -> list[Row]:
    """Return success by family and level, a dot for each source."""
    rows = []
    first = next(iter(sources.values()))
    for family, told in first["families"].items():
        rows.append(Row(family))
        for level, found in told["levels"].items():
            rows.append(_success_row(level, found, _at(sources, family, level)))
        rows.append(_success_row("all levels", told, _at(sources, family), is_total=True))
    rows.append(Row("all families"))
    everywhere = {source: summary["macro"] for source, summary in sources.items()}
    rows.append(_success_row("macro", first["macro"], everywhere, is_total=True))
    return rows


def gap_rows(image: Summary, text: Summary, intervals: Mapping[str, Interval]) -> list[Row]:
    """Return image beside symbolic text by family, with the gap in points.

    Args:
        image, text: what was achieved with either.
        intervals: of the gap, by family and of `macro`, where they are known.
    """
    rows = []
    for family, told in image["families"].items():
        rows.append(_gap_row(family, told, text["families"].get(family, {}), intervals))
    rows.append(_gap_row("macro", image["macro"], text["macro"], intervals, is_total=True))
    return rows


#: What becomes of a scene: tone and words, in the order of the chart.
PARTS = {
    "solved": "solved, the state recovered",
    "lucky": "solved, though the state was not recovered",
    Cause.PERCEPTION.value: "failed, the state read wrong",
    Cause.BOTH.value: "failed, read wrong and reasoned wrong",
    Cause.REASONING.value: "failed, the state right, reasoned wrong",
    "none": "failed, no state or no plan to be read",
}


def part_rows(records: Iterable[Record]) -> list[Row]:
    """Return what became of the scenes by family, and over all families (macro)."""
    families = {
        family: _mean([_parts(found) for found in levels.values()])
        for family, levels in by_level(records).items()
    }
    shares = [*families.items(), ("macro", _mean(list(families.values())))]
    rows = []
    for label, parts in shares:
        spans, begin = [], 0.0
        for name, share in parts.items():
            if share:
                says = f"{label}: {in_percent(share)} {PARTS[name]}"
                spans.append(Span(name, _place(begin), _place(share), says))
            begin += share
        value = in_percent(parts["solved"] + parts["lucky"])
        rows.append(Row(label, value, "solved", spans=spans, is_total=label == "macro"))
    return rows


def made_of(records: Sequence[Record]) -> str:
    """Return what macro success is made of, in a sentence."""
    levels = by_level(records).values()
    parts = _mean([_mean([_parts(found) for found in of.values()]) for of in levels])
    seen, all_solved = summarise(records)["macro"]["state"], parts["solved"] + parts["lucky"]
    return (
        f"{in_percent(seen)} of the states are recovered; {in_percent(parts['solved'])} of the "
        f"scenes are solved from them and {in_percent(parts['lucky'])} although something was "
        f"misread, together {in_percent(all_solved)}."
    )


def field_rows(summary: Summary) -> list[Row]:
    """Return how often each field of a state was recovered, by family: a dot for every level."""
    rows = []
    for family, told in summary["families"].items():
        rows.append(Row(family))
        levels = told["levels"]
        names = list(dict.fromkeys(name for found in levels.values() for name in found["fields"]))
        for name in names:
            shares = {k: v["fields"][name] for k, v in levels.items() if name in v["fields"]}
            told_intervals = {k: v["intervals"]["fields"].get(name) for k, v in levels.items()}
            dots = [
                _dot("image", share, told_intervals[level], f"{family} {level}, {name}")
                for level, share in shares.items()
            ]
            rows.append(_bar_row(name.replace("_", " "), _average(shares.values()), dots))
        dots = [
            _dot("image", found["state"], found["intervals"].get("state"), f"{family} {level}")
            for level, found in levels.items()
            if found["state"] is not None
        ]
        rows.append(_bar_row("whole state", told["state"], dots, is_total=True))
    return rows


@dataclass(frozen=True, slots=True)
class Forest:
    """Differences around a middle.

    Attributes:
        rows: of families, levels and all of it.
        ticks: what stands below the axis, from its left to its right end.
    """

    rows: Sequence[Row]
    ticks: Sequence[str]


def difference_rows(compared: Mapping[str, Any]) -> Forest:
    """Return the differences of success that `compare.compare` found."""
    found: list[tuple[str, Mapping[str, Any], bool]] = []
    for family, told in compared["families"].items():
        found.append((family, {}, False))
        found += [
            (level, level_told["success"], False) for level, level_told in told["levels"].items()
        ]
        found.append(("all levels", told["success"], True))
    found += [("all families", {}, False), ("macro", compared["macro"]["success"], True)]
    edges = [abs(v) for _, t, _ in found if t for v in (*t["interval"], t["difference"])]
    reach = max(0.1, math.ceil(10 * max(edges) - 1e-9) / 10)
    rows = [
        _difference_row(label, told, is_total, reach) if told else Row(label)
        for label, told, is_total in found
    ]
    # `reach` is a multiple of 10 points, so half of it is whole, too.
    ticks = [signed(reach * part).removesuffix(".0") for part in (-1, -0.5, 0, 0.5, 1)]
    return Forest(rows, ticks)


def signed(difference: float) -> str:
    """Return a difference of shares in points, with its sign: `+7.8`, `−7.8`, `0.0`."""
    points = round(100 * difference, 1)
    return f"{'+' if points > 0 else '−' if points < 0 else ''}{abs(points):.1f}"


def span_text(interval: Sequence[float] | None) -> str:
    """Return an interval of shares in percent, such as `91.1–98.9`; "" where there is none."""
    return "" if interval is None else "–".join(map(percent, interval))


# --- rows ---------------------------------------------------------------------------------------


def _at(
    sources: Mapping[str, Summary], family: str, level: str | None = None
) -> dict[str, Summary]:
    found = {}
    for source, summary in sources.items():
        told = summary["families"].get(family)
        told = told if told is None or level is None else told["levels"].get(level)
        if told is not None:
            found[source] = told
    return found


def _success_row(
    label: str, told: Summary, sources: Mapping[str, Summary], is_total: bool = False
) -> Row:
    dots = [
        _dot(source, of["success"], of["intervals"].get("success"), TITLES[source])
        for source, of in sources.items()
        if of["success"] is not None
    ]
    return Row(label, in_percent(told["success"]), dots=dots, is_total=is_total)


def _gap_row(
    label: str,
    image: Summary,
    text: Summary,
    intervals: Mapping[str, Interval],
    is_total: bool = False,
) -> Row:
    seen, read = image.get("success"), text.get("success")
    dots = [
        _dot(source, share, None, TITLES[source])
        for source, share in (("image", seen), ("text", read))
        if share is not None
    ]
    if seen is None or read is None:
        return Row(label, "–", dots=dots, is_total=is_total)
    says = f"{label}: {signed(read - seen)} points"
    spans = [Span("gap", _place(min(seen, read)), _place(abs(read - seen)), says)]
    sure = " to ".join(map(signed, intervals.get(label, ())))
    return Row(label, signed(read - seen), sure, dots, spans, is_total)


def _bar_row(label: str, share: float | None, dots: Sequence[Dot], is_total: bool = False) -> Row:
    spans = []
    if share is not None:
        spans = [Span("bar", "0%", _place(share), f"{label}: {in_percent(share)}")]
    return Row(label, in_percent(share), dots=dots, spans=spans, is_total=is_total)


def _difference_row(label: str, told: Mapping[str, Any], is_total: bool, reach: float) -> Row:
    low, high = told["interval"]
    tone = "better" if low > 0 else "worse" if high < 0 else "even"

    def place(difference: float) -> str:
        return _place(0.5 + difference / reach / 2)

    says = f"{signed(told['difference'])} points, {signed(low)} to {signed(high)}"
    dot = Dot(tone, place(told["difference"]), place(low), place(high), says)
    note = f"{told['only_second']} : {told['only_first']}"
    return Row(label, signed(told["difference"]), note, [dot], is_total=is_total)


def _dot(tone: str, share: float, interval: Sequence[float] | None, title: str) -> Dot:
    says = f"{title}: {in_percent(share)}"
    if interval is None:
        return Dot(tone, _place(share), "", "", says)
    low, high = interval
    return Dot(tone, _place(share), _place(low), _place(high), f"{says} ({span_text(interval)})")


def _parts(records: Sequence[Record]) -> dict[str, float]:
    counts = dict.fromkeys(PARTS, 0)
    for record in records:
        if record.success:
            counts["solved" if record.state else "lucky"] += 1
        else:
            counts[record.cause if record.cause in PARTS else "none"] += 1
    return {name: count / len(records) for name, count in counts.items()}


def _mean(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(part[name] for part in parts) / len(parts) for name in PARTS}


def _average(shares: Iterable[float]) -> float:
    values = list(shares)
    return sum(values) / len(values)


def _place(share: float) -> str:
    return f"{100 * share:.2f}".rstrip("0").rstrip(".") + "%"
