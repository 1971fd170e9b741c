"""The one training loop of all stages: passes, optimizer, schedule, metrics, checkpoints.

A stage hands in a function from the step's number to the work of that step. Whatever is random in
it is drawn from the stage's seed and that number, so a checkpoint needs no generator state, and a
run that was killed goes on to the same weights, bit for bit, on one machine.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from tqdm import tqdm
from transformers import Qwen3VLForConditionalGeneration

from mgsd_core.checkpoints import (
    Best,
    load_best,
    load_checkpoint,
    remove_checkpoints,
    save_best,
    save_checkpoint,
    write_directory,
)
from mgsd_core.config import ComputeConfig, StageConfig, TextConfig, config_dict
from mgsd_core.encoding import Batch, completion_hidden
from mgsd_core.kernels import quicken
from mgsd_core.metrics import Metrics
from mgsd_core.model import Backbone, save_backbone
from mgsd_core.processes import agree, sums, together, whole, whole_weights
from mgsd_core.updates import Updates, start_updates
from mgsd_core.vocabulary import LossOfLogits, chunk_length, chunked_loss
from sim.files import write_file

C = TypeVar("C", bound=StageConfig)

# What earlier versions did not write into run.json: a run without them goes on as it was begun.
_NOTED_LATER = ("prompt_style", "validation")


class TrainingError(ValueError):
    """Training that cannot start or go on; the message says why and what is left intact."""


@dataclass(frozen=True)
class Pass:
    """A part of a step's batch that goes forward and backward at once.

    Attributes:
        batch: its sequences, on any device.
        loss_of: losses of its completion tokens, in the order of `encoding.completion_tokens`.
        tokens: completion tokens.
        scenes: names of what it shows, for error messages.
        group: tokens of a group are averaged together.
    """

    batch: Batch
    loss_of: LossOfLogits
    tokens: int
    scenes: Sequence[str]
    group: str = "loss"


@dataclass(frozen=True)
class Work:
    """One process's share of a step.

    Attributes:
        passes: what goes forward and backward.
        shares: weight of each group's mean in the step's loss.
        logged: (sum, count) of further values; their means over all processes are logged.
        shared: tensors that passes read in place of what these were computed from, with what they
            were: their gradients, once all passes have added to them, are passed on.
    """

    passes: Sequence[Pass]
    shares: Mapping[str, float] = field(default_factory=lambda: {"loss": 1.0})
    logged: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    shared: Sequence[tuple[torch.Tensor, torch.Tensor]] = ()


#: This process's work of a step.
StepFunction = Callable[[int], Work]
#: Validation score (larger is better) of the weights as they are now, and what to log beside it.
ValidateFunction = Callable[[], tuple[float, dict[str, float]]]


class PassLoss(torch.nn.Module):
    """A model as the function from a pass to the sum of its losses."""

    def __init__(self, model: Qwen3VLForConditionalGeneration, compute: ComputeConfig) -> None:
        super().__init__()
        self.model = model
        self._chunk = chunk_length(model.config.text_config.vocab_size, compute.logit_mib)
        self._compute = compute

    def forward(
        self, batch: Batch, loss_of: LossOfLogits
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the sum of the losses, with gradient, and the sums of what they log."""
        with mixed(self._compute, batch.ids.device):
            hidden = completion_hidden(self.model, batch)
            return chunked_loss(hidden, self.model.lm_head.weight, loss_of, self._chunk)


def mixed(compute: ComputeConfig, device: torch.device) -> torch.autocast:
    """Return the context in which products are computed in the configured precision.

    A new one for every stretch with or without gradients: it keeps weights that it converted, and
    one that was converted without gradients would get none later.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=compute.precision == "bf16")


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep others from training into the same directory; the lock ends with this process."""
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError(
                f"{out} is being trained by another process; wait for it, or take another --out"
            ) from None
        yield


@contextmanager
def _claimed(processes: Accelerator, out: Path, wanted: dict[str, Any]) -> Iterator[None]:
    """Keep a directory for one run, in which nothing is written before it is known to be its own.

    A run that is done is only read, by as many as like.
    """
    with ExitStack() as kept:
        error: Exception | None = None
        if processes.is_main_process:
            try:
                out.mkdir(parents=True, exist_ok=True)
                if not (out / "model").is_dir():
                    kept.enter_context(_locked(out))
                _check_same_run(out, wanted)
            except (OSError, TrainingError) as failed:
                error = failed
        agree(processes, error)
        yield


def train(
    backbone: Backbone,
    config: StageConfig,
    compute: ComputeConfig,
    processes: Accelerator,
    out: Path,
    name: str,
    work_of_step: StepFunction,
    validate: ValidateFunction | None = None,
    fingerprint: dict[str, Any] | None = None,
) -> Path:
    """Train a stage, or go on where it stopped, and return the directory of its weights.

    Args:
        backbone: trained in place, what of it requires gradients; ends with the weights that were
            written.
        config: of the stage.
        compute: how a step is computed.
        processes: that train together.
        out: directory of the stage: `model/` when done; `checkpoint-N/` and `best-N.safetensors`
            before; `metrics.jsonl` and `tensorboard/`.
        name: shown on the progress bar.
        work_of_step: see `StepFunction`.
        validate: called every `config.validate_every` steps; the best weights are kept.
        fingerprint: what else the result depends on (data, starting weights).

    Raises:
        TrainingError: `out` belongs to another run or is in use, or a loss is not finite.
        mgsd_core.checkpoints.CheckpointError: the newest checkpoint is damaged.
        OSError: something cannot be written.
    """
    wanted = {"config": config_dict(config), "compute": config_dict(compute), **(fingerprint or {})}
    with _claimed(processes, out, wanted):
        final = out / "model"
        if not final.is_dir():
            return _train(backbone, config, compute, processes, out, name, work_of_step, validate)
        if processes.is_main_process:
            remove_checkpoints(out)  # a kill may have come between the weights and this
        load_weights(backbone, final)
        return final


def _train(
    backbone: Backbone,
    config: StageConfig,
    compute: ComputeConfig,
    processes: Accelerator,
    out: Path,
    name: str,
    work_of_step: StepFunction,
    validate: ValidateFunction | None,
) -> Path:
    """Train what is not done, in a directory that nobody else writes; see `train`."""
    model = backbone.model
    if config.batch - config.replayed < processes.num_processes:
        less = f", {config.replayed} of it replayed text" if config.replayed else ""
        raise TrainingError(
            f"{name}: {processes.num_processes} processes cannot share a batch of "
            f"{config.batch}{less}"
        )
    model.to(processes.device)
    quicken(model)
    if compute.gradient_checkpointing:
        activation_checkpointing(model, True)
    updates = start_updates(
        processes,
        PassLoss(model, compute),
        [*model.model.language_model.layers, *model.model.visual.blocks],
        config,
        compute,
        # Only nano has stage 0, and the same model goes on to stage 1.
        split=not isinstance(config, TextConfig),
    )
    drops = any(isinstance(part, torch.nn.Dropout) and part.p for part in model.modules())
    first, best = load_checkpoint(processes, out, updates)
    metrics = Metrics(out, first) if processes.is_main_process else None
    with (
        tqdm(
            total=config.steps,
            initial=first,
            desc=name,
            unit="step",
            disable=None if processes.is_main_process else True,
            mininterval=0.5,
        ) as bar,
        metrics or nullcontext(),
    ):
        for step in range(first, config.steps):
            began = time.perf_counter()
            model.eval()
            with whole_weights(updates.module):
                attempted = _attempted(work_of_step, step)
            work, tokens = _agreed(processes, attempted)
            model.train()
            if drops:  # from torch's own generator; else nothing here draws from that
                purpose = f"dropout/{processes.process_index}"
                torch.manual_seed(step_generator(config.seed, step, purpose).initial_seed())
            what = f"{name}: the loss of step {step}"
            logged = _add_gradients(updates, work, tokens, processes, what)
            if (norm := updates.gradient_norm()) is not None:
                logged["gradient_norm"] = norm
                if not math.isfinite(norm):
                    names = together(processes, [n for p in work.passes for n in p.scenes])
                    where = f"{name}: the gradient of step {step}"
                    raise TrainingError(f"{where} is {norm} ({_scenes(names)}); {_INTACT}")
            updates.step(config.learning_rate * rate(config, step))
            done = step + 1
            last = done == config.steps
            if validate and config.validate_every and (done % config.validate_every == 0 or last):
                model.eval()
                with whole_weights(updates.module):
                    score, scores = validate()
                logged |= {"validation": score, **scores}
                if best is None or score >= best.score:
                    best = Best(score, done)
                    save_best(processes, out, best, updates.parameters)
                elif (
                    config.patience and done - best.step >= config.patience * config.validate_every
                ):
                    last = True
            if metrics is not None:
                metrics.write(done, logged, time.perf_counter() - began)
            bar.set_postfix_str(_summary(logged, best), refresh=False)
            bar.update()
            if last:
                break
            if done % config.checkpoint_every == 0:
                save_checkpoint(processes, out, done, updates, best)
    model.eval()
    if compute.gradient_checkpointing:
        activation_checkpointing(model, False)
    if best is not None:
        load_best(out, best, updates.parameters)
    # By parameters, not by the state: tied ones would be written twice.
    weights = {n: whole(p) for n, p in model.named_parameters()} if updates.in_step else None
    final = out / "model"
    write_directory(processes, final, lambda path: save_backbone(backbone, path, weights))
    if processes.is_main_process:
        remove_checkpoints(out)
    return final


def activation_checkpointing(model: torch.nn.Module, wanted: bool) -> None:
    """Keep one activation a layer and compute the others again when they are needed, or not."""
    action, arguments = ("enable", ({"use_reentrant": False},)) if wanted else ("disable", ())
    # transformers 5.20 or so renamed it and warns of the old name.
    for name in (f"activation_checkpointing_{action}", f"gradient_checkpointing_{action}"):
        if hasattr(model, name):
            getattr(model, name)(*arguments)
            return


def _attempted(work_of_step: StepFunction, step: int) -> Work | Exception:
    """Return a step's work, or the error in its place, which all processes are to be told."""
    try:
        return work_of_step(step)
    except (ValueError, OSError) as error:
        return error


def _agreed(processes: Accelerator, attempted: Work | Exception) -> tuple[Work, dict[str, float]]:
    """Return this process's work, and the completion tokens of each group in all of them.

    Raises in every process the first error that one of them met: with the numbers that they
    exchange anyway, since an exchange of its own would make every step longer.
    """
    mine: Any = attempted
    if isinstance(attempted, Work):
        passes = attempted.passes
        mine = {g: sum(p.tokens for p in passes if p.group == g) for g in attempted.shares}
    found = together(processes, [mine])
    for other in found:
        if isinstance(other, Exception):
            raise other
    assert isinstance(attempted, Work)
    return attempted, {group: float(sum(f[group] for f in found)) for group in found[0]}


def _add_gradients(
    updates: Updates,
    work: Work,
    tokens: Mapping[str, float],
    processes: Accelerator,
    what: str,
) -> dict[str, float]:
    """Add a step's gradient to the parameters and return the means of what is logged.

    Args:
        updates: of the module.
        work: of this process.
        tokens: of each group in all processes.
        processes: that train together.
        what: is computed, for error messages.
    """
    groups = list(work.shares)
    passes = list(work.passes)
    if updates.in_step:
        passes = _in_step(processes, groups, passes)
    found: list[tuple[Pass, torch.Tensor, dict[str, torch.Tensor]]] = []
    for i, part in enumerate(passes):
        total, extra = updates.module(part.batch.to(processes.device), part.loss_of)
        share = work.shares[part.group] / tokens[part.group] if part.tokens else 0.0
        updates.backward(total * share, last=i == len(passes) - 1)
        if part.tokens:
            found.append((part, total.detach(), extra))
    if work.shared:
        torch.autograd.backward(
            [origin for _, origin in work.shared], [read.grad for read, _ in work.shared]
        )
    bad = [n for part, total, _ in found if not torch.isfinite(total) for n in part.scenes]
    if names := together(processes, bad):
        raise TrainingError(f"{what} is not finite ({_scenes(names)}); {_INTACT}")
    names_and_groups = [(g, g) for g in groups]
    values = [sum(float(t) for p, t, _ in found if p.group == g) for g in groups]
    for group in groups:
        for name in next((e for p, _, e in found if p.group == group), {}):
            names_and_groups.append((name, group))
            values.append(sum(float(e[name]) for p, _, e in found if p.group == group))
    means = {
        name: value / tokens[group]
        for (name, group), value in zip(names_and_groups, sums(processes, values), strict=True)
    }
    means["loss"] = sum(work.shares[g] * means[g] for g in groups)
    totals = sums(processes, [v for pair in work.logged.values() for v in pair])
    for i, name in enumerate(work.logged):
        means[name] = totals[2 * i] / totals[2 * i + 1]
    return means | {"tokens": sum(tokens.values())}


def _in_step(processes: Accelerator, groups: Sequence[str], passes: Sequence[Pass]) -> list[Pass]:
    """Return as many passes of each group in every process; those added count no token.

    Split parameters are gathered by all processes together, and text needs others than pictures.
    """
    counts = together(processes, [[sum(p.group == g for p in passes) for g in groups]])
    filled = []
    for group, column in zip(groups, zip(*counts, strict=True), strict=True):
        mine = [p for p in passes if p.group == group]
        most = max(column)
        if most and not min(column):  # of any process: all are to end
            raise TrainingError(
                f"the batch is too small to be shared out among {processes.num_processes} processes"
            )
        filled += mine + [replace(p, tokens=0) for p in mine[:1]] * (most - len(mine))
    return filled


_INTACT = "the checkpoints before it are intact; try a smaller learning rate"


def _scenes(names: Sequence[str]) -> str:
    return f"scene{'s' if len(names) > 1 else ''} {', '.join(names)}"


def load_weights(backbone: Backbone, path: Path) -> None:
    """Load what a finished stage wrote into the backbone that it was trained from."""
    adapter = path / "adapter_model.safetensors"
    if adapter.is_file():
        set_peft_model_state_dict(backbone.model, load_file(adapter))
    else:
        for file in sorted(path.glob("*.safetensors")):
            backbone.model.load_state_dict(load_file(file), strict=False)
        backbone.model.tie_weights()
    backbone.model.eval()


def with_steps(config: C, samples: int) -> C:
    """Return the configuration with its epochs over so many samples turned into steps."""
    if not config.epochs:
        return config
    a_step = config.batch - config.replayed
    return replace(config, steps=math.ceil(config.epochs * samples / a_step), epochs=0.0)


def rate(config: StageConfig, step: int) -> float:
    """Return the learning rate of a step as a share of its peak."""
    warm = config.warmup * config.steps
    if step < warm:
        return (step + 1) / (warm + 1)
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(config.steps - warm, 1)))


def step_generator(seed: int, step: int, purpose: str = "") -> torch.Generator:
    """Return the source of all randomness of one step."""
    text = f"{seed}/{step}/{purpose}"
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
    return torch.Generator().manual_seed(number)


def epoch_indices(count: int, batch: int, seed: int, step: int) -> list[int]:
    """Return the samples of a step: every epoch is a permutation, batches run over its end."""
    chosen = []
    for position in range(step * batch, (step + 1) * batch):
        epoch, offset = divmod(position, count)
        chosen.append(int(_permutation(count, seed, epoch)[offset]))
    return chosen


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> torch.Tensor:
    return torch.randperm(count, generator=step_generator(seed, epoch, "epoch"))


def directory_digest(path: Path) -> str:
    """Return the SHA-256 (hex) of a weights directory: what a later stage's result depends on."""
    digest = hashlib.sha256()
    for name in sorted(path.glob("*.safetensors")):
        with name.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def _check_same_run(out: Path, wanted: dict[str, Any]) -> None:
    file = out / "run.json"
    text = json.dumps(wanted, indent=1, sort_keys=True) + "\n"
    if file.is_file():
        if file.read_text() == text:
            return
        if not (out / "model").is_dir() and not any(out.glob("checkpoint-*")):
            write_file(file, text)  # nothing is lost
            return
        now = json.loads(text)
        try:
            was = json.loads(file.read_text())
            for key in _NOTED_LATER:
                if key not in was:
                    now.pop(key, None)
        except (ValueError, TypeError):
            raise TrainingError(f"{file} is damaged; remove {out} to train again") from None
        if was == now:
            return
        raise TrainingError(
            f"{out} belongs to a run with other settings ({_difference(was, now)}); "
            "give another directory or remove it"
        )
    write_file(file, text)


def _difference(was: Any, now: Any, where: str = "") -> str:
    if isinstance(was, dict) and isinstance(now, dict):
        for key in sorted({*was, *now}):
            if was.get(key) != now.get(key):
                return _difference(was.get(key), now.get(key), f"{where}.{key}" if where else key)
    return f"{where} was {was!r}, is {now!r}"


def _summary(logged: dict[str, float], best: Best | None) -> str:
    text = f"loss {logged['loss']:.3f}"
    return text if best is None else f"{text}, best {best.score:.3f} at {best.step}"
