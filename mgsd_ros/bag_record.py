"""Writes a bag as a camera above a work area would have given it, with the truth of every frame."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mgsd_ros.answers import FrameHeader, to_json
from mgsd_ros.bag_messages import (
    STORE,
    compressed_message,
    image_message,
    info_message,
    text_message,
)
from mgsd_ros.bags import (
    COMPRESSED,
    COMPRESSED_TYPE,
    IMAGE_TOPIC,
    IMAGE_TYPE,
    INFO_TOPIC,
    INFO_TYPE,
    TEXT_TYPE,
    TRUTH_TOPIC,
    new_bag,
)
from sim import format_plan, state_to_dict

if TYPE_CHECKING:
    from sim.dataset import Episode

#: Frame of the recorded images, with the optical axes of REP-103 (x right, y down, z forward).
CAMERA_FRAME = "camera"

# How Pillow is told to write a compressed image, with the quality that image_transport has.
_ENCODERS: dict[str, dict[str, Any]] = {
    "jpeg": {"format": "JPEG", "quality": 95},
    "png": {"format": "PNG"},
}

# Time of the first recorded frame [s]: not 0, which in a stamp means that none was given.
_FIRST_STAMP = 1


def write_episodes(
    path: Path,
    episodes: Iterator[Episode],
    rate: float,
    storage: str,
    overwrite: bool,
    compressed: str | None = None,
) -> Iterator[Episode]:
    """Write episodes as the frames of a camera; yield each once it is written.

    Args:
        path: of the bag.
        episodes: one frame each.
        rate: frames a second; stamps grow by its inverse.
        storage: a key of `mgsd_ros.bags.STORAGES`.
        overwrite: replace a bag that is there already.
        compressed: "jpeg" or "png": the images are sensor_msgs/CompressedImage on a topic of their
            own, instead of sensor_msgs/Image.

    Raises:
        BagError: see `new_bag`.
    """
    image_topic, image_type = IMAGE_TOPIC, IMAGE_TYPE
    if compressed is not None:
        image_topic, image_type = IMAGE_TOPIC + COMPRESSED, COMPRESSED_TYPE
    kinds = {INFO_TOPIC: INFO_TYPE, image_topic: image_type, TRUTH_TOPIC: TEXT_TYPE}
    with new_bag(path, storage, overwrite) as writer:
        topics = {
            topic: writer.add_connection(topic, kind, typestore=STORE)
            for topic, kind in kinds.items()
        }
        for number, episode in enumerate(episodes):
            stamp = _FIRST_STAMP * 10**9 + round(number * 1e9 / rate)
            header = FrameHeader(stamp // 10**9, stamp % 10**9, CAMERA_FRAME)
            messages = {
                INFO_TOPIC: info_message(episode.camera, header),
                image_topic: _image_message(episode.image, header, compressed),
                TRUTH_TOPIC: text_message(to_json(_truth_dict(header, episode))),
            }
            for topic, message in messages.items():
                data = STORE.serialize_cdr(message, kinds[topic])
                writer.write(topics[topic], stamp, data)
            yield episode


def _image_message(rgb: NDArray[np.uint8], header: FrameHeader, compressed: str | None) -> Any:
    if compressed is None:
        return image_message(rgb, header)
    file = BytesIO()
    Image.fromarray(rgb).save(file, **_ENCODERS[compressed])
    # As image_transport spells it; its encoder takes bgr8.
    return compressed_message(file.getvalue(), f"rgb8; {compressed} compressed bgr8", header)


def _truth_dict(header: FrameHeader, episode: Episode) -> dict[str, Any]:
    return {
        **header.to_dict(),
        "state": state_to_dict(episode.state),
        "plan": format_plan(episode.plan),
        "camera": episode.camera.to_dict(),
        "seed": episode.seed,
    }
