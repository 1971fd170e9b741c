"""Runs of several processes on this machine's CPU, started as a user starts them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from sim.dataset import write_dataset
from sim.request import DatasetRequest

SETTINGS = [
    *("backbone.image_size=64", "backbone.nano.hidden=48", "backbone.nano.layers=2"),
    *("backbone.nano.heads=2", "backbone.nano.kv_heads=1", "backbone.nano.intermediate=64"),
    *("backbone.nano.vision_hidden=32", "backbone.nano.vision_layers=1"),
    *(f"{stage}.batch=5" for stage in ("text", "coldstart", "distill")),
    *("text.steps=4", "coldstart.steps=4", "coldstart.replay=0.4", "distill.steps=4"),
    *("coldstart.validate_every=2", "distill.validate_every=2", "compute.pass_tokens=300"),
    # A number drawn between two sums that differ by rounding chooses another token, and all that
    # follows differs. With this seed none lies there.
    "distill.seed=1",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    for split, count in (("train", 12), ("validation", 5)):
        write_dataset(
            path, DatasetRequest([("frozenlake", 3)], split, seed=0, count=count, size=64)
        )
    return path


def _run(processes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    return _launch(processes, "-m", "mgsd_core.cli", *map(str, arguments))


def _launch(processes: int, *words: str) -> subprocess.CompletedProcess[str]:
    if processes > 1:
        # accelerate's own launcher starts one process on a CPU unless there is MPI; it joins those
        # that torch's starts all the same.
        words = (
            *("-m", "torch.distributed.run", "--nproc_per_node", str(processes)),
            *("--master_addr", "127.0.0.1", "--master_port", str(_free_port()), *words),
        )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=environment, check=False
    )


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _train(processes: int, data: Path, out: Path, *settings: str) -> None:
    sets = [word for s in (*SETTINGS, *settings) for word in ("--set", s)]
    common = ("--data", data, "--out", out, *sets)
    done = _run(processes, "coldstart", *common)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1, "one process alone prints the result"
    models = json.loads(done.stdout)
    assert models["processes"] == processes
    done = _run(
        processes,
        "distill",
        *common,
        *("--student", models["model"], "--teacher", models["base"]),  # adapters know it anyway
    )
    assert done.returncode == 0, done.stderr


def _lines(out: Path) -> dict[str, list[dict[str, float]]]:
    return {
        stage: [json.loads(x) for x in (out / stage / "metrics.jsonl").read_text().splitlines()]
        for stage in ("base", "stage1", "stage2")
    }


_SHARE = """
import sys
from mgsd_core.config import ComputeConfig
from mgsd_core.model import NanoConfig, build_nano
from mgsd_core.processes import shard, start_processes, wants_shards, whole_weights
from mgsd_core.training import PassLoss

compute = ComputeConfig()
processes = start_processes(compute)
assert wants_shards(processes)
module = PassLoss(build_nano(NanoConfig(), 64, 0).model, compute)
total = sum(p.numel() for p in module.parameters())
shard(processes, module, module.model.model.language_model.layers, compute)

def held():
    return sum(getattr(p, "to_local", lambda: p)().numel() for p in module.parameters()) / total

sys.stdout.write(f"{held():.2f} ")
with whole_weights(module):
    weight = module.model.lm_head.weight
    assert not hasattr(weight, "to_local") and weight.ndim == 2
sys.stdout.write(f"{held():.2f}\\n")
"""


def test_each_of_two_processes_holds_half(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    script = tmp_path / "share.py"
    script.write_text(_SHARE)
    done = _launch(2, str(script))
    assert done.returncode == 0, done.stderr
    shares = [float(word) for word in done.stdout.split()]
    assert len(shares) == 4
    assert all(0.4 < share < 0.6 for share in shares)


_ENDED = """
import sys
import torch
from mgsd_core.cli import main

assert main(sys.argv[1:]) == 0
assert not torch.distributed.is_initialized()
"""


def _coldstart_in(program: str, where: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Two processes of a program of its own, told to train on data that are not there."""
    script = where / "program.py"
    script.write_text(program)
    return _launch(
        *(2, str(script), "coldstart", "--data", str(where), "--out", str(where / "out")), *words
    )


def test_processes_leave_each_other_before_they_end(tmp_path):
    done = _coldstart_in(_ENDED, tmp_path, "--dry-run")
    assert done.returncode == 0, done.stderr


_FRAGILE = """
import atexit, os
from mgsd_core.cli import program

atexit.register(os.abort)
program()
"""


def test_a_process_ends_before_what_aborts_an_ending_interpreter(tmp_path):
    """Gloo's threads do, in one run of five on a loaded machine; here it is certain."""
    done = _coldstart_in(_FRAGILE, tmp_path, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    assert "exitcode: 2" in _coldstart_in(_FRAGILE, tmp_path).stderr


def _agree(one: Path, other: Path) -> None:
    first, second = _lines(one), _lines(other)
    for stage, lines in first.items():
        assert len(lines) == len(second[stage]) == 4
        for a, b in zip(lines, second[stage], strict=True):
            norm = a.pop("gradient_norm")
            assert b.pop("gradient_norm", norm) == pytest.approx(norm, rel=1e-3), stage
            assert b == pytest.approx(a, rel=1e-4, abs=5e-6), stage
    for stage in first:
        a, b = (load_file(next((o / stage / "model").glob("*.safetensors"))) for o in (one, other))
        assert a.keys() == b.keys()
        for name in a:  # AdamW moves a weight by the sign alone where its gradient is all rounding
            assert (b[name] - a[name]).norm() <= 5e-3 * a[name].norm() + 1e-6, name


def test_two_processes_train_what_one_does(data, tmp_path):
    """Losses agree to 1e-4 of their size, or 5e-6: sums in another order, nothing else."""
    _train(1, data, tmp_path / "one")
    _train(2, data, tmp_path / "two")
    _agree(tmp_path / "one", tmp_path / "two")


def test_an_error_is_said_once_and_ends_all_processes(data, tmp_path):
    sets = [word for s in (*SETTINGS, "compute.max_tokens=10") for word in ("--set", s)]
    done = _run(2, "coldstart", "--data", data, "--out", tmp_path / "out", *sets)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("mgsd coldstart:")]
    assert len(said) == 1
    assert "above compute.max_tokens = 10" in said[0]


_ONE_FAILS = """
import os
import mgsd_core.coldstart
from mgsd_core.cli import program

def fails(*_):
    raise ValueError("wrong with one")

if os.environ["RANK"] == "1":
    mgsd_core.coldstart.{name} = fails
program()
"""


@pytest.mark.parametrize("name", ["check_length", "state_recovery"])
def test_an_error_of_any_process_is_said_by_the_one_that_speaks(data, tmp_path, name):
    """In the samples of a step, and in validation."""
    script = tmp_path / "program.py"
    script.write_text(_ONE_FAILS.format(name=name))
    sets = [word for s in SETTINGS for word in ("--set", s)]
    out = tmp_path / "out"
    done = _launch(2, str(script), "coldstart", "--data", str(data), "--out", str(out), *sets)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("mgsd coldstart:")]
    assert said == ["mgsd coldstart: wrong with one"]
    assert "RuntimeError" not in done.stderr


@pytest.mark.parametrize("lora", [0, 4])
def test_parameters_split_over_two_processes_train_what_one_does(data, tmp_path, monkeypatch, lora):
    """FSDP2, on two CPU processes; accelerate's launcher has no option for that."""
    _train(1, data, tmp_path / "one", f"coldstart.lora.rank={lora}")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    _train(2, data, tmp_path / "two", f"coldstart.lora.rank={lora}")
    _agree(tmp_path / "one", tmp_path / "two")


def test_deepspeed_trains_what_one_process_does(data, tmp_path, monkeypatch):
    """ZeRO stage 2, stopped in between; DeepSpeed says no gradient norm before a step."""
    pytest.importorskip("deepspeed", reason="deepspeed is not installed (extra `deepspeed`)")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    _train(1, data, tmp_path / "one")
    _train(2, data, tmp_path / "two")
    _agree(tmp_path / "one", tmp_path / "two")
