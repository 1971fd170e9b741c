"""The claim as an experiment: several ways to train, judged on the same held-out scenes, by seed.

An experiment is a YAML file. Everything it does is a command that a user can type, run in a process
of its own and shown before; each goes on where it was stopped, so the experiment does too.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from mgsd_core.config import Config, ConfigError, build, config_dict, load_config
from mgsd_core.installed import package_version
from mgsd_core.places import weights_word
from mgsd_core.steps import run_step
from sim.files import write_file

#: Of each arm, where its training starts: the untrained-on-pictures base, or stage 1's weights.
STARTS = ("base", "stage1")

#: What is trained there: nothing, stage 1 with other settings, or stage 2.
TRAININGS = ("none", "coldstart", "distill")

_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "numpy")

# Beside an arm's results.json: what it was made with.
_MADE_WITH = "made_with.json"

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_SEED = re.compile(r"seed-(\d+)")


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

    def __post_init__(self) -> None:
        for key in ("train", "validation", "test"):
            if getattr(self, key) < 1:
                raise ConfigError(f"data.{key} must be at least 1, not {getattr(self, key)}")


@dataclass(frozen=True)
class Arm:
    """One way to come to a planner.

    Attributes:
        name: of its directory and in results.
        title: in tables.
        start: one of `STARTS`.
        train: one of `TRAININGS`.
        settings: `section.key=value` of what is trained, on top of the experiment's configuration.
        limit: training scenes of each family and level that it may use; 0 takes all.
        swap: answer the held-out scenes with swapped pictures too.
        planner: `base`: the arm's model is asked for the state alone, and the base plans from what
            was read; else it plans itself.
    """

    name: str
    title: str
    start: str
    train: str = "none"
    settings: tuple[str, ...] = ()
    limit: int = 0
    swap: bool = False
    planner: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"{self.name!r} names no arm: take a-z, 0-9, - and _")
        choices = {"start": STARTS, "train": TRAININGS, "planner": ("", "base")}
        for key, allowed in choices.items():
            if getattr(self, key) not in allowed:
                raise ConfigError(
                    f"arm {self.name}: {key} must be one of {', '.join(filter(None, allowed))}, "
                    f"not {getattr(self, key)!r}"
                )
        if not self.title.strip() or set(self.title) & set("|\r\n"):
            raise ConfigError(f"arm {self.name}: the title must be a line without '|'")
        if self.limit < 0:
            raise ConfigError(f"arm {self.name}: limit must be at least 0, not {self.limit}")
        # Stage 1 is shared by all arms of a seed: what an arm says of it would change nothing.
        for setting in self.settings:
            if setting.split(".")[0] not in (self.train, "compute") or self.train == "none":
                raise ConfigError(
                    f"arm {self.name}: {setting} has no effect, the arm trains {self.train}"
                )
        if self.limit and self.train == "none":
            raise ConfigError(f"arm {self.name}: limit has no effect, the arm trains none")


@dataclass(frozen=True)
class Experiment:
    """What is compared.

    Attributes:
        config: training configuration, a name or a YAML file.
        data: the scenes.
        arms: in the order of the table.
        settings: `section.key=value` for all arms.
        reference: name of the arm that the others are compared with; none without.
    """

    config: str
    data: DataConfig
    arms: tuple[Arm, ...]
    settings: tuple[str, ...] = ()
    reference: str = ""

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if len(set(names)) != len(names) or not names:
            raise ConfigError("an experiment needs arms, each with a name of its own")
        if self.reference and self.reference not in names:
            raise ConfigError(f"reference: there is no arm {self.reference!r}")
        if self.data.test < 2 and any(arm.swap for arm in self.arms):
            raise ConfigError("pictures can be swapped only where data.test is at least 2")


def load_experiment(path: Path) -> Experiment:
    """Read an experiment; its configuration may be a file beside it.

    Raises:
        ConfigError: not YAML, an unknown key, or a value of the wrong type or range, also in what
            an arm trains with.
        OSError: not there.
    """
    try:
        data = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    experiment = build(Experiment, data, "")
    beside = path.parent / experiment.config
    if beside.is_file():
        experiment = replace(experiment, config=str(beside))
    for arm in experiment.arms:
        config, _ = _settings(experiment, 0, arm)
        if arm.planner and config.backbone.path is not None:
            raise ConfigError(f"arm {arm.name}: planner is for nano, whose base is trained here")
    return experiment


# --- running ------------------------------------------------------------------------------------


def run_experiment(
    experiment: Experiment,
    seeds: Sequence[int],
    arms: Sequence[str],
    out: Path,
    keep: Callable[[list[dict[str, Any]]], None],
) -> None:
    """Train and judge arms for every seed, or what of it is not done yet.

    Args:
        experiment: what is compared.
        seeds: of weights, order and rollouts; each is a run of its own.
        arms: names of those to run.
        out: directory of data, weights and results.
        keep: given the results of all seeds and arms that are done, whenever there is one more;
            see `collect`.

    Raises:
        ExperimentError: there is no such arm, or `out` holds another experiment.
        mgsd_core.steps.StepError: a step failed; it has said why.
    """
    known = {arm.name: arm for arm in experiment.arms}
    if unknown := sorted(set(arms) - set(known)):
        raise ExperimentError(f"no arm {unknown[0]!r}; arms are: {', '.join(known)}")
    for library in ("matplotlib", "scipy"):
        if find_spec(library) is None:
            raise ExperimentError(f'{library} is not installed: pip install "mgsd_ros[experiment]"')
    begun = _check_same(experiment, out)
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / "experiment.json", begun)
    data = out / "data"
    for split in ("train", "validation", "test"):
        for task in experiment.data.tasks:
            _generate(experiment.data, task, split, data)
    for seed in seeds:
        for name in arms:
            _run_arm(experiment, known[name], seed, data, out / f"seed-{seed}")
            keep(collect(experiment, out))


def collect(experiment: Experiment, out: Path) -> list[dict[str, Any]]:
    """Return the results of all seeds and arms that are done below `out`.

    Returns:
        For each, in the order of seeds and arms: `seed`, `arm`, what it was made with, the runs of
        the stages that it was trained in, and what `mgsd evaluate` wrote.

    Raises:
        ExperimentError: a result is damaged.
    """
    found = []
    for seed, run in sorted(_runs(out).items()):
        for arm in experiment.arms:
            file = run / "results" / arm.name / "results.json"
            if file.is_file():
                result = _read(file)
                # Where it lay on the machine is nobody's business.
                for holder in (result, result.get("reader", {}), result.get("planner", {})):
                    for place in ("model", "data"):
                        holder.pop(place, None)
                made = file.with_name(_MADE_WITH)
                made_with = _read(made) if made.is_file() else {}
                found.append({"seed": seed, "arm": arm.name, **made_with, **result})
    return found


def _runs(out: Path) -> dict[int, Path]:
    """Return the directories of the seeds that were begun."""
    matches = [(_SEED.fullmatch(path.name), path) for path in out.glob("seed-*") if path.is_dir()]
    return {int(match[1]): path for match, path in matches if match}


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text()))
    except (TypeError, ValueError):
        raise ExperimentError(f"{file} is damaged: remove it to judge that arm again") from None


def _check_same(experiment: Experiment, out: Path) -> str:
    """Refuse results of one experiment beside those of another; return what `out` remembers."""
    file = out / "experiment.json"
    wanted = described(experiment)
    arms = wanted["arms"]
    if file.is_file():
        try:
            known = json.loads(file.read_text())
            other = difference(known, wanted)
            arms = known["arms"] | arms
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ExperimentError(
                f"{file} is damaged ({error!r}): take another --out, or delete it if what lies "
                "beside it is of this experiment"
            ) from None
        if other and (_runs(out) or (out / "data").exists()):
            raise ExperimentError(
                f"{out} was begun with something else as {other}; take another --out"
            )
    return json.dumps({**wanted, "arms": arms}, indent=1) + "\n"


def described(experiment: Experiment) -> dict[str, Any]:
    """Return what results of an experiment depend on, as JSON gives it back: every setting."""
    config = _without_place(config_dict(load_config(experiment.config, experiment.settings)))
    arms = {arm.name: {**asdict(arm), "title": ""} for arm in experiment.arms}
    told = {"config": config, "data": asdict(experiment.data), "arms": arms}
    result: dict[str, Any] = json.loads(json.dumps(told))
    return result


def _without_place(told: dict[str, Any]) -> dict[str, Any]:
    """Return settings without where on this machine pretrained weights lie."""
    if not (path := told.get("backbone", {}).get("path")):
        return told
    return {**told, "backbone": {**told["backbone"], "path": Path(path).name}}


def difference(one: Any, other: Any, where: str = "") -> str:
    """Return the name of what differs in two described experiments, or nothing.

    Each may have arms and settings that the other does not know.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        both = [key for key in other if key in one]
        found = [difference(one[k], other[k], f"{where}.{k}" if where else k) for k in both]
        return next(filter(None, found), "")
    return "" if one == other else where


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
    made = _made_with()  # now: the code may be another when all is done
    config, settings = _settings(experiment, seed)
    pretrained = config.backbone.path
    if not (run / "stage1" / "model").is_dir() and (arm.start == "stage1" or pretrained is None):
        run_step("coldstart", *settings, "--data", data, "--out", run)
    base: str | Path = run / "base" / "model" if pretrained is None else weights_word(pretrained)
    start, stages = base, [run / "base"]
    if arm.start == "stage1":
        start, stages = run / "stage1" / "model", [*stages, run / "stage1"]
    model = start
    if arm.train != "none":
        stage = _train_arm(experiment, arm, seed, data, run, start, base)
        model, stages = stage / "model", [*stages, stage]

    judged.mkdir(parents=True, exist_ok=True)
    runs = [(stage.name, stage / "run.json") for stage in stages]
    trained = {name: _without_place(_read(file)) for name, file in runs if file.is_file()}
    write_file(judged / _MADE_WITH, json.dumps({**made, "trained": trained}, indent=1) + "\n")
    words: list[object] = ["--data", data, "--out", judged]
    if arm.swap:
        words.append("--swap-images")
    if arm.planner:
        words += ["--planner", base]
    if model is base and pretrained is not None:
        # As it was published: it says nothing of what it is to be shown.
        words += ["--picture-size", config.backbone.image_size]
    run_step("evaluate", "--model", model, *words)


def _train_arm(
    experiment: Experiment,
    arm: Arm,
    seed: int,
    data: Path,
    run: Path,
    start: str | Path,
    base: str | Path,
) -> Path:
    """Train what is the arm's own and return the directory of that stage."""
    out = run / "arms" / arm.name
    words: list[object] = [*_settings(experiment, seed, arm)[1], "--data", data, "--out", out]
    if arm.limit:
        words += ["--limit", arm.limit]
    if arm.train == "coldstart":
        run_step("coldstart", *words, "--base", start)
        return out / "stage1"
    if not (Path(start) / "adapter_config.json").is_file():  # an adapter knows its own teacher
        words += ["--teacher", base]
    run_step("distill", *words, "--student", start)
    return out / "stage2"


def _settings(
    experiment: Experiment, seed: int, arm: Arm | None = None
) -> tuple[Config, list[object]]:
    """Return what a seed is trained with, and the same as words of a command."""
    own = arm.settings if arm else ()
    sections = ["coldstart", "distill"]
    if load_config(experiment.config, experiment.settings).text is not None:
        sections = ["backbone", "text", *sections]
    settings = [*(f"{s}.seed={seed}" for s in sections), *experiment.settings, *own]
    words: list[object] = ["--config", experiment.config]
    for setting in settings:
        words += ["--set", setting]
    return load_config(experiment.config, settings), words


def _made_with() -> dict[str, Any]:
    return {
        "versions": {"mgsd_ros": package_version()} | {name: version(name) for name in _LIBRARIES},
        "source": _source_digest(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}",
    }


def _source_digest() -> str:
    """Return the SHA-256 (hex) of the code that makes scenes, trains and judges."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for package in (here.parent / "sim", here):
        for file in sorted(package.rglob("*.py")):
            digest.update(file.relative_to(here.parent).as_posix().encode() + b"\0")
            digest.update(file.read_bytes())
    return digest.hexdigest()
