"""One slot and one thread: work is always done on the newest frame, never on a queue of old ones.

Knows nothing of ROS or images.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Frame = TypeVar("Frame")


class FrameWorker(Generic[Frame]):
    """Calls `work(frame)` on a thread of its own, for the newest frame that `put` left in the slot.

    `work` must not raise: what it should say about a frame that cannot be used is its own business.

    Args:
        work: what is done with a frame.
        period: returns the least time from one beginning of work to the next [s]; asked every time.
    """

    def __init__(
        self,
        work: Callable[[Frame], None],
        period: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._work, self._period = work, period
        self._slot: Frame | None = None
        self._stopping = False
        self._replaced = 0
        self._changed = threading.Condition()
        # A daemon, so that a plan that never ends cannot keep a dying process alive.
        self._thread = threading.Thread(target=self._run, name="frame_worker", daemon=True)
        self._thread.start()

    @property
    def replaced(self) -> int:
        """Frames that a newer one pushed out of the slot before anyone looked at them."""
        return self._replaced

    def put(self, frame: Frame) -> None:
        """Leave a frame in the slot, in place of one that still waits there. Never blocks."""
        with self._changed:
            if self._stopping:
                return
            if self._slot is not None:
                self._replaced += 1
            self._slot = frame
            self._changed.notify()

    def stop(self, timeout: float) -> bool:
        """Take no more frames and wait up to `timeout` seconds for the one at work.

        Returns:
            Whether the thread has ended.
        """
        with self._changed:
            self._stopping = True
            self._slot = None
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        began = -math.inf
        while True:
            with self._changed:
                # While it is not yet time, a newer frame may take the place of the one that waits.
                while not self._stopping:
                    early = began + self._period() - time.monotonic()
                    if self._slot is not None and early <= 0:
                        break
                    self._changed.wait(None if self._slot is None else early)
                frame, self._slot = self._slot, None
            if frame is None:
                return
            began = time.monotonic()
            self._work(frame)
