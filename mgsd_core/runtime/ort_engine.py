"""A bundle's graphs on ONNX Runtime's CPU provider.

Knows nothing of prompts or plans: it sees a picture, reads tokens at places of its KV cache and
returns the logits of the last one. Every buffer is bound once and written in place.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

# Since 1.29 ONNX Runtime reports to its maker unless it is told not to before it is imported, and
# keeps a device id in the home directory. A robot's computer reports nothing that nobody asked for.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from mgsd_core.runtime.bundle import DECODER, VISION, Bundle, BundleError

# One step of a smaller decoder is over before a second thread is at work.
_SINGLE_THREAD_BYTES = 64 << 20


@dataclass(frozen=True)
class _Pass:
    """Buffers bound for a pass of S tokens; the shapes are those of the decoder graph."""

    binding: ort.IOBinding
    ids: NDArray[np.int64]
    visual: NDArray[np.float32]
    deepstack: NDArray[np.float32]
    positions: NDArray[np.int64]
    index: NDArray[np.int64]
    mask: NDArray[np.bool_]


class OrtEngine:
    """Both graphs of a bundle and one KV cache.

    Attributes:
        vocabulary: number of logits.
    """

    def __init__(self, bundle: Bundle, threads: int | None) -> None:
        options = ort.SessionOptions()
        small = len(bundle.files[DECODER]) < _SINGLE_THREAD_BYTES
        options.intra_op_num_threads = threads or (1 if small else 0)  # 0: all cores
        options.log_severity_level = 3
        self._vision = _session(bundle, VISION, options)
        self._decoder = _session(bundle, DECODER, options)
        self._image_token = bundle.manifest.tokens.image
        self._check(bundle)
        length = bundle.manifest.cache_length
        # Row i: what the token at place i of the cache may attend to.
        self._causal = np.tri(length, dtype=np.bool_)
        self._cache = {
            i.name: np.zeros(i.shape, np.float32)
            for i in self._decoder.get_inputs()
            if i.name.startswith("past_")
        }
        self._cache_values = {
            name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in self._cache.items()
        }
        self._logits = np.zeros((1, 1, self.vocabulary), np.float32)
        self._passes: dict[int, _Pass] = {}
        self._seen: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None

    def see(self, pixels: NDArray[np.float32]) -> None:
        """Turn patches [P, 3 * temporal * patch * patch] into the visual tokens read next."""
        embeds, deepstack = self._vision.run(
            ["image_embeds", "deepstack_embeds"], {"pixel_values": pixels}
        )
        self._seen = embeds, deepstack

    def read(
        self, ids: Sequence[int], positions: NDArray[np.int64], start: int
    ) -> NDArray[np.float32]:
        """Read S tokens into the cache from place `start` on.

        They attend to the places before them and to nothing beyond themselves, so what an earlier
        frame left there does not matter.

        Args:
            ids: S token ids; image tokens stand for what `see` saw last.
            positions: M-RoPE positions [3, S].
            start: place in the cache of the first of them.

        Returns:
            Logits [V] of the last one; overwritten by the next call.
        """
        step = self._passes.get(len(ids)) or self._bind(len(ids))
        step.ids[0] = ids
        step.positions[:, 0] = positions
        step.index[0] = start
        step.mask[0, 0] = self._causal[start : start + len(ids)]
        if len(ids) > 1:
            self._show(step)
        self._decoder.run_with_iobinding(step.binding)
        return self._logits[0, 0]

    def reset(self) -> None:
        """Forget all that was read. Only needed after a pass that left non-finite values."""
        for array in self._cache.values():
            array.fill(0)

    def _show(self, step: _Pass) -> None:
        places = np.flatnonzero(step.ids[0] == self._image_token)
        if len(places):
            assert self._seen is not None
            embeds, deepstack = self._seen
            step.visual[0, places] = embeds
            step.deepstack[0, :, places] = deepstack.swapaxes(0, 1)

    def _bind(self, count: int) -> _Pass:
        shapes = {i.name: i.shape for i in self._decoder.get_inputs()}
        hidden, layers = shapes["visual_embeds"][-1], shapes["deepstack_embeds"][1]
        step = _Pass(
            binding=self._decoder.io_binding(),
            ids=np.zeros((1, count), np.int64),
            visual=np.zeros((1, count, hidden), np.float32),
            deepstack=np.zeros((1, layers, count, hidden), np.float32),
            positions=np.zeros((3, 1, count), np.int64),
            index=np.zeros(1, np.int64),
            mask=np.zeros((1, 1, count, len(self._causal)), np.bool_),
        )
        inputs = {
            "input_ids": step.ids,
            "visual_embeds": step.visual,
            "deepstack_embeds": step.deepstack,
            "position_ids": step.positions,
            "write_index": step.index,
            "attention_mask": step.mask,
        }
        # An OrtValue on the CPU is a view of its array: writing the array is all that a call needs.
        for name, array in inputs.items():
            step.binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        step.binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(self._logits))
        # The same value in and out: the cache is updated in place, never copied.
        for name, value in self._cache_values.items():
            step.binding.bind_ortvalue_input(name, value)
            step.binding.bind_ortvalue_output(name.replace("past_", "present_"), value)
        self._passes[count] = step
        return step

    def _check(self, bundle: Bundle) -> None:
        """Refuse graphs that do not fit the manifest or each other."""
        spec, length = bundle.manifest.image, bundle.manifest.cache_length
        seen = {i.name: i.shape for i in (*self._vision.get_inputs(), *self._vision.get_outputs())}
        shapes = {i.name: i.shape for i in self._decoder.get_inputs()}
        outputs = {o.name: o.shape for o in self._decoder.get_outputs()}
        try:
            tokens, hidden = seen["image_embeds"]
            layers = seen["deepstack_embeds"][0]
            fits = (
                seen["pixel_values"] == [spec.grid**2, 3 * spec.temporal * spec.patch**2]
                and tokens == spec.tokens
                and shapes["visual_embeds"][-1] == hidden
                and shapes["deepstack_embeds"][1] == layers
                and shapes["attention_mask"][-1] == length
                and all(s[2] == length for n, s in shapes.items() if n.startswith("past_"))
            )
            self.vocabulary = int(outputs["logits"][-1])
        except (KeyError, IndexError, ValueError, TypeError):
            fits = False
        if not fits:
            raise BundleError(
                f"the graphs in {bundle.path} do not fit its manifest; export it again"
            )


def _session(bundle: Bundle, name: str, options: ort.SessionOptions) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(bundle.files[name], options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has no common class for what it raises here
        line = str(error).strip().splitlines()[0]
        raise BundleError(f"ONNX Runtime cannot load {name} in {bundle.path}: {line}") from None
