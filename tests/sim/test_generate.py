"""`mgsd generate` as a user runs it: same bytes, going on after a kill, clear refusals."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mgsd_core.cli import main
from sim.dataset import (
    INDEX_NAME,
    PREVIEW_NAME,
    expected_bytes,
    iter_episodes,
    load_episodes,
    write_dataset,
)
from sim.drawing import MIN_SHORT_SIDE
from sim.request import DatasetRequest
from sim.style import STYLES

pytestmark = pytest.mark.skipif(
    not importlib.metadata.entry_points(group="mgsd.commands", name="sim"),
    reason="the project is not installed (make setup), so `mgsd` has no commands",
)

SMALL = ["--family", "all", "--level", "3-5", "--count", "8", "--size", "32", "--seed", "7"]


def command(*args: str, out: Path) -> list[str]:
    return [sys.executable, "-m", "mgsd_core.cli", "generate", *args, "--out", str(out)]


def run(*args: str, out: Path) -> tuple[int, str, str]:
    """Status, output and errors of a run in this process."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        status = main(["generate", *args, "--out", str(out)])
    return status, output.getvalue(), errors.getvalue()


def generate(*args: str, out: Path) -> dict[str, object]:
    status, output, errors = run(*args, out=out)
    assert (status, errors) == (0, "")
    return json.loads(output)


def refused(*args: str, out: Path) -> str:
    """The one line with which a run ended in status 2."""
    status, output, errors = run(*args, out=out)
    assert (status, output) == (2, "")
    (line,) = errors.splitlines()
    return line


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# Six shards, each slow enough to be killed in.
LONG = ["--family", "frozenlake", "--level", "all", "--count", "100", "--size", "48"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed")
    generate(*LONG, out=out)
    return contents(out)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generated") / "data"
    summary = generate(*SMALL, out=out)
    # 3, 4, 5 of frozenlake and maze, 5 of minibehaviour.
    assert summary["episodes"] == summary["written"] == 7 * 8
    assert summary["shards"] == 7 and summary["out"] == str(out)
    return out


def test_files_say_what_they_hold(small: Path) -> None:
    names = sorted(contents(small))
    assert names[0] == INDEX_NAME and names[1] == "frozenlake-3-train-00000.parquet"
    assert len(names) == 8
    assert len(load_episodes(small, "train")) == 56
    index = json.loads((small / INDEX_NAME).read_text())
    assert set(index["shards"]) == set(names[1:])
    assert {shard["episodes"] for shard in index["shards"].values()} == {8}


def test_two_workers_give_the_same_bytes(small: Path, tmp_path: Path) -> None:
    generate(*SMALL, "--workers", "2", out=tmp_path / "two")
    assert contents(tmp_path / "two") == contents(small)


def test_several_runs_share_a_directory(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "parts"
    for family in ("minibehaviour", "maze", "frozenlake"):
        levels = "5" if family == "minibehaviour" else "3-5"
        generate(*SMALL, "--family", family, "--level", levels, out=out)
    assert contents(out) == contents(small)
    generate(*SMALL, "--family", "maze", "--level", "3", "--split", "test", out=out)
    assert len(load_episodes(out, "test")) == 8
    rest = {name: data for name, data in contents(out).items() if "-test-" not in name}
    del rest[INDEX_NAME]
    assert rest.items() <= contents(small).items()


def test_a_finished_run_draws_nothing_again(small: Path) -> None:
    before = contents(small)
    assert generate(*SMALL, out=small)["written"] == 0
    assert contents(small) == before


def test_a_damaged_or_lost_shard_is_drawn_again(small: Path) -> None:
    before = contents(small)
    (small / "maze-4-train-00000.parquet").write_bytes(b"PAR1 and no more")
    (small / "maze-5-train-00000.parquet").unlink()
    assert generate(*SMALL, out=small)["written"] == 16
    assert contents(small) == before


def test_a_shard_that_was_written_but_not_entered_is_kept(small: Path) -> None:
    before = contents(small)
    index = json.loads(before[INDEX_NAME])
    del index["shards"]["maze-3-train-00000.parquet"]
    (small / INDEX_NAME).write_text(json.dumps(index))
    assert generate(*SMALL, out=small)["written"] == 0
    assert contents(small) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("--count", "9"), "count 8 (now 9)"),
        (("--seed", "8"), "seed 7 (now 8)"),
        (("--size", "48"), "size 32 (now 48)"),
        (("--styles", "plain"), "styles varied (now plain)"),
    ],
)
def test_other_arguments_are_refused(small: Path, change: tuple[str, ...], said: str) -> None:
    before = contents(small)
    assert said in refused(*SMALL, *change, out=small)
    assert contents(small) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("--family", "chess"), "chess"),
        (("--family", "maze", "--level", "7"), "maze has levels 3 to 6"),
        (("--level", "2-9"), "level"),
        (("--level", "low"), "level"),
        (("--count", "0"), "count"),
        (("--count", "-3"), "count"),
        (("--split", "dev"), "split"),
        (("--seed", "-1"), "seed"),
        (("--size", "16"), "size"),
        (("--size", "4096"), "size"),
        (("--renderer", "crayon"), "crayon"),
        (("--styles", "gaudy"), "gaudy"),
        (("--workers", "0"), "workers"),
        (("--shard", "2/2"), "0 <= i < n"),
        (("--shard", "one"), "0 <= i < n"),
        (("--preview", "57"), "0 to 56 pictures"),
        (("--preview", "-1"), "0 to 56 pictures"),
    ],
)
def test_bad_arguments_end_in_one_line(tmp_path: Path, change: tuple[str, ...], said: str) -> None:
    assert said in refused(*SMALL, *change, out=tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "not a directory" in refused(*SMALL, out=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_an_index_that_is_none_is_named(tmp_path: Path) -> None:
    for text in ("{", "[]", "{}"):
        (tmp_path / INDEX_NAME).write_text(text)
        assert INDEX_NAME in refused(*SMALL, out=tmp_path)
        assert contents(tmp_path) == {INDEX_NAME: text.encode()}


def test_an_index_of_another_version_is_refused(small: Path, tmp_path: Path) -> None:
    index = json.loads((small / INDEX_NAME).read_text())
    index["common"]["format"] = 1
    (tmp_path / INDEX_NAME).write_text(json.dumps(index))
    assert "format 1 (now 2)" in refused(*SMALL, out=tmp_path)


# --- Previews ---


def test_a_preview_shows_as_many_pictures_as_asked_for(small: Path, tmp_path: Path) -> None:
    generate(*SMALL, "--preview", "9", out=tmp_path)
    with Image.open(tmp_path / PREVIEW_NAME) as sheet:
        picture = np.asarray(sheet)
    rest = contents(tmp_path)
    del rest[PREVIEW_NAME]
    assert rest == contents(small)
    # Three rows of three, each picture as wide as it must be for a person to read it.
    width = (picture.shape[1] - 2 * 4) // 3
    assert width == MIN_SHORT_SIDE and picture.shape[0] > 3 * width
    first = next(iter_episodes(tmp_path, "train", "frozenlake", 3)).image
    enlarged = first.repeat(width // 32, axis=0).repeat(width // 32, axis=1)
    assert np.array_equal(picture[:width, :width], enlarged)


# --- Disks that are full ---


def test_a_disk_that_is_too_small_is_said_before_anything_is_drawn(tmp_path: Path) -> None:
    large = ["--family", "maze", "--size", "2048", "--level"]
    too_much = ("4", "--count", "1000000")  # 10 TB
    line = refused(*large, *too_much, out=tmp_path / "data")
    assert re.search(r"take up to [\d.e+]+ GB, but only [\d.e+]+ GB are free", line)
    assert not (tmp_path / "data").exists()
    # Nor does a directory that is there already keep the arguments that were too much.
    generate(*large, "3", "--count", "1", out=tmp_path / "there")
    before = contents(tmp_path / "there")
    refused(*large, *too_much, out=tmp_path / "there")
    assert contents(tmp_path / "there") == before


@pytest.mark.parametrize("styles", STYLES)
def test_episodes_take_no_more_than_was_said(tmp_path: Path, styles: str) -> None:
    for size in (32, 256):
        out = tmp_path / str(size)
        generate("--count", "2", "--size", str(size), "--styles", styles, out=out)
        for path in out.glob("*.parquet"):
            table = pq.read_table(path)
            expected = 2 * expected_bytes(size)
            # 20 kB: what a file has besides its episodes.
            assert path.stat().st_size < expected + 20_000, path.name
            images = sum(len(row["bytes"]) for row in table.column("image").to_pylist())
            assert images < expected


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no `mount` here")
    if done.returncode != 0:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_disk_that_fills_up_ends_the_run_with_one_line(
    undisturbed: dict[str, bytes], small_disk: Path, workers: str
) -> None:
    out = small_disk / "data"
    process = subprocess.Popen(
        command(*LONG, "--workers", workers, out=out),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: bool(list(out.glob("*.parquet"))), process)
    # Another program takes all the room there is.
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (2, "")
    (line,) = errors.splitlines()
    assert "takes no more (No space left on device)" in line and str(out) in line
    there = contents(out)
    assert 0 < len(list(out.glob("*.parquet"))) < 6
    for name, data in there.items():
        assert name == INDEX_NAME or data == undisturbed[name]
    filler.unlink()
    generate(*LONG, "--workers", workers, out=out)
    assert contents(out) == undisturbed


def test_a_limit_on_files_leaves_nothing_half_written(tmp_path: Path) -> None:
    # Files may grow to 3 kB only, less than one shard.
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    out = tmp_path / "full"
    done = subprocess.run(
        command(*SMALL, out=out), capture_output=True, text=True, preexec_fn=limit, timeout=120
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "takes no more" in done.stderr
    assert list(contents(out)) == [INDEX_NAME]
    assert generate(*SMALL, out=out)["written"] == 56


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < deadline, "nothing happens"
        time.sleep(0.005)


# --- Interruptions ---


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_killed_run_goes_on_and_gives_the_same_bytes(
    undisturbed: dict[str, bytes], tmp_path: Path, workers: str
) -> None:
    args = [*LONG, "--workers", workers]
    finished = []
    for shards in (0, 1, 3):
        process = subprocess.Popen(
            command(*args, out=tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("*.parquet"))) < shards and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.15)  # into the middle of the next one
        process.kill()
        process.wait()
        _wait_for_workers(process.pid)
        finished.append(len(list(tmp_path.glob("*.parquet"))))
        for path in tmp_path.glob("*.parquet"):
            assert path.read_bytes() == undisturbed[path.name]
    assert 1 <= finished[-1] < 6  # the last kill came in the middle
    written = generate(*args, out=tmp_path)["written"]
    assert written == 600 - 100 * finished[-1]
    assert contents(tmp_path) == undisturbed


def _wait_for_workers(group: int) -> None:
    """Wait until every process of a killed run is gone; they must end by themselves."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    pytest.fail("workers outlived the run that started them")


def test_a_killed_worker_ends_the_run_with_one_line(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(*LONG, "--workers", "2", out=tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.01)
    for child in map(int, children.read_text().split()):
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(child, signal.SIGKILL)
            break
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "worker process died" in errors.splitlines()[-1]


def test_a_terminated_run_ends_at_once_and_its_workers_with_it(tmp_path: Path) -> None:
    with subprocess.Popen(
        command(*LONG, "--workers", "2", out=tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("*.parquet")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.terminate()
        assert process.wait(10) == 143
    _wait_for_workers(process.pid)


# --- Several programs at one time ---


def started(*args: str, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*args, out=out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_parts_written_at_one_time_make_the_whole(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "data"
    runs = [started(*LONG, "--shard", f"{i}/2", out=out) for i in range(2)]
    results = [run.communicate(timeout=120) for run in runs]
    assert [(run.returncode, errors) for run, (_, errors) in zip(runs, results, strict=True)] == [
        (0, ""),
        (0, ""),
    ]
    summaries = [json.loads(output) for output, _ in results]
    assert [summary["written"] for summary in summaries] == [300, 300]
    assert contents(out) == undisturbed
    assert generate(*LONG, out=out)["written"] == 0


def test_parts_of_which_there_are_more_than_files(small: Path, tmp_path: Path) -> None:
    written = [generate(*SMALL, "--shard", f"{i}/9", out=tmp_path)["written"] for i in range(9)]
    assert written == [8] * 7 + [0] * 2
    assert contents(tmp_path) == contents(small)


def test_parts_of_several_machines_are_put_together_by_copying(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "all"
    out.mkdir()
    for i in range(2):
        part = tmp_path / str(i)
        generate(*SMALL, "--shard", f"{i}/2", out=part)
        for path in part.glob("*.parquet"):
            shutil.copy(path, out)
    assert generate(*SMALL, out=out)["written"] == 0
    assert contents(out) == contents(small)


def test_a_killed_part_goes_on_beside_the_others(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "data"
    other = started(*LONG, "--shard", "0/2", out=out)
    killed = started(*LONG, "--shard", "1/2", out=out)
    wait_until(lambda: bool(list(out.glob(".*.partial")) or list(out.glob("*.parquet"))), killed)
    killed.kill()
    killed.communicate()
    generate(*LONG, "--shard", "1/2", out=out)
    _, errors = other.communicate(timeout=120)
    assert (other.returncode, errors) == (0, "")
    assert contents(out) == undisturbed


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (LONG, LONG),
        ([*LONG, "--shard", "0/2"], [*LONG, "--shard", "0/2"]),
        ([*LONG, "--shard", "0/2"], LONG),
        (LONG, [*LONG, "--shard", "1/2"]),
        ([*LONG, "--shard", "0/2"], [*LONG, "--shard", "1/3"]),
        ([*LONG, "--shard", "0/2"], ["--family", "maze", *LONG[2:], "--shard", "1/2"]),
    ],
    ids=["whole", "same part", "whole after part", "part after whole", "other n", "other data"],
)
def test_a_writer_that_does_not_fit_is_refused(
    tmp_path: Path, first: list[str], second: list[str]
) -> None:
    process = started(*first, out=tmp_path)
    try:
        wait_until(lambda: (tmp_path / INDEX_NAME).exists(), process)
        assert "another program" in refused(*second, out=tmp_path)
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


# --- What a person sees ---


def test_the_bar_moves_with_every_episode_of_every_worker(tmp_path: Path) -> None:
    for workers in (1, 2):
        steps: list[int] = []
        write_dataset(
            tmp_path / str(workers),
            DatasetRequest([("maze", 3)], "train", 0, 200, 48, "panda"),
            workers=workers,
            progress=steps.append,
        )
        assert sum(steps) == 200
        # Two files, but more steps; how many depends on the machine.
        assert len([step for step in steps if step]) > 2


def test_a_terminal_shows_rate_and_time_left(tmp_path: Path) -> None:
    primary, secondary = os.openpty()
    termios.tcsetwinsize(secondary, (24, 100))
    process = subprocess.Popen(
        command(*SMALL, "--workers", "2", out=tmp_path), stdout=subprocess.PIPE, stderr=secondary
    )
    os.close(secondary)
    shown = ""
    with contextlib.suppress(OSError):  # which is how a terminal ends
        while True:
            shown += os.read(primary, 1 << 16).decode()
    os.close(primary)
    process.communicate(timeout=60)
    assert "56/56" in shown and "episodes/s" in shown and re.search(r"\d\d:\d\d<\d\d:\d\d", shown)


def test_shards_are_plain_parquet(small: Path) -> None:
    table = pq.read_table(small / "maze-3-train-00000.parquet")
    assert table.num_rows == 8
    assert table.column("seed").to_pylist() == list(range(7, 15))
    assert set(table.column("renderer").to_pylist()) == {"panda"}


def test_help_gives_units_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["generate", "--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in ("[px]", "(default: 128)", "(default: train)", "(default: varied)", "--shard i/n"):
        assert words in text
