"""Stage 0 (text planning, `nano` only) and stage 1 (cold-start perception alignment).

Both are supervised: next-token loss on the answer alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from mgsd_core import prompts
from mgsd_core.config import ColdstartConfig, ComputeConfig, TextConfig
from mgsd_core.encoding import completion_tokens, length_buckets, make_batch, prompt_ids, text_ids
from mgsd_core.evaluation.answers import judge, read_states
from mgsd_core.evaluation.score import Record
from mgsd_core.model import Backbone
from mgsd_core.processes import share
from mgsd_core.prompts import Prompt
from mgsd_core.scenes import Scenes
from mgsd_core.training import (
    Pass,
    TrainingError,
    ValidateFunction,
    Work,
    epoch_indices,
    train,
    with_steps,
)
from sim import Plan, State, find_family, legal_actions, sample_split, solve, state_digest
from sim.index import recorded_exclusions
from sim.request import Exclusion
from sim.shards import named_exclusion

_NOTHING: Exclusion = {}

# Most actions of a detour.
_LONGEST_DETOUR = 3


@dataclass(frozen=True)
class Sample:
    """A prompt and the text that is to follow it; `scene` names what it is about.

    `begun` is how the answer begins where that part is given, not learned.
    """

    prompt: Prompt
    answer: str
    scene: str
    begun: str = ""


def train_text(
    backbone: Backbone,
    config: TextConfig,
    compute: ComputeConfig,
    processes: Accelerator,
    tasks: Sequence[tuple[str, int]],
    out: Path,
    fingerprint: dict[str, Any],
    exclude: Exclusion = _NOTHING,
) -> Path:
    """Stage 0: teach planning from symbolic text on fresh training states of `tasks`.

    None of them is one of `exclude`.
    """

    def work_of_step(step: int) -> Work:
        rng = random.Random(f"text/{config.seed}/{step}")
        samples = [text_sample(backbone, rng, tasks, config, exclude) for _ in range(config.batch)]
        return Work(supervised_passes(backbone, compute, share(processes, samples)))

    return train(
        backbone,
        config,
        compute,
        processes,
        out,
        "stage 0 (text)",
        work_of_step,
        fingerprint={
            **fingerprint,
            "tasks": [list(t) for t in tasks],
            **exclusion_of_run(exclude, tasks),
        },
    )


def train_coldstart(
    backbone: Backbone,
    config: ColdstartConfig,
    compute: ComputeConfig,
    processes: Accelerator,
    scenes: Scenes,
    out: Path,
    fingerprint: dict[str, Any],
    validate: ValidateFunction | None = None,
    exclude: Exclusion = _NOTHING,
) -> Path:
    """Stage 1: teach to read the state off a picture; optionally replay text planning.

    With `config.target` the plan instead: supervised planning, what MGSD is compared with. The
    replayed text has no state of `exclude`; of the pictures `check_not_shown` tells.

    Raises:
        mgsd_core.training.TrainingError: see `train`, or a sample is longer than allowed.
    """
    tasks = scenes.tasks()
    replayed = config.replayed
    asked = config.batch - replayed
    questions = [
        _asked(state, plan, backbone.style, config)
        for state, plan in zip(scenes.states, scenes.plans, strict=True)
    ]
    # Every question of every picture, where each is asked as often as the others.
    pairs = [(i, j) for i, of_picture in enumerate(questions) for j in range(len(of_picture))]
    config = with_steps(config, len(questions) if config.by_length else len(pairs))
    sizes = [state.size for state in scenes.states]

    def work_of_step(step: int) -> Work:
        rng = random.Random(f"coldstart/{config.seed}/{step}")
        chosen = []
        if config.by_length:
            shown = shown_at(sizes, config, step)
            for place in epoch_indices(len(shown), asked, config.seed, step):
                index = shown[place]
                # What is learned from a picture grows with the words of the answer.
                weights = [len(answer.split()) for _, answer in questions[index]]
                chosen.append((index, rng.choices(range(len(weights)), weights)[0]))
        else:
            chosen = [pairs[p] for p in epoch_indices(len(pairs), asked, config.seed, step)]
        texts = [text_sample(backbone, rng, tasks, config, exclude) for _ in range(replayed)]

        mine = share(processes, chosen)
        samples = [
            Sample(
                prompts.question_prompt(questions[i][j][0], backbone.style),
                questions[i][j][1],
                scenes.names[i],
            )
            for i, j in mine
        ]
        images = scenes.images[[i for i, _ in mine]]
        passes = supervised_passes(backbone, compute, samples, images)
        if not replayed:
            return Work(passes)
        text_passes = supervised_passes(backbone, compute, share(processes, texts))
        return with_text(Work(passes), "question_loss", text_passes, replayed / config.batch)

    return train(
        backbone,
        config,
        compute,
        processes,
        out,
        "stage 1 (perception)",
        work_of_step,
        validate,
        {
            **fingerprint,
            "data": scenes.digest,
            **(exclusion_of_run(exclude, tasks) if replayed else {}),
        },
    )


def with_text(work: Work, name: str, text: Sequence[Pass], share: float) -> Work:
    """Return work, its loss called `name`, beside text planning that has a share of the step."""
    return replace(
        work,
        passes=[replace(p, group=name) for p in work.passes]
        + [replace(p, group="text_loss") for p in text],
        shares={name: 1.0 - share, "text_loss": share},
    )


def check_same_exclusion(data: Path, tasks: Sequence[tuple[str, int]], exclude: Exclusion) -> None:
    """Refuse a data set whose training pictures were made without other states than `exclude`.

    One that left out nothing may do; see `check_not_shown`.

    Raises:
        TrainingError: `data` was made with another `--exclude`.
        sim.dataset.DatasetError: its index is damaged.
    """
    made = recorded_exclusions(data)
    for family, level in tasks:
        before = made.get(f"{family}-{level}-train")
        now = named_exclusion(exclude.get((family, level), frozenset())).get("exclude")
        if before is not None and before != now:
            raise TrainingError(
                f"{data} was made with --exclude: {family} {level} leaves out the states {before}, "
                f"this command {now or 'none'}; give it the same paths, or text planning would "
                "teach what the pictures leave out"
            )


def check_not_shown(scenes: Scenes, exclude: Exclusion) -> None:
    """Raise TrainingError where a picture shows an excluded state."""
    for name, state in zip(scenes.names, scenes.states, strict=True) if exclude else ():
        if state_digest(state) in exclude.get((state.family, state.size), ()):
            raise TrainingError(
                f"{name} shows a state that --exclude keeps out: make the pictures for training "
                "and validation with the same --exclude"
            )


def exclusion_of_run(exclude: Exclusion, tasks: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """Return what names excluded states in what a resumed run compares: nothing if there are none.

    A run that was begun without any goes on as it was.
    """
    left_out = {
        f"{family}-{level}": name
        for family, level in tasks
        for name in named_exclusion(exclude.get((family, level), frozenset())).values()
    }
    return {"exclude": left_out} if left_out else {}


def _asked(state: State, plan: Plan, style: str, config: ColdstartConfig) -> list[tuple[str, str]]:
    """Return what the stage asks about a picture, and the answers."""
    if config.target == "plan":
        return [(prompts.instruction(state.family, style), prompts.response_text(state, plan))]
    return prompts.questions(state)


def shown_at(sizes: Sequence[int], config: ColdstartConfig, step: int) -> Sequence[int]:
    """Return which pictures the curriculum shows at a step.

    Args:
        sizes: level of each picture.
        config: of the stage.
        step: from 0 on.
    """
    levels = sorted(set(sizes))
    span = config.curriculum * config.steps
    count = len(levels) if step >= span else 1 + int(step * len(levels) / span)
    return [i for i, size in enumerate(sizes) if size <= levels[count - 1]]


def state_recovery(backbone: Backbone, scenes: Scenes) -> list[Record]:
    """Ask for the state of every picture and judge the answers; nothing is planned."""
    return judge(scenes, partial(read_states, backbone))


def text_sample(
    backbone: Backbone,
    rng: random.Random,
    tasks: Sequence[tuple[str, int]],
    config: TextConfig | ColdstartConfig,
    exclude: Exclusion = _NOTHING,
) -> Sample:
    """Return a text planning problem on a random training state, with its perfect response.

    The state is none of `exclude`. With a detour the response begins with a way that leaves the
    shortest one, and what is learned is how to go on from there: as a teacher it must know that of
    any response. Where the state is its own, the prompt is that of a student without its picture,
    and the response begins with the state.
    """
    family, level = rng.choice(tasks)
    seed = rng.getrandbits(48)
    state = sample_split(family, level, "train", seed, exclude.get((family, level), ()))
    plan = solve(state)
    assert plan is not None, "sampled states can be solved"
    shown = plan if rng.random() < config.reference else None
    prompt = prompts.symbolic_prompt(state, backbone.style, shown)
    scene = f"{family}-{level}-train-{seed}"
    begun = ""
    # No random number is drawn for what is not asked for: what was trained so stays as it is.
    if config.own_state and rng.random() < config.own_state:
        prompt = replace(prompts.student_prompt(family, backbone.style), has_image=False)
        begun = prompts.state_text(state)
    if config.detours and rng.random() < config.detours:
        gone, rest = detour(state, plan, rng)
        if rest is not None:
            plan = gone + rest
            begun = f"{prompts.state_text(state)} {prompts.route_text(state, gone).rstrip('.')}"
    return Sample(prompt, prompts.response_text(state, plan), scene, begun)


def detour(state: State, plan: Plan, rng: random.Random) -> tuple[Plan, Plan | None]:
    """Leave a plan somewhere for some random legal actions.

    Returns:
        The actions up to there, and the shortest plan from there on, None where there is none.
    """
    family = find_family(state.family)
    kept, extra = rng.randrange(len(plan)), rng.randint(1, _LONGEST_DETOUR)
    gone: list[StrEnum] = []
    pose = family.begin(state)
    for number in range(kept + extra):
        action = plan[number] if number < kept else rng.choice(legal_actions(state, pose))
        after = family.step(state, pose, action)
        assert not isinstance(after, StrEnum), "actions of a plan and legal ones can be done"
        if after.done:
            break
        gone.append(action)
        pose = after
    return tuple(gone), solve(state, pose)


def supervised_passes(
    backbone: Backbone,
    compute: ComputeConfig,
    samples: Sequence[Sample],
    images: NDArray[np.uint8] | None = None,
) -> list[Pass]:
    """Return passes whose loss is that of the answers, each followed by the end of the turn.

    Args:
        backbone: the model.
        compute: how long sequences and passes may be.
        samples: prompts and answers.
        images: fitted pictures uint8 [N, size, size, 3], one a sample, or None for text.

    Raises:
        mgsd_core.training.TrainingError: a sample is longer than `compute.max_tokens`.
    """
    asked, said = [], []
    for sample in samples:
        answer = text_ids(backbone, sample.answer)
        given = text_ids(backbone, sample.begun) if sample.begun else []
        same = takewhile(lambda pair: pair[0] == pair[1], zip(given, answer, strict=False))
        count = len(list(same))
        asked.append([*prompt_ids(backbone, sample.prompt), *answer[:count]])
        said.append([*answer[count:], backbone.end_token])
    lengths = [len(a) + len(s) for a, s in zip(asked, said, strict=True)]
    for sample, length in zip(samples, lengths, strict=True):
        check_length(backbone, compute, length, sample.scene, sample.prompt.has_image)
    passes = []
    for chosen in length_buckets(lengths, compute.pass_tokens):
        batch = make_batch(
            backbone,
            [asked[i] for i in chosen],
            [said[i] for i in chosen],
            None if images is None else images[chosen],
        )
        tokens = completion_tokens(batch)
        passes.append(
            Pass(batch, _cross_entropy(tokens), len(tokens), [samples[i].scene for i in chosen])
        )
    return passes


def check_length(
    backbone: Backbone, compute: ComputeConfig, length: int, scene: str, has_image: bool
) -> None:
    """Raise TrainingError where a sequence of so many tokens is longer than is allowed."""
    if length > compute.max_tokens:
        picture = f", {backbone.image.tokens} of them the picture's" if has_image else ""
        smaller = " or make backbone.image_size smaller" if has_image else ""
        raise TrainingError(
            f"scene {scene} takes {length} tokens{picture}, above compute.max_tokens = "
            f"{compute.max_tokens}; raise it{smaller}"
        )


def _cross_entropy(tokens: torch.Tensor) -> Any:
    def loss_of(logits: torch.Tensor, places: slice) -> tuple[torch.Tensor, dict[str, Any]]:
        return cross_entropy(logits, tokens[places].to(logits.device), reduction="none"), {}

    return loss_of
