"""The command `mgsd closed-loop`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

from sim.files import write_file


def register_loop(subparsers: argparse._SubParsersAction) -> None:
    """Add `closed-loop` to the parser of `mgsd`."""
    parser = subparsers.add_parser(
        "closed-loop",
        help="let a planner node drive a robot in simulation: see, plan, one action, see again",
        description="Carry out held-out scenes in simulation. The camera's picture goes to a "
        "planner node, a process of its own, over DDS; the first action of the plan that it "
        "publishes is carried out, and the next picture is drawn, until the task is done, an "
        "action is illegal, a plan is not to be followed, or there were more than 3 times as many "
        "actions as needed, and 10. In minibehaviour the plan that picks is carried out to its end "
        "without looking again, since no state says that the robot carries something. Writes "
        "episodes.jsonl (a line for each scene), results.json and, with --gif, loop.gif. Needs "
        "rclpy.",
    )
    add = parser.add_argument
    add(
        "--family",
        default="all",
        help="frozenlake, maze, minibehaviour, all of these, or one of your own",
    )
    add(
        "--level",
        help="grid side [cells]: 3, a range such as 3-5, or all; default: what the model that "
        "comes with the package has learned",
    )
    add("--count", type=int, default=10, help="scenes of each family and level")
    add("--seed", type=int, default=0, help="of the first scene; scene i has seed + i")
    add("--split", default="test", help="train, validation or test")
    add("--styles", default="overhead", help="how the scenes differ: plain, overhead or varied")
    add("--size", type=int, default=256, help="side of the pictures [px], 32 to 2048")
    add("--renderer", default="panda", help="what draws: panda, habitat or flat")
    add(
        "--bundle",
        type=Path,
        help="what the node plans with (default: the model that comes with the package)",
    )
    add(
        "--repair",
        action="store_true",
        help="let the node publish a shortest plan in the state that the model recovered where the "
        "model's own fails there (parameter `repair`)",
    )
    add(
        "--keep-plan",
        action="store_true",
        help="follow a new plan only where the one at hand fails in the state that the model sees "
        "in the new picture",
    )
    add(
        "--slip",
        type=float,
        default=0.0,
        help="share of the actions that come to nothing, as when wheels slip, 0 to 1",
    )
    add(
        "--node",
        metavar="NAME",
        help="full name of a running node to use, such as /planner, with the ROS environment that "
        "there is; default: start one of its own, which nobody else meets",
    )
    add(
        "--image",
        dest="image_topic",
        default="/image_raw",
        metavar="TOPIC",
        help="where a running node expects pictures",
    )
    add("--gif", type=int, default=0, metavar="N", help="film N scenes, spread over all [count]")
    add(
        "--out",
        type=Path,
        required=True,
        default=argparse.SUPPRESS,
        help="directory of the results",
    )
    parser.set_defaults(run=run_closed_loop)


def run_closed_loop(args: argparse.Namespace) -> int:
    """Carry out the scenes, write the files, and print a table for people."""
    from tqdm import tqdm

    from mgsd_ros.bag_places import check_directory
    from mgsd_ros.closed_loop import Moment, Run
    from mgsd_ros.film import Reel, encode_film
    from mgsd_ros.loop_report import report, run_dict, table
    from mgsd_ros.loop_scenes import Scene, Settings, carry_out_scenes, check_planner
    from sim.execution import Execution
    from sim.request import DatasetRequest

    names = [field.name for field in fields(Settings)]
    settings = Settings(**{name: getattr(args, name) for name in names})
    tasks = _tasks(args.family, args.level)
    # The scenes are those that a data set of these arguments has.
    DatasetRequest(tasks, args.split, args.seed, args.count, args.size, args.renderer, args.styles)
    scenes = [Scene(*task, args.seed + i) for task in tasks for i in range(args.count)]
    if not 0 <= args.gif <= len(scenes):
        raise ValueError(f"--gif must be 0 to {len(scenes)}, the scenes, not {args.gif}")
    check_directory(args.out)
    check_planner(settings, list(dict.fromkeys(scene.family for scene in scenes)))
    filmed = {scenes[i * len(scenes) // args.gif] for i in range(args.gif)}
    args.out.mkdir(parents=True, exist_ok=True)
    reels: list[Reel] = []

    def watch(scene: Scene, execution: Execution) -> Callable[[Moment], None] | None:
        if scene not in filmed:
            return None
        reels.append(Reel(f"{scene.family} {scene.level} x {scene.level}", execution.grid))
        return reels[-1].add

    runs: list[tuple[Scene, Run]] = []
    carried_out = carry_out_scenes(scenes, settings, watch)
    for run in tqdm(carried_out, total=len(scenes), desc="closed-loop", unit="scene", disable=None):
        runs.append((scenes[len(runs)], run))
    results = {
        "schema_version": 1,
        "settings": {name: getattr(args, name) for name in ("seed", "count", *names)},
        **report([(scene.family, scene.level, run) for scene, run in runs]),
    }
    lines = [json.dumps(asdict(scene) | run_dict(run)) + "\n" for scene, run in runs]
    (args.out / "loop.gif").unlink(missing_ok=True)  # of an earlier run
    write_file(args.out / "episodes.jsonl", "".join(lines))
    write_file(args.out / "results.json", json.dumps(results, indent=1, default=str) + "\n")
    # Last: a film that is too long takes no result with it.
    if reels:
        write_file(args.out / "loop.gif", encode_film(reels))
    print(table(results))
    waits = results["seconds_per_plan"]
    print(
        f"{results['actions']} actions, {results['open_loop_steps']} of them after PICK without "
        f"looking again; from picture to plan {1e3 * waits['median']:.0f} ms (median)"
    )
    files = ["episodes.jsonl", "results.json", *(["loop.gif"] if reels else [])]
    print(f"written to {args.out}: {', '.join(files)}")
    return 0


def _tasks(families: str, levels: str | None) -> list[tuple[str, int]]:
    """Return families with levels; without `levels` those that the shipped model has learned."""
    from mgsd_core.installed import SHIPPED_LEVELS
    from sim.request import parse_families, parse_levels

    names = parse_families(families)
    if levels is not None:
        return parse_levels(levels, names)
    return [
        task for name in names for task in parse_levels(SHIPPED_LEVELS.get(name, "all"), [name])
    ]
