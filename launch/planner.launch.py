"""Start the planner: ros2 launch mgsd_ros planner.launch.py family:=maze image:=/camera/image_raw.

An argument that is not given leaves the word to the parameter file.
"""

from __future__ import annotations

import os
from pathlib import Path

from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchContext, LaunchDescription

# The launch file knows where it lies: it runs from a checkout and by its path, too.
SHARE = Path(__file__).absolute().parents[1]
CONFIG = SHARE / "config"

# Fast DDS 2 (Humble, Jazzy) knows its profiles by the older name alone; 3 takes it too, but warns.
PROFILES = (
    "FASTRTPS_DEFAULT_PROFILES_FILE"
    if os.environ.get("ROS_DISTRO") in ("humble", "jazzy")
    else "FASTDDS_DEFAULT_PROFILES_FILE"
)

# Parameters that an argument may set, and what they are.
SETTABLE = {
    "bundle": str,
    "family": str,
    "image_transport": str,
    "autostart": bool,
    "use_sim_time": bool,
}


def generate_launch_description() -> LaunchDescription:
    """Return the arguments and the node."""
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "namespace", default_value="", description="Namespace of the node."
            ),
            DeclareLaunchArgument(
                "params_file",
                default_value=str(CONFIG / "planner.yaml"),
                description="Parameter file; the arguments here win over it.",
            ),
            DeclareLaunchArgument(
                "use_sim_time",
                default_value="",
                description="true takes the time from /clock; empty: as in the parameter file.",
            ),
            DeclareLaunchArgument(
                "log_level", default_value="info", description="debug, info, warn, error or fatal."
            ),
            DeclareLaunchArgument(
                "autostart",
                default_value="",
                description="false leaves it to a lifecycle manager to configure and activate the "
                "node; empty: as in the parameter file.",
            ),
            DeclareLaunchArgument(
                "use_respawn",
                default_value="false",
                description="Start the node again 2 s after it has ended, whatever the reason.",
            ),
            DeclareLaunchArgument(
                "bundle",
                default_value="",
                description="Directory of the bundle; empty: as in the parameter file, or else the "
                "one that comes with the package.",
            ),
            DeclareLaunchArgument(
                "family",
                default_value="",
                description="Family of tasks; empty: as in the parameter file.",
            ),
            DeclareLaunchArgument(
                "image",
                default_value="image_raw",
                description="Topic of the camera's images, without /compressed.",
            ),
            DeclareLaunchArgument(
                "image_transport",
                default_value="",
                choices=["", "raw", "compressed"],
                description="compressed takes the images of the topic <image>/compressed; empty: "
                "as in the parameter file.",
            ),
            DeclareLaunchArgument(
                "camera_info",
                default_value="camera_info",
                description="Topic of the calibration, where the work area is found by it.",
            ),
            DeclareLaunchArgument(
                "loopback",
                default_value="false",
                description="Keep all traffic on this machine, with shared memory that holds whole "
                "frames (Fast DDS only; every process that takes part needs the same profile).",
            ),
            SetEnvironmentVariable(
                PROFILES,
                str(CONFIG / "fastdds_loopback.xml"),
                condition=IfCondition(LaunchConfiguration("loopback")),
            ),
            OpaqueFunction(function=_planner),
        ]
    )


def _planner(context: LaunchContext) -> list[Node]:
    image = LaunchConfiguration("image").perform(context)
    if image.endswith("/compressed"):
        raw = image.removesuffix("/compressed")
        raise RuntimeError(f"image:={image}: say image:={raw} image_transport:=compressed instead")
    params_file = Path(LaunchConfiguration("params_file").perform(context))
    if not params_file.is_file():
        raise RuntimeError(f"params_file:={params_file}: no such file")
    # Only what was given is passed on: an empty text here would hide the parameter file's value.
    given = {
        name: ParameterValue(LaunchConfiguration(name), value_type=kind)
        for name, kind in SETTABLE.items()
        if LaunchConfiguration(name).perform(context)
    }
    return [
        Node(
            executable=_executable(),
            name="planner",
            namespace=LaunchConfiguration("namespace"),
            parameters=[str(params_file), *([given] if given else [])],
            # image_transport's topic follows: the node takes the remapped name of image_raw for it.
            remappings=[
                ("image_raw", image),
                ("camera_info", LaunchConfiguration("camera_info")),
            ],
            arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
            respawn=LaunchConfiguration("use_respawn"),
            respawn_delay=2.0,
            output="screen",
        )
    ]


def _executable() -> str:
    """Return the node's program: where colcon installs it, where pip does, or by its name."""
    prefix = SHARE.parents[1]
    for place in (prefix / "lib" / "mgsd_ros", prefix / "bin"):
        if (place / "planner_node").is_file():
            return str(place / "planner_node")
    return "planner_node"
