from __future__ import annotations

import math

import pytest

from mgsd_core.config import Config, ConfigError, config_dict, load_config
from mgsd_core.model import NanoConfig


def test_the_packaged_configuration_loads():
    config = load_config("nano")
    assert isinstance(config, Config)
    assert config.backbone.path is None
    sections = {"backbone", "text", "coldstart", "distill", "compute"}
    assert set(config_dict(config)) == sections


@pytest.mark.parametrize("size", ["4", "8"])
def test_the_recipes_for_qwen_are_the_published_ones(size):
    config = load_config(f"qwen3vl_{size}b")
    assert config.backbone.path == f"Qwen/Qwen3-VL-{size}B-Instruct"
    assert config.text is None
    assert 65_536 <= config.backbone.image_size**2 <= 262_144
    first, second = config.coldstart, config.distill
    assert (first.lora.rank, first.learning_rate, first.epochs, first.batch) == (8, 1e-4, 3, 64)
    assert (first.schedule, first.warmup, first.replay) == ("cosine", 0.1, 0.0)
    assert (second.merge, second.learning_rate, second.epochs, second.batch) == (True, 1e-6, 5, 32)
    assert (second.weight_decay, second.temperature, second.reference) == (0.01, 1.0, True)
    assert (second.estimator, second.direction) == ("sampled", "reverse")
    assert (second.clip_low, second.clip_high, second.dual_clip) == (0.2, 0.3, 3.0)
    assert (second.max_response, config.compute.max_tokens) == (2048, 2048)
    assert second.slack < 0
    assert config.compute.precision == "bf16"
    assert config.compute.gradient_checkpointing


def test_a_recipe_can_be_made_lean():
    config = load_config("qwen3vl_8b", ["distill.merge=false", "backbone.path=weights/mine"])
    assert not config.distill.merge
    assert config.backbone.path == "weights/mine"


def test_settings_can_be_changed_one_by_one():
    config = load_config(
        "nano", ["distill.steps=7", "distill.estimator=topk", "backbone.nano.layers=2"]
    )
    assert (config.distill.steps, config.distill.estimator, config.backbone.nano.layers) == (
        7,
        "topk",
        2,
    )
    assert config.text == load_config("nano").text


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("distill.stepz=7", "unknown setting distill.stepz"),
        ("distil.steps=7", "unknown setting distil"),
        ("distill.steps=many", "distill.steps must be int"),
        ("distill.steps=true", "distill.steps must be int"),
        ("distill.steps=-1", "steps must be at least 0"),
        ("distill.estimator=best", "must be one of full, topk, sampled"),
        ("distill.temperature=0", "temperature must be above 0"),
        ("distill.dual_clip=1", "dual_clip above 1"),
        ("distill.epochs=2", "steps or epochs, not both"),
        ("distill.merge=1", "distill.merge must be bool"),
        ("coldstart.lora.rank=-1", "lora.rank must be at least 0"),
        ("coldstart.lora.dropout=1.0", r"lora.dropout must be in \[0, 1\)"),
        ("compute.precision=fp16", "must be one of fp32, bf16"),
        ("compute.pass_tokens=0", "pass_tokens must be at least 1"),
        ("backbone.path=somewhere", "section text is for nano"),
        ("coldstart.replay=1.5", "from 0 to 1"),
        ("backbone.prompt_style=full", "must be brief for nano"),
        ("coldstart.learning_rate=[", r"the value of coldstart\.learning_rate is not YAML"),
        ("coldstart.learning_rate=2026-13-01", r"coldstart\.learning_rate is not YAML"),
        ("coldstart.learning_rate=.inf", "learning_rate must be finite"),
        ("text.weight_decay=.inf", "weight_decay must be finite"),
        ("coldstart.epochs=.inf", "epochs must be finite"),
        ("text.clip=0", "clip must be above 0"),
        ("coldstart.clip=-1", "clip must be above 0"),
        ("distill.clip=.nan", "clip must be above 0"),
        *(
            (f"backbone.nano.{name}={value}", rf"backbone\.nano\.{name} must be at least 1")
            for name in vars(NanoConfig())
            if name != "deepstack"
            for value in (0, -1)
        ),
        ("backbone.nano.heads=25", r"backbone\.nano\.hidden // heads must be even"),
        ("backbone.nano.hidden=12", r"hidden // heads must be even"),
        ("backbone.nano.hidden=3", r"hidden // heads must be even and above 0, not 0"),
        ("backbone.nano.kv_heads=3", r"heads must be a multiple of kv_heads = 3"),
        ("backbone.nano.vision_heads=3", r"vision_hidden must be a multiple of 4 \* vision_heads"),
        (
            "backbone.nano.vision_hidden=72",
            r"vision_hidden must be a multiple of 4 \* vision_heads",
        ),
        ("backbone.nano.deepstack=[3]", "from 0 to 2"),
        ("backbone.nano.deepstack=[-1]", "from 0 to 2"),
        ("backbone.nano.deepstack=[0, 0]", "at most 4 different numbers"),
        ("distill.steps", "section.key=value"),
        ("distill.steps.more=1", "is no section"),
    ],
)
def test_bad_settings_are_named(override, says):
    with pytest.raises(ConfigError, match=says):
        load_config("nano", [override])


def test_deepstack_wants_a_layer_for_each():
    settings = ["backbone.nano.layers=1", "backbone.nano.deepstack=[0, 1]"]
    with pytest.raises(ConfigError, match="at most 1 different numbers from 0 to 2"):
        load_config("nano", settings)


def test_gradients_may_be_left_as_they_are():
    assert math.isinf(load_config("nano", ["coldstart.clip=.inf"]).coldstart.clip)


def test_stage_0_has_no_epochs():
    with pytest.raises(ConfigError, match=r"give text\.steps"):
        load_config("nano", ["text.steps=0", "text.epochs=2"])


def test_sampled_is_always_reverse():
    with pytest.raises(ConfigError, match="reverse"):
        load_config("nano", ["distill.estimator=sampled", "distill.direction=jsd"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("text: [", "is not YAML"),
        ("- a", "must hold sections"),
        ("backbone: {}\ncoldstart: {steps: 1}", "setting coldstart.batch is missing"),
        ("backbone: 3", "backbone must hold keys"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_bad_files_are_named(tmp_path, text, says):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        load_config(str(path))


def test_missing_configurations_say_what_exists():
    with pytest.raises(ConfigError, match="there are nano, nano_all, qwen3vl_4b, qwen3vl_8b, or"):
        load_config("giga")
    with pytest.raises(ConfigError, match="no configuration file"):
        load_config("giga.yaml")
