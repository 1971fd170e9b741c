"""The command `mgsd report`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from sim.files import write_file


def register_report(commands: Any) -> None:
    """Add `report` to the parser of `mgsd`."""
    parser = commands.add_parser(
        "report",
        help="the results of `mgsd evaluate` as a page, alone or compared with another model's",
        description="Write the page of an evaluation again from its results: one HTML file that "
        "requests nothing. It needs neither the model nor the data. docs/evaluation.md says what "
        "the figures mean.",
    )
    add = parser.add_argument
    add("results", type=Path, help="directory that `mgsd evaluate` wrote")
    add(
        "--compare",
        type=Path,
        metavar="OTHER",
        help="another model's results on the same scenes, to compare these with",
    )
    add("--out", type=Path, metavar="FILE", help="the page (default: report.html in RESULTS)")
    parser.set_defaults(run=_report)


def _report(args: argparse.Namespace) -> int:
    from mgsd_core.evaluation.report import evaluation_report
    from mgsd_core.evaluation.results import read_results

    out = args.out or args.results / "report.html"
    if out.suffix.lower() not in (".html", ".htm"):  # nor is it one of the results
        raise ValueError(f"--out must be a file that ends in .html, not {out}")
    results = read_results(args.results)
    other = None if args.compare is None else read_results(args.compare)
    page = evaluation_report(results, other)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, page)
    print(json.dumps({"report": str(out), "bytes": len(page.encode())}))
    return 0
