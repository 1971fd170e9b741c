"""Look at a recording: ros2 launch mgsd_ros replay.launch.py bag:=DIR family:=maze.

Plays the camera's topics of a bag, plans on them and shows pictures and plans in RViz. Closing RViz
ends it, as does a part that fails; without RViz the end of the bag does.
"""

from __future__ import annotations

from pathlib import Path

from launch.action import Action
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
    Shutdown,
)
from launch.conditions import IfCondition
from launch.event_handlers import OnProcessExit
from launch.events.process import ProcessExited
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackagePrefix

from launch import LaunchContext, LaunchDescription

SHARE = Path(__file__).absolute().parents[1]
CONFIG = SHARE / "config"

# How often /clock is published [Hz].
CLOCK_RATE = "100"


def generate_launch_description() -> LaunchDescription:
    """Return the arguments, the player, the node and RViz."""
    return LaunchDescription(
        [
            DeclareLaunchArgument("bag", description="The bag, as `ros2 bag record` makes them."),
            DeclareLaunchArgument(
                "image",
                default_value="/camera/image_raw",
                description="Topic of the images in the bag, without /compressed.",
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
                default_value="",
                description="Topic of the calibration in the bag; empty: camera_info beside the "
                "images.",
            ),
            DeclareLaunchArgument(
                "family",
                default_value="",
                description="Family of tasks; empty: as in the parameter file.",
            ),
            DeclareLaunchArgument(
                "bundle",
                default_value="",
                description="Directory of the bundle; empty: as in the parameter file, or else the "
                "one that comes with the package.",
            ),
            DeclareLaunchArgument(
                "params_file",
                default_value=str(CONFIG / "planner.yaml"),
                description="Parameter file; the arguments here win over it.",
            ),
            DeclareLaunchArgument(
                "rate", default_value="1.0", description="Times as fast as it was recorded."
            ),
            DeclareLaunchArgument(
                "loop", default_value="false", description="Begin again at the end of the bag."
            ),
            DeclareLaunchArgument(
                "delay",
                default_value="5.0",
                description="Time that the node has to load the bundle before the bag begins [s].",
            ),
            DeclareLaunchArgument("rviz", default_value="true", description="Show it in RViz."),
            DeclareLaunchArgument(
                "use_sim_time",
                default_value="true",
                description="Publish the bag's time on /clock, and go by it.",
            ),
            DeclareLaunchArgument(
                "log_level", default_value="info", description="debug, info, warn, error or fatal."
            ),
            DeclareLaunchArgument(
                "loopback",
                default_value="true",
                description="Keep all traffic on this machine, with shared memory that holds whole "
                "frames (Fast DDS only; other processes that are to see it need the same profile).",
            ),
            RegisterEventHandler(OnProcessExit(on_exit=_end_with_failures)),
            OpaqueFunction(function=_replay),
        ]
    )


def _replay(context: LaunchContext) -> list[Action]:
    def given(name: str) -> str:
        return str(LaunchConfiguration(name).perform(context))

    def is_given(name: str) -> bool:
        return bool(IfCondition(LaunchConfiguration(name)).evaluate(context))

    if not Path(given("bag")).exists():
        raise RuntimeError(f"bag:={given('bag')}: no such bag")
    image, has_rviz, has_clock = given("image"), is_given("rviz"), is_given("use_sim_time")
    if has_rviz:
        # Where it is not installed, that is known before anything has been started.
        FindPackagePrefix("rviz2").perform(context)
    camera_info = given("camera_info") or f"{image.rpartition('/')[0]}/camera_info"
    # Nothing else is played: a recorded command must not move a robot, nor a recorded plan pass
    # for a new one.
    topics = [image, f"{image}/compressed", camera_info, "/tf", "/tf_static"]
    return [
        # First, because it sets the profile of the processes after it. The other arguments have the
        # same names there.
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource(str(SHARE / "launch" / "planner.launch.py")),
            launch_arguments={"camera_info": camera_info}.items(),
        ),
        ExecuteProcess(
            cmd=[
                *("ros2", "bag", "play", given("bag")),
                *("--rate", given("rate"), "--delay", given("delay")),
                *(["--loop"] if is_given("loop") else []),
                *(["--clock", CLOCK_RATE] if has_clock else []),
                *("--disable-keyboard-controls", "--topics", *topics),
            ],
            name="bag",
            output="screen",
            on_exit=None if has_rviz else Shutdown(reason="the bag has ended"),
        ),
        Node(
            package="rviz2",
            executable="rviz2",
            arguments=["-d", str(CONFIG / "planner.rviz")],
            parameters=[{"use_sim_time": has_clock}],
            condition=IfCondition(str(has_rviz)),
            on_exit=Shutdown(reason="RViz was closed"),
        ),
    ]


def _end_with_failures(event: ProcessExited, context: LaunchContext) -> list[Action]:
    if not event.returncode or context.is_shutdown:
        return []
    return [Shutdown(reason=f"{event.process_name} has ended with status {event.returncode}")]
