"""What a stage logs: a JSON line a step for programs, TensorBoard for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from sim.files import write_file


class Metrics:
    """Writes `metrics.jsonl` and `tensorboard/` of a stage; what a resumed run repeats is dropped.

    A context manager.

    Args:
        out: directory of the stage.
        first: steps that are done.
    """

    def __init__(self, out: Path, first: int) -> None:
        path = out / "metrics.jsonl"
        kept = path.read_text().splitlines()[:first] if path.is_file() and first else []
        write_file(path, "".join(f"{line}\n" for line in kept))
        self._file = path.open("a", buffering=1)  # by lines, to be watched while it grows
        self._board = SummaryWriter(out / "tensorboard", purge_step=first + 1)

    def write(self, step: int, values: Mapping[str, float], seconds: float) -> None:
        """Log the values of a step; its duration goes to TensorBoard alone.

        The lines of two runs with equal settings are equal.
        """
        self._file.write(json.dumps({"step": step} | _rounded(values)) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        self._board.add_scalar("seconds", seconds, step)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._board.close()


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in values.items()}
