"""The command `mgsd experiment`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def register_experiment(commands: Any) -> None:
    """Add `experiment` to the parser of `mgsd`."""
    parser = commands.add_parser(
        "experiment",
        help="train and judge several ways to come to a planner on the same scenes, by seed",
        description="Runs every arm of an experiment for every seed, or what is not done yet: "
        "scenes, training, evaluation. Writes results.json, table.md and success.svg. Status 1: "
        "with --against, success is not within the interval of what was published.",
    )
    add = parser.add_argument
    add("file", type=Path, help="the experiment (.yaml)")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="directory of scenes and weights: run what is left")
    what.add_argument(
        "--merge",
        type=Path,
        nargs="+",
        metavar="RESULTS",
        help="run nothing; put results of several runs, such as of other machines, into one",
    )
    what.add_argument(
        "--redraw",
        action="store_true",
        help="run nothing; draw table and plot from results.json again",
    )
    add(
        "--results",
        type=Path,
        help="directory of results.json, table and plot (default: that of --out, else of the file)",
    )
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="runs of every arm")
    add("--arms", nargs="+", help="names of the arms to run (default: all)")
    add(
        "--against",
        type=Path,
        metavar="RESULTS",
        help="compare with published results of this experiment, a results.json or its directory",
    )
    parser.set_defaults(run=_experiment)


def _experiment(args: argparse.Namespace) -> int:
    from mgsd_core.experiment import load_experiment, run_experiment
    from mgsd_core.experiment_results import (
        check_same,
        merge,
        read_results,
        redraw,
        reproduction_table,
        reproductions,
        write_results,
    )

    experiment = load_experiment(args.file)
    if args.merge and not args.results:
        raise ValueError("--merge needs --results, the directory that is written")
    where = args.results or args.out or args.file.parent
    published = read_results(args.against) if args.against else None
    if published is not None:  # said before hours of training
        check_same(experiment, published, args.against)

    def keep(results: list[dict[str, Any]]) -> None:
        write_results(experiment, results, where)
        redraw(where)

    if args.merge:
        write_results(experiment, merge(experiment, args.merge), where)
    elif args.out:
        if min(args.seeds) < 0:
            raise ValueError("--seeds must be 0 or more")
        arms = args.arms or [arm.name for arm in experiment.arms]
        run_experiment(experiment, args.seeds, arms, args.out, keep)
    print(redraw(where))
    report: dict[str, Any] = {"results": str(where / "results.json")}
    found = []
    if published is not None:
        found = reproductions(experiment, read_results(where).results, published.results)
        print(reproduction_table(found))
        report["reproduced"] = {r.name: r.within for r in found}
    print(json.dumps(report))
    return int(any(r.within is False for r in found))
