"""Draws shards in this process, or in several that each keep one renderer open."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from pathlib import Path
from typing import Any

from sim.files import write_file
from sim.renderers import Renderer, open_renderer
from sim.shards import Progress, Shard, draw_shard, kept_renderer, sha256

#: Between two looks at how far the workers have come [s].
_TICK = 0.1


def draw_here(
    out: Path, shards: Sequence[Shard], progress: Progress
) -> Iterator[tuple[Shard, str]]:
    """Draw shards of one renderer and write them; yield each with its SHA-256 once it is done."""
    if not shards:
        return
    with open_renderer(shards[0].renderer) as drawer:
        for shard in shards:
            yield shard, _write(out, shard, drawer, progress)


def draw_in_processes(
    out: Path, shards: Sequence[Shard], workers: int, progress: Progress
) -> Iterator[tuple[Shard, str]]:
    """Do what `draw_here` does in `workers` processes, in no certain order.

    Raises:
        OSError: a file cannot be written, or a worker process died.
    """
    try:
        with worker_processes(min(workers, len(shards)), progress) as run:
            for i, digest in run(_write_kept, [(out, shard) for shard in shards]):
                yield shards[i], digest
    except BrokenProcessPool as error:
        raise OSError(
            "a worker process died (out of memory?); the same command goes on where it stopped"
        ) from error


#: Calls a function with each of the arguments; yields (their place, the result) as calls end.
Run = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Iterator[tuple[int, Any]]]


@contextmanager
def worker_processes(
    number: int,
    progress: Progress,
    start: Callable[[], object] | None = None,
    calls_each: int | None = None,
) -> Iterator[Run]:
    """Yield what calls functions in so many processes. These end with this one, or on Ctrl-C.

    Args:
        number: of processes.
        progress: called with the number of episodes that the workers `tell` of.
        start: called first in each process.
        calls_each: a process makes so many calls, then another takes its place; None: no limit.

    Raises:
        BrokenProcessPool: a process died.
    """
    # Spawn: a forked child would share the renderer libraries' state with its parent.
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    os.set_blocking(reader.fileno(), False)
    pool = ProcessPoolExecutor(
        number, context, _start, (writer, start), max_tasks_per_child=calls_each
    )

    def run(
        function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]
    ) -> Iterator[tuple[int, Any]]:
        calls = {pool.submit(function, *arguments[i]): i for i in range(len(arguments))}
        waiting = set(calls)
        while waiting:
            done, waiting = wait(waiting, _TICK, FIRST_COMPLETED)
            progress(_arrived(reader))
            for call in done:
                yield calls[call], call.result()

    try:
        yield run
    finally:
        pool.shutdown(cancel_futures=True)
        reader.close()
        writer.close()


def _arrived(reader: connection.Connection) -> int:
    """Return how many episodes the workers have drawn since the last call."""
    try:
        return len(os.read(reader.fileno(), 1 << 16))
    except BlockingIOError:
        return 0


_told: connection.Connection  # in a worker: where it says that an episode is drawn


def _start(writer: connection.Connection, start: Callable[[], object] | None) -> None:
    """Let this worker process end with the one that started it, and at once on Ctrl-C."""
    global _told
    _told = writer
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    if start is not None:
        start()


def tell(episodes: int) -> None:
    """In a worker, say that so many episodes are drawn."""
    # One byte an episode: so short a message is whole or not there, whoever else writes.
    os.write(_told.fileno(), bytes(episodes))


def _write_kept(out: Path, shard: Shard) -> str:
    return _write(out, shard, kept_renderer(shard.renderer), tell)


def _write(out: Path, shard: Shard, drawer: Renderer, progress: Progress) -> str:
    data = draw_shard(drawer, shard, progress)
    write_file(out / shard.file_name, data)
    return sha256(data)
