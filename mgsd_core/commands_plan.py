"""The command `mgsd plan`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Generator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.files import write_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mgsd_core.runtime.planner import Response
    from mgsd_core.runtime.videos import Frame

    #: What a line says of a picture beside its plan, the name of its drawing, uint8 [H, W, 3].
    View = tuple[dict[str, Any], str, NDArray[np.uint8]]


def register_plan(commands: Any) -> None:
    """Add `plan` to the parser of `mgsd`."""
    parser = commands.add_parser(
        "plan",
        help="plan from pictures, videos or a camera",
        description="Plan from every picture, or every frame of a video or camera, and print one "
        "JSON line for each: image, for frames also frame (index from 0) and time (s since the "
        "first frame), then actions, path, state, verdict, repaired, confidence, text, tokens, "
        "passes and timings [s]. Of a camera always the newest frame is planned on; Ctrl-C ends "
        "it. Exit status 0: every picture got a plan that is legal in the state the model "
        "recovered; 1: some did not; 2: bad input.",
    )
    add = parser.add_argument
    add(
        "images",
        type=Path,
        nargs="*",
        metavar="IMAGE",
        help="picture file, directory of pictures, or video file (mp4, mov, mkv, webm, avi, ts, "
        "mpg, wmv, flv, ogv and the like; needs the extra `video`)",
    )
    add("--camera", type=int, metavar="INDEX", help="plan from the camera /dev/videoINDEX instead")
    add("--every", type=int, default=1, metavar="N", help="plan on every Nth frame of a video")
    add(
        "--count", type=int, metavar="N", help="stop after N planned frames of each video or camera"
    )
    add(
        "--add-margin",
        action="store_true",
        help="the pictures end where the grid ends: put the margin around them that drawn scenes "
        "have, and that models trained on them want",
    )
    add(
        "--bundle",
        type=Path,
        help="what `mgsd export` wrote (default: the model that comes with the package)",
    )
    add("--family", default="frozenlake", help="family to plan for")
    add(
        "--backend",
        default="auto",
        help="what runs the bundle: auto, tensorrt, tensorrt-rtx or onnxruntime-cpu; auto takes an "
        "engine of `mgsd build-engine` where there is one for the GPU here",
    )
    add("--threads", type=int, help="CPU threads [count]; default: one for a small model, else all")
    add(
        "--repair",
        action="store_true",
        help="where a plan fails in the state that the model recovered, give a shortest one there, "
        "marked as repaired",
    )
    add("--draw", type=Path, metavar="DIR", help="also write the pictures with their plans drawn")
    parser.set_defaults(run=_plan)


def _plan(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from mgsd_core.runtime.images import find_images
    from mgsd_core.runtime.planner import Planner, response_to_dict
    from mgsd_core.runtime.preprocess import with_margin
    from mgsd_core.runtime.videos import is_video
    from sim.png import encode_png

    live = args.camera is not None
    if live == bool(args.images):
        raise ValueError("name either pictures and videos, or a camera (--camera INDEX)")
    if args.every < 1 or (args.count is not None and args.count < 1):
        raise ValueError("--every and --count must be at least 1")
    if live and args.every > 1:
        raise ValueError("--every is for videos: of a camera always the newest frame is planned on")
    paths = find_images(args.images)
    planner = Planner.load(args.bundle, args.backend, args.family, args.threads, repair=args.repair)
    if args.draw is not None:
        args.draw.mkdir(parents=True, exist_ok=True)
    total = None if live or any(map(is_video, paths)) else len(paths)
    all_legal = True
    with closing(_camera_views(args) if live else _file_views(args, paths)) as views:
        try:
            for said, name, rgb in tqdm(views, "plan", total, unit="picture", disable=None):
                if args.add_margin:
                    rgb = with_margin(rgb)
                response = planner.plan(rgb)
                print(json.dumps({**said, **response_to_dict(response)}), flush=True)
                all_legal &= response.verdict.legal
                if args.draw is not None:
                    write_file(args.draw / f"{name}.png", encode_png(_drawn(rgb, response)))
        except KeyboardInterrupt:
            if not live:
                raise
    return 0 if all_legal else 1


def _file_views(args: argparse.Namespace, paths: list[Path]) -> Generator[View, None, None]:
    from mgsd_core.runtime.images import read_image
    from mgsd_core.runtime.videos import is_video, read_video

    for i, path in enumerate(paths):
        # Files of several directories may share a name.
        name = f"{i:04d}_{path.stem}"
        if is_video(path):
            for frame in islice(read_video(path, args.every), args.count):
                yield _frame_view(str(path), name, frame)
        else:
            yield {"image": str(path)}, name, read_image(path)


def _camera_views(args: argparse.Namespace) -> Generator[View, None, None]:
    from mgsd_core.runtime.videos import read_camera

    with closing(read_camera(args.camera)) as frames:
        for frame in islice(frames, args.count):
            yield _frame_view(f"camera {args.camera}", f"camera{args.camera}", frame)


def _frame_view(image: str, name: str, frame: Frame) -> View:
    said = {"image": image, "frame": frame.index, "time": frame.time}
    return said, f"{name}_{frame.index:08d}", frame.rgb


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
