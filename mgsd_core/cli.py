"""The program `mgsd`: collects the commands of the three packages and runs one.

Exit status: 0 done, 1 ran but a bar was not met, 2 bad input (one line on stderr, no traceback),
130 interrupted (Ctrl-C), 143 terminated (SIGTERM; what was begun is cleaned up).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any, NoReturn

from sim.errors import one_line

ENTRY_POINT_GROUP = "mgsd.commands"


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the defaults to the help of options, but for those that say nothing."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """Shows its help as `_Help` does, and so do its commands: argparse gives them this class."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": _Help, **settings})


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with every installed package's commands."""
    parser = _Parser(
        prog="mgsd", description="From camera frames to plans: simulate, train, export, deploy."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for entry in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda e: e.name != "sim"):
        entry.load()(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; every command's `run` takes the parsed arguments and returns a status.

    Errors that a user can cause are `ValueError` and `OSError` all through the packages; they end
    here as one line. Anything else is a bug of ours and keeps its traceback.
    """
    args = build_parser().parse_args(argv)
    try:
        with _cleaned_up_on_sigterm():
            return int(args.run(args))
    except (ValueError, OSError) as error:
        _say(args.command, one_line(error))
        return 2
    except ModuleNotFoundError as error:
        _say(
            args.command,
            f"{error.name} is not installed; the README says which extra of mgsd_ros brings it",
        )
        return 2
    except KeyboardInterrupt:
        _say(args.command, "interrupted")
        return 130


def program() -> NoReturn:
    """Run `mgsd` as a program: one command, and the end of this process."""
    status = main()
    if "RANK" in os.environ:
        if status and os.environ["RANK"] != "0":
            time.sleep(3.0)  # torchrun ends all with the first: the one that speaks comes first
        # Gloo's threads live to the end of the process, and one that gives back the tensors of the
        # last exchange to an interpreter that is ending aborts it; torch has no way to stop them.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    raise SystemExit(status)


@contextmanager
def _cleaned_up_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process as an exception does: temporary files and children go, too.

    Not in workers: those that share a training must end at once, wherever they wait.
    """
    own = os.getpid()

    def end(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends it at once
        if os.getpid() != own:  # forked meanwhile
            os.kill(os.getpid(), number)
        for child in multiprocessing.active_children():
            child.terminate()  # else a pool waits for what its workers have begun
        raise SystemExit(128 + number)

    is_worker = multiprocessing.parent_process() is not None or "RANK" in os.environ
    is_main = threading.current_thread() is threading.main_thread()
    if is_worker or not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _say(command: str, text: str) -> None:
    # Of the processes that `accelerate launch` starts together, the first speaks for all.
    if os.environ.get("RANK", "0") == "0":
        print(f"mgsd {command}: {text}", file=sys.stderr)


if __name__ == "__main__":
    program()
