"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_file(path: Path, data: bytes | memoryview | str) -> None:
    """Write a file under a temporary name beside it, then put it in place.

    Whoever reads `path` sees what was there before or all of `data` (a text as UTF-8), also after a
    crash of the machine.

    Raises:
        OSError: it cannot be written; what was there before is untouched.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
