"""What runs a bundle's graphs, whichever library does it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class InferenceError(ValueError):
    """The model computed something that is no answer, such as logits that are not numbers."""


class Engine(Protocol):
    """Both graphs of a bundle and one KV cache. It knows nothing of prompts or plans.

    Attributes:
        vocabulary: number of logits.
    """

    vocabulary: int

    def see(self, pixels: NDArray[np.float32]) -> None:
        """Turn patches [P, 3 * temporal * patch * patch] into the visual tokens read next."""

    def read(
        self, ids: Sequence[int], positions: NDArray[np.int64], start: int, asked: int = 1
    ) -> tuple[list[int], list[float]]:
        """Read S tokens into the cache from place `start` on.

        They attend to the places before them and to nothing beyond themselves, so what an earlier
        frame left there does not matter.

        Args:
            ids: S token ids; image tokens stand for what `see` saw last.
            positions: M-RoPE positions [3, S]; [1, S] for text, where all three are the same.
            start: place in the cache of the first of them.
            asked: of how many of the last of them the successors are wanted.

        Returns:
            For each of the last `asked` tokens the likeliest one to follow it, and its probability.

        Raises:
            InferenceError: logits are not finite numbers. The cache is then spoiled: `reset` it.
        """

    def reset(self) -> None:
        """Forget all that was read."""


def fill_pass(
    given: Mapping[str, NDArray[Any]],
    ids: Sequence[int],
    positions: NDArray[np.int64],
    start: int,
    causal: NDArray[np.bool_],
    portable: bool,
) -> None:
    """Write what the decoder graph is told of a pass: tokens, places and what they may attend to.

    Args:
        given: inputs of the graph, by name; see `mgsd_core.export.graphs`.
        ids, positions, start: see `Engine.read`.
        causal: bool [Smax, Smax]; row i is what the token at place i of the cache may attend to.
        portable: the graph is the portable one.
    """
    count, length = len(ids), len(causal)
    given["input_ids"][0] = ids
    given["position_ids"][:, 0] = positions
    mask = given["attention_mask"][0, 0]
    if portable:
        mask[:, :length] = np.arange(length) < start
        mask[:, length:] = causal[:count, :count]
    else:
        given["write_index"][0] = start
        mask[:] = causal[start : start + count]


def check_finite(total: NDArray[np.float32]) -> None:
    """Raise `InferenceError` unless the sums of the logits, and so all of them, are finite."""
    if not math.isfinite(float(total.sum())):
        raise InferenceError(
            "the model's logits are not finite numbers: its weights are damaged or overflow"
        )
