"""The claim as an experiment: several ways to train, judged on the same held-out scenes, by seed.

An experiment is a YAML file. Everything it does is a command that a user can type, run in a process
of its own and shown before; each goes on where it was stopped, so the experiment does too.
"""

from __future__ import annotations

import json
import math
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from mgsd_core.config import ConfigError, build
from mgsd_core.steps import run_step
from sim.files import write_file

#: Of each arm, where its training starts: the untrained-on-pictures base, or stage 1's weights.
STARTS = ("base", "stage1")

#: What is trained there: nothing, stage 1 with other settings, or stage 2.
TRAININGS = ("none", "coldstart", "distill")

_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "numpy")

# Two-sided 95 % quantiles of Student's t for 1, 2, … degrees of freedom.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
_MOST_SEEDS = len(_T95) + 1


class ExperimentError(ValueError):
    """An experiment that cannot be run or drawn; the message says why."""


@dataclass(frozen=True)
class Task:
    """A family and its levels, written as for `mgsd generate`: `3-5`."""

    family: str
    level: str


@dataclass(frozen=True)
class DataConfig:
    """Scenes of an experiment; all splits have other states and other styles.

    Attributes:
        tasks: families and levels.
        train, validation, test: episodes of each family and level.
        size: side of the pictures [px].
        styles: set of styles, see `mgsd generate`.
        renderer: of the pictures that are learned from and judged on.
        seed: first seed of every split.
    """

    tasks: tuple[Task, ...]
    train: int
    validation: int
    test: int
    size: int
    styles: str = "overhead"
    renderer: str = "panda"
    seed: int = 0


@dataclass(frozen=True)
class Arm:
    """One way to come to a planner.

    Attributes:
        name: of its directory and in results.
        title: in tables.
        start: one of `STARTS`.
        train: one of `TRAININGS`.
        settings: `section.key=value` on top of the experiment's configuration.
        limit: training scenes of each family and level that it may use; 0 takes all.
        swap: answer the held-out scenes with swapped pictures too.
    """

    name: str
    title: str
    start: str
    train: str = "none"
    settings: tuple[str, ...] = ()
    limit: int = 0
    swap: bool = False

    def __post_init__(self) -> None:
        for key, choices in (("start", STARTS), ("train", TRAININGS)):
            if getattr(self, key) not in choices:
                raise ConfigError(
                    f"arm {self.name}: {key} must be one of {', '.join(choices)}, not "
                    f"{getattr(self, key)!r}"
                )


@dataclass(frozen=True)
class Experiment:
    """What is compared.

    Attributes:
        config: training configuration, a name or a YAML file.
        data: the scenes.
        arms: in the order of the table.
        settings: `section.key=value` for all arms.
    """

    config: str
    data: DataConfig
    arms: tuple[Arm, ...]
    settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if len(set(names)) != len(names) or not names:
            raise ConfigError("an experiment needs arms, each with a name of its own")


def load_experiment(path: Path) -> Experiment:
    """Read an experiment.

    Raises:
        ConfigError: not YAML, an unknown key, or a value of the wrong type or range.
        OSError: not there.
    """
    try:
        data = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    return build(Experiment, data, "")


# --- running ------------------------------------------------------------------------------------


def run_experiment(
    experiment: Experiment, seeds: Sequence[int], arms: Sequence[str], out: Path
) -> list[dict[str, Any]]:
    """Train and judge arms for every seed, or what of it is not done yet.

    Args:
        experiment: what is compared.
        seeds: of weights, order and rollouts; each is a run of its own.
        arms: names of those to run.
        out: directory of data, weights and results.

    Returns:
        One result for each seed and arm that is done, also of earlier calls: `seed`, `arm` and what
        `mgsd evaluate` wrote.

    Raises:
        ExperimentError: there is no such arm, too many seeds, or `out` holds another experiment.
        mgsd_core.steps.StepError: a step failed; it has said why.
    """
    known = {arm.name: arm for arm in experiment.arms}
    if unknown := sorted(set(arms) - set(known)):
        raise ExperimentError(f"no arm {unknown[0]!r}; arms are: {', '.join(known)}")
    begun = _check_same(experiment, out)
    count = len({f"seed-{seed}" for seed in seeds} | {path.name for path in out.glob("seed-*")})
    if count > _MOST_SEEDS:  # said before days of training, not after
        raise ExperimentError(f"{out} would hold {count} seeds; the most are {_MOST_SEEDS}")
    data = out / "data"
    for split in ("train", "validation", "test"):
        for task in experiment.data.tasks:
            _generate(experiment.data, task, split, data)
    write_file(out / "experiment.json", begun)
    for seed in seeds:
        run = out / f"seed-{seed}"
        for name in arms:
            _run_arm(experiment, known[name], seed, data, run)
    return collect(experiment, out)


def collect(experiment: Experiment, out: Path) -> list[dict[str, Any]]:
    """Return the results of all seeds and arms that are done below `out`."""
    found = []
    for run in sorted(out.glob("seed-*"), key=lambda path: int(path.name.removeprefix("seed-"))):
        for arm in experiment.arms:
            file = run / "results" / arm.name / "results.json"
            if file.is_file():
                result = json.loads(file.read_text())
                # Where it lay on the machine is nobody's business.
                for place in ("model", "data"):
                    result.pop(place, None)
                seed = int(run.name.removeprefix("seed-"))
                found.append({"seed": seed, "arm": arm.name, **result})
    return found


def _check_same(experiment: Experiment, out: Path) -> str:
    """Refuse results of one experiment beside those of another; return what `out` remembers."""
    file = out / "experiment.json"
    wanted = json.loads(json.dumps(asdict(experiment)))  # as it is read back: lists, no tuples
    arms = {arm["name"]: arm for arm in wanted.pop("arms")}
    known: dict[str, Any] = {"arms": {}}
    if file.is_file():
        try:
            known = json.loads(file.read_text())
            changed = [key for key in wanted if known[key] != wanted[key]]
            changed += [f"the arm {n}" for n in arms if known["arms"].get(n, arms[n]) != arms[n]]
        except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ExperimentError(
                f"{file} is damaged ({error!r}): take another --out, or delete it if what lies "
                "beside it is of this experiment"
            ) from None
        if changed:
            raise ExperimentError(
                f"{out} was begun with something else as {changed[0]}; take another --out"
            )
    return json.dumps({**wanted, "arms": known["arms"] | arms}, indent=1) + "\n"


def _generate(config: DataConfig, task: Task, split: str, data: Path) -> None:
    run_step(
        "generate", "--family", task.family, "--level", task.level,
        "--count", getattr(config, split), "--split", split, "--seed", config.seed,
        "--size", config.size, "--styles", config.styles, "--renderer", config.renderer,
        "--workers", 2, "--out", data,
    )  # fmt: skip


def _run_arm(experiment: Experiment, arm: Arm, seed: int, data: Path, run: Path) -> None:
    judged = run / "results" / arm.name
    if (judged / "results.json").is_file():
        return
    seeded = [f"{s}.seed={seed}" for s in ("backbone", "text", "coldstart", "distill")]
    shared = [*seeded, *experiment.settings]
    if not (run / "stage1" / "model").is_dir():
        run_step("coldstart", *_training(experiment, shared, data), "--out", run)
    start = run / arm.start / "model"
    model, where = start, run / "arms" / arm.name
    settings = _training(experiment, [*shared, *arm.settings], data)
    limit = ["--limit", arm.limit] if arm.limit else []
    if arm.train == "coldstart":
        run_step("coldstart", *settings, *limit, "--base", start, "--out", where)
        model = where / "stage1" / "model"
    elif arm.train == "distill":
        teacher = ["--teacher", run / "base" / "model"]
        run_step("distill", *settings, *limit, "--student", start, *teacher, "--out", where)
        model = where / "stage2" / "model"
    swap = ["--swap-images"] if arm.swap else []
    run_step("evaluate", "--model", model, "--data", data, *swap, "--out", judged)


def _training(experiment: Experiment, settings: Sequence[str], data: Path) -> list[object]:
    words: list[object] = ["--config", experiment.config, "--data", data]
    for setting in settings:
        words += ["--set", setting]
    return words


# --- what came out ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A mean over seeds [share of 1].

    Attributes:
        mean: over the seeds.
        half: half the width of the mean's 95 % confidence interval (Student's t over the seeds);
            None for a single seed.
        new: the same for what one more seed would give (prediction interval).
        values: of the seeds.
    """

    mean: float
    half: float | None
    new: float | None
    values: tuple[float, ...]

    def __str__(self) -> str:
        """Return percent, as `74.5 ± 3.1`."""
        half = "" if self.half is None else f" ± {100 * self.half:.1f}"
        return f"{100 * self.mean:.1f}{half}"


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of values of different seeds with its intervals.

    Raises:
        ExperimentError: there are none, or more than the table of quantiles has.
    """
    count = len(values)
    if not 1 <= count <= _MOST_SEEDS:
        raise ExperimentError(f"intervals are for 1 to {_MOST_SEEDS} seeds, not {count}")
    if count == 1:
        return Interval(values[0], None, None, tuple(values))
    spread = _T95[count - 2] * statistics.stdev(values)
    return Interval(
        statistics.fmean(values),
        spread / math.sqrt(count),
        spread * math.sqrt(1 + 1 / count),
        tuple(values),
    )


@dataclass(frozen=True)
class Row:
    """Success of an arm.

    Attributes:
        name, title: of the arm.
        macro: over families.
        levels: by family and level.
    """

    name: str
    title: str
    macro: Interval
    levels: Mapping[tuple[str, str], Interval]


def rows(experiment: Experiment, results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return a row for every arm that has results, and for what was measured beside it.

    The symbolic upper bound is the base's, the swapped control that of the arms that ask for it.
    """
    found = []
    for arm in experiment.arms:
        of_arm = [r for r in results if r["arm"] == arm.name]
        found += _row(arm.name, arm.title, of_arm)
        if arm.swap:
            swapped = [r["image_swapped"] for r in of_arm]
            found += _row(f"{arm.name}-swapped", f"{arm.title}, pictures swapped", swapped)
            chance = [s["chance"] for s in swapped]
            found += _row(f"{arm.name}-chance", "chance: plans of the swapped pictures", chance)
    bounds = [
        r["symbolic"] for a in experiment.arms for r in results if a.train == "none"
        and a.start == "base" and r["arm"] == a.name
    ]  # fmt: skip
    return found + _row("symbolic", "upper bound: the base reads the true state", bounds)


def _row(name: str, title: str, summaries: Sequence[Mapping[str, Any]]) -> list[Row]:
    if not summaries:
        return []
    macro = interval([s["macro"]["success"] for s in summaries])
    levels = {
        (family, level): interval(
            [s["families"][family]["levels"][level]["success"] for s in summaries]
        )
        for family, of_family in summaries[0]["families"].items()
        for level in of_family["levels"]
    }
    return [Row(name, title, macro, levels)]


def markdown(table: Sequence[Row]) -> str:
    """Return rows as a Markdown table: success in percent, mean and 95 % confidence interval."""
    if not table:
        raise ExperimentError("no arm is done yet")
    columns = list(table[0].levels)
    heads = ["success %", "macro", *(f"{family} {level}" for family, level in columns)]
    lines = [heads, ["---", *["---:"] * (len(columns) + 1)]]
    for row in table:
        values = [f"{100 * row.levels[c].mean:.1f}" for c in columns]
        lines.append([row.title, str(row.macro), *values])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw(table: Sequence[Row], path: Path) -> None:
    """Draw success by arm, a dot a seed and a bar for the mean's interval, as SVG.

    The bytes follow from the rows alone.
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
            colour = "#c05020" if row.name == "mgsd" else "#4a6a8a"
            axes.barh(y, mean, height=0.62, color=colour, alpha=0.35)
            axes.errorbar(mean, y, xerr=half, color=colour, capsize=3, linewidth=1.2)
            axes.plot(values, [y] * len(values), "o", color=colour, markersize=3.5)
        axes.set_yticks(range(len(table)), [row.title for row in table])
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("success on held-out scenes, macro average [%]")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        temporary = path.with_name(f".{path.name}")
        figure.savefig(temporary, format="svg", metadata={"Date": None})
        temporary.replace(path)


def write_results(experiment: Experiment, results: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Write `results.json`: raw results, with the experiment and versions."""
    report = {
        "schema_version": 1,
        "experiment": asdict(experiment),
        "versions": {name: version(name) for name in _LIBRARIES},
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "results": list(results),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / "results.json", json.dumps(report, indent=1) + "\n")


def redraw(out: Path) -> str:
    """Write `table.md` and `success.svg` from the `results.json` beside them; return the table.

    Raises:
        ExperimentError: `results.json` is damaged, or of another version.
        OSError: it is not there.
    """
    if not (out / "results.json").is_file():
        raise FileNotFoundError(f"{out} holds no results.json: run the experiment first")
    try:
        report = json.loads((out / "results.json").read_text())
        if report["schema_version"] != 1:
            raise ExperimentError(
                f"{out / 'results.json'} has the schema {report['schema_version']}, not 1"
            )
        experiment = build(Experiment, report["experiment"], "")
        table = rows(experiment, report["results"])
        text = markdown(table)
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ExperimentError(f"{out / 'results.json'} is damaged: {error!r}") from None
    write_file(out / "table.md", text)
    draw(table, out / "success.svg")
    return text
