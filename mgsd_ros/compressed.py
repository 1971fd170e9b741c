"""Pictures in sensor_msgs/CompressedImage: JPEG and PNG, as image_transport and cameras send them.

Imports no ROS. The bytes say what they are; `format` is read only for what they cannot say.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import JpegImagePlugin, PngImagePlugin
from PIL.ImageFile import ImageFile

from mgsd_ros.image_fields import (
    DEPTH_ENCODINGS,
    DataError,
    DepthError,
    EncodingError,
    check_size,
    data_bytes,
    quoted,
    text,
)
from sim.errors import one_line

# A progressive JPEG comes in scans, usually some ten, and each goes over the whole picture: a small
# file of very many would keep the decoder busy for hours.
_START_OF_SCAN, _MAX_SCANS = b"\xff\xda", 200

# What the data begin with -> who reads them. Pillow's own dispatch would try more formats, and
# warn about sizes before anybody can refuse them.
_READERS: dict[bytes, type[ImageFile]] = {
    b"\xff\xd8\xff": JpegImagePlugin.JpegImageFile,
    b"\x89PNG\r\n\x1a\n": PngImagePlugin.PngImageFile,
}


def source_encoding(message: Any) -> str:
    """Return the encoding of the raw image that was compressed; empty where `format` does not say.

    image_transport writes "rgb8; jpeg compressed bgr8" or "mono16; png compressed ", cameras and
    Python nodes just "jpeg", "jpg" or "png".

    Raises:
        FieldError: `format` is no text.
        DepthError: distances were compressed.
    """
    form = text(message, "format")
    encoding, separator, _ = form.partition(";")
    encoding = encoding.strip()
    if encoding in DEPTH_ENCODINGS or "compressedDepth" in form:
        raise DepthError(f"format {quoted(form)} holds depth, not colour; give the colour topic")
    return encoding if separator else ""


def decode(message: Any) -> NDArray[np.uint8]:
    """Decode the data of a sensor_msgs/CompressedImage.

    Colours come as the file has them, whatever `format` says of "bgr8" or "rgb8": that is the order
    which the sender's encoder was given, and it knew it. 16-bit channels keep their high byte, as
    in raw images; alpha is dropped. An orientation in EXIF is not applied: image_transport does not
    either, and pixels must lie where camera_info and the raw topic have them.

    Args:
        message: has `format` and `data`.

    Returns:
        uint8 [height, width] of a grey file, else uint8 [height, width, 3], red, green, blue.

    Raises:
        EncodingError: neither JPEG nor PNG.
        SizeError: empty or absurdly large by the header; nothing has been decoded then.
        DataError: truncated, corrupt, or a JPEG of absurdly many scans. Damage inside a JPEG that
            still decodes is not noticed.
    """
    data = data_bytes(message).tobytes()
    if not data:
        raise DataError("the data are empty")
    reader = next((own for start, own in _READERS.items() if data.startswith(start)), None)
    if reader is None:
        raise EncodingError(
            f"the data are neither JPEG nor PNG; format is {quoted(message.format)}"
        )
    if reader is JpegImagePlugin.JpegImageFile and data.count(_START_OF_SCAN) > _MAX_SCANS:
        raise DataError(f"the JPEG has more than {_MAX_SCANS} scans")
    try:
        picture = reader(BytesIO(data))
    except Exception as error:
        raise _damaged(error) from error
    with picture:
        check_size(picture.height, picture.width)
        try:
            if picture.mode.startswith("I"):  # 16 bits: converting to RGB would cut off at 255
                return (np.asarray(picture) >> 8).astype(np.uint8)
            picture.info.pop("transparency", None)  # else Pillow warns that it gets lost
            if picture.mode not in ("L", "RGB"):
                return np.asarray(picture.convert("RGB"))
            return np.asarray(picture)
        except Exception as error:
            raise _damaged(error) from error


def _damaged(error: Exception) -> DataError:
    # Bytes that are cut off or made up raise nearly anything in the parsers beneath.
    return DataError(f"the data cannot be decoded: {one_line(error)[:200]}")
