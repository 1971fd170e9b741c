"""The command `mgsd inspect`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def register_inspect(commands: Any) -> None:
    """Add `inspect` to the parser of `mgsd`."""
    parser = commands.add_parser(
        "inspect",
        help="what a bundle is, and whether it is whole and answers as it should",
        description="Check every digest of a bundle, load its graphs and let it answer its golden "
        "pictures. A table goes to stderr, one JSON object to stdout. Exit status 0: all is well; "
        "1: it answers otherwise than the trained model did; 2: it is damaged or no bundle.",
    )
    add = parser.add_argument
    add(
        "bundle",
        type=Path,
        nargs="?",
        help="what `mgsd export` wrote (default: the model that comes with the package)",
    )
    add("--no-answers", action="store_true", help="do not answer the golden pictures")
    add("--threads", type=int, help="CPU threads [count]; default: one for a small model, else all")
    parser.set_defaults(run=_inspect)


def _inspect(args: argparse.Namespace) -> int:
    from mgsd_core.installed import shipped_bundle
    from mgsd_core.runtime.inspect import inspect_bundle

    found = inspect_bundle(args.bundle or shipped_bundle(), not args.no_answers, args.threads)
    print("\n".join(_lines(found)), file=sys.stderr)
    print(json.dumps(found))
    return 1 if found["goldens"].get("problem") else 0


def _lines(found: dict[str, Any]) -> list[str]:
    goldens, image = found["goldens"], found["image"]
    kind = found["precision"] + (", portable" if found["portable"] else "")
    rows = {
        "name": found["name"],
        "bundle": found["bundle"],
        "digest": found["digest"],
        "written by": ", ".join(f"{name} {v}" for name, v in found["versions"].items()),
        "precision": kind,
        "picture": f"{image['side_px']} px a side, {image['visual_tokens']} visual tokens",
        "cache": f"{found['cache_length']} tokens",
        "size": f"{found['bytes'] / 2**20:.1f} MiB in all",
    }
    for name, graph in found["graphs"].items():
        inputs = sum(not i.startswith("past_") for i in graph["inputs"])
        cached = len(graph["inputs"]) - inputs
        cache = f" and {cached} of the cache" if cached else ""
        rows[name] = f"{graph['bytes'] / 2**20:.1f} MiB, {inputs} inputs{cache}"
    for family, most in found["families"].items():
        rows[family] = f"responses of at most {most} tokens"
    if "plans" in goldens:
        rows["goldens"] = (
            f"{goldens['plans']} of {goldens['pictures']} plans and {goldens['texts']} texts as of "
            "the trained model"
        )
    else:
        rows["goldens"] = goldens.get("problem") or f"{goldens['pictures']}, not answered"
    return [f"{name:<14} {value}" for name, value in rows.items()]
