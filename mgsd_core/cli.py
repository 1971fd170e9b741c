"""The program `mgsd`: collects the commands of the three packages and runs one.

Exit status: 0 done, 1 ran but a bar was not met, 2 bad input (one line on stderr, no traceback).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points

ENTRY_POINT_GROUP = "mgsd.commands"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with every installed package's commands."""
    parser = argparse.ArgumentParser(
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
        return int(args.run(args))
    except (ValueError, OSError) as error:
        _say(args.command, " ".join(str(error).split()) or type(error).__name__)
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


def _say(command: str, text: str) -> None:
    # Of the processes that `accelerate launch` starts together, the first speaks for all.
    if os.environ.get("RANK", "0") == "0":
        print(f"mgsd {command}: {text}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
