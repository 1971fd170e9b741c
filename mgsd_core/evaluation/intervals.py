"""How sure averages and differences are: 95 % confidence intervals and paired tests.

Scenes are what was drawn at random. Shares have Wilson's score interval (1927), which is right near
0 and 1, too, where a bootstrap of a few scenes sees no spread; that of an average over levels is
Wilson's for as many scenes as would give the average's variance. Progress, SPL and paired
differences have a percentile bootstrap that draws scenes anew within their family and level, since
averages weigh those equally (stratified bootstrap, Efron and Tibshirani 1993).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mgsd_core.evaluation.score import Record
from mgsd_core.evaluation.summary import CONDITIONAL, MEASURES, by_level, conditional

#: Bootstrap samples, and the seed that they are drawn from: equal records give equal intervals.
RESAMPLES, SEED = 10_000, 0

_Z = 1.959964  # 97.5 % quantile of the standard normal distribution
_REAL = ("progress", "spl")
_SHARES = tuple(measure for measure in MEASURES if measure not in _REAL)  # yes or no

# Rows of multinomial draws at a time: enough to be fast, and small beside a model.
_CHUNK = 1000

Interval = tuple[float, float]


def wilson(share: float, count: float) -> Interval:
    """Return the 95 % score interval of a share of `count` scenes."""
    middle = share + _Z**2 / (2 * count)
    half = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    whole = 1 + _Z**2 / count
    # Rounding must not cut off a share of 0 or 1 that was seen.
    low, high = (middle - half) / whole, (middle + half) / whole
    return (min(max(low, 0.0), share), max(min(high, 1.0), share))


def wilson_average(levels: Sequence[Level]) -> Interval:
    """Return the 95 % interval of an average of shares: Wilson's of the effective number of scenes.

    That is how many scenes a single share of this size would need for the average's variance. Where
    the shares tell nothing of it, a level of one scene among them, all of them count as if equal.
    """
    average = sum(level.weight * level.share for level in levels)
    count = 1 / sum(level.weight**2 / level.count for level in levels)
    if all(level.count > 1 for level in levels):
        variance = sum(
            level.weight**2 * level.share * (1 - level.share) / (level.count - 1)
            for level in levels
        )
        if variance > 0:
            count = min(count, average * (1 - average) / variance)
    return wilson(average, count)


def add_intervals(summary: dict[str, Any], records: Sequence[Record]) -> dict[str, Any]:
    """Return a copy of `summary.summarise(records)` with `intervals` beside all its averages.

    `intervals` has [low, high] by measure: the `MEASURES` everywhere, of a single level also the
    `CONDITIONAL` averages and the `fields` (by name).
    """
    rng = np.random.default_rng(SEED)
    groups = by_level(records)
    families: dict[str, Any] = {}
    drawn: dict[str, NDArray[np.float64]] = {}
    for family, of_family in groups.items():
        told = summary["families"][family]
        levels: dict[str, Any] = {}
        means = []
        for level, found in of_family.items():
            values = np.array([[getattr(r, m) for m in _REAL] for r in found], np.float64)
            means.append(resampled_means(values, rng, (0.0, 1.0)))
            intervals = _of_level(found, means[-1])
            levels[str(level)] = told["levels"][str(level)] | {"intervals": intervals}
        drawn[family] = np.mean(means, axis=0)
        intervals = _of_average([of_family], drawn[family])
        families[family] = told | {"intervals": intervals, "levels": levels}
    intervals = _of_average(list(groups.values()), np.mean(list(drawn.values()), axis=0))
    return summary | {
        "macro": summary["macro"] | {"intervals": intervals},
        "families": families,
    }


def resampled_means(
    values: NDArray[np.float64], rng: np.random.Generator, bounds: Interval
) -> NDArray[np.float64]:
    """Return the means of `RESAMPLES` bootstrap samples of rows: [N, M] to [RESAMPLES, M].

    Deviations are those of N - 1 degrees of freedom. One row says nothing of how others would
    differ: its means are one or the other of `bounds`, outside of which no mean ever is.
    """
    count = len(values)
    if count == 1:
        return rng.choice(bounds, size=(RESAMPLES, values.shape[1]))
    means = []
    for _ in range(RESAMPLES // _CHUNK):
        # How often each row is drawn says all of a sample's mean.
        times = rng.multinomial(count, np.full(count, 1 / count), size=_CHUNK)
        means.append(times @ values / count)
    mean = values.mean(axis=0)
    wider = mean + math.sqrt(count / (count - 1)) * (np.concatenate(means) - mean)
    return np.clip(wider, *bounds)


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
        resampled_means(second - first, rng, (-1.0, 1.0)),
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
    if not count:
        return 1.0
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])  # of factorials
    tail = np.arange(min(one, other) + 1)
    terms = logs[count] - logs[tail] - logs[count - tail] - count * math.log(2)
    return min(1.0, 2 * float(np.exp(terms).sum()))


@dataclass(frozen=True)
class Level:
    """A share of some scenes, and its weight in an average."""

    share: float
    count: int
    weight: float


def _of_level(records: Sequence[Record], drawn: NDArray[np.float64]) -> dict[str, Any]:
    told = _percentiles_by_measure(drawn)
    for measure in _SHARES:
        told[measure] = _of_share([getattr(r, measure) for r in records])
    for name in CONDITIONAL:
        values = conditional(name, records)
        told[name] = _of_share(values) if values else None
    told["fields"] = {
        name: _of_share([r.fields[name] for r in records]) for name in records[0].fields
    }
    return told


def _of_average(
    families: Sequence[Mapping[int, Sequence[Record]]], drawn: NDArray[np.float64]
) -> dict[str, Any]:
    told = _percentiles_by_measure(drawn)
    single = len(families) == 1 and len(families[0]) == 1
    for measure in _SHARES:
        levels = [
            Level(
                sum(getattr(r, measure) for r in records) / len(records),
                len(records),
                1 / len(families) / len(levels),
            )
            for levels in families
            for records in levels.values()
        ]
        # One level alone is no average.
        one = levels[0]
        found = wilson(one.share, one.count) if single else wilson_average(levels)
        told[measure] = _rounded(found)
    return told


def _of_share(values: Sequence[bool]) -> list[float]:
    return _rounded(wilson(sum(values) / len(values), len(values)))


def _percentiles_by_measure(drawn: NDArray[np.float64]) -> dict[str, Any]:
    return {measure: _percentiles(drawn[:, i]) for i, measure in enumerate(_REAL)}


def _percentiles(drawn: NDArray[np.float64]) -> list[float]:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return _rounded((float(low), float(high)))


def _rounded(interval: Interval) -> list[float]:
    return [round(edge, 6) for edge in interval]
