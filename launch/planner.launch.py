"""Start the planner: ros2 launch mgsd_ros planner.launch.py bundle:=DIR image:=/camera/image."""

from __future__ import annotations

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchContext, LaunchDescription


def generate_launch_description() -> LaunchDescription:
    """Return the arguments and the node."""
    config = Path(get_package_share_directory("mgsd_ros")) / "config"
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "namespace", default_value="", description="Namespace of the node."
            ),
            DeclareLaunchArgument(
                "params_file",
                default_value=str(config / "planner.yaml"),
                description="Parameter file; the arguments bundle and family win over it.",
            ),
            DeclareLaunchArgument(
                "use_sim_time", default_value="false", description="Take the time from /clock."
            ),
            DeclareLaunchArgument(
                "log_level", default_value="info", description="debug, info, warn, error or fatal."
            ),
            DeclareLaunchArgument(
                "autostart",
                default_value="true",
                description="Configure and activate the node; false leaves it to a lifecycle "
                "manager.",
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
                "image", default_value="image_raw", description="Topic of the camera's images."
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
                "FASTDDS_DEFAULT_PROFILES_FILE",
                str(config / "fastdds_loopback.xml"),
                condition=IfCondition(LaunchConfiguration("loopback")),
            ),
            OpaqueFunction(function=_planner),
        ]
    )


def _planner(context: LaunchContext) -> list[Node]:
    # Only what was given is passed on: an empty text here would hide the parameter file's value.
    given = {
        name: ParameterValue(text, value_type=str)
        for name in ("bundle", "family")
        if (text := LaunchConfiguration(name).perform(context))
    }
    return [
        Node(
            package="mgsd_ros",
            executable="planner_node",
            name="planner",
            namespace=LaunchConfiguration("namespace"),
            parameters=[
                LaunchConfiguration("params_file"),
                {
                    "use_sim_time": ParameterValue(
                        LaunchConfiguration("use_sim_time"), value_type=bool
                    ),
                    "autostart": ParameterValue(LaunchConfiguration("autostart"), value_type=bool),
                    **given,
                },
            ],
            remappings=[
                ("image_raw", LaunchConfiguration("image")),
                ("camera_info", LaunchConfiguration("camera_info")),
            ],
            arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
            output="screen",
        )
    ]
