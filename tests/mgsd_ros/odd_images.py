"""Bags with images that no camera should send."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rosbags.typesys import get_typestore

from mgsd_ros.bags import IMAGE_TOPIC, TYPESTORE, new_bag

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED = "sensor_msgs/msg/CompressedImage"


def write_images(
    path: Path, topics: dict[str, list[dict[str, Any]]], storage: str = "mcap"
) -> None:
    """Write images with the given fields, 0.1 s apart from 1 s on.

    A topic whose first fields have a `format` is one of sensor_msgs/CompressedImage, others are of
    sensor_msgs/Image. `frame_id` and `received` [ns] are "camera" and the time of the stamp.
    """
    store = get_typestore(TYPESTORE)
    time, header = store.types["builtin_interfaces/msg/Time"], store.types["std_msgs/msg/Header"]
    with new_bag(path, storage, overwrite=False) as writer:
        for topic, images in topics.items():
            kind, usual = IMAGE, {"is_bigendian": 0}
            if images and "format" in images[0]:
                kind, usual = COMPRESSED, {}
            connection = writer.add_connection(topic, kind, typestore=store)
            for number, fields in enumerate(images):
                stamp = 10**9 + number * 10**8
                given = usual | fields
                own = header(time(stamp // 10**9, stamp % 10**9), given.pop("frame_id", "camera"))
                received = given.pop("received", stamp)
                message = store.types[kind](header=own, **given)
                writer.write(connection, received, store.serialize_cdr(message, kind))


def fields(rgb: np.ndarray, **changes: Any) -> dict[str, Any]:
    """Return the fields of an rgb8 image, with changes."""
    height, width, _ = rgb.shape
    own = {"height": height, "width": width, "encoding": "rgb8", "step": 3 * width}
    return own | {"data": rgb.reshape(-1)} | changes


def write_odd_bag(path: Path, rgb: np.ndarray) -> None:
    """Write what the fixture `odd_bag` promises."""
    nothing = np.zeros(0, np.uint8)
    camera = [
        fields(rgb),
        fields(rgb, step=100),
        fields(rgb, data=rgb.reshape(-1)[:1000]),
        fields(rgb, encoding="jpeg2000"),
        fields(rgb, height=0, width=0, step=0, data=nothing),
        fields(rgb, encoding="32FC1"),
        fields(rgb),
    ]
    noise = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), np.uint8)
    write_images(path, {IMAGE_TOPIC: camera, "/noise": [fields(picture) for picture in noise]})
