"""From a picture to a plan: prompt, greedy decoding and the verdict on what was said.

The instruction is the same for every frame and stands before the picture, so its keys and values
are computed once, at load. A frame then costs one pass over the picture's tokens and one for every
token of the response.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from mgsd_core.installed import shipped_bundle
from mgsd_core.prompts import STOP_TEXT, parse_response
from mgsd_core.runtime.bundle import TOKENIZER, Bundle, BundleError, read_bundle
from mgsd_core.runtime.ort_engine import OrtEngine
from mgsd_core.runtime.preprocess import fit, mrope_positions, patchify
from sim import Cell, Failure, Plan, State, simulate, state_to_dict

#: Ways to run a bundle, best first; "auto" takes the first.
BACKENDS = ("onnxruntime-cpu",)

# `</answer>` may be spelled by several tokens, none of which is empty.
_STOP_WINDOW = len(STOP_TEXT)


class InferenceError(ValueError):
    """The model computed something that is no answer, such as logits that are not numbers."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of the plan in the state that the model itself recovered.

    Attributes:
        legal: there are a state and a plan, and no action in it is illegal.
        success: it achieves the task there.
        failure: None on success; else the `sim.Failure` value, or what the response lacks.
        path: the robot's cell before the first action and after each one carried out.
    """

    legal: bool
    success: bool
    failure: str | None
    path: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Response:
    """What the model answered to one picture.

    Attributes:
        state: the state it recovered, or None.
        plan: the plan it gives, or None.
        text: all that it wrote, up to `</answer>`.
        timings: seconds for preprocess, vision, prefill, decode and total.
        verdict: on the plan in that state.
    """

    state: State | None
    plan: Plan | None
    text: str
    timings: dict[str, float]
    verdict: Verdict


class Planner:
    """A loaded bundle that plans for one family. Not for several threads at a time.

    Attributes:
        family: the family it plans for.
        backend: what runs it.
        bundle_digest: SHA-256 (hex) of the bundle's manifest, which names every file's digest.
    """

    def __init__(self, bundle: Bundle, engine: OrtEngine, family: str, prefix_cache: bool) -> None:
        self.family, self.backend, self.bundle_digest = family, BACKENDS[0], bundle.digest
        self._engine = engine
        self._spec, self._tokens = bundle.manifest.image, bundle.manifest.tokens
        prompt = bundle.manifest.prompts[family]
        self._max_new_tokens = prompt.max_new_tokens
        self._tokenizer = _tokenizer(bundle)
        before, after = (
            self._tokenizer.encode(text, add_special_tokens=False).ids
            for text in (prompt.prefix, prompt.suffix)
        )
        ids = [*before, *[self._tokens.image] * self._spec.tokens, *after]
        _check_ids(bundle, engine, ids, prompt.max_new_tokens)
        positions = mrope_positions(ids, self._tokens.image, self._spec)
        self._length, self._next_position = len(ids), int(positions.max()) + 1
        kept = len(before) if prefix_cache else 0
        self._prefix = ids[:kept], positions[:, :kept]
        self._frame = ids[kept:], positions[:, kept:]
        self._suppressed = np.array(self._tokens.suppressed, dtype=np.int64)
        # Only a token that holds the last character of `</answer>` can complete it.
        pieces = self._tokenizer.get_vocab()
        self._closing = {i for piece, i in pieces.items() if STOP_TEXT[-1] in piece}
        self._read_prefix()

    @classmethod
    def load(
        cls,
        bundle_dir: str | Path | None = None,
        backend: str = "auto",
        family: str = "frozenlake",
        threads: int | None = None,
        prefix_cache: bool = True,
    ) -> Planner:
        """Load a bundle; every file's digest is checked before any is used.

        Args:
            bundle_dir: what `mgsd export` wrote; None takes the model that comes with the package.
            backend: one of `BACKENDS`, or "auto" for the best that is here.
            family: the family to plan for; the bundle must have been exported for it.
            threads: CPU threads of the model; None: one for a small model, else all cores.
            prefix_cache: compute the instruction's keys and values once instead of every frame.

        Raises:
            BundleError: missing, damaged or of another version; no such backend or family in it.
            FileNotFoundError: none is named, and none came with the package.
        """
        if backend not in ("auto", *BACKENDS):
            raise BundleError(
                f"unknown backend {backend!r}; there are: auto, {', '.join(BACKENDS)}"
            )
        if threads is not None and threads < 1:
            raise BundleError(f"threads must be at least 1, not {threads}")
        bundle_dir = shipped_bundle() if bundle_dir is None else bundle_dir
        bundle = read_bundle(bundle_dir)
        families = bundle.manifest.families
        if family not in families:
            raise BundleError(
                f"the bundle {bundle_dir} cannot plan for {family!r}; it has: {', '.join(families)}"
            )
        return cls(bundle, OrtEngine(bundle, threads), family, prefix_cache)

    def plan(self, rgb: NDArray[np.uint8]) -> Response:
        """Plan from a picture uint8 [H, W, 3] of any size. The same picture gives the same answer.

        Raises:
            ImageError: not such an array.
            InferenceError: the model computed values that are not numbers.
        """
        began = time.perf_counter()
        pixels = patchify(fit(rgb, self._spec)[None], self._spec)
        seeing = time.perf_counter()
        self._engine.see(pixels)
        reading = time.perf_counter()
        logits = self._engine.read(*self._frame, start=len(self._prefix[0]))
        writing = time.perf_counter()
        text = self._write(logits)
        written = time.perf_counter()
        parsed = parse_response(text, self.family)
        verdict = _judge(parsed.state, parsed.plan, parsed.problem)
        timings = {
            "preprocess": seeing - began,
            "vision": reading - seeing,
            "prefill": writing - reading,
            "decode": written - writing,
            "total": time.perf_counter() - began,
        }
        return Response(parsed.state, parsed.plan, text, timings, verdict)

    def _write(self, logits: NDArray[np.float32]) -> str:
        """Decode greedily to `</answer>`, the end of the turn, or the most tokens."""
        tokens: list[int] = []
        while (token := self._choose(logits)) != self._tokens.end:
            tokens.append(token)
            if len(tokens) == self._max_new_tokens or self._is_complete(tokens):
                break
            place = len(tokens) - 1
            position = np.full((3, 1), self._next_position + place)
            logits = self._engine.read([token], position, start=self._length + place)
        text = self._tokenizer.decode(tokens)
        return text[: text.index(STOP_TEXT) + len(STOP_TEXT)] if STOP_TEXT in text else text

    def _choose(self, logits: NDArray[np.float32]) -> int:
        logits[self._suppressed] = -np.inf
        token = int(logits.argmax())  # the first NaN, if there is one
        if not np.isfinite(logits[token]):
            # What is not a number would stay in the cache and spoil the frames to come.
            self._engine.reset()
            self._read_prefix()
            raise InferenceError(
                "the model's logits are not finite numbers: its weights are damaged or overflow"
            )
        return token

    def _is_complete(self, tokens: list[int]) -> bool:
        return tokens[-1] in self._closing and STOP_TEXT in self._tokenizer.decode(
            tokens[-_STOP_WINDOW:]
        )

    def _read_prefix(self) -> None:
        if self._prefix[0]:
            self._engine.read(*self._prefix, start=0)


def response_to_dict(response: Response) -> dict[str, Any]:
    """Return a response as JSON values: actions, path, state, verdict, text and timings [s]."""
    state, plan = response.state, response.plan
    verdict = asdict(response.verdict)
    path = [list(cell) for cell in verdict.pop("path")]
    return {
        "actions": None if plan is None else [action.value for action in plan],
        "path": path,
        "state": None if state is None else state_to_dict(state),
        "verdict": verdict,
        "text": response.text,
        "timings": response.timings,
    }


def _judge(state: State | None, plan: Plan | None, problem: str | None) -> Verdict:
    if state is None or plan is None:
        return Verdict(False, False, problem, ())
    outcome = simulate(state, plan)
    failure = None if outcome.failure is None else outcome.failure.value
    legal = outcome.failure in (None, Failure.INCOMPLETE)
    return Verdict(legal, outcome.success, failure, outcome.path)


def _tokenizer(bundle: Bundle) -> Tokenizer:
    try:
        return Tokenizer.from_str(bundle.files[TOKENIZER].decode())
    except Exception as error:  # `tokenizers` raises plain Exception
        raise BundleError(f"cannot load {TOKENIZER} in {bundle.path}: {error}") from None


def _check_ids(bundle: Bundle, engine: OrtEngine, ids: list[int], max_new_tokens: int) -> None:
    tokens = bundle.manifest.tokens
    if max(*ids, tokens.end, *tokens.suppressed) >= engine.vocabulary:
        raise BundleError(f"token ids in {bundle.path} exceed the model's vocabulary")
    if len(ids) + max_new_tokens > bundle.manifest.cache_length:
        raise BundleError(f"prompt and response in {bundle.path} exceed its cache")
