"""Parameter files, read without ROS as ROS reads them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mgsd_ros.bag_parameters import parameters_to_dict, read_parameter_file
from mgsd_ros.parameters import ParameterError, PlannerParameters

ROOT = Path(__file__).parents[2]


def read(tmp_path: Path, text: str | bytes, **given: str) -> PlannerParameters:
    file = tmp_path / "robot.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_parameter_file(file, **given)


def test_the_file_that_comes_with_the_package_holds_the_defaults() -> None:
    assert read_parameter_file(ROOT / "config" / "planner.yaml") == PlannerParameters()


def test_the_calibration_in_the_guide_is_one(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "deploy.md").read_text()
    [example] = [part for part in guide.split("```yaml\n")[1:] if "corners" in part]
    (tmp_path / "planner.yaml").write_text(example.split("```")[0])
    found = read_parameter_file(tmp_path / "planner.yaml")
    grid, area = found.grid(), found.work_area()
    assert grid is not None and area is not None and area.cells == 5
    assert grid.position((0, 0)) == pytest.approx((1.20, 0.85))
    assert grid.position((0, 4)) == pytest.approx((2.80, 0.85))


@pytest.mark.parametrize(
    "name", ["planner", "/planner", "/**/planner", "/robot/planner", "/**", "robot: planner"]
)
def test_the_nodes_section_is_found_in_any_namespace(name: str, tmp_path: Path) -> None:
    values = {
        "family": "maze",
        "grid": {"cell_size": 0.5},
        "area.cells": 4,
        "area": {"corners": [0.0, 0.0, 9.0, 0.0, 9.0, 9.0, 0.0, 9.0]},
        "use_sim_time": True,
    }
    content: dict = {"ros__parameters": values}
    for part in reversed(name.split(": ")):
        content = {part: content}
    other = {"camera_driver": {"ros__parameters": {"family": "office", "famly": 1}}}
    read_values = read(tmp_path, yaml.dump(other | content), bundle="here")
    assert read_values == PlannerParameters(
        bundle="here",
        family="maze",
        grid_cell_size=0.5,
        area_cells=4,
        area_corners=(0.0, 0.0, 9.0, 0.0, 9.0, 9.0, 0.0, 9.0),
    )


def test_what_is_given_wins(tmp_path: Path) -> None:
    text = "planner: {ros__parameters: {family: maze, backend: tensorrt}}"
    assert read(tmp_path, text, family="frozenlake") == PlannerParameters(
        family="frozenlake", backend="tensorrt"
    )


@pytest.mark.parametrize(
    ("section", "warned"),
    [
        ("planner: {ros__parameters: {family: maze, famly: maze}}", ["famly"]),
        ("/**/planner: {ros__parameters: {family: maze, grid: {size: 1.0}}}", ["grid.size"]),
        ("planner: {ros__parameters: {family: maze, grid: {a: {b: 1}}, x: 1}}", ["grid.a", "x"]),
        ("/**: {ros__parameters: {family: maze, famly: maze}}", []),
        ("/*: {ros__parameters: {family: maze, grid: {size: 1.0}}}", []),
    ],
)
def test_what_the_node_does_not_have_is_warned_of_unless_it_may_be_anothers(
    section: str, warned: list[str], tmp_path: Path
) -> None:
    file, said = tmp_path / "robot.yaml", []
    file.write_text(section)
    assert read_parameter_file(file, warn=said.append) == PlannerParameters(family="maze")
    assert len(said) == len(warned)
    for line, name in zip(said, warned, strict=True):
        assert str(file) in line and f"parameter {name} is not one of this node's" in line


TWO = """
/**: {ros__parameters: {max_rate: 5.0, repair: true}}
/robot1/planner: {ros__parameters: {family: maze, repair: false}}
/robot1/*: {ros__parameters: {backend: tensorrt-rtx}}
/robot2/planner: {ros__parameters: {family: minibehaviour}}
/robot2/**: {ros__parameters: {min_confidence: 0.5}}
"""


def test_of_several_nodes_one_is_chosen(tmp_path: Path) -> None:
    file = tmp_path / "robot.yaml"
    file.write_text(TWO)
    with pytest.raises(ParameterError, match="/robot1/planner, /robot2/planner") as error:
        read_parameter_file(file)
    assert "--node" in str(error.value)
    first = PlannerParameters(max_rate=5.0, family="maze", backend="tensorrt-rtx")
    for name in ("/robot1/planner", "robot1/planner"):
        assert read_parameter_file(file, node=name) == first
    second = PlannerParameters(
        max_rate=5.0, repair=True, family="minibehaviour", min_confidence=0.5
    )
    assert read_parameter_file(file, node="/robot2/planner") == second
    anywhere = PlannerParameters(max_rate=5.0, repair=True)
    assert read_parameter_file(file, node="/robot3/planner") == anywhere
    file.write_text(TWO.partition("/robot2/planner")[0])
    assert read_parameter_file(file) == first
    with pytest.raises(ParameterError, match="no parameters of a node /eye; it has: /planner"):
        file.write_text("planner: {ros__parameters: {}}")
        read_parameter_file(file, node="/eye")


def test_sections_of_the_same_node_are_one(tmp_path: Path) -> None:
    text = "planner: {ros__parameters: {family: maze}}\n/planner: {ros__parameters: {repair: true}}"
    assert read(tmp_path, text) == PlannerParameters(family="maze", repair=True)


def test_all_parameters_are_written_down(tmp_path: Path) -> None:
    values = PlannerParameters(area_cells=3, area_corners=(0.0, 0.0, 9.0, 0.0, 9.0, 9.0, 0.0, 9.0))
    written = parameters_to_dict(values)
    assert written["camera.roll"] == math.pi
    assert read(tmp_path, yaml.dump({"planner": {"ros__parameters": written}})) == values


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it is no table of nodes"),
        ("planner: 5", "/planner is no table of nodes"),
        ("planner: {ros__parameters: [1]}", "ros__parameters of /planner is no table"),
        ("camera: {ros__parameters: {x: 1}}", "no parameters of a node planner; it has: /camera"),
        ("x: [1", "no YAML: while parsing"),
        (b"\xff\xfe\xff", "no YAML: unacceptable character"),
        ("planner: {ros__parameters: {grid: {cell_size: 1}}}", "grid.cell_size must be a decimal"),
        ("planner: {ros__parameters: {repair: 1}}", "parameter repair must be true or false"),
        ("planner: {ros__parameters: {area: {corners: 5}}}", "area.corners must be a list of"),
        ("planner: {ros__parameters: {area: {corners: abc}}}", "area.corners must be a list of"),
        ("planner: {ros__parameters: {area: {cells: 3}}}", "area.cells is given, so area.corners"),
        ("planner: {ros__parameters: {max_rate: .nan}}", "max_rate must be from 0.0 to 1000.0"),
        ("planner: {ros__parameters: {family: !!python/name:os.system }}", "no YAML: could not"),
        ("a: &a {b: *a}", "YAML aliases"),
        ("a: &a [*a]", "YAML aliases"),
        ("{a: " * 5000 + "}" * 5000, "nested too deeply"),
    ],
)
def test_a_file_that_cannot_be_is_one_line(text: str | bytes, says: str, tmp_path: Path) -> None:
    with pytest.raises(ParameterError) as error:
        read(tmp_path, text)
    assert says in str(error.value) and "\n" not in str(error.value)
    assert "robot.yaml" in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"no\.yaml: No such file"):
        read_parameter_file(tmp_path / "no.yaml")
    with pytest.raises(ParameterError, match="Is a directory"):
        read_parameter_file(tmp_path)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["cell_size", "corners", "cells", "x", "grid", "area", "ros__parameters"]
            )
            | st.text(max_size=5)
            | st.integers(),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
names = st.sampled_from([*parameters_to_dict(PlannerParameters()), "grid", "area", "ros"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(
    st.binary(max_size=60)
    | st.text(max_size=60).map(str.encode)
    | values.map(lambda v: yaml.safe_dump(v).encode())
    | st.dictionaries(names, values, max_size=4).map(
        lambda v: yaml.safe_dump({"planner": {"ros__parameters": v}}).encode()
    )
)
def test_whatever_a_file_holds_is_parameters_or_one_line(tmp_path: Path, data: bytes) -> None:
    try:
        assert isinstance(read(tmp_path, data), PlannerParameters)
    except ParameterError as error:
        assert "\n" not in str(error) and "robot.yaml" in str(error)
