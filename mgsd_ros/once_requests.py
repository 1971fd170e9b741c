"""Requests for one plan, each on a frame that comes after it."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Any

from rclpy.task import Future


@dataclass(frozen=True)
class _Request:
    future: Future
    asked: float


class OnceRequests:
    """What waits for `~/plan_once`; times are those of `time.monotonic` [s]. Thread-safe."""

    def __init__(self) -> None:
        self._waiting: list[_Request] = []
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, future: Future, asked: float) -> None:
        """Let a request wait: `future` becomes its answer."""
        with self._lock:
            self._waiting.append(_Request(future, asked))

    def want(self, arrived: float) -> bool:
        """Return whether a frame that came at a time is one that a request waits for."""
        return any(request.asked <= arrived for request in self._waiting)

    def answer(self, answer: dict[str, Any] | None, before: float = math.inf) -> None:
        """Answer the requests that were made before a time; None where nothing was planned."""
        with self._lock:
            due = [request for request in self._waiting if request.asked <= before]
            self._waiting = [request for request in self._waiting if request.asked > before]
        for request in due:
            request.future.set_result(answer)
