"""Patch embedding as Conv3d against one matrix product, forward and backward, in one run.

python benchmarks/patch_embedding.py --json patch_embedding.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch.nn.functional import linear


def seconds(work: Callable[[], torch.Tensor], rounds: int) -> float:
    """Return the median time of a forward and backward pass [s]."""
    work().sum().backward()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work().sum().backward()
        times.append(time.perf_counter() - began)
    return median(times)


def main() -> None:
    """Measure and print a table; write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file of the results")
    parser.add_argument("--patches", type=int, default=2432, help="patches of a batch [count]")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--rounds", type=int, default=20, help="timed passes [count]")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    patches = torch.randn(args.patches, 3 * 2 * 16 * 16)
    conv = torch.nn.Conv3d(3, 64, (2, 16, 16), stride=(2, 16, 16))
    results = {
        "conv3d_s": seconds(lambda: conv(patches.view(-1, 3, 2, 16, 16)), args.rounds),
        "linear_s": seconds(
            lambda: linear(patches, conv.weight.flatten(1), conv.bias), args.rounds
        ),
    }
    results["ratio"] = results["conv3d_s"] / results["linear_s"]
    results |= {"patches": args.patches, "threads": args.threads}
    print("\n".join(f"{name:>10}  {value:.4g}" for name, value in results.items()))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
