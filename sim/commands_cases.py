"""The command `mgsd cases`: what there is of public benchmarks in a file or folder."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `cases` to the program `mgsd`."""
    parser = subparsers.add_parser(
        "cases",
        help="read, check and draw cases of public benchmarks",
        description="Read cases of public benchmarks (docs/benchmarks.md says which) and check "
        "what they list, plans, distances and neighbours, against this package's solver and "
        "simulator. Prints a table by family and level, and every problem with its file and line. "
        "Status 1: there were problems.",
    )
    add = parser.add_argument
    add("path", type=Path, metavar="PATH", help="file or folder")
    add("--kind", default=None, help="vsp, visualplanning or walls; default: what is recognised")
    add("--draw", type=Path, default=None, metavar="DIR", help="write every case's picture there")
    add("--size", type=int, default=256, help="side of the pictures drawn [px], 32 to 2048")
    add("--json", action="store_true", help="print JSON instead of the table")
    parser.set_defaults(run=run_cases)


def run_cases(args: argparse.Namespace) -> int:
    """Print what is there; return 1 where there were problems."""
    from sim.cases import CaseError, check_case, load_cases
    from sim.request import MAX_SIZE, MIN_SIZE

    if not MIN_SIZE <= args.size <= MAX_SIZE:
        raise ValueError(f"size must be {MIN_SIZE} to {MAX_SIZE} px, not {args.size}")
    unreadable: list[CaseError] = []
    problems: list[str] = []
    counts: dict[tuple[str, int], Counter[str]] = {}
    for case in load_cases(args.path, args.kind, unreadable.append):
        count = counts.setdefault((case.state.family, case.state.size), Counter())
        count += Counter(cases=1, pictures=case.picture is not None, plans=case.plan is not None)
        try:
            check_case(case)
            if args.draw is not None:
                _draw(case, args.draw, args.size)
        except CaseError as error:
            count["problems"] += 1
            problems.append(str(error))
    problems = [*map(str, unreadable), *problems]
    if args.json:
        print(json.dumps(_summary(args.path, counts, len(unreadable), problems)))
    else:
        _print_table(counts, len(unreadable), problems)
    return 1 if problems else 0


_COLUMNS = ("cases", "pictures", "plans", "problems")

Counts = dict[tuple[str, int], "Counter[str]"]


def _summary(path: Path, counts: Counts, unreadable: int, problems: list[str]) -> dict[str, Any]:
    families: dict[str, dict[str, dict[str, int]]] = {}
    for (family, level), count in sorted(counts.items()):
        of_level = {column: count[column] for column in _COLUMNS}
        families.setdefault(family, {})[str(level)] = of_level
    return {
        "path": str(path),
        "cases": sum(count["cases"] for count in counts.values()),
        "families": families,
        "unreadable": unreadable,
        "problems": problems,
    }


def _print_table(counts: Counts, unreadable: int, problems: list[str]) -> None:
    print(f"{'family':<14} {'level':>5}" + "".join(f" {column:>9}" for column in _COLUMNS))
    for (family, level), count in sorted(counts.items()):
        row = "".join(f" {count[column]:>9}" for column in _COLUMNS)
        print(f"{family:<14} {level:>5}{row}")
    if unreadable:
        print(f"{'unreadable':<14} {'':>5}{'':>30} {unreadable:>9}")
    for problem in problems:
        print(problem)


def _draw(case: Any, folder: Path, size: int) -> None:
    from sim.cases import case_picture
    from sim.files import write_file
    from sim.png import encode_png

    file = folder / f"{case.name}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, encode_png(case_picture(case, size)))
