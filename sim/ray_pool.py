"""Draws shards on a Ray cluster. The nodes send files back; the driver writes them.

So the nodes need no file system in common with the driver, only this package in the same version.
A task is one shard; every worker process of the cluster keeps one renderer open. The task of a
worker or node that dies is done again, with the same bytes. Ray is kept from reporting its use:
a cluster that was started before must have been started so (`RAY_USAGE_STATS_ENABLED=0`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sim.episodes import DatasetError
from sim.files import write_file
from sim.shards import FORMAT, Progress, Shard, draw_shard, kept_renderer, sha256

#: Instead of an address: a cluster of this machine alone, there while the command runs.
LOCAL = "local"

#: How often a shard is begun again when its worker or node dies.
RETRIES = 5

#: Tasks that a cluster is given at one time, by CPU: one to draw and one to follow it at once.
_TASKS_PER_CPU = 2

_CLIENT = "ray://"
_TIMEOUT = 15.0  # for a cluster to answer [s]


class RayError(OSError):
    """Ray is not installed, its cluster cannot be reached, or a task was given up."""


def check_ray(address: str) -> None:
    """Raise RayError where Ray is not installed or no cluster answers at an address."""
    if importlib.util.find_spec("ray") is None:
        raise RayError("ray is not installed: pip install 'mgsd_ros[ray]'")
    if address == LOCAL:
        return
    host, _, port = address.removeprefix(_CLIENT).rpartition(":")
    if not host or not port.isdecimal() or int(port) >= 1 << 16:
        raise RayError(
            f"a Ray address is HOST:PORT, {_CLIENT}HOST:PORT or {LOCAL}, not {address!r}"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _TIMEOUT).close()
        if not address.startswith(_CLIENT):
            # Asked in a process of its own: within this one Ray would try and complain for minutes.
            ask = [
                sys.executable,
                "-m",
                "ray.scripts.scripts",
                "health-check",
                "--address",
                address,
            ]
            subprocess.run(
                ask, env=_environment(), capture_output=True, timeout=_TIMEOUT, check=True
            )
    except (OSError, subprocess.SubprocessError) as error:
        raise RayError(f"no Ray cluster answers at {address}") from error


def _environment() -> dict[str, str]:
    """Return the variables under which Ray reports nothing, to be set before it is loaded."""
    return os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}


def draw_with_ray(
    out: Path, shards: Sequence[Shard], address: str, workers: int, progress: Progress
) -> Iterator[tuple[Shard, str]]:
    """Draw shards on a cluster and write them here; yield each with its SHA-256 once it is there.

    Args:
        out: directory of the files.
        shards: what to draw.
        address: of the cluster, HOST:PORT or ray://HOST:PORT; or `LOCAL`.
        workers: processes that draw where the cluster is `LOCAL`; others use the CPUs they have.
        progress: called with the number of a shard's episodes when it arrives.

    Raises:
        RayError: see there.
        OSError: a file cannot be written.
    """
    if not shards:
        return
    # Ray prints what happens to its workers, but stdout is for the command's result.
    with contextlib.redirect_stdout(sys.stderr), _connected(address, workers) as ray:
        task = ray.remote(num_cpus=1, max_retries=RETRIES)(_drawn)
        left = iter(shards)
        running: dict[Any, Shard] = {}
        while True:
            room = _TASKS_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
            for shard in itertools.islice(left, max(0, room - len(running))):
                running[task.remote(FORMAT, shard)] = shard
            if not running:
                return
            (ready,), _ = ray.wait(list(running), num_returns=1)
            shard = running.pop(ready)
            data = ray.get(ready)
            del ready  # lets the cluster forget the file
            write_file(out / shard.file_name, data)
            progress(shard.count)
            yield shard, sha256(memoryview(data))


@contextlib.contextmanager
def _connected(address: str, workers: int) -> Iterator[Any]:
    """Join a cluster, yield Ray, and leave again; errors of Ray's and of tasks become ours."""
    ray = _connect(address, workers)
    try:
        yield ray
    except ray.exceptions.RayTaskError as error:
        # What a task raised is an error like one of our own.
        if isinstance(error.cause, ValueError | OSError):
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        raise RayError(f"Ray gave a shard up: {str(error)[:300]}") from error
    finally:
        ray.shutdown()


def _connect(address: str, workers: int) -> Any:
    os.environ.update(_environment())
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == LOCAL:
        # Makes Ray listen on 127.0.0.1 alone, on Linux too.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    import ray

    try:
        if address == LOCAL:
            ray.init(LOCAL, num_cpus=workers, include_dashboard=False, **quiet)
        else:
            ray.init(address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise RayError(f"cannot use Ray at {address}: {str(error)[:300]}") from error
    return ray


def _drawn(form: int, shard: Shard) -> bytes:
    """Run on a node: return a shard's file."""
    if form != FORMAT:
        raise DatasetError(
            f"a node of the cluster writes format {FORMAT}, this machine {form}: "
            "install the same version of mgsd_ros on both"
        )
    drawer = kept_renderer(shard.renderer)
    return bytes(draw_shard(drawer, shard, progress=lambda episodes: None))
