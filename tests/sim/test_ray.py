"""`mgsd generate --ray` on real clusters of this machine, which listen on 127.0.0.1 alone."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="ray is not installed (make setup)")

from mgsd_core.cli import main

# Six files.
SMALL = ["--family", "frozenlake", "--count", "60", "--size", "32", "--styles", "overhead"]

# For Ray: no reports, no address but 127.0.0.1, no secret in the home directory.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "disabled",
}


def command(*args: str, out: Path) -> list[str]:
    return [sys.executable, "-m", "mgsd_core.cli", "generate", *args, "--out", str(out)]


def generate(*args: str, out: Path) -> dict[str, object]:
    """Run in a process of its own: one process joins one cluster in its life."""
    done = subprocess.run(
        command(*args, out=out), env=os.environ | QUIET, capture_output=True, text=True, timeout=200
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def refused(*args: str, out: Path) -> str:
    """The one line with which a run ended in status 2."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        assert main(["generate", *args, "--out", str(out)]) == 2
    (line,) = errors.getvalue().splitlines()
    return line


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process draws without Ray."""
    out = tmp_path_factory.mktemp("undisturbed")
    generate(*SMALL, out=out)
    return contents(out)


class Cluster:
    """A cluster of two CPUs, started as a user starts one."""

    def __init__(self, directory: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        start = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            *("--node-ip-address", "127.0.0.1", "--port", self.address.partition(":")[2]),
            *("--num-cpus", "2", "--object-store-memory", str(100 << 20)),
            *("--include-dashboard", "false", "--disable-usage-stats", "--temp-dir", directory),
        ]
        self.process = subprocess.Popen(
            start, env=os.environ | QUIET, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        ask = [*start[:3], "health-check", "--address", self.address]
        deadline = time.monotonic() + 60
        while subprocess.run(ask, env=os.environ | QUIET, capture_output=True).returncode:
            assert self.process.poll() is None and time.monotonic() < deadline

    def drawing(self) -> list[int]:
        """Process ids of the workers that draw at this moment."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # those that end meanwhile
                named = (entry / "cmdline").read_bytes().startswith(b"ray::_drawn")
                if named and os.getsid(int(entry.name)) == self.process.pid:
                    found.append(int(entry.name))
        return found

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Not pytest's directory: the sockets' paths must be short.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as directory:
        running = Cluster(directory)
        try:
            yield running
        finally:
            running.stop()


def test_a_cluster_gives_the_same_bytes(
    cluster: Cluster, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    assert generate(*SMALL, "--ray", cluster.address, out=tmp_path)["written"] == 360
    assert contents(tmp_path) == undisturbed
    assert generate(*SMALL, "--ray", cluster.address, out=tmp_path)["written"] == 0


def test_the_work_of_a_killed_worker_is_done_again(
    cluster: Cluster, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    process = subprocess.Popen(
        command(*SMALL, "--ray", cluster.address, out=tmp_path),
        env=os.environ | QUIET,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    killed: list[int] = []
    while process.poll() is None and len(killed) < 2:
        for pid in cluster.drawing()[:1]:
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
        time.sleep(0.05)
    output, errors = process.communicate(timeout=120)
    assert len(killed) == 2
    assert process.returncode == 0, errors
    assert json.loads(output)["written"] == 360
    assert contents(tmp_path) == undisturbed


def test_a_killed_run_goes_on(
    cluster: Cluster, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    process = subprocess.Popen(
        command(*SMALL, "--ray", cluster.address, out=tmp_path),
        env=os.environ | QUIET,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not list(tmp_path.glob("*.parquet")) and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.wait()
    there = len(list(tmp_path.glob("*.parquet")))
    assert 0 < there < 6
    summary = generate(*SMALL, "--ray", cluster.address, out=tmp_path)
    assert summary["written"] == 360 - 60 * there
    assert contents(tmp_path) == undisturbed


def test_a_cluster_of_its_own_gives_the_same_bytes(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    generate(*SMALL, "--shard", "0/2", "--workers", "2", "--ray", "local", out=tmp_path)
    generate(*SMALL, "--shard", "1/2", out=tmp_path)
    assert contents(tmp_path) == undisturbed


def test_an_address_where_nobody_answers_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    assert address in refused(*SMALL, "--ray", address, out=tmp_path / "never")
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("address", ["here", "127.0.0.1", ":6379", "127.0.0.1:port", "ray://x"])
def test_an_address_that_is_none_is_refused(tmp_path: Path, address: str) -> None:
    assert "HOST:PORT" in refused(*SMALL, "--ray", address, out=tmp_path / "never")


def test_without_ray_the_line_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    line = refused(*SMALL, "--ray", "local", out=tmp_path / "never")
    assert "pip install 'mgsd_ros[ray]'" in line
    assert not (tmp_path / "never").exists()
