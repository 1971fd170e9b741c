"""Stage 2: on-policy self-distillation from the frozen base, which reads symbols."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch.nn.functional import log_softmax

from mgsd_core import prompts
from mgsd_core.adapters import adapter_off, has_adapter
from mgsd_core.coldstart import (
    check_length,
    exclusion_of_run,
    supervised_passes,
    text_sample,
    with_text,
)
from mgsd_core.config import ColdstartConfig, ComputeConfig, DistillConfig, config_dict
from mgsd_core.encoding import (
    TAKES_SEEN,
    Seen,
    completion_hidden,
    completion_tokens,
    length_buckets,
    make_batch,
    prompt_ids,
    see,
    text_ids,
)
from mgsd_core.estimators import divergence, entropy, sampled_loss, topk_divergence
from mgsd_core.kernels import quicken
from mgsd_core.model import Backbone
from mgsd_core.processes import share, wants_deepspeed, wants_shards
from mgsd_core.products import linear
from mgsd_core.rollout import generate
from mgsd_core.scenes import Scenes
from mgsd_core.training import (
    Pass,
    ValidateFunction,
    Work,
    epoch_indices,
    mixed,
    step_generator,
    train,
    with_steps,
)
from mgsd_core.vocabulary import LossOfLogits
from sim import Failure, simulate
from sim.request import Exclusion

# What takes a token out of a distribution: finite, so that 0 · log 0 is 0.
_NEVER = -1e9

_NOTHING: Exclusion = {}

# Most bytes of activations that are kept so that pictures are looked at once a step.
_SEEN_BYTES = 128 * 2**20


@dataclass(frozen=True)
class Teacher:
    """The base before stage 1; reads text only and is never changed.

    Attributes:
        backbone: a frozen copy of the base, or the student itself where that has an adapter.
        alone: context in which `backbone` is the base.
    """

    backbone: Backbone
    alone: Callable[[], AbstractContextManager[None]]


def frozen_teacher(base: Backbone) -> Teacher:
    """Return a base with weights of its own as the teacher."""
    base.model.requires_grad_(False)
    base.model.eval()
    return Teacher(base, nullcontext)


def adapter_off_teacher(student: Backbone) -> Teacher:
    """Return the student itself, its adapter switched off, as the teacher."""
    return Teacher(student, partial(adapter_off, student))


def train_distill(
    student: Backbone,
    teacher: Teacher,
    config: DistillConfig,
    compute: ComputeConfig,
    processes: Accelerator,
    scenes: Scenes,
    out: Path,
    fingerprint: dict[str, Any],
    validate: ValidateFunction | None = None,
    text: ColdstartConfig | None = None,
    exclude: Exclusion = _NOTHING,
) -> Path:
    """Pull the student, who sees, to the teacher, who reads the state, on the student's own words.

    Args:
        student: the stage-1 model; trained in place.
        teacher: the base, before stage 1.
        config: of the stage.
        compute: how a step is computed.
        processes: that train together.
        scenes: training pictures.
        out: directory of the stage.
        fingerprint: what else the result depends on.
        validate: see `mgsd_core.training.train`.
        text: of stage 1, how it replays text planning; needed with `config.replay`.
        exclude: states that no replayed text is about.

    Raises:
        ValueError: student and teacher do not share one tokenizer.
        mgsd_core.training.TrainingError: see `train`, or a prompt is longer than allowed.
    """
    if student.tokenizer.get_vocab() != teacher.backbone.tokenizer.get_vocab():
        raise ValueError("student and teacher have different tokenizers; both need the same base")
    teacher.backbone.model.to(processes.device)
    quicken(teacher.backbone.model)
    texts = _Texts(student, teacher.backbone, config, compute, scenes)
    config = with_steps(config, len(scenes.states))
    replayed = config.replayed
    if replayed:
        if text is None:
            raise ValueError("distill.replay needs to be told how stage 1 replays text")
        # A student answers from what it has said itself.
        text = replace(text, own_state=1.0)
        told_apart = {"text": config_dict(text), **exclusion_of_run(exclude, scenes.tasks())}
        fingerprint = {**fingerprint, **told_apart}
    once = sees_once(student, config, compute, processes.num_processes) and not (
        wants_shards(processes) or wants_deepspeed(processes)
    )

    def work_of_step(step: int) -> Work:
        asked_of = config.batch - replayed
        everyone = epoch_indices(len(scenes.states), asked_of, config.seed, step)
        limit = config.max_response
        if config.slack >= 0:
            limit = min(limit, max(texts.reference_length(i) for i in everyone) + config.slack)
        # Every response has random numbers of its own, whoever samples it and beside which others.
        uniforms = torch.rand(
            len(everyone), limit, generator=step_generator(config.seed, step, "rollout")
        )
        mine = share(processes, range(len(everyone)))
        chosen = [everyone[row] for row in mine]
        asked = [texts.asked(i) for i in chosen]
        pictures: NDArray[np.uint8] | Seen = scenes.images[chosen]
        shared: list[tuple[torch.Tensor, torch.Tensor]] = []
        if once:
            with mixed(compute, processes.device):
                origin = see(student, scenes.images[chosen]).features
            read = tuple(feature.detach().requires_grad_() for feature in origin)
            pictures, shared = Seen(read), list(zip(read, origin, strict=True))
        with mixed(compute, processes.device):
            responses = generate(
                student,
                asked,
                pictures,
                max_new_tokens=limit,
                temperature=config.temperature,
                uniforms=uniforms[mine],
            )
        told = [texts.told(i) for i in chosen]
        with mixed(compute, processes.device):
            scored = _teacher_hidden(teacher, told, responses, compute)
        passes = []
        lengths = [len(a) + len(r) for a, r in zip(asked, responses, strict=True)]
        for rows in length_buckets(lengths, compute.pass_tokens):
            batch = make_batch(
                student,
                [asked[r] for r in rows],
                [responses[r] for r in rows],
                pictures[rows],
            )
            tokens = completion_tokens(batch)
            # The most common bug of distillation between prompts: scoring tokens that are not the
            # same. The positions on each side are its own, see `make_batch`.
            if tokens.tolist() != [token for r in rows for token in scored[r].tokens]:
                raise AssertionError("student and teacher must score identical response tokens")
            hidden = torch.cat([scored[r].hidden for r in rows])
            loss_of = distill_loss(student, teacher, hidden, tokens.to(hidden.device), config)
            passes.append(
                Pass(batch, loss_of, len(tokens), [scenes.names[chosen[r]] for r in rows])
            )
        outcomes = _outcomes(student, scenes, chosen, responses)
        work = Work(passes, logged=outcomes, shared=shared)
        if not replayed or text is None:
            return work
        rng = random.Random(f"distill/{config.seed}/{step}")
        tasks = scenes.tasks()
        samples = [text_sample(student, rng, tasks, text, exclude) for _ in range(replayed)]
        text_passes = supervised_passes(student, compute, share(processes, samples))
        return with_text(work, "distill_loss", text_passes, replayed / config.batch)

    return train(
        student,
        config,
        compute,
        processes,
        out,
        "stage 2 (distillation)",
        work_of_step,
        validate,
        {**fingerprint, "data": scenes.digest},
    )


def sees_once(
    student: Backbone, config: DistillConfig, compute: ComputeConfig, processes: int
) -> bool:
    """Return whether a step's pictures are looked at once, for rollouts and passes together.

    That keeps the activations of all of them, where else every pass keeps those of its own.
    """
    if not TAKES_SEEN:
        return False
    tower = student.model.config.vision_config
    patches = -(-config.batch // processes) * student.image.grid**2
    # What a block keeps of a patch, about: norms, queries, keys, values, and the MLP's inside.
    kept = 4 * patches * tower.depth * (10 * tower.hidden_size + 2 * tower.intermediate_size)
    # With an adapter, rollouts are without its dropout.
    return kept <= _SEEN_BYTES and not compute.gradient_checkpointing and not has_adapter(student)


def distill_loss(
    student: Backbone,
    teacher: Teacher,
    hidden: torch.Tensor,
    tokens: torch.Tensor,
    config: DistillConfig,
) -> LossOfLogits:
    """Return the configured estimator as a function of the student's logits.

    Both policies are without the tokens that rollouts suppress. Logged beside the loss are the
    student's entropy and its exact reverse KL to the teacher.

    Args:
        student: says which tokens are suppressed.
        teacher: projects its hidden states.
        hidden: the teacher's last hidden states that predict `tokens` [N, H].
        tokens: of the responses [N].
        config: estimator and direction.
    """
    never = torch.tensor(student.suppressed_tokens(), device=hidden.device)

    def loss_of(
        logits: torch.Tensor, places: slice
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        with torch.no_grad():
            scored = linear(hidden[places], teacher.backbone.model.lm_head.weight).float()
            target = log_softmax(scored.index_fill_(-1, never, _NEVER), -1)
            del scored
        log_p = log_softmax(logits.index_fill(-1, never, _NEVER), -1)
        losses = token_losses(log_p, target, tokens[places], config)
        seen = log_p.detach()
        exact = config.estimator == "full" and config.direction == "reverse"
        kl = losses.detach() if exact else divergence(seen, target)
        return losses, {"entropy": entropy(seen), "kl": kl}

    return loss_of


def token_losses(
    student: torch.Tensor, teacher: torch.Tensor, tokens: torch.Tensor, config: DistillConfig
) -> torch.Tensor:
    """Return the configured estimator's loss at every response token, float32 [N].

    Takes log-probabilities [N, V]. One inner epoch: the policy that sampled the tokens is the
    student as it is.
    """
    if config.estimator == "full":
        return divergence(student, teacher, config.direction, config.mix)
    if config.estimator == "topk":
        return topk_divergence(student, teacher, config.topk, config.direction, config.mix)
    old = student.detach().gather(-1, tokens[:, None])[:, 0]
    clips = (config.clip_low, config.clip_high, config.dual_clip)
    return sampled_loss(student, teacher, old, tokens, *clips)


class _Texts:
    """Token ids of every scene's prompts, each encoded once, when it is first needed."""

    def __init__(
        self,
        student: Backbone,
        teacher: Backbone,
        config: DistillConfig,
        compute: ComputeConfig,
        scenes: Scenes,
    ) -> None:
        self._student, self._teacher = student, teacher
        self._config, self._compute, self._scenes = config, compute, scenes
        self._asked: dict[str, list[int]] = {}
        self._told: dict[int, list[int]] = {}
        self._lengths: dict[int, int] = {}

    def asked(self, scene: int) -> list[int]:
        """Return what the student reads: the same for every scene of a family."""
        family = self._scenes.states[scene].family
        if family not in self._asked:
            prompt = prompts.student_prompt(family, self._student.style)
            ids = prompt_ids(self._student, prompt)
            check_length(self._student, self._compute, len(ids), self._scenes.names[scene], True)
            self._asked[family] = ids
        return self._asked[family]

    def told(self, scene: int) -> list[int]:
        """Return what the teacher reads."""
        if scene not in self._told:
            state, plan = self._scenes.states[scene], self._scenes.plans[scene]
            shown = plan if self._config.reference else None
            prompt = prompts.symbolic_prompt(state, self._teacher.style, shown)
            ids = prompt_ids(self._teacher, prompt)
            check_length(self._teacher, self._compute, len(ids), self._scenes.names[scene], False)
            self._told[scene] = ids
        return self._told[scene]

    def reference_length(self, scene: int) -> int:
        """Return the tokens of a perfect response."""
        if scene not in self._lengths:
            state, plan = self._scenes.states[scene], self._scenes.plans[scene]
            self._lengths[scene] = len(text_ids(self._student, prompts.response_text(state, plan)))
        return self._lengths[scene]


@dataclass(frozen=True)
class _Read:
    """A response as the teacher read it: its tokens, and the hidden states that predict them."""

    tokens: list[int]
    hidden: torch.Tensor


@torch.no_grad()
def _teacher_hidden(
    teacher: Teacher,
    told: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    compute: ComputeConfig,
) -> list[_Read]:
    model = teacher.backbone.model
    read: dict[int, _Read] = {}
    lengths = [len(t) + len(r) for t, r in zip(told, responses, strict=True)]
    with teacher.alone():
        for rows in length_buckets(lengths, compute.pass_tokens):
            batch = make_batch(
                teacher.backbone, [told[r] for r in rows], [responses[r] for r in rows]
            )
            counts = [len(responses[r]) for r in rows]
            tokens = completion_tokens(batch).split(counts)
            hidden = completion_hidden(model, batch.to(model.device)).split(counts)
            for row, ids, states in zip(rows, tokens, hidden, strict=True):
                read[row] = _Read(ids.tolist(), states)
    return [read[row] for row in range(len(responses))]


def _outcomes(
    student: Backbone, scenes: Scenes, chosen: Sequence[int], responses: Sequence[Sequence[int]]
) -> dict[str, tuple[float, float]]:
    """Return sums and counts of how the responses did; logged, never trained on."""
    texts = student.tokenizer.batch_decode(responses)
    success = legal = perceived = 0
    for i, text in zip(chosen, texts, strict=True):
        state = scenes.states[i]
        parsed = prompts.parse_response(text, state.family)
        perceived += parsed.state == state
        if parsed.plan is not None:
            outcome = simulate(state, parsed.plan)
            success += outcome.success
            legal += outcome.failure in (None, Failure.INCOMPLETE)
    count = len(responses)
    return {
        "success": (success, count),
        "legal": (legal, count),
        "state": (perceived, count),
        "length": (sum(map(len, responses)), count),
    }
