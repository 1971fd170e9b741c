"""Does a bundle answer as transformers does? On held-out pictures, in every precision.

python benchmarks/agreement.py --json agreement.json

Exports the weights in every precision, and in fp32 as portable graphs too, and answers the same
held-out pictures with each and with transformers' own greedy decoding. Texts agree when they are
equal, plans when the same actions are read off them; success is that of the plan in the true state.
In fp32, the planner's forced tokens, its prefix cache and its threads must not change a text.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from mgsd_core.export import export_bundle
from mgsd_core.export.reference import greedy_text
from mgsd_core.installed import SHIPPED_LEVELS, installed_path
from mgsd_core.model import load_backbone
from mgsd_core.prompts import parse_response
from mgsd_core.runtime import Planner
from mgsd_core.runtime.bundle import PRECISIONS, read_bundle
from sim import simulate
from sim.dataset import generate_episodes

#: What is asked of the fp32 bundle beside the planner as it comes.
VARIANTS: dict[str, dict[str, Any]] = {
    "without_forced_tokens": {"forced_tokens": False},
    "without_prefix_cache": {"prefix_cache": False},
    "two_threads": {"threads": 2},
}


def main() -> None:
    """Measure and print a table; write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file of the results")
    parser.add_argument("--model", type=Path, help="weights; default: models/nano-weights")
    parser.add_argument("--each", type=int, default=56, help="pictures a family and level [count]")
    parser.add_argument("--seed", type=int, default=820_000, help="of the first held-out state")
    args = parser.parse_args()
    torch.set_num_threads(1)  # as fast as two for a model of this size
    backbone = load_backbone(args.model or installed_path("models/nano-weights"))
    levels = {
        family: list(range(int(span[0]), int(span[-1]) + 1))
        for family, span in SHIPPED_LEVELS.items()
    }
    tasks = [(family, level) for family, of_family in levels.items() for level in of_family]
    episodes = [
        episode
        for family, level in tasks
        for episode in generate_episodes(
            family, level, "test", args.seed, args.each, size=160, styles="overhead"
        )
    ]
    results: dict[str, Any] = {"pictures": len(episodes), "seed": args.seed, "bundles": {}}
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for name in (*PRECISIONS, "portable"):
            precision = name if name in PRECISIONS else "fp32"
            paths[name] = export_bundle(
                backbone,
                Path(folder) / name,
                levels=levels,
                goldens=[(e.family, e.image) for e in episodes[:: args.each]],
                precision=precision,
                portable=name == "portable",
            )
        limits = read_bundle(paths["fp32"]).manifest.prompts
        backbone.model.eval()
        expected = [
            greedy_text(backbone, e.family, e.image, limits[e.family].max_new_tokens)
            for e in tqdm(episodes, "transformers", disable=None)
        ]
        ways: dict[str, tuple[Path, dict[str, Any]]] = {
            name: (path, {}) for name, path in paths.items()
        }
        ways |= {name: (paths["fp32"], options) for name, options in VARIANTS.items()}
        results["transformers_success"] = success(episodes, expected)
        for name, (path, options) in ways.items():
            planners = {family: Planner.load(path, family=family, **options) for family in levels}
            said = [
                planners[e.family].plan(e.image).text for e in tqdm(episodes, name, disable=None)
            ]
            pairs = list(zip(said, expected, episodes, strict=True))
            results["bundles"][name] = {
                "texts": float(np.mean([a == b for a, b, _ in pairs])),
                "plans": float(np.mean([plan(a, e) == plan(b, e) for a, b, e in pairs])),
                "success": success(episodes, said),
                "mib": sum(p.stat().st_size for p in path.glob("*.onnx*")) / 2**20,
            }
    print(
        f"{len(episodes)} pictures; transformers succeeds in {results['transformers_success']:.1%}"
    )
    print(f"{'bundle':<24}{'texts':>8}{'plans':>8}{'success':>9}{'MiB':>7}")
    for name, of in results["bundles"].items():
        shares = "".join(f"{of[key]:>{8 + (key == 'success')}.1%}" for key in list(of)[:3])
        print(f"{name:<24}{shares}{of['mib']:>7.2f}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


def plan(text: str, episode: Any) -> Any:
    """Return the plan in a response to an episode, or None."""
    return parse_response(text, episode.family).plan


def success(episodes: list[Any], texts: list[str]) -> float:
    """Return the share of responses whose plan succeeds in the true state."""
    pairs = zip(episodes, texts, strict=True)
    return float(np.mean([simulate(e.state, plan(t, e) or ()).success for e, t in pairs]))


if __name__ == "__main__":
    main()
