"""Evaluates a model behind an endpoint: many requests at once, every answer kept as it comes.

An answer costs money and time, so none is asked for twice: `answers.jsonl` holds them by the digest
of the request, and a run that was interrupted goes on where it was.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import IO, Any

from mgsd_core import prompts
from mgsd_core.evaluation.endpoint import (
    Answer,
    Client,
    Endpoint,
    EndpointError,
    NoAnswerError,
    Question,
    request_digest,
)
from mgsd_core.evaluation.score import NO_ANSWER, Record, score
from mgsd_core.evaluation.untaught import prompt_of, response_limit
from mgsd_core.prompts import ParsedResponse
from mgsd_core.scenes import Scenes

#: The file of answers in the directory of the results.
ANSWERS = "answers.jsonl"

# So many failures in a row are no accident: the run ends instead of trying all other scenes.
_IN_A_ROW = 8
_TYPES: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "prompt_tokens": (int, type(None)),
    "completion_tokens": (int, type(None)),
    "cut": (bool,),
    "seconds": (int, float),
    "attempts": (int,),
}


class AnswersError(ValueError):
    """A file of answers that cannot be gone on with; the message names the line."""


class EndpointRun:
    """Asks an endpoint about scenes, and counts what that took.

    Args:
        endpoint: the model.
        directory: of the file of answers.
        concurrency: requests at a time.
        max_tokens: longest answer [tokens]; None leaves room for twice the longest right one.

    Attributes:
        endpoint: the model.
        failed: (scenes, reason) of the requests that have no answer, by their digests.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        directory: Path,
        concurrency: int = 8,
        max_tokens: int | None = None,
    ) -> None:
        if concurrency < 1:
            raise EndpointError("the concurrency must be at least 1")
        self.endpoint = endpoint
        self.failed: dict[str, tuple[list[str], str]] = {}
        self._path = directory / ANSWERS
        self._concurrency = concurrency
        self._max_tokens = max_tokens
        self._answers: dict[str, Answer] = {}  # by the digests of this run's requests
        self._kept = 0
        self._lost: list[int] = []  # attempts of what came to nothing
        self._in_a_row = 0
        self._wall = 0.0

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of URL, model and options; what the weights are, only the server knows."""
        told: list[Any] = [self.endpoint.url, self.endpoint.model, dict(self.endpoint.extra)]
        told += [self._max_tokens] if self._max_tokens else []
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def answer(
        self, scenes: Scenes, source: str, progress: Callable[[int], Any] | None = None
    ) -> list[Record]:
        """Ask about every scene that has no answer yet, and judge all answers.

        What failed earlier in this run is not asked again: the records that were returned then
        could not take the late answer back, and would count what the model never did.

        Args:
            scenes: pictures and their states.
            source: `image`, or `text` (the symbolic state: the upper bound).
            progress: called with the number of scenes done since the last call.

        Raises:
            EndpointError: the endpoint answers nothing; what it has answered is kept.
            AnswersError: the file of answers is damaged, or another run writes it.
        """
        advance = progress or (lambda _: None)
        digests = []
        asked: dict[str, list[int]] = {}
        for i in range(len(scenes.states)):
            digest = request_digest(self.endpoint, self._question(scenes, source, i))
            digests.append(digest)
            asked.setdefault(digest, []).append(i)
        begin = time.monotonic()
        with _open_answers(self._path) as (file, kept):
            for digest in asked.keys() & kept.keys():
                self._kept += digest not in self._answers
                self._answers[digest] = kept[digest]
                advance(len(asked.pop(digest)))
            for digest in asked.keys() & self.failed.keys():
                advance(len(asked.pop(digest)))
            try:
                asyncio.run(self._ask(scenes, source, asked, file, advance))
            except BaseExceptionGroup as group:
                raise group.exceptions[0] from None
        self._wall += time.monotonic() - begin
        if digests and not any(digest in self._answers for digest in digests):
            raise EndpointError(f"no request was answered: {self._last_reason()}")
        return [
            self._record(scenes, i, self._answers.get(digest)) for i, digest in enumerate(digests)
        ]

    def about(
        self, price_in: float | None = None, price_out: float | None = None
    ) -> dict[str, Any]:
        """Return what results say of the endpoint, of the tokens and the time, and of failures.

        Args:
            price_in, price_out: of a million tokens of prompts and of answers; the cost is said
                where both are given, in their unit.
        """
        answers = list(self._answers.values())
        tokens_in = sum(a.prompt_tokens or 0 for a in answers)
        tokens_out = sum(a.completion_tokens or 0 for a in answers)
        attempts = [*(a.attempts for a in answers), *self._lost]
        usage: dict[str, Any] = {
            "prompt_tokens": tokens_in,
            "completion_tokens": tokens_out,
            "answers_without_usage": sum(
                a.prompt_tokens is None or a.completion_tokens is None for a in answers
            ),
            "answers_cut_off": sum(a.cut for a in answers),
            "answers_kept": self._kept,
            "calls": sum(attempts),
            "retries": sum(attempts) - len(attempts),
            "seconds": round(sum(a.seconds for a in answers), 3),
            "seconds_of_this_run": round(self._wall, 3),
        }
        if price_in is not None and price_out is not None:
            usage["cost"] = (tokens_in * price_in + tokens_out * price_out) / 1e6
        return {
            "endpoint": {
                "url": self.endpoint.url,
                "options": dict(self.endpoint.extra),
            },
            "usage": usage,
            "failed": [
                {"scene": scene, "reason": why}
                for names, why in self.failed.values()
                for scene in names
            ],
        }

    async def _ask(
        self,
        scenes: Scenes,
        source: str,
        asked: dict[str, list[int]],
        file: IO[bytes],
        advance: Callable[[int], Any],
    ) -> None:
        todo = iter(asked.items())

        async def work(client: Client) -> None:
            for digest, indices in todo:  # one iterator for all workers
                names = [scenes.names[i] for i in indices]
                try:
                    answer = await client.ask(self._question(scenes, source, indices[0]))
                except NoAnswerError as error:
                    self._fail(digest, names, error)
                else:
                    _append(file, {"scene": names[0], "request": digest, **asdict(answer)})
                    self._answers[digest] = answer
                    self._in_a_row = 0
                advance(len(indices))

        async with Client(self.endpoint, self._concurrency) as client, asyncio.TaskGroup() as group:
            for _ in range(min(self._concurrency, len(asked))):
                group.create_task(work(client))

    def _fail(self, digest: str, names: list[str], error: NoAnswerError) -> None:
        self.failed[digest] = (names, error.reason)
        self._lost.append(error.attempts)
        self._in_a_row += 1
        if self._in_a_row >= max(_IN_A_ROW, self._concurrency + 1):
            raise EndpointError(
                f"{self._in_a_row} requests in a row had no answer, the last: {error.reason}; what "
                f"was answered is kept in {self._path}, the same command goes on"
            )

    def _question(self, scenes: Scenes, source: str, i: int) -> Question:
        state = scenes.states[i]
        picture = scenes.images[i] if source == "image" else None
        limit = self._max_tokens or response_limit(state.family)
        return Question(prompt_of(state, source), picture, limit)

    def _last_reason(self) -> str:
        return list(self.failed.values())[-1][1]

    def _record(self, scenes: Scenes, i: int, answer: Answer | None) -> Record:
        name, state, plan = scenes.names[i], scenes.states[i], scenes.plans[i]
        if answer is None:
            nothing = ParsedResponse(None, None, NO_ANSWER)
            return score(name, state, plan, nothing, "", failed=NO_ANSWER)
        parsed = prompts.parse_response(answer.text, state.family)
        return score(name, state, plan, parsed, answer.text)


# --- the file of answers ------------------------------------------------------------------------


@contextmanager
def _open_answers(path: Path) -> Iterator[tuple[IO[bytes], dict[str, Answer]]]:
    """Open the file to append to, and what stands in it; nobody else may meanwhile.

    Raises:
        AnswersError: a line is no answer, or another run has it open.
    """
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AnswersError(
                f"another run writes {path}; wait for it or name another --out"
            ) from None
        file.seek(0)
        kept: dict[str, Answer] = {}
        whole = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):  # the run was killed while it wrote
                break
            digest, answer = _read_line(line, f"{path}, line {number}")
            kept[digest] = answer
            whole += len(line)
        file.truncate(whole)
        yield file, kept


def _append(file: IO[bytes], line: dict[str, Any]) -> None:
    file.write(json.dumps(line).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())


def _read_line(line: bytes, where: str) -> tuple[str, Answer]:
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict) or not isinstance(told.get("request"), str):
        raise AnswersError(f"{where}: no answer of an endpoint; move the file away to ask again")
    for name, types in _TYPES.items():
        # bool is an int to Python
        if type(told.get(name, told)) not in types:
            raise AnswersError(f"{where}: {name!r} is missing or of the wrong type")
    answer = Answer(**{f.name: told[f.name] for f in fields(Answer)})
    # Half a character, as answers of earlier versions may hold.
    return told["request"], replace(answer, text=answer.text.encode("utf-8", "replace").decode())
