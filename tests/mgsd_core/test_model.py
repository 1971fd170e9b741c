from __future__ import annotations

import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgsd_core.model import (
    SPECIAL_TOKENS,
    BackboneError,
    NanoConfig,
    build_nano,
    build_nano_tokenizer,
    load_backbone,
    save_backbone,
)

TOKENIZER = build_nano_tokenizer()


@given(st.text())
@settings(deadline=None)
def test_the_tokenizer_loses_nothing(text):
    if any(token in text for token in SPECIAL_TOKENS):
        return
    ids = TOKENIZER(text, add_special_tokens=False).input_ids
    assert TOKENIZER.decode(ids, clean_up_tokenization_spaces=False) == text


def test_the_tokenizer_is_the_same_every_time():
    assert build_nano_tokenizer().get_vocab() == TOKENIZER.get_vocab()


def test_nano_is_a_qwen3_vl_of_about_a_million_parameters():
    model = build_nano(NanoConfig(), 128, seed=0).model
    assert type(model).__name__ == "Qwen3VLForConditionalGeneration"
    assert 5e5 < sum(p.numel() for p in model.parameters()) < 2e6


def test_weights_follow_the_seed_and_leave_the_global_generator_alone():
    before = torch.random.get_rng_state()
    one, same, other = (build_nano(NanoConfig(), 128, seed=s).model.state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not all(torch.equal(one[k], other[k]) for k in one)


def test_backbones_round_trip(trained_backbone, model_dir):
    again = load_backbone(model_dir)
    assert again.image == trained_backbone.image
    assert again.style == trained_backbone.style
    assert again.suppressed_tokens() == trained_backbone.suppressed_tokens()
    assert again.tokenizer.chat_template == trained_backbone.tokenizer.chat_template
    expected = trained_backbone.model.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in again.model.state_dict().items())
    assert not list(model_dir.glob("*.bin"))


def test_placeholders_and_control_tokens_are_suppressed_but_the_end_of_turn_is_not():
    backbone = build_nano(NanoConfig(), 128, seed=0)
    names = {backbone.tokenizer.convert_ids_to_tokens(i) for i in backbone.suppressed_tokens()}
    assert names == set(SPECIAL_TOKENS) - {"<|im_end|>"}


def _damage(path, name):
    if name == "nothing there":
        shutil.rmtree(path)
    elif name == "empty":
        for file in path.iterdir():
            file.unlink()
    elif name == "cut weights":
        weights = path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    elif name == "damaged metadata":
        (path / "mgsd.json").write_text("{")
    elif name == "other prompts":
        data = json.loads((path / "mgsd.json").read_text())
        (path / "mgsd.json").write_text(json.dumps({**data, "prompts_digest": "0" * 64}))
    elif name == "other patches":
        data = json.loads((path / "mgsd.json").read_text())
        data["image"]["patch"] = 8
        (path / "mgsd.json").write_text(json.dumps(data))
    elif name == "no metadata":
        (path / "mgsd.json").unlink()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nothing there", "no such directory of weights"),
        ("empty", "cannot load"),
        ("cut weights", "cannot load"),
        ("damaged metadata", "damaged"),
        ("other prompts", "other prompts"),
        ("other patches", "contradicts"),
        ("no metadata", "say the picture side"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(name, says, tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    save_backbone(build_nano(NanoConfig(layers=1), 64, seed=0), path)
    _damage(path, name)
    with pytest.raises(BackboneError, match=says) as caught:
        load_backbone(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["/not/there", "./there", "../there", "runs/base/model"])
def test_a_mistyped_path_is_not_asked_for_on_the_hub(path):
    with pytest.raises(BackboneError, match="no such directory of weights"):
        load_backbone(path, 64)
