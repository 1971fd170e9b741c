"""Engines on a real GPU against ONNX Runtime, token by token."""

from __future__ import annotations

import numpy as np
import pytest

from mgsd_core.installed import shipped_bundle
from mgsd_core.runtime import Planner
from mgsd_core.runtime.bundle import BundleError, read_bundle
from mgsd_core.runtime.engine_cache import open_cache, read_engines, read_entry
from mgsd_core.runtime.engines import gpu_checker, load_engine
from mgsd_core.runtime.goldens import golden_image
from mgsd_core.runtime.ort_engine import OrtEngine
from mgsd_core.runtime.tensorrt_build import is_checked, provide_engine
from mgsd_core.runtime.tensorrt_library import (
    find_gpu,
    installed_libraries,
    load_library,
)


def _missing() -> str:
    if not installed_libraries():
        return "neither tensorrt nor tensorrt-rtx is installed"
    try:
        find_gpu()
    except BundleError as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(_missing()), reason=_missing() or "-")


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def library(request):
    if request.param not in installed_libraries():
        pytest.skip(f"{request.param} is not installed")
    return load_library(request.param)


class Both:
    """Reads with two engines and compares every token."""

    def __init__(self, engine, reference) -> None:
        self.engine, self.reference, self.vocabulary = engine, reference, reference.vocabulary
        self.compared = 0

    def see(self, pixels) -> None:
        self.engine.see(pixels)
        self.reference.see(pixels)

    def read(self, ids, positions, start, asked=1) -> tuple[list[int], list[float]]:
        said = self.engine.read(ids, positions, start, asked)
        assert said[0] == self.reference.read(ids, positions, start, asked)[0]
        self.compared += len(said[0])
        return said

    def reset(self) -> None:
        self.engine.reset()
        self.reference.reset()


def compare(bundle, library, cache) -> None:
    gpu = find_gpu()
    entry, _ = provide_engine(
        bundle, library, gpu, cache, checker=gpu_checker(bundle, library, gpu)
    )
    assert is_checked(entry, bundle, gpu)
    engine, entry = load_engine(bundle, library.name, cache)
    assert engine.captured
    both = Both(engine, OrtEngine(bundle, 1))
    for forced in (False, True):  # token by token, and with drafts
        for golden in bundle.manifest.goldens:
            planner = Planner(bundle, both, golden.family, forced_tokens=forced)
            assert planner.plan(golden_image(bundle, golden)).text == golden.text
    assert both.compared > 100


def test_the_shipped_model_says_the_same_tokens(library, tmp_path):
    compare(read_bundle(shipped_bundle()), library, open_cache(tmp_path / "engines"))


def test_a_portable_model_says_the_same_tokens(library, trained_backbone, lake_episodes, tmp_path):
    from mgsd_core.export import export_bundle

    path = export_bundle(
        trained_backbone,
        tmp_path / "bundle",
        families=["frozenlake"],
        levels={"frozenlake": [3]},
        goldens=[("frozenlake", e.image) for e in lake_episodes[:2]],
        portable=True,
    )
    compare(read_bundle(path), library, open_cache(tmp_path / "engines"))


def test_planners_take_the_engine(library, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bundle, gpu = read_bundle(shipped_bundle()), find_gpu()
    cache = open_cache(tmp_path / "mgsd_ros" / "engines")
    entry, _ = provide_engine(bundle, library, None if library.name != "tensorrt" else gpu, cache)
    assert entry.checked is None
    planner = Planner.load(backend="auto")
    assert planner.backend == library.name and library.version in planner.backend_reason
    entry = read_entry(cache, entry.key.digest)
    assert entry.checked.gpu == gpu.name and read_engines(cache, entry)
    planner.plan(np.zeros((64, 64, 3), np.uint8))
