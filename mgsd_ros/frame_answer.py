"""From an image message to the answer that is published; the same in the node and for a bag.

Imports no ROS: messages are whatever has the fields of the types named.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mgsd_core.installed import shipped_bundle
from mgsd_core.runtime import ImageError, Planner, Response
from mgsd_ros.answers import FrameHeader, answer_to_dict
from mgsd_ros.conversions import ConversionError, rgb_from_message
from mgsd_ros.grid_frame import GridFrame, PlanarPose
from mgsd_ros.parameters import PlannerParameters
from mgsd_ros.work_area import CameraCalibration, Rectifier, WorkAreaError
from sim.errors import one_line

#: What is wrong with an image that gives no plan; anything else that is raised is a failure.
NOT_USABLE = (ConversionError, ImageError, WorkAreaError)


class FrameAnswerer:
    """A planner and what its parameters say of the camera. One thread at a time.

    Attributes:
        planner: what plans.
        settings: the parameters; of those that can change only the values at the start are seen.

    Raises:
        WorkAreaError: OpenCV is needed and not installed.
    """

    def __init__(self, planner: Planner, settings: PlannerParameters) -> None:
        self.planner, self.settings = planner, settings
        self._rectifier: Rectifier | None = None
        if (area := settings.work_area()) is not None:
            # Plans are no better on larger ones, see `Rectifier`.
            side = 2 * planner.image.size
            self._rectifier = Rectifier(area, side, rectified=settings.camera_rectified)

    @classmethod
    def load(cls, settings: PlannerParameters) -> FrameAnswerer:
        """Load the bundle that the parameters name, or the one that comes with the package.

        Raises:
            BundleError, FileNotFoundError: see `Planner.load`.
            WorkAreaError: OpenCV is needed and not installed.
        """
        planner = Planner.load(
            bundle_of(settings),
            backend=settings.backend,
            family=settings.family,
            repair=settings.repair,
        )
        return cls(planner, settings)

    def warm_up(self) -> None:
        """Plan on nothing. The first plan is the slowest: buffers are made, a GPU compiles."""
        self.planner.plan(np.full((64, 64, 3), 128, np.uint8))

    def picture(
        self, message: Any, calibration: CameraCalibration | None, info_topic: str
    ) -> NDArray[np.uint8]:
        """Return what is planned on: the image, or the work area in it seen from above.

        Args:
            message: sensor_msgs/Image or sensor_msgs/CompressedImage.
            calibration: the newest of the camera, None where no usable one has come.
            info_topic: where it comes from.

        Returns:
            uint8 [H, W, 3].

        Raises:
            ConversionError, ImageError, WorkAreaError: the image cannot be used (`NOT_USABLE`).
        """
        rgb = rgb_from_message(message)
        if self._rectifier is None:
            return rgb
        if not self.settings.needs_camera_info:
            return self._rectifier.rectify(rgb)
        if calibration is None:
            raise WorkAreaError(f"nothing usable has come on {info_topic} yet")
        return self._rectifier.rectify(rgb, calibration)

    def answer(
        self, response: Response, header: FrameHeader, min_confidence: float
    ) -> dict[str, Any]:
        """Return the JSON-ready answer (`mgsd_ros.answers`) to the frame with this header.

        One of less than `min_confidence` is not to be followed.
        """
        answer = answer_to_dict(response, header, self.planner)
        answer["error"] = answer["error"] or self._other_size(response)
        if answer["error"] is None and response.confidence < min_confidence:
            answer["error"] = (
                f"the model is not sure enough: confidence {response.confidence:.2f}, and "
                f"min_confidence is {min_confidence:.2f}"
            )
        return answer

    def _other_size(self, response: Response) -> str | None:
        """Say that the model sees a grid of another size than there is: its cells are elsewhere."""
        state, cells = response.state, self.settings.area_cells
        if not cells or state is None or state.size == cells:
            return None
        return f"the model sees {state.size} cells a side, and the work area has {cells}"


def bundle_of(settings: PlannerParameters) -> Path | str:
    """Return the bundle that the parameters name, or the one that comes with the package.

    Raises:
        FileNotFoundError: none is named and none came with the package.
    """
    return settings.bundle or shipped_bundle()


def not_usable(error: BaseException) -> str:
    """Say in one line that an image gives no plan; `error` is one of `NOT_USABLE`."""
    return f"image not usable: {one_line(error)}"


def planning_failed(error: BaseException) -> str:
    """Say in one line that there is no plan for a usable image."""
    return f"planning failed: {type(error).__name__}: {one_line(error)}"


def route(answer: Mapping[str, Any], grid: GridFrame | None) -> list[PlanarPose]:
    """Return the poses to follow in the grid's frame; none where the answer is not to be followed.

    Args:
        answer: see `mgsd_ros.answers`.
        grid: where the cells lie; None: nobody knows.
    """
    return [] if grid is None or answer["error"] is not None else grid.poses(answer["path"])
