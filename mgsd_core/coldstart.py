"""Stage 0 (text planning, `nano` only) and stage 1 (cold-start perception alignment).

Both are supervised: next-token loss on the answer alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from mgsd_core import prompts
from mgsd_core.config import ColdstartConfig, TextConfig
from mgsd_core.encoding import (
    completion_logits,
    completion_tokens,
    make_batch,
    prompt_ids,
    text_ids,
)
from mgsd_core.model import Backbone
from mgsd_core.prompts import Prompt
from mgsd_core.scenes import Scenes
from mgsd_core.training import ValidateFunction, epoch_indices, train
from sim import sample_split, solve

#: A prompt and the text that is to follow it.
Sample = tuple[Prompt, str]


def train_text(
    backbone: Backbone,
    config: TextConfig,
    tasks: Sequence[tuple[str, int]],
    out: Path,
    fingerprint: dict[str, Any],
    validate: ValidateFunction | None = None,
) -> Path:
    """Stage 0: teach planning from symbolic text on fresh training states of `tasks`."""

    def loss_of_step(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = random.Random(f"text/{config.seed}/{step}")
        samples = [text_sample(backbone, rng, tasks, config.reference) for _ in range(config.batch)]
        return supervised_loss(backbone, samples, None), {}

    return train(
        backbone,
        config,
        out,
        "stage 0 (text)",
        loss_of_step,
        validate,
        {**fingerprint, "tasks": [list(t) for t in tasks]},
    )


def train_coldstart(
    backbone: Backbone,
    config: ColdstartConfig,
    scenes: Scenes,
    out: Path,
    fingerprint: dict[str, Any],
) -> Path:
    """Stage 1: teach to read the state off a picture; optionally replay text planning."""
    tasks = scenes.tasks()
    replayed = round(config.batch * config.replay)
    asked = config.batch - replayed

    def loss_of_step(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = random.Random(f"coldstart/{config.seed}/{step}")
        chosen = epoch_indices(len(scenes.states), asked, config.seed, step) if asked else []
        samples = []
        for index in chosen:
            asked_about = prompts.questions(scenes.states[index])
            # By length: what is learned from a picture grows with the words of the answer.
            weights = [len(answer.split()) for _, answer in asked_about]
            question, answer = rng.choices(asked_about, weights)[0]
            samples.append((prompts.question_prompt(question, backbone.style), answer))
        loss = supervised_loss(backbone, samples, scenes.images[chosen])
        if not replayed:
            return loss, {}
        texts = [text_sample(backbone, rng, tasks, config.reference) for _ in range(replayed)]
        text_loss = supervised_loss(backbone, texts, None)
        logged = {"question_loss": loss.item(), "text_loss": text_loss.item()}
        share = replayed / config.batch
        return (1.0 - share) * loss + share * text_loss, logged

    return train(
        backbone,
        config,
        out,
        "stage 1 (perception)",
        loss_of_step,
        fingerprint={**fingerprint, "data": scenes.digest},
    )


def text_sample(
    backbone: Backbone,
    rng: random.Random,
    tasks: Sequence[tuple[str, int]],
    reference: float,
) -> Sample:
    """Return a text planning problem on a random training state, with its perfect response."""
    family, level = rng.choice(tasks)
    state = sample_split(family, level, "train", rng.getrandbits(48))
    plan = solve(state)
    assert plan is not None, "sampled states can be solved"
    shown = plan if rng.random() < reference else None
    prompt = prompts.symbolic_prompt(state, backbone.style, shown)
    return prompt, prompts.response_text(state, plan)


def supervised_loss(
    backbone: Backbone, samples: Sequence[Sample], images: NDArray[np.uint8] | None
) -> torch.Tensor:
    """Return the mean next-token loss on the answers, each followed by the end of the turn.

    Args:
        backbone: the model.
        samples: prompts and answers.
        images: fitted pictures uint8 [N, size, size, 3], one a sample, or None for text.
    """
    asked = [prompt_ids(backbone, prompt) for prompt, _ in samples]
    said = [[*text_ids(backbone, answer), backbone.end_token] for _, answer in samples]
    total = torch.zeros((), device=backbone.model.device)
    for chosen in length_buckets([len(a) + len(s) for a, s in zip(asked, said, strict=True)]):
        batch = make_batch(
            backbone,
            [asked[i] for i in chosen],
            [said[i] for i in chosen],
            None if images is None else images[chosen],
        ).to(backbone.model.device)
        logits = completion_logits(backbone, batch)
        total = total + cross_entropy(logits, completion_tokens(batch), reduction="sum")
    return total / sum(map(len, said))


def length_buckets(lengths: Sequence[int], waste: float = 0.15) -> list[list[int]]:
    """Split sequences into groups of similar length, so that little of a batch is padding.

    Args:
        lengths: of the sequences.
        waste: largest share by which the shortest of a group falls short of its longest.

    Returns:
        Indices into `lengths`, every one once.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    groups: list[list[int]] = []
    for i in reversed(order):
        if not groups or lengths[i] < (1.0 - waste) * lengths[groups[-1][0]]:
            groups.append([])
        groups[-1].append(i)
    return groups
