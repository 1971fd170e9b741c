"""The command `mgsd experiment`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from sim.help_text import HelpFormatter


def register_experiment(commands: Any) -> None:
    """Add `experiment` to the parser of `mgsd`."""
    parser = commands.add_parser(
        "experiment",
        help="train and judge several ways to come to a planner on the same scenes, by seed",
        description="Runs every arm of an experiment for every seed, or what is not done yet: "
        "scenes, training, evaluation. Writes results.json, table.md and success.svg.",
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("file", type=Path, help="the experiment (.yaml)")
    add("--out", type=Path, required=True, help="directory of scenes and weights")
    add(
        "--results",
        type=Path,
        help="directory of results.json, table and plot (default: that of the file)",
    )
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="runs of every arm")
    add("--arms", nargs="+", help="names of the arms to run (default: all)")
    add("--redraw", action="store_true", help="only draw table and plot from results.json again")
    parser.set_defaults(run=_experiment)


def _experiment(args: argparse.Namespace) -> int:
    from mgsd_core.experiment import load_experiment, redraw, run_experiment, write_results

    experiment = load_experiment(args.file)
    where = args.results or args.file.parent
    if not args.redraw:
        if min(args.seeds) < 0:
            raise ValueError("--seeds must be 0 or more")
        arms = args.arms or [arm.name for arm in experiment.arms]
        results = run_experiment(experiment, args.seeds, arms, args.out)
        write_results(experiment, results, where)
    print(redraw(where))
    print(json.dumps({"results": str(where / "results.json")}))
    return 0
