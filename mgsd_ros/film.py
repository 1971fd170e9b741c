"""Runs as a film for people: what the camera sees and the plan that is followed, side by side."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mgsd_ros.closed_loop import Moment
from sim.drawing import contact_sheet, draw_plan
from sim.grid import Grid

#: Largest size of a film [bytes].
MOST_BYTES = 2_000_000

# Sides [px] of a run's picture, of which the largest that fits is taken.
_SIDES = (320, 288, 240, 192, 144, 96)

# How long a moment is shown, and the last one [ms].
_SHOWN, _HELD = 700, 3500

_MOST_COLUMNS = 3

# One less than a GIF can have: the last says that nothing has changed.
_COLOURS = 255

_STRIP, _TEXT = (24, 24, 28), (240, 240, 240)
_GOOD, _BAD = (120, 230, 120), (255, 120, 110)


class FilmError(ValueError):
    """A film that does not fit into `MOST_BYTES` at any size."""


class Reel:
    """The frames of one run.

    Args:
        title: what is carried out; ASCII, as all text of a film.
        grid: where the cells are in the pictures.
    """

    def __init__(self, title: str, grid: Grid) -> None:
        self._title, self._grid = title, grid
        self._moments: list[Moment] = []

    def add(self, moment: Moment) -> None:
        """Take what is shown of a run, see `mgsd_ros.closed_loop.carry_out`."""
        self._moments.append(moment)

    def frames(self, side: int) -> list[NDArray[np.uint8]]:
        """Return a frame for each moment, uint8 [side + strip, side, 3]."""
        return [self._frame(i, moment, side) for i, moment in enumerate(self._moments)]

    def _frame(self, index: int, moment: Moment, side: int) -> NDArray[np.uint8]:
        drawn = draw_plan(moment.picture, moment.ahead, self._grid.pixel, moment.actions)
        picture = Image.fromarray(drawn).resize((side, side), Image.Resampling.LANCZOS)
        text, colour = self._said(index, moment)
        letters = max(9, side // 20)
        font, line = ImageFont.load_default(letters), round(1.4 * letters)
        frame = Image.new("RGB", (side, side + 2 * line + 4), _STRIP)
        frame.paste(picture)
        pen = ImageDraw.Draw(frame)
        pen.text((4, side + 2), self._title, _TEXT, font)
        pen.text((4, side + 2 + line), text, colour, font)
        return np.asarray(frame)

    def _said(self, index: int, moment: Moment) -> tuple[str, tuple[int, int, int]]:
        if moment.verdict == "done":
            return f"done in {index} steps (shortest: {moment.shortest})", _GOOD
        if moment.verdict:
            return f"stopped: {moment.verdict.partition(':')[0]}", _BAD
        how = "new plan" if moment.closed else "same plan"
        slips = ", slips" if moment.lost else ""
        return f"step {index + 1}: {moment.actions[0].value}{slips}  ({how})", _TEXT


def encode_film(reels: Sequence[Reel], most_bytes: int = MOST_BYTES) -> bytes:
    """Return an animated GIF of runs side by side; those that end first wait for the others.

    Args:
        reels: at least one, none without a moment.
        most_bytes: largest size; the pictures are made as large as it allows.

    Raises:
        FilmError: no size is small enough.
    """
    for side in _SIDES:
        data = _gif(_sheets([reel.frames(side) for reel in reels]))
        if len(data) <= most_bytes:
            return data
    raise FilmError(f"a film of {len(reels)} runs does not fit into {most_bytes} bytes: film fewer")


def _sheets(runs: Sequence[Sequence[NDArray[np.uint8]]]) -> list[Image.Image]:
    length = max(len(frames) for frames in runs)
    shown = [[frames[min(i, len(frames) - 1)] for frames in runs] for i in range(length)]
    columns = min(_MOST_COLUMNS, len(runs))
    return [Image.fromarray(contact_sheet(frames, columns)) for frames in shown]


def _gif(sheets: Sequence[Image.Image]) -> bytes:
    # One palette and no dither: what stands still costs no bytes, and does not flicker.
    width, height = sheets[0].size
    both = Image.new("RGB", (width, 2 * height))
    both.paste(sheets[0])
    both.paste(sheets[-1], (0, height))
    palette = both.quantize(_COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    frames = [sheet.quantize(palette=palette, dither=Image.Dither.NONE) for sheet in sheets]
    data = io.BytesIO()
    frames[0].save(
        data,
        "GIF",
        save_all=True,
        append_images=frames[1:],
        duration=[_SHOWN] * (len(frames) - 1) + [_HELD],
        loop=0,
        optimize=True,  # only what has changed is written
    )
    return data.getvalue()
