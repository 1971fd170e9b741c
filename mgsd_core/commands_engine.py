"""The command `mgsd build-engine`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mgsd_core.runtime.tensorrt_library import Gpu, Library


def register_engine(commands: Any) -> None:
    """Add `build-engine` to the parser of `mgsd`."""
    parser = commands.add_parser(
        "build-engine",
        help="a bundle into a TensorRT engine for the GPU here",
        description="Build a bundle's graphs with TensorRT or TensorRT-RTX and keep the engine in "
        "the cache, where planners find it. It is kept only if it answers the bundle's golden "
        "pictures as the trained model does; TensorRT-RTX also builds where there is no GPU, and "
        "then the first planner that loads the engine checks it.",
    )
    add = parser.add_argument
    add(
        "--bundle",
        type=Path,
        help="what `mgsd export` wrote (default: the model that comes with the package)",
    )
    add(
        "--library",
        default="auto",
        metavar="auto|tensorrt|tensorrt-rtx",
        help="what builds it; auto: tensorrt where it is installed and there is a GPU",
    )
    add(
        "--cache",
        type=Path,
        help="directory of engines (default: mgsd_ros/engines in $XDG_CACHE_HOME or ~/.cache); "
        "planners look in the default one",
    )
    add(
        "--workspace",
        type=float,
        metavar="GiB",
        help="most memory that a step of the model may take besides weights and results [GiB] "
        "(default: what the library thinks best)",
    )
    add("--rebuild", action="store_true", help="build even if the engine is in the cache")
    parser.set_defaults(run=_build_engine)


def _build_engine(args: argparse.Namespace) -> int:
    from mgsd_core.installed import shipped_bundle
    from mgsd_core.runtime.bundle import read_bundle
    from mgsd_core.runtime.engine_cache import default_cache, open_cache
    from mgsd_core.runtime.engines import gpu_checker
    from mgsd_core.runtime.tensorrt_build import provide_engine

    workspace = None
    if args.workspace is not None:
        if not 2**-10 <= args.workspace <= 2**20:
            raise ValueError("--workspace must be above 0.001 and below a million [GiB]")
        workspace = int(args.workspace * 2**30)
    bundle = read_bundle(args.bundle or shipped_bundle())
    library, gpu = _choose(args.library)
    cache = open_cache(args.cache or default_cache())
    began = time.perf_counter()
    entry, was_there = provide_engine(
        bundle,
        library,
        gpu,
        cache,
        workspace,
        args.rebuild,
        None if gpu is None else gpu_checker(bundle, library, gpu),
    )
    if entry.checked is None:
        print("not checked, for there is no GPU here: the first planner does it", file=sys.stderr)
    summary = {
        "bundle": str(bundle.path),
        "digest": bundle.digest,
        "engine": str(cache / entry.key.digest),
        "library": entry.key.library,
        "version": entry.key.version,
        "gpu": entry.key.gpu,
        "capability": entry.key.capability,
        "attention": entry.attention,
        "cached": was_there,
        "checked": None
        if entry.checked is None
        else {name: getattr(entry.checked, name) for name in ("pictures", "plans", "texts")},
        "bytes": sum(file.bytes for file in entry.files.values()),
        "seconds": round(time.perf_counter() - began, 2),
    }
    print(json.dumps(summary))
    return 0


def _choose(name: str) -> tuple[Library, Gpu | None]:
    """Return the library to build with, and the GPU here, if any."""
    from mgsd_core.runtime.tensorrt_library import (
        LIBRARIES,
        TENSORRT,
        EngineError,
        find_gpu,
        installed_libraries,
        load_library,
    )

    if name not in ("auto", *LIBRARIES):
        raise ValueError(f"unknown library {name!r}; there are: auto, {', '.join(LIBRARIES)}")
    gpu, problem = None, ""
    try:
        gpu = find_gpu()
    except EngineError as error:
        problem = str(error)
    if name == "auto":
        names = [n for n in installed_libraries() if gpu is not None or n != TENSORRT]
        if not names:
            have = ", ".join(installed_libraries())
            raise EngineError(
                f"{have} builds for the GPU that it runs on, but {problem}"
                if have
                else "neither tensorrt nor tensorrt-rtx is installed: "
                "pip install mgsd_ros[tensorrt] brings tensorrt-rtx"
            )
        name = names[0]
    library = load_library(name)
    if name == TENSORRT and gpu is None:
        raise EngineError(f"tensorrt builds for the GPU that it runs on, but {problem}")
    return library, gpu
