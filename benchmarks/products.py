"""Linear layers by `mgsd_core.products` against torch's own, and a training step with each.

python benchmarks/products.py --json products.json

- `layers`: y = x · weightᵀ and both gradients, at nano's shapes, with rows that are no multiple of
  anything [GFLOP/s of the three products together].
- `step`: forward and backward of stage 1 with nano at the size of `nano_all`, 54 questions about
  random pictures, other ones at every step, so that no two batches have the same lengths; all else
  is the same on both sides.

The sides take turns, so that they meet the same machine; the best round of each counts.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from mgsd_core import products, prompts
from mgsd_core.coldstart import Sample, supervised_passes
from mgsd_core.config import load_config
from mgsd_core.kernels import quicken
from mgsd_core.model import build_nano
from mgsd_core.training import PassLoss
from sim import sample

#: Rows, inputs and outputs of layers: attention, MLP, vision, vocabulary.
SHAPES = ((4013, 128, 128), (4013, 128, 384), (4013, 384, 128), (10584, 64, 192), (1501, 128, 600))

TASKS = (
    *(("frozenlake", level) for level in (3, 4, 5, 6)),
    *(("maze", level) for level in (3, 4, 5)),
    *(("minibehaviour", level) for level in (5, 6)),
)


def layer_rates(rounds: int) -> list[dict[str, Any]]:
    """Return the rates of a linear layer, forward and backward [GFLOP/s]."""
    found = []
    for rows, inputs, outputs in SHAPES:
        x = torch.randn(rows, inputs, requires_grad=True)
        weight = torch.randn(outputs, inputs, requires_grad=True)
        gradient = torch.randn(rows, outputs)

        def layer(
            by: Callable[..., torch.Tensor],
            x: torch.Tensor = x,
            weight: torch.Tensor = weight,
            gradient: torch.Tensor = gradient,
        ) -> None:
            torch.autograd.grad(by(x, weight), (x, weight), gradient)

        ours, torchs = best(
            [lambda: layer(products.linear), lambda: layer(functional.linear)],
            rounds,
        )
        work = 3 * 2 * rows * inputs * outputs / 1e9
        found.append(
            {
                "shape": [rows, inputs, outputs],
                "ours": work / ours,
                "torch": work / torchs,
                "ratio": torchs / ours,
            }
        )
    return found


def step_seconds(rounds: int) -> dict[str, float]:
    """Return the times of a step of stage 1 [s] and their ratio."""
    config = load_config("nano_all")
    backbone = build_nano(config.backbone.nano, config.backbone.image_size, seed=0)
    quicken(backbone.model)
    loss = PassLoss(backbone.model, config.compute)
    size = backbone.image.size
    pictures = np.random.default_rng(0).integers(0, 256, (54, size, size, 3), dtype=np.uint8)
    numbers = iter(range(10**6))

    def step() -> None:
        rng = random.Random(next(numbers))
        samples = []
        for _ in pictures:
            family, level = rng.choice(TASKS)
            asked = prompts.questions(sample(family, level, rng.getrandbits(32)))
            question, answer = rng.choices(asked, [len(a.split()) for _, a in asked])[0]
            prompt = prompts.question_prompt(question, backbone.style)
            samples.append(Sample(prompt, answer, "benchmark"))
        for part in supervised_passes(backbone, config.compute, samples, pictures):
            total, _ = loss(part.batch, part.loss_of)
            (total / part.tokens).backward()
        backbone.model.zero_grad()

    exact = products._is_exact

    def by_torch() -> None:
        products._is_exact = lambda: False  # type: ignore[assignment]
        try:
            step()
        finally:
            products._is_exact = exact

    ours, torchs = best([step, by_torch], rounds)
    return {"ours_s": ours, "torch_s": torchs, "ratio": torchs / ours}


def best(sides: list[Callable[[], None]], rounds: int) -> list[float]:
    """Return the best time of each side [s], after a round that is not timed."""
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds + 1):
        for side, found in zip(sides, times, strict=True):
            began = time.perf_counter()
            side()
            found.append(time.perf_counter() - began)
    return [min(found[1:]) for found in times]


def main() -> None:
    """Measure and print a table; write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file of the results")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds [count]")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = {
        "in_onednn": products._is_exact(),
        "threads": args.threads,
        "layers": layer_rates(args.rounds),
        "step": step_seconds(args.rounds),
    }
    for layer in results["layers"]:
        rates = f"{layer['torch']:6.0f} {layer['ours']:6.0f} GFLOP/s  {layer['ratio']:.2f} times"
        print(f"{layer['shape']!s:>18}  {rates}")
    step = results["step"]
    print(f"{'step of stage 1':>18}  {step['torch_s']:.3f} s {step['ours_s']:.3f} s", end="")
    print(f"  {step['ratio']:.2f} times")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
