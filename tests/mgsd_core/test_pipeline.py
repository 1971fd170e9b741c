"""Two models in a row: one reads the state off the picture, the other plans from what was read."""

from __future__ import annotations

import json

import pytest

from mgsd_core import prompts
from mgsd_core.cli import main
from mgsd_core.evaluation.answers import read_states
from mgsd_core.evaluation.pipeline import evaluate_pipeline
from mgsd_core.evaluation.score import score
from mgsd_core.evaluation.summary import summarise
from mgsd_core.installed import installed_path
from mgsd_core.model import load_backbone, save_backbone
from mgsd_core.scenes import load_scenes
from sim.dataset import write_dataset
from sim.request import DatasetRequest

READER, PLANNER = "models/nano-stage1", "models/nano-base"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    tasks = [("frozenlake", 3), ("maze", 3)]
    write_dataset(
        path, DatasetRequest(tasks, "test", seed=987_000, count=4, size=160, styles="overhead")
    )
    return path


@pytest.fixture(scope="module")
def untaught_dir(restless_backbone, tmp_path_factory):
    path = tmp_path_factory.mktemp("untaught") / "model"
    path.mkdir()
    save_backbone(restless_backbone, path)
    return path


@pytest.fixture(scope="module")
def shipped(data, tmp_path_factory):
    """The results of the shipped reader and planner, of pictures, text and swapped pictures."""
    out = tmp_path_factory.mktemp("results")
    reader, planner = (installed_path(name) for name in (READER, PLANNER))
    assert _evaluate(reader, data, out, "--planner", str(planner), "--swap-images") == 0
    return out


def _evaluate(model, data, out, *more):
    return main(["evaluate", "--model", str(model), "--data", str(data), "--out", str(out), *more])


def _results(out):
    return json.loads((out / "results.json").read_text())


def _records(out, source):
    return [json.loads(line) for line in (out / f"responses_{source}.jsonl").open()]


def test_what_one_model_reads_another_plans_from(shipped, data, tmp_path):
    results = _results(shipped)
    assert results["macro"]["success"] >= 0.75
    assert results["macro"]["state"] >= 0.75
    assert _evaluate(installed_path(READER), data, tmp_path, "--input", "image") == 0
    assert _results(tmp_path)["macro"]["success"] <= 0.25  # the reader alone plans nothing


def test_a_record_holds_what_both_said(shipped, data):
    backbone = load_backbone(installed_path(READER))
    scenes = load_scenes(data, "test", backbone.image)
    truths = zip(scenes.names, scenes.states, scenes.plans, strict=True)
    for record, (name, state, plan) in zip(_records(shipped, "image"), truths, strict=True):
        said, planned = record["text"].split("\n")
        assert "<answer>" not in said and "<answer>" in planned
        read = prompts.parse_state_text(said, state.family)
        assert record["state"] == (read == state)
        # As any other response: whoever reads the text finds the reader's state and the plan.
        parsed = prompts.parse_response(record["text"], state.family)
        assert parsed.state == read
        again = score(name, state, plan, parsed, record["text"])
        assert all(getattr(again, key) == record[key] for key in ("success", "cause", "consistent"))


def test_with_the_pictures_of_other_scenes_it_reads_those(shipped):
    swapped = _results(shipped)["image_swapped"]
    assert swapped["macro"]["state"] == 0.0
    assert swapped["macro"]["consistent"] >= 0.75


def test_of_text_the_planner_alone_reads_the_true_state(shipped, data, tmp_path):
    assert _evaluate(installed_path(PLANNER), data, tmp_path, "--input", "text") == 0
    assert _records(shipped, "text") == _records(tmp_path, "text")
    assert _results(shipped)["symbolic"]["macro"] == _results(tmp_path)["macro"]


def test_results_name_both_models_and_their_digest_depends_on_both(
    model_dir, untaught_dir, data, tmp_path
):
    pairs = [(a, b) for a in (model_dir, untaught_dir) for b in (model_dir, untaught_dir)]
    digests = set()
    for number, (reader, planner) in enumerate(pairs):
        out = tmp_path / str(number)
        more = ("--planner", str(planner), "--input", "text", "--limit", "1")
        assert _evaluate(reader, data, out, *more) == 0
        results = _results(out)
        assert results["model"] == f"{reader} + {planner}"
        told = [results[part] for part in ("reader", "planner")]
        assert [part["model"] for part in told] == [str(reader), str(planner)]
        same = told[0]["model_digest"] == told[1]["model_digest"]
        assert same == (reader == planner)
        digests.add(results["model_digest"])
    assert len(digests) == 4


def test_a_state_that_cannot_be_read_is_a_failure(restless_backbone, trained_backbone, data):
    scenes = load_scenes(data, "test", restless_backbone.image)
    records = evaluate_pipeline(restless_backbone, trained_backbone, scenes, "image", batch=3)
    assert [record.scene for record in records] == list(scenes.names)
    for record in records:
        assert (record.failure, record.cause) == ("unparsable", "no_plan")
        assert not (record.parsed or record.state or record.success)
        assert record.problem is not None
    assert summarise(records)["macro"]["success"] == 0.0


def test_a_plan_that_the_reader_makes_is_not_taken(trained_backbone, tmp_path):
    # It nearly knows these pictures by heart, and answers every question about them with a plan.
    write_dataset(tmp_path, DatasetRequest([("frozenlake", 3)], "train", seed=0, count=4))
    scenes = load_scenes(tmp_path, "train", trained_backbone.image)
    assert all("<answer>" in said for said in read_states(trained_backbone, scenes))
    planner = load_backbone(installed_path(PLANNER))
    records = evaluate_pipeline(trained_backbone, planner, scenes, "image")
    assert sum(record.state for record in records) >= 2
    for record in records:
        assert record.text.count("<answer>") == 1
        assert "<answer>" in record.text.split("\n")[1]


def test_both_sides_must_be_weights_that_were_trained_here(
    model_dir, bundle_dir, data, tmp_path, capsys
):
    out = tmp_path / "out"
    for model, planner in (
        (bundle_dir, model_dir),
        (model_dir, bundle_dir),
        (model_dir, "nowhere"),
        ("hf:Qwen/Qwen3-VL-4B-Instruct", model_dir),
    ):
        assert _evaluate(model, data, out, "--planner", str(planner)) == 2
        error = capsys.readouterr().err
        assert "holds no weights that were trained here" in error
        assert error.count("\n") == 1
    for other in (["--endpoint", "http://127.0.0.1:9/v1"], ["--compare", "a", "b"]):
        words = ["evaluate", *other, "--planner", str(model_dir)]
        assert main([*words, "--data", str(data), "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert "give --model DIR beside it" in error and error.count("\n") == 1
    assert not out.exists()
