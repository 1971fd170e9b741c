"""A bundle's engines on TensorRT: nothing is allocated per token, and only tokens leave the GPU.

Images, embeddings and the cache of keys and values stay in the GPU's memory. For a pass over S
tokens, some bytes of ids, positions and mask go up in one copy, and the likeliest next tokens come
down in another. A pass over a single token, of which a response has most, is one CUDA graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mgsd_core.runtime.bundle import DECODER, VISION, Bundle, BundleError, Content
from mgsd_core.runtime.cuda import DeviceMemory, PinnedMemory, Stream, aligned
from mgsd_core.runtime.engine import check_finite, fill_pass
from mgsd_core.runtime.engine_cache import Lengths
from mgsd_core.runtime.tensorrt_build import DECODE, PREFILL, decoder_lengths
from mgsd_core.runtime.tensorrt_library import TENSORRT_RTX, EngineError, Library


class TrtEngine:
    """See `mgsd_core.runtime.engine.Engine`.

    Attributes:
        captured: the pass over a single token is one CUDA graph; else its kernels are started one
            by one, which takes longer.
    """

    def __init__(
        self,
        bundle: Bundle,
        library: Library,
        engines: Mapping[str, Content],
        vocabulary: int,
        compiled: bytes = b"",
    ) -> None:
        """Load both engines.

        Args:
            bundle: that they were built from.
            library: that built them.
            engines: serialised, by name of the graph; from a place that is trusted.
            vocabulary: logits of the decoder [count].
            compiled: what `compiled` of the same engine returned here, or nothing.

        Raises:
            BundleError: they cannot be loaded here, or do not fit the bundle.
        """
        manifest = bundle.manifest
        self.vocabulary = vocabulary
        self._library, self._stream = library, Stream()
        self._image_token, self._portable = manifest.tokens.image, manifest.portable
        self._lengths = decoder_lengths(manifest)
        loader = self._loader = _Loader(library, compiled)
        vision, decoder = (loader.load(engines[graph], graph) for graph in (VISION, DECODER))
        # One after the other, they work in the same memory.
        work = self._work = DeviceMemory(
            max(engine.device_memory_size_v2 for engine in (vision, decoder))
        )
        seen, read = _Tensors(library, vision), _Tensors(library, decoder)
        if (
            seen.shapes["pixel_values"][0] != manifest.image.grid**2
            or seen.shapes["image_embeds"][0] != manifest.image.tokens
            or read.shapes["past_key_0"][2] != manifest.cache_length
            or ("write_index" in read.shapes) == manifest.portable
        ):
            raise BundleError(f"the engines of {bundle.path} do not fit its manifest")

        # Vision: pixels go up, embeddings stay.
        self._pixels = PinnedMemory(seen.size("pixel_values"))
        self._seen = {name: DeviceMemory(seen.size(name)) for name in seen.shapes}
        self._vision = loader.context(vision, 0, work, self._stream)
        for name, memory in self._seen.items():
            _must(self._vision.set_tensor_address(name, memory.address), library)

        # What the decoder sees: nothing, for text, or a picture where its tokens stand.
        self._embeds = {"visual_embeds": "image_embeds", "deepstack_embeds": "deepstack_embeds"}
        sizes = {name: read.size(name, self._lengths.most) for name in self._embeds}
        self._blank = {name: DeviceMemory(size) for name, size in sizes.items()}
        self._shown = {name: DeviceMemory(size) for name, size in sizes.items()}
        self._rows = {name: read.shapes[name][-1] * read.types[name].itemsize for name in sizes}
        self._layers = read.shapes["deepstack_embeds"][1]

        # The cache, one slot for each layer's keys and one for its values.
        past = [name for name in read.shapes if name.startswith("past_")]
        _, self._heads, self._length, width = read.shapes[past[0]]
        self._row = width * read.types[past[0]].itemsize
        self._slot, self._slots = aligned(read.size(past[0])), len(past)
        self._cache = DeviceMemory(self._slot * self._slots)
        # In place, or, in portable graphs, the new tokens' alone.
        self._new = DeviceMemory(self._slot * self._slots) if self._portable else self._cache
        kept = {}
        for i, name in enumerate(past):
            kept[name] = self._cache.address + i * self._slot
            kept[name.replace("past", "present")] = self._new.address + i * self._slot

        self._decode, self._prefill = (
            _Pass(
                library,
                loader.context(decoder, profile, work, self._stream),
                self._stream,
                kept,
                read,
            )
            for profile in (DECODE, PREFILL)
        )
        self._decode.reserve(Lengths(1, 1, 1), self._length)
        self._prefill.reserve(self._lengths, self._length)
        self._causal = np.tri(self._length, dtype=np.bool_)
        self._fill(self._decode, [0], np.zeros((1, 1), np.int64), 0, 1, self._blank)
        self.captured = self._decode.capture()
        self.reset()

    def see(self, pixels: NDArray[np.float32]) -> None:
        """See `Engine.see`."""
        given = self._pixels.bytes.view(np.float32).reshape(pixels.shape)
        given[:] = pixels
        self._stream.up(self._seen["pixel_values"].address, self._pixels.address, given.nbytes)
        _must(self._vision.execute_async_v3(self._stream.handle), self._library)
        self._stream.wait()

    def read(
        self, ids: Sequence[int], positions: NDArray[np.int64], start: int, asked: int = 1
    ) -> tuple[list[int], list[float]]:
        """See `Engine.read`."""
        count = len(ids)
        if count > self._lengths.most or asked > self._lengths.asked:
            raise EngineError(
                f"the engine reads {self._lengths.most} tokens and answers "
                f"{self._lengths.asked} at once, not {count} and {asked}"
            )
        shows = self._image_token in ids
        if shows:
            self._show(ids)
        step = self._decode if count == 1 and not shows else self._prefill
        self._fill(step, ids, positions, start, asked, self._shown if shows else self._blank)
        step.run()
        if self._portable:
            self._keep(start, count)
        self._stream.wait()
        check_finite(step.results["total"])
        return step.results["tokens"].tolist(), step.results["probabilities"].tolist()

    def reset(self) -> None:
        """See `Engine.reset`."""
        self._stream.clear(self._cache.address, self._cache.size)
        self._stream.wait()

    def compiled(self) -> bytes:
        """Return the kernels that TensorRT-RTX compiled for this GPU, to load them next time."""
        return self._loader.compiled()

    def _fill(
        self,
        step: _Pass,
        ids: Sequence[int],
        positions: NDArray[np.int64],
        start: int,
        asked: int,
        embeds: Mapping[str, DeviceMemory],
    ) -> None:
        """Write what goes up for a pass."""
        count = len(ids)
        given = step.bind(count, asked, {name: embeds[name].address for name in embeds})
        given["asked"][:] = range(count - asked, count)
        fill_pass(given, ids, positions, start, self._causal, self._portable)

    def _show(self, ids: Sequence[int]) -> None:
        """Put what was seen where the picture's tokens stand; elsewhere nothing is seen."""
        places = np.flatnonzero(np.asarray(ids) == self._image_token)
        first, tokens = int(places[0]), len(places)
        for name, source in self._embeds.items():
            # Deepstack embeddings [L, S, H] have a row of S tokens for each layer, visual ones one.
            layers = self._layers if name == "deepstack_embeds" else 1
            row, shown, seen = self._rows[name], self._shown[name], self._seen[source]
            if tokens * row * layers != seen.size or int(places[-1]) - first != tokens - 1:
                raise EngineError("a picture's tokens must be read whole and in one piece")
            step = len(ids) * row
            self._stream.clear(shown.address, layers * step)
            width = tokens * row
            self._stream.rows(shown.address + first * row, step, seen.address, width, width, layers)

    def _keep(self, start: int, count: int) -> None:
        """Copy the new keys and values [1, KV, S, D] of all layers into the cache."""
        width = count * self._row
        for head in range(self._heads):
            place = (head * self._length + start) * self._row
            self._stream.rows(
                self._cache.address + place,
                self._slot,
                self._new.address + head * width,
                self._slot,
                width,
                self._slots,
            )


class _Tensors:
    """Shapes and types of an engine's inputs and outputs, by name; -1 where a side may vary."""

    def __init__(self, library: Library, engine: Any) -> None:
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self.shapes = {name: tuple(engine.get_tensor_shape(name)) for name in names}
        self.types = {
            name: np.dtype(library.module.nptype(engine.get_tensor_dtype(name))) for name in names
        }

    def size(self, name: str, tokens: int = 1) -> int:
        """Return the bytes of a tensor for so many tokens."""
        sides = (tokens if side == -1 else side for side in self.shapes[name])
        return math.prod(sides) * self.types[name].itemsize


class _Loader:
    """Makes engines and contexts; knows what TensorRT-RTX wants besides."""

    def __init__(self, library: Library, compiled: bytes) -> None:
        self._library, self._compiled = library, compiled
        library.logger.errors.clear()
        self._runtime = library.module.Runtime(library.logger)
        self._kernels: Any = None

    def load(self, serialised: Content, graph: str) -> Any:
        engine = self._runtime.deserialize_cuda_engine(serialised)
        if engine is None:
            raise EngineError(
                f"{self._library.name} does not load the engine of {graph} on this GPU: "
                f"{self._library.errors()}"
            )
        return engine

    def context(self, engine: Any, profile: int, work: DeviceMemory, stream: Stream) -> Any:
        """Return what runs an engine for one of its profiles, with `work` for what comes between.

        Nothing else may run there at the same time.
        """
        trt = self._library.module
        mine = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._library.name == TENSORRT_RTX:
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(mine)
            if self._kernels is None:
                self._kernels = config.create_runtime_cache()
                if self._compiled:
                    # Refused, and built up anew, where something here has changed since.
                    self._kernels.deserialize(self._compiled)
            config.set_runtime_cache(self._kernels)
            # Kernels made for one length would come into use in the midst of a run, when they are
            # done, and round otherwise than those that answered the goldens. A single token is no
            # matter of that: its length is fixed.
            config.dynamic_shapes_kernel_specialization_strategy = (
                trt.DynamicShapesKernelSpecializationStrategy.NONE
            )
            context = engine.create_execution_context(config)
        else:
            context = engine.create_execution_context(mine)
        if context is None:
            raise EngineError(f"{self._library.name} has no room for it: {self._library.errors()}")
        context.set_device_memory(work.address, work.size)
        _must(context.set_optimization_profile_async(profile, stream.handle), self._library)
        stream.wait()
        return context

    def compiled(self) -> bytes:
        return b"" if self._kernels is None else bytes(memoryview(self._kernels.serialize()))


class _Pass:
    """The decoder for one profile, and the memory of what changes from pass to pass.

    Attributes:
        results: of the last pass, by name: `tokens` int64 [N], `probabilities` and `total`
            float32 [N].
    """

    def __init__(
        self, library: Library, context: Any, stream: Stream, kept: dict[str, int], read: _Tensors
    ) -> None:
        self._library, self._context, self._stream = library, context, stream
        self._shapes = read.shapes
        for name, address in kept.items():
            _must(context.set_tensor_address(name, address), library)
        self._bound: tuple[Any, ...] = ()
        self._views: dict[tuple[int, int], dict[str, NDArray[Any]]] = {}
        self._launch: Any = None
        self.results: dict[str, NDArray[Any]] = {}

    def reserve(self, lengths: Lengths, past: int) -> None:
        """Take the memory for the largest pass, over a cache of `past` places."""
        self._past = past
        up, down = self._places(lengths.most, lengths.asked), self._answers(lengths.asked)
        self._up_size, self._down_size = _end(up), _end(down)
        self._up, self._up_here = DeviceMemory(self._up_size), PinnedMemory(self._up_size)
        self._down, self._down_here = DeviceMemory(self._down_size), PinnedMemory(self._down_size)

    def bind(self, count: int, asked: int, embeds: dict[str, int]) -> dict[str, NDArray[Any]]:
        """Prepare for S = `count` tokens of which N = `asked` are asked about.

        Args:
            count, asked: they.
            embeds: addresses of what is seen.

        Returns:
            The arrays to write, by name.
        """
        places, answers = self._places(count, asked), self._answers(asked)
        bound = (count, asked, *embeds.values())
        if bound != self._bound:
            self._bound = ()
            addresses = {name: self._up.address + place[0] for name, place in places.items()}
            addresses |= {name: self._down.address + place[0] for name, place in answers.items()}
            for name, address in (addresses | embeds).items():
                _must(self._context.set_tensor_address(name, address), self._library)
            for name, shape in self._shapes.items():
                if name in places:
                    shape = places[name][1]
                elif name in embeds:
                    shape = tuple(count if side == -1 else side for side in shape)
                else:
                    continue
                _must(self._context.set_input_shape(name, shape), self._library)
            self._up_size, self._down_size = _end(places), _end(answers)
            self._bound = bound
        self.results = _views(self._down_here, answers)
        return _views(self._up_here, places)

    def run(self) -> None:
        """Give the pass to the stream; its results are there when the stream is done."""
        if self._launch is not None:
            self._launch()
        else:
            self._work()

    def capture(self) -> bool:
        """Record the pass that is bound, for good; return whether that was possible."""
        self._work()  # what is compiled or chosen in the first run is no part of it
        self._stream.wait()
        capturable = getattr(self._context, "is_stream_capturable", None)
        if capturable is not None and not capturable(self._stream.handle):
            return False
        try:
            self._launch = self._stream.capture(self._work)
        except EngineError:
            return False
        return True

    def _work(self) -> None:
        self._stream.up(self._up.address, self._up_here.address, self._up_size)
        _must(self._context.execute_async_v3(self._stream.handle), self._library)
        self._stream.down(self._down_here.address, self._down.address, self._down_size)

    def _places(self, count: int, asked: int) -> dict[str, tuple[int, tuple[int, ...], type]]:
        """Return where what goes up lies: offset [bytes], shape and type, by name."""
        indexed = "write_index" in self._shapes
        width = self._past if indexed else self._past + count
        shapes: dict[str, tuple[tuple[int, ...], type]] = {
            "input_ids": ((1, count), np.int64),
            "position_ids": ((3, 1, count), np.int64),
            "asked": ((asked,), np.int64),
            **({"write_index": ((1,), np.int64)} if indexed else {}),
            "attention_mask": ((1, 1, count, width), np.bool_),
        }
        return _laid_out(shapes)

    def _answers(self, asked: int) -> dict[str, tuple[int, tuple[int, ...], type]]:
        kinds = {"tokens": np.int64, "probabilities": np.float32, "total": np.float32}
        return _laid_out({name: ((asked,), kind) for name, kind in kinds.items()})


def _laid_out(
    shapes: Mapping[str, tuple[tuple[int, ...], type]],
) -> dict[str, tuple[int, tuple[int, ...], type]]:
    """Put arrays one behind the other, each where a tensor may begin."""
    places, end = {}, 0
    for name, (shape, kind) in shapes.items():
        places[name] = end, shape, kind
        end = aligned(end + math.prod(shape) * np.dtype(kind).itemsize)
    return places


def _end(places: Mapping[str, tuple[int, tuple[int, ...], type]]) -> int:
    return max(
        start + math.prod(shape) * np.dtype(kind).itemsize for start, shape, kind in places.values()
    )


def _views(
    memory: PinnedMemory, places: Mapping[str, tuple[int, tuple[int, ...], type]]
) -> dict[str, NDArray[Any]]:
    views: dict[str, NDArray[Any]] = {}
    for name, (start, shape, kind) in places.items():
        size = math.prod(shape) * np.dtype(kind).itemsize
        views[name] = memory.bytes[start : start + size].view(kind).reshape(shape)
    return views


def _must(done: bool, library: Library) -> None:
    if not done:
        raise EngineError(f"{library.name} {library.version} failed: {library.errors()}")
