"""The commands `mgsd generate` and, from modules of their own, `generate-scan` and `cases`."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from sim.commands_cases import register as register_cases
from sim.commands_scan import register as register_scan


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `generate`, `generate-scan` and `cases` to the program `mgsd`."""
    register_scan(subparsers)
    register_cases(subparsers)
    parser = subparsers.add_parser(
        "generate",
        help="draw scenes and write them with their truth as a data set",
        description="Draw scenes of random solvable states and write pictures, states, optimal "
        "plans and cameras to Parquet shards. The bytes follow from the arguments alone, not from "
        "the number of workers, parts or machines. A run that was interrupted goes on where it "
        "stopped.",
    )
    add = parser.add_argument
    add(
        "--family",
        default="all",
        help="frozenlake, maze, minibehaviour, all of these, or one of your own",
    )
    add("--level", default="all", help="grid side [cells]: 3, a range such as 3-5, or all")
    add("--count", type=int, default=500, help="episodes of each family and level")
    add("--split", default="train", help="train, validation or test; they share no state or style")
    add("--seed", type=int, default=0, help="first seed; episode i has seed + i")
    add("--size", type=int, default=128, help="side of the square pictures [px], 32 to 2048")
    add(
        "--renderer",
        default="panda",
        help="what draws: panda (no display, no GPU), habitat, or flat (boards with icons, seen "
        "from straight above, as in public benchmarks)",
    )
    add(
        "--styles",
        default="varied",
        help="how much the pictures differ: plain (not at all), overhead (a fixed camera above) or "
        "varied (any camera, light, texture and clutter)",
    )
    add(
        "--exclude",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="benchmark cases (see `mgsd cases`) whose states are kept out of the splits train and "
        "validation; may be given several times",
    )
    add("--workers", type=int, default=1, help="processes that draw")
    add(
        "--shard",
        default="0/1",
        metavar="i/n",
        help="write only the i-th of n parts, 0 <= i < n, e.g. in a job array; all n may write to "
        "one directory at the same time",
    )
    add(
        "--ray",
        default="",
        metavar="ADDRESS",
        help="draw on a Ray cluster, HOST:PORT, which sends its files back to be written here "
        "(needs the extra `ray` and no shared file system); or `local`: on one that is there while "
        "the command runs, with --workers processes",
    )
    add(
        "--preview",
        type=int,
        default=0,
        metavar="N",
        help="before all else draw N episodes with captions to preview.png in the directory",
    )
    add(
        "--out",
        type=Path,
        required=True,
        default=argparse.SUPPRESS,
        help="directory of the data set",
    )
    parser.set_defaults(run=run_generate)


def run_generate(args: argparse.Namespace) -> int:
    """Write the data set and print a JSON summary."""
    from tqdm import tqdm

    from sim.cases import excluded_states
    from sim.dataset import plan_shards, write_dataset
    from sim.request import DatasetRequest, parse_families, parse_levels, parse_part

    part = parse_part(args.shard)
    request = DatasetRequest(
        parse_levels(args.level, parse_families(args.family)),
        args.split,
        args.seed,
        args.count,
        args.size,
        args.renderer,
        args.styles,
        excluded_states(args.exclude),
    )
    total = sum(shard.count for shard in plan_shards(request, part))
    began = time.monotonic()
    with tqdm(total=total, unit=" episodes", desc="generate", disable=None) as bar:
        summary = write_dataset(
            args.out,
            request,
            workers=args.workers,
            progress=bar.update,
            part=part,
            ray=args.ray,
            preview=args.preview,
        )
    seconds = time.monotonic() - began
    rate = {"seconds": round(seconds, 3), "episodes_per_s": round(summary["written"] / seconds, 1)}
    print(json.dumps({"out": str(args.out)} | summary | rate))
    return 0
