"""The shipped model in closed loop against its first plan alone, on 100 held-out scenes.

python benchmarks/closed_loop.py --json closed_loop.json

The simulator draws a scene, a planner node in a process of its own plans on the picture over DDS,
the first action is carried out, the next picture is drawn, and so on (`mgsd closed-loop`). Scenes
of all that the model has learned: 12 lakes of side 3 and 11 of each other family and level. Open
loop is the first picture's plan carried out to its end, in the same run. Measured as it is, and
with a share of the actions coming to nothing (--slip), the same ones in every row; by default, with
`--keep-plan` and with `--repair`, as the command has them. Everything stays on this machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mgsd_core.installed import SHIPPED_LEVELS
from mgsd_ros.closed_loop import Attempt, Run
from mgsd_ros.loop_report import report
from mgsd_ros.loop_scenes import Scene, Settings, carry_out_scenes
from sim.request import parse_levels


def held_out(seed: int, count: int) -> list[Scene]:
    """Return so many scenes, of each family and level equally many; the first have one more."""
    tasks = [task for f, levels in SHIPPED_LEVELS.items() for task in parse_levels(levels, [f])]
    each, more = divmod(count, len(tasks))
    return [
        Scene(*task, seed + i)
        for number, task in enumerate(tasks)
        for i in range(each + (number < more))
    ]


def measure(scenes: Sequence[Scene], settings: Settings, name: str) -> list[Run]:
    """Carry out the scenes in one way."""
    return list(tqdm(carry_out_scenes(scenes, settings), name, len(scenes), disable=None))


def row(name: str, scenes: Sequence[Scene], runs: Sequence[Run], way: str) -> list[str]:
    """Return a line of the table: successes, and their steps over the optimum."""
    attempts: list[tuple[Scene, Run, Attempt]] = [
        (scene, run, getattr(run, way)) for scene, run in zip(scenes, runs, strict=True)
    ]
    done = [(a.steps, run.optimum) for _, run, a in attempts if a.success]
    extra = sum(steps - optimum for steps, optimum in done) / max(1, len(done))
    weighted = sum(optimum / steps for steps, optimum in done) / len(runs)
    families = [
        sum(a.success for scene, _, a in attempts if scene.family == family)
        for family in SHIPPED_LEVELS
    ]
    return [name, str(len(done)), f"{extra:.2f}", f"{100 * weighted:.1f}", *map(str, families)]


def main() -> None:
    """Measure and print a table; write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file of the results")
    parser.add_argument("--seed", type=int, default=990_000, help="of the first scene of each task")
    parser.add_argument("--scenes", type=int, default=100, help="of all families and levels")
    parser.add_argument("--slip", type=float, default=0.2, help="share of lost actions, 0 to 1")
    args = parser.parse_args()

    scenes = held_out(args.seed, args.scenes)
    plain = Settings()
    kept, repaired = replace(plain, keep_plan=True), replace(plain, repair=True)
    ways = {
        "": plain,
        ", keep-plan": kept,
        ", repair": repaired,
        ", keep-plan, repair": replace(kept, repair=True),
        f", slip {args.slip:g}": replace(plain, slip=args.slip),
        f", keep-plan, slip {args.slip:g}": replace(kept, slip=args.slip),
    }
    head = ["", f"success of {len(scenes)}", "extra steps", "SPL %", *SHIPPED_LEVELS]
    counts = [str(sum(s.family == f for s in scenes)) for f in SHIPPED_LEVELS]
    lines = [head, ["scenes", str(len(scenes)), "", "", *counts]]
    results: dict[str, Any] = {"seed": args.seed, "scenes": len(scenes), "slip": args.slip}
    for name, settings in ways.items():
        runs = measure(scenes, settings, f"closed loop{name}")
        if not settings.keep_plan:  # it has no part in the first plan
            lines.append(row(f"open loop{name}", scenes, runs, "open_loop"))
        lines.append(row(f"closed loop{name}", scenes, runs, "closed_loop"))
        tasks = [(scene.family, scene.level, run) for scene, run in zip(scenes, runs, strict=True)]
        results[f"closed loop{name}"] = report(tasks)
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    print()
    for line in lines:
        print(
            "  ".join(
                c.rjust(w) if i else c.ljust(w)
                for i, (c, w) in enumerate(zip(line, widths, strict=True))
            )
        )
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
