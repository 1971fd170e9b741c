"""The command `mgsd evaluate-bag`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

# Most reasons for frames without a good answer that are printed.
_MOST_ERRORS = 3


def register_evaluate(subparsers: argparse._SubParsersAction) -> None:
    """Add `evaluate-bag` to the parser of `mgsd`."""
    parser = subparsers.add_parser(
        "evaluate-bag",
        help="plan on the frames of a ROS 2 bag and judge the plans",
        description="Plan on the frames of a ROS 2 bag (sqlite3 or mcap) as the node would. Where "
        "the bag says what is true, plans are judged by it; and in any case by the state that the "
        "model itself recovered, and by how steady they are from frame to frame. Writes "
        "frames.jsonl, summary.json and timings.json, and report.html to look at. Of a bag that is "
        "damaged or cut off what comes before is evaluated; the status is then 2. It is 1 when "
        "there is no plan for any frame. Needs no ROS.",
    )
    add = parser.add_argument
    add("--bag", type=Path, required=True, help="the bag, or one file of it")
    add(
        "--topic",
        default="/camera/image_raw",
        help="topic of the images (Image or CompressedImage)",
    )
    add(
        "--info-topic",
        help="topic of the CameraInfo, read where the parameters ask for it; a frame is seen by "
        "the newest before it; default: camera_info beside the topic of the images",
    )
    add("--typestore", default="ros2_jazzy", help="distribution of types that the bag lacks")
    add(
        "--truth-topic",
        default="/ground_truth/state",
        help='topic of what the images show (String, as `record-bag` writes it); "" reads none',
    )
    add("--params-file", type=Path, help="the node's parameters, as config/planner.yaml")
    add(
        "--node",
        metavar="NAME",
        help="full name of the node in the parameter file, such as /robot1/planner; default: the "
        "only one that is called planner",
    )
    add("--bundle", type=Path, help="directory; default: as the file says, else the shipped model")
    add("--family", help="family to plan for; default: as the file says, else frozenlake")
    add("--backend", help="engine to run the bundle on; default: as the file says, else auto")
    add(
        "--mode",
        choices=("every-frame", "latency-aware"),
        default="every-frame",
        help="latency-aware drops, by the times of receipt in the bag, the frames that the node "
        "would not get to while it plans, and those that its parameters pass over",
    )
    add(
        "--latency",
        type=float,
        help="how long a plan takes in latency-aware mode [s]; default: as long as it takes here",
    )
    add(
        "--plans-bag",
        type=Path,
        help="also write a bag with the images and all that the node would publish on /planner",
    )
    add("--storage", choices=("sqlite3", "mcap"), default="mcap", help="format of the plans bag")
    add("--overwrite", action="store_true", help="replace a plans bag that is there already")
    add("--out", type=Path, required=True, help="directory of the results")
    parser.set_defaults(run=run_evaluate_bag)


def run_evaluate_bag(args: argparse.Namespace) -> int:
    """Evaluate the bag and print a table for people; status 1 when there is not one plan."""
    from tqdm import tqdm

    from mgsd_ros.bag_evaluate import evaluate_bag
    from mgsd_ros.bag_parameters import read_parameter_file
    from mgsd_ros.bag_plans import PlansTo
    from mgsd_ros.bag_report import Thumbnails, write_report
    from mgsd_ros.bags import BagError, find_typestore
    from mgsd_ros.frame_answer import FrameAnswerer
    from mgsd_ros.parameters import PlannerParameters, changed

    if args.latency is not None and args.mode != "latency-aware":
        raise BagError("--latency is for --mode latency-aware")
    if args.latency is not None and not 0 <= args.latency <= 3600:
        raise BagError(f"latency must be from 0 to 3600 s, not {args.latency}")
    if args.node is not None and args.params_file is None:
        raise BagError("--node is for --params-file")
    typestore = find_typestore(args.typestore)
    named = {"bundle": args.bundle, "family": args.family, "backend": args.backend}
    given = {name: str(value) for name, value in named.items() if value is not None}
    if args.params_file is None:
        settings = changed(PlannerParameters(), given, is_configured=False)
    else:

        def warn(text: str) -> None:
            print(f"mgsd evaluate-bag: {text}", file=sys.stderr)

        settings = read_parameter_file(args.params_file, node=args.node, warn=warn, **given)
    plans = None
    if args.plans_bag is not None:
        plans = PlansTo(args.plans_bag, args.storage, args.overwrite)
    thumbnails = Thumbnails()
    with tqdm(unit="frame", desc="evaluate-bag", disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        summary = evaluate_bag(
            FrameAnswerer.load(settings),
            args.bag,
            args.topic,
            args.out,
            info_topic=args.info_topic,
            truth_topic=args.truth_topic,
            typestore=typestore,
            mode=args.mode,
            latency=args.latency,
            plans=plans,
            on_frame=thumbnails.add,
            progress=show,
        )
    write_report(args.out, thumbnails)
    _print_summary(args.bag.name, summary)
    print(f"written to {args.out}: frames.jsonl, summary.json, timings.json, report.html")
    if not summary["complete"]:
        raise BagError(
            f"{summary['problem']}; partial results of {summary['received']} frames are kept in "
            f"{args.out}"
        )
    return 0 if summary["frames"] > summary["unusable"] + summary["failed"] else 1


def _print_summary(name: str, summary: dict[str, Any]) -> None:
    from mgsd_core.evaluation.summary import in_percent, table

    if summary["count"]:
        print(table([(name, summary)]))
    dropped = {why: len(frames) for why, frames in summary["dropped"].items() if frames}
    passed_over = "".join(f", {count} {why}" for why, count in dropped.items())
    own, stable = summary["by_recovered_state"], summary["stability"]
    print(
        f"{summary['received']} frames{passed_over}; planned on {summary['frames']}, of which "
        f"{summary['unusable']} not usable, {summary['failed']} failed"
    )
    for error, count in summary["errors"][:_MOST_ERRORS]:
        print(f"{count:>6} x {error}")
    if summary["note"] is not None:
        print(f"about {name}: {summary['note']}")
    print(
        f"in the state that the model sees {in_percent(own['legal'])} legal, "
        f"{in_percent(own['success'])} successful"
    )
    if stable["pairs"]:
        print(
            f"of {stable['pairs']} steps to the next frame of the same scene "
            f"{in_percent(stable['state'])} keep the state, {in_percent(stable['plan'])} the plan"
        )
    if summary["ages"] is not None:
        for when, words in (("began", "when planning began"), ("came", "when the plan came")):
            print(f"age of frames {words}: {_milliseconds(summary['ages'][when])}")
    for stage, seconds in summary["stages"].items():
        print(f"{stage:>12}: {_milliseconds(seconds)}")


def _milliseconds(seconds: dict[str, float]) -> str:
    median, p95, most = (1e3 * seconds[name] for name in ("median", "p95", "max"))
    return f"median {median:.1f} ms, p95 {p95:.1f} ms, max {most:.1f} ms"
