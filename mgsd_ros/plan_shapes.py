"""How a plan is shown in RViz and Foxglove, in plain numbers. Imports no ROS."""

from __future__ import annotations

import math

#: Of the route: red, green, blue and opacity, 0 to 1.
COLOUR = (1.0, 0.0, 0.8, 1.0)

#: Width of the route's line and diameter of the sphere where it ends, as shares of a cell's side.
LINE, SPHERE = 0.08, 0.35


def heading(yaw: float) -> tuple[float, float, float, float]:
    """Return a turn by `yaw` [rad] about z as a quaternion x, y, z, w."""
    return (0.0, 0.0, math.sin(yaw / 2), math.cos(yaw / 2))
