"""Writes tasks cut from a scan as a data set like any other.

The simulator runs in processes of its own: some damaged scans end the process that loads them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from sim.episodes import DatasetError, episode_to_row
from sim.files import write_file
from sim.index import claimed, enter_shards, known_shards
from sim.occupancy import ScanError, Target
from sim.renderers import check_renderer
from sim.scan_request import ScanRequest, scan_digest
from sim.shards import packed, shard_size
from sim.workers import Run, tell, worker_processes

if TYPE_CHECKING:
    from sim.scans import Scan

#: Changes whenever equal arguments give other bytes or columns.
SCAN_FORMAT = "scan-1"

# Habitat never lets go of an asset that it loaded: a process draws so many files, then another
# takes its place.
_FILES_PER_PROCESS = 20

Progress = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A shard's file and what is in it.

    Attributes:
        data: the Parquet file.
        digests: of its states, see `sim.states.state_digest`.
        categories: of its goals; those that are just cells are left out.
    """

    data: bytes
    digests: list[str]
    categories: list[str]


def write_scan(
    out: Path, request: ScanRequest, workers: int = 1, progress: Progress = lambda episodes: None
) -> dict[str, Any]:
    """Write the episodes of a request into the directory `out`.

    What is there already, from this scan or others, is kept as long as its pictures were made the
    same way; files that an interrupted run has finished are not drawn again. Each file says in its
    metadata, under `mgsd`, what was asked for and which thing of the scan is at each goal.

    Args:
        out: the directory; made where it is not there, once the scan is known to have such tasks.
        request: what to draw.
        workers: processes that draw, each with the whole scan in its memory.
        progress: called with the number of episodes whenever some are done.

    Returns:
        {"episodes", "written", "shards", "storeys" [m], "floor" [m], "cells": in the region that
        tasks are cut from, "targets": things to be sent to, and of what was drawn now "states": how
        many differ, "categories": how many goals are at things of each kind}.

    Raises:
        ScanError: the scan is damaged, or it has no such tasks.
        DatasetError: `out` was made with other arguments, or another program is writing to it.
        OSError: a file cannot be written, or habitat-sim is not installed.
    """
    check_renderer("habitat")
    arguments = _arguments(request)
    if workers < 1:
        raise DatasetError(f"workers must be at least 1, not {workers}")
    if out.exists() and not out.is_dir():
        raise DatasetError(f"{out} is not a directory")
    full = shard_size(request.size)
    parts = [
        (request.seed + start, min(full, request.count - start))
        for start in range(0, request.count, full)
    ]
    names = [
        f"{request.family}-{request.level}-{request.split}-{i:05d}.parquet"
        for i in range(len(parts))
    ]
    known_shards(out, arguments)  # other arguments are told before the scan is loaded
    with _workers(request, min(workers, len(parts)), progress) as run:
        [(_, summary)] = run(_survey, [()])
        out.mkdir(parents=True, exist_ok=True)
        with claimed(out, json.dumps(arguments), 0) as lock:
            known = known_shards(out, arguments)
            missing = []
            for i, name in enumerate(names):
                if _is_finished(out / name, known.get(name, {}).get("sha256")):
                    progress(parts[i][1])
                else:
                    missing.append(i)
            enter_shards(out, lock, arguments, {})
            digests: set[str] = set()
            categories: dict[str, int] = {}
            for j, drawn in run(_draw, [(*parts[i], arguments) for i in missing]):
                i = missing[j]
                write_file(out / names[i], drawn.data)
                digest = hashlib.sha256(drawn.data).hexdigest()
                entry = {"sha256": digest, "episodes": parts[i][1]}
                enter_shards(out, lock, arguments, {names[i]: entry})
                digests.update(drawn.digests)
                for category in drawn.categories:
                    categories[category] = categories.get(category, 0) + 1
    return {
        "episodes": request.count,
        "written": sum(parts[i][1] for i in missing),
        "shards": len(parts),
        **summary,
        "states": len(digests),
        "categories": dict(sorted(categories.items())),
    }


def read_goals(path: Path) -> list[dict[str, str] | None]:
    """Return the thing at each episode's goal in a file: {"name", "category"}, None for a cell.

    Raises:
        DatasetError: the file is damaged or was not cut from a scan.
    """
    try:
        metadata = pq.read_metadata(path).metadata or {}
        return json.loads(metadata[b"mgsd"])["goals"]
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        raise DatasetError(f"{path} is damaged or was not cut from a scan") from error


def _arguments(request: ScanRequest) -> dict[str, Any]:
    """Return what `dataset.json` holds of a request."""
    scan = asdict(request)
    own = {name: scan.pop(name) for name in ("count", "seed")}
    part = "-".join(str(scan.pop(name)) for name in ("family", "level", "split"))
    # Folders differ between machines, the scan does not; other scans may have its name.
    scan["scene"], scan["dataset"] = Path(request.scene).name, Path(request.dataset).name
    common = {"format": SCAN_FORMAT, "renderer": "habitat", "size": scan.pop("size")}
    common |= {"shard_size": shard_size(request.size), "styles": scan.pop("styles"), "scan": scan}
    common["scan_sha256"] = scan_digest(request)
    return {"common": common, "parts": {part: own}}


def _is_finished(path: Path, known: str | None) -> bool:
    return (
        known is not None
        and path.is_file()
        and hashlib.sha256(path.read_bytes()).hexdigest() == known
    )


# --- The processes that draw ---


@contextmanager
def _workers(request: ScanRequest, number: int, progress: Progress) -> Iterator[Run]:
    """Yield what calls functions in processes that draw a scan.

    Raises:
        ScanError: a process died.
    """
    try:
        start = partial(_start, request)
        with worker_processes(number, progress, start, _FILES_PER_PROCESS) as run:
            yield run
    except BrokenProcessPool as error:
        raise ScanError(
            f"Habitat-Sim died over {request.scene}: the scan is damaged, or memory ran out"
        ) from error


# In a worker: what it draws, and the scan once it is open.
_request: ScanRequest
_scan: Scan | None = None


def _start(request: ScanRequest) -> None:
    """Begin a worker. What Habitat-Sim writes to stderr is not shown: errors of use are raised."""
    global _request
    _request = request
    if os.environ.get("HABITAT_SIM_LOG", "quiet") == "quiet":
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _open_scan() -> Scan:
    """Return the worker's scan, opened once: loading may fail, which a call can say of itself."""
    global _scan
    if _scan is None:
        from sim.scans import Scan

        _scan = Scan(_request)
    return _scan


def _survey() -> dict[str, Any]:
    """Return what there is in a scan, once it is known to have tasks as requested."""
    scan = _open_scan()
    scan.task(scan.request.seed)
    return {
        "storeys": [round(height, 3) for height in scan.storeys],
        "floor": round(scan.floor, 3) + 0.0,
        "cells": int(scan.grid.region.sum()),
        "targets": len(scan.targets),
    }


def _draw(seed: int, count: int, arguments: dict[str, Any]) -> Drawn:
    from sim.states import state_digest

    scan = _open_scan()
    rows, goals, digests = [], [], []
    for own_seed in range(seed, seed + count):
        episode, target = scan.draw(own_seed)
        rows.append(episode_to_row(episode))
        goals.append(target)
        digests.append(state_digest(episode.state))
        tell(1)
    named = [None if goal is None else _named(goal) for goal in goals]
    categories = [goal.category for goal in goals if goal is not None]
    file = bytes(packed(rows, arguments | {"goals": named}))
    return Drawn(file, digests, categories)


def _named(target: Target) -> dict[str, str]:
    return {"name": target.name, "category": target.category}
