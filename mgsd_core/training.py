"""The one training loop of all stages: optimizer, schedule, metrics, checkpoints that resume.

A stage hands in a function from the step's number to a loss. Whatever is random in a step is drawn
from the stage's seed and that number, so a checkpoint needs no generator state, and a run that was
killed goes on to the same weights, bit for bit, on one machine.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from mgsd_core.config import StageConfig, config_dict
from mgsd_core.model import Backbone, save_backbone
from sim.files import write_file

#: Loss of one step and what to log beside it.
StepFunction = Callable[[int], tuple[torch.Tensor, dict[str, float]]]
#: Validation score (larger is better) of the weights as they are now, and what to log beside it.
ValidateFunction = Callable[[], tuple[float, dict[str, float]]]


class TrainingError(ValueError):
    """Training that cannot start or go on; the message says why and what is left intact."""


@dataclass
class _Best:
    score: float
    step: int
    weights: dict[str, torch.Tensor]


def train(
    backbone: Backbone,
    config: StageConfig,
    out: Path,
    name: str,
    loss_of_step: StepFunction,
    validate: ValidateFunction | None = None,
    fingerprint: dict[str, Any] | None = None,
) -> Path:
    """Train a stage, or go on where it stopped, and return the directory of its weights.

    Args:
        backbone: trained in place; ends with the weights that were written.
        config: of the stage.
        out: directory of the stage: `model/` when done, `checkpoint-N/` before, `metrics.jsonl`.
        name: shown on the progress bar.
        loss_of_step: see `StepFunction`.
        validate: called every `config.validate_every` steps; the best weights are kept.
        fingerprint: what else the result depends on (data, starting weights).

    Raises:
        TrainingError: `out` belongs to another run, or the loss is not finite.
    """
    wanted = {"config": config_dict(config), **(fingerprint or {})}
    final = out / "model"
    out.mkdir(parents=True, exist_ok=True)
    _check_same_run(out, wanted)
    if final.is_dir():
        _remove_checkpoints(out)  # a kill may have come between the weights and this
        weights = load_file(final / "model.safetensors")
        backbone.model.load_state_dict(weights, strict=False)
        backbone.model.tie_weights()
        backbone.model.eval()
        return final

    model = backbone.model
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    first, best = _resume(out, parameters, optimizer)
    metrics = _Metrics(out / "metrics.jsonl", first)
    model.train()
    with tqdm(
        total=config.steps, initial=first, desc=name, unit="step", disable=None, mininterval=0.5
    ) as bar:
        for step in range(first, config.steps):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * rate(config, step)
            loss, logged = loss_of_step(step)
            value = loss.item()
            if not math.isfinite(value):
                raise TrainingError(
                    f"{name}: the loss of step {step} is {value}; the last checkpoint in {out} "
                    "is intact, try a smaller learning rate"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters.values(), config.clip)
            optimizer.step()
            done = step + 1
            logged = {"loss": value, "gradient_norm": norm.item(), **logged}
            if (
                validate
                and config.validate_every
                and (done % config.validate_every == 0 or done == config.steps)
            ):
                model.eval()
                score, scores = validate()
                model.train()
                logged |= {"validation": score, **scores}
                if best is None or score >= best.score:
                    best = _Best(
                        score, done, {n: p.detach().clone() for n, p in parameters.items()}
                    )
            metrics.write({"step": done, **logged})
            bar.set_postfix_str(_summary(logged, best), refresh=False)
            bar.update()
            if done % config.checkpoint_every == 0 and done < config.steps:
                _save_checkpoint(out, done, parameters, optimizer, best)
    model.eval()
    if best is not None:
        with torch.no_grad():
            for n, p in parameters.items():
                p.copy_(best.weights[n])
    metrics.close()
    temporary = _fresh(out / "model.tmp")
    save_backbone(backbone, temporary)
    os.replace(temporary, final)
    _remove_checkpoints(out)
    return final


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


_permutations: dict[tuple[int, int, int], torch.Tensor] = {}


def _permutation(count: int, seed: int, epoch: int) -> torch.Tensor:
    key = (count, seed, epoch)
    if key not in _permutations:
        _permutations.clear()
        _permutations[key] = torch.randperm(count, generator=step_generator(seed, epoch, "epoch"))
    return _permutations[key]


def directory_digest(path: Path) -> str:
    """Return the SHA-256 (hex) of a weights directory: what a later stage's result depends on."""
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _check_same_run(out: Path, wanted: dict[str, Any]) -> None:
    file = out / "run.json"
    text = json.dumps(wanted, indent=1, sort_keys=True) + "\n"
    if file.is_file():
        if file.read_text() == text:
            return
        try:
            was = json.loads(file.read_text())
        except ValueError:
            raise TrainingError(f"{file} is damaged; remove {out} to train again") from None
        raise TrainingError(
            f"{out} belongs to a run with other settings ({_difference(was, json.loads(text))}); "
            "give another directory or remove it"
        )
    write_file(file, text)


def _difference(was: Any, now: Any, where: str = "") -> str:
    if isinstance(was, dict) and isinstance(now, dict):
        for key in sorted({*was, *now}):
            if was.get(key) != now.get(key):
                return _difference(was.get(key), now.get(key), f"{where}.{key}" if where else key)
    return f"{where} was {was!r}, is {now!r}"


def _resume(
    out: Path, parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> tuple[int, _Best | None]:
    """Load the newest checkpoint; return the step to go on with and the best weights so far."""
    for leftover in out.glob("*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    found = sorted(out.glob("checkpoint-*"))
    if not found:
        return 0, None
    newest = found[-1]
    try:
        state = json.loads((newest / "state.json").read_text())
        weights = load_file(newest / "model.safetensors")
        moments = load_file(newest / "optimizer.safetensors")
        best = None
        if state["best"] is not None:
            best = _Best(**state["best"], weights=load_file(newest / "best.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise TrainingError(
            f"checkpoint {newest} is damaged ({error}); remove it to go on from the one before"
        ) from None
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
            if f"{name}.step" in moments:
                optimizer.state[parameter] = {
                    "step": moments[f"{name}.step"],
                    "exp_avg": moments[f"{name}.exp_avg"].to(parameter.device),
                    "exp_avg_sq": moments[f"{name}.exp_avg_sq"].to(parameter.device),
                }
    return int(state["step"]), best


def _save_checkpoint(
    out: Path,
    step: int,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    best: _Best | None,
) -> None:
    temporary = _fresh(out / "checkpoint.tmp")
    temporary.mkdir()
    save_file(
        {n: p.detach().contiguous() for n, p in parameters.items()}, temporary / "model.safetensors"
    )
    moments = {
        f"{name}.{key}": value.detach().contiguous()
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }
    save_file(moments, temporary / "optimizer.safetensors")
    summary = None
    if best is not None:
        summary = {"score": best.score, "step": best.step}
        save_file(best.weights, temporary / "best.safetensors")
    (temporary / "state.json").write_text(json.dumps({"step": step, "best": summary}))
    os.replace(temporary, out / f"checkpoint-{step:08d}")
    for old in sorted(out.glob("checkpoint-*"))[:-2]:
        shutil.rmtree(old)


def _remove_checkpoints(out: Path) -> None:
    for old in out.glob("checkpoint-*"):
        shutil.rmtree(old)


def _fresh(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    return path


class _Metrics:
    """JSON lines, one a step; lines after the checkpoint that a run goes on from are dropped."""

    def __init__(self, path: Path, first: int) -> None:
        kept = path.read_text().splitlines()[:first] if path.is_file() and first else []
        write_file(path, "".join(f"{line}\n" for line in kept))
        self._file = path.open("a", buffering=1)  # by lines, to be watched while it grows

    def write(self, line: dict[str, float]) -> None:
        self._file.write(json.dumps({k: round(v, 6) for k, v in line.items()}) + "\n")

    def close(self) -> None:
        self._file.close()


def _summary(logged: dict[str, float], best: _Best | None) -> str:
    text = f"loss {logged['loss']:.3f}"
    return text if best is None else f"{text}, best {best.score:.3f} at {best.step}"
