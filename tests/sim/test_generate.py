"""`mgsd generate` as a user runs it: same bytes, going on after a kill, clear refusals."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mgsd_core.cli import main
from sim.dataset import INDEX_NAME, load_episodes

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
        (("--workers", "0"), "workers"),
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


def test_a_disk_that_takes_no_more_leaves_nothing_half_written(tmp_path: Path) -> None:
    # Files may grow to 3 kB only, less than one shard.
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    out = tmp_path / "full"
    done = subprocess.run(
        command(*SMALL, out=out), capture_output=True, text=True, preexec_fn=limit, timeout=120
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert list(contents(out)) == [INDEX_NAME]
    assert generate(*SMALL, out=out)["written"] == 56


# Six shards, each slow enough to be killed in.
LONG = ["--family", "frozenlake", "--level", "all", "--count", "100", "--size", "48"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed")
    generate(*LONG, out=out)
    return contents(out)


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


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(*LONG, out=tmp_path), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        while not (tmp_path / INDEX_NAME).exists() and process.poll() is None:
            time.sleep(0.01)
        assert "another program" in refused(*LONG, out=tmp_path)
    finally:
        process.kill()
        process.wait()


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
    for words in ("[px]", "(default: 128)", "(default: train)", "--workers"):
        assert words in text
