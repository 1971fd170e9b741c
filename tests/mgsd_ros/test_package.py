"""What is installed beside the code: parameter file, launch file, package description."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml
from installation import (
    FAMILY,
    check_plans,
    colcon_build,
    program,
    users_environment,
)
from ros_processes import ROOT, STARTED, Client, Node, StartNode

from mgsd_ros.grid_frame import GridFrame
from mgsd_ros.parameters import ParameterError, PlannerParameters, changed

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
        ({"backend": "cuda"}, "parameter backend must be one of auto, tensorrt"),
        ({"grid_frame_id": "", "grid_cell_size": 1.0}, "grid.frame_id must not be empty"),
    ],
)
def test_a_wrong_parameter_is_named(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ParameterError, match=re.escape(says)):
        PlannerParameters(**changes)  # type: ignore[arg-type]


def test_a_work_area_that_follows_from_the_grid_is_not_moved_while_it_is_in_use() -> None:
    """The path would be laid out anew, and the picture still be cut out as before."""
    by_pose = PlannerParameters(area_cells=3, grid_cell_size=0.5, camera_z=2.0)
    for change in ({"grid.origin_x": 1.0}, {"grid.yaw": 1.0}, {"camera.z": 3.0}):
        with pytest.raises(ParameterError, match="clean it up first"):
            changed(by_pose, change, is_configured=True)
        changed(by_pose, change, is_configured=False)
    assert changed(by_pose, {"max_rate": 2.0}, is_configured=True).max_rate == 2.0
    corners = (0.0, 0.0, 9.0, 0.0, 9.0, 9.0, 0.0, 9.0)
    by_corners = PlannerParameters(area_cells=3, area_corners=corners, grid_cell_size=0.5)
    assert changed(by_corners, {"grid.origin_x": 1.0}, is_configured=True).grid_origin_x == 1.0


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
@pytest.mark.parametrize("name", ["planner", "replay"])
def test_the_launch_file_loads(name: str) -> None:
    path = ROOT / "launch" / f"{name}.launch.py"
    description = runpy.run_path(str(path))["generate_launch_description"]()
    names = {argument.name for argument in description.get_launch_arguments()}
    assert names >= {"params_file", "use_sim_time", "log_level", "bundle", "family", "image"}


def allowed(kind: str, right: str) -> set[str]:
    """Return the full names of the topics or services for which the policy gives a right."""
    policy = ET.parse(ROOT / "config" / "sros2_policy.xml").getroot()
    assert policy.get("version") == "0.2.0"
    [enclave] = policy.findall("enclaves/enclave")
    [profile] = enclave.findall("profiles/profile")
    assert (profile.get("ns"), profile.get("node")) == ("/", "planner")
    assert enclave.get("path") == "/planner"
    names = [
        element.text or ""
        for group in profile.iter(f"{kind}s")
        if group.get(right) == "ALLOW"
        for element in group.iter(kind)
    ]
    assert len(set(names)) == len(names) > 0
    return {f"/{name.replace('~', '/planner').removeprefix('/')}" for name in names}


def graph(client: Client, of: str) -> set[str]:
    """Return the names of the node's publishers, subscribers, services or clients."""
    if "planner" not in client.node.get_node_names():
        return set()
    found = getattr(client.node, f"get_{of}_names_and_types_by_node")("planner", "/")
    return {name for name, _ in found}


def test_the_security_policy_allows_what_the_node_has_and_nothing_else(
    start_node: StartNode, client: Client
) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed (extra ros)")
    corners = "area.corners:=[9.0,9.0,90.0,9.0,90.0,90.0,9.0,90.0]"
    area = ("-p", "area.cells:=3", "-p", corners, "-p", "camera.use_info:=true")
    node = start_node(*area, "-p", "use_sim_time:=true")
    client.spin_until(lambda: "/image_raw" in graph(client, "subscriber"))
    client.spin_for(0.5)
    subscribed = graph(client, "subscriber")
    assert graph(client, "publisher") == allowed("topic", "publish")
    assert graph(client, "service") == allowed("service", "reply")
    assert not graph(client, "client")
    assert node.end() == 0
    client.spin_until(lambda: "planner" not in client.node.get_node_names())
    start_node("-p", "image_transport:=compressed")
    client.spin_until(lambda: "/image_raw/compressed" in graph(client, "subscriber"))
    assert subscribed | graph(client, "subscriber") == allowed("topic", "subscribe")


def test_rviz_shows_what_the_node_publishes() -> None:
    config = yaml.safe_load((ROOT / "config" / "planner.rviz").read_text())["Visualization Manager"]
    displays = {display["Class"].partition("/")[2]: display for display in config["Displays"]}
    assert set(displays) == {"Grid", "Path", "MarkerArray", "Image"}
    topics = {kind: d["Topic"] for kind, d in displays.items() if "Topic" in d}
    assert {topic["Value"] for topic in topics.values()} <= allowed("topic", "publish")
    # A latched plan is there for whoever comes late; an overlay is not latched, and one who asked
    # for that would be sent none.
    durability = {kind: topic["Durability Policy"] for kind, topic in topics.items()}
    latched, volatile = "Transient Local", "Volatile"
    assert durability == {"Path": latched, "MarkerArray": latched, "Image": volatile}
    assert config["Global Options"]["Fixed Frame"] == PlannerParameters().grid_frame_id


def unit_values(name: str) -> list[str]:
    """Return what the systemd unit says for a name."""
    lines = (ROOT / "deploy" / "planner.service").read_text().splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{name}=")]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_takes_the_unit() -> None:
    command = ["systemd-analyze", "verify", str(ROOT / "deploy" / "planner.service")]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0 and "planner.service" not in checked.stdout + checked.stderr


def test_the_environment_in_the_documentation_is_one_for_systemd() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()
    block = page.split("`planner.env` has what differs:")[1].split("```")[1]
    lines = [line for line in block.splitlines()[1:] if not line.startswith("#")]
    assert "PLANNER_SETUP" in lines[0]
    # To systemd a comment behind a value is part of it.
    assert all(re.fullmatch(r"[A-Z_]+=[^#]*\S", line) for line in lines)


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
    launched = sorted((ROOT / "launch").glob("*.launch.py"))
    for source in [*launched, *(ROOT / "mgsd_ros").glob("*.py")]:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Import):
                imported |= {name.name.partition(".")[0] for name in node.names}
    needed = {name for name in imported if ROS_PACKAGES.match(name)} | {"builtin_interfaces"}
    # What the launch files start, and what starts them.
    needed |= {"ros2launch", "ros2bag", "rviz2"}
    assert needed <= declared


def test_setup_lists_every_package() -> None:
    setup = (ROOT / "setup.py").read_text()
    for top in ("sim", "mgsd_core", "mgsd_ros"):
        for file in (ROOT / top).rglob("__init__.py"):
            name = ".".join(file.parent.relative_to(ROOT).parts)
            assert f'"{name}"' in setup, f"{name} is not in setup.py"


@pytest.mark.skipif(
    program("colcon") is None, reason="colcon is not installed (colcon-core, colcon-ros)"
)
@pytest.mark.parametrize("options", [(), ("--symlink-install",)])
def test_colcon_builds_a_package_whose_program_plans(
    options: tuple[str, ...], ros_env: dict[str, str], client: Client, tmp_path: Path
) -> None:
    install = colcon_build(tmp_path, *options)
    prefix = install / "mgsd_ros"
    assert (prefix / "share/ament_index/resource_index/packages/mgsd_ros").is_file()
    shared = ["package.xml", "launch/planner.launch.py", "launch/replay.launch.py"]
    shared += ["config/planner.yaml", "config/planner.rviz", "config/sros2_policy.xml"]
    shared += ["deploy/planner.service", "deploy/Dockerfile"]
    shared += [str(file.relative_to(ROOT)) for file in (ROOT / "models/nano").rglob("*.*")]
    for name in shared:
        assert (prefix / "share" / "mgsd_ros" / name).is_file(), name
    executable = prefix / "lib" / "mgsd_ros" / "planner_node"
    assert os.access(executable, os.X_OK)

    # As the service starts it.
    [start] = unit_values("ExecStart")
    env = users_environment(ros_env) | {
        "PLANNER_SETUP": str(install / "local_setup.sh"),
        "PLANNER_NODE": str(executable),
        "PLANNER_ARGUMENTS": f"-p family:={FAMILY} -r image_raw:=/lens/image_raw",
    }
    output = tmp_path / "node.log"
    with output.open("wb") as file:
        process = subprocess.Popen(
            shlex.split(start.replace("$$", "$")),
            env=env,
            cwd=tmp_path,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    node = Node(process, output)
    try:
        node.wait_for_log(STARTED)
        check_plans(client, client.camera("/lens/image_raw"))
    finally:
        status = node.end(signal.SIGINT)
    assert status == 0
    assert f"loaded {tmp_path}" in node.log() and "planned on 3 of 3 frames" in node.log()
