"""Chooses what runs a bundle: a TensorRT engine that was built and checked, or ONNX Runtime.

Where there is no GPU or no TensorRT, finding that out costs next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mgsd_core.runtime.bundle import Bundle, BundleError
from mgsd_core.runtime.engine import Engine
from mgsd_core.runtime.ort_engine import OrtEngine, check_threads
from mgsd_core.runtime.tensorrt_library import LIBRARIES, installed_libraries, may_have_gpu

ONNXRUNTIME = "onnxruntime-cpu"

#: Ways to run a bundle, best first; "auto" takes the first that is ready.
BACKENDS = (*LIBRARIES, ONNXRUNTIME)


@dataclass(frozen=True)
class Choice:
    """What runs a bundle.

    Attributes:
        engine: it.
        backend: one of `BACKENDS`.
        reason: why that one, in one line that begins with its name.
    """

    engine: Engine
    backend: str
    reason: str


def choose_engine(
    bundle: Bundle, backend: str, threads: int | None, cache: Path | None = None
) -> Choice:
    """Load what runs a bundle.

    Args:
        bundle: to run.
        backend: one of `BACKENDS`, or "auto".
        threads: CPU threads for ONNX Runtime; see `Planner.load`.
        cache: of engines; None takes the default one.

    Raises:
        BundleError: it cannot be had; the message says exactly why.
    """
    check_threads(threads)
    if backend in LIBRARIES:
        try:
            return _tensorrt(bundle, backend, cache)
        except BundleError as error:
            raise BundleError(f"{backend} cannot be had here: {error}") from None
    reasons = []
    if backend == ONNXRUNTIME:
        reasons.append("as asked for")
    elif not may_have_gpu():
        reasons.append("there is no NVIDIA GPU here")
    elif not installed_libraries():
        reasons.append("neither tensorrt nor tensorrt-rtx is installed")
    else:
        for name in installed_libraries():
            try:
                return _tensorrt(bundle, name, cache)
            except BundleError as error:
                reasons.append(str(error))
    return Choice(OrtEngine(bundle, threads), ONNXRUNTIME, f"{ONNXRUNTIME}: {'; '.join(reasons)}")


def _tensorrt(bundle: Bundle, name: str, cache: Path | None) -> Choice:
    from mgsd_core.runtime.engine_cache import default_cache
    from mgsd_core.runtime.engines import load_engine

    engine, entry = load_engine(bundle, name, default_cache() if cache is None else cache)
    return Choice(engine, name, f"{name}: engine for {entry.key.built_for}")
