"""The node's one slot by the times of a bag."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mgsd_ros.answers import FrameHeader
from mgsd_ros.bag_schedule import take_every, take_newest
from mgsd_ros.bags import BagFrame


def frames_at(times: list[int]) -> list[BagFrame]:
    return [BagFrame(FrameHeader(0, 0, "camera"), None, None, time, b"") for time in times]


def taken(times: list[int], busy: list[int], period: int = 0) -> tuple[list[tuple[int, int]], list]:
    """Return (frame, beginning) of those that were taken, and those that gave way."""
    turns: list[tuple[int, int]] = []

    def work(index: int, frame: BagFrame, began: int) -> int:
        assert frame.received == times[index]
        turns.append((index, began))
        return busy[index]

    return turns, take_newest(frames_at(times), work, period)


def as_told(times: list[int], busy: list[int], period: int) -> list[tuple[int, int]]:
    """Say which frames are taken from the definition: the newest that came before one is free."""
    turns, last, free = [], -1, 0
    while last + 1 < len(times):
        came = [i for i in range(last + 1, len(times)) if times[i] < free]
        last = came[-1] if came else last + 1
        turns.append((last, max(times[last], free)))
        free = turns[-1][1] + max(busy[last], period)
    return turns


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 50)), max_size=30), st.integers(0, 40))
def test_the_newest_frame_is_taken_when_the_planner_is_free(
    frames: list[tuple[int, int]], period: int
) -> None:
    times = [sum(step for step, _ in frames[: i + 1]) for i in range(len(frames))]
    busy = [seconds for _, seconds in frames]
    turns, replaced = taken(times, busy, period)
    assert turns == as_told(times, busy, period)
    assert sorted([*replaced, *(index for index, _ in turns)]) == list(range(len(frames)))


def test_frames_wait_replace_each_other_and_find_the_planner_idle() -> None:
    assert taken([0, 10, 20, 30, 100], [25] * 5) == ([(0, 0), (2, 25), (3, 50), (4, 100)], [1])
    # One that comes when the planner is just free does not take the place of one that waits.
    assert taken([0, 10, 20, 30], [20] * 4) == ([(0, 0), (1, 20), (3, 40)], [2])
    assert taken([], []) == ([], [])


def test_a_clock_that_goes_back_takes_no_time_back() -> None:
    turns, replaced = taken([100, 50, 60, 200], [10] * 4)
    assert [index for index, _ in turns] == [0, 2, 3]
    assert turns[1][1] == 110 and replaced == [1]


def test_every_frame_is_taken_when_it_comes() -> None:
    turns: list[tuple[int, int]] = []

    def work(index: int, _: BagFrame, began: int) -> int:
        turns.append((index, began))
        return 1000

    assert take_every(frames_at([5, 6, 6]), work) == []
    assert turns == [(0, 5), (1, 6), (2, 6)]
