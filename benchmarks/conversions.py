"""From image message to RGB, for every encoding, beside OpenCV where that is installed.

python benchmarks/conversions.py --json conversions.json

`rgb` is what `mgsd_ros.conversions.rgb_from_message` takes for a frame, `fit` what shrinking its
result to the model's size takes after that, which every frame pays. `opencv` is OpenCV's
conversion of the same bytes to RGB, with as many threads (1). Encodings take turns, so that all
meet the same machine.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mgsd_core.runtime.preprocess import ImageSpec, fit
from mgsd_ros.conversions import ENCODINGS, rgb_from_message

try:
    import cv2
except ImportError:
    cv2 = None  # type: ignore[assignment]

#: Rows of data for a row of pixels, and bytes of a pixel in a row, where they are not 1 and 1.
ROWS = {"nv12": 1.5, "nv21": 1.5, "nv24": 3.0}
BYTES = {"rgb": 3, "bgr": 3, "rgba": 4, "bgra": 4, "8UC3": 3, "8UC4": 4}

#: OpenCV's name of the conversion to RGB. It has none for nv24.
OPENCV = {
    "bgr8": "BGR2RGB",
    "rgba8": "RGBA2RGB",
    "bgra8": "BGRA2RGB",
    "mono8": "GRAY2RGB",
    "bayer_rggb8": "BayerRGGB2RGB",
    "bayer_grbg8": "BayerGRBG2RGB",
    "bayer_gbrg8": "BayerGBRG2RGB",
    "bayer_bggr8": "BayerBGGR2RGB",
    "uyvy": "YUV2RGB_UYVY",
    "yuyv": "YUV2RGB_YUYV",
    "nv12": "YUV2RGB_NV12",
    "nv21": "YUV2RGB_NV21",
}


def scene(height: int, width: int) -> NDArray[np.uint8]:
    """Return a picture that is as smooth and as noisy as a camera's."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return np.clip(smooth + rng.integers(-3, 4, smooth.shape), 0, 255).astype(np.uint8)


def image(encoding: str, height: int, width: int) -> SimpleNamespace:
    """Return a sensor_msgs/Image with noise in it: what the values are makes no difference."""
    name = encoding.removesuffix("16").removesuffix("8")
    pair = encoding.startswith(("yu", "uy")) or encoding.endswith("16")
    step = width * BYTES.get(name, 1) * (2 if pair else 1)
    length = int(step * height * ROWS.get(encoding, 1))
    data = np.random.default_rng(0).integers(0, 256, length, np.uint8)
    return SimpleNamespace(
        encoding=encoding, height=height, width=width, step=step, is_bigendian=0, data=data
    )


def compressed(kind: str, height: int, width: int) -> SimpleNamespace:
    """Return a sensor_msgs/CompressedImage."""
    file = BytesIO()
    options = {"quality": 90} if kind == "jpeg" else {"compress_level": 3}
    Image.fromarray(scene(height, width)).save(file, kind, **options)
    data = np.frombuffer(file.getvalue(), np.uint8)
    return SimpleNamespace(format=f"rgb8; {kind} compressed bgr8", data=data)


def with_opencv(message: SimpleNamespace) -> Callable[[], object] | None:
    """Return OpenCV's conversion of a message, where there is one."""
    if cv2 is None:
        return None
    if hasattr(message, "format"):
        return lambda: cv2.imdecode(message.data, cv2.IMREAD_COLOR_RGB)
    if message.encoding not in OPENCV:
        return None
    code = getattr(cv2, f"COLOR_{OPENCV[message.encoding]}")
    rows = int(message.height * ROWS.get(message.encoding, 1))
    channels = message.step // message.width
    pixels = message.data.reshape((rows, message.width, channels)[: 2 if channels == 1 else 3])
    return lambda: cv2.cvtColor(pixels, code)


def seconds(work: Callable[[], object]) -> float:
    """Return how long a call takes [s]."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(
    messages: dict[str, SimpleNamespace], spec: ImageSpec, rounds: int
) -> dict[str, dict[str, float]]:
    """Return {encoding: {"rgb_ms", "fit_ms", "opencv_ms"}}, medians [ms]."""
    jobs: dict[str, dict[str, Callable[[], Any]]] = {}
    for name, message in messages.items():
        rgb, opencv = rgb_from_message(message), with_opencv(message)
        jobs[name] = {
            "rgb_ms": partial(rgb_from_message, message),
            "fit_ms": partial(fit, rgb, spec),
            **({"opencv_ms": opencv} if opencv else {}),
        }
    times: dict[str, dict[str, list[float]]] = {
        name: {job: [] for job in own} for name, own in jobs.items()
    }
    for number in range(rounds + 1):
        for name, own in jobs.items():
            for job, work in own.items():
                taken = seconds(work)
                if number:  # the first round warms up
                    times[name][job].append(1e3 * taken)
    return {
        name: {job: round(median(taken), 3) for job, taken in own.items()}
        for name, own in times.items()
    }


def main() -> None:
    """Measure and print a table; write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file of the results")
    parser.add_argument("--height", type=int, default=1080, help="of a frame [px]")
    parser.add_argument("--width", type=int, default=1920, help="of a frame, even [px]")
    parser.add_argument("--size", type=int, default=128, help="side of the model's picture [px]")
    parser.add_argument("--rounds", type=int, default=15, help="timed frames of each [count]")
    args = parser.parse_args()
    if cv2 is not None:
        cv2.setNumThreads(1)
    shape = args.height, args.width
    messages = {encoding: image(encoding, *shape) for encoding in ENCODINGS}
    messages |= {kind: compressed(kind, *shape) for kind in ("jpeg", "png")}
    found = measure(messages, ImageSpec(args.size), args.rounds)
    print(f"{args.width} × {args.height} px, median of {args.rounds} frames [ms]")
    print(f"{'encoding':<14}{'rgb':>9}{'fit':>9}{'opencv':>9}")
    for name, own in found.items():
        cells = (own.get(job) for job in ("rgb_ms", "fit_ms", "opencv_ms"))
        print(f"{name:<14}" + "".join("        –" if c is None else f"{c:9.2f}" for c in cells))
    if args.json:
        setting = {"height": args.height, "width": args.width, "size": args.size}
        setting |= {"rounds": args.rounds, "opencv": cv2 and cv2.__version__}
        args.json.write_text(json.dumps(setting | {"encodings": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
