from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sim.files import write_file


@pytest.mark.parametrize("data", [b"bytes", memoryview(b"bytes"), "Täxt\n"])
def test_what_is_written_is_there_and_nothing_else(tmp_path: Path, data) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    write_file(path, data)
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else bytes(data))
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_file(path, b"new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_file(tmp_path / "none" / "file", "text")
