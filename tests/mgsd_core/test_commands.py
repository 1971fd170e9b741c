from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from mgsd_core import cli
from mgsd_core.cli import main
from sim import sample
from sim.dataset import write_dataset
from sim.request import DatasetRequest


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    # Seeds 0 to 15 of train are the pictures that the small student knows by heart.
    write_dataset(path, DatasetRequest([("frozenlake", 3)], "train", seed=0, count=16))
    write_dataset(
        path, DatasetRequest([("frozenlake", 3), ("frozenlake", 4)], "test", seed=0, count=3)
    )
    return path


def _evaluate(model, data, out, *more):
    return main(["evaluate", "--model", str(model), "--data", str(data), "--out", str(out), *more])


def test_evaluate_writes_what_other_programs_read(model_dir, data, tmp_path, capsys):
    assert _evaluate(model_dir, data, tmp_path, "--split", "train") == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["macro"]["success"] == results["macro"]["optimal"] == 1.0
    level = results["families"]["frozenlake"]["levels"]["3"]
    assert (level["success"], level["state"], level["count"]) == (1.0, 1.0, 16)
    assert set(level["fields"]) == {"size", "start", "goal", "holes"}
    # The student has never read symbols: the other input is worse, and the gap says so.
    assert results["symbolic"]["macro"]["success"] < 1.0
    assert results["modality_gap"] == results["symbolic"]["macro"]["success"] - 1.0
    lines = (tmp_path / "responses_image.jsonl").read_text().splitlines()
    assert len(lines) == 16
    assert all(json.loads(line)["success"] for line in lines)
    printed = capsys.readouterr()
    assert json.loads(printed.out)["success"] == 1.0
    assert "100.0" in printed.err


def test_evaluate_takes_levels_inputs_and_limits(model_dir, data, tmp_path):
    assert _evaluate(model_dir, data, tmp_path, "--input", "image", "--limit", "2") == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["families"]["frozenlake"]["levels"]) == {"3", "4"}
    assert results["count"] == 4
    assert "symbolic" not in results
    assert not (tmp_path / "responses_text.jsonl").exists()


def test_with_the_pictures_of_other_scenes_a_model_that_looks_falls_to_chance(
    model_dir, data, tmp_path, capsys
):
    arguments = ("--split", "train", "--input", "image", "--swap-images")
    assert _evaluate(model_dir, data, tmp_path, *arguments) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    swapped = results["image_swapped"]
    assert results["macro"]["success"] == 1.0
    assert swapped["count"] == 16
    hashes = {
        source: {
            line["scene"]: line["picture"]
            for text in (tmp_path / f"responses_{source}.jsonl").read_text().splitlines()
            for line in [json.loads(text)]
        }
        for source in ("image", "swapped")
    }
    # Each line names the picture that was shown.
    assert all(hashes["swapped"][scene] != shown for scene, shown in hashes["image"].items())
    assert set(hashes["swapped"].values()) == set(hashes["image"].values())
    # It answers every picture by heart, so it plans without a fault for the scene that is shown.
    assert swapped["macro"]["success"] == swapped["chance"]["macro"]["success"] < 0.5
    assert swapped["macro"]["state"] == 0.0
    assert "chance" in capsys.readouterr().err


def test_a_bundle_is_judged_as_a_robot_runs_it(bundle_dir, model_dir, data, tmp_path):
    limit = ("--split", "train", "--swap-images")
    assert _evaluate(bundle_dir, data, tmp_path / "bundle", *limit) == 0
    assert _evaluate(model_dir, data, tmp_path / "weights", "--input", "image", *limit) == 0
    ours, theirs = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("bundle", "weights")
    )
    for key in ("macro", "families", "count", "image_swapped", "data_digest"):
        assert ours[key] == theirs[key]
    assert ours["macro"]["success"] == 1.0
    assert "symbolic" not in ours


def test_results_say_how_sure_they_are(model_dir, data, tmp_path):
    assert _evaluate(model_dir, data, tmp_path, "--split", "train") == 0
    results = json.loads((tmp_path / "results.json").read_text())
    level = results["families"]["frozenlake"]["levels"]["3"]
    assert level["intervals"]["success"] == pytest.approx([0.806, 1.0], abs=1e-3)  # of 16 in 16
    low, high = results["modality_gap_interval"]
    assert low < results["modality_gap"] < high < 0
    first = (tmp_path / "results.json").read_bytes(), (tmp_path / "report.html").read_bytes()
    assert _evaluate(model_dir, data, tmp_path, "--split", "train") == 0
    assert first == (
        (tmp_path / "results.json").read_bytes(),
        (tmp_path / "report.html").read_bytes(),
    )


def test_two_results_are_compared_in_the_terminal(model_dir, data, tmp_path, capsys):
    results = [tmp_path / name for name in ("whole", "part")]
    assert _evaluate(model_dir, data, results[0], "--split", "train", "--input", "both") == 0
    assert _evaluate(model_dir, data, results[1], "--split", "train", "--limit", "9") == 0
    capsys.readouterr()
    compare = ["evaluate", "--compare", *map(str, results)]
    assert main([*compare, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "frozenlake 3" in printed.err and "McNemar" in printed.err
    told = json.loads(printed.out)
    assert (told["count"], told["difference"], told["p"]) == (9, 0.0, 1.0)
    written = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert written["left_out"] == {"first": 7, "second": 0}
    assert main([*compare, "--input", "text"]) == 0
    assert main([*compare, "--input", "both"]) == 2
    assert main([*compare, "--data", str(data)]) == 2
    (results[1] / "results.json").unlink()
    capsys.readouterr()
    assert main(compare) == 2
    error = capsys.readouterr().err
    assert "holds no results.json" in error and error.count("\n") == 1


def test_public_cases_are_evaluated_and_damaged_ones_left_out(model_dir, tmp_path, capsys):
    maps = tmp_path / "maps" / "level3"
    maps.mkdir(parents=True)
    for seed in range(5):
        (maps / f"{seed}.txt").write_text(_map(sample("frozenlake", 3, seed)))
    (maps / "2.txt").write_text("| | Col 1 |\n| Row 1 | ? |\n")
    out = tmp_path / "out"
    words = ["evaluate", "--model", str(model_dir), "--cases", str(maps.parent), "--out", str(out)]
    assert main([*words, "--input", "image"]) == 1
    assert f"left out: {maps / '2.txt'}:" in capsys.readouterr().err
    results = json.loads((out / "results.json").read_text())
    assert results["count"] == 4
    assert results["split"] is None
    assert len(results["problems"]) == 1
    # Where nothing is left it is said why.
    for seed in (0, 1, 3, 4):
        (maps / f"{seed}.txt").unlink()
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "'?' is none of" in error and error.count("\n") == 1
    # Scenes must come from somewhere.
    assert main(["evaluate", "--model", str(model_dir), "--out", str(out)]) == 2


def _map(lake):
    """A map as Visual Spatial Planning writes it."""
    letters = {lake.start: "@", lake.goal: "*", **dict.fromkeys(lake.holes, "#")}
    span = range(lake.size)
    rows = [["", *(f"Col {c + 1}" for c in span)]]
    rows += [[f"Row {r + 1}", *(letters.get((r, c), "_") for c in span)] for r in span]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def test_a_bundle_reads_no_symbols(bundle_dir, data, tmp_path, capsys):
    assert _evaluate(bundle_dir, data, tmp_path / "out", "--input", "text") == 2
    assert "is a bundle: it reads pictures only" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--max-tokens", "0"), "--max-tokens must be at least 1, not 0"),
        (("--picture-size", "0"), "--picture-size must be 1 to"),
        (("--picture-size", "64"), "is a bundle: it says itself how large pictures are"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    bundle_dir, data, tmp_path, capsys, options, says
):
    assert _evaluate(bundle_dir, data, tmp_path / "out", *options) == 2
    assert says in capsys.readouterr().err
    assert main(["evaluate", "--compare", "a", "b", "--swap-images"]) == 2
    assert "--compare reads results, and takes no --swap-images" in capsys.readouterr().err


def test_a_scene_without_another_to_swap_with_is_one_line(model_dir, data, tmp_path, capsys):
    assert _evaluate(model_dir, data, tmp_path, "--limit", "1", "--swap-images") == 2
    assert "--swap-images needs at least two scenes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--split", "holdout"), "unknown split 'holdout'"),
        (("--split", "validation"), "holds no validation episodes"),
        (("--limit", "0"), "at least 1"),
        (("--data", "nowhere"), "nowhere: no such directory"),
        (("--model", "nowhere"), "nowhere: no such directory of weights"),
    ],
)
def test_bad_arguments_are_one_line_and_write_nothing(
    model_dir, data, tmp_path, capsys, arguments, says
):
    out = tmp_path / "out"
    assert _evaluate(model_dir, data, out, *arguments) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_a_truncated_shard_is_one_line(model_dir, data, tmp_path, capsys):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    shard = copy / "frozenlake-3-test-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-200])
    assert _evaluate(model_dir, copy, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert str(shard) in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", ["coldstart", "distill"])
def test_training_needs_data_and_says_so(model_dir, tmp_path, capsys, command):
    words = [command, "--data", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    if command == "distill":
        words += ["--student", str(model_dir), "--teacher", str(model_dir)]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "no such directory" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_help_is_quick_because_it_loads_nothing_heavy():
    code = (
        "import sys; from mgsd_core.cli import build_parser; build_parser().format_help();"
        "print([m for m in ('torch', 'transformers', 'onnxruntime', 'rclpy', 'panda3d')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_command_explains_itself(capsys):
    for command in ("generate", "coldstart", "distill", "evaluate", "export", "plan", "demo"):
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
        assert f"mgsd {command}" in capsys.readouterr().out


@pytest.mark.parametrize(("rank", "said", "slept"), [("0", 1, []), ("1", 0, [3.0])])
def test_of_processes_launched_together_the_one_that_speaks_ends_first(
    monkeypatch, capsys, rank, said, slept
):
    """torchrun ends all with the first that fails, and what was wrong would not be said."""
    waits = []

    def ended(status):
        raise SystemExit(status)

    monkeypatch.setattr(cli.time, "sleep", waits.append)
    monkeypatch.setattr(cli.os, "_exit", ended)  # what it is for: tests/mgsd_core/test_processes.py
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr("sys.argv", ["mgsd", "cases", "nowhere"])
    with pytest.raises(SystemExit) as end:
        cli.program()
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == said
    assert waits == slept
