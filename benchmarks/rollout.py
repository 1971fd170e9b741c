"""Sampled rollouts: `mgsd_core.rollout.generate` against transformers' own `generate`, in one run.

python benchmarks/rollout.py --json rollout.json

Both answer the same batch of lakes and mazes of level 3, with a nano that has just learned how long
an answer is (not more), once with its own vocabulary and once with one of 151,936 tokens. Both
suppress the same tokens and stop at the same ones. They take turns, so that they meet the same
machine; the best round of each counts. Tokens are those of the responses, to where each ends.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy
from transformers import LogitsProcessor, LogitsProcessorList

from mgsd_core import prompts
from mgsd_core.encoding import (
    completion_logits,
    completion_tokens,
    make_batch,
    prompt_ids,
    text_ids,
)
from mgsd_core.model import Backbone, NanoConfig, build_nano
from mgsd_core.rollout import generate
from sim import State, sample, solve

FAMILIES = ("frozenlake", "maze")

#: Tokens of Qwen3-VL's embedding table.
QWEN_VOCABULARY = 151_936

#: Rollouts may be longer than the longest right answer by so many tokens, as in training.
SLACK = 16


class Suppress(LogitsProcessor):
    """Suppresses tokens in one addition; transformers' own looks all of them up at every step."""

    def __init__(self, backbone: Backbone) -> None:
        self.bias = torch.zeros(backbone.model.config.text_config.vocab_size)
        self.bias[backbone.suppressed_tokens()] = -torch.inf

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores with the tokens suppressed."""
        return scores + self.bias


def asked_and_answers(
    backbone: Backbone, states: Sequence[State]
) -> tuple[list[list[int]], list[list[int]]]:
    """Return the token ids of each state's prompt, and of its right answer."""
    asked = [prompt_ids(backbone, prompts.student_prompt(s.family, "brief")) for s in states]
    return asked, [text_ids(backbone, prompts.response_text(s, solve(s) or ())) for s in states]


def trained(states: Sequence[State], images: NDArray[np.uint8], steps: int) -> Backbone:
    """Return a nano after some steps on the states' right answers."""
    backbone = build_nano(NanoConfig(), images.shape[1], seed=0)
    asked, said = asked_and_answers(backbone, states)
    batch = make_batch(backbone, asked, [[*s, backbone.end_token] for s in said], images)
    optimizer = torch.optim.AdamW(backbone.model.parameters(), lr=2e-3)
    backbone.model.train()
    for _ in range(steps):
        loss = cross_entropy(completion_logits(backbone, batch), completion_tokens(batch))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(backbone.model.parameters(), 1.0)
        optimizer.step()
    backbone.model.eval()
    return backbone


def widen(backbone: Backbone, vocabulary: int) -> None:
    """Give the model a larger vocabulary; its tokenizer does not know the new tokens."""
    backbone.model.resize_token_embeddings(vocabulary, mean_resizing=False)


def compare(
    backbone: Backbone, asked: list[list[int]], images: NDArray[np.uint8], longest: int, rounds: int
) -> dict[str, float]:
    """Return tokens/s of both, and their ratio."""
    batch = make_batch(backbone, asked, images=images, left=True)
    suppress = LogitsProcessorList([Suppress(backbone)])
    ends = [backbone.end_token, *text_ids(backbone, prompts.STOP_TEXT)]
    width = batch.ids.shape[1]

    def ours(seed: int) -> int:
        generator = torch.Generator().manual_seed(seed)
        uniforms = torch.rand(len(asked), longest, generator=generator)
        responses = generate(backbone, asked, images, longest, 1.0, uniforms)
        return sum(map(len, responses))

    def theirs(seed: int) -> int:
        torch.manual_seed(seed)
        ids = backbone.model.generate(
            input_ids=batch.ids,
            attention_mask=batch.mask.long(),
            mm_token_type_ids=(batch.ids == backbone.image_token).int(),
            pixel_values=batch.pixels,
            image_grid_thw=batch.grid,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=longest,
            eos_token_id=ends,
            pad_token_id=backbone.pad_token,
            logits_processor=suppress,
        )
        # Padding follows the end, and is never said.
        return int((ids[:, width:] != backbone.pad_token).sum())

    ways: dict[str, Callable[[int], int]] = {"transformers": theirs, "generate": ours}
    best = dict.fromkeys(ways, 0.0)
    tokens = dict.fromkeys(ways, 0)
    for seed in range(-1, rounds):  # the first round warms up
        for name, way in ways.items():
            began = time.perf_counter()
            said = way(seed + 1)
            rate = said / (time.perf_counter() - began)
            if seed >= 0:
                best[name] = max(best[name], rate)
                tokens[name] += said
    per_response = rounds * len(asked)
    return {
        "vocabulary": backbone.model.config.text_config.vocab_size,
        **{f"{name}_tokens_per_s": rate for name, rate in best.items()},
        **{f"{name}_mean_length": count / per_response for name, count in tokens.items()},
        "tokens_per_s_ratio": best["generate"] / best["transformers"],
    }


def main() -> None:
    """Measure and print a table; write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file of the results")
    parser.add_argument("--batch", type=int, default=32, help="prompts [count]")
    parser.add_argument("--size", type=int, default=128, help="picture side [px]")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each [count]")
    parser.add_argument("--steps", type=int, default=80, help="training before [steps]")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    states = [sample(FAMILIES[i % len(FAMILIES)], 3, seed=i) for i in range(args.batch)]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (args.batch, args.size, args.size, 3), dtype=np.uint8)
    began = time.perf_counter()
    backbone = trained(states, images, args.steps)
    print(f"trained in {time.perf_counter() - began:.0f} s")
    asked, said = asked_and_answers(backbone, states)
    longest = SLACK + max(map(len, said))
    runs = [compare(backbone, asked, images, longest, args.rounds)]
    widen(backbone, QWEN_VOCABULARY)
    runs.append(compare(backbone, asked, images, longest, args.rounds))
    for name in runs[0]:
        print(f"{name:>28}", *(f"{run[name]:>10.4g}" for run in runs))
    if args.json:
        results = {"batch": args.batch, "threads": args.threads, "longest": longest, "runs": runs}
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
