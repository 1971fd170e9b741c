"""How sure averages and differences are: 95 % confidence intervals and paired tests.

Scenes are what was drawn at random, so scenes are resampled, within their family and level, since
macro averages weigh those equally (stratified percentile bootstrap, Efron and Tibshirani 1993).
Where every scene of a level went the same way a bootstrap sees no spread at all; the interval of a
single level's share is Wilson's score interval (1927), which does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mgsd_core.evaluation.score import Record
from mgsd_core.evaluation.summary import CONDITIONAL, MEASURES, by_level, conditional

#: Bootstrap samples, and the seed that they are drawn from: equal records give equal intervals.
RESAMPLES, SEED = 10_000, 0

_Z = 1.959964  # 97.5 % quantile of the standard normal distribution
_SHARES = ("success", "optimal", "legal", "parsed", "state")  # measures that are yes or no

# Rows of multinomial draws at a time: enough to be fast, and small beside a model.
_CHUNK = 1000

Interval = tuple[float, float]


def wilson(successes: int, count: int) -> Interval:
    """Return the 95 % score interval of a share."""
    share = successes / count
    middle = share + _Z**2 / (2 * count)
    half = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    whole = 1 + _Z**2 / count
    # Rounding must not cut off a share of 0 or 1 that was seen.
    low, high = (middle - half) / whole, (middle + half) / whole
    return (min(max(low, 0.0), share), max(min(high, 1.0), share))


def add_intervals(summary: dict[str, Any], records: Sequence[Record]) -> dict[str, Any]:
    """Return a copy of `summary.summarise(records)` with `intervals` beside all its averages.

    `intervals` has [low, high] by measure: the `MEASURES` everywhere, of a single level also the
    `CONDITIONAL` averages and the `fields` (by name).
    """
    rng = np.random.default_rng(SEED)
    families: dict[str, Any] = {}
    drawn: dict[str, NDArray[np.float64]] = {}
    for family, groups in by_level(records).items():
        told = summary["families"][family]
        levels: dict[str, Any] = {}
        means = []
        for level, found in groups.items():
            values = np.array([[getattr(r, m) for m in MEASURES] for r in found], np.float64)
            means.append(resampled_means(values, rng))
            intervals = _of_level(found, means[-1])
            levels[str(level)] = told["levels"][str(level)] | {"intervals": intervals}
        drawn[family] = np.mean(means, axis=0)
        intervals = _of_average(drawn[family], [level["intervals"] for level in levels.values()])
        families[family] = told | {"intervals": intervals, "levels": levels}
    macro = np.mean(list(drawn.values()), axis=0)
    intervals = _of_average(macro, [family["intervals"] for family in families.values()])
    return summary | {
        "macro": summary["macro"] | {"intervals": intervals},
        "families": families,
    }


def resampled_means(values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the means of `RESAMPLES` bootstrap samples of rows: [N, M] to [RESAMPLES, M]."""
    count = len(values)
    means = []
    for _ in range(RESAMPLES // _CHUNK):
        # How often each row is drawn says all of a sample's mean.
        times = rng.multinomial(count, np.full(count, 1 / count), size=_CHUNK)
        means.append(times @ values / count)
    return np.concatenate(means)


def paired(
    pairs: Sequence[tuple[Record, Record]], measures: Sequence[str] = ("success",)
) -> dict[str, Any]:
    """Compare two models on the same scenes.

    Args:
        pairs: the records of both about each scene.
        measures: some of `MEASURES`.

    Returns:
        `{"macro": {…}, "families": {family: {…, "levels": {level: {…}}}}}`. Every `{…}` has by
        measure the averages `first` and `second`, their `difference` (second minus first) with its
        `interval` (bootstrap of scenes, both records of a scene together), `count` of scenes; and
        for measures that are yes or no `only_first`, `only_second` (scenes on which only that model
        has it) and `p`, of McNemar's exact test: the probability of a split as uneven if neither
        were better.
    """
    rng = np.random.default_rng(SEED)
    groups: dict[str, dict[int, list[tuple[Record, Record]]]] = {}
    for pair in sorted(pairs, key=lambda pair: (pair[0].family, pair[0].level)):
        groups.setdefault(pair[0].family, {}).setdefault(pair[0].level, []).append(pair)
    families: dict[str, Any] = {}
    of_families = []
    for family, of_family in groups.items():
        levels = [_compared_level(found, measures, rng) for found in of_family.values()]
        families[family] = _differences(_joined(levels), measures) | {
            "levels": {
                str(level): _differences(told, measures)
                for level, told in zip(of_family, levels, strict=True)
            }
        }
        of_families.append(_joined(levels))
    return {"macro": _differences(_joined(of_families), measures), "families": families}


@dataclass(frozen=True)
class _Compared:
    """Two models on some scenes, by measure: means [M], means of resampled differences [R, M],
    and how many scenes only one of them has it on [M]."""

    first: NDArray[np.float64]
    second: NDArray[np.float64]
    drawn: NDArray[np.float64]
    only_first: NDArray[np.int64]
    only_second: NDArray[np.int64]
    count: int


def _compared_level(
    pairs: Sequence[tuple[Record, Record]], measures: Sequence[str], rng: np.random.Generator
) -> _Compared:
    first, second = (
        np.array([[getattr(pair[i], m) for m in measures] for pair in pairs], np.float64)
        for i in (0, 1)
    )
    return _Compared(
        first.mean(axis=0),
        second.mean(axis=0),
        resampled_means(second - first, rng),
        (first > second).sum(axis=0),
        (second > first).sum(axis=0),
        len(pairs),
    )


def _joined(parts: Sequence[_Compared]) -> _Compared:
    """Return the average of levels or families, each of the same weight; scenes are counted."""
    return _Compared(
        np.mean([part.first for part in parts], axis=0),
        np.mean([part.second for part in parts], axis=0),
        np.mean([part.drawn for part in parts], axis=0),
        np.sum([part.only_first for part in parts], axis=0),
        np.sum([part.only_second for part in parts], axis=0),
        sum(part.count for part in parts),
    )


def _differences(compared: _Compared, measures: Sequence[str]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for i, measure in enumerate(measures):
        first, second = float(compared.first[i]), float(compared.second[i])
        told[measure] = {
            "first": first,
            "second": second,
            "difference": second - first,
            "interval": _percentiles(compared.drawn[:, i]),
            "count": compared.count,
        }
        if measure in _SHARES:
            only = int(compared.only_first[i]), int(compared.only_second[i])
            told[measure] |= {
                "only_first": only[0],
                "only_second": only[1],
                "p": mcnemar(*only),
            }
    return told


def mcnemar(one: int, other: int) -> float:
    """Return the two-sided p value of McNemar's exact test for the discordant pairs' counts."""
    count = one + other
    tail = sum(math.comb(count, i) for i in range(min(one, other) + 1))
    return min(1.0, 2 * tail / 2**count)


def _of_level(records: Sequence[Record], drawn: NDArray[np.float64]) -> dict[str, Any]:
    count = len(records)
    told = _by_measure(drawn)
    for measure in _SHARES:
        told[measure] = list(wilson(sum(getattr(r, measure) for r in records), count))
    for name in CONDITIONAL:
        values = conditional(name, records)
        told[name] = list(wilson(sum(values), len(values))) if values else None
    told["fields"] = {
        name: list(wilson(sum(r.fields[name] for r in records), count))
        for name in records[0].fields
    }
    return told


def _of_average(drawn: NDArray[np.float64], parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the intervals of an average; that of one part alone is the part's own."""
    if len(parts) == 1:
        return {measure: parts[0][measure] for measure in MEASURES}
    return _by_measure(drawn)


def _by_measure(drawn: NDArray[np.float64]) -> dict[str, Any]:
    return {measure: _percentiles(drawn[:, i]) for i, measure in enumerate(MEASURES)}


def _percentiles(drawn: NDArray[np.float64]) -> list[float]:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return [round(float(low), 6), round(float(high), 6)]
