from __future__ import annotations

import threading
import time

from mgsd_ros.frame_worker import FrameWorker


def test_the_newest_frame_wins_and_none_queue() -> None:
    done: list[int] = []
    busy, go_on = threading.Event(), threading.Event()

    def work(frame: int) -> None:
        done.append(frame)
        busy.set()
        assert go_on.wait(5)

    worker = FrameWorker(work)
    worker.put(1)
    assert busy.wait(5)
    for frame in range(2, 100):
        worker.put(frame)
    go_on.set()
    deadline = time.monotonic() + 5
    while len(done) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert worker.stop(5)
    assert done == [1, 99]
    assert worker.replaced == 97


def test_stop_waits_for_the_work_and_takes_no_more() -> None:
    done: list[int] = []
    started = threading.Event()

    def work(frame: int) -> None:
        started.set()
        time.sleep(0.2)
        done.append(frame)

    worker = FrameWorker(work)
    worker.put(1)
    assert started.wait(5)
    worker.put(2)
    assert worker.stop(5)
    worker.put(3)
    time.sleep(0.05)
    assert done == [1]


def test_stop_says_when_the_work_does_not_end() -> None:
    started, release = threading.Event(), threading.Event()

    def work(frame: int) -> None:
        started.set()
        release.wait(10)

    worker = FrameWorker(work)
    worker.put(1)
    assert started.wait(5)
    began = time.monotonic()
    assert not worker.stop(0.1)
    assert time.monotonic() - began < 2
    release.set()
    assert worker.stop(5)


def test_an_idle_worker_stops_at_once() -> None:
    assert FrameWorker(lambda frame: None).stop(5)
