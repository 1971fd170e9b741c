"""The command `mgsd plan`."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.files import write_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mgsd_core.runtime.planner import Response


def register_plan(commands: Any) -> None:
    """Add `plan` to the parser of `mgsd`."""
    parser = commands.add_parser(
        "plan",
        help="plan from picture files",
        description="Plan from every picture and print one JSON line for each: image, actions, "
        "path, state, verdict, text and timings [s]. Exit status 0: every picture got a plan that "
        "is legal in the state the model recovered; 1: some did not; 2: bad input.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "images", type=Path, nargs="+", metavar="IMAGE", help="picture file, or a directory of them"
    )
    add(
        "--bundle",
        type=Path,
        help="what `mgsd export` wrote (default: the model that comes with the package)",
    )
    add("--family", default="frozenlake", help="family to plan for")
    add("--backend", default="auto", help="what runs the bundle: auto or onnxruntime-cpu")
    add("--threads", type=int, help="CPU threads [count]; default: one for a small model, else all")
    add("--draw", type=Path, metavar="DIR", help="also write the pictures with their plans drawn")
    parser.set_defaults(run=_plan)


def _plan(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from mgsd_core.runtime.images import find_images, read_image
    from mgsd_core.runtime.planner import Planner, response_to_dict

    paths = find_images(args.images)
    planner = Planner.load(args.bundle, args.backend, args.family, args.threads)
    if args.draw is not None:
        args.draw.mkdir(parents=True, exist_ok=True)
    all_legal = True
    for i, path in enumerate(tqdm(paths, "plan", unit="picture", disable=None)):
        rgb = read_image(path)
        response = planner.plan(rgb)
        print(json.dumps({"image": str(path), **response_to_dict(response)}), flush=True)
        all_legal &= response.verdict.legal
        if args.draw is not None:
            # Pictures of several directories may share a name.
            _write_png(args.draw / f"{i:04d}_{path.stem}.png", _drawn(rgb, response))
    return 0 if all_legal else 1


def _drawn(rgb: NDArray[np.uint8], response: Response) -> NDArray[np.uint8]:
    from sim.drawing import canonical_cell_to_pixel, draw_plan

    height, width = rgb.shape[:2]
    size = 1 if response.state is None else response.state.size
    if response.plan is None:
        caption = response.verdict.failure or ""
    else:
        caption = " ".join(map(str, response.plan))
        if response.verdict.failure is not None:
            caption += f" – {response.verdict.failure}"
    return draw_plan(
        rgb,
        response.verdict.path,
        canonical_cell_to_pixel(size, height, width),
        response.plan or (),
        caption,
    )


def _write_png(path: Path, rgb: NDArray[np.uint8]) -> None:
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(rgb).save(data, "PNG")
    write_file(path, data.getbuffer())
