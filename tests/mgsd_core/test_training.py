from __future__ import annotations

import copy
import json
import math
import random
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from mgsd_core.adapters import adapter_off, add_adapter
from mgsd_core.checkpoints import CheckpointError
from mgsd_core.cli import main
from mgsd_core.coldstart import (
    Sample,
    shown_at,
    supervised_passes,
    text_sample,
    train_coldstart,
)
from mgsd_core.config import (
    ColdstartConfig,
    ComputeConfig,
    ConfigError,
    LoraConfig,
    StageConfig,
    TextConfig,
    load_config,
)
from mgsd_core.distill import adapter_off_teacher, frozen_teacher, train_distill
from mgsd_core.encoding import (
    completion_logits,
    completion_tokens,
    make_batch,
    prompt_ids,
    text_ids,
)
from mgsd_core.estimators import ESTIMATORS
from mgsd_core.kernels import quicken
from mgsd_core.model import Backbone, NanoConfig, build_nano, save_backbone
from mgsd_core.processes import start_processes
from mgsd_core.prompts import (
    Prompt,
    parse_response,
    questions,
    response_text,
    state_text,
    student_prompt,
    symbolic_prompt,
)
from mgsd_core.scenes import load_scenes
from mgsd_core.training import (
    Pass,
    TrainingError,
    Work,
    _in_step,
    directory_digest,
    epoch_indices,
    rate,
    step_generator,
    train,
)
from mgsd_core.updates import Updates
from sim import simulate, solve
from sim.dataset import DatasetError, write_dataset
from sim.request import DatasetRequest

COMPUTE = ComputeConfig()
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
        write_dataset(
            path, DatasetRequest([("frozenlake", 3)], split, seed=0, count=count, size=64)
        )
    return path


def frozen_copy(backbone: Backbone) -> Backbone:
    """The same backbone with weights of its own."""
    return replace(backbone, model=copy.deepcopy(backbone.model))


def _mgsd(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "mgsd_core.cli", *map(str, arguments)]


def _settings(*extra: str) -> list[str]:
    return [word for s in (*TINY_SETTINGS, *extra) for word in ("--set", s)]


# Runs a command again and again in children of a process that has imported everything already,
# kills each at a random moment, and the last ends by itself. Says at which steps it struck.
_KILLER = """
import glob, json, os, random, signal, sys, time
import mgsd_core.distill, mgsd_core.coldstart, mgsd_core.commands
from mgsd_core.cli import main

out, kills, seed, words = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
rng = random.Random(seed)

def lines():
    return sum(open(f, "rb").read().count(b"\\n") for f in glob.glob(out + "/*/metrics.jsonl"))

struck = []
while True:
    child = os.fork()
    if not child:
        os._exit(main(words))
    if len(struck) < kills:
        seen = lines()
        begun = time.monotonic()
        # Count from the first step, so that the kill falls into training or writing.
        while lines() <= seen and time.monotonic() - begun < 60:
            if os.waitpid(child, os.WNOHANG)[0]:
                sys.exit("the run ended before all kills")
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.25))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        struck.append(lines())
        continue
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps(struck), file=sys.stderr)
    sys.exit(status)
"""


def _files(run: Path) -> dict[str, bytes]:
    """All files but TensorBoard's, which hold the time of day."""
    files = [f for f in sorted(run.rglob("*")) if f.is_file() and "tensorboard" not in f.parts]
    return {str(f.relative_to(run)): f.read_bytes() for f in files}


@given(
    st.lists(st.integers(3, 8), min_size=1, max_size=20),
    st.floats(0, 1),
    st.integers(6, 500),
)
def test_a_curriculum_begins_with_the_smallest_levels_and_ends_with_all(sizes, share, steps):
    config = ColdstartConfig(batch=4, learning_rate=1e-3, steps=steps, curriculum=share)
    shown = [shown_at(sizes, config, step) for step in range(steps)]
    assert shown[-1] == list(range(len(sizes)))
    for before, after in pairwise(shown):
        assert set(before) <= set(after)
    for indices in shown:
        largest = max(sizes[i] for i in indices)
        assert indices == [i for i, size in enumerate(sizes) if size <= largest]
    if share * steps >= len(set(sizes)):
        assert {sizes[i] for i in shown[0]} == {min(sizes)}
    if share == 0:
        assert shown[0] == shown[-1]


@pytest.mark.parametrize("task", [("frozenlake", 4), ("maze", 3), ("minibehaviour", 5)])
def test_a_detour_is_given_and_the_way_on_from_it_is_learned(task):
    backbone = build_nano(TINY, 64, seed=0)
    config = TextConfig(batch=1, learning_rate=1e-3, detours=1.0)
    left = 0
    for seed in range(40):
        sample = text_sample(backbone, random.Random(seed), [task], config)
        assert sample.begun.startswith("Size")
        assert " Route (" in sample.begun
        assert sample.answer.startswith(sample.begun)
        (learned,) = supervised_passes(backbone, COMPUTE, [sample])
        said = backbone.tokenizer.decode(completion_tokens(learned.batch))
        assert (sample.begun + said).replace(" ", "") == (
            sample.answer + backbone.tokenizer.decode([backbone.end_token])
        ).replace(" ", "")
        parsed = parse_response(sample.answer, task[0])
        outcome = simulate(parsed.state, parsed.plan)
        assert outcome.success
        left += not outcome.optimal
    assert left > 10, "hardly a response leaves the shortest way"


@pytest.mark.parametrize("task", [("frozenlake", 4), ("maze", 3), ("minibehaviour", 5)])
@pytest.mark.parametrize("detours", [0.0, 1.0])
def test_an_own_state_is_given_and_the_plan_is_learned(task, detours):
    """The prompt is a student's, and tells nothing of the state."""
    backbone = build_nano(TINY, 64, seed=0)
    config = TextConfig(batch=1, learning_rate=1e-3, own_state=1.0, detours=detours)
    asked = set()
    for seed in range(10):
        sample = text_sample(backbone, random.Random(seed), [task], config)
        asked.add(sample.prompt)
        parsed = parse_response(sample.answer, task[0])
        assert sample.begun.startswith(state_text(parsed.state))
        (learned,) = supervised_passes(backbone, COMPUTE, [sample])
        said = backbone.tokenizer.decode(completion_tokens(learned.batch))
        assert state_text(parsed.state) not in said
        assert "<answer>" in said
        assert simulate(parsed.state, parsed.plan).success
    assert len(asked) == 1
    assert asked == {replace(student_prompt(task[0], backbone.style), has_image=False)}


def test_without_detours_the_whole_response_is_learned():
    backbone = build_nano(TINY, 64, seed=0)
    config = TextConfig(batch=1, learning_rate=1e-3)
    sample = text_sample(backbone, random.Random(3), [("maze", 3)], config)
    assert sample.begun == ""
    (learned,) = supervised_passes(backbone, COMPUTE, [sample])
    assert learned.tokens == len(text_ids(backbone, sample.answer)) + 1


def test_killed_stages_go_on_to_the_same_files(data, tmp_path):
    """Twenty SIGKILLs at random moments of all stages; every file equals an undisturbed run's."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    steps = ("text.steps=60", "coldstart.steps=60", "distill.steps=60")
    for command, extra in (
        ("coldstart", []),
        ("distill", ["--student", "stage1/model", "--teacher", "base/model"]),
    ):
        for out in (whole, broken):
            paths = [out / e if "/" in e else e for e in extra]
            words = [command, "--data", data, "--out", out, *_settings(*steps), *paths]
            killer = [sys.executable, "-c", _KILLER, out, 10 if out is broken else 0, 7]
            done = subprocess.run(
                [str(w) for w in (*killer, *words)], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            if out is broken:
                struck = json.loads(done.stderr.splitlines()[-1])
                assert len(struck) == 10
                assert len(set(struck)) > 3, "the kills did not fall at random"
    one, other = _files(whole), _files(broken)
    assert set(one) == set(other)
    assert [name for name in one if one[name] != other[name]] == []
    assert {"base/model/model.safetensors", "stage1/model/model.safetensors"} < set(one)
    lines = _lines(whole / "stage2")
    assert [line["step"] for line in lines] == list(range(1, 61))
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


def test_other_scenes_to_validate_on_and_another_prompt_style_are_refused(data, tmp_path, capsys):
    """They change which weights are the best, and what the student reads."""
    settings = _settings("text.steps=1", "coldstart.steps=1", "distill.steps=1")
    settings += _settings("coldstart.validate_every=1", "distill.validate_every=1")

    def mgsd(command, data, *more):
        words = (command, "--data", data, "--out", tmp_path / "run", *settings, *more)
        return main([str(word) for word in words])

    models = ("--student", tmp_path / "run/stage1/model", "--teacher", tmp_path / "run/base/model")
    assert mgsd("coldstart", data) == mgsd("distill", data, *models) == 0
    other = tmp_path / "other"
    for split, seed, count in (("train", 0, 12), ("validation", 1, 4)):
        write_dataset(
            other, DatasetRequest([("frozenlake", 3)], split, seed=seed, count=count, size=64)
        )
    for command, more in (("coldstart", ()), ("distill", models)):
        capsys.readouterr()
        assert mgsd(command, other, *more) == 2
        assert "other settings (validation was '" in capsys.readouterr().err
    file = tmp_path / "run" / "stage2" / "run.json"
    noted = json.loads(file.read_text())
    file.write_text(json.dumps({**noted, "prompt_style": "full"}))
    assert mgsd("distill", data, *models) == 2
    assert "prompt_style was 'full', is 'brief'" in capsys.readouterr().err
    # Begun before either was noted.
    file.write_text(json.dumps({k: noted[k] for k in set(noted) - {"prompt_style", "validation"}}))
    assert mgsd("distill", data, *models) == 0
    file.write_text("3")
    assert mgsd("distill", data, *models) == 2
    assert "is damaged" in capsys.readouterr().err


def _config(**changes):
    return StageConfig(**{"steps": 6, "batch": 1, "learning_rate": 1e-3, **changes})


@pytest.fixture(scope="module")
def processes():
    return start_processes(COMPUTE)


@pytest.fixture
def stage(processes, tmp_path):
    """Trains a tiny model to say "Size 3."; `spoil(step)` changes a step's losses."""
    backbone = build_nano(TINY, 64, seed=0)
    sample = Sample(Prompt("Read.", "Say it.", has_image=False), "Size 3.", "lake-3-train-7")

    def run(config, spoil=lambda step, losses: losses, validate=None, compute=COMPUTE):
        def work_of_step(step):
            (only,) = supervised_passes(backbone, compute, [sample])

            def loss_of(logits, places):
                losses, logged = only.loss_of(logits, places)
                return spoil(step, losses), logged

            return Work([replace(only, loss_of=loss_of)])

        return train(backbone, config, compute, processes, tmp_path, "test", work_of_step, validate)

    return backbone, run


def _head(backbone):
    return backbone.model.lm_head.weight.detach().clone()


def test_a_loss_that_is_not_finite_stops_names_its_scene_and_keeps_the_last_checkpoint(
    stage, tmp_path
):
    backbone, run = stage
    with pytest.raises(TrainingError, match=r"step 4 is not finite .*lake-3-train-7") as failure:
        run(_config(checkpoint_every=2), lambda step, x: x * math.nan if step == 4 else x)
    assert "\n" not in str(failure.value)
    kept = load_file(tmp_path / "checkpoint-00000004" / "model.safetensors")
    assert torch.equal(kept["model.language_model.embed_tokens.weight"], _head(backbone))
    assert not (tmp_path / "model").exists()


def test_two_runs_in_one_directory_are_refused(stage, tmp_path):
    _, run = stage

    def spoil(step, losses):
        if step == 2:
            with pytest.raises(TrainingError, match="is being trained by another process"):
                run(_config())
        return losses

    run(_config(), spoil)
    assert (tmp_path / "model").is_dir()
    run(_config())


def test_a_run_that_is_refused_leaves_no_settings_in_the_directory(stage, tmp_path):
    """Else the same command, given again, would take the other's weights for its own."""
    _, run = stage

    def spoil(step, losses):
        if step == 2:
            with pytest.raises(TrainingError, match="is being trained by another process"):
                run(_config(seed=1))
        return losses

    run(_config(), spoil)
    assert json.loads((tmp_path / "run.json").read_text())["config"]["seed"] == 0
    with pytest.raises(TrainingError, match=r"config\.seed was 0, is 1"):
        run(_config(seed=1))


def test_a_directory_is_kept_until_its_weights_are_written(stage, tmp_path, monkeypatch):
    _, run = stage
    written = []

    def save(*arguments):
        with pytest.raises(TrainingError, match="is being trained by another process"):
            run(_config(seed=1))
        written.append(save_backbone(*arguments))

    monkeypatch.setattr("mgsd_core.training.save_backbone", save)
    run(_config())
    assert len(written) == 1


def test_pictures_are_enough_for_all_processes(tmp_path):
    backbone = build_nano(TINY, 64, seed=0)
    three = SimpleNamespace(num_processes=3, process_index=0, is_main_process=True)
    config = load_config("nano", ["distill.batch=8", "distill.replay=0.75"]).distill
    with pytest.raises(TrainingError, match="3 processes cannot share a batch of 8, 6 of it repl"):
        train(backbone, config, COMPUTE, three, tmp_path, "test", lambda step: Work([]))


def test_passes_that_one_process_lacks_end_all(monkeypatch):
    """Where all must make the same ones: the process that has some would wait for the other."""
    monkeypatch.setattr("mgsd_core.training.together", lambda *_: [[1, 1], [1, 0]])
    batch = make_batch(build_nano(TINY, 64, seed=0), [[1]], [[2]])
    mine = [Pass(batch, None, 1, ["lake"], group) for group in ("question_loss", "text_loss")]
    with pytest.raises(TrainingError, match="shared out among 2 processes"):
        _in_step(SimpleNamespace(num_processes=2), ["question_loss", "text_loss"], mine)


def _kill_at(step):
    def spoil(now, losses):
        if now == step:
            raise KeyboardInterrupt
        return losses

    return spoil


def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(stage, tmp_path):
    _, run = stage
    with pytest.raises(KeyboardInterrupt):
        run(_config(checkpoint_every=2), _kill_at(4))
    weights = tmp_path / "checkpoint-00000004" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="checkpoint-00000004 is damaged"):
        run(_config(checkpoint_every=2))
    shutil.rmtree(weights.parent)
    assert (run(_config(checkpoint_every=2)) / "model.safetensors").is_file()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 6


def test_all_that_the_optimizer_remembers_is_restored_to_where_the_parameter_is(processes):
    """Fused AdamW refuses a step count on another device, so on a GPU no run could go on."""
    trained = torch.nn.Parameter(torch.ones(2))
    updates = Updates(processes, torch.nn.Module(), {"weight": trained}, _config())
    trained.sum().backward()
    updates.step(0.1)
    elsewhere = torch.nn.Parameter(torch.ones(2, device="meta"))
    moments = updates.moments()
    updates.parameters = {"weight": elsewhere}
    updates.restore(moments)
    found = {key: value.device.type for key, value in updates._optimizer.state[elsewhere].items()}
    assert found == dict.fromkeys(("step", "exp_avg", "exp_avg_sq"), "meta")


def test_settings_may_change_as_long_as_nothing_is_lost(stage, tmp_path):
    _, run = stage
    with pytest.raises(KeyboardInterrupt):
        run(_config(checkpoint_every=2), _kill_at(1))
    with pytest.raises(KeyboardInterrupt):
        run(_config(checkpoint_every=2, seed=1), _kill_at(3))
    with pytest.raises(TrainingError, match=r"config\.seed was 1, is 2"):
        run(_config(checkpoint_every=2, seed=2))
    assert (run(_config(checkpoint_every=2, seed=1)) / "model.safetensors").is_file()


@pytest.fixture
def dropping(processes):
    """Trains an adapter with dropout into a directory and returns it; `spoil` as of `stage`."""
    sample = Sample(Prompt("Read.", "Say it.", has_image=False), "Size 3.", "lake-3-train-7")

    def run(out, config, spoil=lambda step, losses: losses):
        backbone = build_nano(TINY, 64, seed=0)
        add_adapter(backbone, LoraConfig(rank=2, dropout=0.5), seed=0)

        def work_of_step(step):
            spoil(step, None)
            return Work(supervised_passes(backbone, COMPUTE, [sample]))

        path = train(backbone, config, COMPUTE, processes, out, "test", work_of_step)
        return (path / "adapter_model.safetensors").read_bytes()

    return run


def test_dropout_follows_the_seed(dropping, tmp_path):
    one = dropping(tmp_path / "one", _config())
    assert dropping(tmp_path / "same", _config()) == one
    assert dropping(tmp_path / "other", _config(seed=1)) != one


def test_a_killed_run_with_dropout_goes_on_to_the_same_weights(dropping, tmp_path):
    config = _config(checkpoint_every=2)
    with pytest.raises(KeyboardInterrupt):
        dropping(tmp_path / "killed", config, _kill_at(3))
    torch.rand(1)  # another process would not begin where this one's generator is
    assert dropping(tmp_path / "killed", config) == dropping(tmp_path / "whole", config)


def test_the_best_weights_are_kept_not_the_last(stage, tmp_path):
    backbone, run = stage
    scores = iter([0.2, 0.9, 0.1])
    kept = []

    def validate():
        kept.append(_head(backbone))
        return next(scores), {}

    run(_config(validate_every=2), validate=validate)
    assert torch.equal(_head(backbone), kept[1])
    assert not torch.equal(_head(backbone), kept[2])
    assert not list(tmp_path.glob("best-*"))


def test_the_best_weights_survive_a_kill(stage, tmp_path):
    """Killed after a better score than the checkpoint's; the score and its weights come again."""
    backbone, run = stage
    scores = {1: 0.5, 2: 0.3, 3: 0.9, 4: 0.1, 5: 0.2, 6: 0.0}
    kept = {}

    def validating():
        done = iter(range(len(kept) + 1, 7))

        def validate():
            step = next(done)
            kept[step] = _head(backbone)
            return scores[step], {}

        return validate

    config = _config(validate_every=1, checkpoint_every=2)
    with pytest.raises(KeyboardInterrupt):
        run(config, _kill_at(3), validating())  # after the third score; the checkpoint is of step 2
    assert sorted(p.name for p in tmp_path.glob("best-*")) == [
        "best-00000001.safetensors",
        "best-00000003.safetensors",
    ]
    kept.pop(3)
    run(config, validate=validating())
    assert torch.equal(_head(backbone), kept[3])


def test_training_ends_early_when_the_score_stays_behind(stage, tmp_path):
    _, run = stage
    scores = iter([0.2, 0.9, 0.8, 0.7, 1.0])
    run(_config(validate_every=1, patience=2), validate=lambda: (next(scores), {}))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_full_disk_leaves_the_checkpoint_before(stage, tmp_path, monkeypatch):
    """The file system itself refuses: a file may not grow beyond 100 kB here."""
    _, run = stage
    with pytest.raises(KeyboardInterrupt):
        run(_config(checkpoint_every=2), _kill_at(3))
    before = _files(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            run(_config(checkpoint_every=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    after = _files(tmp_path)
    checkpoint = {n: d for n, d in before.items() if n.startswith("checkpoint")}
    assert checkpoint == {n: d for n, d in after.items() if n.startswith("checkpoint")}
    assert not list(tmp_path.glob("*.tmp"))
    run(_config(checkpoint_every=2))


def test_tensorboard_has_every_step_once(stage, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, run = stage
    with pytest.raises(KeyboardInterrupt):
        run(_config(checkpoint_every=2), _kill_at(5))
    run(_config(checkpoint_every=2))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert {"gradient_norm", "tokens", "seconds"} <= set(events.Tags()["scalars"])


def test_a_finished_stage_is_not_trained_again(stage, tmp_path):
    backbone, run = stage
    path = run(_config())
    expected = {k: v.clone() for k, v in backbone.model.state_dict().items()}
    with torch.no_grad():
        backbone.model.lm_head.weight.zero_()
    # Killed after its weights were written and before its checkpoints were removed.
    (tmp_path / "checkpoint-00000003").mkdir()
    assert run(_config(), _kill_at(0)) == path
    assert not list(tmp_path.glob("checkpoint-*"))
    assert all(torch.equal(v, expected[k]) for k, v in backbone.model.state_dict().items())


def test_checkpointing_activations_and_small_passes_change_nothing(
    trained_backbone, data, processes, tmp_path
):
    """The same steps with other ways to compute them: weights agree to rounding."""
    ends = []
    for name, settings in {
        "one": ["compute.pass_tokens=100000", "compute.logit_mib=1000"],
        "two": ["compute.pass_tokens=300", "compute.logit_mib=1"],
        "three": ["compute.gradient_checkpointing=true"],
    }.items():
        student = frozen_copy(trained_backbone)
        config = load_config("nano", ["distill.steps=3", "distill.batch=6", *settings])
        scenes = load_scenes(data, "train", student.image)
        teacher = frozen_teacher(frozen_copy(trained_backbone))
        train_distill(
            student,
            teacher,
            config.distill,
            config.compute,
            processes,
            scenes,
            tmp_path / name,
            {},
        )
        ends.append(_lines(tmp_path / name))
    for other in ends[1:]:
        for one, another in zip(ends[0], other, strict=True):
            assert another == pytest.approx(one, rel=1e-4, abs=1e-5)


def test_replayed_text_is_a_share_of_the_step(trained_backbone, data, processes, tmp_path):
    """It changes neither which pictures are shown nor what their responses are drawn with."""
    told = []
    for name, replay in (("without", 0.0), ("with", 0.25)):
        student = frozen_copy(trained_backbone)
        batch = {"without": 6, "with": 8}[name]
        config = load_config(
            "nano", ["distill.steps=1", f"distill.batch={batch}", f"distill.replay={replay}"]
        )
        train_distill(
            student,
            frozen_teacher(frozen_copy(trained_backbone)),
            config.distill,
            config.compute,
            processes,
            load_scenes(data, "train", student.image),
            tmp_path / name,
            {},
            text=config.coldstart,
        )
        told += _lines(tmp_path / name)
    without, replayed = told
    assert replayed["kl"] == pytest.approx(without["kl"], rel=1e-5)
    assert replayed["length"] == pytest.approx(without["length"])
    assert replayed["distill_loss"] == pytest.approx(without["loss"], rel=1e-5)
    mixed_loss = 0.75 * replayed["distill_loss"] + 0.25 * replayed["text_loss"]
    assert replayed["loss"] == pytest.approx(mixed_loss)
    run = json.loads((tmp_path / "with" / "run.json").read_text())
    assert run["text"]["own_state"] == 1.0
    assert "text" not in json.loads((tmp_path / "without" / "run.json").read_text())


@pytest.mark.parametrize("stage", ["coldstart", "distill"])
@pytest.mark.parametrize(("batch", "replay"), [(2, 0.9), (4, 1.0)])
def test_replay_leaves_room_for_pictures(stage, batch, replay):
    with pytest.raises(ConfigError, match=f"{stage}.replay leaves no sample for pictures"):
        load_config("nano", [f"{stage}.batch={batch}", f"{stage}.replay={replay}"])


@pytest.mark.parametrize("replay", [0.0, 0.5])
def test_an_epoch_is_a_pass_over_the_samples(data, processes, tmp_path, monkeypatch, replay):
    """Pictures, or questions of pictures; text that is replayed beside them does not count."""
    begun = []
    monkeypatch.setattr("mgsd_core.coldstart.train", lambda _, config, *__: begun.append(config))
    monkeypatch.setattr("mgsd_core.distill.train", lambda _, config, *__: begun.append(config))
    backbone = build_nano(TINY, 64, seed=0)
    scenes = load_scenes(data, "train", backbone.image)
    settings = [
        f"{stage}.{setting}"
        for stage in ("coldstart", "distill")
        for setting in ("steps=0", "epochs=2", "batch=8", f"replay={replay}")
    ]
    for by_length in ("true", "false"):
        config = load_config("nano", [*settings, f"coldstart.by_length={by_length}"])
        train_coldstart(backbone, config.coldstart, COMPUTE, processes, scenes, tmp_path, {})
    train_distill(
        backbone,
        frozen_teacher(backbone),
        config.distill,
        COMPUTE,
        processes,
        scenes,
        tmp_path,
        {},
        text=config.coldstart,
    )
    asked = sum(len(questions(state)) for state in scenes.states)
    a_step = 8 - 8 * replay
    expected = [math.ceil(2 * count / a_step) for count in (12, asked, 12)]
    assert [config.steps for config in begun] == expected


def _lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_distillation_leaves_the_teacher_alone_and_lowers_the_divergence(
    trained_backbone, data, processes, tmp_path
):
    """The student starts as a copy that knows its pictures; the teacher is untrained on text."""
    student, base = frozen_copy(trained_backbone), frozen_copy(trained_backbone)
    before = {k: v.clone() for k, v in base.model.state_dict().items()}
    scenes = load_scenes(data, "train", student.image)
    config = load_config(
        "nano",
        ["distill.steps=12", "distill.batch=8", "distill.warmup=0", "distill.learning_rate=0.001"],
    )
    train_distill(
        student,
        frozen_teacher(base),
        config.distill,
        config.compute,
        processes,
        scenes,
        tmp_path,
        {},
    )
    assert all(torch.equal(v, before[k]) for k, v in base.model.state_dict().items())
    lines = _lines(tmp_path)
    assert sum(x["kl"] for x in lines[-3:]) < sum(x["kl"] for x in lines[:3])
    assert {"loss", "success", "legal", "state", "length", "entropy", "kl"} <= set(lines[0])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_an_adapter_switched_off_is_the_base_after_fifty_updates(
    trained_backbone, data, processes, tmp_path, estimator
):
    student = frozen_copy(trained_backbone)
    add_adapter(student, LoraConfig(rank=4), seed=0)
    scenes = load_scenes(data, "train", student.image)
    ids = [prompt_ids(student, symbolic_prompt(s, "brief")) for s in scenes.states[:4]]
    said = [text_ids(student, response_text(s, solve(s))) for s in scenes.states[:4]]
    batch = make_batch(student, ids, said)
    config = load_config(
        "nano",
        [
            *("distill.steps=50", "distill.batch=2", "distill.learning_rate=0.01"),
            *(f"distill.estimator={estimator}", "distill.warmup=0"),
        ],
    )
    train_distill(
        student,
        adapter_off_teacher(student),
        config.distill,
        config.compute,
        processes,
        scenes,
        tmp_path,
        {},
    )
    base = frozen_copy(trained_backbone)
    quicken(base.model)  # as training did: else the two would round differently
    with torch.no_grad():
        expected = completion_logits(base, batch).log_softmax(-1)
        changed = completion_logits(student, batch).log_softmax(-1)
        with adapter_off(student):
            found = completion_logits(student, batch).log_softmax(-1)
    assert (found - expected).abs().max() < 1e-6
    assert (changed - expected).abs().max() > 1e-2
    # Training goes on where the teacher was asked in between.
    assert {n.split(".")[-3] for n, p in student.model.named_parameters() if p.requires_grad} == {
        "lora_A",
        "lora_B",
    }


def test_student_and_teacher_need_one_tokenizer(trained_backbone, data, processes, tmp_path):
    base = frozen_copy(trained_backbone)
    base.tokenizer = type(base.tokenizer)(
        tokenizer_object=trained_backbone.tokenizer.backend_tokenizer
    )
    base.tokenizer.add_tokens(["another"])
    scenes = load_scenes(data, "train", trained_backbone.image)
    config = load_config("nano")
    with pytest.raises(ValueError, match="different tokenizers"):
        train_distill(
            frozen_copy(trained_backbone),
            frozen_teacher(base),
            config.distill,
            config.compute,
            processes,
            scenes,
            tmp_path,
            {},
        )


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
