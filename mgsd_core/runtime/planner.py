"""From a picture to a plan: prompt, greedy decoding and the verdict on what was said.

The instruction is the same for every frame and stands before the picture, so its keys and values
are computed once, at load. A frame then costs one pass over the picture's tokens and some more for
the response: what the format fixes is drafted (`mgsd_core.drafts`) and read in the same pass as the
token before it. The model says in that pass what it would have written in each place; the draft is
kept as far as it is that, so the text is the one that plain greedy decoding gives.
"""

from __future__ import annotations

import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from mgsd_core.drafts import Drafter
from mgsd_core.installed import shipped_bundle
from mgsd_core.prompts import STOP_TEXT, parse_response
from mgsd_core.runtime.backends import BACKENDS, ONNXRUNTIME, choose_engine
from mgsd_core.runtime.bundle import TOKENIZER, Bundle, BundleError, read_bundle
from mgsd_core.runtime.engine import Engine, InferenceError
from mgsd_core.runtime.preprocess import fit, mrope_positions, patchify
from sim import Cell, Failure, Plan, State, simulate, solve, state_to_dict

# Most tokens of a response's first draft; four times as many each time that all were right.
_FIRST_TRUSTED = 4
# Tokens of a draft that are read after one that was wrong from its first token on.
_LEAST_TRUSTED = 3

# `</answer>` may be spelled by several tokens, none of which is empty.
_STOP_WINDOW = len(STOP_TEXT)


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
        timings: seconds for preprocess, vision, prefill, decode, check and total.
        verdict: on the plan in that state.
        confidence: probability that the model gives to just this text, 0 to 1: the product over
            its tokens, to four digits. A response that is unsure of one token is unsure.
        tokens: written in all.
        passes: of the decoder that wrote them, the first over the picture.
        repaired: the plan is not the model's but a shortest one in the state that it recovered,
            since its own fails there.
    """

    state: State | None
    plan: Plan | None
    text: str
    timings: dict[str, float]
    verdict: Verdict
    confidence: float = 0.0
    tokens: int = 0
    passes: int = 0
    repaired: bool = False


class Planner:
    """A loaded bundle that plans for one family.

    Threads may call `plan` as they like: one frame is planned after the other.

    Attributes:
        family: the family it plans for.
        backend: what runs it, one of `BACKENDS`.
        backend_reason: why that, in one line.
        bundle_digest: SHA-256 (hex) of the bundle's manifest, which names every file's digest.
        image: how pictures enter the model.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        family: str,
        prefix_cache: bool = True,
        forced_tokens: bool = True,
        repair: bool = False,
        backend: str = ONNXRUNTIME,
        backend_reason: str = "",
    ) -> None:
        self.family, self.bundle_digest = family, bundle.digest
        self.backend, self.backend_reason = backend, backend_reason
        self._engine, self._forced_tokens, self._repair = engine, forced_tokens, repair
        self.image = self._spec = bundle.manifest.image
        self._tokens = bundle.manifest.tokens
        prompt = bundle.manifest.prompts[family]
        self._max_new_tokens = prompt.max_new_tokens
        self._tokenizer = _tokenizer(bundle)
        before, after = (self._encode(text) for text in (prompt.prefix, prompt.suffix))
        ids = [*before, *[self._tokens.image] * self._spec.tokens, *after]
        _check_ids(bundle, engine, ids, prompt.max_new_tokens)
        positions = mrope_positions(ids, self._tokens.image, self._spec)
        self._length, self._next_position = len(ids), int(positions.max()) + 1
        # Only a token that holds the last character of `</answer>` can complete it.
        pieces = self._tokenizer.get_vocab()
        self._closing = {i for piece, i in pieces.items() if STOP_TEXT[-1] in piece}
        kept = len(before) if prefix_cache else 0
        self._prefix = ids[:kept], positions[:, :kept]
        # Drafts are made of few words, and the tokenizer takes its time for each call.
        self._pieces: dict[int, str] = {}
        self._words: dict[str, list[int]] = {}
        self._last = ""
        # Every response begins alike, and that much is read with the picture.
        self._begun = self._draft(Drafter(family), "")
        self._frame = (
            [*ids[kept:], *self._begun],
            np.hstack(
                [positions[:, kept:], self._positions(0, len(self._begun)).repeat(3, axis=0)]
            ),
        )
        self._lock = threading.Lock()
        self._read_prefix()

    @classmethod
    def load(
        cls,
        bundle_dir: str | Path | None = None,
        backend: str = "auto",
        family: str = "frozenlake",
        threads: int | None = None,
        prefix_cache: bool = True,
        forced_tokens: bool = True,
        repair: bool = False,
    ) -> Planner:
        """Load a bundle; every file's digest is checked before any is used.

        Args:
            bundle_dir: what `mgsd export` wrote; None takes the model that comes with the package.
            backend: one of `BACKENDS`, or "auto": a TensorRT engine that `mgsd build-engine` put
                into the cache, if it is for what is here, else ONNX Runtime.
            family: the family to plan for; the bundle must have been exported for it.
            threads: CPU threads of the model; None: one for a small model, else all cores.
            prefix_cache: compute the instruction's keys and values once instead of every frame.
            forced_tokens: read what the format fixes in one pass instead of token by token. Neither
                changes an answer.
            repair: where the model's plan fails in the state that it recovered, give a shortest one
                there instead, marked as repaired.

        Raises:
            BundleError: missing, damaged or of another version; no such family in it; no such
                backend, or it cannot be had here.
            FileNotFoundError: none is named, and none came with the package.
        """
        if backend not in ("auto", *BACKENDS):
            raise BundleError(
                f"unknown backend {backend!r}; there are: auto, {', '.join(BACKENDS)}"
            )
        bundle_dir = shipped_bundle() if bundle_dir is None else bundle_dir
        bundle = read_bundle(bundle_dir)
        families = bundle.manifest.families
        if family not in families:
            raise BundleError(
                f"the bundle {bundle_dir} cannot plan for {family!r}; it has: {', '.join(families)}"
            )
        chosen = choose_engine(bundle, backend, threads)
        return cls(
            bundle,
            chosen.engine,
            family,
            prefix_cache,
            forced_tokens,
            repair,
            chosen.backend,
            chosen.reason,
        )

    def plan(self, rgb: NDArray[np.uint8]) -> Response:
        """Plan from a picture uint8 [H, W, 3] of any size. The same picture gives the same answer.

        Raises:
            ImageError: not such an array.
            InferenceError: the model computed values that are not numbers.
        """
        with self._lock:
            return self._plan(rgb)

    def _plan(self, rgb: NDArray[np.uint8]) -> Response:
        began = time.perf_counter()
        pixels = patchify(fit(rgb, self._spec)[None], self._spec)
        seeing = time.perf_counter()
        self._engine.see(pixels)
        reading = time.perf_counter()
        try:
            said = self._engine.read(
                *self._frame, start=len(self._prefix[0]), asked=1 + len(self._begun)
            )
            writing = time.perf_counter()
            tokens, passes, confidence = self._write(*said)
        except InferenceError:
            # What is not a number would stay in the cache and spoil the frames to come.
            self._engine.reset()
            self._read_prefix()
            raise
        text = self._last = _up_to_stop(self._tokenizer.decode(tokens))
        checking = time.perf_counter()
        parsed = parse_response(text, self.family)
        verdict = _judge(parsed.state, parsed.plan, parsed.problem)
        response = Response(
            state=parsed.state,
            plan=parsed.plan,
            text=text,
            timings={},
            verdict=verdict,
            # Beyond that, it would tell how many tokens a pass held.
            confidence=round(confidence, 4),
            tokens=len(tokens),
            passes=passes,
        )
        if self._repair:
            response = _repaired(response)
        ended = time.perf_counter()
        response.timings.update(
            preprocess=seeing - began,
            vision=reading - seeing,
            prefill=writing - reading,
            decode=checking - writing,
            check=ended - checking,
            total=ended - began,
        )
        return response

    def _write(self, said: list[int], sure: list[float]) -> tuple[list[int], int, float]:
        """Decode greedily to `</answer>`, the end of the turn, or the most tokens.

        Args:
            said: what the model says after the prompt and after each token of `_begun`.
            sure: the probability of each.

        Returns:
            The response's tokens, the number of passes that it took, and the probability of the
            response as a whole.
        """
        tokens: list[int] = []
        drafter, written = Drafter(self.family), ""
        drafted, passes, trusted, confidence = self._begun, 1, _FIRST_TRUSTED, 1.0
        while True:
            for kept, token in enumerate(said):
                confidence *= sure[kept]
                if token == self._tokens.end:
                    return tokens, passes, confidence
                tokens.append(token)
                written += self._piece(token)
                if len(tokens) == self._max_new_tokens or self._is_complete(tokens):
                    return tokens, passes, confidence
                if kept < len(drafted) and drafted[kept] != token:
                    # What was said beyond it goes on from something else. A model that leaves the
                    # drafts, as on a detour, is likely to leave the next one as well.
                    trusted = _LEAST_TRUSTED + 2 * kept
                    break
            else:
                trusted *= 4
            place = len(tokens) - 1
            room = self._max_new_tokens - len(tokens)
            drafted = self._draft(drafter, written)[: min(trusted, room)]
            said, sure = self._engine.read(
                [tokens[-1], *drafted],
                self._positions(place, 1 + len(drafted)),
                start=self._length + place,
                asked=1 + len(drafted),
            )
            passes += 1

    def _draft(self, drafter: Drafter, written: str) -> list[int]:
        """Return the tokens that probably follow what was written."""
        if not self._forced_tokens:
            return []
        # A camera sees the same scene for a while, and then the response is the same.
        repeats = len(self._last) > len(written) and self._last.startswith(written)
        text = self._last[len(written) :] if repeats else drafter.draft(written)
        words = text.replace(" ", "\n ").split("\n")
        return [token for word in words for token in self._word(word)]

    def _piece(self, token: int) -> str:
        """Return the text of a token, as far as it has one by itself; drafts need no more."""
        if token not in self._pieces:
            self._pieces[token] = self._tokenizer.decode([token])
        return self._pieces[token]

    def _word(self, word: str) -> list[int]:
        """Return the tokens of a drafted word and the space before it."""
        if word not in self._words:
            self._words[word] = self._encode(word)
        return self._words[word]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _positions(self, place: int, count: int) -> NDArray[np.int64]:
        """Return the positions [1, count] of a response's tokens from `place` on."""
        first = self._next_position + place
        return np.arange(first, first + count)[None]

    def _is_complete(self, tokens: list[int]) -> bool:
        return tokens[-1] in self._closing and STOP_TEXT in self._tokenizer.decode(
            tokens[-_STOP_WINDOW:]
        )

    def _read_prefix(self) -> None:
        if self._prefix[0]:
            self._engine.read(*self._prefix, start=0)


def response_to_dict(response: Response) -> dict[str, Any]:
    """Return a response as JSON values, its fields by name; `plan` as "actions"."""
    state, plan = response.state, response.plan
    verdict = asdict(response.verdict)
    path = [list(cell) for cell in verdict.pop("path")]
    return {
        "actions": None if plan is None else [action.value for action in plan],
        "path": path,
        "state": None if state is None else state_to_dict(state),
        "verdict": verdict,
        "repaired": response.repaired,
        "confidence": response.confidence,
        "text": response.text,
        "tokens": response.tokens,
        "passes": response.passes,
        "timings": response.timings,
    }


def _judge(state: State | None, plan: Plan | None, problem: str | None) -> Verdict:
    if state is None or plan is None:
        return Verdict(False, False, problem, ())
    outcome = simulate(state, plan)
    failure = None if outcome.failure is None else outcome.failure.value
    legal = outcome.failure in (None, Failure.INCOMPLETE)
    return Verdict(legal, outcome.success, failure, outcome.path)


def _repaired(response: Response) -> Response:
    """Return the response with a shortest plan in its state, where its own does not succeed."""
    state = response.state
    if state is None or response.verdict.success or (plan := solve(state)) is None:
        return response
    return replace(response, plan=plan, verdict=_judge(state, plan, None), repaired=True)


def _up_to_stop(text: str) -> str:
    return text[: text.index(STOP_TEXT) + len(STOP_TEXT)] if STOP_TEXT in text else text


def _tokenizer(bundle: Bundle) -> Tokenizer:
    try:
        return Tokenizer.from_str(bytes(bundle.files[TOKENIZER]).decode())
    except Exception as error:  # `tokenizers` raises plain Exception
        raise BundleError(f"cannot load {TOKENIZER} in {bundle.path}: {error}") from None


def _check_ids(bundle: Bundle, engine: Engine, ids: list[int], max_new_tokens: int) -> None:
    tokens = bundle.manifest.tokens
    if max(*ids, tokens.end) >= engine.vocabulary:
        raise BundleError(f"token ids in {bundle.path} exceed the model's vocabulary")
    if len(ids) + max_new_tokens > bundle.manifest.cache_length:
        raise BundleError(f"prompt and response in {bundle.path} exceed its cache")
