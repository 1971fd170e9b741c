"""A bundle's graphs on ONNX Runtime's CPU provider; every buffer is bound once and reused."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

# Since 1.29 ONNX Runtime reports to its maker unless it is told not to before it is imported, and
# keeps a device id in the home directory. A robot's computer reports nothing that nobody asked for.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from mgsd_core.runtime.bundle import DATA_SUFFIX, DECODER, VISION, Bundle, BundleError
from mgsd_core.runtime.engine import InferenceError, check_finite, fill_pass

# One step of a smaller decoder is over before a second thread is at work.
_SINGLE_THREAD_BYTES = 64 << 20

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


# What the decoder takes and gives as whole numbers, as real ones, and as those of its precision.
_WHOLE = ("input_ids", "position_ids", "asked", "write_index", "tokens")
_REAL = ("probabilities", "total", "logits")
_INNER = ("visual_embeds", "deepstack_embeds")


@dataclass(frozen=True)
class _Pass:
    """What is bound for a pass of S tokens of which N are asked about; arrays by name."""

    binding: ort.IOBinding
    inputs: dict[str, NDArray[Any]]
    outputs: dict[str, NDArray[Any]]


def check_threads(threads: int | None) -> None:
    """Raise `BundleError` unless it is None or a number of threads."""
    if threads is not None and threads < 1:
        raise BundleError(f"threads must be at least 1, not {threads}")


class OrtEngine:
    """See `mgsd_core.runtime.engine.Engine`."""

    def __init__(self, bundle: Bundle, threads: int | None) -> None:
        check_threads(threads)
        small = bundle.graph_bytes(DECODER) < _SINGLE_THREAD_BYTES
        # Said here, because ONNX Runtime itself counts two hyperthreads as one.
        threads = threads or (1 if small else len(os.sched_getaffinity(0)))
        self._vision = _session(bundle, VISION, threads)
        self._decoder = _session(bundle, DECODER, threads)
        self._inputs = {i.name: i for i in self._decoder.get_inputs()}
        self._image_token = bundle.manifest.tokens.image
        self._portable = bundle.manifest.portable
        self._check(bundle)
        self._length = bundle.manifest.cache_length
        # Row i: what the token at place i of the cache may attend to.
        self._causal = np.tri(self._length, dtype=np.bool_)
        self._cache = {
            name: np.zeros(i.shape, _TYPES[i.type])
            for name, i in self._inputs.items()
            if name.startswith("past_")
        }
        # An OrtValue on the CPU is a view of its array: writing the array is all that a call needs.
        self._cache_values = {
            name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in self._cache.items()
        }
        self._buffers: dict[str, NDArray[Any]] = {}
        self._passes: dict[tuple[int, int, bool, bool], _Pass] = {}
        self._embeds = self._deepstack = np.zeros(0, np.float32)

    def see(self, pixels: NDArray[np.float32]) -> None:
        """See `Engine.see`."""
        with _failing():
            self._embeds, self._deepstack = self._vision.run(
                ["image_embeds", "deepstack_embeds"], {"pixel_values": pixels}
            )

    def read(
        self, ids: Sequence[int], positions: NDArray[np.int64], start: int, asked: int = 1
    ) -> tuple[list[int], list[float]]:
        """See `Engine.read`."""
        outputs = self._run(ids, positions, start, asked, logits=False)
        check_finite(outputs["total"])
        tokens: list[int] = outputs["tokens"][0].tolist()
        if not 0 <= min(tokens) <= max(tokens) < self.vocabulary:
            raise InferenceError("the model names tokens that are none: its graphs are damaged")
        return tokens, outputs["probabilities"][0].tolist()

    def read_logits(
        self, ids: Sequence[int], positions: NDArray[np.int64], start: int, asked: int = 1
    ) -> NDArray[np.float32]:
        """Return the logits [asked, V] instead; overwritten by the next call. For checks."""
        logits: NDArray[np.float32] = self._run(ids, positions, start, asked, logits=True)["logits"]
        return logits[0]

    def signature(self, name: str) -> dict[str, dict[str, list[Any]]]:
        """Return a graph's {"inputs", "outputs": {name: [type, shape]}}."""
        session = self._vision if name == VISION else self._decoder
        sides = {"inputs": session.get_inputs(), "outputs": session.get_outputs()}
        return {side: {v.name: [v.type, v.shape] for v in values} for side, values in sides.items()}

    def reset(self) -> None:
        """See `Engine.reset`."""
        for array in self._cache.values():
            array.fill(0)

    def _run(
        self, ids: Sequence[int], positions: NDArray[np.int64], start: int, asked: int, logits: bool
    ) -> dict[str, NDArray[Any]]:
        count = len(ids)
        shows = self._image_token in ids
        key = count, asked, shows, logits
        step = self._passes.get(key) or self._bind(*key)
        given = step.inputs
        fill_pass(given, ids, positions, start, self._causal, self._portable)
        if shows:
            places = np.flatnonzero(given["input_ids"][0] == self._image_token)
            given["visual_embeds"][0, places] = self._embeds
            given["deepstack_embeds"][0, :, places] = self._deepstack.swapaxes(0, 1)
        with _failing():
            self._decoder.run_with_iobinding(step.binding)
        if self._portable:
            for name, array in self._cache.items():
                array[:, :, start : start + count] = step.outputs[name.replace("past", "present")]
        return step.outputs

    def _bind(self, count: int, asked: int, shows: bool, logits: bool) -> _Pass:
        binding = self._decoder.io_binding()
        dimensions = {"S": count, "N": asked, "Smax + S": self._length + count}
        inputs: dict[str, NDArray[Any]] = {}
        outputs: dict[str, NDArray[Any]] = {}
        for name, i in self._inputs.items():
            if name in self._cache:
                value = self._cache_values[name]
            else:
                if shows and name in ("visual_embeds", "deepstack_embeds"):
                    # Of its own: where no image token stands it stays 0, as it is for all text.
                    shape = [dimensions.get(d, d) for d in i.shape]
                    inputs[name] = np.zeros(shape, _TYPES[i.type])
                elif name == "asked":
                    inputs[name] = np.arange(count - asked, count)
                else:
                    inputs[name] = self._buffer(name, i, dimensions)
                value = ort.OrtValue.ortvalue_from_numpy(inputs[name])
            binding.bind_ortvalue_input(name, value)
        for o in self._decoder.get_outputs():
            if o.name == "logits" and not logits:
                continue
            if o.name.startswith("present_") and not self._portable:
                # The same value in and out: the cache is updated in place, never copied.
                value = self._cache_values[o.name.replace("present", "past")]
            else:
                outputs[o.name] = self._buffer(o.name, o, dimensions)
                value = ort.OrtValue.ortvalue_from_numpy(outputs[o.name])
            binding.bind_ortvalue_output(o.name, value)
        step = self._passes[count, asked, shows, logits] = _Pass(binding, inputs, outputs)
        return step

    def _buffer(self, name: str, value: ort.NodeArg, dimensions: dict[str, int]) -> NDArray[Any]:
        """Return the array of an input or output; passes of all lengths share its memory."""
        shape = [dimensions.get(d, d) for d in value.shape]
        most = {"S": self._length, "N": self._length, "Smax + S": 2 * self._length}
        if name == "logits":  # too large to be held for lengths that nobody asks for
            return np.zeros(shape, np.float32)
        if name not in self._buffers:
            size = math.prod(most.get(d, d) for d in value.shape)
            self._buffers[name] = np.zeros(size, _TYPES[value.type])
        return self._buffers[name][: math.prod(shape)].reshape(shape)

    def _check(self, bundle: Bundle) -> None:
        """Refuse graphs that do not fit the manifest or each other."""
        spec, length = bundle.manifest.image, bundle.manifest.cache_length
        seen = {i.name: i.shape for i in (*self._vision.get_inputs(), *self._vision.get_outputs())}
        given = {name: i.shape for name, i in self._inputs.items()}
        said = {o.name: o.shape for o in self._decoder.get_outputs()}
        pixels = [i.type for i in self._vision.get_inputs()]
        types = {i.name: i.type for i in (*self._inputs.values(), *self._decoder.get_outputs())}
        try:
            hidden, layers = seen["image_embeds"][-1], seen["deepstack_embeds"][0]
            self.vocabulary = int(said["logits"][-1])
            caches = {name: shape for name, shape in given.items() if name.startswith("past_")}
            fits = (
                seen
                == {
                    "pixel_values": [spec.grid**2, 3 * spec.temporal * spec.patch**2],
                    "image_embeds": [spec.tokens, hidden],
                    "deepstack_embeds": [layers, spec.tokens, hidden],
                }
                and given
                == {
                    "input_ids": [1, "S"],
                    "visual_embeds": [1, "S", hidden],
                    "deepstack_embeds": [1, layers, "S", hidden],
                    "position_ids": [3, 1, "S"],
                    "attention_mask": [1, 1, "S", "Smax + S" if self._portable else length],
                    "asked": ["N"],
                    **({} if self._portable else {"write_index": [1]}),
                    **caches,
                }
                and all(len(s) == 4 and s[0] == 1 and s[2] == length for s in caches.values())
                and all(said[name] == [1, "N"] for name in ("tokens", "probabilities", "total"))
                and all(
                    said[name.replace("past", "present")]
                    == [1, s[1], "S" if self._portable else length, s[3]]
                    for name, s in caches.items()
                )
                and all(isinstance(side, int) for s in caches.values() for side in s)
                and all(isinstance(side, int) for side in (hidden, layers))
                and pixels == ["tensor(float)"]
                and all(types[name] == "tensor(int64)" for name in _WHOLE if name in types)
                and all(types[name] == "tensor(float)" for name in _REAL)
                and types["attention_mask"] == "tensor(bool)"
                and all(
                    types[name] in ("tensor(float)", "tensor(float16)")
                    for name in (*_INNER, *caches, *(c.replace("past", "present") for c in caches))
                )
            )
        except (KeyError, IndexError, ValueError, TypeError):
            fits = False
        if not fits:
            raise BundleError(
                f"the graphs in {bundle.path} do not fit its manifest; export it again"
            )


@contextmanager
def _failing() -> Iterator[None]:
    """Turn what ONNX Runtime raises over a pass into one line."""
    try:
        yield
    except Exception as error:  # it has no common class for them
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InferenceError(f"ONNX Runtime cannot run the graphs: {line[:300]}") from None


def _session(bundle: Bundle, name: str, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Weights beside a graph are given below, as they were checked; it finds no others anywhere.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", os.devnull
    )
    data = bundle.files.get(name + DATA_SUFFIX)
    try:
        if data is not None:
            # What was checked is what is used: the file is not opened again.
            options.add_external_initializers_from_files_in_memory(
                [name + DATA_SUFFIX], [data], [len(data)]
            )
        return ort.InferenceSession(bundle.files[name], options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has no common class for what it raises here
        line = str(error).strip().splitlines()[0]
        raise BundleError(f"ONNX Runtime cannot load {name} in {bundle.path}: {line}") from None
