"""Run `mgsd` and print, on the last line, the most memory that it took on top of its imports.

Memory is what the process alone holds: pages of a file that is being read can be dropped again. On
a GPU it is what torch had allocated there.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import torch

import mgsd_core.coldstart
import mgsd_core.commands
import mgsd_core.distill  # noqa: F401
from mgsd_core.cli import main

_PAGE = 4096


def held() -> int:
    """Return the bytes that this process alone holds."""
    resident, shared = Path("/proc/self/statm").read_text().split()[1:3]
    return (int(resident) - int(shared)) * _PAGE


def run(arguments: list[str]) -> tuple[int, int]:
    """Return the exit status of `mgsd` and its peak memory [bytes]."""
    torch.ones(512, 512) @ torch.ones(512, 512)  # libraries allocate for themselves, once
    baseline = peak = held()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, held())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        status = main(arguments)
    finally:
        done.set()
        watcher.join()
    if torch.cuda.is_available():
        return status, torch.cuda.max_memory_allocated()
    return status, peak - baseline


if __name__ == "__main__":
    status, peak = run(sys.argv[1:])
    print(peak)
    sys.exit(status)
