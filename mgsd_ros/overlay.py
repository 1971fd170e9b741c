"""The picture that a plan was made from, with the plan drawn on it. Imports no ROS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sim import find_family
from sim.drawing import canonical_cell_to_pixel, draw_plan

# People look at it, perhaps over a radio link; larger pictures are shrunk.
_MAX_SIDE = 960

# A picture that is narrower than this share of its length is widened: enlarged until its short side
# can be seen, a line of pixels would fill gigabytes.
_NARROWEST = 1 / 8


def draw_answer(rgb: NDArray[np.uint8], answer: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Return a picture with an answer's route, its actions and what is wrong with it.

    Args:
        rgb: uint8 [H, W, 3], the grid seen from straight above as the model was trained to see it.
        answer: see `mgsd_ros.answers`.

    Returns:
        uint8 [H', W', 3].
    """
    longest = max(rgb.shape[:2])
    scale = min(1.0, _MAX_SIDE / longest)
    height, width = (round(scale * max(side, _NARROWEST * longest)) for side in rgb.shape[:2])
    if (height, width) != rgb.shape[:2]:
        picture = Image.fromarray(np.ascontiguousarray(rgb))
        rgb = np.asarray(picture.resize((width, height), Image.Resampling.BOX))
    state, words = answer["state"], answer["actions"] or []
    actions = {action.value: action for action in find_family(answer["family"]).actions}
    caption = " ".join(words)
    if answer["repaired"]:
        caption += " (repaired)"
    if answer["error"] is not None:
        caption = f"{caption} – {answer['error']}" if caption else answer["error"]
    cells = 1 if state is None else state["size"]
    return draw_plan(
        np.ascontiguousarray(rgb),
        [(row, column) for row, column in answer["path"]],
        canonical_cell_to_pixel(cells, *rgb.shape[:2]),
        [actions[word] for word in words if word in actions],
        caption,
    )
