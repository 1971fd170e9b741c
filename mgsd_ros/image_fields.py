"""The fields of image messages, read with suspicion.

Messages come from any driver and any bag: whatever a field holds, it is either what its definition
says or ends as one of the errors here.
"""

from __future__ import annotations

from operator import index
from typing import Any

from mgsd_core.runtime.preprocess import MAX_PIXELS, MAX_SIDE

#: Encodings of distances (REP 118). mono16 is none of them: it is a grey picture.
DEPTH_ENCODINGS: tuple[str, ...] = ("16UC1", "32FC1")


class ConversionError(ValueError):
    """An image message that cannot be used; the message says which field is wrong and why."""


class FieldError(ConversionError):
    """A field is missing, or holds something of another type than it should."""


class EncodingError(ConversionError):
    """The encoding is not one that holds a colour or grey picture we can read."""


class DepthError(EncodingError):
    """The image holds distances, not a picture."""


class SizeError(ConversionError):
    """Height or width is not positive, or absurdly large."""


class StepError(ConversionError):
    """A row is shorter than its pixels."""


class DataError(ConversionError):
    """The data are not as long as step and height say, or cannot be decoded."""


def text(message: Any, field: str) -> str:
    """Return a field that holds text.

    Raises:
        FieldError: it is missing or holds something else.
    """
    value = getattr(message, field, None)
    if not isinstance(value, str):
        raise FieldError(f"{field} is no text but {type(value).__name__}")
    return value


def number(message: Any, field: str) -> int:
    """Return a field that holds a whole number.

    Raises:
        FieldError: it is missing or holds something else.
    """
    value: Any = getattr(message, field, None)
    try:
        whole = index(value)
    except TypeError as error:
        raise FieldError(f"{field} is no whole number but {type(value).__name__}") from error
    if abs(whole) >= 2**63:  # so large that Python may refuse to print it
        raise FieldError(f"{field} is absurdly large")
    return whole


def data_bytes(message: Any) -> memoryview:
    """Return the field `data` as it lies in memory, without a copy.

    Raises:
        DataError: it holds no contiguous bytes.
    """
    data: Any = getattr(message, "data", None)
    try:
        view = memoryview(data)
    except (TypeError, ValueError, BufferError) as error:
        raise DataError(f"the data are no bytes but {type(data).__name__}") from error
    if view.itemsize != 1 or not view.c_contiguous:
        raise DataError(f"the data are no bytes in a row but {type(data).__name__}")
    return view


def check_size(height: int, width: int) -> None:
    """Raise `SizeError` unless there are pixels, no more than `MAX_PIXELS` and `MAX_SIDE`."""
    if height <= 0 or width <= 0:
        raise SizeError(f"the image is {width} × {height} pixels; both must be positive")
    if height * width > MAX_PIXELS:
        raise SizeError(
            f"the image is {width} × {height} pixels; at most {MAX_PIXELS} pixels are taken"
        )
    if max(height, width) > MAX_SIDE:
        raise SizeError(
            f"the image is {width} × {height} pixels; a side of at most {MAX_SIDE} is taken"
        )


def quoted(words: str) -> str:
    """Return text from a field as it may stand in an error's one line."""
    return repr(words[:40])
