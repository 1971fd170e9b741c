"""A grid's maps: from cells to metres on its floor and to pixels of a picture, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.camera import Camera, is_finite, product
from sim.states import MAX_SIZE, Cell

#: Side of a cell [m] unless another is asked for.
CELL_SIZE = 0.5

Matrix = tuple[tuple[float, ...], ...]


class GridError(ValueError):
    """A grid that cannot exist; the message names the field."""


def cell_centre(cell: Cell, size: int, cell_size: float = CELL_SIZE) -> tuple[float, float]:
    """Return the centre (x, y) [m] of a cell of a grid of `size` × `size` cells."""
    row, column = cell
    middle = (size - 1) / 2
    return ((column - middle) * cell_size, (middle - row) * cell_size)


def point_to_cell(x: float, y: float, size: int, cell_size: float = CELL_SIZE) -> Cell | None:
    """Return the cell that holds the point (x, y) [m], or None outside the grid."""
    row = math.floor(size / 2 - y / cell_size)
    column = math.floor(size / 2 + x / cell_size)
    return (row, column) if 0 <= row < size and 0 <= column < size else None


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the cells of a square grid are, in the world and in one picture.

    Both maps act on homogeneous (column, row, 1), whole numbers at the cells' centres.

    Attributes:
        size: cells along each side.
        cell_size: side of a cell [m].
        cell_to_world: 3 × 3, to (x, y, 1) [m] on the floor, the plane z = `floor`.
        cell_to_pixel: 3 × 3 homography, to w (u, v, 1) [px], see `sim.camera` for pixels.
        floor: height of the floor in the world [m].

    Raises:
        GridError: a field is not finite, out of range or has another shape.
    """

    size: int
    cell_size: float
    cell_to_world: Matrix
    cell_to_pixel: Matrix
    floor: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or not 2 <= self.size <= MAX_SIZE:
            raise GridError(f"grid size must be 2 to {MAX_SIZE} cells, not {self.size!r}")
        for name in ("cell_size", "floor"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise GridError(f"grid {name} must be a number of metres, not {value!r}")
            if not is_finite(value) or (name == "cell_size" and value <= 0):
                raise GridError(f"grid {name} must be a finite number of metres, not {value!r}")
        for name in ("cell_to_world", "cell_to_pixel"):
            object.__setattr__(self, name, _matrix(name, getattr(self, name)))

    def world(self, cells: Sequence[Cell]) -> NDArray[np.float64]:
        """Return the centres of cells (row, column) in the world, float64 [N, 3] [m]."""
        flat = _mapped(self.cell_to_world, cells)
        return np.column_stack([flat, np.full(len(flat), self.floor)])

    def pixels(self, cells: Sequence[Cell]) -> NDArray[np.float64]:
        """Return the pixels (u, v) of the centres of cells (row, column), float64 [N, 2]."""
        return _mapped(self.cell_to_pixel, cells)

    def pixel(self, cell: Cell) -> tuple[float, float]:
        """Return the pixel (u, v) of the centre of one cell: a `sim.drawing.CellToPixel`."""
        [(u, v)] = self.pixels([cell]).tolist()
        return u, v

    def cell_at(self, u: float, v: float) -> Cell | None:
        """Return the cell whose floor a pixel shows if nothing stands before it; None outside."""
        column, row, w = np.linalg.solve(np.array(self.cell_to_pixel), (u, v, 1.0))
        cell = (math.floor(row / w + 0.5), math.floor(column / w + 0.5))
        return cell if all(0 <= i < self.size for i in cell) else None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary that `from_dict` reads back to an equal grid."""
        matrices = {
            name: [list(row) for row in getattr(self, name)]
            for name in ("cell_to_world", "cell_to_pixel")
        }
        return {"size": self.size, "cell_size": self.cell_size, "floor": self.floor} | matrices

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Grid:
        """Build a grid from what `to_dict` returned; GridError where it is none."""
        fields = {"size", "cell_size", "cell_to_world", "cell_to_pixel", "floor"}
        if not isinstance(data, Mapping) or set(data) != fields:
            raise GridError(f"a grid must be an object with the fields {sorted(fields)}")
        return cls(**data)


def make_grid(
    size: int,
    camera: Camera,
    cell_size: float = CELL_SIZE,
    origin: tuple[float, float, float] | None = None,
) -> Grid:
    """Return the maps of a grid whose rows go along -y and columns along +x of the world.

    `origin` is the centre of cell (0, 0) in the world [m]; by default the grid is centred on the
    world's origin.
    """
    x, y, floor = (*cell_centre((0, 0), size, cell_size), 0.0) if origin is None else origin
    to_world = np.array([[cell_size, 0, x], [0, -cell_size, y], [0, 0, 1]], np.float64)
    lifted = np.vstack([to_world[:2], (0, 0, floor), (0, 0, 1)])
    to_pixel = product(camera.projection_matrix(), lifted)
    return Grid(size, cell_size, _rows(to_world), _rows(to_pixel / to_pixel[2, 2]), floor)


def _mapped(matrix: Matrix, cells: Sequence[Cell]) -> NDArray[np.float64]:
    row, column = np.asarray(cells, np.float64).reshape(-1, 2).T
    points = np.stack([column, row, np.ones_like(row)]).T @ np.array(matrix).T
    return points[:, :2] / points[:, 2:]


def _rows(matrix: NDArray[np.float64]) -> Matrix:
    return tuple(map(tuple, matrix.tolist()))


def _matrix(name: str, value: object) -> Matrix:
    try:
        matrix = np.array(value, np.float64)
    except (OverflowError, TypeError, ValueError):
        matrix = np.empty(0)
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or np.linalg.det(matrix) == 0:
        raise GridError(f"grid {name} must be 3 rows of 3 finite numbers that can be inverted")
    return _rows(matrix)
