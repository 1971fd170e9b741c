from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_qwen import write_small_qwen

from mgsd_core.config import load_config
from mgsd_core.estimate import (
    EstimateError,
    available_memory,
    check_fits,
    estimate,
    estimate_dict,
    format_estimate,
)
from mgsd_core.model import NanoConfig, build_nano, outline_backbone
from sim.dataset import write_dataset
from sim.request import DatasetRequest

LAKE = [("frozenlake", 3)]
GIB = 2**30

#: Architectures as published in config.json of Qwen/Qwen3-VL-4B-Instruct and -8B-Instruct.
TEXT = {
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 262144,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5_000_000,
        "mrope_section": [24, 20, 20],
        "mrope_interleaved": True,
    },
}
VISION = {
    "num_heads": 16,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "num_position_embeddings": 2304,
}
PUBLISHED = {
    "qwen3vl_4b": {
        "tie_word_embeddings": True,
        "text_config": TEXT | {"hidden_size": 2560, "intermediate_size": 9728},
        "vision_config": VISION
        | {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "out_hidden_size": 2560}
        | {"deepstack_visual_indexes": [5, 11, 17]},
    },
    "qwen3vl_8b": {
        "tie_word_embeddings": False,
        "text_config": TEXT | {"hidden_size": 4096, "intermediate_size": 12288},
        "vision_config": VISION
        | {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "out_hidden_size": 4096}
        | {"deepstack_visual_indexes": [8, 16, 24]},
    },
}


def published(name: str, path: Path):
    """Return the outline of a published model; there are no weights, the tokenizer is the small."""
    write_small_qwen(path)
    (path / "model.safetensors").unlink()
    file = path / "config.json"
    config = json.loads(file.read_text())
    for key, value in PUBLISHED[name].items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    config["text_config"]["tie_word_embeddings"] = config["tie_word_embeddings"]
    file.write_text(json.dumps(config))
    return outline_backbone(path, 512)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    path = tmp_path_factory.mktemp("published")
    return {name: published(name, path / name) for name in PUBLISHED}


@pytest.fixture(scope="module")
def recipes(models):
    """What the published recipes need."""
    return {name: estimate(load_config(name), models[name], LAKE) for name in models}


# --- against what was measured --------------------------------------------------------------------

RECIPE = """\
backbone: {{path: {weights}, image_size: 256, prompt_style: full}}
coldstart:
  {{steps: 2, batch: 16, learning_rate: 1.0e-4, by_length: false, lora: {{rank: {rank}}}}}
distill:
  {{steps: 2, batch: 8, learning_rate: 1.0e-5, estimator: {estimator}, max_response: 16, slack: -1,
    merge: {merge}}}
compute: {{gradient_checkpointing: {checkpointing}, pass_tokens: 768, logit_mib: 4}}
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A model of 45 million parameters: tensors, not libraries, take the memory."""
    return write_small_qwen(
        tmp_path_factory.mktemp("weights") / "qwen",
        hidden=512,
        layers=8,
        intermediate=1536,
        vision_hidden=128,
        vision_layers=4,
        vocabulary=20_000,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data")
    write_dataset(path, DatasetRequest(LAKE, "train", seed=0, count=16, size=128))
    return path


def peak(*arguments: object) -> int:
    """Run `mgsd` in a process of its own and return the most memory it took [bytes]."""
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parent),
        # Freed memory goes back at once, as on a GPU; else glibc keeps gaps between what is in use.
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    command = [sys.executable, "-m", "peak_memory", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("rank", "merge", "estimator", "checkpointing"),
    [(0, True, "sampled", False), (8, False, "full", True)],
    ids=["full", "adapter"],
)
def test_the_estimate_is_what_training_takes(
    weights, data, tmp_path, rank, merge, estimator, checkpointing
):
    recipe = tmp_path / "mine.yaml"
    switches = {"merge": str(merge).lower(), "checkpointing": str(checkpointing).lower()}
    recipe.write_text(RECIPE.format(weights=weights, rank=rank, estimator=estimator, **switches))
    wanted = estimate(load_config(str(recipe)), outline_backbone(weights, 256), LAKE)
    common = ("--config", recipe, "--data", data, "--out", tmp_path / "run")
    student = ("--student", tmp_path / "run" / "stage1" / "model")
    teacher = () if rank else ("--teacher", weights)
    measured = {
        "coldstart": peak("coldstart", *common),
        "distill": peak("distill", *common, *student, *teacher),
    }
    ratios = {s.name: round(s.peak / measured[s.name], 3) for s in wanted.stages}
    print(f"\nestimated / measured {ratios} of {measured}")
    assert all(0.85 < ratio < 1.15 for ratio in ratios.values()), (ratios, measured)


# --- published sizes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"), [("qwen3vl_4b", 4_437_815_808), ("qwen3vl_8b", 8_767_123_696)]
)
def test_published_models_are_counted_without_their_weights(recipes, name, parameters):
    wanted = recipes[name]
    print("\n" + format_estimate(wanted))
    assert wanted.parameters == parameters
    first, second = wanted.stages
    assert (first.name, second.name) == ("coldstart", "distill")
    # Stage 1: frozen bf16 weights and an adapter of rank 8 on all linear layers.
    assert first.trained == first.adapter < 0.01 * parameters
    assert first.parts["weights"] == 2 * parameters + 4 * first.adapter
    assert first.parts["teacher"] == first.parts["cache"] == 0
    # Stage 2, as published: everything in float32, and a frozen copy of the base in bf16.
    assert second.trained == parameters and second.adapter == 0
    assert second.parts["weights"] == second.parts["gradients"] == 4 * parameters
    assert second.parts["optimizer"] == 8 * parameters
    assert second.parts["teacher"] == 2 * parameters
    # Keys and values, 8 heads of 128, 36 layers, bf16, of 32 responses of 2048 tokens.
    assert second.parts["cache"] > 2 * 36 * 8 * 128 * 2 * 32 * 2048
    assert second.peak > 18 * parameters


def test_what_cannot_fit_is_refused_in_one_line(recipes):
    wanted = recipes["qwen3vl_8b"]
    with pytest.raises(EstimateError) as caught:
        check_fits(wanted, 80 * GIB, "this GPU")
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("distill needs about ") and "this GPU has 80.00 GiB" in text
    assert "optimizer 65.32 GiB" in text and "distill.merge=false" in text
    check_fits(wanted, 2**40, "a larger one")


# --- parts follow the settings --------------------------------------------------------------------


@pytest.fixture(scope="module")
def nano():
    return build_nano(NanoConfig(patch=8), 112, 0)


def stage_of(nano, *settings, processes=1, sharded=False, name="distill"):
    config = load_config("nano", settings)
    found = estimate(config, nano, LAKE, processes, sharded, stages=[name])
    return found.stages[0]


def test_an_adapter_in_stage_2_needs_neither_copy_nor_moments(nano):
    full = stage_of(nano)
    adapter = stage_of(nano, "coldstart.lora.rank=8")
    assert adapter.parts["teacher"] == 0 < full.parts["teacher"]
    assert adapter.trained == adapter.adapter < 0.2 * full.trained
    assert adapter.parts["optimizer"] == 8 * adapter.adapter
    merged = stage_of(nano, "coldstart.lora.rank=8", "distill.merge=true")
    assert merged.parts == full.parts and merged.adapter == 0


def test_settings_move_the_parts_that_they_should(nano):
    usual = stage_of(nano)
    bf16 = stage_of(nano, "compute.precision=bf16")
    assert bf16.parts["teacher"] * 2 == usual.parts["teacher"]
    assert bf16.parts["cache"] * 2 == usual.parts["cache"]
    assert bf16.parts["optimizer"] == usual.parts["optimizer"]
    lean = stage_of(nano, "compute.gradient_checkpointing=true")
    assert lean.parts["activations"] < 0.5 * usual.parts["activations"]
    short = stage_of(nano, "compute.pass_tokens=512")
    assert short.parts["activations"] < usual.parts["activations"]
    assert short.pass_shape[0] * short.pass_shape[1] <= 512
    wide = ("distill.batch=64", "compute.pass_tokens=8192")
    few = stage_of(nano, "compute.logit_mib=1", *wide)
    many = stage_of(nano, "compute.logit_mib=64", *wide)
    assert few.parts["logits"] < many.parts["logits"]
    assert many.tokens == 2 * usual.tokens


def test_processes_share_samples_and_may_share_parameters(nano):
    alone = stage_of(nano)
    together = stage_of(nano, processes=4)
    assert together.parts["cache"] * 4 == alone.parts["cache"]
    assert together.parts["weights"] == alone.parts["weights"]
    assert together.tokens == alone.tokens
    split = stage_of(nano, processes=4, sharded=True)
    for part in ("weights", "gradients", "optimizer"):
        assert split.parts[part] == alone.parts[part] // 4
    assert split.parts["teacher"] == alone.parts["teacher"]


def test_stages_that_do_not_run_are_left_out(nano):
    config = load_config("nano", ["coldstart.steps=0"])
    assert [s.name for s in estimate(config, nano, LAKE).stages] == ["text", "distill"]


def test_an_estimate_is_a_table_and_plain_data(nano):
    config = load_config("nano")
    wanted = estimate(config, nano, LAKE)
    plain = json.loads(json.dumps(estimate_dict(wanted)))
    assert plain["stages"][2]["parts"] == wanted.stages[2].parts
    table = format_estimate(wanted)
    assert len({len(line) for line in table.splitlines()[1:]}) == 1
    for word in ("text", "coldstart", "distill", "activations", "peak", f"{wanted.parameters:,}"):
        assert word in table
    assert format_estimate(replace(wanted, stages=())).startswith(f"{wanted.parameters:,}")


def test_available_memory_is_some_of_this_machine():
    free, where = available_memory(torch.device("cpu"))
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < free <= total and where
