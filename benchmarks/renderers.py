"""Habitat-Sim against the states that were built and against Panda3D's pictures of them.

Truth: how many states read back from the simulator equal the generating ones. Parity: how far apart
the two renderers show the same objects. Needs habitat-sim.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sim import LEVELS, sample
from sim.renderers import open_renderer
from sim.scene import FOREGROUND, SEMANTIC_IDS, build_scene

SINGLE = ("goal", "robot", "printer", "table")


def truth(count: int) -> dict[str, dict[str, int]]:
    """Read back `count` scenes of each family, levels and styles mixed."""
    result = {}
    with open_renderer("habitat") as habitat:
        for family, levels in LEVELS.items():
            equal = 0
            for i in tqdm(range(count), desc=f"truth {family}", disable=None):
                state = sample(family, levels[i % len(levels)], 10_000 + i)
                equal += habitat.read_state(build_scene(state, i, 64, 64)) == state
            result[family] = {"scenes": count, "equal": equal}
    return result


def parity(count: int, size: int) -> dict[str, float]:
    """Compare what two renderers show of `count` scenes of all families and levels."""
    pairs = [(family, level) for family in LEVELS for level in LEVELS[family]]
    apart, overlap, depth = [], [], []
    with open_renderer("habitat") as habitat, open_renderer("panda") as panda:
        for i in tqdm(range(count), desc="parity", disable=None):
            family, level = pairs[i % len(pairs)]
            scene = build_scene(sample(family, level, 20_000 + i), 30_000 + i, size, size)
            one = habitat.render(scene, depth=True, semantic=True)
            other = panda.render(scene, depth=True, semantic=True)
            assert one.semantic is not None and other.semantic is not None
            assert one.depth is not None and other.depth is not None
            shown = (one.semantic, other.semantic)
            masks = [np.isin(ids, [SEMANTIC_IDS[role] for role in FOREGROUND]) for ids in shown]
            overlap.append((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())
            for role in SINGLE:
                number = SEMANTIC_IDS[role]
                if any((ids == number).any() for ids in shown):
                    apart.append(math.dist(*(centre(ids == number) for ids in shown)))
            same = one.semantic == other.semantic
            depth.append(np.median(np.abs(one.depth - other.depth)[same]))
    return {
        "scenes": count,
        "size_px": size,
        "objects": len(apart),
        "centre_apart_max_px": max(apart),
        "centre_apart_mean_px": float(np.mean(apart)),
        "foreground_iou_min": float(min(overlap)),
        "foreground_iou_mean": float(np.mean(overlap)),
        "depth_apart_median_m": float(np.median(depth)),
    }


def centre(mask: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the middle (u, v) [px] of a mask; NaN where it is empty."""
    v, u = np.nonzero(mask)
    return (u.mean(), v.mean()) if len(u) else (np.nan, np.nan)


def start_seconds() -> float:
    """Return how long it takes from nothing to the first picture [s]."""
    scene = build_scene(sample("maze", 4, 0), 0, 256, 256)
    began = time.perf_counter()
    with open_renderer("habitat") as habitat:
        habitat.render(scene)
        return time.perf_counter() - began


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--truth", type=int, default=1000, help="scenes of each family")
    parser.add_argument("--parity", type=int, default=200, help="scenes")
    parser.add_argument("--size", type=int, default=256, help="side of the pictures [px]")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    start_seconds()  # the libraries are loaded
    result: dict[str, Any] = {
        "start_s": start_seconds(),
        "truth": truth(args.truth),
        "parity": parity(args.parity, args.size),
    }
    print(f"from nothing to the first picture   {result['start_s']:.2f} s")
    for family, row in result["truth"].items():
        print(f"{family:14s} {row['equal']} of {row['scenes']} states read back equal")
    for name, value in result["parity"].items():
        print(f"{name:24s} {value:.6g}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
