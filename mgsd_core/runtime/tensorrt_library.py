"""Which TensorRT is here, and on which GPU; nothing of NVIDIA's is imported before it is needed.

Two libraries share their names and most of their behaviour: TensorRT (`tensorrt`, 10.13 or newer)
builds for the GPU that it runs on; TensorRT-RTX (`tensorrt_rtx`) builds anywhere, for every GPU of
compute capability 8.0 and up that it supports, and compiles the rest when an engine is loaded.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mgsd_core.runtime.bundle import BundleError

TENSORRT, TENSORRT_RTX = "tensorrt", "tensorrt-rtx"

#: Python modules by library, the better first where both can be had.
LIBRARIES = {TENSORRT: "tensorrt", TENSORRT_RTX: "tensorrt_rtx"}

_OLDEST = (10, 13)
_GET = {
    TENSORRT: "it comes with JetPack or from NVIDIA's own package index",
    TENSORRT_RTX: "pip install mgsd_ros[tensorrt]",
}
# Desktop and server; Jetson; Windows' subsystem for Linux.
_DEVICE_NODES = ("nvidia[0-9]*", "nvhost-gpu", "nvgpu", "nvmap", "dxg")


class EngineError(BundleError):
    """An engine that cannot be built, found or used; the message says why."""


@dataclass(frozen=True)
class Library:
    """A library that was imported.

    Attributes:
        name: one of `LIBRARIES`.
        version: its own, such as "10.13.3.9".
        module: to call.
        logger: the one that all its objects get, for it keeps the first.
    """

    name: str
    version: str
    module: ModuleType
    logger: Any

    def errors(self) -> str:
        """Return what it complained of since it was last asked, in one line."""
        lines = [" ".join(line.split()) for line in self.logger.errors]
        self.logger.errors.clear()
        return "; ".join(dict.fromkeys(lines))[:600] or "it does not say why"


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU.

    Attributes:
        name: NVIDIA's.
        capability: compute capability, such as "8.9".
    """

    name: str
    capability: str


def installed_libraries() -> tuple[str, ...]:
    """Return the libraries that can be imported here, best first."""
    return tuple(name for name, module in LIBRARIES.items() if importlib.util.find_spec(module))


def check_installed(name: str) -> None:
    """Raise `EngineError` where a library cannot be imported; imports nothing."""
    if name not in installed_libraries():
        raise EngineError(f"{name} is not installed: {_GET[name]}")


@functools.cache
def load_library(name: str) -> Library:
    """Import a library.

    Raises:
        EngineError: it is not installed, does not load, or is too old.
    """
    check_installed(name)
    try:
        module = importlib.import_module(LIBRARIES[name])
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(f"{name} is installed but does not load: {error}") from None
    version = getattr(module, "__version__", "")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if name == TENSORRT and numbers < _OLDEST:
        raise EngineError(
            f"{name} {version or 'of no version'} is too old: it takes {_OLDEST[0]}.{_OLDEST[1]}"
        )
    return Library(name, version, module, _logger(module))


def may_have_gpu() -> bool:
    """Return whether there is a device node of an NVIDIA GPU; asks no driver."""
    return any(next(Path("/dev").glob(pattern), None) for pattern in _DEVICE_NODES)


def find_gpu() -> Gpu:
    """Return the first GPU that CUDA sees.

    Raises:
        EngineError: there is none, or CUDA cannot be used; the message says why.
    """
    if not may_have_gpu():
        raise EngineError("there is no NVIDIA GPU here")
    try:
        from mgsd_core.runtime import cuda
    except ModuleNotFoundError:
        raise EngineError(
            "cuda-bindings is not installed: pip install mgsd_ros[tensorrt]"
        ) from None
    return Gpu(*cuda.device())


def _logger(module: Any) -> Any:
    class Logger(module.ILogger):
        """Keeps errors for the exception that follows, and prints nothing."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.INTERNAL_ERROR, module.ILogger.ERROR):
                self.errors.append(message)

    return Logger()
