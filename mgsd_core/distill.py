"""Stage 2: on-policy self-distillation from the frozen base, which reads symbols."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import log_softmax

from mgsd_core import prompts
from mgsd_core.config import DistillConfig
from mgsd_core.encoding import (
    completion_logits,
    completion_tokens,
    make_batch,
    prompt_ids,
    text_ids,
)
from mgsd_core.estimators import divergence, sampled_loss, topk_divergence
from mgsd_core.model import Backbone
from mgsd_core.rollout import generate
from mgsd_core.scenes import Scenes
from mgsd_core.training import ValidateFunction, epoch_indices, step_generator, train
from sim import simulate

# Tokens that a rollout may be longer than the longest reference response of its batch.
_SLACK = 16


def train_distill(
    student: Backbone,
    teacher: Backbone,
    config: DistillConfig,
    scenes: Scenes,
    out: Path,
    fingerprint: dict[str, Any],
    validate: ValidateFunction | None = None,
) -> Path:
    """Pull the student, who sees, to the teacher, who reads the state, on the student's own words.

    Args:
        student: the stage-1 model; trained in place.
        teacher: the base, before stage 1; never changed.
        config: of the stage.
        scenes: training pictures.
        out: directory of the stage.
        fingerprint: what else the result depends on.
        validate: see `mgsd_core.training.train`.

    Raises:
        ValueError: student and teacher do not share one tokenizer.
    """
    if student.tokenizer.get_vocab() != teacher.tokenizer.get_vocab():
        raise ValueError("student and teacher have different tokenizers; both need the same base")
    for parameter in teacher.model.parameters():
        parameter.requires_grad_(False)
    teacher.model.eval()

    def loss_of_step(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        chosen = epoch_indices(len(scenes.states), config.batch, config.seed, step)
        states = [scenes.states[i] for i in chosen]
        plans = [scenes.plans[i] for i in chosen]
        images = scenes.images[chosen]
        longest = max(
            len(text_ids(student, prompts.response_text(s, p)))
            for s, p in zip(states, plans, strict=True)
        )
        asked = [
            prompt_ids(student, prompts.student_prompt(s.family, student.style)) for s in states
        ]
        student.model.eval()
        responses = generate(
            student,
            asked,
            images,
            max_new_tokens=longest + _SLACK,
            temperature=config.temperature,
            generator=step_generator(config.seed, step, "rollout"),
        )
        student.model.train()
        told = [
            prompt_ids(
                teacher,
                prompts.symbolic_prompt(s, teacher.style, p if config.reference else None),
            )
            for s, p in zip(states, plans, strict=True)
        ]
        seen = make_batch(student, asked, responses, images).to(student.model.device)
        read = make_batch(teacher, told, responses).to(teacher.model.device)
        tokens = completion_tokens(seen)
        # The most common bug of distillation between prompts: scoring tokens that are not the same.
        if not torch.equal(tokens, completion_tokens(read)):
            raise AssertionError("student and teacher must score identical response tokens")
        with torch.no_grad():
            target = completion_logits(teacher, read)
        logits = completion_logits(student, seen)
        loss = token_losses(logits, target, tokens, config).mean()
        texts = student.tokenizer.batch_decode(responses)
        outcome = [prompts.parse_response(t, s.family) for t, s in zip(texts, states, strict=True)]
        log_p = log_softmax(logits.detach(), -1)
        return loss, {
            "success": _mean(
                r.plan is not None and simulate(s, r.plan).success
                for r, s in zip(outcome, states, strict=True)
            ),
            "state": _mean(r.state == s for r, s in zip(outcome, states, strict=True)),
            "length": _mean(map(len, responses)),
            "entropy": -(log_p.exp() * log_p).sum(-1).mean().item(),
            "kl": divergence(logits.detach(), target).mean().item(),
        }

    return train(
        student,
        config,
        out,
        "stage 2 (distillation)",
        loss_of_step,
        validate,
        {**fingerprint, "data": scenes.digest},
    )


def token_losses(
    student: torch.Tensor, teacher: torch.Tensor, tokens: torch.Tensor, config: DistillConfig
) -> torch.Tensor:
    """Return the configured estimator's loss at every response token, float32 [N].

    One inner epoch: the policy that sampled the tokens is the student as it is.
    """
    if config.estimator == "full":
        return divergence(student, teacher, config.direction, config.mix)
    if config.estimator == "topk":
        return topk_divergence(student, teacher, config.topk, config.direction, config.mix)
    old = log_softmax(student.detach(), -1).gather(-1, tokens[:, None])[:, 0]
    return sampled_loss(student, teacher, old, tokens)


def frozen_copy(backbone: Backbone) -> Backbone:
    """Return a teacher: the same backbone with weights of its own."""
    return Backbone(
        copy.deepcopy(backbone.model), backbone.tokenizer, backbone.image, backbone.style
    )


def _mean(values: Any) -> float:
    values = list(values)
    return sum(map(float, values)) / len(values)
