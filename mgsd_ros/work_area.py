"""From a camera's picture to the square one that the planner knows.

The planner wants the work area seen from straight above, cell (0, 0) at the top left, as it was
trained. A robot's camera sees it as some quadrilateral, bent by a lens. Where that lies is said in
one of two ways:

    AreaCorners   four pixels, clicked once
    AreaPose      where the camera is and where the grid is, in metres

A `WorkAreaView` is what follows for pictures of one size: the map from cells to pixels. A
`Rectifier` applies it to frames. Only the latter needs OpenCV.

A place in the grid is (row, column) as floats, whole numbers at the cells' centres; the area
reaches from -0.5 to cells - 0.5. Pixels are those of `mgsd_ros.camera_model`. Heights are not
known: what stands on the floor appears where the floor behind it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mgsd_core.runtime.preprocess import check_rgb
from mgsd_ros.camera_model import (
    CameraCalibration,
    CameraModel,
    WorkAreaError,
    check_sides,
    model_of,
)
from mgsd_ros.grid_frame import GridFrame
from sim.scene import MARGIN
from sim.states import MAX_SIZE

__all__ = [
    "AreaCorners",
    "AreaPose",
    "CameraCalibration",
    "CameraPose",
    "Rectifier",
    "WorkAreaError",
    "WorkAreaView",
    "view_of",
]

#: Smallest extent of a cell in the camera's picture, in whichever direction it is smallest [px].
MIN_CELL = 2.0

#: Sides of rectified pictures [px].
MIN_SIDE, MAX_SIDE = 32, 2048

_CORNERS = ("top left", "top right", "bottom right", "bottom left")

# Far from any picture; OpenCV's fixed-point tables are of 16 bits.
_NOWHERE = -30_000.0

_Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class AreaCorners:
    """The work area by its corners in the picture.

    Attributes:
        cells: along each side of the grid.
        corners: pixels (u, v) of the grid's outer corners: top left, top right, bottom right,
            bottom left, as the grid has them, however the camera is turned.

    Raises:
        WorkAreaError: not four pixels, or a number is not finite or out of range.
    """

    cells: int
    corners: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        _check_cells(self.cells)
        if len(self.corners) != 4 or any(len(corner) != 2 for corner in self.corners):
            raise WorkAreaError(
                f"a work area needs 4 corners (u, v), {', '.join(_CORNERS)}, not {self.corners}"
            )
        if not np.isfinite(np.array(self.corners, np.float64)).all():
            raise WorkAreaError(
                f"the corners of the work area must be finite pixels: {self.corners}"
            )
        corners = tuple((float(u), float(v)) for u, v in self.corners)
        object.__setattr__(self, "corners", corners)


@dataclass(frozen=True, slots=True)
class CameraPose:
    """Where a camera is: its optical frame (x right, y down, z forward) in another frame.

    Attributes:
        x, y, z: of the optical centre [m].
        qx, qy, qz, qw: quaternion of the rotation from the optical frame, as tf2 has it; it is
            scaled to length 1.

    Raises:
        WorkAreaError: a number is not finite, or the quaternion is far from length 1.
    """

    x: float
    y: float
    z: float
    qx: float
    qy: float
    qz: float
    qw: float

    def __post_init__(self) -> None:
        numbers = (self.x, self.y, self.z, self.qx, self.qy, self.qz, self.qw)
        if not all(map(math.isfinite, numbers)):
            raise WorkAreaError(f"the camera's pose must be finite numbers, not {numbers}")
        length = math.hypot(*numbers[3:])
        if abs(length - 1) > 0.01:
            raise WorkAreaError(
                f"the quaternion of the camera's pose must have length 1, not {length:.4g}"
            )
        for name in ("qx", "qy", "qz", "qw"):
            object.__setattr__(self, name, getattr(self, name) / length)

    @classmethod
    def from_rpy(
        cls, x: float, y: float, z: float, roll: float, pitch: float, yaw: float
    ) -> CameraPose:
        """Return a pose by the turns about the fixed axes x, then y, then z [rad] (REP-103).

        A camera that looks straight down with the top of its picture towards +y has roll π and no
        pitch and yaw.
        """
        (sr, cr), (sp, cp), (sy, cy) = (
            (math.sin(angle / 2), math.cos(angle / 2)) for angle in (roll, pitch, yaw)
        )
        return cls(
            x,
            y,
            z,
            sr * cp * cy - cr * sp * sy,
            cr * sp * cy + sr * cp * sy,
            cr * cp * sy - sr * sp * cy,
            cr * cp * cy + sr * sp * sy,
        )

    @classmethod
    def from_matrix(cls, pose: ArrayLike) -> CameraPose:
        """Return a pose by the rigid transform [4, 4] that takes the optical frame to the other.

        The quaternion is the eigenvector to the largest eigenvalue of a symmetric matrix (I. Y.
        Bar-Itzhack, New Method for Extracting the Quaternion from a Rotation Matrix, 2000).

        Raises:
            WorkAreaError: the numbers are not finite.
        """
        matrix = np.array(pose, np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
            raise WorkAreaError("the camera's pose must be 4 rows of 4 finite numbers")
        m = matrix[:3, :3]
        trace = m.trace()
        symmetric = np.empty((4, 4))
        symmetric[:3, :3] = m + m.T - trace * np.eye(3)
        symmetric[3, :3] = symmetric[:3, 3] = (
            m[2, 1] - m[1, 2],
            m[0, 2] - m[2, 0],
            m[1, 0] - m[0, 1],
        )
        symmetric[3, 3] = trace
        quaternion = np.linalg.eigh(symmetric)[1][:, -1]
        return cls(*matrix[:3, 3].tolist(), *quaternion.tolist())

    def rotation(self) -> NDArray[np.float64]:
        """Return the rotation float64 [3, 3] that takes the optical frame to the other."""
        x, y, z, w = self.qx, self.qy, self.qz, self.qw
        return np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
            ]
        )


@dataclass(frozen=True, slots=True)
class AreaPose:
    """The work area by the places of grid and camera. Needs CameraInfo.

    Attributes:
        cells: along each side of the grid.
        grid: where it lies.
        camera: the camera's pose in `grid.frame_id`, whose z = 0 is the floor.

    Raises:
        WorkAreaError: the number of cells is out of range.
    """

    cells: int
    grid: GridFrame
    camera: CameraPose

    def __post_init__(self) -> None:
        _check_cells(self.cells)


@dataclass(frozen=True, slots=True)
class WorkAreaView:
    """Where the cells are in a camera's pictures of one size. Made by `view_of`.

    Attributes:
        cells: along each side of the grid.
        width, height: of the pictures [px].
        camera: from directions to pixels.
        to_direction: 3 × 3, from homogeneous (column, row, 1) to directions in the optical frame.
    """

    cells: int
    width: int
    height: int
    camera: CameraModel
    to_direction: _Matrix

    def pixels(self, places: ArrayLike) -> NDArray[np.float64]:
        """Return the pixels (u, v) float64 [N, 2] of places (row, column) [N, 2].

        They may lie outside the picture; NaN where the camera cannot see.
        """
        row, column = np.asarray(places, np.float64).reshape(-1, 2).T
        points = np.stack([column, row, np.ones_like(row)], axis=1)
        return self.camera.pixels(points @ np.array(self.to_direction).T)

    def source_pixels(self, side: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return where the pixels of a square picture from above, `side` px wide, come from.

        The grid lies in it as `sim.drawing.canonical_cell_to_pixel` says.

        Returns:
            (u, v), float32 [side, side] each; far outside the picture where nothing is seen.
        """
        per_cell = side / (self.cells * (1 + 2 * MARGIN))
        along = (np.arange(side) - (side - 1) / 2) / per_cell + (self.cells - 1) / 2
        row, column = np.meshgrid(along, along, indexing="ij")
        pixels = self.pixels(np.stack([row, column], axis=-1))
        # Far from everything is also where interpolation with a pixel inside would begin.
        inside = (pixels > -1) & (pixels < (self.width, self.height))
        pixels = np.where(inside.all(axis=1, keepdims=True), pixels, _NOWHERE)
        u, v = pixels.astype(np.float32).T.reshape(2, side, side)
        return np.ascontiguousarray(u), np.ascontiguousarray(v)

    def _lattice(self) -> NDArray[np.float64]:
        """Return the pixels of the cells' corners, float64 [cells + 1, cells + 1, 2]."""
        along = np.arange(self.cells + 1) - 0.5
        places = np.stack(np.meshgrid(along, along, indexing="ij"), axis=-1)
        return self.pixels(places).reshape(*places.shape)


def view_of(
    area: AreaCorners | AreaPose,
    width: int,
    height: int,
    calibration: CameraCalibration | None = None,
    rectified: bool = False,
) -> WorkAreaView:
    """Return where the cells are in a camera's pictures.

    Args:
        area: where the work area is.
        width, height: of the pictures [px].
        calibration: of the camera. Without it the picture is taken to be undistorted.
        rectified: the pictures are undistorted already (`image_rect`).

    Raises:
        WorkAreaError: the pictures' size is not the camera's, or the area cannot be planned on: its
            corners are not in order or not in view, lie behind the camera, or cells are too small.
    """
    check_sides(width, height, "the picture")
    if calibration is None:
        if isinstance(area, AreaPose):
            raise WorkAreaError("a work area by the camera's pose needs the camera's CameraInfo")
        camera = CameraModel(1.0, 1.0, 0.0, 0.0)  # the picture itself is the plane
    else:
        camera = model_of(calibration, width, height, rectified)
    to_direction = _by_pose(area) if isinstance(area, AreaPose) else _by_corners(area, camera)
    view = WorkAreaView(area.cells, width, height, camera, tuple(map(tuple, to_direction.tolist())))
    _check_seen(view)
    return view


def _by_pose(area: AreaPose) -> NDArray[np.float64]:
    camera = area.camera
    lifted = np.vstack([_to_metres(area.grid)[:2], (0, 0, 0)])
    lifted[:, 2] -= (camera.x, camera.y, camera.z)
    to_direction = camera.rotation().T @ lifted
    depths = _outer_corners(area.cells) @ to_direction[2]
    for name, depth in zip(_CORNERS, depths, strict=True):
        if depth <= 0:
            raise WorkAreaError(f"the work area's {name} corner lies behind the camera")
    # Looked at from below, the rows and columns run the other way round.
    if np.linalg.det(to_direction) <= 0:
        raise WorkAreaError("the camera must be above the work area; it is below or level with it")
    return to_direction


def _by_corners(area: AreaCorners, camera: CameraModel) -> NDArray[np.float64]:
    seen = camera.directions(area.corners)
    for name, direction in zip(_CORNERS, seen, strict=True):
        if not np.isfinite(direction).all():
            raise WorkAreaError(f"no light reaches the work area's {name} corner by CameraInfo's D")
    turns = _turns(seen[:, :2])
    if (turns < 0).all():
        raise WorkAreaError(
            f"the corners of the work area are in mirrored order; give {', '.join(_CORNERS)}"
        )
    spread = np.ptp(seen[:, :2], axis=0).max()
    if not (turns > 1e-9 * spread**2).all():
        raise WorkAreaError(
            f"the corners of the work area are no convex quadrilateral in the order "
            f"{', '.join(_CORNERS)}: {area.corners}"
        )
    return _homography(_outer_corners(area.cells)[:, :2], seen[:, :2])


def _check_seen(view: WorkAreaView) -> None:
    """Raise WorkAreaError where a cell is not in the picture or too small to be read."""
    lattice = view._lattice()
    across, down = np.diff(lattice, axis=1), np.diff(lattice, axis=0)
    cells = np.moveaxis(np.indices((view.cells, view.cells)), 0, -1).reshape(-1, 2)
    pixels = view.pixels(cells)
    limits = (view.width - 0.5, view.height - 0.5)
    outside = ~((pixels >= -0.5) & (pixels <= limits)).all(axis=1)
    if outside.any():
        (row, column), (u, v) = cells[outside][0], pixels[outside][0]
        known = math.isfinite(u + v)
        where = f"at pixel ({u:.0f}, {v:.0f})" if known else "out of the lens's reach"
        raise WorkAreaError(
            f"the middle of cell ({row}, {column}) of the work area is outside the picture of "
            f"{view.width} × {view.height} px, {where}"
        )
    # Where the lattice leaves the lens's reach, the cells' middles, which do not, must do.
    shape = np.stack([across[:-1], down[:, :-1]], axis=-1)
    finite = np.isfinite(shape).all(axis=(2, 3))
    extents = np.full(finite.shape, np.inf)
    extents[finite] = np.linalg.svd(shape[finite], compute_uv=False)[:, 1]
    row, column = np.unravel_index(extents.argmin(), extents.shape)
    if extents[row, column] < MIN_CELL:
        raise WorkAreaError(
            f"cell ({row}, {column}) of the work area is only {extents[row, column]:.2g} px across "
            f"in the picture; {MIN_CELL:g} px are needed"
        )


class Rectifier:
    """Turns frames into square pictures of the work area from above.

    The table of where each pixel comes from, undistortion and homography in one, is made once and
    again only when the frames' size or the calibration change. One thread at a time.

    Attributes:
        area: where the work area is.
        side: of the square pictures [px]. Smaller ones take less time and skip pixels of the frame;
            at twice the side of the model's own pictures plans were no worse for that.
        rectified: the frames are undistorted already (`image_rect`).

    Raises:
        WorkAreaError: OpenCV is not installed, or a number is out of range.
    """

    def __init__(self, area: AreaCorners | AreaPose, side: int, rectified: bool = False) -> None:
        if not MIN_SIDE <= side <= MAX_SIDE:
            raise WorkAreaError(
                f"a rectified picture must have {MIN_SIDE} to {MAX_SIDE} px a side, not {side}"
            )
        self.area, self.side, self.rectified = area, side, rectified
        self._cv2 = _import_cv2()
        self._known: tuple[int, int, CameraCalibration | None] | None = None

    def view(
        self, width: int, height: int, calibration: CameraCalibration | None = None
    ) -> WorkAreaView:
        """Return where the cells are in frames of this size; see `view_of`."""
        if self._known != (width, height, calibration):
            view = view_of(self.area, width, height, calibration, self.rectified)
            u, v = view.source_pixels(self.side)
            # 1/32 px is fine enough, and remapping by whole numbers takes half the time.
            self._table = self._cv2.convertMaps(u, v, self._cv2.CV_16SC2)
            self._view, self._known = view, (width, height, calibration)
        return self._view

    def rectify(
        self, rgb: NDArray[np.uint8], calibration: CameraCalibration | None = None
    ) -> NDArray[np.uint8]:
        """Return the work area from above, uint8 [side, side, 3], black where nothing is seen.

        Args:
            rgb: uint8 [H, W, 3], rows may be padded.
            calibration: of the camera.

        Raises:
            mgsd_core.runtime.preprocess.ImageError: not such an array.
            WorkAreaError: see `view_of`.
        """
        height, width = check_rgb(rgb).shape[:2]
        self.view(width, height, calibration)
        picture: NDArray[np.uint8] = self._cv2.remap(
            rgb, *self._table, self._cv2.INTER_LINEAR, borderMode=self._cv2.BORDER_CONSTANT
        )
        return picture


def _import_cv2() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise WorkAreaError(
            "rectifying pictures needs OpenCV (ROS: python3-opencv; pip: opencv-python-headless): "
            f"{error}"
        ) from error
    return cv2


def _check_cells(cells: int) -> None:
    if isinstance(cells, bool) or not isinstance(cells, int) or not 2 <= cells <= MAX_SIZE:
        raise WorkAreaError(f"a work area must have 2 to {MAX_SIZE} cells a side, not {cells!r}")


def _outer_corners(cells: int) -> NDArray[np.float64]:
    """Return the corners of the grid as homogeneous (column, row, 1), float64 [4, 3]."""
    low, high = -0.5, cells - 0.5
    return np.array([(low, low, 1), (high, low, 1), (high, high, 1), (low, high, 1)])


def _to_metres(grid: GridFrame) -> NDArray[np.float64]:
    """Return float64 [3, 3] from homogeneous (column, row, 1) to (x, y, 1) [m]."""
    origin, right, down = (np.array(grid.position(cell)) for cell in ((0, 0), (0, 1), (1, 0)))
    columns = [(*(right - origin), 0), (*(down - origin), 0), (*origin, 1)]
    return np.array(columns, np.float64).T


def _turns(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cross products of each side with the next, float64 [4]; v goes down."""
    sides = np.roll(corners, -1, axis=0) - corners
    after = np.roll(sides, -1, axis=0)
    return sides[:, 0] * after[:, 1] - sides[:, 1] * after[:, 0]


def _homography(
    points: Sequence[Sequence[float]] | NDArray[np.float64], images: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return float64 [3, 3] that takes 4 points (x, y) to 4 images (X, Y), 1 at the bottom right.

    The direct linear transformation (Hartley and Zisserman, Multiple View Geometry, 4.1); OpenCV's
    takes its points in single precision.
    """
    rows, values = [], []
    for (x, y), (to_x, to_y) in zip(points, images, strict=True):
        rows += [
            (x, y, 1, 0, 0, 0, -x * to_x, -y * to_x),
            (0, 0, 0, x, y, 1, -x * to_y, -y * to_y),
        ]
        values += [to_x, to_y]
    return np.append(np.linalg.solve(np.array(rows), values), 1.0).reshape(3, 3)
