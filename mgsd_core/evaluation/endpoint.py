"""Asks an OpenAI-compatible endpoint: a prompt and a picture go there, a text comes back.

vLLM, TGI, `transformers serve` and hosted models speak this protocol (chat completions). What a
server sends is untrusted: only so much of it is read, nothing that it names is fetched, and only
fields of the right type are taken. This module knows nothing of scenes and scores.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2
import numpy as np
from numpy.typing import NDArray

from mgsd_core.prompts import Prompt
from sim.png import encode_png

#: Most bytes of a server's reply that are read.
MAX_BYTES = 1 << 20
#: Most characters of an answer that are kept; more would take seconds to read a plan from.
MAX_TEXT = 1 << 15
#: Longest wait that a server may ask for [s]; a request that has to wait longer gets no answer.
MAX_WAIT = 600.0

_LONGEST_BACKOFF = 60.0
_MOST_TOKENS = 10**9
_LAST_PORT = 65535
# A server is asked again after these, and after whatever is its own fault (500 and more).
_AGAIN = (408, 409, 429)
# What is wrong here is wrong for every request: key, model, address.
_HOPELESS = (401, 404, 405)
_SAID = 200  # characters of a server's own words that are shown


class EndpointError(ValueError):
    """No request can succeed; the message says why, with the server's own words."""


class NoAnswerError(Exception):
    """One request got no answer, after all its attempts."""

    def __init__(self, reason: str, attempts: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.attempts = attempts


class ReplyError(ValueError):
    """A reply that is no chat completion."""


class _AgainError(Exception):
    """An attempt that may be repeated, after `wait` seconds if the server said so."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class Endpoint:
    """A model behind a URL, and how it is asked.

    Attributes:
        url: up to and without `/chat/completions`, such as `http://127.0.0.1:8000/v1`.
        model: the name that the server knows it by.
        key: sent as a bearer token; None sends none. It is never shown nor written.
        timeout: longest time for one attempt, all of it [s].
        retries: attempts after the first.
        extra: further fields of every request; None takes away one that would be there.

    Raises:
        EndpointError: one of these cannot be.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    retries: int = 5
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            url = httpx2.URL(self.url)
        except (httpx2.InvalidURL, ValueError) as error:
            raise EndpointError(f"the endpoint {self.url[:100]!r} is no URL: {error}") from None
        if url.userinfo or url.query or url.fragment:
            # Not shown: what stands there may be a key.
            raise EndpointError(
                "the endpoint's URL must have no user, password, query or fragment; keys are read "
                "from an environment variable"
            )
        if url.port is not None and url.port > _LAST_PORT:
            raise EndpointError(f"the endpoint's port {url.port} is above {_LAST_PORT}")
        if url.scheme not in ("http", "https") or not url.host:
            raise EndpointError(
                f"the endpoint {self.url[:100]!r} must begin with http:// or https:// and a host"
            )
        if not self.model:
            raise EndpointError("the model at the endpoint needs a name")
        if self.key is not None and not re.fullmatch(r"[!-~]+", self.key):
            raise EndpointError("the key has characters that cannot be sent (or is empty)")
        if not 0 < self.timeout < float("inf") or self.retries < 0:
            raise EndpointError("the timeout must be above 0 s, retries at least 0")
        taken = sorted({"model", "messages", "stream", "n"} & set(self.extra))
        if taken:
            raise EndpointError(f"extra options must not name: {', '.join(taken)}")
        try:
            json.dumps(dict(self.extra), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise EndpointError(f"the extra options are not JSON: {error}") from None
        bare = self.url.rstrip("/").removesuffix("/chat/completions")
        object.__setattr__(self, "url", bare)


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        prompt: its user text stands before the picture.
        picture: uint8 [H, W, 3], or None.
        max_tokens: longest answer [tokens].
    """

    prompt: Prompt
    picture: NDArray[np.uint8] | None
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server's reply says.

    Attributes:
        text: of the answer, empty where the model said nothing.
        prompt_tokens, completion_tokens: that the server counted, or None.
        cut: it ended because it was too long.
    """

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None
    cut: bool


@dataclass(frozen=True, slots=True)
class Answer(Reply):
    """A reply, and what it took.

    Attributes:
        seconds: of the attempt that succeeded.
        attempts: requests that were sent.
    """

    seconds: float
    attempts: int


def request_body(endpoint: Endpoint, question: Question, picture_url: str | None) -> dict[str, Any]:
    """Return the body of a chat completion, with the picture named by `picture_url`."""
    content: Any = question.prompt.user
    if picture_url is not None:
        content = [
            {"type": "text", "text": question.prompt.user},
            {"type": "image_url", "image_url": {"url": picture_url}},
        ]
    body = {
        "model": endpoint.model,
        "messages": [
            {"role": "system", "content": question.prompt.system},
            {"role": "user", "content": content},
        ],
        "temperature": 0,
        "max_tokens": question.max_tokens,
        **endpoint.extra,
    }
    return {name: value for name, value in body.items() if value is not None}


def request_digest(endpoint: Endpoint, question: Question) -> str:
    """Return the SHA-256 (hex) of what an answer depends on: URL, model, words, pixels, options.

    Neither key, timeout nor retries count, nor how the picture is packed.
    """
    url = None
    if (picture := question.picture) is not None:
        pixels = hashlib.sha256(repr(picture.shape).encode() + picture.tobytes())
        url = f"sha256:{pixels.hexdigest()}"
    told = {"url": endpoint.url, "body": request_body(endpoint, question, url)}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


class Client:
    """Connections to an endpoint, for `async with`; any number of tasks may ask at once."""

    def __init__(self, endpoint: Endpoint, connections: int = 8) -> None:
        self._endpoint = endpoint
        self._not_before = 0.0  # no request is sent earlier: the server said so to one of them
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if endpoint.key is not None:
            headers["Authorization"] = f"Bearer {endpoint.key}"
        self._http = httpx2.AsyncClient(
            headers=headers,
            timeout=None,  # see `_post`
            follow_redirects=False,
            limits=httpx2.Limits(max_connections=connections),
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def ask(self, question: Question) -> Answer:
        """Return the answer to a question; what fails by chance is asked again.

        Raises:
            NoAnswerError: the server refuses this request, or no attempt had an answer.
            EndpointError: it would refuse every request.
        """
        url = None
        if question.picture is not None:
            url = f"data:image/png;base64,{base64.b64encode(encode_png(question.picture)).decode()}"
        body = json.dumps(request_body(self._endpoint, question, url)).encode()
        for attempt in range(1, self._endpoint.retries + 2):
            while (rest := self._not_before - time.monotonic()) > 0:
                await asyncio.sleep(rest + random.uniform(0, 0.2))
            begin = time.monotonic()
            try:
                reply = self._read(*await self._post(body))
            except _AgainError as error:
                reason = str(error)
                if attempt > self._endpoint.retries:
                    break
                await self._back_off(attempt, error)
            except _RefusedError as error:
                raise NoAnswerError(str(error), attempt) from None
            else:
                seconds = round(time.monotonic() - begin, 3)
                return Answer(**asdict(reply), seconds=seconds, attempts=attempt)
        raise NoAnswerError(reason, attempt)

    async def _back_off(self, attempt: int, error: _AgainError) -> None:
        wait = min(0.5 * 2 ** min(attempt - 1, 20), _LONGEST_BACKOFF) * random.uniform(0.5, 1.0)
        if error.wait is not None:
            if error.wait > MAX_WAIT:
                raise NoAnswerError(
                    f"{error}; the server asks for a wait of {error.wait:.0f} s", attempt
                ) from None
            self._not_before = max(self._not_before, time.monotonic() + error.wait)
            wait = max(wait, error.wait)
        await asyncio.sleep(wait)

    async def _post(self, body: bytes) -> tuple[httpx2.Response, bytes]:
        """Return head and body of the reply; raises `_AgainError` where there is none in time."""
        data = bytearray()
        url = f"{self._endpoint.url}/chat/completions"
        try:
            # The library's own limit begins again with every byte that trickles in.
            async with (
                asyncio.timeout(self._endpoint.timeout),
                self._http.stream("POST", url, content=body) as reply,
            ):
                # As sent: what is packed could be a thousand times as large when it is unpacked.
                async for chunk in reply.aiter_raw():
                    data += chunk
                    if len(data) > MAX_BYTES:
                        raise _AgainError(f"a reply of more than {MAX_BYTES} bytes")
        except TimeoutError:
            raise _AgainError(f"no reply within {self._endpoint.timeout:g} s") from None
        except httpx2.HTTPError as error:
            kind = type(error).__name__
            raise _AgainError(self._hide(f"{kind}: {error}")) from None
        return reply, bytes(data)

    def _read(self, head: httpx2.Response, data: bytes) -> Reply:
        status = head.status_code
        if 200 <= status < 300:
            try:
                reply = read_reply(data)
            except ReplyError as error:
                raise _AgainError(self._hide(str(error))) from None
            return replace(reply, text=self._without_key(reply.text))
        said = self._hide(f"the server says {status}: {_words(data)}")
        if 300 <= status < 400:
            raise EndpointError(f"{said} (a redirect, which is not followed: give its address)")
        if status in _HOPELESS:
            raise EndpointError(said)
        if status in _AGAIN or status >= 500:
            raise _AgainError(said, retry_after(head.headers.get("Retry-After")))
        raise _RefusedError(said)

    def _hide(self, text: str) -> str:
        """Return words from outside as one short line without the key."""
        return shown_line(self._without_key(text))

    def _without_key(self, text: str) -> str:
        """Return a text without the key, which a server may send back."""
        key = self._endpoint.key
        return text if key is None else text.replace(key, "[key]")


class _RefusedError(Exception):
    """The server refuses this request, and would again."""


def read_reply(data: bytes) -> Reply:
    """Read the body of a chat completion, which may be anything.

    Raises:
        ReplyError: it is something else; says what.
    """
    try:
        reply = json.loads(data)
    except (ValueError, RecursionError):
        raise ReplyError(f"a reply that is not JSON: {_words(data)}") from None
    if not isinstance(reply, dict):
        raise ReplyError("a reply that is no JSON object")
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise ReplyError(f"a reply without choices[0].message: {_words(data)}")
    content = message.get("content", message)  # null is an answer: nothing was said
    if isinstance(content, list):  # as some servers do
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(part for part in parts if isinstance(part, str))
    if content is not None and not isinstance(content, str):
        raise ReplyError("a reply whose choices[0].message.content is no text")
    usage = reply.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    # Half a character, which JSON can say and no file can hold.
    text = (content or "").encode("utf-8", "replace").decode()
    cut = choice.get("finish_reason") == "length" or len(text) > MAX_TEXT
    tokens_in, tokens_out = (
        _count(counts.get(f"{what}_tokens")) for what in ("prompt", "completion")
    )
    return Reply(text[:MAX_TEXT], tokens_in, tokens_out, cut)


def retry_after(value: str | None) -> float | None:
    """Return the seconds that a `Retry-After` header asks for (RFC 9110), None where it is none."""
    if value is None:
        return None
    value = value.strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value):
        return float(value)
    try:
        when = parsedate_to_datetime(value)
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
        return max(0.0, (when - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def shown_line(text: str) -> str:
    """Return a text from outside as one line that is safe to print, cut off where it is long."""
    shown = "".join(c if c.isprintable() else " " for c in text[: 8 * _SAID])
    shown = " ".join(shown.split())
    return shown if len(shown) <= _SAID else f"{shown[:_SAID]}…"


def _words(data: bytes) -> str:
    """Return what a server's reply says for people."""
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        said = None
    for name in ("error", "message", "detail"):
        if isinstance(said, dict) and name in said:
            said = said[name]
    if isinstance(said, str):
        return said
    return data.decode(errors="replace") or "nothing"


def _count(value: Any) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_TOKENS
    return value if is_count else None
