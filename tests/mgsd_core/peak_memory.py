"""Run `mgsd` and print, on the last line, the most memory that it took on top of its imports.

Memory is what the process alone holds, and what it maps of files of weights: frozen ones are used
where they lie. On a GPU it is what torch had allocated there.
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


def mapped() -> int:
    """Return the bytes that it has in memory of files of weights, unchanged."""
    total, weights = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *values = line.split()
        if "-" in name and not name.endswith(":"):
            weights = line.endswith(".safetensors")
        elif weights and name in ("Pss:", "Anonymous:"):  # a page that is mapped twice counts once
            total += int(values[0]) * 1024 * (1 if name == "Pss:" else -1)
    return total


def run(arguments: list[str]) -> tuple[int, int]:
    """Return the exit status of `mgsd` and its peak memory [bytes]."""
    torch.ones(512, 512) @ torch.ones(512, 512)  # libraries allocate for themselves, once
    baseline = peak = held()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        count = files = 0
        while not done.wait(0.002):
            if count % 250 == 0:  # it takes long, and changes only when weights are loaded
                files = mapped()
            count += 1
            peak = max(peak, held() + files)

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
