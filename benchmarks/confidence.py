"""What an answer's confidence is worth: how often do plans succeed that the model is so sure of?

Plans held-out scenes of every family and level with the model that comes with the package, judges
them in the true states, and prints success by confidence, the area under the ROC curve (the chance
that a plan which succeeds had the higher confidence of two, one of each kind), and what would be
left if answers below a confidence were not followed.

python benchmarks/confidence.py --scenes 60 --json confidence.json
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mgsd_core.installed import SHIPPED_LEVELS
from mgsd_core.runtime import Planner
from sim import simulate
from sim.dataset import generate_episodes
from sim.request import parse_levels

EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 1.0)
LEAST = (0.5, 0.8, 0.9)


def measure(scenes: int, seed: int, styles: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return confidence and success of a plan for every scene."""
    confidence, success = [], []
    tasks = [task for f, span in SHIPPED_LEVELS.items() for task in parse_levels(span, [f])]
    for family, level in tqdm(tasks, "confidence", unit="task", disable=None):
        planner = Planner.load(family=family)
        for episode in generate_episodes(family, level, "test", seed, scenes, styles=styles):
            response = planner.plan(episode.image)
            confidence.append(response.confidence)
            success.append(bool(simulate(episode.state, response.plan or ()).success))
    return np.array(confidence), np.array(success)


def summarise(confidence: NDArray[np.float64], success: NDArray[np.bool_]) -> dict[str, Any]:
    """Return what is printed, ready for JSON."""
    better, worse = confidence[success][:, None], confidence[~success]
    bins = []
    for low, high in pairwise(EDGES):
        here = (confidence >= low) & ((confidence < high) | (high == EDGES[-1]))
        if here.any():
            bins.append(
                {
                    "from": low,
                    "to": high,
                    "scenes": int(here.sum()),
                    "success": float(success[here].mean()),
                    "confidence": float(confidence[here].mean()),
                }
            )
    return {
        "scenes": len(success),
        "success": float(success.mean()),
        "auroc": (
            float(((better > worse) + 0.5 * (better == worse)).mean())
            if better.size and worse.size
            else None
        ),
        "bins": bins,
        "followed": {
            str(least): {
                "share": float((confidence >= least).mean()),
                "success": float(success[confidence >= least].mean()),
            }
            for least in LEAST
        },
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=60, help="of each family and level [count]")
    parser.add_argument("--seed", type=int, default=555_000, help="of the first scene")
    parser.add_argument("--styles", default="overhead", help="of the scenes")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    found = summarise(*measure(args.scenes, args.seed, args.styles))
    print(f"{found['scenes']} scenes, {100 * found['success']:.1f} % succeed")
    if found["auroc"] is not None:
        print(f"area under the ROC curve {found['auroc']:.3f}")
    print("confidence    scenes  mean   success")
    for row in found["bins"]:
        print(
            f"{row['from']:.2f} to {row['to']:.2f}  {row['scenes']:6d}  {row['confidence']:.2f}  "
            f"{100 * row['success']:6.1f} %"
        )
    for least, left in found["followed"].items():
        print(
            f"followed from {least} on: {100 * left['share']:.1f} % of the scenes, of which "
            f"{100 * left['success']:.1f} % succeed"
        )
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
