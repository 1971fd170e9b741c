"""What is installed beside the code: parameter file, launch file, package description."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml
from ros_processes import ROOT

from mgsd_ros.grid_frame import GridFrame
from mgsd_ros.parameters import ParameterError, PlannerParameters

LAUNCH = ROOT / "launch" / "planner.launch.py"
ROS_PACKAGES = re.compile(r"^(rclpy|launch|launch_ros|ament_index_python|rcl_interfaces|\w+_msgs)$")


def flat(data: dict, prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in data.items():
        found |= (
            flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return found


def test_the_parameter_file_has_every_parameter_with_its_default_and_a_comment() -> None:
    path = ROOT / "config" / "planner.yaml"
    values = yaml.safe_load(path.read_text())["/**/planner"]["ros__parameters"]
    fields = dataclasses.fields(PlannerParameters)
    # A list of no numbers has no type in ROS: it stands there as a comment.
    [absent] = [field.metadata["name"] for field in fields if field.default == ()]
    expected = {field.metadata["name"]: field.default for field in fields}
    assert flat(values) | {absent: ()} == expected
    lines = path.read_text().splitlines()
    grouped = ("origin_x:", "x:", "y:", "roll:", "pitch:")
    for field in fields:
        name = field.metadata["name"].rpartition(".")[2]
        places = [i for i, line in enumerate(lines) if line.strip(" #").startswith(f"{name}:")]
        assert places, f"{name} is not there"
        for place in places:
            above = lines[place - 1].strip()
            assert above.startswith(("#", *grouped)), f"{name} has no comment"


def test_every_parameter_is_described_and_bounded() -> None:
    for field in dataclasses.fields(PlannerParameters):
        assert field.metadata["description"].endswith(".")
        if isinstance(field.default, float):
            assert field.metadata["minimum"] <= field.default <= field.metadata["maximum"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"grid_yaw": 1}, "parameter grid.yaw must be a decimal number"),
        ({"grid_yaw": 7.0}, "parameter grid.yaw must be from"),
        ({"max_frame_age": float("nan")}, "parameter max_frame_age must be from 0.0"),
        ({"bundle": None}, "parameter bundle must be text"),
        ({"reliability": "loud"}, "parameter reliability must be one of best_effort, reliable"),
        ({"grid_frame_id": "", "grid_cell_size": 1.0}, "grid.frame_id must not be empty"),
    ],
)
def test_a_wrong_parameter_is_named(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ParameterError, match=re.escape(says)):
        PlannerParameters(**changes)  # type: ignore[arg-type]


def test_the_grid_is_there_when_calibrated() -> None:
    assert PlannerParameters().grid() is None
    grid = PlannerParameters(grid_cell_size=0.5, grid_origin_x=2.0, grid_yaw=1.0).grid()
    assert grid == GridFrame("map", 2.0, 0.0, 1.0, 0.5)


def test_the_launch_file_has_the_arguments_that_nav2_users_expect() -> None:
    tree = ast.parse(LAUNCH.read_text())
    declared = [
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "DeclareLaunchArgument"
        and isinstance(node.args[0], ast.Constant)
    ]
    assert {"namespace", "params_file", "use_sim_time", "log_level"} <= set(declared)
    assert {"bundle", "family", "image"} <= set(declared)


@pytest.mark.skipif(
    importlib.util.find_spec("launch_ros") is None,
    reason="launch and launch_ros are not installed; a ROS 2 installation has them",
)
def test_the_launch_file_loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    share = tmp_path / "share"
    marker = share / "ament_index" / "resource_index" / "packages" / "mgsd_ros"
    marker.parent.mkdir(parents=True)
    marker.touch()
    shutil.copytree(ROOT / "config", share / "mgsd_ros" / "config")
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    description = runpy.run_path(str(LAUNCH))["generate_launch_description"]()
    names = {argument.name for argument in description.get_launch_arguments()}
    assert names >= {"namespace", "params_file", "use_sim_time", "log_level", "bundle", "family"}


def test_the_reference_of_the_parameters_is_up_to_date() -> None:
    from mgsd_ros.parameters import reference

    assert (ROOT / "docs" / "parameters.md").read_text() == reference()


def test_the_package_description_agrees_with_the_project() -> None:
    package = ET.parse(ROOT / "package.xml").getroot()
    project = (ROOT / "pyproject.toml").read_text()
    assert package.get("format") == "3"
    assert f'name = "{package.findtext("name")}"\n' in project
    assert f'version = "{package.findtext("version")}"\n' in project
    assert package.findtext("export/build_type") == "ament_python"
    declared = {depend.text for depend in package.iter("exec_depend")}
    imported = set()
    for source in [LAUNCH, *(ROOT / "mgsd_ros").glob("*.py")]:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Import):
                imported |= {name.name.partition(".")[0] for name in node.names}
    needed = {name for name in imported if ROS_PACKAGES.match(name)} | {"builtin_interfaces"}
    assert needed <= declared


def test_setup_lists_every_package() -> None:
    setup = (ROOT / "setup.py").read_text()
    for top in ("sim", "mgsd_core", "mgsd_ros"):
        for file in (ROOT / top).rglob("__init__.py"):
            name = ".".join(file.parent.relative_to(ROOT).parts)
            assert f'"{name}"' in setup, f"{name} is not in setup.py"


@pytest.mark.skipif(
    not shutil.which("colcon"), reason="colcon is not installed (colcon-core, colcon-ros)"
)
def test_colcon_builds_a_package_that_ros2_run_finds(tmp_path: Path) -> None:
    source = tmp_path / "src" / "mgsd_ros"
    ignore = shutil.ignore_patterns(".*", "runs", "build", "install", "log", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=ignore)
    # The package must build with the Python that colcon runs with, not with ours.
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "LD_LIBRARY_PATH")}
    subprocess.run(["colcon", "build"], cwd=tmp_path, env=env, check=True, timeout=120)
    installed = tmp_path / "install" / "mgsd_ros"
    assert os.access(installed / "lib" / "mgsd_ros" / "planner_node", os.X_OK)
    assert (installed / "share/ament_index/resource_index/packages/mgsd_ros").is_file()
    for name in ("package.xml", "launch/planner.launch.py", "config/planner.yaml"):
        assert (installed / "share" / "mgsd_ros" / name).is_file()
    shipped = sorted(file.relative_to(ROOT) for file in (ROOT / "models/nano").rglob("*.*"))
    for name in shipped:
        assert (installed / "share" / "mgsd_ros" / name).is_file(), name
