"""Episodes: pictures with their truth, as they are drawn and as they stand in a data set's rows."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sim.actions import Plan, format_plan, parse_plan
from sim.camera import Camera
from sim.grid import Grid
from sim.pictures import PictureError, decode_picture
from sim.planning import solve
from sim.png import encode_png
from sim.readback import check_state
from sim.renderers import Renderer
from sim.sampling import SPLITS, check_split, sample_split
from sim.scene import grid_of
from sim.states import State, state_from_dict, state_to_dict
from sim.style import check_styles

COLUMNS = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("state", pa.string()),
        ("plan", pa.string()),
        ("camera", pa.string()),
        ("grid", pa.string()),
        ("family", pa.string()),
        ("level", pa.int64()),
        ("split", pa.string()),
        ("seed", pa.int64()),
        ("styles", pa.string()),
        ("style", pa.int64()),
        ("renderer", pa.string()),
    ]
)

_AS_IN_ROW = ("family", "level", "split", "seed", "styles", "style", "renderer")


class DatasetError(ValueError):
    """A data set that cannot be read or written; the message names the file and what is wrong."""


@dataclass(frozen=True, slots=True, eq=False)
class Episode:
    """One picture with its truth.

    Attributes:
        image: uint8 [height, width, 3].
        camera: that took it.
        grid: where the cells are, in the world and in the picture.
        state: as read back from the renderer's world.
        plan: the optimal plan of `state`.
        seed: from which the state was sampled.
        styles: the set that the style belongs to, one of `sim.style.STYLES`.
        style: the seed of the scene's style.
        renderer: name of the renderer.
        family, level, split: what was asked for.
    """

    image: NDArray[np.uint8]
    camera: Camera
    grid: Grid
    state: State
    plan: Plan
    seed: int
    styles: str
    style: int
    renderer: str
    family: str
    level: int
    split: str


def style_seed(family: str, level: int, split: str, seed: int) -> int:
    """Return the style of an episode, 0 to 2⁶³ - 1. No two splits share one."""
    text = f"style/{split}/{family}/{level}/{seed}"
    drawn = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    # The remainder names the split, so a style belongs to one split for certain.
    return (drawn // len(SPLITS) - 1) * len(SPLITS) + SPLITS.index(split)


def draw_episode(
    drawer: Renderer,
    family: str,
    level: int,
    split: str,
    seed: int,
    size: int,
    styles: str,
    exclude: Collection[str] = (),
) -> Episode:
    """Return the episode of a seed with a picture of `size` × `size` px.

    `exclude` holds the digests of states that it must not have.

    Raises:
        sim.readback.ReadbackError: the renderer's world does not hold the state it was built from.
    """
    style = style_seed(family, level, split, seed)
    meant = sample_split(family, level, split, seed, exclude)
    scene = drawer.build(meant, style, size, styles)
    state = check_state(drawer.read_state(scene), meant)
    plan = solve(state)
    assert plan is not None, "sampled states have a plan"
    image = drawer.render(scene).rgb
    return Episode(
        image=image,
        camera=scene.camera,
        grid=grid_of(scene),
        state=state,
        plan=plan,
        seed=seed,
        styles=styles,
        style=style,
        renderer=drawer.name,
        family=family,
        level=level,
        split=split,
    )


def episode_to_row(episode: Episode) -> dict[str, Any]:
    """Return an episode as a row of a shard: JSON texts and a PNG."""
    return {
        "image": {"bytes": encode_png(episode.image), "path": None},
        "state": json.dumps(state_to_dict(episode.state)),
        "plan": format_plan(episode.plan),
        "camera": json.dumps(episode.camera.to_dict()),
        "grid": json.dumps(episode.grid.to_dict()),
    } | {name: getattr(episode, name) for name in _AS_IN_ROW}


def row_to_episode(row: dict[str, Any], where: str) -> Episode:
    """Return the episode in a row; `where` names the row in errors (DatasetError)."""
    if None in row.values():
        raise DatasetError(f"{where}: a value is missing")
    try:
        state = state_from_dict(json.loads(row["state"]))
        camera = Camera.from_dict(json.loads(row["camera"]))
        grid = Grid.from_dict(json.loads(row["grid"]))
        plan = parse_plan(row["plan"], state.family)
        check_split(row["split"])
        check_styles(row["styles"])
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where}: {str(error)[:200]}") from error
    if (row["family"], row["level"]) != (state.family, state.size):
        raise DatasetError(
            f"{where}: family and level are not those of its state, {state.family} {state.size}"
        )
    if grid.size != state.size:
        raise DatasetError(f"{where}: its grid has side {grid.size}, its state {state.size}")
    image = _decoded(row["image"]["bytes"], camera, where)
    rest = {name: row[name] for name in _AS_IN_ROW}
    return Episode(image, camera, grid, state, plan, **rest)


def _decoded(png: bytes | None, camera: Camera, where: str) -> NDArray[np.uint8]:
    def check_size(width: int, height: int) -> None:
        if (width, height) != (camera.width, camera.height):
            raise DatasetError(
                f"{where}: the image has {width} × {height} px, "
                f"its camera {camera.width} × {camera.height}"
            )

    try:
        return decode_picture(io.BytesIO(png or b""), ["PNG"], check_size)
    except PictureError as error:
        raise DatasetError(f"{where}: the image cannot be decoded ({error})") from error
