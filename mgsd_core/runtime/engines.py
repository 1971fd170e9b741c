"""Finds a bundle's TensorRT engine in the cache, loads it, and has it checked before it plans."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from mgsd_core.runtime.bundle import Bundle, BundleError, Content
from mgsd_core.runtime.engine import Engine
from mgsd_core.runtime.engine_cache import (
    Check,
    Entry,
    check_private,
    entries_for,
    graph_digests,
    locked,
    read_blob,
    read_engines,
    read_entry,
    update_check,
    write_blob,
)
from mgsd_core.runtime.tensorrt_build import Checker, engine_key, is_checked
from mgsd_core.runtime.tensorrt_library import (
    EngineError,
    Gpu,
    Library,
    check_installed,
    find_gpu,
    load_library,
    may_have_gpu,
)


def load_engine(bundle: Bundle, name: str, cache: Path) -> tuple[Engine, Entry]:
    """Load a bundle's engine from the cache, and check it if that was never done here.

    Args:
        bundle: to run.
        name: of the library.
        cache: directory of engines.

    Returns:
        The engine, and what the cache says of it.

    Raises:
        EngineError: the library, the GPU or the engine is missing, the engine was built with
            another version or for another GPU, or it answers otherwise than the trained model.
        BundleError: the engine is damaged; the file is named.
    """
    # From the cheapest look to the dearest.
    check_installed(name)
    if not may_have_gpu():
        raise EngineError("there is no NVIDIA GPU here")
    _check_cache(name, cache)
    library, gpu = load_library(name), find_gpu()
    entry = find_engine(bundle, library, gpu, cache)
    engines = read_engines(cache, entry)

    from mgsd_core.runtime.goldens import GoldenError
    from mgsd_core.runtime.tensorrt_engine import TrtEngine

    compiled = cache / f"{entry.key.digest}.compiled"
    known = read_blob(compiled)
    engine = TrtEngine(bundle, library, engines, entry.vocabulary, known)
    if not is_checked(entry, bundle, gpu):
        try:
            entry = _noted(cache, entry, _checked(bundle, engine, gpu))
        except GoldenError as error:
            raise EngineError(
                f"the {name} engine in {shown(cache)} is refused: {error}; build it again here "
                "with mgsd build-engine"
            ) from None
    # Those of another driver or GPU were not taken.
    if (kernels := engine.compiled()) and kernels != known:
        with suppress(OSError), locked(cache, wait=False):
            write_blob(compiled, kernels)
    return engine, entry


def _noted(cache: Path, entry: Entry, checked: Check) -> Entry:
    """Write down that an engine was checked, and return that.

    Where a cache cannot be written, or somebody else works in it, the engine is checked once more
    the next time; it plans all the same.
    """
    with suppress(OSError, BundleError), locked(cache, wait=False):
        # Built anew meanwhile, it is not what was checked.
        if read_entry(cache, entry.key.digest).files == entry.files:
            return update_check(cache, entry, checked)
    return replace(entry, checked=checked)


def find_engine(bundle: Bundle, library: Library, gpu: Gpu | None, cache: Path) -> Entry:
    """Return what a cache says of a bundle's engine for what is here.

    Raises:
        EngineError: there is none, or only for another version or GPU; the message says which.
        BundleError: what the cache says is damaged; the file is named.
    """
    _check_cache(library.name, cache)
    key = engine_key(bundle.manifest, library, gpu)
    if (cache / key.digest).exists():
        return read_entry(cache, key.digest)
    others = entries_for(cache, graph_digests(bundle.manifest), library.name)
    if not others:
        raise _no_engine(library.name, cache)
    raise EngineError(
        f"the engine in {shown(cache)} was built for {others[0].key.built_for}, and here is "
        f"{key.built_for}; build it again with mgsd build-engine"
    )


def gpu_checker(bundle: Bundle, library: Library, gpu: Gpu) -> Checker:
    """Return what lets new engines answer a bundle's goldens on the GPU here."""
    from mgsd_core.runtime.tensorrt_engine import TrtEngine

    def check(engines: Mapping[str, Content], vocabulary: int) -> Check:
        return _checked(bundle, TrtEngine(bundle, library, engines, vocabulary), gpu)

    return check


def shown(path: Path) -> str:
    """Return a path as people write it, with `~` for their home."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def _check_cache(name: str, cache: Path) -> None:
    """Refuse a cache that is not private or holds nothing."""
    if not cache.is_dir():
        raise _no_engine(name, cache)
    check_private(cache)
    if not any(path.is_dir() for path in cache.iterdir()):
        raise _no_engine(name, cache)


def _no_engine(name: str, cache: Path) -> EngineError:
    return EngineError(
        f"no {name} engine for this bundle in {shown(cache)}; build one with mgsd build-engine"
    )


def _checked(bundle: Bundle, engine: Engine, gpu: Gpu) -> Check:
    from mgsd_core.runtime.goldens import check_goldens

    agreement = check_goldens(bundle, engine)
    return Check(bundle.digest, gpu.name, agreement.pictures, agreement.plans, agreement.texts)
