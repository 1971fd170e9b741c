from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mgsd_core.config import StageConfig, load_config
from mgsd_core.distill import frozen_copy, train_distill
from mgsd_core.model import NanoConfig, build_nano, save_backbone
from mgsd_core.scenes import load_scenes
from mgsd_core.training import (
    TrainingError,
    directory_digest,
    epoch_indices,
    rate,
    step_generator,
    train,
)
from sim.dataset import DatasetError, write_dataset

TINY = NanoConfig(
    hidden=48, layers=1, heads=2, kv_heads=1, intermediate=64, vision_hidden=32, vision_layers=1
)
TINY_SETTINGS = [
    "backbone.image_size=64",
    *(
        f"backbone.nano.{k}={getattr(TINY, k)}"
        for k in ("hidden", "layers", "heads", "kv_heads", "intermediate")
    ),
    "backbone.nano.vision_hidden=32",
    "backbone.nano.vision_layers=1",
    *(f"{stage}.batch=4" for stage in ("text", "coldstart", "distill")),
    *(f"{stage}.checkpoint_every=3" for stage in ("text", "coldstart", "distill")),
    "distill.validate_every=4",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    for split, count in (("train", 12), ("validation", 4)):
        write_dataset(path, [("frozenlake", 3)], split, seed=0, count=count, size=64)
    return path


def _mgsd(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "mgsd_core.cli", *map(str, arguments)]


def _settings(*extra: str) -> list[str]:
    return [word for s in (*TINY_SETTINGS, *extra) for word in ("--set", s)]


def _killed_and_resumed(command: list[str], run: Path, seed: int) -> int:
    """Start a command again and again, killing it at random moments, until it ends by itself."""
    rng = random.Random(seed)
    kills = 0
    while True:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        # Wait for the first sign of work, so that the kill falls into the training itself.
        lines = _metric_lines(run)
        while process.poll() is None and _metric_lines(run) == lines and kills < 3:
            time.sleep(0.05)
        if kills < 3:
            time.sleep(rng.uniform(0.0, 0.4))
            process.kill()
        _, errors = process.communicate()
        if process.returncode == 0:
            return kills
        assert process.returncode == -9, errors.decode()
        kills += 1


def _metric_lines(run: Path) -> list[int]:
    return [f.stat().st_size for f in sorted(run.rglob("checkpoint-*/state.json")) if f.is_file()]


def _files(run: Path) -> dict[str, bytes]:
    return {str(f.relative_to(run)): f.read_bytes() for f in sorted(run.rglob("*")) if f.is_file()}


def test_killed_stages_go_on_to_the_same_files(data, tmp_path):
    """SIGKILL at random moments of stages 0, 1 and 2; every file equals an undisturbed run's."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    steps = ("text.steps=60", "coldstart.steps=60", "distill.steps=24")
    for command, extra in (
        ("coldstart", []),
        ("distill", ["--student", "stage1/model", "--teacher", "base/model"]),
    ):
        kills = {}
        for out in (whole, broken):
            paths = [out / e if "/" in e else e for e in extra]
            words = _mgsd(command, "--data", data, "--out", out, *_settings(*steps), *paths)
            if out is whole:
                subprocess.run(words, check=True, capture_output=True)
            else:
                kills[command] = _killed_and_resumed(words, out, seed=len(command))
        assert kills[command] > 0
    one, other = _files(whole), _files(broken)
    assert set(one) == set(other)
    assert [name for name in one if one[name] != other[name]] == []
    assert {"base/model/model.safetensors", "stage1/model/model.safetensors"} < set(one)
    lines = [json.loads(line) for line in one["stage2/metrics.jsonl"].splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 25))
    assert {"loss", "success", "state", "length", "entropy", "kl"} <= set(lines[0])
    assert "validation" in lines[3]


def test_other_settings_are_refused(data, tmp_path):
    steps = ("text.steps=1", "coldstart.steps=1")
    command = _mgsd("coldstart", "--data", data, "--out", tmp_path, *_settings(*steps))
    subprocess.run(command, check=True, capture_output=True)
    again = subprocess.run(
        [*command, "--set", "coldstart.seed=5"], capture_output=True, text=True, check=False
    )
    assert again.returncode == 2
    assert again.stderr.strip().count("\n") == 0
    assert "config.seed was 0, is 5" in again.stderr


def _config(**changes):
    return StageConfig(**{"steps": 6, "batch": 1, "learning_rate": 1e-3, **changes})


def _quadratic(backbone):
    weight = backbone.model.lm_head.weight

    def loss_of_step(step):
        return weight.square().mean(), {}

    return loss_of_step


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path):
    backbone = build_nano(TINY, 64, seed=0)

    def loss_of_step(step):
        loss = backbone.model.lm_head.weight.square().mean()
        return (loss * math.nan if step == 4 else loss), {}

    with pytest.raises(TrainingError, match="loss of step 4 is nan"):
        train(backbone, _config(checkpoint_every=2), tmp_path, "test", loss_of_step)
    assert (tmp_path / "checkpoint-00000004" / "model.safetensors").is_file()
    assert not (tmp_path / "model").exists()


def test_a_damaged_checkpoint_is_named(tmp_path):
    backbone = build_nano(TINY, 64, seed=0)

    def stop(step):
        if step == 4:
            raise KeyboardInterrupt
        return backbone.model.lm_head.weight.square().mean(), {}

    with pytest.raises(KeyboardInterrupt):
        train(backbone, _config(checkpoint_every=2), tmp_path, "test", stop)
    weights = tmp_path / "checkpoint-00000004" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(TrainingError, match="checkpoint-00000004 is damaged"):
        train(backbone, _config(checkpoint_every=2), tmp_path, "test", _quadratic(backbone))


def test_the_best_weights_are_kept_not_the_last(tmp_path):
    backbone = build_nano(TINY, 64, seed=0)
    scores = iter([0.2, 0.9, 0.1])
    kept = []

    def validate():
        kept.append(backbone.model.lm_head.weight.detach().clone())
        return next(scores), {}

    train(backbone, _config(validate_every=2), tmp_path, "test", _quadratic(backbone), validate)
    assert torch.equal(backbone.model.lm_head.weight, kept[1])
    assert not torch.equal(backbone.model.lm_head.weight, kept[2])


def test_a_finished_stage_is_not_trained_again(tmp_path):
    first = build_nano(TINY, 64, seed=0)
    path = train(first, _config(), tmp_path, "test", _quadratic(first))
    second = build_nano(TINY, 64, seed=0)

    def never(step):
        raise AssertionError("a finished stage was trained again")

    # Killed after its weights were written and before its checkpoints were removed.
    (tmp_path / "checkpoint-00000003").mkdir()
    assert train(second, _config(), tmp_path, "test", never) == path
    assert not list(tmp_path.glob("checkpoint-*"))
    expected = first.model.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in second.model.state_dict().items())


def test_distillation_leaves_the_teacher_alone_and_lowers_the_divergence(
    trained_backbone, data, tmp_path
):
    """The student starts as a copy that knows its pictures; the teacher is untrained on text."""
    student, teacher = frozen_copy(trained_backbone), frozen_copy(trained_backbone)
    before = {k: v.clone() for k, v in teacher.model.state_dict().items()}
    scenes = load_scenes(data, "train", student.image)
    config = load_config(
        "nano",
        ["distill.steps=12", "distill.batch=8", "distill.warmup=0", "distill.learning_rate=0.001"],
    ).distill
    train_distill(student, teacher, config, scenes, tmp_path, {})
    assert all(torch.equal(v, before[k]) for k, v in teacher.model.state_dict().items())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert sum(x["kl"] for x in lines[-3:]) < sum(x["kl"] for x in lines[:3])


def test_student_and_teacher_need_one_tokenizer(trained_backbone, data, tmp_path):
    teacher = frozen_copy(trained_backbone)
    teacher.tokenizer = type(teacher.tokenizer)(
        tokenizer_object=trained_backbone.tokenizer.backend_tokenizer
    )
    teacher.tokenizer.add_tokens(["another"])
    scenes = load_scenes(data, "train", trained_backbone.image)
    config = load_config("nano").distill
    with pytest.raises(ValueError, match="different tokenizers"):
        train_distill(trained_backbone, teacher, config, scenes, tmp_path, {})


def test_an_empty_split_is_named(data, trained_backbone):
    with pytest.raises(DatasetError, match="test"):
        load_scenes(data, "test", trained_backbone.image)


def test_every_epoch_is_a_permutation():
    drawn = [i for step in range(6) for i in epoch_indices(10, 5, 3, step)]
    assert sorted(drawn[:10]) == sorted(drawn[10:20]) == sorted(drawn[20:]) == list(range(10))
    assert drawn[:10] != drawn[10:20]
    assert epoch_indices(10, 7, 3, 1) == [*drawn[7:14]]


def test_schedules():
    cosine = _config(steps=100)
    values = [rate(cosine, step) for step in range(100)]
    assert max(values) == pytest.approx(1.0, abs=1e-9)
    assert values[:11] == sorted(values[:11])
    assert values[10:] == sorted(values[10:], reverse=True)
    assert values[-1] < 0.01
    assert rate(_config(steps=100, schedule="constant"), 99) == 1.0


def test_randomness_follows_seed_step_and_purpose():
    def draw(*arguments):
        return torch.rand(3, generator=step_generator(*arguments)).tolist()

    assert draw(0, 1) == draw(0, 1)
    assert len({tuple(draw(*a)) for a in ((0, 1), (0, 2), (1, 1), (0, 1, "rollout"))}) == 4


def test_digest_follows_the_weights(tmp_path):
    paths = [tmp_path / name for name in "abc"]
    for path, seed in zip(paths, (0, 0, 1), strict=True):
        path.mkdir()
        save_backbone(build_nano(TINY, 64, seed=seed), path)
    digests = [directory_digest(path) for path in paths]
    assert digests[0] == digests[1] != digests[2]
