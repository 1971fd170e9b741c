"""Draws plans onto pictures for people: routes, marks, captions, contact sheets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sim.actions import MOVES
from sim.scene import MARGIN
from sim.states import Cell

CellToPixel = Callable[[Cell], tuple[float, float]]

#: Pictures with a shorter side than this [px] are enlarged by a whole number before drawing.
MIN_SHORT_SIDE = 384

_ROUTE, _HALO, _START = (255, 0, 200), (255, 255, 255), (255, 230, 0)
_STRIP, _TEXT = (24, 24, 28), (240, 240, 240)


def canonical_cell_to_pixel(size: int, height: int, width: int) -> CellToPixel:
    """Return the map from a cell to the pixel (u, v) of its centre, seen from straight above.

    It holds for the plain style's camera over a grid of `size` × `size` cells: centred, with
    `sim.scene.MARGIN` around the grid. Pixel centres are at whole numbers.
    """
    cell = min(height, width) / (size * (1 + 2 * MARGIN))

    def to_pixel(place: Cell) -> tuple[float, float]:
        row, column = place
        middle = (size - 1) / 2
        return (width - 1) / 2 + (column - middle) * cell, (height - 1) / 2 + (row - middle) * cell

    return to_pixel


def draw_plan(
    rgb: NDArray[np.uint8],
    path: Sequence[Cell],
    cell_to_pixel: CellToPixel,
    actions: Sequence[StrEnum] = (),
    caption: str = "",
) -> NDArray[np.uint8]:
    """Return a copy of a picture with a route drawn on it, uint8 [H', W', 3].

    Small pictures are enlarged so that a person can read them.

    Args:
        rgb: uint8 [H, W, 3].
        path: the robot's cell before the first action and after each (`Outcome.path`).
        cell_to_pixel: gives the pixel (u, v) of a cell's centre in `rgb`.
        actions: those that `path` follows from; those that are no moves are marked.
        caption: text for a strip below the picture; lines are broken to its width.

    Raises:
        ValueError: `rgb` is not uint8 [H, W, 3].
    """
    scale = -(-MIN_SHORT_SIDE // min(_checked(rgb).shape[:2]))
    picture = Image.fromarray(rgb)
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BOX)
    # An enlarged pixel's centre lies in the middle of its block.
    points = [
        (u * scale + (scale - 1) / 2, v * scale + (scale - 1) / 2)
        for u, v in map(cell_to_pixel, path)
    ]
    pen = ImageDraw.Draw(picture)
    unit = _cell_length(points) or min(picture.size) / 10
    line = max(2, round(unit * 0.07))
    for colour, thickness in ((_HALO, line + 2), (_ROUTE, line)):
        if len(points) > 1:
            pen.line(points, colour, thickness, joint="curve")
        for tail, head in pairwise(points):
            if tail != head:
                _arrow_head(pen, tail, head, unit * (0.2 if colour == _ROUTE else 0.24), colour)
    if points:
        _dot(pen, points[0], unit * 0.12, _START)
    _mark_actions(pen, points[1:], actions, max(11, round(unit * 0.26)))
    return np.asarray(_with_caption(picture, caption))


def contact_sheet(
    images: Sequence[NDArray[np.uint8]], columns: int, gap: int = 4
) -> NDArray[np.uint8]:
    """Return pictures laid out in rows of `columns`, `gap` px apart, uint8 [H, W, 3].

    Every place is as large as the largest picture.

    Raises:
        ValueError: there is no picture, `columns` is below 1, or a picture is not uint8 [H, W, 3].
    """
    if not images or columns < 1:
        raise ValueError("a contact sheet needs at least one picture and one column")
    height = max(_checked(image).shape[0] for image in images)
    width = max(image.shape[1] for image in images)
    rows = -(-len(images) // columns)
    sheet = np.full(
        (rows * (height + gap) - gap, min(columns, len(images)) * (width + gap) - gap, 3),
        255,
        np.uint8,
    )
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet


def _checked(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
        raise ValueError(f"a picture must be uint8 [H, W, 3], not {rgb.dtype} {list(rgb.shape)}")
    return rgb


def _cell_length(points: Sequence[tuple[float, float]]) -> float:
    """Return the mean length of a step on the picture [px], 0 where there is none."""
    steps = [float(np.hypot(b[0] - a[0], b[1] - a[1])) for a, b in pairwise(points) if a != b]
    return sum(steps) / len(steps) if steps else 0.0


def _arrow_head(
    pen: ImageDraw.ImageDraw,
    tail: tuple[float, float],
    head: tuple[float, float],
    length: float,
    colour: tuple[int, int, int],
) -> None:
    # In the middle of the step, so that heads of neighbouring steps do not run into each other.
    direction = np.subtract(head, tail)
    direction = direction / np.hypot(*direction) * length
    across = np.array([-direction[1], direction[0]]) * 0.8
    middle = np.add(tail, head) / 2
    corners = (middle + direction, middle - direction / 2 + across, middle - direction / 2 - across)
    pen.polygon([(float(x), float(y)) for x, y in corners], fill=colour)


def _dot(
    pen: ImageDraw.ImageDraw,
    centre: tuple[float, float],
    radius: float,
    colour: tuple[int, int, int],
) -> None:
    x, y = centre
    box = (x - radius, y - radius, x + radius, y + radius)
    pen.ellipse(box, fill=colour, outline=(0, 0, 0), width=max(1, round(radius / 5)))


def _mark_actions(
    pen: ImageDraw.ImageDraw,
    places: Sequence[tuple[float, float]],
    actions: Sequence[StrEnum],
    size: int,
) -> None:
    """Write what is no move where it happens, below each other where two share a cell."""
    texts: dict[tuple[float, float], list[str]] = {}
    for action, place in zip(actions, places, strict=False):
        if action not in MOVES:
            texts.setdefault(place, []).append(action.value)
    font = ImageFont.load_default(size)
    pad = size // 4
    for place, words in texts.items():
        text = "\n".join(words)
        left, top, right, bottom = pen.multiline_textbbox(place, text, font, anchor="mm")
        frame = (left - pad, top - pad, right + pad, bottom + pad)
        pen.rounded_rectangle(frame, pad, fill=_START, outline=(0, 0, 0))
        pen.multiline_text(place, text, (0, 0, 0), font, anchor="mm", align="center")


def _with_caption(picture: Image.Image, caption: str) -> Image.Image:
    if not caption:
        return picture
    size = max(13, picture.width // 28)
    font = ImageFont.load_default(size)
    lines = _broken(caption, picture.width - size, font)
    step = round(size * 1.35)
    sheet = Image.new(
        "RGB", (picture.width, picture.height + step * len(lines) + size // 2), _STRIP
    )
    sheet.paste(picture)
    pen = ImageDraw.Draw(sheet)
    for i, line in enumerate(lines):
        pen.text((size // 2, picture.height + size // 4 + i * step), line, _TEXT, font)
    return sheet


def _broken(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Break text into lines of at most `width` px, between words; longer words stand alone."""
    lines = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines
