"""What the model that comes with the package can do on fresh scenes, against what it is made from.

Draws scenes of every family and level that `models/nano` has learned, in states and styles that no
training has seen, with every renderer that is installed; lets the base, stage 1 and the bundle plan
from the pictures, the bundle from swapped ones too, and the base from the true states; prints the
table of the README and says which of the bars are met (status 1: not all).

python benchmarks/held_out.py --seed 20261123 --out runs/held_out

Leaves the table (`table.md`) and what `mgsd evaluate` says of each (`*/results.json`) in --out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mgsd_core.installed import SHIPPED_LEVELS
from mgsd_core.steps import StepError, run_step
from sim.files import write_file

NAMES = {"frozenlake": "lake", "maze": "maze", "minibehaviour": "office"}


def draw(data: Path, renderer: str, seed: int, count: int) -> None:
    """Write the scenes: at 67 of each family and level 603, which takes seconds."""
    for family, levels in SHIPPED_LEVELS.items():
        run_step(
            *("generate", "--family", family, "--level", levels, "--count", count),
            *("--split", "test", "--seed", seed, "--size", 160, "--styles", "overhead"),
            *("--renderer", renderer, "--out", data / renderer),
        )


def judge(out: Path, name: str, renderer: str, *words: object) -> dict[str, Any]:
    """Return what `mgsd evaluate` says of a model."""
    data = out / "data" / renderer
    run_step("evaluate", *words, "--data", data, "--out", out / name)
    result: dict[str, Any] = json.loads((out / name / "results.json").read_text())
    return result


def line(title: str, summary: Mapping[str, Any]) -> str:
    """Return a line of the table: success [%], the mean of the families and every level."""
    bold = "**" if title.startswith("**") else ""
    macro = f"{bold}{100 * summary['macro']['success']:.1f}{bold}"
    levels = [
        f"{100 * level['success']:.0f}"
        for family in summary["families"].values()
        for level in family["levels"].values()
    ]
    return f"| {' | '.join([title, macro, *levels])} |"


def head(summary: Mapping[str, Any]) -> list[str]:
    """Return the first two lines of the table."""
    names = []
    for family, found in summary["families"].items():
        first, *others = found["levels"]
        names += [f"{NAMES[family]} {first}", *others]
    return [f"| success % | macro | {' | '.join(names)} |", f"|---|---:{'|---:' * len(names)}|"]


def main() -> int:
    """Take the arguments; what is wrong with them, or with a step, is one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seed",
        type=int,
        required=True,
        help="of the first scene, the next has the next: seeds closer than COUNT share scenes",
    )
    parser.add_argument("--count", type=int, default=67, help="of each family and level [count]")
    parser.add_argument("--models", type=Path, default=Path("models"), help="where nano lies")
    parser.add_argument("--out", type=Path, required=True, help="directory that does not exist yet")
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"{args.out} exists: name a new directory")
    if not (args.models / "nano").is_dir():
        parser.error(f"{args.models} holds no nano: run this in a checkout, or name its models")
    if args.count < 2:
        parser.error("--count must be at least 2: pictures are swapped")
    try:
        return compare(args.seed, args.count, args.models, args.out)
    except StepError as error:
        parser.error(str(error))


def compare(seed: int, count: int, models: Path, out: Path) -> int:
    """Draw, judge, print and compare with the bars; return the exit status."""
    with_habitat = importlib.util.find_spec("habitat_sim") is not None
    for renderer in ("panda", "habitat")[: 1 + with_habitat]:
        draw(out / "data", renderer, seed, count)

    base = judge(out, "base", "panda", "--model", models / "nano-base")
    stage1 = judge(out, "stage1", "panda", "--model", models / "nano-stage1", "--input", "image")
    mgsd = judge(out, "mgsd", "panda", "--model", models / "nano", "--swap-images")
    swapped, bound = mgsd["image_swapped"], base["symbolic"]
    lines = [
        *head(mgsd),
        line("base", base),
        line("after stage 1", stage1),
        line("**MGSD: `models/nano`**", mgsd),
    ]
    success = mgsd["macro"]["success"]
    lowest = swapped["macro"]["intervals"]["success"][0]
    by_chance = swapped["chance"]["macro"]["success"]
    bars = {
        "success at least 85 %": success >= 0.85,
        "60 points above the base": success - base["macro"]["success"] >= 0.60,
        "15 points above stage 1": success - stage1["macro"]["success"] >= 0.15,
        "90 % of the upper bound": success >= 0.9 * bound["macro"]["success"],
        "swapped pictures: what chance gives (in its interval, or less)": lowest <= by_chance,
    }
    if with_habitat:
        habitat = judge(out, "mgsd-habitat", "habitat", "--model", models / "nano")
        lines.append(line("the same, Habitat-Sim draws", habitat))
        apart = abs(success - habitat["macro"]["success"])
        bars["Habitat-Sim's pictures at most 5 points apart"] = apart <= 0.05
    lines += [
        line("the same, pictures swapped", swapped),
        line("chance: plans of the swapped pictures", swapped["chance"]),
        line("upper bound: the base reads the true state", bound),
    ]
    table = "\n".join(lines) + "\n"
    write_file(out / "table.md", table)
    print(table)
    for bar, met in bars.items():
        print(f"{'met    ' if met else 'NOT met'}  {bar}")
    return 0 if all(bars.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
