"""A bag of what the node would have published on a camera's images, to look at without ROS running.

Its topics are those of the node under its own name, and the camera's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import Writer

from mgsd_ros.answers import FrameHeader, to_json
from mgsd_ros.bag_messages import (
    STORE,
    image_message,
    markers_message,
    path_message,
    text_message,
)
from mgsd_ros.bags import BagError, BagFrame, BagReader, image_type, new_bag
from mgsd_ros.frame_answer import route
from mgsd_ros.grid_frame import GridFrame
from mgsd_ros.overlay import draw_answer

PLAN_TOPICS = {
    "/planner/plan": "nav_msgs/msg/Path",
    "/planner/actions": "std_msgs/msg/String",
    "/planner/overlay": "sensor_msgs/msg/Image",
    "/planner/markers": "visualization_msgs/msg/MarkerArray",
}

# The node keeps its last word for whoever joins late, but not pictures.
_NOT_LATCHED = "/planner/overlay"


@dataclass(frozen=True, slots=True)
class PlansTo:
    """Where a bag of the plans goes; see `new_plans_bag`.

    Attributes:
        path: of the bag.
        storage: a key of `mgsd_ros.bags.STORAGES`.
        overwrite: replace a bag that is there already.
    """

    path: Path
    storage: str = "mcap"
    overwrite: bool = False


class PlansBag:
    """Takes frames and answers as they come; see `new_plans_bag`."""

    def __init__(
        self, writer: Writer, reader: BagReader, topic: str, grid: GridFrame | None
    ) -> None:
        self._writer, self._grid = writer, grid
        self._topics = {
            name: writer.add_connection(
                name, kind, typestore=STORE, offered_qos_profiles=[_qos(name != _NOT_LATCHED)]
            )
            for name, kind in PLAN_TOPICS.items()
        }
        [camera, *_] = reader.on(topic)
        self._images = writer.add_connection(
            topic,
            camera.msgtype,
            typestore=reader.types(camera),
            offered_qos_profiles=[_qos(False)],
        )

    def add_image(self, frame: BagFrame) -> None:
        """Copy a camera's message as it is, at its own time."""
        self._writer.write(self._images, frame.received, frame.data)

    def add_answer(
        self,
        answer: Mapping[str, Any],
        image: FrameHeader,
        time: int,
        rgb: NDArray[np.uint8] | None,
    ) -> None:
        """Write an answer as the node would have published it.

        Args:
            answer: see `mgsd_ros.answers`.
            image: header of the image.
            time: when, by the bag's clock [ns].
            rgb: what was planned on, uint8 [H, W, 3]; None: there is no plan to be drawn.
        """
        grid, poses = self._grid, route(answer, self._grid)
        frame_id = image.frame_id if grid is None else grid.frame_id
        self._write("/planner/plan", time, path_message(poses, image, frame_id))
        self._write("/planner/actions", time, text_message(to_json(answer)))
        if grid is not None:
            markers = markers_message(poses, grid.cell_size, image, frame_id)
            self._write("/planner/markers", time, markers)
        if rgb is not None:
            drawn = image_message(draw_answer(rgb, answer), image)
            self._write("/planner/overlay", time, drawn)

    def _write(self, topic: str, time: int, message: Any) -> None:
        data = STORE.serialize_cdr(message, PLAN_TOPICS[topic])
        self._writer.write(self._topics[topic], time, data)


@contextmanager
def new_plans_bag(
    to: PlansTo, reader: BagReader, topic: str, grid: GridFrame | None
) -> Iterator[PlansBag]:
    """Open a bag for plans that appears whole, when the block ends without an error.

    Args:
        to: where it goes.
        reader: the bag that the camera's images come from.
        topic: of these.
        grid: where the cells lie; None: nobody knows, and paths stay empty.

    Raises:
        BagError: see `new_bag`; or its topics are to hold the camera's images.
    """
    if topic in PLAN_TOPICS:
        raise BagError(f"{topic} is a topic of plans; give one of a camera's images")
    image_type(reader, topic)
    with new_bag(to.path, to.storage, to.overwrite) as writer:
        yield PlansBag(writer, reader, topic, grid)


def _qos(is_latched: bool) -> Qos:
    """Return what the node offers: reliable, the newest alone, kept for late subscribers or not."""
    forever = QosTime(9223372036, 854775807)
    return Qos(
        history=QosHistory.KEEP_LAST,
        depth=1,
        reliability=QosReliability.RELIABLE,
        durability=QosDurability.TRANSIENT_LOCAL if is_latched else QosDurability.VOLATILE,
        deadline=forever,
        lifespan=forever,
        liveliness=QosLiveliness.AUTOMATIC,
        liveliness_lease_duration=forever,
        avoid_ros_namespace_conventions=False,
    )
