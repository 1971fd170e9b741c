"""What `TrtEngine` does around TensorRT, on a GPU made of this computer's memory.

Whether TensorRT computes the same is for `tests/gpu` to say.
"""

from __future__ import annotations

import dataclasses
import gc
import sys

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("cuda.bindings")

from host_gpu import HostCuda, HostTensorRT

from mgsd_core.export import export_bundle
from mgsd_core.runtime import InferenceError, Planner, cuda
from mgsd_core.runtime.bundle import DECODER, VISION, Bundle, BundleError, read_bundle
from mgsd_core.runtime.engine_cache import (
    locked,
    open_cache,
    read_blob,
    read_entry,
    write_entry,
)
from mgsd_core.runtime.engines import gpu_checker, load_engine
from mgsd_core.runtime.ort_engine import OrtEngine
from mgsd_core.runtime.preprocess import fit, patchify
from mgsd_core.runtime.tensorrt_build import decoder_lengths, engine_key
from mgsd_core.runtime.tensorrt_engine import TrtEngine
from mgsd_core.runtime.tensorrt_library import (
    TENSORRT,
    TENSORRT_RTX,
    EngineError,
    Gpu,
    Library,
)

GPU = Gpu("Host", "9.9")


@pytest.fixture
def host(monkeypatch):
    host = HostCuda()
    monkeypatch.setattr(cuda, "runtime", host)
    return host


@pytest.fixture(scope="module")
def bundle_of(restless_backbone, tmp_path_factory):
    made: dict[tuple[str, bool], Bundle] = {}

    def bundle(precision: str = "fp32", portable: bool = False) -> Bundle:
        if (precision, portable) not in made:
            made[precision, portable] = read_bundle(
                export_bundle(
                    restless_backbone,
                    tmp_path_factory.mktemp("bundle") / "bundle",
                    families=["frozenlake", "maze"],
                    levels={"frozenlake": [3], "maze": [3]},
                    precision=precision,
                    portable=portable,
                    least_agreement=None if precision == "fp32" else 0.0,
                )
            )
        return made[precision, portable]

    return bundle


def library_of(host: HostCuda, bundle: Bundle, name: str = TENSORRT) -> Library:
    class Logger:
        errors: list[str] = []  # noqa: RUF012

    return Library(name, "0.1", HostTensorRT(host, decoder_lengths(bundle.manifest)), Logger())


def engine_of(host: HostCuda, bundle: Bundle, name: str = TENSORRT, **options) -> TrtEngine:
    library = library_of(host, bundle, name)
    vars(library.module).update(options)
    engines = {graph: bundle.files[graph] for graph in (VISION, DECODER)}
    return TrtEngine(bundle, library, engines, OrtEngine(bundle, 1).vocabulary)


@pytest.mark.parametrize("name", [TENSORRT, TENSORRT_RTX])
@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_it_answers_as_onnx_runtime(host, bundle_of, make_picture, precision, portable, name):
    bundle = bundle_of(precision, portable)
    engine = engine_of(host, bundle, name)
    assert engine.captured
    for family in bundle.manifest.families:
        for forced in (False, True):
            planner = Planner(bundle, engine, family, forced_tokens=forced)
            expected = Planner(bundle, OrtEngine(bundle, 1), family, forced_tokens=forced)
            texts = [planner.plan(make_picture(seed)).text for seed in range(3)]
            assert texts == [expected.plan(make_picture(seed)).text for seed in range(3)]
            assert len(set(texts)) == 3
    assert host.launches > 50


@pytest.mark.parametrize("portable", [False, True])
def test_it_answers_the_same_without_a_graph_and_without_a_kept_prefix(
    host, bundle_of, make_picture, portable
):
    bundle = bundle_of("fp32", portable)
    engine = engine_of(host, bundle, capturable=False)
    assert not engine.captured
    planner = Planner(bundle, engine, "maze", prefix_cache=False)
    expected = Planner(bundle, OrtEngine(bundle, 1), "maze")
    assert planner.plan(make_picture(1)).text == expected.plan(make_picture(1)).text
    assert host.launches == 0


def same(said, expected) -> None:
    assert said[0] == expected[0]
    np.testing.assert_allclose(said[1], expected[1], rtol=1e-3)


def test_what_is_read_again_does_not_remember(host, bundle_of, make_picture):
    bundle = bundle_of()
    engine, reference = engine_of(host, bundle), OrtEngine(bundle, 1)
    spec, image = bundle.manifest.image, bundle.manifest.tokens.image
    ids = [image + 1, image + 2, *[image] * spec.tokens, image + 3, image + 4]
    positions = np.arange(len(ids))[None]
    text = [image + 5, image + 6, image + 7]
    for seed in (0, 1):
        pixels = patchify(fit(make_picture(seed), spec)[None], spec)
        for one in (engine, reference):
            one.see(pixels)
        for count in (1, 2, 4):
            same(*(one.read(ids, positions, 0, count) for one in (engine, reference)))
        place = len(ids)
        for read in (text, text[:1], text[:2]):
            where = np.arange(place, place + len(read))[None]
            for asked in range(1, len(read) + 1):
                same(*(one.read(read, where, place, asked) for one in (engine, reference)))
            place += len(read)
    for one in (engine, reference):
        one.reset()
    same(*(one.read([image + 1], np.zeros((1, 1), np.int64), 0) for one in (engine, reference)))


def test_it_refuses_what_it_has_no_memory_for(host, bundle_of):
    bundle = bundle_of()
    engine, lengths = engine_of(host, bundle), decoder_lengths(bundle.manifest)
    image = bundle.manifest.tokens.image
    for count, asked in [(lengths.most + 1, 1), (lengths.most, lengths.asked + 1)]:
        with pytest.raises(EngineError, match="at once, not"):
            engine.read([image + 1] * count, np.zeros((1, count), np.int64), 0, asked)
    for ids in ([image] * 3, [image, image + 1, *[image] * (bundle.manifest.image.tokens - 1)]):
        with pytest.raises(EngineError, match="in one piece"):
            engine.read(ids, np.zeros((1, len(ids)), np.int64), 0)
    with pytest.raises(BundleError, match="do not fit its manifest"):
        manifest = dataclasses.replace(bundle.manifest, portable=True)
        engine_of(host, dataclasses.replace(bundle, manifest=manifest))


def test_what_is_not_a_number_is_said(host, bundle_of, make_picture):
    bundle = bundle_of()
    planner = Planner(bundle, engine_of(host, bundle), "maze")
    text = planner.plan(make_picture(0)).text
    engine = planner._engine
    engine.see(np.full(engine._pixels.bytes.size // 4, np.nan, np.float32).reshape(64, -1))
    with pytest.raises(InferenceError, match="not finite"):
        engine.read(*planner._frame, start=len(planner._prefix[0]))
    engine.reset()
    planner._read_prefix()
    assert planner.plan(make_picture(0)).text == text


def test_cudas_errors_are_said_in_one_line(host, bundle_of, monkeypatch):
    def cudaMalloc(size):
        return host.cudaError_t.cudaErrorMemoryAllocation, None

    monkeypatch.setattr(host, "cudaMalloc", cudaMalloc)
    with pytest.raises(BundleError, match="CUDA: cudaMalloc: as asked for"):
        engine_of(host, bundle_of())


def test_memory_is_given_back(host, bundle_of):
    engine = engine_of(host, bundle_of())
    assert len(host.memory) > 10
    del engine
    gc.collect()
    assert not host.memory


@pytest.fixture
def ready(host, bundle_of, tmp_path, monkeypatch):
    """A machine with a GPU, a library and an unchecked engine in its cache."""

    def prepare(bundle: Bundle, decoder: bytes | None = None):
        library = library_of(host, bundle, TENSORRT_RTX)
        module = sys.modules[load_engine.__module__]
        monkeypatch.setattr(module, "may_have_gpu", lambda: True)
        monkeypatch.setattr(module, "find_gpu", lambda: GPU)
        monkeypatch.setattr(module, "check_installed", lambda name: None)
        monkeypatch.setattr(module, "load_library", lambda name: library)
        cache = open_cache(tmp_path / "engines")
        key = engine_key(bundle.manifest, library, None)
        engines = {VISION: bundle.files[VISION], DECODER: decoder or bundle.files[DECODER]}
        vocabulary = OrtEngine(bundle, 1).vocabulary
        return cache, library, write_entry(cache, key, engines, "graph", vocabulary, None)

    return prepare


def test_an_engine_is_checked_when_it_is_first_loaded(ready, bundle_of, monkeypatch):
    bundle = bundle_of()
    cache, library, entry = ready(bundle)
    _, found = load_engine(bundle, TENSORRT_RTX, cache)
    assert (found.checked.gpu, found.checked.bundle) == (GPU.name, bundle.digest)
    assert found.checked.texts == found.checked.pictures == len(bundle.manifest.goldens)
    assert read_entry(cache, entry.key.digest) == found
    # What was compiled for this GPU is kept, and used the next time.
    assert read_blob(cache / f"{entry.key.digest}.compiled") == b"kernels"
    monkeypatch.setattr("mgsd_core.runtime.goldens.check_goldens", None)  # not called again
    _, again = load_engine(bundle, TENSORRT_RTX, cache)
    assert again == found and library.module.given == [b"kernels"]


def test_kernels_that_were_not_taken_are_replaced(ready, bundle_of):
    bundle = bundle_of()
    cache, _, entry = ready(bundle)
    compiled = cache / f"{entry.key.digest}.compiled"
    compiled.write_bytes(b"of another driver")
    load_engine(bundle, TENSORRT_RTX, cache)
    assert read_blob(compiled) == b"kernels"


def test_a_cache_in_which_nothing_can_be_noted_gives_its_engine_all_the_same(ready, bundle_of):
    bundle = bundle_of()
    cache, _, entry = ready(bundle)
    with locked(cache):  # somebody builds
        _, found = load_engine(bundle, TENSORRT_RTX, cache)
    assert found.checked is not None
    assert read_entry(cache, entry.key.digest).checked is None
    assert not (cache / f"{entry.key.digest}.compiled").exists()


def test_an_engine_that_is_built_anew_meanwhile_is_not_called_checked(
    ready, bundle_of, monkeypatch
):
    bundle = bundle_of()
    cache, _, entry = ready(bundle)
    module = sys.modules[load_engine.__module__]
    check = module._checked

    def checked(*arguments):
        found = check(*arguments)
        write_entry(cache, entry.key, {VISION: b"new", DECODER: b"new"}, "graph", 5, None)
        return found

    monkeypatch.setattr(module, "_checked", checked)
    load_engine(bundle, TENSORRT_RTX, cache)
    assert read_entry(cache, entry.key.digest).checked is None


def test_an_engine_that_answers_otherwise_is_refused(ready, bundle_of, make_restless, tmp_path):
    bundle = bundle_of()
    other = read_bundle(
        export_bundle(
            make_restless(seed=2),
            tmp_path / "other",
            families=["frozenlake", "maze"],
            levels={"frozenlake": [3], "maze": [3]},
        )
    )
    cache, library, entry = ready(bundle, bytes(other.files[DECODER]))
    with pytest.raises(EngineError, match=r"is refused: it gives .* golden answers .*; build it"):
        load_engine(bundle, TENSORRT_RTX, cache)
    assert read_entry(cache, entry.key.digest).checked is None
    check = gpu_checker(bundle, library, GPU)
    good = {graph: bundle.files[graph] for graph in (VISION, DECODER)}
    assert check(good, entry.vocabulary).texts == len(bundle.manifest.goldens)
