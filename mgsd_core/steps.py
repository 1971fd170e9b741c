"""Commands of `mgsd` as the steps of something longer, each in a process of its own."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence


class StepError(ValueError):
    """A step that failed; what it said stands above."""


def show(words: Sequence[object]) -> None:
    """Print a command as a user would type it."""
    print(f"  $ {shlex.join(map(str, words))}", file=sys.stderr, flush=True)


def run_step(*words: object, environment: Mapping[str, str] | None = None) -> None:
    """Show a command of `mgsd` and run it, its progress on the terminal.

    Raises:
        StepError: it did not end with status 0.
    """
    show(["mgsd", *words])
    command = [sys.executable, "-m", "mgsd_core.cli", *map(str, words)]
    env = None if environment is None else dict(environment)
    done = subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise StepError(f"mgsd {words[0]} ended with status {done.returncode}; see above")
