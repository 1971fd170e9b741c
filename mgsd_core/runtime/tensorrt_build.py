"""Builds a bundle's graphs into TensorRT engines, and keeps only what answers as it must.

The weights that are built are the bytes whose digests were checked: no file is opened again.
Engines are strongly typed, so the graphs alone say what is computed in which precision; TF32 is off
for the same reason. The decoder gets two optimisation profiles over one set of weights: `DECODE`
for a single token, `PREFILL` for prompts and drafts.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from mgsd_core.runtime.bundle import (
    DATA_SUFFIX,
    DECODER,
    VISION,
    Bundle,
    BundleError,
    Content,
    Manifest,
)
from mgsd_core.runtime.engine_cache import (
    ANY_GPU,
    ATTENTION,
    Check,
    Entry,
    Key,
    Lengths,
    graph_digests,
    locked,
    read_blob,
    read_engines,
    read_entry,
    update_check,
    write_blob,
    write_entry,
)
from mgsd_core.runtime.tensorrt_library import TENSORRT, EngineError, Gpu, Library

if TYPE_CHECKING:
    import onnx

#: Profiles of the decoder.
DECODE, PREFILL = 0, 1

#: Answers a bundle's goldens with both engines, by name of the graph, of so many logits; raises
#: GoldenError where they are not those of the trained model.
Checker = Callable[[dict[str, Content], int], Check]


@dataclass(frozen=True)
class Built:
    """Engines that were built.

    Attributes:
        engines: both, serialised, by name of the graph.
        vocabulary: logits of the decoder [count].
    """

    engines: dict[str, Content]
    vocabulary: int


def engine_key(manifest: Manifest, library: Library, gpu: Gpu | None) -> Key:
    """Return the key of a bundle's engine here.

    TensorRT-RTX builds for every GPU from compute capability 8.0 (Ampere) on unless it is told
    otherwise. An engine for the GPU at hand alone is no smaller and built no faster, so only
    Turing, which that leaves out, gets its own.

    Raises:
        EngineError: the library builds for the GPU at hand, and there is none.
    """
    if library.name == TENSORRT:
        if gpu is None:
            raise EngineError("tensorrt builds for the GPU that it runs on, and there is none here")
        name, capability = gpu.name, gpu.capability
    else:
        turing = gpu is not None and gpu.capability == "7.5"
        name, capability = ANY_GPU, "7.5" if turing else "8.0"
    graphs = graph_digests(manifest)
    return Key(graphs, library.name, library.version, name, capability, decoder_lengths(manifest))


def decoder_lengths(manifest: Manifest) -> Lengths:
    """Return how much the decoder of a bundle must read at once."""
    response = max(prompt.max_new_tokens for prompt in manifest.prompts.values())
    most = manifest.cache_length
    # A draft is no longer than a response, and it is read behind one token.
    return Lengths(most, max(1, most - response), min(most, response + 1))


# --- from a bundle to an entry of the cache -----------------------------------------------------


def provide_engine(
    bundle: Bundle,
    library: Library,
    gpu: Gpu | None,
    cache: Path,
    workspace: int | None = None,
    rebuild: bool = False,
    checker: Checker | None = None,
) -> tuple[Entry, bool]:
    """Return a bundle's engine from the cache, built and checked if it is not there.

    An engine whose golden answers differ is built again with attention in fp32, where the graphs
    compute it in fp16, and refused if they still differ.

    Args:
        bundle: what to build.
        library: to build with.
        gpu: the one here; None builds what is checked where it is first loaded.
        cache: see `engine_cache.open_cache`.
        workspace: most memory that a step may take besides weights and results [bytes]; None
            leaves it to the library.
        rebuild: build even if the engine is there.
        checker: see `Checker`; None keeps the engine unchecked.

    Returns:
        What the cache says of it, and whether it was there.

    Raises:
        EngineError: it cannot be built, or answers otherwise than the trained model.
        OSError: it cannot be written.
    """
    from mgsd_core.runtime.goldens import GoldenError

    key = engine_key(bundle.manifest, library, gpu)
    problem = ""
    with locked(cache):
        tried = 0
        if not rebuild and (cache / key.digest).exists():
            try:
                entry = read_entry(cache, key.digest)
                engines = read_engines(cache, entry)
                if checker is not None and not is_checked(entry, bundle, gpu):
                    entry = update_check(cache, entry, checker(engines, entry.vocabulary))
                return entry, True
            except GoldenError as error:
                problem, tried = str(error), 1 + ATTENTION.index(entry.attention)
            except BundleError as error:
                print(f"building it anew: {error}", file=sys.stderr)
        for attention in ATTENTION[tried : 2 if _may_be_too_coarse(bundle.manifest) else 1]:
            built = build(bundle, key, library, cache, workspace, attention)
            try:
                checked = checker and checker(built.engines, built.vocabulary)
            except GoldenError as error:
                problem = str(error)
                continue
            entry = write_entry(cache, key, built.engines, attention, built.vocabulary, checked)
            return entry, False
    raise EngineError(f"the engine of {bundle.path} with {key.built_for} is refused: {problem}")


def is_checked(entry: Entry, bundle: Bundle, gpu: Gpu | None) -> bool:
    """Return whether an engine answered this bundle's goldens on this GPU."""
    checked = entry.checked
    return (
        checked is not None
        and checked.bundle == bundle.digest
        and (gpu is None or checked.gpu == gpu.name)
    )


def _may_be_too_coarse(manifest: Manifest) -> bool:
    # Portable graphs have no Attention: they say by themselves what is computed in fp32.
    return "fp16" in manifest.precision and not manifest.portable


# --- from a bundle to engines -------------------------------------------------------------------


def build(
    bundle: Bundle,
    key: Key,
    library: Library,
    cache: Path,
    workspace: int | None = None,
    attention: str = ATTENTION[0],
) -> Built:
    """Build both engines; see `provide_engine`.

    Raises:
        EngineError: the library does not take a graph, or fails.
    """
    trt = library.module
    library.logger.errors.clear()
    builder = trt.Builder(library.logger)
    if builder is None:
        raise EngineError(f"{library.name} does not start: {library.errors()}")
    engines: dict[str, Content] = {}
    vocabulary = 0
    with _noticed_interrupts() as interrupted:
        for graph in (VISION, DECODER):
            network, kept = parse_graph(bundle, library, builder, graph, attention)
            config = _config(library, builder, key, workspace)
            if graph == DECODER:
                logits = _outputs(network)["logits"]
                vocabulary = int(logits.shape[-1])
                # For checks only; as an output it would be memory for every token asked about.
                network.unmark_output(logits)
                add_profiles(builder, config, network, key.lengths)
            engines[graph] = _serialised(
                library, builder, network, config, cache, key, graph, interrupted
            )
            del kept  # the network uses them until it is built
    return Built(engines, vocabulary)


def _config(library: Library, builder: Any, key: Key, workspace: int | None) -> Any:
    """Return how a network is built; see `provide_engine`."""
    trt = library.module
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        # Else TensorRT-RTX may allocate while it runs, which a CUDA graph cannot record.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if key.gpu == ANY_GPU and key.capability == "7.5":
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM75, 0)
    return config


def _inner_tensors(graph: Any) -> Iterator[Any]:
    """Yield the tensors in a graph's nodes, and all those of the graphs in them."""
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from inner.initializer
                yield from _inner_tensors(inner)


def parse_graph(
    bundle: Bundle, library: Library, builder: Any, graph: str, attention: str
) -> tuple[Any, Any]:
    """Return the network of a graph, and what must live as long as it does."""
    trt = library.module
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, library.logger)
    kept: list[Any] = [parser]
    model, data = bytes(bundle.files[graph]), bundle.files.get(graph + DATA_SUFFIX)
    external = []
    # Weights elsewhere are said with a key of this name; TensorRT would open any file for them.
    if data is not None or attention == "fp32" or b"location" in model:
        import onnx

        proto = onnx.load_model_from_string(model)
        if attention == "fp32":
            from mgsd_core.runtime.wide_attention import attend_in_fp32

            attend_in_fp32(proto)
            model = proto.SerializeToString()
        external = [t for t in proto.graph.initializer if t.external_data]
        if any(t.external_data for t in _inner_tensors(proto.graph)):
            raise EngineError(f"{graph} in {bundle.path} has weights elsewhere inside its nodes")
    parsed = parser.load_model_proto(model) if external else parser.parse(model)
    if external:
        if data is None:
            raise EngineError(f"{graph} in {bundle.path} refers to weights that are not there")
        weights = np.frombuffer(data, np.uint8)
        kept.append(weights)
        for tensor in external:
            start, size = _place(bundle, graph, tensor, len(weights))
            address = weights.ctypes.data + start
            parsed = parsed and parser.load_initializer(tensor.name, address, size)
        parsed = parsed and parser.parse_model_proto()
    if not parsed:
        errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        text = "; ".join(dict.fromkeys(" ".join(e.split()) for e in errors)) or library.errors()
        raise EngineError(f"{library.name} {library.version} does not read {graph}: {text[:600]}")
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        # Named by its end, as TensorRT before 10.15 has no such layers.
        if str(layer.type).endswith("ATTENTION_INPUT"):
            layer.__class__ = trt.IAttentionInputLayer
            # Where no kernel does it as one, as in fp32, it may be done in steps.
            layer.attention.decomposable = True
    return network, kept


def _place(bundle: Bundle, graph: str, tensor: onnx.TensorProto, length: int) -> tuple[int, int]:
    """Return where in the weights a tensor begins, and how long it is [bytes]."""
    about = {entry.key: entry.value for entry in tensor.external_data}
    try:
        start, size = int(about["offset"]), int(about["length"])
    except (KeyError, ValueError):
        start = size = -1
    inside = start >= 0 and 0 < size <= length - start
    if not inside or about.get("location") != graph + DATA_SUFFIX:
        raise EngineError(f"{graph} in {bundle.path} is damaged: {tensor.name} lies nowhere in it")
    return start, size


def _outputs(network: Any) -> dict[str, Any]:
    return {network.get_output(i).name: network.get_output(i) for i in range(network.num_outputs)}


def add_profiles(builder: Any, config: Any, network: Any, lengths: Lengths) -> None:
    """Say which numbers of tokens the decoder is built for: least, usual and most."""
    one = (1, 1, 1)
    for counts, asked in (
        (one, one),  # DECODE
        ((1, lengths.usual, lengths.most), (1, 1, lengths.asked)),  # PREFILL
    ):
        profile = builder.create_optimization_profile()
        for i in range(network.num_inputs):
            tensor = network.get_input(i)
            if -1 in tensor.shape:
                shapes = [
                    _shape(tensor.name, tuple(tensor.shape), count, most_asked, lengths.most)
                    for count, most_asked in zip(counts, asked, strict=True)
                ]
                profile.set_shape(tensor.name, *shapes)
        if config.add_optimization_profile(profile) < 0:
            raise EngineError("the profiles of the decoder do not fit its graph")


def _shape(name: str, shape: tuple[int, ...], count: int, asked: int, most: int) -> tuple[int, ...]:
    """Return the shape of an input for so many tokens."""
    if name == "asked":
        return (asked,)
    if name == "attention_mask" and shape[-1] == -1:  # portable: the past, then the new tokens
        return (1, 1, count, most + count)
    return tuple(count if side == -1 else side for side in shape)


def _serialised(
    library: Library,
    builder: Any,
    network: Any,
    config: Any,
    cache: Path,
    key: Key,
    graph: str,
    interrupted: threading.Event,
) -> Content:
    """Return the engine of a network; remembers what was timed for the next build."""
    monitor = _monitor(library.module, graph, interrupted)
    config.progress_monitor = monitor
    # TensorRT-RTX times nothing: it chooses kernels where the engine is loaded.
    timing, timings = None, cache / f"timings-{_slug(key)}"
    if library.name == TENSORRT:
        timing = config.create_timing_cache(read_blob(timings))
        config.set_timing_cache(timing, False)
    try:
        engine = builder.build_serialized_network(network, config)
    finally:
        monitor.close()
    if interrupted.is_set():
        raise KeyboardInterrupt
    if engine is None:
        raise EngineError(
            f"{library.name} {library.version} does not build {graph}: {library.errors()}"
        )
    if timing is not None:
        write_blob(timings, bytes(memoryview(timing.serialize())))
    return memoryview(engine)


def _slug(key: Key) -> str:
    text = f"{key.library}-{key.version}-{key.gpu}-{key.capability}"
    return "".join(c if c.isalnum() or c in ".-" else "_" for c in text)


@contextmanager
def _noticed_interrupts() -> Iterator[threading.Event]:
    """Give what Ctrl-C sets meanwhile; raise `KeyboardInterrupt` in the end if it was.

    An exception at once could be raised in one of the library's callbacks, where it is lost.
    """
    interrupted = threading.Event()
    listens = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.set()) if listens else None
    try:
        yield interrupted
    finally:
        if listens:
            signal.signal(signal.SIGINT, before)
        if interrupted.is_set():
            raise KeyboardInterrupt


def _monitor(trt: Any, title: str, interrupted: threading.Event) -> Any:
    """Return what shows on a terminal how far a build is, and ends it once it is interrupted."""

    class Monitor(trt.IProgressMonitor):
        """One bar for every phase that is under way; called from the library's threads."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._bars: dict[str, Any] = {}
            self._lock = threading.Lock()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                name = phase_name if parent_phase else title
                self._bars[phase_name] = tqdm(
                    total=num_steps, desc=name[:40], leave=False, disable=None
                )

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                bar = self._bars[phase_name]
                bar.update(step + 1 - bar.n)
            return not interrupted.is_set()

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._bars.pop(phase_name).close()

        def close(self) -> None:
            for bar in self._bars.values():
                bar.close()

    return Monitor()
