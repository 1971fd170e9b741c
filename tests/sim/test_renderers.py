"""Choosing a renderer: which there are, and what is said where one is not installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from mgsd_core.cli import main
from sim import sample
from sim.renderers import (
    RENDERERS,
    MissingRendererError,
    UnknownRendererError,
    check_renderer,
    open_renderer,
)
from sim.scene import build_scene

without_habitat = pytest.mark.skipif(
    importlib.util.find_spec("habitat_sim") is not None, reason="habitat-sim is installed here"
)


def test_an_unknown_renderer_is_named_with_those_that_exist() -> None:
    with pytest.raises(UnknownRendererError, match=r"'blender'.*habitat, panda"):
        check_renderer("blender")


@without_habitat
def test_a_missing_habitat_is_said_in_one_line_with_the_way_to_install_it() -> None:
    with pytest.raises(
        MissingRendererError, match=r"not installed: .*conda install habitat-sim"
    ) as e:
        open_renderer("habitat")
    assert "\n" not in str(e.value)


@without_habitat
@pytest.mark.parametrize(
    "command",
    [
        ["generate", "--renderer", "habitat", "--count", "1"],
        ["generate-scan", "--scene", "flat.glb", "--family", "maze", "--level", "3"],
    ],
)
def test_commands_that_need_habitat_end_in_one_line_without_it(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--out", str(tmp_path / "data")]) == 2
    output, errors = capsys.readouterr()
    (line,) = errors.splitlines()
    assert "habitat-sim is not installed" in line and output == ""
    assert not list(tmp_path.iterdir())


def test_panda_is_always_there() -> None:
    scene = build_scene(sample("maze", 3, 1), 4, 64, 48)
    with open_renderer("panda") as renderer:
        assert renderer.name == "panda" and renderer.name in RENDERERS
        assert renderer.read_state(scene) == scene.state
        assert renderer.render(scene).rgb.shape == (48, 64, 3)
