"""From directions before a camera to pixels of its picture, and back, by what CameraInfo says.

Optical frame (REP-103): x right, y down, z forward. Pixels: u to the right, v down, the centre of
the first pixel at (0, 0), as in OpenCV and CameraInfo. Formulas: OpenCV's documentation, "Detailed
Description" of the modules calib3d (plumb_bob, rational_polynomial) and fisheye (equidistant).

NumPy only and in float64: OpenCV's `undistortPoints` stops after five rounds unless told otherwise,
which its versions 4 and 5 are told differently; wide lenses are then wrong by whole pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import ArrayLike, NDArray

#: Distortion models of `sensor_msgs/distortion_models.hpp` that are known here, with the numbers of
#: coefficients that they may have. No coefficients: no distortion.
DISTORTION_MODELS = {"plumb_bob": (0, 4, 5), "rational_polynomial": (0, 8), "equidistant": (0, 4)}

#: Largest width and height of a picture [px]; OpenCV's tables hold no more.
MAX_SIDE = 1 << 14

#: A picture may be so many times smaller or larger than CameraInfo says.
MAX_SCALE = 16

_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

# Newton's rounds at most, and the error [focal lengths] that ends them: about 1e-9 px.
_ROUNDS, _CONVERGED = 50, 1e-12
# Highest coefficients of a lens that are smaller bend nothing below 89° from the axis; as the first
# of a polynomial they would make its roots overflow.
_NEGLIGIBLE = 1e-12
# What is left after that [focal lengths] shows that a pixel has no direction.
_UNSOLVED = 1e-7


class WorkAreaError(ValueError):
    """A camera or a work area that cannot be used; one line says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class CameraCalibration:
    """What a `sensor_msgs/CameraInfo` says, without ROS. Equal and hashable by value.

    Attributes:
        width, height: of the picture at full resolution, to which K and P belong [px].
        k: K, row by row: fx 0 cx 0 fy cy 0 0 1 [px].
        d: coefficients of the distortion.
        distortion_model: a key of `DISTORTION_MODELS`; "" where there is no distortion.
        r: R, rotation from the optical frame to that of the undistorted picture; all 0: none.
        p: P, 3 × 4, of the undistorted picture [px]; all 0: that of K. Its last column, a stereo
            camera's baseline, is not used: poses are those of the camera itself.
        binning_x, binning_y: pixels that the camera combines into one; 0 is 1.
        roi: what it sends of the full picture: x, y, width, height [px]; width or height 0: all.

    Raises:
        WorkAreaError: the camera is not calibrated, or a field cannot be.
    """

    width: int
    height: int
    k: tuple[float, ...]
    d: tuple[float, ...] = ()
    distortion_model: str = "plumb_bob"
    r: tuple[float, ...] = _IDENTITY
    p: tuple[float, ...] = (0.0,) * 12
    binning_x: int = 1
    binning_y: int = 1
    roi: tuple[int, int, int, int] = (0, 0, 0, 0)

    def __post_init__(self) -> None:
        check_sides(self.width, self.height, "CameraInfo")
        for name, count in (("k", 9), ("d", None), ("r", 9), ("p", 12)):
            object.__setattr__(self, name, _numbers(name.upper(), getattr(self, name), count))
        if not any(self.k):
            raise WorkAreaError("CameraInfo is of a camera that is not calibrated: K is all 0")
        _check_matrix("K", np.reshape(self.k, (3, 3)))
        if any(self.p):
            _check_matrix("P", np.reshape(self.p, (3, 4))[:, :3])
        if any(self.r):
            rotation = np.reshape(self.r, (3, 3))
            straight = np.abs(rotation @ rotation.T - np.eye(3)).max() < 1e-3
            if not straight or np.linalg.det(rotation) < 0:
                raise WorkAreaError("CameraInfo's R is no rotation")
        self._check_distortion()
        x, y, width, height = self.roi
        if min(self.binning_x, self.binning_y, *self.roi) < 0:
            raise WorkAreaError("CameraInfo's binning and roi must not be negative")
        if x + width > self.width or y + height > self.height:
            raise WorkAreaError(
                f"CameraInfo's roi {self.roi} does not lie in its {self.width} × {self.height} px"
            )

    def _check_distortion(self) -> None:
        if not any(self.d) and not self.distortion_model:
            return  # simulators do so
        counts = DISTORTION_MODELS.get(self.distortion_model)
        if counts is None:
            raise WorkAreaError(
                f"CameraInfo's distortion model is {self.distortion_model!r}; known are "
                f"{', '.join(DISTORTION_MODELS)}"
            )
        if len(self.d) not in counts and (len(self.d) < counts[-1] or any(self.d[counts[-1] :])):
            raise WorkAreaError(
                f"CameraInfo's D of the model {self.distortion_model} must have "
                f"{' or '.join(map(str, counts[1:]))} coefficients, not {len(self.d)}"
            )

    @classmethod
    def from_message(cls, message: Any) -> CameraCalibration:
        """Return what a `sensor_msgs/CameraInfo` says, of rclpy or of rosbags.

        Raises:
            WorkAreaError: see the class.
        """
        roi = message.roi
        return cls(
            width=int(message.width),
            height=int(message.height),
            k=tuple(map(float, message.k)),
            d=tuple(map(float, message.d)),
            distortion_model=str(message.distortion_model),
            r=tuple(map(float, message.r)),
            p=tuple(map(float, message.p)),
            binning_x=int(message.binning_x),
            binning_y=int(message.binning_y),
            roi=(int(roi.x_offset), int(roi.y_offset), int(roi.width), int(roi.height)),
        )


@dataclass(frozen=True, slots=True)
class CameraModel:
    """From directions in the optical frame to pixels of one picture, and back.

    Attributes:
        fx, fy: focal lengths [px].
        cx, cy: principal point [px].
        distortion_model, d: as in `CameraCalibration`.
        r: rotation, row by row, from the optical frame to that of the picture.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    distortion_model: str = ""
    d: tuple[float, ...] = ()
    r: tuple[float, ...] = _IDENTITY

    def pixels(self, directions: ArrayLike) -> NDArray[np.float64]:
        """Return the pixels (u, v) of directions or points in the optical frame.

        Args:
            directions: [N, 3], of any length above 0.

        Returns:
            float64 [N, 2]; NaN for what lies at or behind the camera's plane, or so far out that
            the distortion's polynomial no longer grows and would fold the picture into itself.
        """
        seen = np.asarray(directions, np.float64).reshape(-1, 3)
        if self.r != _IDENTITY:
            seen = seen @ np.reshape(self.r, (3, 3)).T
        with np.errstate(divide="ignore", invalid="ignore"):
            plane = seen[:, :2] / np.where(seen[:, 2:] > 0, seen[:, 2:], np.nan)
        return self._bent(plane) * (self.fx, self.fy) + (self.cx, self.cy)

    def directions(self, pixels: ArrayLike) -> NDArray[np.float64]:
        """Return the directions (x, y, 1) in the optical frame that pixels [N, 2] show.

        Returns:
            float64 [N, 3]; NaN where no direction before the camera leads to the pixel.
        """
        uv = np.asarray(pixels, np.float64).reshape(-1, 2)
        plane = self._straightened((uv - (self.cx, self.cy)) / (self.fx, self.fy))
        seen = np.column_stack([plane, np.where(np.isfinite(plane).all(axis=1), 1.0, np.nan)])
        if self.r != _IDENTITY:
            seen = seen @ np.reshape(self.r, (3, 3))
        return seen / np.where(seen[:, 2:] > 0, seen[:, 2:], np.nan)

    # --- Distortion, in the plane one focal length before the camera ---

    @property
    def _is_fisheye(self) -> bool:
        return self.distortion_model == "equidistant"

    def _bent(self, plane: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return where points (x, y) [N, 2] of the plane z = 1 land in the picture's plane."""
        if not any(self.d) and not self._is_fisheye:
            return plane
        if self._is_fisheye:
            radius = np.hypot(plane[:, 0], plane[:, 1])[:, None]
            plane = plane * np.where(radius > 0, np.arctan(radius) / np.maximum(radius, 1e-300), 1)
        return self._polynomial(plane)

    def _straightened(self, bent: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the inverse of `_bent` by Newton's method; NaN where there is none."""
        if not any(self.d) and not self._is_fisheye:
            return bent
        reach = math.sqrt(self._limit())
        # From here Newton's steps do not jump over the answer: `_polynomial` is a growing function
        # of the radius that bends one way only, in lenses as they are.
        found = _clipped(bent, reach)
        step = 1e-6
        with np.errstate(all="ignore"):
            for _ in range(_ROUNDS):
                wrong = self._polynomial(found) - bent
                if not np.abs(wrong[np.isfinite(wrong)]).max(initial=0.0) > _CONVERGED:
                    break
                slopes = [
                    (self._polynomial(found + h, False) - self._polynomial(found - h, False))
                    / (2 * step)
                    for h in (np.array([step, 0.0]), np.array([0.0, step]))
                ]
                (a, c), (b, d) = slopes[0].T, slopes[1].T
                e, f = wrong.T
                change = np.stack([d * e - b * f, a * f - c * e], 1) / (a * d - b * c)[:, None]
                found = _clipped(found - np.nan_to_num(change), reach)
            wrong = np.abs(self._polynomial(found) - bent).max(axis=1)
            found = np.where((wrong < _UNSOLVED)[:, None], found, np.nan)
            if self._is_fisheye:
                angle = np.hypot(found[:, 0], found[:, 1])[:, None]
                angle = np.where(angle < math.pi / 2, angle, np.nan)
                found = found * np.where(angle > 0, np.tan(angle) / np.maximum(angle, 1e-300), 1)
        return found

    def _polynomial(self, points: NDArray[np.float64], limited: bool = True) -> NDArray[np.float64]:
        """Return the polynomial part of the distortion; for a fisheye's points at their angle."""
        x, y = points.T
        square = x * x + y * y
        top, bottom = self._radial()
        radial = top(square) / bottom(square)
        if limited:
            radial = np.where(square <= self._limit(), radial, np.nan)
        bent = points * radial[:, None]
        if not self._is_fisheye and len(self.d) >= 4:
            p1, p2 = self.d[2:4]
            bent[:, 0] += 2 * p1 * x * y + p2 * (square + 2 * x * x)
            bent[:, 1] += p1 * (square + 2 * y * y) + 2 * p2 * x * y
        return bent

    def _radial(self) -> tuple[Polynomial, Polynomial]:
        """Return the polynomials in the squared radius whose quotient scales a point."""
        if self._is_fisheye:
            return Polynomial([1.0, *self.d[:4]]), Polynomial([1.0])
        d = [*self.d, *[0.0] * 8]
        k1, k2, _, _, k3, k4, k5, k6 = d[:8]
        return Polynomial([1.0, k1, k2, k3]), Polynomial([1.0, k4, k5, k6])

    def _limit(self) -> float:
        """Return the squared radius up to which the distorted radius grows."""
        top, bottom = self._radial()
        s = Polynomial([0.0, 1.0])
        # Numerator of the derivative of r · top(r²) / bottom(r²) with respect to r, s = r².
        slope = (top + 2 * s * top.deriv()) * bottom - 2 * s * top * bottom.deriv()
        roots = [
            root.real
            for polynomial in (slope, bottom)
            for root in np.atleast_1d(polynomial.trim(_NEGLIGIBLE).roots())
            if abs(root.imag) < 1e-9 * (1 + abs(root)) and root.real > 0
        ]
        return float(min(roots, default=1e12))


def model_of(
    calibration: CameraCalibration, width: int, height: int, rectified: bool = False
) -> CameraModel:
    """Return the model of the pictures that a calibrated camera sends.

    Args:
        calibration: of the camera.
        width, height: of its pictures [px]. They may be smaller or larger than CameraInfo says with
            its binning and region of interest by one whole factor up to `MAX_SCALE`, as resized
            pictures are. A pixel of a binned picture is the middle of those that it was made of.
        rectified: the pictures are undistorted already (`image_rect`): R and P hold, not K and D.

    Raises:
        WorkAreaError: the size is another.
    """
    x, y, roi_width, roi_height = calibration.roi
    if not roi_width or not roi_height:
        x = y = 0
        roi_width, roi_height = calibration.width, calibration.height
    bins = max(1, calibration.binning_x), max(1, calibration.binning_y)
    expected = roi_width // bins[0], roi_height // bins[1]
    scale = _scale_between(expected, (width, height))
    k = np.reshape(calibration.k, (3, 3))
    if rectified and any(calibration.p):
        k = np.reshape(calibration.p, (3, 4))
    across, down = bins[0] * scale, bins[1] * scale
    return CameraModel(
        fx=float(k[0, 0]) / across,
        fy=float(k[1, 1]) / down,
        cx=(float(k[0, 2]) - x + 0.5) / across - 0.5,
        cy=(float(k[1, 2]) - y + 0.5) / down - 0.5,
        distortion_model="" if rectified else calibration.distortion_model,
        d=() if rectified else calibration.d,
        r=calibration.r if rectified and any(calibration.r) else _IDENTITY,
    )


def _scale_between(expected: tuple[int, int], size: tuple[int, int]) -> float:
    """Return by how much a picture (width, height) is smaller than expected, a whole factor.

    A larger one gives 1 / factor. Where the factor does not divide the sides, the rest was cut off.

    Raises:
        WorkAreaError: by none up to `MAX_SCALE`.
    """
    check_sides(*size, "the picture")
    for factor in range(1, MAX_SCALE + 1):
        if (expected[0] // factor, expected[1] // factor) == size:
            return float(factor)
        if (expected[0] * factor, expected[1] * factor) == size:
            return 1 / factor
    raise WorkAreaError(
        f"CameraInfo is of {expected[0]} × {expected[1]} px, the picture has {size[0]} × "
        f"{size[1]}: not smaller or larger by a whole factor"
    )


def _clipped(points: NDArray[np.float64], reach: float) -> NDArray[np.float64]:
    """Return points [N, 2], those farther from the middle than `reach` drawn back inside it."""
    radius = np.hypot(points[:, 0], points[:, 1])[:, None]
    return points * np.minimum(1.0, reach * (1 - 1e-9) / np.maximum(radius, 1e-300))


def check_sides(width: int, height: int, what: str) -> None:
    """Raise WorkAreaError where a picture has a side that is no size; `what` has it."""
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise WorkAreaError(
            f"{what} has {width} × {height} px; each side must be 1 to {MAX_SIDE} px"
        )


def _numbers(name: str, values: Sequence[float], count: int | None) -> tuple[float, ...]:
    numbers = tuple(map(float, values))
    if count is not None and len(numbers) != count:
        raise WorkAreaError(f"CameraInfo's {name} must have {count} numbers, not {len(numbers)}")
    if not all(map(math.isfinite, numbers)):
        raise WorkAreaError(f"CameraInfo's {name} has a number that is not finite")
    return numbers


def _check_matrix(name: str, matrix: NDArray[np.float64]) -> None:
    rest = matrix - [[matrix[0, 0], 0, matrix[0, 2]], [0, matrix[1, 1], matrix[1, 2]], [0, 0, 1]]
    if min(matrix[0, 0], matrix[1, 1]) <= 0 or np.abs(rest).max() > 1e-9:
        raise WorkAreaError(
            f"CameraInfo's {name} must be fx 0 cx, 0 fy cy, 0 0 1 with fx and fy above 0 px"
        )
