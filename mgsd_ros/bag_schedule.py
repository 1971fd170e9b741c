"""Which frames of a bag a planner takes that is busy at times: the node's one slot.

Times are the bag's own, of receipt [ns]. No clock is read here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mgsd_ros.bags import BagFrame

#: Is given a frame's number in the bag, the frame, and the time [ns] at which the planner takes it;
#: returns how long [ns] it then is busy.
Work = Callable[[int, BagFrame, int], int]


def take_every(frames: Iterable[BagFrame], work: Work) -> list[int]:
    """Take every frame when it comes, as if planning took no time; return []: none is dropped."""
    for index, frame in enumerate(frames):
        work(index, frame, frame.received)
    return []


def take_newest(frames: Iterable[BagFrame], work: Work, period: int = 0) -> list[int]:
    """Take the newest frame whenever the planner is free, as `frame_worker.FrameWorker` does.

    Args:
        frames: in the order of their time; where one is earlier than that before, it comes at once.
        work: with a frame.
        period: least time from one beginning of work to the next [ns].

    Returns:
        Numbers of the frames that gave way to a newer one while the planner was busy.
    """
    replaced: list[int] = []
    slot: tuple[int, BagFrame] | None = None
    # When the slot was filled, and from when on the planner takes what is in it.
    filled = ready = 0
    for index, frame in enumerate(frames):
        arrives = max(frame.received, filled)
        if slot is not None and (begins := max(filled, ready)) <= arrives:
            ready = begins + max(work(*slot, begins), period)
        elif slot is not None:
            replaced.append(slot[0])
        slot, filled = (index, frame), arrives
    if slot is not None:
        work(*slot, max(filled, ready))
    return replaced
