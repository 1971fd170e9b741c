"""What became of the frames, and what that says about the node's health. Imports no ROS."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

# Latencies and ages are those of so many plans at most.
_RECENT_PLANS = 200
# Rates are taken over this time [s].
_RATE_PERIOD = 5.0
#: A trouble is reported for this long after its last frame [s].
TROUBLE_LASTS = 5.0

#: What becomes of a frame: planned on; or why not.
FATES = ("planned", "replaced", "stale", "unchanged", "disabled", "unusable", "failed")


class Level(IntEnum):
    """The levels of diagnostic_msgs/DiagnosticStatus that the node reports."""

    OK = 0
    WARN = 1
    ERROR = 2


@dataclass
class FrameStatistics:
    """Counts and times since the node became active.

    Attributes:
        clock: steady seconds.
        counts: frames "received", and by their `FATES`; "refused", plans not to be followed.
        last_error: the last trouble, in one line, or "".
    """

    clock: Callable[[], float] = time.monotonic
    counts: Counter[str] = field(default_factory=Counter)
    last_error: str = ""

    def __post_init__(self) -> None:
        self._began = self._last_frame = self.clock()
        self._arrivals: deque[float] = deque(maxlen=1000)
        self._plans: deque[tuple[float, float, float]] = deque(maxlen=_RECENT_PLANS)
        self._troubles: dict[Level, float] = {}
        self._blind_since: float | None = None

    def received(self) -> None:
        """Count a frame that arrived."""
        self.counts["received"] += 1
        self._last_frame = self.clock()
        self._arrivals.append(self._last_frame)

    def seen(self) -> None:
        """Note that a frame could be used."""
        self._blind_since = None

    def planned(self, seconds: float, age: float) -> None:
        """Count a plan.

        Args:
            seconds: that it took.
            age: of the frame when the plan was published [s].
        """
        self.counts["planned"] += 1
        self._plans.append((self.clock(), seconds, age))

    def trouble(self, fate: str, level: Level, text: str) -> None:
        """Count a frame that came to nothing, and remember why."""
        self.counts[fate] += 1
        self.last_error = text
        self._troubles[level] = self.clock()
        if self._blind_since is None:
            self._blind_since = self.clock()

    @property
    def silent(self) -> float:
        """Time without a frame [s]."""
        return self.clock() - self._last_frame

    @property
    def blind(self) -> float:
        """Time without a frame, or with such alone that could not be used [s]."""
        since = self._blind_since
        return max(self.silent, 0.0 if since is None else self.clock() - since)

    def health(self, frame_timeout: float) -> tuple[Level, str]:
        """Return how the node does, and that in words.

        Args:
            frame_timeout: longest time without a frame that is nothing to report [s].
        """
        now = self.clock()
        if self.silent > frame_timeout:
            if self.counts["received"]:
                return Level.ERROR, f"no frame for {self.silent:.1f} s"
            return Level.ERROR, f"no frame since it became active {now - self._began:.1f} s ago"
        for level in (Level.ERROR, Level.WARN):
            if now - self._troubles.get(level, -math.inf) < TROUBLE_LASTS:
                return level, self.last_error
        return Level.OK, "planning" if self._plans else "waiting for the first plan"

    def values(self) -> dict[str, str]:
        """Return everything as text, by name, in a fixed order."""
        now = self.clock()
        plans = list(self._plans)  # the worker may add one meanwhile
        found = {"frames received": str(self.counts["received"])}
        found |= {f"frames {fate}": str(self.counts[fate]) for fate in FATES}
        found["plans not to be followed"] = str(self.counts["refused"])
        found["frame rate [Hz]"] = f"{_rate(self._arrivals, now):.2f}"
        found["plan rate [Hz]"] = f"{_rate([when for when, _, _ in plans], now):.2f}"
        for name, column in (("plan latency", 1), ("frame age at publication", 2)):
            taken = [plan[column] for plan in plans]
            for percent in (50, 95, 99):
                value = f"{np.percentile(taken, percent) * 1e3:.1f}" if taken else ""
                found[f"{name} p{percent} [ms]"] = value
        found["last error"] = self.last_error
        return found


def _rate(times: deque[float] | list[float], now: float) -> float:
    return sum(when > now - _RATE_PERIOD for when in list(times)) / _RATE_PERIOD
