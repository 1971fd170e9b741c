"""Runs a bundle on a robot: from a picture to a plan.

Imports neither torch, transformers nor rclpy: NumPy, Pillow, ONNX Runtime and tokenizers suffice.
"""

from mgsd_core.runtime.bundle import BundleError
from mgsd_core.runtime.images import read_image
from mgsd_core.runtime.planner import (
    InferenceError,
    Planner,
    Response,
    Verdict,
    response_to_dict,
)
from mgsd_core.runtime.preprocess import ImageError, ImageSpec, with_margin
from mgsd_core.runtime.videos import Frame, VideoError, read_camera, read_video

__all__ = [
    "BundleError",
    "Frame",
    "ImageError",
    "ImageSpec",
    "InferenceError",
    "Planner",
    "Response",
    "Verdict",
    "VideoError",
    "read_camera",
    "read_image",
    "read_video",
    "response_to_dict",
    "with_margin",
]
