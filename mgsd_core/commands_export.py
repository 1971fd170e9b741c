"""The command `mgsd export`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def register_export(commands: Any) -> None:
    """Add `export` to the parser of `mgsd`."""
    parser = commands.add_parser(
        "export",
        help="weights into a bundle that a robot runs without torch",
        description="Write ONNX graphs, tokenizer, prompts and golden answers as one directory. "
        "It is let out only if it answers the golden pictures as transformers does.",
    )
    add = parser.add_argument
    add(
        "--model",
        type=Path,
        required=True,
        help="weights directory; an adapter is merged",
    )
    add("--out", type=Path, required=True, help="directory of the bundle")
    add(
        "--data",
        type=Path,
        help="what `mgsd generate` wrote: golden pictures come from its split, and the bundle is "
        "made for the families and levels that occur there; without it, for all of them, checked "
        "with pictures of noise",
    )
    add("--split", default="test", help="split of --data")
    add("--goldens", type=int, default=4, help="golden pictures a family and level [count]")
    add("--name", default="student", help="what people call the model")
    add(
        "--precision",
        default="fp32",
        metavar="fp32|fp16|int4|int4-fp16",
        help="of the weights: fp32 for CPUs; fp16 for GPUs; int4: linear layers of the decoder in "
        "4 bits, all else in fp32 or fp16",
    )
    add(
        "--portable",
        action="store_true",
        help="only operators that TensorRT 10.13 (JetPack 7.1) reads",
    )
    add(
        "--least-agreement",
        type=float,
        metavar="SHARE",
        help="share of the golden pictures for which the bundle, and any engine that is built from "
        "it, must give the model's plan [0 to 1]; default: 1 in fp32, 0.9 in fp16, else 0.75",
    )
    add("--overwrite", action="store_true", help="replace the bundle at --out")
    parser.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> int:
    from mgsd_core.export.bundle import check_free, export_bundle
    from mgsd_core.model import load_backbone
    from mgsd_core.runtime.bundle import read_bundle
    from mgsd_core.scenes import load_scenes
    from sim import LEVELS

    if args.goldens < 1:
        raise ValueError("--goldens must be at least 1")
    check_free(args.out, args.overwrite)
    backbone = load_backbone(args.model)
    goldens: list[tuple[str, Any]] = []
    levels = {family: list(of_family) for family, of_family in LEVELS.items()}
    if args.data is not None:
        scenes = load_scenes(args.data, args.split, backbone.image, limit=args.goldens)
        goldens = [(s.family, rgb) for s, rgb in zip(scenes.states, scenes.images, strict=True)]
        levels = {}
        for family, level in scenes.tasks():
            levels.setdefault(family, []).append(level)
    export_bundle(
        backbone,
        args.out,
        families=list(levels),
        goldens=goldens,
        levels=levels,
        name=args.name,
        overwrite=args.overwrite,
        precision=args.precision,
        portable=args.portable,
        least_agreement=args.least_agreement,
    )
    bundle = read_bundle(args.out)
    summary = {
        "bundle": str(args.out),
        "digest": bundle.digest,
        "families": list(levels),
        "levels": levels,
        "precision": bundle.manifest.precision,
        "portable": bundle.manifest.portable,
        "cache_length": bundle.manifest.cache_length,
        "goldens": len(bundle.manifest.goldens),
        "bytes": sum(entry.bytes for entry in bundle.manifest.files.values()),
    }
    print(json.dumps(summary))
    return 0
