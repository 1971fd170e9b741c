"""`mgsd demo`: the whole way, from a rendered scene to a plan that a ROS 2 node publishes.

First the model that comes with the package plans; then a small one is trained from nothing. In the
end the first drives in closed loop.
Every step is a command that a user can type; it is printed before it runs. Steps write what they
make under one directory and go on from there when the demo is started again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgsd_core.installed import SHIPPED_LEVELS, shipped_bundle
from mgsd_core.steps import run_step
from mgsd_ros.node_process import own_environment, planner_node
from sim import FAMILIES, LEVELS, Action, Cell, Plan, simulate
from sim.files import write_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sim.dataset import Episode

#: Side of the pictures [px].
SIZE = 128

#: What may differ between them: a camera fixed above a work area is what a million parameters learn
#: to read in a quarter of an hour.
STYLES = "overhead"

#: Points of macro success that MGSD must gain over the base for exit status 0.
REQUIRED_GAIN = 0.60

_SHIPPED_COUNT = 20

_READY_TIMEOUT = 60.0


def register_demo(commands: Any) -> None:
    """Add `demo` to the parser of `mgsd`."""
    parser = commands.add_parser(
        "demo",
        help="everything once: scenes, both stages, table, export, bag, ROS 2 node, pictures",
        description="Lets the model that comes with the package plan held-out scenes of all "
        "families. Then generates scenes, trains all stages of nano, compares base, stage 1, MGSD "
        "and the symbolic upper bound on held-out scenes, exports, records bags and plans their "
        "frames in a real ROS 2 node. In the end the first model drives in simulation, in closed "
        "loop over ROS 2. Status 1 when MGSD gains less than "
        f"{100 * REQUIRED_GAIN:.0f} points over the base.",
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/demo"), help="directory of everything it makes")
    add("--seed", type=int, default=0, help="of scenes, weights and order")
    add("--config", default="nano", help="training configuration: a name, or a .yaml file")
    add(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change one setting of the training; may be given again",
    )
    add(
        "--families",
        nargs="+",
        default=["frozenlake", "maze"],
        choices=FAMILIES,
        help="families to learn, each at its smallest level",
    )
    add("--scenes", type=int, default=2400, help="training scenes of each family [count]")
    add("--held-out", type=int, default=200, help="test scenes of each family [count]")
    add("--frames", type=int, default=20, help="frames of each family through the node [count]")
    parser.set_defaults(run=run_demo)


def run_demo(args: argparse.Namespace) -> int:
    """Run every step and write `results.json`; see the module."""
    if min(args.scenes, args.held_out, args.frames) < 1:
        raise ValueError("--scenes, --held-out and --frames must be at least 1")
    began = time.monotonic()
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    tasks = [(family, LEVELS[family][0]) for family in args.families]
    data, run, bundle = out / "data", out / "train", out / "bundle"

    _title(1, "The model that comes with the package, on held-out scenes of all families")
    shipped = _plan_with_shipped(out / "shipped", args.seed)

    _title(2, "Scenes in simulation, each with the state read back from it")
    counts = {"train": args.scenes, "validation": 40, "test": args.held_out}
    for split, count in counts.items():
        for family, level in tasks:
            run_step(
                "generate", "--family", family, "--level", level, "--count", count,
                "--split", split, "--seed", args.seed, "--size", SIZE, "--styles", STYLES,
                "--workers", _workers(), "--out", data,
            )  # fmt: skip

    training = ["--config", args.config, "--data", data, "--out", run]
    for setting in (*(f"{s}.seed={args.seed}" for s in _SEEDED), *args.set):
        training += ["--set", setting]
    _title(3, "Stage 0 (nano plans from text: the base) and stage 1 (what is in the picture?)")
    run_step("coldstart", *training)
    base, stage1, stage2 = (run / name / "model" for name in ("base", "stage1", "stage2"))
    _title(4, "Stage 2: the frozen base, reading symbols, corrects the student's own answers")
    run_step("distill", *training, "--student", stage1, "--teacher", base)

    _title(5, "Held-out scenes: base, stage 1, MGSD, and the base reading the true state")
    models = {"base": base, "stage 1": stage1, "MGSD": stage2}
    judged = {name: out / "evaluation" / name.replace(" ", "") for name in models}
    results = {}
    for name, model in models.items():
        run_step("evaluate", "--model", model, "--data", data, "--out", judged[name])
        results[name] = json.loads((judged[name] / "results.json").read_text())
    page = out / "report.html"
    run_step("report", judged["MGSD"], "--compare", judged["base"], "--out", page)
    results["symbolic upper bound"] = results["base"]["symbolic"]
    _print_table(results)

    _title(6, "Export: two ONNX graphs, checked against transformers on golden pictures")
    run_step("export", "--model", stage2, "--data", data, "--out", bundle, "--overwrite")

    _title(7, "Held-out frames in a bag, through a real ROS 2 node in a process of its own")
    frames = min(args.frames, args.held_out)
    played = {f: _through_ros(out, data, bundle, f, frames) for f in args.families}

    _title(8, "Pictures")
    pictures = _draw(data, out, played)

    _title(9, "Closed loop: the shipped model drives in simulation, over ROS 2, a plan a step")
    closed_loop = _close_loop(out, args.seed)

    gain = results["MGSD"]["macro"]["success"] - results["base"]["macro"]["success"]
    report = {
        "schema_version": 1,
        "seed": args.seed,
        "tasks": [list(task) for task in tasks],
        "scenes": counts,
        "seconds": round(time.monotonic() - began, 1),
        "gain": gain,
        "required_gain": REQUIRED_GAIN,
        "table": {
            name: {"macro": r["macro"], "families": r["families"]} for name, r in results.items()
        },
        "ros": {family: _ros_summary(answers) for family, answers in played.items()},
        "closed_loop": closed_loop,
    }
    write_file(out / "results.json", json.dumps(report, indent=1) + "\n")
    _print_table(results)
    print(
        f"\nMGSD gains {100 * gain:+.1f} points of success over its base "
        f"({report['seconds'] / 60:.1f} min in all)\n\n"
        f"  results   {out / 'results.json'}\n"
        f"  page      {page}  (every measure and scene, MGSD beside its base)\n"
        f"  shipped   {shipped}  (mgsd plan PICTURE --family maze)\n"
        f"  pictures  {pictures[0]}  and {len(pictures) - 1} more beside it\n"
        f"  bundle    {bundle}  (mgsd plan PICTURE --bundle {bundle} --family frozenlake)\n"
        f"  film      {out / 'closed_loop.gif'}  (closed loop: "
        f"{closed_loop['succeeded']} of {closed_loop['scenes']} scenes)\n"
        f"  bags      {out / 'bags'}\n"
        f"  weights   {stage2}",
        flush=True,
    )
    return 0 if gain >= REQUIRED_GAIN else 1


_SEEDED = ("backbone", "text", "coldstart", "distill")


def _plan_with_shipped(out: Path, seed: int) -> Path:
    """Judge the model that comes with the package on fresh scenes; return a sheet of its plans."""
    from mgsd_core.runtime import Planner
    from sim.dataset import load_episodes
    from sim.drawing import contact_sheet
    from sim.png import encode_png

    data = out / "data"
    for family, level in SHIPPED_LEVELS.items():
        run_step(
            "generate", "--family", family, "--level", level, "--count", _SHIPPED_COUNT,
            "--split", "test", "--seed", 1000 + seed, "--size", 2 * SIZE, "--styles", STYLES,
            "--workers", _workers(), "--out", data,
        )  # fmt: skip
    run_step("evaluate", "--model", shipped_bundle(), "--data", data, "--out", out)
    drawn = []
    for family in SHIPPED_LEVELS:
        planner = Planner.load(family=family)
        episodes = load_episodes(data, "test", family)
        for i in range(_SHEET_COLUMNS):  # of all levels, the smallest first
            episode = episodes[i * len(episodes) // _SHEET_COLUMNS]
            response = planner.plan(episode.image)
            drawn.append(_drawn(episode, response.plan or (), response.verdict.path))
    sheet = out / "sheet.png"
    write_file(sheet, encode_png(contact_sheet(drawn, _SHEET_COLUMNS)))
    return sheet


def _through_ros(
    out: Path, data: Path, bundle: Path, family: str, frames: int
) -> list[dict[str, Any]]:
    """Record a bag, start the node, play the bag to it; return what came back of every frame."""
    bag, answers = out / "bags" / family, out / "ros" / f"{family}.jsonl"
    bag.parent.mkdir(parents=True, exist_ok=True)
    run_step(
        "record-bag", "--data", data, "--family", family, "--count", frames,
        "--out", bag, "--overwrite",
    )  # fmt: skip
    environment = own_environment()
    parameters = {"bundle": bundle, "family": family, "grid.cell_size": 0.5}
    with planner_node(environment, parameters):
        run_step(
            "play-bag", "--bag", bag, "--rate", 50, "--timeout", _READY_TIMEOUT,
            "--out", answers, environment=environment,
        )  # fmt: skip
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    for line in lines[:3]:
        came = line["played"]
        actions = " ".join(came["answer"]["actions"] or ["no plan"])
        print(f"  frame {line['stamp']['sec']}.{line['stamp']['nanosec']:09d}: {actions} "
              f"({1e3 * came['seconds']:.0f} ms there and back)")  # fmt: skip
    return lines


def _draw(data: Path, out: Path, played: dict[str, list[dict[str, Any]]]) -> list[Path]:
    """Draw the plan that came back over ROS on every frame; return the files, the sheet first."""
    from sim.dataset import load_episodes
    from sim.drawing import contact_sheet
    from sim.png import encode_png

    folder = out / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    files, shown = [], []
    for family, lines in played.items():
        episodes = load_episodes(data, "test", family, limit=len(lines))
        for i, (episode, line) in enumerate(zip(episodes, lines, strict=True)):
            answer = line["played"]["answer"]
            actions = tuple(Action(a) for a in answer["actions"] or ())
            picture = _drawn(episode, actions, [tuple(cell) for cell in answer["path"]])
            file = folder / f"{family}-{i:02d}.png"
            write_file(file, encode_png(picture))
            files.append(file)
            if i < _SHEET_COLUMNS:
                shown.append(picture)
    sheet = folder / "sheet.png"
    write_file(sheet, encode_png(contact_sheet(shown, _SHEET_COLUMNS)))
    return [sheet, *files]


def _close_loop(out: Path, seed: int) -> dict[str, Any]:
    """Let the shipped model drive in a scene of each family and level; film some of them."""
    folder = out / "closed_loop"
    run_step(
        "closed-loop", "--count", 1, "--seed", 2000 + seed, "--styles", STYLES, "--size", 2 * SIZE,
        "--keep-plan", "--gif", _SHEET_COLUMNS + 1, "--out", folder,
    )  # fmt: skip
    (folder / "loop.gif").replace(out / "closed_loop.gif")
    lines = [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]
    for line in lines:
        how = f"{line['steps']} steps, shortest {line['optimum']}"
        print(f"  {line['family']} {line['level']}: {line['failure'] or 'done'} ({how})")
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    succeeded = sum(line["success"] for line in lines)
    return {"scenes": len(lines), "succeeded": succeeded, **results}


def _drawn(episode: Episode, plan: Plan, path: Sequence[Cell]) -> NDArray[np.uint8]:
    """Return the episode's picture with a plan and what it comes to in the true state."""
    from sim.drawing import draw_plan

    outcome = simulate(episode.state, plan)
    verdict = "reaches the goal" if outcome.success else f"fails: {outcome.failure}"
    said = " ".join(map(str, plan)) or "no plan"
    return draw_plan(
        episode.image, path or outcome.path, episode.grid.pixel, plan, f"{said}: {verdict}"
    )


_SHEET_COLUMNS = 5


def _ros_summary(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    answered = [line["played"] for line in lines if line["played"]]
    waits = sorted(a["seconds"] for a in answered)
    return {
        "frames": len(lines),
        "answered": len(answered),
        "with_plan": sum(a["answer"]["actions"] is not None for a in answered),
        "median_seconds_there_and_back": waits[len(waits) // 2] if waits else None,
    }


def _print_table(results: dict[str, Any]) -> None:
    from mgsd_core.evaluation.summary import table

    print("\n" + table(list(results.items())), flush=True)


def _title(number: int, text: str) -> None:
    print(f"\n[{number}/9] {text}", flush=True)


def _workers() -> int:
    return min(os.cpu_count() or 1, 2)
