"""How sure averages and differences are: 95 % confidence intervals and paired tests.

Scenes are what was drawn at random, so scenes are resampled, within their family and level, since
macro averages weigh those equally (stratified percentile bootstrap, Efron and Tibshirani 1993).
Where every scene of a level went the same way a bootstrap sees no spread at all; the interval of a
single level's share is Wilson's score interval (1927), which does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
    groups = by_level(records)
    drawn: dict[str, dict[int, NDArray[np.float64]]] = {family: {} for family in groups}
    rng = np.random.default_rng(SEED)
    families: dict[str, Any] = {}
    for family, levels in groups.items():
        of_levels = {}
        for level, found in levels.items():
            values = np.array([[getattr(r, m) for m in MEASURES] for r in found], np.float64)
            drawn[family][level] = resampled_means(values, rng)
            told = summary["families"][family]["levels"][str(level)]
            of_levels[str(level)] = told | {
                "intervals": _level_intervals(found, drawn[family][level])
            }
        means = np.mean(list(drawn[family].values()), axis=0)
        families[family] = summary["families"][family] | {
            "intervals": _by_measure(means),
            "levels": of_levels,
        }
    macro = _macro([list(levels.values()) for levels in drawn.values()])
    return summary | {
        "macro": summary["macro"] | {"intervals": _by_measure(macro)},
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


def paired(pairs: Sequence[tuple[Record, Record]], measure: str = "success") -> dict[str, Any]:
    """Compare two models on the same scenes by their macro averages.

    Args:
        pairs: the records of both about each scene.
        measure: one of `MEASURES`.

    Returns:
        The averages `first` and `second`, their `difference` (second minus first) with its
        `interval` (bootstrap of scenes, both records of a scene together), `count` of scenes; and
        for measures that are yes or no `only_first`, `only_second` (scenes on which only that model
        has it) and `p`, of McNemar's exact test: the probability of a split as uneven if neither
        were better.
    """
    rng = np.random.default_rng(SEED)
    groups: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for first, second in sorted(pairs, key=lambda pair: (pair[0].family, pair[0].level)):
        values = (float(getattr(first, measure)), float(getattr(second, measure)))
        groups.setdefault(first.family, {}).setdefault(first.level, []).append(values)
    levels = [[np.array(found) for found in of_family.values()] for of_family in groups.values()]
    means = _macro([[found.mean(axis=0) for found in of_family] for of_family in levels])
    drawn = _macro(
        [
            [resampled_means(found[:, 1:] - found[:, :1], rng)[:, 0] for found in of_family]
            for of_family in levels
        ]
    )
    compared: dict[str, Any] = {
        "first": float(means[0]),
        "second": float(means[1]),
        "difference": float(means[1] - means[0]),
        "interval": _percentiles(drawn),
        "count": len(pairs),
    }
    if measure in _SHARES:
        told = [(getattr(first, measure), getattr(second, measure)) for first, second in pairs]
        only_first, only_second = told.count((True, False)), told.count((False, True))
        compared |= {
            "only_first": only_first,
            "only_second": only_second,
            "p": mcnemar(only_first, only_second),
        }
    return compared


def mcnemar(one: int, other: int) -> float:
    """Return the two-sided p value of McNemar's exact test for the discordant pairs' counts."""
    count = one + other
    tail = sum(math.comb(count, i) for i in range(min(one, other) + 1))
    return min(1.0, 2 * tail / 2**count)


def _level_intervals(records: Sequence[Record], drawn: NDArray[np.float64]) -> Mapping[str, Any]:
    count = len(records)
    told: dict[str, Any] = _by_measure(drawn)
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


def _macro(levels: Sequence[Sequence[NDArray[np.float64]]]) -> NDArray[np.float64]:
    """Return the mean over families of the means over their levels."""
    means: NDArray[np.float64] = np.mean([np.mean(found, axis=0) for found in levels], axis=0)
    return means


def _by_measure(drawn: NDArray[np.float64]) -> dict[str, Any]:
    return {measure: _percentiles(drawn[:, i]) for i, measure in enumerate(MEASURES)}


def _percentiles(drawn: NDArray[np.float64]) -> list[float]:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return [round(float(low), 6), round(float(high), 6)]
