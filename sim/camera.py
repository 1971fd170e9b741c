"""A camera: where a point in metres lands in the picture, and back.

World frame: x to the right of the picture of a camera that looks straight down, y to its top, z up;
metres. Camera frame: the optical convention of OpenCV and ROS, x right, y down, z forward. Pixels:
u to the right, v down, the centre of the first pixel at (0, 0), as in OpenCV and `camera_info`;
the picture therefore reaches from -0.5 to width - 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

_Real = TypeVar("_Real", bound=np.floating)

#: What a camera may be. An orthographic one sees along parallel rays; its focal lengths are then
#: pixels per metre.
PROJECTIONS = ("pinhole", "orthographic")

#: Ends of a picture's width and height that any camera accepts [px].
MIN_SIDE, MAX_SIDE = 1, 1 << 14


class CameraError(ValueError):
    """A camera that cannot exist; the message names the field."""


@dataclass(frozen=True, slots=True)
class Camera:
    """Intrinsics and pose.

    Attributes:
        width, height: of the picture [px].
        fx, fy: focal lengths [px], of an orthographic camera [px/m].
        cx, cy: principal point [px].
        pose: 4 × 4 rigid transform, rows of floats, that takes camera coordinates to the world [m].
        projection: one of `PROJECTIONS`.

    Raises:
        CameraError: a field is not finite, out of range, or `pose` is no rigid transform.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    pose: tuple[tuple[float, ...], ...]
    projection: str = "pinhole"

    def __post_init__(self) -> None:
        if self.projection not in PROJECTIONS:
            raise CameraError(
                f"camera projection must be one of {', '.join(PROJECTIONS)}, not "
                f"{self.projection!r}"
            )
        for name in ("width", "height"):
            side = getattr(self, name)
            if isinstance(side, bool) or not isinstance(side, int):
                raise CameraError(
                    f"camera {name} must be a whole number of pixels, not {side!r}"[:200]
                )
            if not MIN_SIDE <= side <= MAX_SIDE:
                raise CameraError(
                    f"camera {name} must be {MIN_SIDE} to {MAX_SIDE} px, not {side}"[:200]
                )
        for name in ("fx", "fy", "cx", "cy"):
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        if self.fx <= 0 or self.fy <= 0:
            raise CameraError(f"camera fx and fy must be above 0 px, not {self.fx}, {self.fy}")
        object.__setattr__(self, "pose", _rigid(self.pose))

    @classmethod
    def looking_at(
        cls,
        eye: Sequence[float],
        target: Sequence[float],
        up: Sequence[float],
        width: int,
        height: int,
        focal: float,
        projection: str = "pinhole",
    ) -> Camera:
        """Return a camera at `eye` [m] whose picture's centre shows `target` [m].

        `up` is a world direction that the picture shows upwards; `focal` is in pixels
        (orthographic: pixels per metre), the same in both directions. Raises CameraError where `up`
        or `eye` leave the pose undefined.
        """
        rows = looking_pose(eye, target, up)
        centre = ((width - 1) / 2, (height - 1) / 2)
        return cls(width, height, focal, focal, *centre, rows, projection)

    def matrix(self) -> NDArray[np.float64]:
        """Return the pose as float64 [4, 4], camera to world."""
        return np.array(self.pose, np.float64)

    def projection_matrix(self) -> NDArray[np.float64]:
        """Return float64 [3, 4]: homogeneous world points (x, y, z, 1) [m] to w (u, v, 1) [px]."""
        pose = self.matrix()
        to_camera = np.hstack([pose[:3, :3].T, -product(pose[:3, :3].T, pose[:3, 3:])])
        intrinsics = np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1.0]])
        if self.projection == "orthographic":
            to_camera[2] = (0, 0, 0, 1)
        return product(intrinsics, to_camera)

    def project(self, points: ArrayLike) -> NDArray[np.float64]:
        """Return the pixels (u, v) float64 [N, 2] of world points [N, 3] in metres.

        Points at or behind the camera's plane have no pixel: NaN.
        """
        pose = self.matrix()
        seen = product(np.atleast_2d(np.asarray(points, np.float64)) - pose[:3, 3], pose[:3, :3])
        z = np.where(seen[:, 2] > 0, seen[:, 2], np.nan)
        if self.projection == "orthographic":
            z = z / z
        u = self.fx * seen[:, 0] / z + self.cx
        v = self.fy * seen[:, 1] / z + self.cy
        return np.stack([u, v], axis=1)

    def depth_of(self, points: ArrayLike) -> NDArray[np.float64]:
        """Return each world point's distance along the optical axis [m], float64 [N]."""
        pose = self.matrix()
        away = np.atleast_2d(np.asarray(points, np.float64)) - pose[:3, 3]
        return product(away, pose[:3, 2:3])[:, 0]

    def rays(self, pixels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return where the rays through pixels [N, 2] start and their directions of depth 1 m.

        World frame, float64 [N, 3] each, metres; all start in the camera's plane.
        """
        uv = np.atleast_2d(np.asarray(pixels, np.float64))
        x, y = (uv[:, 0] - self.cx) / self.fx, (uv[:, 1] - self.cy) / self.fy
        sideways = np.stack([x, y, np.zeros_like(x)], axis=1)
        ahead = np.tile([0.0, 0.0, 1.0], (len(x), 1))
        pose = self.matrix()
        rotation, eye = pose[:3, :3], pose[:3, 3]
        if self.projection == "orthographic":
            return sideways @ rotation.T + eye, ahead @ rotation.T
        return np.tile(eye, (len(x), 1)), (sideways + ahead) @ rotation.T

    def to_ground(self, pixels: ArrayLike, z: float = 0.0) -> NDArray[np.float64]:
        """Return where the rays through pixels [N, 2] meet the plane at height `z`: [N, 3] [m].

        Rays that never meet it in front of the camera give NaN.
        """
        starts, directions = self.rays(pixels)
        with np.errstate(divide="ignore", invalid="ignore"):
            depth = (z - starts[:, 2]) / directions[:, 2]
        depth = np.where(np.isfinite(depth) & (depth > 0), depth, np.nan)
        return starts + depth[:, None] * directions

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary that `from_dict` reads back to an equal camera."""
        intrinsics = {
            name: getattr(self, name) for name in ("projection", "width", "height", *_FLOATS)
        }
        return intrinsics | {"pose": [list(row) for row in self.pose]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Camera:
        """Build a camera from what `to_dict` returned.

        Raises:
            CameraError: a field is missing, unknown, or wrong.
        """
        fields = {"projection", "width", "height", *_FLOATS, "pose"}
        if not isinstance(data, Mapping) or set(data) != fields:
            raise CameraError(f"a camera must be an object with the fields {sorted(fields)}")
        return cls(**data)


_FLOATS = ("fx", "fy", "cx", "cy")


def looking_pose(
    eye: Sequence[float], target: Sequence[float], up: Sequence[float]
) -> tuple[tuple[float, ...], ...]:
    """Return the pose of a camera at `eye` that looks at `target`; see `Camera.looking_at`."""
    forward = np.subtract(target, eye).astype(np.float64)
    right = np.cross(forward, np.asarray(up, np.float64))
    lengths = math.hypot(*forward), math.hypot(*right)
    if not min(lengths) > 1e-9:
        raise CameraError("eye, target and up of a camera must not lie on one line")
    forward /= lengths[0]
    right /= lengths[1]
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 1], pose[:3, 2] = right, np.cross(forward, right), forward
    pose[:3, 3] = eye
    return tuple(map(tuple, pose.tolist()))


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """What a renderer saw.

    Attributes:
        rgb: uint8 [height, width, 3].
        depth: float32 [height, width], metres along the optical axis at the pixels' centres, 0
            where nothing is; None when it was not asked for.
        semantic: uint16 [height, width], see `sim.scene.SEMANTIC_IDS`; 0 where nothing is; None
            when it was not asked for.
    """

    rgb: NDArray[np.uint8]
    depth: NDArray[np.float32] | None = None
    semantic: NDArray[np.uint16] | None = None


def product(a: NDArray[_Real], b: NDArray[_Real]) -> NDArray[_Real]:
    """Return a · b for [M, K] and a small [K, N], the same bits on every processor.

    What `a @ b` gives depends on it: BLAS adds up in an order of its own on each kind.
    """
    total = a[:, :1] * b[:1]
    for k in range(1, a.shape[1]):
        total = total + a[:, k : k + 1] * b[k : k + 1]
    return total


def is_finite(value: int | float) -> bool:
    """Return whether a number is one as a float: JSON knows larger integers."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not is_finite(value):
        raise CameraError(f"camera {name} must be a finite number of pixels, not {value!r}")
    return float(value)


def _rigid(pose: object) -> tuple[tuple[float, ...], ...]:
    try:
        matrix = np.array(pose, np.float64)
    except (OverflowError, TypeError, ValueError):
        matrix = np.empty(0)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise CameraError("camera pose must be 4 rows of 4 finite numbers")
    rotation = matrix[:3, :3]
    if (
        np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-6
        or np.cross(rotation[0], rotation[1]) @ rotation[2] < 0
        or matrix[3].tolist() != [0, 0, 0, 1]
    ):
        raise CameraError("camera pose must be a rotation and a translation, last row 0 0 0 1")
    return tuple(map(tuple, matrix.tolist()))
