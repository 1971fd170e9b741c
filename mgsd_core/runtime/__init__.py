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
from mgsd_core.runtime.preprocess import ImageError, ImageSpec

__all__ = [
    "BundleError",
    "ImageError",
    "ImageSpec",
    "InferenceError",
    "Planner",
    "Response",
    "Verdict",
    "read_image",
    "response_to_dict",
]
