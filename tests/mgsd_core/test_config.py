from __future__ import annotations

import pytest

from mgsd_core.config import Config, ConfigError, config_dict, load_config


def test_the_packaged_configuration_loads():
    config = load_config("nano")
    assert isinstance(config, Config)
    assert config.backbone.path is None
    assert set(config_dict(config)) == {"backbone", "text", "coldstart", "distill"}


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
        ("coldstart.replay=1.5", "from 0 to 1"),
        ("backbone.prompt_style=full", "must be brief for nano"),
        ("distill.steps", "section.key=value"),
        ("distill.steps.more=1", "is no section"),
    ],
)
def test_bad_settings_are_named(override, says):
    with pytest.raises(ConfigError, match=says):
        load_config("nano", [override])


def test_sampled_is_always_reverse():
    with pytest.raises(ConfigError, match="reverse"):
        load_config("nano", ["distill.estimator=sampled", "distill.direction=jsd"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("text: [", "is not YAML"),
        ("- a", "must hold sections"),
        ("backbone: {}\ntext: {steps: 1}", "setting text.batch is missing"),
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
    with pytest.raises(ConfigError, match="there are nano"):
        load_config("giga")
    with pytest.raises(ConfigError, match="no configuration file"):
        load_config("giga.yaml")
