"""Published weights: a small random Qwen3-VL on disk, as transformers itself reads it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_qwen import TEMPLATE, real_processor, write_small_qwen
from transformers import AutoImageProcessor, Qwen3VLForConditionalGeneration

from mgsd_core import prompts
from mgsd_core.encoding import chat_text, make_batch, prompt_ids, text_ids
from mgsd_core.export.reference import greedy_ids
from mgsd_core.model import (
    BackboneError,
    NanoConfig,
    build_nano,
    load_backbone,
    outline_backbone,
    save_backbone,
)
from mgsd_core.rollout import generate
from mgsd_core.runtime.bundle import read_bundle
from mgsd_core.runtime.planner import Planner
from mgsd_core.runtime.preprocess import fit
from sim import FAMILIES, LEVELS, sample, solve
from sim.dataset import write_dataset
from sim.request import DatasetRequest


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return write_small_qwen(tmp_path_factory.mktemp("weights") / "qwen")


@pytest.fixture(scope="module")
def backbone(weights):
    return load_backbone(weights, 256)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def read_by_processor(path: Path, prompt: prompts.Prompt, rgb: np.ndarray):
    """Put a prompt and its picture through transformers' own processor."""
    processor = real_processor(path)
    content = [{"type": "text", "text": prompt.user}, {"type": "image"}]
    messages = [
        {"role": "system", "content": [{"type": "text", "text": prompt.system}]},
        {"role": "user", "content": content},
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return processor(text=[text], images=[rgb], return_tensors="pt")


# --- what a model reads --------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_and_pictures_are_those_of_the_real_processor(weights, backbone, family):
    prompt = prompts.student_prompt(family, backbone.style)
    rgb = fit(noise(300, 400), backbone.image)
    theirs = read_by_processor(weights, prompt, rgb)
    ids = prompt_ids(backbone, prompt)
    assert ids == theirs["input_ids"][0].tolist()
    assert ids.count(backbone.image_token) == backbone.image.tokens == 64
    ours = make_batch(backbone, [ids], images=rgb[None])
    assert torch.equal(ours.grid, theirs["image_grid_thw"])
    torch.testing.assert_close(ours.pixels, theirs["pixel_values"], rtol=0, atol=1e-6)


def test_answers_to_the_processors_input_are_the_answers_to_ours(weights, backbone):
    prompt = prompts.student_prompt("maze", backbone.style)
    rgb = noise(256, 256)
    theirs = read_by_processor(weights, prompt, rgb)
    plain = Qwen3VLForConditionalGeneration.from_pretrained(weights).eval()
    output = plain.generate(
        **theirs,
        do_sample=False,
        max_new_tokens=12,
        eos_token_id=backbone.end_token,
        suppress_tokens=backbone.suppressed_tokens(),
    )
    expected = output[0, theirs["input_ids"].shape[1] :].tolist()
    ids = prompt_ids(backbone, prompt)
    assert generate(backbone, [ids], rgb[None], max_new_tokens=12) == [expected]
    assert greedy_ids(backbone, "maze", rgb, 12) == expected
    other = noise(256, 256, seed=1)
    assert generate(backbone, [ids], other[None], max_new_tokens=12) != [expected]


def test_two_processors_read_one_template(tmp_path, backbone):
    """Older versions of transformers kept it in a file that a tokenizer does not read."""
    path = write_small_qwen(tmp_path / "old", template_file="chat_template.json")
    old = load_backbone(path, 256)
    assert old.tokenizer.chat_template == backbone.tokenizer.chat_template == TEMPLATE
    prompt = prompts.question_prompt("What is the size?", "full")
    assert prompt_ids(old, prompt) == prompt_ids(backbone, prompt)


def test_the_stop_text_is_several_tokens(backbone):
    stop = text_ids(backbone, prompts.STOP_TEXT)
    assert len(stop) > 1
    assert not set(stop) & set(backbone.suppressed_tokens())


def test_rows_of_the_embedding_without_a_token_are_never_said(backbone):
    suppressed = backbone.suppressed_tokens()
    beyond = range(len(backbone.tokenizer), backbone.model.config.text_config.vocab_size)
    assert len(beyond) == 37 and set(beyond) <= set(suppressed)
    assert backbone.image_token in suppressed and backbone.end_token not in suppressed


# --- how weights are loaded -----------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_loaded_in_the_type_that_is_asked_for(tmp_path, tied):
    path = write_small_qwen(tmp_path / "qwen", tied=tied, dtype=torch.bfloat16)
    stored = load_backbone(path, 256)
    assert {p.dtype for p in stored.model.parameters()} == {torch.bfloat16}
    single = load_backbone(path, 256, dtype=torch.float32)
    assert {p.dtype for p in single.model.parameters()} == {torch.float32}
    for name, value in single.model.state_dict().items():
        assert torch.equal(value, stored.model.state_dict()[name].float()), name
    head = single.model.lm_head.weight
    assert (head is single.model.model.language_model.embed_tokens.weight) == tied


def test_an_outline_is_the_backbone_without_values(weights, backbone):
    outline = outline_backbone(weights, 256)
    assert outline.model.device.type == "meta"
    assert outline.image == backbone.image and outline.style == backbone.style
    assert outline.suppressed_tokens() == backbone.suppressed_tokens()
    prompt = prompts.student_prompt("maze", "full")
    assert prompt_ids(outline, prompt) == prompt_ids(backbone, prompt)
    shapes = {n: p.shape for n, p in backbone.model.named_parameters()}
    assert {n: p.shape for n, p in outline.model.named_parameters()} == shapes


def test_transformers_opens_what_was_saved(backbone, tmp_path):
    """Weights, prompts and pictures: of a square picture, whatever its size."""
    save_backbone(backbone, tmp_path)
    prompt = prompts.student_prompt("frozenlake", backbone.style)
    rgb = noise(400, 400)
    theirs = read_by_processor(tmp_path, prompt, rgb)
    ids = prompt_ids(backbone, prompt)
    assert theirs["input_ids"][0].tolist() == ids
    ours = make_batch(backbone, [ids], images=fit(rgb, backbone.image)[None])
    torch.testing.assert_close(ours.pixels, theirs["pixel_values"], rtol=0, atol=1e-6)
    again = load_backbone(tmp_path)
    assert (again.image, again.style) == (backbone.image, backbone.style)
    assert chat_text(again, prompt) == chat_text(backbone, prompt)


def test_nano_too_is_opened_by_transformers(tmp_path):
    nano = build_nano(NanoConfig(layers=1, patch=8), 112, seed=0)
    save_backbone(nano, tmp_path)
    rgb = noise(200, 200)
    theirs = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")(
        images=[rgb], return_tensors="pt"
    )
    ours = make_batch(nano, [[nano.image_token] * 49], images=fit(rgb, nano.image)[None])
    torch.testing.assert_close(ours.pixels, theirs["pixel_values"], rtol=0, atol=1e-6)


# --- what does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "size", "says"),
    [
        ({"image_mean": [0.48, 0.46, 0.41]}, 256, "normalises in a way"),
        ({"image_mean": [0.4, 0.4, 0.4], "do_normalize": False}, 256, "normalises in a way"),
        ({"rescale_factor": 1.0}, 256, "normalises in a way"),
        ({"resample": 2}, 256, "resizes or"),
        ({"patch_size": 14}, 280, "contradicts the model's patch"),
        ({"merge_size": 4}, 256, "contradicts the model's patch"),
        ({"temporal_patch_size": 1}, 256, "contradicts the model's patch"),
        ({"image_processor_type": "CLIPImageProcessor"}, 256, "is not Qwen3-VL's"),
        ({"image_processor_type": "NoSuchProcessor"}, 256, None),
        ({}, 224, "takes pictures of 65536 to 16777216 px.* 224 × 224 px is not one"),
        ({}, 8192, "8192 × 8192 px is not one"),
        ({}, 250, "multiples of 32 px"),
        ({}, None, "say the picture side"),
    ],
)
def test_a_processor_that_does_otherwise_is_refused(weights, tmp_path, changed, size, says):
    path = tmp_path / "qwen"
    shutil.copytree(weights, path)
    file = path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    for load in (load_backbone, outline_backbone):
        with pytest.raises(BackboneError, match=says) as caught:
            load(path, size)
        assert "\n" not in str(caught.value)


def test_other_values_of_the_same_kind_are_followed(tmp_path):
    changed = {"image_mean": [0.25] * 3, "image_std": [0.5] * 3}
    backbone = load_backbone(write_small_qwen(tmp_path / "qwen", **changed), 256)
    assert (backbone.image.mean, backbone.image.std) == (0.25, 0.5)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no processor", "preprocessor_config"),
        ("no template", "no chat template"),
        ("another family", "of the type 'qwen2_5_vl', not a Qwen3-VL"),
        ("another placeholder", r"has <\|image_pad\|> as \d+, the model as 5"),
        ("too many tokens", "more tokens than the model's vocabulary"),
        ("weights of something else", "lack 2, such as model.visual.merger.norm.bias"),
        ("no tokenizer", r"has no <\|im_start\|>"),
        ("damaged configuration", "cannot load"),
    ],
)
def test_weights_that_do_not_fit_together_are_refused(weights, tmp_path, name, says):
    path = tmp_path / "qwen"
    shutil.copytree(weights, path)
    config = json.loads((path / "config.json").read_text())
    if name == "no processor":
        (path / "preprocessor_config.json").unlink()
    elif name == "no template":
        (path / "chat_template.jinja").unlink()
    elif name == "another family":
        config["model_type"] = "qwen2_5_vl"
    elif name == "another placeholder":
        config["image_token_id"] = 5
    elif name == "too many tokens":
        tokenizer = json.loads((path / "tokenizer.json").read_text())
        first = max(t["id"] for t in tokenizer["added_tokens"]) + 1
        tokenizer["added_tokens"] += [
            {**tokenizer["added_tokens"][-1], "id": first + i, "content": f"<extra {i}>"}
            for i in range(100)
        ]
        (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    elif name == "weights of something else":
        stored = load_file(path / "model.safetensors")
        stored = {n: t for n, t in stored.items() if not n.startswith("model.visual.merger.norm")}
        save_file(stored, path / "model.safetensors", {"format": "pt"})
    elif name == "no tokenizer":
        for file in path.glob("tokenizer*"):
            file.unlink()
    (path / "config.json").write_text(json.dumps(config))
    if name == "damaged configuration":
        (path / "config.json").write_text("{")
    with pytest.raises(BackboneError, match=says) as caught:
        load_backbone(path, 256)
    assert "\n" not in str(caught.value)


# --- from the disk through both stages to a bundle ------------------------------------------------

RECIPE = """\
backbone:
  path: {weights}
  image_size: 256
  prompt_style: full
coldstart:
  steps: 3
  batch: 4
  learning_rate: 1.0e-3
  by_length: false
  lora: {{rank: {rank}}}
distill:
  steps: 3
  batch: 3
  learning_rate: 1.0e-4
  estimator: sampled
  max_response: 16
  slack: -1
  merge: {merge}
compute:
  gradient_checkpointing: true
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data")
    for split, count in (("train", 4), ("test", 1)):
        write_dataset(
            path, DatasetRequest([("frozenlake", 3)], split, seed=0, count=count, size=128)
        )
    return path


def run(*arguments: object, cwd: Path | None = None, **env: str) -> dict:
    """Run `mgsd` and return what it prints for programs."""
    command = [sys.executable, "-m", "mgsd_core.cli", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env=os.environ | env
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("rank", "merge"), [(4, False), (4, True), (0, True)], ids=["adapter", "merged", "full"]
)
def test_published_weights_go_through_both_stages_to_a_bundle(weights, data, tmp_path, rank, merge):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(RECIPE.format(weights=weights, rank=rank, merge=str(merge).lower()))
    common = ("--config", recipe, "--data", data, "--out", tmp_path / "run")
    first = run("coldstart", *common)
    assert Path(first["base"]) == weights
    teacher = () if rank else ("--teacher", first["base"])
    second = run("distill", *common, "--student", first["model"], *teacher)
    changed = load_backbone(Path(second["model"]))
    assert (changed.style, changed.image.size) == ("full", 256)
    exported = run(
        *("export", "--model", second["model"], "--out", tmp_path / "bundle", "--goldens", 1),
        *("--data", data),
    )
    assert exported["families"] == ["frozenlake"] and exported["goldens"] == 1
    bundle = read_bundle(tmp_path / "bundle")
    assert len(bundle.manifest.tokens.stop) > 1
    answer = Planner.load(tmp_path / "bundle", family="frozenlake").plan(noise(256, 256))
    expected = greedy_ids(merged(second["model"]), "frozenlake", noise(256, 256), 200)
    assert answer.text and changed.tokenizer.decode(expected).startswith(answer.text)
    # It is not the model that it was.
    before = load_backbone(weights, 256)
    assert any(
        not torch.equal(p, dict(before.model.named_parameters())[n])
        for n, p in merged(second["model"]).model.named_parameters()
    )


@pytest.fixture
def hub(weights, tmp_path) -> Path:
    """A hub's cache that has the small weights under a name; nothing else is reachable."""
    model = tmp_path / "hub" / "hub" / "models--Qwen--Small"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("0" * 40)
    shutil.copytree(weights, model / "snapshots" / ("0" * 40))
    return tmp_path / "hub"


def test_weights_of_a_hub_are_named_in_every_stage(hub, data, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(RECIPE.format(weights="Qwen/Small", rank=2, merge="true"))
    common = ("--config", recipe, "--data", data, "--out", tmp_path / "run")
    first = run("coldstart", *common, HF_HOME=str(hub))
    assert first["base"] == "hf:Qwen/Small"
    out = (*common, "--student", first["model"])
    second = run("distill", *out, HF_HOME=str(hub))
    again = run("distill", *out, "--teacher", first["base"], HF_HOME=str(hub))
    assert again == second
    # A student that has not been through stage 1.
    steps = ("--set", "distill.steps=1", "--set", "distill.batch=1")
    words = ("--config", recipe, "--data", data, "--out", tmp_path / "two", *steps)
    base = first["base"]
    assert run("distill", *words, "--student", base, "--teacher", base, HF_HOME=str(hub))


def test_an_adapter_finds_its_base_from_any_directory(weights, data, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(RECIPE.format(weights=weights, rank=2, merge="false"))
    common = ("--config", recipe, "--data", data, "--out", tmp_path / "run")
    first = run("coldstart", *common, "--base", weights.name, cwd=weights.parent)
    assert Path(first["base"]) == weights
    words = ("--model", first["model"], "--data", data, "--out", tmp_path / "judged")
    assert run("evaluate", *words, cwd=tmp_path)


def merged(path: str):
    from mgsd_core.adapters import merge_adapter

    backbone = load_backbone(Path(path))
    merge_adapter(backbone)
    return backbone


def test_every_level_fits_the_token_budget(backbone):
    """Of the published recipe, with this tokenizer, whose tokens are shorter than the real ones."""
    for family in FAMILIES:
        for level in LEVELS[family]:
            state = sample(family, level, 0)
            told = prompts.symbolic_prompt(state, "full", solve(state))
            assert len(prompt_ids(backbone, told)) < 2048
