"""The command `mgsd check-family`."""

from __future__ import annotations

import argparse
import json
from typing import Any


def register_family(commands: Any) -> None:
    """Add `check-family` to the parser of `mgsd`."""
    parser = commands.add_parser(
        "check-family",
        help="try out a task family of your own before anything is trained on it",
        description="Sample states of every level, solve them, write them as JSON and as text and "
        "read them back, draw them and read them back; print what was found. See docs/own_task.md.",
    )
    parser.add_argument("family", help="name in the entry point groups of an installed package")
    parser.add_argument("--states", type=int, default=20, help="states of each level [count]")
    parser.set_defaults(run=_check)


def _check(args: argparse.Namespace) -> int:
    from mgsd_core.own_task import check_task

    if args.states < 1:
        raise ValueError("--states must be at least 1")
    print(json.dumps(check_task(args.family, args.states), indent=1))
    return 0
