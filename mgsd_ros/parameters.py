"""The parameters of the planner node: one dataclass is the declaration, the check and the table."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mgsd_core.runtime.backends import BACKENDS
from mgsd_ros.grid_frame import GridFrame
from mgsd_ros.work_area import AreaCorners, AreaPose, CameraPose, WorkAreaError
from sim.states import MAX_SIZE

if TYPE_CHECKING:
    from rclpy.node import Node

#: Parameters that ROS itself gives to every node: `warn_unknown` says nothing about these.
_ROS_PARAMETERS = ("use_sim_time", "start_type_description_service")

RELIABILITIES = ("best_effort", "reliable")
TRANSPORTS = ("raw", "compressed")


# Types of values: their names in ROS, and in words.
_KINDS = {
    str: ("string", "text"),
    float: ("double", "a decimal number (1.0, not 1)"),
    bool: ("bool", "true or false"),
    int: ("integer", "a whole number"),
    tuple: ("double array", "a list of decimal numbers ([1.0, 2.0], not [1, 2])"),
}


class ParameterError(ValueError):
    """A parameter of the wrong type or out of range; the message names it."""


def _parameter(
    name: str,
    default: object,
    description: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    at_configure: bool = False,
) -> Any:
    """Return a field of `PlannerParameters`.

    Args:
        name: in ROS.
        default: its type is the parameter's.
        description: of it, in sentences.
        minimum, maximum: of a number.
        choices: all that it may be.
        at_configure: the value is read when the node is configured, and may only be changed before.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "at_configure": at_configure,
            "name": name,
            "description": description,
            "minimum": minimum,
            "maximum": maximum,
            "choices": choices,
        },
    )


@dataclass(frozen=True, slots=True)
class PlannerParameters:
    """What the node can be told; every field's metadata hold its ROS name, text and range.

    Raises:
        ParameterError: a value is of another type, not finite, out of range or none of the choices.
    """

    bundle: str = _parameter(
        "bundle",
        "",
        "Directory of the bundle to plan with; empty takes the one that comes with the package.",
        at_configure=True,
    )
    family: str = _parameter(
        "family",
        "frozenlake",
        "Family of tasks that the camera sees, one of the bundle's.",
        at_configure=True,
    )
    backend: str = _parameter(
        "backend",
        "auto",
        "Engine to run the bundle on; auto takes the fastest that works here.",
        choices=("auto", *BACKENDS),
        at_configure=True,
    )
    autostart: bool = _parameter(
        "autostart",
        True,
        "Configure and activate by itself at the start; otherwise a lifecycle manager, or "
        "`ros2 lifecycle set`, does it.",
        at_configure=True,
    )
    repair: bool = _parameter(
        "repair",
        False,
        "Where the model's plan fails in the state that it recovered, publish a shortest one there "
        "instead; ~/actions says that it is repaired.",
        at_configure=True,
    )
    image_transport: str = _parameter(
        "image_transport",
        "raw",
        "raw subscribes image_raw (sensor_msgs/Image), compressed its neighbour "
        "image_raw/compressed (sensor_msgs/CompressedImage).",
        choices=TRANSPORTS,
        at_configure=True,
    )
    reliability: str = _parameter(
        "reliability",
        "best_effort",
        "Reliability of the image subscription. A reliable one receives nothing from a camera "
        "that publishes best effort.",
        choices=RELIABILITIES,
        at_configure=True,
    )
    min_confidence: float = _parameter(
        "min_confidence",
        0.0,
        "Answers that the model is less sure of are not followed [0 to 1]: ~/plan is then empty, "
        "and ~/actions says why; 0 follows all.",
        minimum=0.0,
        maximum=1.0,
    )
    max_rate: float = _parameter(
        "max_rate",
        0.0,
        "Most plans a second [Hz]; 0 plans as fast as it goes. Always on the newest frame.",
        minimum=0.0,
        maximum=1000.0,
    )
    change_threshold: float = _parameter(
        "change_threshold",
        0.0,
        "Plan only when some part of the picture (a 16th of a side) has changed its colour by more "
        "than this since the last plan [0 to 255]; 0 plans on every frame.",
        minimum=0.0,
        maximum=255.0,
    )
    frame_timeout: float = _parameter(
        "frame_timeout",
        2.0,
        "Without a frame for this long, /diagnostics reports an error, and without one that can be "
        "used, ~/plan is emptied [s].",
        minimum=0.1,
        maximum=3600.0,
    )
    max_frame_age: float = _parameter(
        "max_frame_age",
        0.0,
        "Frames whose stamp is older than this are dropped [s]; 0 takes every frame.",
        minimum=0.0,
        maximum=3600.0,
    )
    grid_frame_id: str = _parameter(
        "grid.frame_id", "map", "Frame that the grid's place is given in, and that of ~/plan."
    )
    grid_origin_x: float = _parameter(
        "grid.origin_x", 0.0, "Centre of cell (0, 0) [m].", minimum=-1e6, maximum=1e6
    )
    grid_origin_y: float = _parameter(
        "grid.origin_y", 0.0, "Centre of cell (0, 0) [m].", minimum=-1e6, maximum=1e6
    )
    grid_yaw: float = _parameter(
        "grid.yaw",
        0.0,
        "Direction in which columns increase, counter-clockwise from x [rad].",
        minimum=-math.tau,
        maximum=math.tau,
    )
    grid_cell_size: float = _parameter(
        "grid.cell_size",
        0.0,
        "Side of a cell [m]; 0 means not calibrated: ~/plan then stays empty and ~/actions alone "
        "carries the plan.",
        minimum=0.0,
        maximum=1e3,
    )

    area_cells: int = _parameter(
        "area.cells",
        0,
        "Cells along each side of the grid, to see the work area from above out of the camera's "
        "picture; 0 plans on the picture as it is.",
        minimum=0,
        maximum=MAX_SIZE,
        at_configure=True,
    )
    area_corners: tuple[float, ...] = _parameter(
        "area.corners",
        (),
        "Pixels u, v of the grid's outer corners in the camera's picture: top left, top right, "
        "bottom right, bottom left, 8 numbers. None: they follow from `grid` and `camera`.",
        at_configure=True,
    )
    camera_use_info: bool = _parameter(
        "camera.use_info",
        False,
        "Undistort by what `camera_info` says; always so where the corners follow from `camera`.",
        at_configure=True,
    )
    camera_rectified: bool = _parameter(
        "camera.rectified",
        False,
        "The pictures are undistorted already (image_rect).",
        at_configure=True,
    )
    camera_x: float = _parameter(
        "camera.x",
        0.0,
        "Optical centre of the camera in grid.frame_id [m].",
        minimum=-1e6,
        maximum=1e6,
        at_configure=True,
    )
    camera_y: float = _parameter(
        "camera.y",
        0.0,
        "Optical centre of the camera in grid.frame_id [m].",
        minimum=-1e6,
        maximum=1e6,
        at_configure=True,
    )
    camera_z: float = _parameter(
        "camera.z",
        0.0,
        "Optical centre of the camera in grid.frame_id, above the floor [m].",
        minimum=-1e6,
        maximum=1e6,
        at_configure=True,
    )
    camera_roll: float = _parameter(
        "camera.roll",
        math.pi,
        "Turn of the optical frame (x right, y down, z forward) about the fixed axis x [rad]; π, "
        "without pitch and yaw, looks straight down with the top of the picture towards +y.",
        minimum=-math.tau,
        maximum=math.tau,
        at_configure=True,
    )
    camera_pitch: float = _parameter(
        "camera.pitch",
        0.0,
        "Turn about the fixed axis y, after that about x [rad].",
        minimum=-math.tau,
        maximum=math.tau,
        at_configure=True,
    )
    camera_yaw: float = _parameter(
        "camera.yaw",
        0.0,
        "Turn about the fixed axis z, after the others [rad].",
        minimum=-math.tau,
        maximum=math.tau,
        at_configure=True,
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))
        if self.grid_cell_size > 0 and not self.grid_frame_id:
            raise ParameterError("parameter grid.frame_id must not be empty with a calibrated grid")
        try:
            self.work_area()
        except WorkAreaError as error:
            raise ParameterError(f"parameters area and camera: {error}") from None

    @property
    def needs_camera_info(self) -> bool:
        """Whether pictures can only be used with what `camera_info` says."""
        return bool(self.area_cells) and (self.camera_use_info or not self.area_corners)

    def work_area(self) -> AreaCorners | AreaPose | None:
        """Return where the work area is in the camera's pictures; None: they show just that.

        Raises:
            ParameterError, WorkAreaError: it cannot be.
        """
        if not self.area_cells:
            return None
        if self.area_corners:
            if len(self.area_corners) != 8:
                raise ParameterError(
                    "parameter area.corners must be 8 numbers, u and v of four corners, not "
                    f"{len(self.area_corners)}"
                )
            corners = tuple(zip(self.area_corners[::2], self.area_corners[1::2], strict=True))
            return AreaCorners(self.area_cells, corners)
        grid = self.grid()
        if grid is None:
            raise ParameterError(
                "parameter area.cells is given, so area.corners must be as well, or grid.cell_size "
                "and camera, from which they follow"
            )
        pose = CameraPose.from_rpy(
            self.camera_x,
            self.camera_y,
            self.camera_z,
            self.camera_roll,
            self.camera_pitch,
            self.camera_yaw,
        )
        return AreaPose(self.area_cells, grid, pose)

    def grid(self) -> GridFrame | None:
        """Return where the grid lies, or None when it is not calibrated."""
        if self.grid_cell_size == 0:
            return None
        return GridFrame(
            self.grid_frame_id,
            self.grid_origin_x,
            self.grid_origin_y,
            self.grid_yaw,
            self.grid_cell_size,
        )


def declare(node: Node) -> PlannerParameters:
    """Declare every parameter on a node and return the values it was started with.

    Raises:
        ParameterError: a given value is of the wrong type or out of range.
    """
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
    from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
    from rclpy.parameter import Parameter

    for field in dataclasses.fields(PlannerParameters):
        about = field.metadata
        descriptor = ParameterDescriptor(description=about["description"])
        ends = {"from_value": about["minimum"], "to_value": about["maximum"]}
        if type(field.default) is int:
            descriptor.integer_range = [IntegerRange(**ends)]
        elif about["minimum"] is not None:
            descriptor.floating_point_range = [FloatingPointRange(**ends)]
        if about["choices"]:
            descriptor.additional_constraints = f"one of: {', '.join(about['choices'])}"
        try:
            # An empty list does not tell its type.
            default = Parameter.Type.DOUBLE_ARRAY if field.default == () else field.default
            node.declare_parameter(about["name"], default, descriptor)
        except InvalidParameterTypeException as error:
            kind = _KINDS[type(field.default)][1]
            raise ParameterError(f"parameter {about['name']} must be {kind}") from error
        except InvalidParameterValueException as error:
            raise ParameterError(
                f"parameter {about['name']} must be from {about['minimum']} to {about['maximum']}"
            ) from error
    return read(node)


def read(node: Node) -> PlannerParameters:
    """Return the values that a node's parameters have now.

    Raises:
        ParameterError: one is out of range, or they contradict each other.
    """
    from rclpy.exceptions import ParameterUninitializedException

    values = {}
    for field in dataclasses.fields(PlannerParameters):
        try:
            value = node.get_parameter(field.metadata["name"]).value
        except ParameterUninitializedException:
            value = field.default
        values[field.name] = _plain(field, value)
    return PlannerParameters(**values)


def _plain(field: dataclasses.Field[Any], value: Any) -> Any:
    """Return ROS's value of a parameter as the dataclass has it."""
    is_list = isinstance(value, Iterable) and not isinstance(value, str)
    return tuple(value) if type(field.default) is tuple and is_list else value


def changed(
    current: PlannerParameters, values: Mapping[str, object], is_configured: bool
) -> PlannerParameters:
    """Return the parameters with some values changed; those of other names are left out.

    Args:
        current: the parameters as they are.
        values: new ones, by their ROS names.
        is_configured: the node is, so that what it read then may not be changed.

    Raises:
        ParameterError: a value may not be changed now, is of the wrong type or out of range.
    """
    fields = {f.metadata["name"]: f for f in dataclasses.fields(PlannerParameters)}
    given: dict[str, Any] = {}
    for name, value in values.items():
        if name not in fields:
            continue
        if is_configured and fields[name].metadata["at_configure"]:
            raise ParameterError(
                f"parameter {name} is read when the node is configured; clean it up first"
            )
        given[fields[name].name] = _plain(fields[name], value)
    new = dataclasses.replace(current, **given)
    if is_configured and new.work_area() != current.work_area():
        # The path would be laid out anew, and the picture still be cut out as before.
        raise ParameterError(
            "the work area follows from area, grid and camera as they were when the node was "
            "configured; clean it up first"
        )
    return new


def warn_unknown(node: Node) -> list[str]:
    """Log a warning for every given parameter that the node does not have; return their names."""
    # rclpy keeps what it was given here and offers no public way to read the undeclared ones.
    given: Mapping[str, object] = node._parameter_overrides
    unknown = unknown_names(given)
    for name in unknown:
        node.get_logger().warning(
            f"parameter {name} is not one of this node's and has no effect; "
            f"it has: {', '.join(sorted(parameter_names()))}"
        )
    return unknown


def parameter_names() -> set[str]:
    """Return the ROS names of all parameters that the node declares."""
    return {field.metadata["name"] for field in dataclasses.fields(PlannerParameters)}


def unknown_names(names: Iterable[str]) -> list[str]:
    """Return those of some names, sorted, that neither the node nor ROS itself has."""
    known = {*parameter_names(), *_ROS_PARAMETERS}
    return [name for name in sorted(names) if name not in known]


def reference() -> str:
    """Return the table of all parameters as Markdown: docs/parameters.md."""
    lines = [
        "# Parameters of the node `planner`",
        "",
        "Written by `python -m mgsd_ros.parameters > docs/parameters.md`; "
        "`config/planner.yaml` holds them with their defaults.",
        "Those marked with * are read when the node is configured and can be changed before only; "
        "so can `grid.*` where the work area follows from `camera`.",
        "",
        "| name | type | default | values | |",
        "|---|---|---|---|---|",
    ]
    for field in dataclasses.fields(PlannerParameters):
        about, default = field.metadata, field.default
        kind = _KINDS[type(default)][0]
        values = " · ".join(f"`{choice}`" for choice in about["choices"])
        if about["minimum"] is not None:
            values = f"{about['minimum']:g} to {about['maximum']:g}"
        shown = f"`{json.dumps(default)}`"
        mark = "*" if about["at_configure"] else ""
        cells = (f"`{about['name']}`{mark}", kind, shown, values, about["description"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _check(field: dataclasses.Field[Any], value: object) -> None:
    about, kind = field.metadata, type(field.default)
    if type(value) is not kind:
        raise ParameterError(f"parameter {about['name']} must be {_KINDS[kind][1]}, not {value!r}")
    if isinstance(value, tuple) and not all(type(v) is float and math.isfinite(v) for v in value):
        raise ParameterError(f"parameter {about['name']} must be {_KINDS[kind][1]}, not {value!r}")
    if about["choices"] and value not in about["choices"]:
        raise ParameterError(
            f"parameter {about['name']} must be one of {', '.join(about['choices'])}, not {value!r}"
        )
    if (
        isinstance(value, float | int)
        and type(value) is not bool
        and not about["minimum"] <= value <= about["maximum"]
    ):
        raise ParameterError(
            f"parameter {about['name']} must be from {about['minimum']} to {about['maximum']}, "
            f"not {value}"
        )


if __name__ == "__main__":
    print(reference(), end="")
