"""What a bag's evaluation depends on, as digests: the bag's bytes and this program's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import mgsd_core
import mgsd_ros
import sim


def bag_digest(path: Path) -> str:
    """Return the SHA-256 (hex) of a bag's files, or of the one file that is given.

    It is that of a line for each file, sorted by name, as `sha256sum` writes them; the bag may lie
    anywhere.
    """
    if path.is_file():
        return _digest(path.parent, [path])
    return _digest(path, (file for file in path.iterdir() if file.is_file()))


def code_digest() -> str:
    """Return the SHA-256 (hex) of the Python files of `sim`, `mgsd_core` and `mgsd_ros`."""
    places = [Path(str(package.__file__)).parent for package in (sim, mgsd_core, mgsd_ros)]
    digests = [f"{_digest(place, place.rglob('*.py'))}  {place.name}\n" for place in places]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _digest(place: Path, files: Iterable[Path]) -> str:
    lines = []
    for name, path in sorted((file.relative_to(place).as_posix(), file) for file in files):
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()
