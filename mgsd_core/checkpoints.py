"""What a stage leaves on the disk while it trains: checkpoints to go on from, and the best weights.

Checkpoints hold whole tensors in safetensors, so that a run can go on with another number of
processes. Whatever is written stands under a temporary name until it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mgsd_core.processes import agree, like, whole
from mgsd_core.updates import Updates

#: Older ones are removed.
_KEPT = 2


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says why."""


@dataclass(frozen=True)
class Best:
    """The best weights so far: their validation score and the step that they come from."""

    score: float
    step: int

    @property
    def file_name(self) -> str:
        """Name of their file."""
        return f"best-{self.step:08d}.safetensors"


def save_checkpoint(
    processes: Accelerator,
    out: Path,
    step: int,
    updates: Updates,
    best: Best | None,
) -> None:
    """Write everything that a run needs to go on after `step` steps.

    Raises:
        OSError: it cannot be written; the checkpoints before it are intact.
    """
    weights = {name: whole(parameter) for name, parameter in updates.parameters.items()}
    moments = updates.moments()

    def write() -> None:
        with _directory(out / f"checkpoint-{step:08d}") as temporary:
            _save(weights, temporary / "model.safetensors")
            _save(moments, temporary / "optimizer.safetensors")
            summary = None if best is None else {"score": best.score, "step": best.step}
            (temporary / "state.json").write_text(json.dumps({"step": step, "best": summary}))
        checkpoints = sorted(out.glob("checkpoint-*"))
        for old in checkpoints[:-_KEPT]:
            shutil.rmtree(old)
        needed = {b.file_name for c in checkpoints[-_KEPT:] if (b := _read_state(c)[1])}
        for file in out.glob("best-*"):
            if file.name not in needed:
                file.unlink()

    _on_main(processes, write)


def save_best(
    processes: Accelerator,
    out: Path,
    best: Best,
    parameters: Mapping[str, torch.nn.Parameter],
) -> None:
    """Write the weights as they are as the best so far.

    Raises:
        OSError: they cannot be written.
    """
    weights = {name: whole(parameter) for name, parameter in parameters.items()}
    _on_main(processes, lambda: _save(weights, out / best.file_name))


def load_best(out: Path, best: Best, parameters: Mapping[str, torch.nn.Parameter]) -> None:
    """Put the best weights into the parameters."""
    _fill(parameters, load_file(out / best.file_name))


def load_checkpoint(processes: Accelerator, out: Path, updates: Updates) -> tuple[int, Best | None]:
    """Load the newest checkpoint, if any; return the steps done and the best weights so far.

    Raises:
        CheckpointError: it is damaged.
    """
    if processes.is_main_process:
        for leftover in out.glob("*.tmp"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    processes.wait_for_everyone()
    found = sorted(out.glob("checkpoint-*"))
    if not found:
        return 0, None
    newest = found[-1]
    try:
        step, best = _read_state(newest)
        weights = load_file(newest / "model.safetensors")
        moments = load_file(newest / "optimizer.safetensors")
        if best is not None and not (out / best.file_name).is_file():
            raise FileNotFoundError(f"{best.file_name} is missing")
        _fill(updates.parameters, weights)
        updates.restore(moments)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"checkpoint {newest} is damaged ({error}); remove it to go on from the one before"
        ) from None
    return step, best


def remove_checkpoints(out: Path) -> None:
    """Remove all that is needed no more once a stage's weights are written."""
    for old in out.glob("checkpoint-*"):
        shutil.rmtree(old)
    for old in out.glob("best-*"):
        old.unlink()


def write_directory(processes: Accelerator, path: Path, write: Callable[[Path], None]) -> None:
    """Let the main process write a directory, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """

    def make() -> None:
        with _directory(path) as temporary:
            write(temporary)

    _on_main(processes, make)


def _on_main(processes: Accelerator, action: Callable[[], None]) -> None:
    error: Exception | None = None
    if processes.is_main_process:
        try:
            action()
        except SafetensorError as failed:  # what it makes of a full disk, among others
            error = OSError(str(failed))
        except OSError as failed:
            error = failed
    agree(processes, error)


@contextmanager
def _directory(path: Path) -> Iterator[Path]:
    temporary = path.with_name(f"{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        save_file(tensors, temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _read_state(checkpoint: Path) -> tuple[int, Best | None]:
    state = json.loads((checkpoint / "state.json").read_text())
    return int(state["step"]), None if state["best"] is None else Best(**state["best"])


@torch.no_grad()
def _fill(
    parameters: Mapping[str, torch.nn.Parameter], weights: Mapping[str, torch.Tensor]
) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(like(weights[name], parameter))
