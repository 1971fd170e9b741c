"""Pictures into patches and tokens into positions, exactly as the student was trained on them.

NumPy and Pillow only: training and the robot call the same functions, so they cannot differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sim.scene import MARGIN

#: Most pixels of one picture that is accepted, a guard against absurd sizes in untrusted input.
MAX_PIXELS = 64_000_000

#: Longest side of one [px]. JPEG has no longer ones, and to shrink a line of `MAX_PIXELS` pixels
#: takes gigabytes.
MAX_SIDE = 65_535


class ImageError(ValueError):
    """A picture that cannot be planned from; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """How a picture enters the vision tower. All pictures of a model have one size.

    Attributes:
        size: side of the square picture [px]; other pictures are resized to it (bicubic).
        patch: side of a patch [px].
        merge: patches per side that become one visual token.
        temporal: frames that one patch spans; a still picture is repeated.
        mean, std: normalisation of values scaled to [0, 1] (Qwen3-VL: 0.5 and 0.5).
    """

    size: int
    patch: int = 16
    merge: int = 2
    temporal: int = 2
    mean: float = 0.5
    std: float = 0.5

    def __post_init__(self) -> None:
        unit = self.patch * self.merge
        if self.size < unit or self.size % unit:
            raise ValueError(f"image size {self.size} px must be a multiple of {unit} px")

    @property
    def grid(self) -> int:
        """Patches per side."""
        return self.size // self.patch

    @property
    def tokens_per_side(self) -> int:
        """Visual tokens per side."""
        return self.grid // self.merge

    @property
    def tokens(self) -> int:
        """Visual tokens of one picture."""
        return self.tokens_per_side**2


def check_rgb(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return `rgb` when it is a usable uint8 [H, W, 3] picture, else raise `ImageError`."""
    if not isinstance(rgb, np.ndarray) or rgb.dtype != np.uint8:
        raise ImageError(
            f"a picture must be a uint8 array, not {getattr(rgb, 'dtype', type(rgb).__name__)}"
        )
    if rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ImageError(f"a picture must have the shape [H, W, 3], not {list(rgb.shape)}")
    height, width = rgb.shape[:2]
    check_size(width, height)
    return rgb


def check_size(width: int, height: int, where: str = "the picture") -> None:
    """Raise `ImageError` unless there are pixels, no more than `MAX_PIXELS` and `MAX_SIDE`."""
    if height == 0 or width == 0:
        raise ImageError(f"{where} is empty: {width} × {height} px")
    if height * width > MAX_PIXELS:
        raise ImageError(f"{where} has {width} × {height} px, more than {MAX_PIXELS} in all")
    if max(height, width) > MAX_SIDE:
        raise ImageError(f"{where} has {width} × {height} px, a side of more than {MAX_SIDE}")


def fit(rgb: NDArray[np.uint8], spec: ImageSpec) -> NDArray[np.uint8]:
    """Resize a uint8 [H, W, 3] picture to the model's uint8 [size, size, 3]."""
    check_rgb(rgb)
    if rgb.shape[:2] == (spec.size, spec.size):
        return rgb
    picture = Image.fromarray(np.ascontiguousarray(rgb))
    return np.asarray(picture.resize((spec.size, spec.size), Image.Resampling.BICUBIC))


def with_margin(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a picture of a grid and nothing else with the margin that drawn scenes have around it.

    Args:
        rgb: uint8 [H, W, 3], cut off where the grid ends.

    Returns:
        uint8, higher and wider by 2 `sim.scene.MARGIN`; the margin has the median colour of the
        picture's edges.

    Raises:
        ImageError: it is no usable picture, or too large with a margin.
    """
    height, width = check_rgb(rgb).shape[:2]
    top, left = round(height * MARGIN), round(width * MARGIN)
    check_size(width + 2 * left, height + 2 * top, "the picture with its margin")
    edges = np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]])
    shown = np.empty((height + 2 * top, width + 2 * left, 3), np.uint8)
    shown[:] = np.median(edges, axis=0)
    shown[top : top + height, left : left + width] = rgb
    return shown


def patchify(images: NDArray[np.uint8], spec: ImageSpec) -> NDArray[np.float32]:
    """Cut fitted pictures into the vision tower's input.

    Args:
        images: uint8 [N, size, size, 3].
        spec: the model's picture format.

    Returns:
        float32 [N * grid * grid, 3 * temporal * patch * patch], patches in the order in which
        `merge` × `merge` neighbours stand together, as Qwen3-VL's image processor writes them.
    """
    count = len(images)
    blocks = spec.grid // spec.merge
    shape = (count, blocks, spec.merge, spec.patch, blocks, spec.merge, spec.patch, 3)
    # N, block row, block column, row in block, column in block, channel, y, x
    patches = images.reshape(shape).transpose(0, 1, 4, 2, 5, 7, 3, 6)
    patches = patches.reshape(count * spec.grid**2, 3, 1, spec.patch, spec.patch)
    values = patches.astype(np.float32)
    values *= 1.0 / (255.0 * spec.std)
    values -= spec.mean / spec.std
    repeated = np.broadcast_to(values, (len(values), 3, spec.temporal, spec.patch, spec.patch))
    return repeated.reshape(len(values), -1)


def mrope_positions(ids: Sequence[int], image_token: int, spec: ImageSpec) -> NDArray[np.int64]:
    """Return the M-RoPE positions [3, S] (time, height, width) of a token sequence.

    Text advances all three by one a token. A picture's tokens share one time; height and width
    count its rows and columns; the text after it goes on at the larger of both (Qwen3-VL).

    Raises:
        ValueError: image tokens do not stand in whole runs of `spec.tokens`.
    """
    array = np.asarray(ids, dtype=np.int64)
    is_image = array == image_token
    positions = np.empty((3, len(array)), dtype=np.int64)
    side = spec.tokens_per_side
    rows, columns = np.divmod(np.arange(spec.tokens), side)
    index = position = 0
    while index < len(array):
        if not is_image[index]:
            positions[:, index] = position
            index, position = index + 1, position + 1
            continue
        run = slice(index, index + spec.tokens)
        if not (len(array) >= run.stop and is_image[run].all()):
            raise ValueError(f"a picture needs {spec.tokens} image tokens in one run")
        positions[0, run] = position
        positions[1, run] = position + rows
        positions[2, run] = position + columns
        index, position = run.stop, position + side
    return positions
