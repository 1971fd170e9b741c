"""The commands `mgsd record-bag` and `play-bag`; others are in modules of their own."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sim.dataset import Episode

_IMAGE_TOPIC = "/camera/image_raw"


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add this package's commands to the program `mgsd`."""
    from mgsd_ros.commands_evaluate import register_evaluate
    from mgsd_ros.commands_loop import register_loop
    from mgsd_ros.demo import register_demo

    _register_record(subparsers)
    register_evaluate(subparsers)
    _register_play(subparsers)
    register_loop(subparsers)
    register_demo(subparsers)


def _register_record(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "record-bag",
        help="write rendered frames and their true states to a ROS 2 bag",
        description="Write a ROS 2 bag of frames that the simulator drew, as a camera would have "
        f"seen them: {_IMAGE_TOPIC} (or {_IMAGE_TOPIC}/compressed), /camera/camera_info and the "
        "truth of every frame on /ground_truth/state. The frames come from a data set, or are "
        "drawn on the spot. Needs no ROS.",
    )
    add = parser.add_argument
    add("--data", type=Path, help="data set of `mgsd generate`; default: draw the frames now")
    add("--family", help="family of the frames; default with --data: all")
    add("--level", type=int, help="grid side [cells]; default with --data: all")
    add("--count", type=int, help="frames; default with --data: all, else 30")
    add("--split", default="test", help="train, validation or test")
    add("--seed", type=int, default=0, help="first seed of frames drawn now")
    add("--size", type=int, default=128, help="side of frames drawn now [px]")
    add("--styles", default="varied", help="of frames drawn now: plain, overhead or varied")
    add("--rate", type=float, default=10.0, help="frames a second [Hz]")
    add(
        "--compressed",
        choices=("jpeg", "png"),
        help=f"write sensor_msgs/CompressedImage on {_IMAGE_TOPIC}/compressed instead of Image",
    )
    add("--storage", choices=("sqlite3", "mcap"), default="mcap", help="format of the bag")
    add("--out", type=Path, required=True, help="the bag, a directory that does not exist yet")
    add("--overwrite", action="store_true", help="replace a bag that is there already")
    parser.set_defaults(run=run_record_bag)


def run_record_bag(args: argparse.Namespace) -> int:
    """Write the bag and print a JSON summary."""
    from tqdm import tqdm

    from mgsd_ros.bag_record import write_episodes
    from mgsd_ros.bags import BagError

    if not (math.isfinite(args.rate) and 0 < args.rate <= 1000):
        raise BagError(f"rate must be above 0 and at most 1000 Hz, not {args.rate}")
    if args.count is not None and args.count < 1:
        raise BagError(f"count must be at least 1, not {args.count}")
    if args.data is None and (args.family is None or args.level is None):
        raise BagError("give --data, or --family and --level of the frames to draw")
    frames = 0
    episodes = write_episodes(
        args.out, _episodes(args), args.rate, args.storage, args.overwrite, args.compressed
    )
    with tqdm(total=args.count, unit="frame", desc="record-bag", disable=None) as bar:
        for _ in episodes:
            frames += 1
            bar.update()
    print(json.dumps({"out": str(args.out), "frames": frames, "storage": args.storage}))
    return 0


def _episodes(args: argparse.Namespace) -> Iterator[Episode]:
    from mgsd_core.folder import is_folder
    from mgsd_ros.bags import BagError
    from sim.dataset import generate_episodes, iter_episodes

    if args.data is not None:
        if is_folder(args.data):
            raise BagError(f"{args.data} lists pictures; bags are made of what generate wrote")
        return iter_episodes(args.data, args.split, args.family, args.level, args.count)
    count = 30 if args.count is None else args.count
    return generate_episodes(
        args.family, args.level, args.split, args.seed, count, args.size, styles=args.styles
    )


def _register_play(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "play-bag",
        help="send a bag's frames to a running planner node and collect its plans",
        description="Publish the frames of a ROS 2 bag, wait for the plan that the node makes of "
        "each, and write the answers as JSON lines. Needs rclpy and a running node.",
    )
    add = parser.add_argument
    add("--bag", type=Path, required=True, help="the bag")
    add("--topic", default=_IMAGE_TOPIC, help="topic of the images in the bag")
    add("--typestore", default="ros2_jazzy", help="distribution of types that the bag lacks")
    add(
        "--image",
        default="/image_raw",
        help="topic to publish the images on; compressed ones go to IMAGE/compressed",
    )
    add("--node", default="/planner", help="full name of the node")
    add("--rate", type=float, default=10.0, help="most frames a second [Hz]")
    add("--timeout", type=float, default=10.0, help="longest wait for a plan [s]")
    add("--out", type=Path, required=True, help="file of the answers (JSON lines)")
    parser.set_defaults(run=run_play_bag)


def run_play_bag(args: argparse.Namespace) -> int:
    """Play the bag and write the answers; status 1 when a frame got none."""
    import rclpy
    from tqdm import tqdm

    from mgsd_ros.bag_places import check_directory
    from mgsd_ros.bag_play import play_frames
    from mgsd_ros.bags import (
        COMPRESSED_TYPE,
        BagError,
        count_frames,
        find_typestore,
        image_type,
        open_bag,
        read_frames,
    )
    from sim.files import write_file

    for name in ("rate", "timeout"):
        value = getattr(args, name)
        if not (math.isfinite(value) and value > 0):
            raise BagError(f"{name} must be above 0, not {value}")
    check_directory(args.out.parent)
    lines, answered = [], 0
    with open_bag(args.bag, find_typestore(args.typestore)) as reader:
        compressed = image_type(reader, args.topic) == COMPRESSED_TYPE
        total = count_frames(reader, args.topic)
        frames = read_frames(reader, args.topic)
        rclpy.init(args=[])
        try:
            played = play_frames(frames, compressed, args.image, args.node, args.rate, args.timeout)
            for frame, back in tqdm(played, total=total, unit="frame", disable=None):
                lines.append(
                    frame.header.to_dict() | {"played": None if back is None else asdict(back)}
                )
                answered += back is not None
        finally:
            rclpy.try_shutdown()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_file(args.out, "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines))
    print(json.dumps({"frames": len(lines), "answered": answered, "out": str(args.out)}))
    return 0 if answered == len(lines) else 1
