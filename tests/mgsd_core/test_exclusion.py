"""States of benchmarks that are kept out of the text that stages 0 and 1 plan from."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest

import mgsd_core.coldstart
import mgsd_core.distill
from mgsd_core.cli import main
from mgsd_core.coldstart import text_sample
from mgsd_core.config import TextConfig
from mgsd_core.model import NanoConfig, build_nano
from mgsd_core.prompts import parse_state_text
from sim import FrozenLake, State, split_of, state_digest
from sim.cases import excluded_states
from sim.dataset import iter_episodes, write_dataset
from sim.request import DatasetRequest

SIZES = {"hidden": 48, "layers": 1, "heads": 2, "kv_heads": 1, "intermediate": 64}
SETTINGS = [
    "backbone.image_size=64",
    *(f"backbone.nano.{name}={size}" for name, size in SIZES.items()),
    "backbone.nano.vision_hidden=32",
    "backbone.nano.vision_layers=1",
    *(f"{stage}.{key}" for stage in ("text", "coldstart") for key in ("batch=16", "steps=3")),
    "coldstart.replay=0.5",
]
LAKES = [("frozenlake", 3)]


def table(lake: FrozenLake) -> str:
    letters = {"S": "@", "G": "*", "H": "#", "F": "_"}
    lines = ["| | Col 1 | Col 2 | Col 3 |"]
    for number, cells in enumerate(lake.rows(), 1):
        lines.append(f"| Row {number} | " + " | ".join(letters[c] for c in cells) + " |")
    return "\n".join(lines)


def cases(folder: Path, lakes: list[State]) -> Path:
    (folder / "level3").mkdir(parents=True)
    for number, lake in enumerate(lakes):
        assert isinstance(lake, FrozenLake)
        (folder / "level3" / f"{number}.txt").write_text(table(lake))
    return folder


def coldstart(data: Path, out: Path, *more: object, settings: tuple[str, ...] = ()) -> int:
    words = ["coldstart", "--data", data, "--out", out, *more]
    words += [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]
    return main([str(word) for word in words])


@pytest.fixture
def planned(monkeypatch):
    """The states of all text planning problems that training computes a loss of."""
    states: list[State] = []
    passes = mgsd_core.coldstart.supervised_passes

    def seen(backbone, compute, samples, images=None):
        if images is None:
            states.extend(parse_state_text(sample.answer, "frozenlake") for sample in samples)
        return passes(backbone, compute, samples, images)

    monkeypatch.setattr(mgsd_core.coldstart, "supervised_passes", seen)
    monkeypatch.setattr(mgsd_core.distill, "supervised_passes", seen)
    return states


def test_text_planning_has_no_excluded_state(tmp_path, planned, capsys):
    write_dataset(tmp_path / "all", DatasetRequest(LAKES, "train", 0, 8, 64, "flat"))
    assert coldstart(tmp_path / "all", tmp_path / "one") == 0
    assert len(planned) == 3 * 16 + 3 * 8  # stage 0, and the text replayed in stage 1
    shown = {episode.state for episode in iter_episodes(tmp_path / "all", "train")}
    known = list(dict.fromkeys(state for state in planned if state not in shown))
    assert len(known) > 30
    benchmark = cases(tmp_path / "benchmark", known[::2])
    left_out = excluded_states([benchmark])[LAKES[0]]
    planned.clear()

    # Nothing of what is left out is in the pictures, so these will do.
    assert coldstart(tmp_path / "all", tmp_path / "two", "--exclude", benchmark) == 0
    assert len(planned) == 3 * 16 + 3 * 8
    assert not {state_digest(state) for state in planned} & left_out
    assert {split_of(state) for state in planned} == {"train"}
    assert set(planned) & set(known[1::2])
    for stage in ("base", "stage1"):
        told = json.loads((tmp_path / "two" / stage / "run.json").read_text())
        assert set(told["exclude"]) == {"frozenlake-3"}
        assert "exclude" not in json.loads((tmp_path / "one" / stage / "run.json").read_text())

    # Neither run goes on as the other.
    capsys.readouterr()
    assert coldstart(tmp_path / "all", tmp_path / "two") == 2
    assert "exclude was {'frozenlake-3': " in capsys.readouterr().err
    assert coldstart(tmp_path / "all", tmp_path / "one", "--exclude", benchmark) == 2
    assert "exclude was None" in capsys.readouterr().err
    assert coldstart(tmp_path / "all", tmp_path / "two", "--exclude", benchmark) == 0


def test_a_data_set_made_without_states_wants_the_same_left_out(tmp_path, planned, capsys):
    write_dataset(tmp_path / "all", DatasetRequest(LAKES, "train", 0, 6, 64, "flat"))
    shown = [episode.state for episode in iter_episodes(tmp_path / "all", "train")]
    some, others = (cases(tmp_path / n, shown[i : i + 3]) for n, i in (("some", 0), ("others", 3)))
    data = tmp_path / "data"
    write_dataset(
        data, DatasetRequest(LAKES, "train", 0, 6, 64, "flat", exclude=excluded_states([some]))
    )
    capsys.readouterr()
    for more in ([], ["--exclude", others], ["--exclude", some, "--exclude", others]):
        assert coldstart(data, tmp_path / "run", *more) == 2
        said = capsys.readouterr().err.strip()
        assert "\n" not in said and "was made with --exclude: frozenlake 3" in said
    assert not planned and not (tmp_path / "run").exists()
    assert coldstart(data, tmp_path / "run", "--exclude", some) == 0
    assert not set(planned) & set(shown[:3])
    # Who plans from no text need not say it again.
    settings = ("text.steps=1", "coldstart.replay=0", "coldstart.steps=1")
    base = ["--base", tmp_path / "run" / "base" / "model"]
    assert coldstart(data, tmp_path / "pictures", *base, settings=settings) == 0


def test_text_replayed_in_stage_2_has_no_excluded_state(tmp_path, planned, capsys):
    write_dataset(tmp_path / "all", DatasetRequest(LAKES, "train", 0, 6, 64, "flat"))
    assert coldstart(tmp_path / "all", tmp_path / "run") == 0
    words = ["distill", "--student", tmp_path / "run" / "stage1" / "model"]
    words += ["--teacher", tmp_path / "run" / "base" / "model"]
    for setting in ("steps=3", "batch=32", "replay=0.75", "max_response=8", "validate_every=0"):
        words += ["--set", f"distill.{setting}"]
    words = [str(word) for word in words]

    def distill(data: str, out: str, *more: object) -> int:
        places = ["--data", tmp_path / data, "--out", tmp_path / out]
        return main([*words, *map(str, (*places, *more))])

    planned.clear()
    assert distill("all", "one") == 0
    assert len(planned) == 3 * 24
    shown = {episode.state for episode in iter_episodes(tmp_path / "all", "train")}
    known = list(dict.fromkeys(state for state in planned if state not in shown))
    benchmark = cases(tmp_path / "benchmark", known[::2])
    left_out = excluded_states([benchmark])[LAKES[0]]
    planned.clear()
    assert distill("all", "two", "--exclude", benchmark) == 0
    assert not {state_digest(state) for state in planned} & left_out
    assert set(planned) & set(known[1::2])
    assert set(json.loads((tmp_path / "two" / "stage2" / "run.json").read_text())["exclude"])

    # Pictures that leave something out want the same of the text.
    some = excluded_states([benchmark])
    write_dataset(tmp_path / "part", DatasetRequest(LAKES, "train", 0, 6, 64, "flat", exclude=some))
    capsys.readouterr()
    assert distill("part", "three") == 2
    assert "was made with --exclude: frozenlake 3" in capsys.readouterr().err
    assert not (tmp_path / "three").exists()


@pytest.mark.parametrize("split", ["train", "validation"])
def test_pictures_that_show_an_excluded_state_are_refused(tmp_path, split, capsys):
    for name in ("train", "validation"):
        write_dataset(tmp_path / "data", DatasetRequest(LAKES, name, 0, 4, 64, "flat"))
    shown = [episode.state for episode in iter_episodes(tmp_path / "data", split)]
    benchmark = cases(tmp_path / "benchmark", shown[2:3])
    validate = ("coldstart.validate_every=1",)
    out = tmp_path / "run"
    assert coldstart(tmp_path / "data", out, "--exclude", benchmark, settings=validate) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert f"frozenlake-3-{split}-2 shows a state that --exclude keeps out" in said
    assert not out.exists()


def test_a_benchmark_that_cannot_be_read_in_full_is_refused(tmp_path, capsys):
    write_dataset(tmp_path / "data", DatasetRequest(LAKES, "train", 0, 2, 64, "flat"))
    benchmark = cases(tmp_path / "benchmark", [])
    (benchmark / "level3" / "0.txt").write_text("| | Col 1 |\n")
    assert coldstart(tmp_path / "data", tmp_path / "run", "--exclude", benchmark) == 2
    assert "0.txt:1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_without_exclusions_the_text_is_what_it_always_was():
    backbone = build_nano(NanoConfig(**SIZES, vision_hidden=32, vision_layers=1), 64, seed=0)
    config = TextConfig(batch=1, learning_rate=1e-3, detours=0.3)
    tasks = [("frozenlake", 3), ("maze", 3), ("minibehaviour", 5)]
    rng = random.Random("text")
    samples = [text_sample(backbone, rng, tasks, config) for _ in range(40)]
    texts = [[s.prompt.system, s.prompt.user, s.answer, s.scene, s.begun] for s in samples]
    found = hashlib.sha256(json.dumps([texts, rng.random()]).encode()).hexdigest()
    assert found == "52fc02fe5514cbd2be0a6df59f58155d369ab21780d9f6e28492b3a81f124115"
    # Nor do exclusions of states that are not met change anything.
    rng = random.Random("text")
    exclude = {task: frozenset({"0" * 64}) for task in tasks}
    assert [text_sample(backbone, rng, tasks, config, exclude) for _ in range(40)] == samples
