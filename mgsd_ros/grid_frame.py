"""From cells of the grid to metres in a frame of the robot, and back.

The frame of the grid, seen from above (REP-103: x forward, y left, z up, yaw counter-clockwise):

    o---- columns ---->      o  centre of cell (0, 0), at (origin_x, origin_y) in `frame_id`
    |                        columns run along `yaw`, the heading of the action R
    | rows                   rows run along `yaw - 90°`, the heading of the action D
    v

so with yaw 0 columns run along +x and rows along -y, as the picture of a camera that looks down
shows them. The grid is never mirrored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from sim import Cell


@dataclass(frozen=True, slots=True)
class PlanarPose:
    """A place on the floor [m] and the heading there [rad, counter-clockwise from x, -π..π]."""

    x: float
    y: float
    yaw: float


@dataclass(frozen=True, slots=True)
class GridFrame:
    """Where the grid lies.

    Attributes:
        frame_id: the frame that all else is given in.
        origin_x, origin_y: centre of cell (0, 0) [m].
        yaw: direction in which columns increase [rad].
        cell_size: side of a cell [m], positive.
    """

    frame_id: str
    origin_x: float
    origin_y: float
    yaw: float
    cell_size: float

    def __post_init__(self) -> None:
        numbers = (self.origin_x, self.origin_y, self.yaw, self.cell_size)
        if not all(math.isfinite(v) for v in numbers) or self.cell_size <= 0:
            raise ValueError(f"a grid needs finite numbers and a positive cell size, not {numbers}")

    def position(self, cell: Cell) -> tuple[float, float]:
        """Return the centre of a cell as (x, y) [m]."""
        row, column = cell
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        return (
            self.origin_x + self.cell_size * (column * cos + row * sin),
            self.origin_y + self.cell_size * (column * sin - row * cos),
        )

    def cell_at(self, x: float, y: float) -> Cell:
        """Return the cell that holds the point (x, y) [m]; it may lie outside any grid."""
        dx, dy = x - self.origin_x, y - self.origin_y
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        row = (dx * sin - dy * cos) / self.cell_size
        column = (dx * cos + dy * sin) / self.cell_size
        return (math.floor(row + 0.5), math.floor(column + 0.5))

    def poses(self, path: Sequence[Cell]) -> list[PlanarPose]:
        """Return one pose for every cell of a path, each facing the next, the last as it arrived.

        Cells that repeat the one before (PICK and DROP do not move) give no pose of their own. A
        path without a move faces along the columns.
        """
        cells = [cell for i, cell in enumerate(path) if i == 0 or cell != path[i - 1]]
        places = [self.position(cell) for cell in cells]
        headings = [math.atan2(to[1] - here[1], to[0] - here[0]) for here, to in pairwise(places)]
        headings.append(headings[-1] if headings else math.remainder(self.yaw, math.tau))
        # An empty path has no place for that heading.
        return [PlanarPose(x, y, yaw) for (x, y), yaw in zip(places, headings, strict=False)]
