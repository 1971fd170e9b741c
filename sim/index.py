"""`dataset.json`: what a directory's data set was made with, and the digest of every shard.

Several programs may write to one directory at the same time as long as they draw different parts
of the same whole (`mgsd generate --shard i/n`). A lock file, there only while they run, keeps them
from each other. Its locks are of the kind that network file systems know, held by a process: two
threads of one process are not kept apart.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from sim.episodes import DatasetError
from sim.files import write_file

INDEX_NAME = "dataset.json"
LOCK_NAME = ".lock"

# What the bytes of the lock file stand for. It stays empty: locks may lie beyond its end.
_TURN = 0  # to claim, to leave and to change the index, for a moment each
_WHOLES = 1, 1 << 32  # (first, number of bytes) one for every whole; its runs share it
_PARTS = sum(_WHOLES)  # and the bytes after it: the parts of a whole


@contextmanager
def claimed(out: Path, whole: str, part: int) -> Iterator[IO[bytes]]:
    """Hold part number `part` of the work `whole` in a directory; yield its lock file.

    Raises:
        DatasetError: another program holds the same part, or a part of another whole.
        OSError: the directory cannot be written or its file system has no locks.
    """
    path = out / LOCK_NAME
    while True:
        with path.open("a+b") as file:
            with _turn(file):
                # The last one out takes the file away: it may be gone since it was opened.
                if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
                    continue
                if not _claim(file, zlib.crc32(whole.encode()), part):
                    raise DatasetError(f"{out}: another program is writing to this directory")
            try:
                yield file
            finally:
                _lock(file, fcntl.LOCK_UN, _WHOLES[0], 0)
                with _turn(file):
                    if _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, _WHOLES[0], 0):
                        path.unlink(missing_ok=True)
            return


def _claim(file: IO[bytes], whole: int, part: int) -> bool:
    first, number = _WHOLES
    own = first + whole
    for start, length in ((first, whole), (own + 1, number - whole - 1)):
        if length:  # to `lockf` a length of 0 is all the rest
            if not _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, start, length):
                return False
            _lock(file, fcntl.LOCK_UN, start, length)
    _lock(file, fcntl.LOCK_SH | fcntl.LOCK_NB, own, 1)
    return _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, _PARTS + part, 1)


@contextmanager
def _turn(file: IO[bytes]) -> Iterator[None]:
    _lock(file, fcntl.LOCK_EX, _TURN, 1)
    try:
        yield
    finally:
        _lock(file, fcntl.LOCK_UN, _TURN, 1)


def _lock(file: IO[bytes], kind: int, start: int, length: int) -> bool:
    """Take or give back a lock; return whether it was had."""
    try:
        fcntl.lockf(file, kind, length, start)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        raise OSError(f"{file.name}: the file system gives no locks ({error.strerror})") from error
    return True


def known_shards(out: Path, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the shards entered into a directory's index: {"sha256", "episodes"} by file name.

    Raises:
        DatasetError: the index is damaged or was made with other arguments.
    """
    index = _read(out)
    _check(index, arguments, out)
    return index["shards"]


def recorded_exclusions(out: Path) -> dict[str, str]:
    """Return what names the states that were left out of a directory's data set.

    By family, level and split, as `sim.shards.named_exclusion` has it; of parts that leave out
    nothing, and of a directory without an index, there is none.

    Raises:
        DatasetError: the index is damaged.
    """
    return {
        part: arguments["exclude"]
        for part, arguments in _read(out)["parts"].items()
        if "exclude" in arguments
    }


def expected_files(out: Path) -> dict[str, int]:
    """Return how many files each part of a directory's data set has when it is whole.

    A part is a family, level and split, such as `maze-3-test`; of a directory without an index
    there is none.

    Raises:
        DatasetError: the index is damaged.
    """
    index = _read(out)
    full = index["common"].get("shard_size")
    counts = {part: arguments.get("count") for part, arguments in index["parts"].items()}
    if counts and not all(type(n) is int and n > 0 for n in (full, *counts.values())):
        raise DatasetError(f"{out / INDEX_NAME} is damaged: it does not say how much there is")
    return {part: -(-count // full) for part, count in counts.items()}


def enter_shards(
    out: Path, lock: IO[bytes], arguments: Mapping[str, Any], shards: Mapping[str, Any]
) -> None:
    """Add shards, and what they were made with, to the index of a directory.

    Args:
        out: the directory.
        lock: what `claimed` yielded.
        arguments: "common" to all that is there, and of "parts", by family, level and split.
        shards: {"sha256", "episodes"} by file name.

    Raises:
        DatasetError: the index is damaged or was made with other arguments.
        OSError: it cannot be written.
    """
    with _turn(lock):
        index = _read(out)
        _check(index, arguments, out)
        old = json.dumps(index)
        index["common"] = arguments["common"]
        index["parts"] |= arguments["parts"]
        index["shards"] |= shards
        if json.dumps(index) != old:
            text = json.dumps(index, indent=1, sort_keys=True) + "\n"
            write_file(out / INDEX_NAME, text)


def _read(out: Path) -> dict[str, Any]:
    path = out / INDEX_NAME
    try:
        index = json.loads(path.read_text())
    except FileNotFoundError:
        return {"common": {}, "parts": {}, "shards": {}}
    except (ValueError, OSError, RecursionError) as error:
        raise DatasetError(f"{path} is not readable as JSON: {str(error)[:200]}") from error
    if not isinstance(index, dict) or not all(
        isinstance(index.get(key), dict) for key in ("common", "parts", "shards")
    ):
        raise DatasetError(f"{path} is no index of a data set")
    for key in ("parts", "shards"):
        for name, entry in index[key].items():
            if not isinstance(entry, dict):
                raise DatasetError(f"{path} is damaged: {key} {name} is no object")
    return index


def _check(index: Mapping[str, Any], arguments: Mapping[str, Any], out: Path) -> None:
    """Raise a DatasetError where the index has other arguments than these."""
    compared = [(str(out), index["common"], arguments["common"])]
    for part, wanted in arguments["parts"].items():
        compared.append((f"{out}: {part}", index["parts"].get(part, {}), wanted))
    for where, there, wanted in compared:
        differing = [
            f"{name} {there.get(name)} (now {wanted.get(name)})"
            for name in (there | wanted if there else {})
            if there.get(name) != wanted.get(name)
        ]
        if differing:
            raise DatasetError(
                f"{where} was made with {', '.join(differing)}; "
                "use the same arguments or another --out"
            )
