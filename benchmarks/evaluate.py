"""How fast `mgsd evaluate` judges a model: many responses at a time against one by one.

Answers the same held-out scenes of every family and level with the weights that come with the
package, in batches and one by one, in turns, and compares the answers. The bundle, which answers
one by one as on a robot, is timed beside them; so are the intervals, which need no model.

python benchmarks/evaluate.py --scenes 8 --json evaluate.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mgsd_core.evaluation.answers import evaluate, evaluate_bundle
from mgsd_core.evaluation.intervals import add_intervals
from mgsd_core.evaluation.score import Record
from mgsd_core.evaluation.summary import summarise
from mgsd_core.installed import SHIPPED_LEVELS, shipped_bundle
from mgsd_core.model import load_backbone
from mgsd_core.scenes import Scenes, load_scenes
from sim.dataset import write_dataset
from sim.request import DatasetRequest, parse_levels


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=8, help="of each family and level [count]")
    parser.add_argument("--seed", type=int, default=660_000, help="of the first scene")
    parser.add_argument("--batch", type=int, default=64, help="responses at a time [count]")
    parser.add_argument("--rounds", type=int, default=2, help="times that each way is taken")
    parser.add_argument("--weights", type=Path, default=Path("models/nano-weights"))
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    backbone = load_backbone(args.weights)
    bundle = shipped_bundle()
    scenes = _scenes(args.scenes, args.seed, backbone.image)
    ways: dict[str, Callable[[str], list[Record]]] = {
        "batched": lambda source: evaluate(backbone, scenes, source, args.batch),
        "one by one": lambda source: evaluate(backbone, scenes, source, 1),
    }
    found: dict[str, Any] = {"scenes": len(scenes.states), "threads": torch.get_num_threads()}
    for source in ("image", "text"):
        asked = {name: _bound(way, source) for name, way in ways.items()}
        found[source] = _race(asked, args.rounds)
    found["bundle"] = _race({"bundle": lambda: evaluate_bundle(bundle, scenes)}, args.rounds)
    records = evaluate(backbone, scenes, "image", args.batch)
    begin = time.perf_counter()
    add_intervals(summarise(records), records)
    found["intervals_seconds"] = time.perf_counter() - begin
    for source in ("image", "text"):
        told = found[source]
        told["speedup"] = told["seconds"]["one by one"] / told["seconds"]["batched"]
        print(
            f"{source}: {told['per_second']['batched']:.1f} scenes/s in batches of {args.batch}, "
            f"{told['per_second']['one by one']:.1f} one by one: {told['speedup']:.2f} times; "
            f"{100 * told['equal']:.1f} % of the answers are equal"
        )
    print(f"bundle, one by one: {found['bundle']['per_second']['bundle']:.1f} scenes/s")
    print(f"intervals of {len(records)} records: {found['intervals_seconds']:.2f} s")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


def _scenes(count: int, seed: int, image: Any) -> Scenes:
    import tempfile

    tasks = [task for f, span in SHIPPED_LEVELS.items() for task in parse_levels(span, [f])]
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(
            Path(folder),
            DatasetRequest(tasks, "test", seed=seed, count=count, size=160, styles="overhead"),
        )
        return load_scenes(Path(folder), "test", image)


def _bound(way: Callable[[str], list[Record]], source: str) -> Callable[[], list[Record]]:
    return lambda: way(source)


def _race(ways: dict[str, Callable[[], list[Record]]], rounds: int) -> dict[str, Any]:
    """Return the shortest time of each way, and how many of their answers are equal."""
    seconds = dict.fromkeys(ways, float("inf"))
    texts: dict[str, list[str]] = {}
    for _ in range(rounds):
        for name, way in ways.items():
            begin = time.perf_counter()
            records = way()
            seconds[name] = min(seconds[name], time.perf_counter() - begin)
            texts[name] = [record.text for record in records]
    told = list(zip(*texts.values(), strict=True))
    return {
        "seconds": seconds,
        "per_second": {name: len(told) / seconds[name] for name in ways},
        "equal": sum(len(set(answers)) == 1 for answers in told) / len(told),
    }


if __name__ == "__main__":
    main()
