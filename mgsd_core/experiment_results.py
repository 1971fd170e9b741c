"""What an experiment came to: results in one file, merged, as tables, drawn, run once more."""

from __future__ import annotations

import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mgsd_core.config import ConfigError, build
from mgsd_core.experiment import Experiment, ExperimentError, described, difference
from sim.files import write_file

#: Of `results.json`.
SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Report:
    """What `results.json` holds.

    Attributes:
        experiment: for its arms and their titles.
        described: every setting, see `mgsd_core.experiment.described`.
        results: of every seed and arm, see `mgsd_core.experiment.collect`.
    """

    experiment: Experiment
    described: Mapping[str, Any]
    results: Sequence[Mapping[str, Any]]


# --- tables -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A mean over seeds, all judged on the same scenes [share of 1].

    Attributes:
        mean: over the seeds.
        half: half the width of the mean's 95 % confidence interval (Student's t over the seeds);
            None for a single seed.
        values: of the seeds.
    """

    mean: float
    half: float | None
    values: tuple[float, ...]

    def __str__(self) -> str:
        """Return percent, as `74.5 ± 3.1`."""
        half = "" if self.half is None else f" ± {100 * self.half:.1f}"
        return f"{100 * self.mean:.1f}{half}"


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of values of different seeds with its intervals.

    Raises:
        ExperimentError: there are none.
    """
    if not values:
        raise ExperimentError("an interval needs a seed")
    if len(values) == 1:
        return Interval(values[0], None, tuple(values))
    half = _spread(values, 0.95) / math.sqrt(len(values))
    return Interval(statistics.fmean(values), half, tuple(values))


def one_more(values: Sequence[float], share: float) -> float:
    """Return half the width of the interval around the mean where one more value lies.

    Args:
        values: two or more.
        share: of cases in which it does (prediction interval, Student's t).
    """
    return _spread(values, share) * math.sqrt(1 + 1 / len(values))


def _spread(values: Sequence[float], share: float) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + share) / 2, len(values) - 1)) * statistics.stdev(values)


@dataclass(frozen=True)
class Row:
    """Success of an arm.

    Attributes:
        name, title: of the arm.
        macro: over families.
        families: by family.
        levels: by family and level.
        against: the arm minus the experiment's reference, over the seeds that both have (paired);
            None for the reference itself, and where there are none.
    """

    name: str
    title: str
    macro: Interval
    families: Mapping[str, Interval]
    levels: Mapping[tuple[str, str], Interval]
    against: Interval | None = None


def rows(experiment: Experiment, results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return a row for every arm that has results, and for what was measured beside it.

    The symbolic upper bound is the base's, the swapped control that of the arms that ask for it.
    """
    by_arm = {
        arm.name: {r["seed"]: r for r in results if r["arm"] == arm.name} for arm in experiment.arms
    }
    reference = by_arm.get(experiment.reference, {})
    found = []
    for arm in experiment.arms:
        of_arm = by_arm[arm.name]
        row = _row(arm.name, arm.title, list(of_arm.values()))
        if arm.name != experiment.reference:
            gaps = [
                _macro(of_arm[seed]) - _macro(reference[seed]) for seed in of_arm.keys() & reference
            ]
            row = [replace(r, against=interval(gaps) if gaps else None) for r in row]
        found += row
        if arm.swap and of_arm:
            swapped = [r["image_swapped"] for r in of_arm.values()]
            found += _row(f"{arm.name}-swapped", f"{arm.title}, pictures swapped", swapped)
            # Chance is the scenes' alone, the same for every seed.
            of_scenes = [swapped[0]["chance"]]
            found += _row(f"{arm.name}-chance", "chance: plans of the swapped pictures", of_scenes)
    bases = [a.name for a in experiment.arms if a.train == "none" and a.start == "base"][:1]
    bounds = [r["symbolic"] for name in bases for r in by_arm[name].values()]
    return found + _row("symbolic", "upper bound: the base reads the true state", bounds)


def _macro(result: Mapping[str, Any]) -> float:
    value = result["macro"]["success"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
        raise ValueError(f"a success of {value!r}")
    return float(value)


def _row(name: str, title: str, summaries: Sequence[Mapping[str, Any]]) -> list[Row]:
    if not summaries:
        return []
    families = summaries[0]["families"]
    pairs = [(family, level) for family in families for level in families[family]["levels"]]
    return [
        Row(
            name,
            title,
            interval([_macro(s) for s in summaries]),
            {f: interval([s["families"][f]["success"] for s in summaries]) for f in families},
            {
                (f, level): interval(
                    [s["families"][f]["levels"][level]["success"] for s in summaries]
                )
                for f, level in pairs
            },
        )
    ]


def markdown(experiment: Experiment, table: Sequence[Row]) -> str:
    """Return rows as Markdown tables: success in percent, mean and 95 % confidence interval."""
    if not table:
        raise ExperimentError("no arm is done yet")
    reference = {arm.name: arm.title for arm in experiment.arms}.get(experiment.reference)
    first = [["success %", "seeds", "macro", *table[0].families]]
    second = [["success %", *(f"{family} {level}" for family, level in table[0].levels)]]
    if reference:
        first[0].insert(3, f"minus {reference}")
    for row in table:
        cells = [row.title, str(len(row.macro.values)), str(row.macro)]
        if reference:
            cells.append("" if row.against is None else _signed(row.against))
        first.append([*cells, *map(str, row.families.values())])
        second.append([row.title, *map(str, row.levels.values())])
    notes = [
        "Mean over seeds; ± 95 % of the mean (Student's t over the seeds, all judged on the same "
        "scenes); without ± one seed."
    ]
    if reference and any(row.against for row in table):
        notes.append(f"minus {reference}: paired, over the seeds that both have.")
    return f"{_markdown(first)}\n{_markdown(second)}\n{' '.join(notes)}\n"


def _signed(difference: Interval) -> str:
    return str(difference) if difference.mean < 0 else f"+{difference}"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(lines[0]) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (lines[0], rule, *lines[1:]))


def draw(experiment: Experiment, table: Sequence[Row]) -> bytes:
    """Return success by arm, a dot a seed and a bar for the mean's interval, as SVG.

    The bytes follow from the rows and Matplotlib's version alone.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "mgsd", "font.size": 9}):
        figure = Figure(figsize=(7.5, 0.6 + 0.32 * len(table)), layout="constrained")
        axes = figure.subplots()
        for y, row in enumerate(table):
            values = [100 * v for v in row.macro.values]
            half = 100 * (row.macro.half or 0.0)
            mean = 100 * row.macro.mean
            colour = "#c05020" if row.name == experiment.reference else "#4a6a8a"
            axes.barh(y, mean, height=0.62, color=colour, alpha=0.35)
            axes.errorbar(mean, y, xerr=half, color=colour, capsize=3, linewidth=1.2)
            axes.plot(values, [y] * len(values), "o", color=colour, markersize=3.5)
        axes.set_yticks(range(len(table)), [row.title for row in table])
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("success on held-out scenes, macro average [%]")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


# --- files --------------------------------------------------------------------------------------


def write_results(experiment: Experiment, results: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Write `results.json`: the experiment, every setting, and the raw results."""
    told = asdict(replace(experiment, config=Path(experiment.config).name))
    report = {
        "schema_version": SCHEMA_VERSION,
        "experiment": told,
        "described": described(experiment),
        "results": list(results),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / "results.json", json.dumps(report, indent=1) + "\n")


def read_results(path: Path) -> Report:
    """Read what `write_results` wrote.

    Args:
        path: the file, or the directory that it lies in.

    Raises:
        ExperimentError: it is damaged, or of another version.
        OSError: it is not there.
    """
    file = path / "results.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{path} holds no results.json: run the experiment first")
    try:
        report = json.loads(file.read_bytes())
    except ValueError:
        raise ExperimentError(f"{file} is damaged: it is not JSON") from None
    try:
        if (version := report["schema_version"]) != SCHEMA_VERSION:
            raise ExperimentError(f"{file} has the schema {version}, not {SCHEMA_VERSION}")
        experiment = build(Experiment, report["experiment"], "")
        results = [dict(result) for result in report["results"]]
        if not isinstance(report["described"], dict):
            raise TypeError("'described' is no object")
        _check(experiment, results)
    except ExperimentError:
        raise
    except (AttributeError, ConfigError, KeyError, TypeError, ValueError) as error:
        raise ExperimentError(f"{file} is damaged: {error!r}") from None
    return Report(experiment, report["described"], results)


def _check(experiment: Experiment, results: Sequence[Mapping[str, Any]]) -> None:
    """Raise where results are not what tables are made of, each once and of the same scenes."""
    names = {arm.name for arm in experiment.arms}
    keys = [(result["seed"], result["arm"]) for result in results]
    for seed, name in keys:
        if not isinstance(seed, int) or name not in names:
            raise ValueError(f"there is no seed {seed!r} of an arm {name!r}")
        if keys.count((seed, name)) > 1:
            raise ValueError(f"seed {seed} of the arm {name} stands there twice")
    if len({result["data_digest"] for result in results}) > 1:
        raise ValueError("the arms were judged on different scenes")
    rows(experiment, results)


def merge(experiment: Experiment, paths: Sequence[Path]) -> list[Mapping[str, Any]]:
    """Return the results of several files, such as of seeds that ran on several machines.

    Args:
        experiment: of all of them; each may hold other arms and seeds.
        paths: see `read_results`.

    Raises:
        ExperimentError: a file is of another experiment or was judged on other scenes, or two hold
            different results of one arm and seed.
        OSError: one is not there.
    """
    found: dict[tuple[int, str], tuple[Mapping[str, Any], Path]] = {}
    names = [arm.name for arm in experiment.arms]
    for path in paths:
        report = read_results(path)
        check_same(experiment, report, path)
        for result in report.results:
            key = (result["seed"], result["arm"])
            if result["arm"] not in names:
                raise ExperimentError(f"{path} has an arm {key[1]}, which the experiment lacks")
            same, where = found.setdefault(key, (result, path))
            if same != result:
                raise ExperimentError(
                    f"{where} and {path} both have seed {key[0]} of the arm {key[1]}, and differ"
                )
            first, where = next(iter(found.values()))
            if result["data_digest"] != first["data_digest"]:
                raise ExperimentError(f"{path} was judged on other scenes than {where}")
    return [found[key][0] for key in sorted(found, key=lambda k: (k[0], names.index(k[1])))]


def check_same(experiment: Experiment, report: Report, path: Path) -> None:
    """Raise ExperimentError where the results in `path` are of another experiment."""
    if other := difference(report.described, described(experiment)):
        raise ExperimentError(f"{path} has something else as {other}")


def redraw(out: Path) -> str:
    """Write `table.md` and `success.svg` from the `results.json` beside them; return the table.

    Raises:
        ExperimentError: `results.json` is damaged, or of another version.
        OSError: it is not there.
    """
    report = read_results(out)
    table = rows(report.experiment, report.results)
    text, picture = markdown(report.experiment, table), draw(report.experiment, table)
    write_file(out / "table.md", text)
    write_file(out / "success.svg", picture)
    return text


# --- once more ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reproduction:
    """Success of an arm, macro average, beside what was published.

    Attributes:
        name, title: of the arm.
        published: the interval that was published.
        values: by seed, those that are compared with it.
        expected: half the width of the interval around the published mean where each is expected;
            None where a single seed was published, so nobody can say.
    """

    name: str
    title: str
    published: Interval
    values: Mapping[int, float]
    expected: float | None

    @property
    def within(self) -> bool | None:
        """Whether all values lie where they are expected; None where nobody can say."""
        if self.expected is None:
            return None
        return all(abs(v - self.published.mean) <= self.expected for v in self.values.values())


def reproductions(
    experiment: Experiment,
    results: Sequence[Mapping[str, Any]],
    published: Sequence[Mapping[str, Any]],
) -> list[Reproduction]:
    """Return what results of an experiment are beside published ones, for the arms that both have.

    However many values are compared, a run like those that were published lies within all intervals
    in 95 % of cases or more: each leaves out its part of the other 5 % (Bonferroni).

    Raises:
        ExperimentError: they were judged on other scenes, or no arm can be compared.
    """
    if len({r["data_digest"] for r in (*results, *published)}) > 1:
        raise ExperimentError("what was published was judged on other scenes")
    here: dict[str, dict[int, float]] = {}
    stated: dict[str, list[float]] = {}
    for r in results:
        here.setdefault(r["arm"], {})[r["seed"]] = _macro(r)
    for r in published:
        stated.setdefault(r["arm"], []).append(_macro(r))
    compared = sum(len(here[name]) for name, s in stated.items() if name in here and len(s) > 1)
    if not compared:
        raise ExperimentError("no arm that was run here was published with two seeds or more")
    share = 1 - 0.05 / compared
    return [
        Reproduction(
            arm.name,
            arm.title,
            interval(stated[arm.name]),
            here[arm.name],
            one_more(stated[arm.name], share) if len(stated[arm.name]) > 1 else None,
        )
        for arm in experiment.arms
        if arm.name in here and arm.name in stated
    ]


def reproduction_table(found: Sequence[Reproduction]) -> str:
    """Return reproductions as a Markdown table, in percent."""
    lines = [["success %, macro", "published", "one more seed", "here", ""]]
    for r in found:
        here = ", ".join(f"{100 * value:.1f} (seed {seed})" for seed, value in r.values.items())
        new = "" if r.expected is None else f"± {100 * r.expected:.1f}"
        says = {True: "within", False: "**outside**", None: "one seed: nobody can say"}[r.within]
        lines.append([r.title, str(r.published), new, here, says])
    return _markdown(lines)
