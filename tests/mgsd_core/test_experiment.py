from __future__ import annotations

import json
import statistics
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgsd_core.cli import main
from mgsd_core.config import ConfigError
from mgsd_core.experiment import ExperimentError, interval, load_experiment, redraw

TINY = """
config: nano
settings:
  - backbone.image_size=64
  - backbone.nano.patch=16
  - text.steps=2
  - text.batch=2
  - coldstart.steps=2
  - coldstart.batch=4
  - distill.steps=2
  - distill.batch=2
  - distill.validate_every=0
data:
  tasks: [{family: frozenlake, level: 3-4}, {family: maze, level: "3"}]
  train: 4
  validation: 2
  test: 3
  size: 64
  styles: plain
arms:
  - {name: base, title: base, start: base}
  - {name: supervised, title: plans, start: base, train: coldstart, limit: 2,
     settings: [coldstart.target=plan]}
  - {name: mgsd, title: MGSD, start: stage1, train: distill, swap: true}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    path = tmp_path_factory.mktemp("experiment")
    (path / "tiny.yaml").write_text(TINY)
    command = ["experiment", str(path / "tiny.yaml"), "--seeds", "3", "--out", str(path / "runs")]
    assert main(command) == 0
    return path, command


def test_an_experiment_judges_every_arm_on_the_same_scenes(done):
    path, _ = done
    report = json.loads((path / "results.json").read_text())
    results = report["results"]
    assert [(r["seed"], r["arm"]) for r in results] == [(3, "base"), (3, "supervised"), (3, "mgsd")]
    assert len({r["data_digest"] for r in results}) == 1
    assert len({r["model_digest"] for r in results}) == 3
    assert all(r["count"] == 9 for r in results)
    assert report["experiment"]["arms"][1]["limit"] == 2
    assert set(report["versions"]) >= {"torch", "transformers"}
    assert str(path) not in (path / "results.json").read_text()
    lines = (path / "table.md").read_text().splitlines()
    assert lines[0] == "| success % | macro | frozenlake 3 | frozenlake 4 | maze 3 |"
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| base",
        "| plans",
        "| MGSD",
        "| MGSD, pictures swapped",
        "| chance: plans of the swapped pictures",
        "| upper bound: the base reads the true state",
    ]
    assert ET.parse(path / "success.svg").getroot().tag.endswith("svg")


def test_stages_are_trained_once_and_shared_by_the_arms(done):
    run = done[0] / "runs" / "seed-3"
    assert {p.name for p in run.iterdir()} == {"base", "stage1", "arms", "results"}
    assert {p.name for p in (run / "arms" / "mgsd").iterdir()} == {"stage2"}
    assert {p.name for p in (run / "arms" / "supervised").iterdir()} == {"stage1"}


def test_a_second_call_trains_nothing_and_draws_the_same(done, capfd):
    path, command = done
    before = {f.name: f.read_bytes() for f in path.iterdir() if f.is_file()}
    assert main(command) == 0
    said = capfd.readouterr().err
    assert "mgsd generate" in said
    assert "mgsd coldstart" not in said
    assert "mgsd distill" not in said
    assert {f.name: f.read_bytes() for f in path.iterdir() if f.is_file()} == before


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("limit: 2", "limit: 3", "something else as the arm supervised"),
        ("  train: 4", "  train: 5", "something else as data"),
        ("text.steps=2", "text.steps=3", "something else as settings"),
    ],
)
def test_results_of_two_experiments_are_never_mixed(done, tmp_path, capsys, old, new, says):
    path, command = done
    (tmp_path / "other.yaml").write_text(TINY.replace(old, new, 1))
    before = (path / "results.json").read_bytes()
    assert main([command[0], str(tmp_path / "other.yaml"), *command[2:]]) == 2
    assert says in capsys.readouterr().err
    assert (path / "results.json").read_bytes() == before


def test_table_and_plot_are_drawn_from_the_results_alone(done, tmp_path, capsys):
    path, _ = done
    for name in ("results.json", "tiny.yaml"):
        (tmp_path / name).write_bytes((path / name).read_bytes())
    command = ["experiment", str(tmp_path / "tiny.yaml"), "--out", "nowhere", "--redraw"]
    assert main(command) == 0
    for name in ("table.md", "success.svg"):
        assert (tmp_path / name).read_bytes() == (path / name).read_bytes()
    assert capsys.readouterr().out.startswith((path / "table.md").read_text())


@given(st.lists(st.floats(0, 1), min_size=2, max_size=10))
def test_intervals_are_students(values):
    found = interval(values)
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert found.new >= found.half >= 0
    assert found.values == tuple(values)


def test_known_intervals():
    # Student's t with two degrees of freedom: 4.303 · 0.01 / √3.
    found = interval([0.73, 0.74, 0.75])
    assert found.half == pytest.approx(0.024844, abs=1e-5)
    assert found.new == pytest.approx(0.049687, abs=1e-5)
    assert str(found) == "74.0 ± 2.5"
    assert str(interval([0.5])) == "50.0"


@pytest.mark.parametrize("count", [0, 11])
def test_intervals_need_seeds(count):
    with pytest.raises(ExperimentError, match="1 to 10 seeds"):
        interval([0.5] * count)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("start: base}", "start: nowhere}", "arm base: start must be one of base, stage1"),
        ("train: distill", "train: luck", "arm mgsd: train must be one of"),
        ("name: supervised", "name: base", "a name of its own"),
        ("  test: 3", "  test: three", "data.test must be int"),
        ("level: 3-4", "levels: 3-4", "unknown setting data.tasks[0].levels"),
        ("config: nano", "config: [", "is not YAML"),
    ],
)
def test_bad_experiments_are_named(tmp_path, old, new, says):
    assert old in TINY
    (tmp_path / "bad.yaml").write_text(TINY.replace(old, new, 1))
    with pytest.raises(ConfigError) as error:
        load_experiment(tmp_path / "bad.yaml")
    assert says in str(error.value)


def test_unknown_arms_and_failing_steps_are_one_line(tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(TINY.replace("name: base, title", "name: none, title"))
    out = ["--out", str(tmp_path / "runs")]
    assert main(["experiment", str(tmp_path / "tiny.yaml"), "--arms", "base", *out]) == 2
    assert "no arm 'base'; arms are: none, supervised, mgsd" in capsys.readouterr().err
    (tmp_path / "tiny.yaml").write_text(TINY.replace("size: 64\n", "size: 3\n"))
    assert main(["experiment", str(tmp_path / "tiny.yaml"), *out]) == 2
    assert "mgsd generate ended with status 2" in capsys.readouterr().err


def test_damaged_results_are_one_line(tmp_path):
    (tmp_path / "results.json").write_text('{"schema_version": 1}')
    with pytest.raises(ExperimentError, match="is damaged"):
        redraw(tmp_path)
    (tmp_path / "results.json").write_text('{"schema_version": 2}')
    with pytest.raises(ExperimentError, match="schema 2"):
        redraw(tmp_path)


@pytest.mark.parametrize("text", ["{", "{}", "[]"])
def test_a_damaged_memory_of_what_runs_is_one_line(tmp_path, capsys, text):
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "experiment.json").write_text(text)
    assert main(["experiment", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "experiment.json is damaged" in said
    assert said.count("\n") == 1
    assert (tmp_path / "experiment.json").read_text() == text


def test_too_many_seeds_are_refused_before_anything_runs(tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "runs" / "seed-50").mkdir(parents=True)
    seeds = ["--seeds", *map(str, range(10))]
    command = ["experiment", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "runs"), *seeds]
    assert main(command) == 2
    assert "would hold 11 seeds; the most are 10" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["seed-50"]


def test_nothing_to_draw_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the experiment first"):
        redraw(tmp_path)
