"""The command `mgsd generate-scan`."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

#: Height above the floor at which a view is cut unless another is asked for [m]: from above as in
#: an architect's plan; from the side so low that a wall hides no cell behind it.
CUT_HEIGHTS = {"top": 1.5, "oblique": 0.3}

_PROJECTIONS = {"top": "pinhole", "oblique": "orthographic"}


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `generate-scan` to the program `mgsd`."""
    parser = subparsers.add_parser(
        "generate-scan",
        help="cut tasks from a 3D scan and write them with their truth as a data set",
        description="Turn any scene that Habitat-Sim loads into tasks: its navigation mesh becomes "
        "a grid, square windows of the grid become mazes or lakes, robot and goal are put into the "
        "scan. The bytes follow from the arguments and the scan alone, not from the number of "
        "workers. A run that was interrupted goes on where it stopped. See docs/scans.md.",
    )
    add = parser.add_argument
    add(
        "--scene",
        required=True,
        default=argparse.SUPPRESS,
        help="a scan: a .glb or .ply file or a .stage_config.json, with a .navmesh beside it or "
        "without; with --dataset the name of a scene there",
    )
    add("--dataset", default="", help="a .scene_dataset_config.json that has the scene")
    add("--family", default="maze", help="maze, or frozenlake (what is not free is a hole)")
    add("--level", type=int, default=6, help="side of a task's grid [cells], 2 to 64")
    add("--count", type=int, default=500, help="episodes")
    add("--split", default="train", help="train, validation or test; they share no state or style")
    add("--seed", type=int, default=0, help="first seed; episode i has seed + i")
    add("--size", type=int, default=256, help="side of the square pictures [px], 32 to 2048")
    add("--cell-size", type=float, default=0.5, help="side of a cell [m], 0.1 to 5")
    add("--view", default="top", help="top (straight down) or oblique")
    add("--tilt", type=float, default=35.0, help="of an oblique view from straight down [degrees]")
    add(
        "--projection",
        default=None,
        help="pinhole or orthographic; default: pinhole from the top; oblique views are "
        "orthographic",
    )
    add(
        "--cut-height",
        type=float,
        default=None,
        help="what is higher above the floor is not drawn [m]; default: "
        + ", ".join(f"{height:g} {view}" for view, height in CUT_HEIGHTS.items()),
    )
    add(
        "--floor-height",
        type=float,
        default=None,
        help="a height near the floor of the storey to take [m]; default: the one with most room",
    )
    add("--agent-radius", type=float, default=0.1, help="of the robot, for the navigation mesh [m]")
    add("--agent-height", type=float, default=1.5, help="of the robot, for the navigation mesh [m]")
    add(
        "--recompute-navmesh",
        action="store_true",
        help="compute a navigation mesh even where the scan comes with one",
    )
    add(
        "--styles",
        default="varied",
        help="how much robot, goal and photos differ: plain, overhead or varied",
    )
    add("--workers", type=int, default=1, help="processes that draw, each with the whole scan")
    add(
        "--out",
        type=Path,
        required=True,
        default=argparse.SUPPRESS,
        help="directory of the data set",
    )
    parser.set_defaults(run=run_generate_scan)


def run_generate_scan(args: argparse.Namespace) -> int:
    """Write the data set and print a JSON summary."""
    from tqdm import tqdm

    from sim.scan_dataset import write_scan
    from sim.scan_request import ScanRequest

    cut_height = CUT_HEIGHTS.get(args.view) if args.cut_height is None else args.cut_height
    request = ScanRequest(
        scene=args.scene,
        dataset=args.dataset,
        family=args.family,
        level=args.level,
        split=args.split,
        seed=args.seed,
        count=args.count,
        size=args.size,
        styles=args.styles,
        view=args.view,
        tilt=args.tilt,
        projection=args.projection or _PROJECTIONS.get(args.view, "pinhole"),
        cut_height=1.5 if cut_height is None else cut_height,
        cell_size=args.cell_size,
        floor=args.floor_height,
        agent_radius=args.agent_radius,
        agent_height=args.agent_height,
        recompute=args.recompute_navmesh,
    )
    began = time.monotonic()
    with tqdm(total=args.count, unit=" episodes", desc="generate-scan", disable=None) as bar:
        summary = write_scan(args.out, request, args.workers, bar.update)
    seconds = time.monotonic() - began
    rate = {"seconds": round(seconds, 3), "episodes_per_s": round(summary["written"] / seconds, 1)}
    print(json.dumps({"out": str(args.out)} | summary | rate))
    return 0
