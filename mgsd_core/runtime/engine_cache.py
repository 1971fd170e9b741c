"""Engines on disk, each in a directory named by what it was built from, with and for.

Loading an engine runs native code that stands in it, so an engine is never taken from anybody else:
the cache belongs to one user, nobody else may write there, and every byte's digest is checked
before it is used. `engine.json` has one spelling, as a bundle's manifest has.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mgsd_core.runtime.bundle import (
    DATA_SUFFIX,
    DECODER,
    VISION,
    BundleError,
    Content,
    FileEntry,
    Manifest,
    file_entry,
    map_plain,
    read_plain,
    spell,
)
from mgsd_core.runtime.tensorrt_library import LIBRARIES, EngineError
from sim.files import write_file

SCHEMA_VERSION = 1

ENTRY = "engine.json"
#: Engines by the graph that they were built from.
ENGINES = {VISION: "vision.engine", DECODER: "decoder.engine"}

#: In which precision attention is computed: that of the graphs, or fp32 where that was too coarse.
ATTENTION = ("graph", "fp32")

#: For engines that run on every GPU of a compute capability and up.
ANY_GPU = "any"

_MAX_ENTRY_BYTES = 1 << 16
_MAX_ENGINE_BYTES = 256 << 30
_MAX_BLOB_BYTES = 1 << 30
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BUILDING = ".building-"


@dataclass(frozen=True, slots=True)
class Lengths:
    """How much the decoder reads at once.

    Attributes:
        most: tokens in a pass at most, a whole prompt and response [count].
        usual: tokens of a prompt; engines are tuned for that many [count].
        asked: most tokens of a pass whose successors are wanted [count].
    """

    most: int
    usual: int
    asked: int


@dataclass(frozen=True, slots=True)
class Key:
    """What an engine is built from, with and for. Of a key, a cache holds one engine.

    Attributes:
        graphs: SHA-256 of the graphs and of their weights, by file.
        library: one of `LIBRARIES`.
        version: of the library.
        gpu: name of the GPU, or `ANY_GPU`.
        capability: its compute capability, or the least.
        lengths: that its decoder takes.
    """

    graphs: Mapping[str, str]
    library: str
    version: str
    gpu: str
    capability: str
    lengths: Lengths

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the key; names its engine's directory."""
        return hashlib.sha256(spell(asdict(self))).hexdigest()

    @property
    def built_for(self) -> str:
        """What people call it."""
        where = f"any GPU from {self.capability} on" if self.gpu == ANY_GPU else self.gpu
        return f"{self.library} {self.version} on {where}"


@dataclass(frozen=True, slots=True)
class Check:
    """That an engine answered a bundle's golden pictures well enough.

    Attributes:
        bundle: digest of the bundle.
        gpu: name of the GPU that answered.
        pictures, plans, texts: see `mgsd_core.runtime.goldens.Agreement`.
    """

    bundle: str
    gpu: str
    pictures: int
    plans: int
    texts: int


@dataclass(frozen=True, slots=True)
class Entry:
    """All that `engine.json` says.

    Attributes:
        key: what the engine is.
        attention: one of `ATTENTION`.
        vocabulary: logits of the decoder [count].
        files: digest and size of both engines, by name.
        checked: the last check; None where there was no GPU to answer.
    """

    key: Key
    attention: str
    vocabulary: int
    files: Mapping[str, FileEntry]
    checked: Check | None


# --- the directory ------------------------------------------------------------------------------


def default_cache() -> Path:
    """Return where engines are kept unless it is said otherwise."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    base = base if base.is_absolute() else Path.home() / ".cache"
    return base / "mgsd_ros" / "engines"


def open_cache(path: Path) -> Path:
    """Create a cache where there is none, and return its path.

    Raises:
        EngineError: it is no directory, belongs to somebody else, or others may write there.
        OSError: it cannot be created.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private(path)
    return path.resolve()


def check_private(path: Path) -> None:
    """Raise `EngineError` unless a directory belongs to this user, and only they may write."""
    status = path.stat()
    if status.st_uid != os.geteuid():
        raise EngineError(f"{path} belongs to another user; engines are taken from nobody else")
    if stat.S_IMODE(status.st_mode) & 0o022:
        raise EngineError(f"others may write to {path}; engines are kept where only you may write")


@contextmanager
def locked(cache: Path, wait: bool = True) -> Iterator[None]:
    """Be the only one who writes to a cache; waits for others. The lock ends with this process.

    Raises:
        BlockingIOError: somebody else is, and `wait` is false.
        OSError: the cache cannot be written.
    """
    with (cache / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
            print(f"another process works in {cache}; waiting for it", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        # Whoever left these was killed while it wrote.
        for path in cache.glob(f"{_BUILDING}*"):
            shutil.rmtree(path, ignore_errors=True)
        yield


# --- entries ------------------------------------------------------------------------------------


def graph_digests(manifest: Manifest) -> dict[str, str]:
    """Return the SHA-256 of a bundle's graphs and of the weights beside them, by file."""
    names = [name + suffix for name in ENGINES for suffix in ("", DATA_SUFFIX)]
    return {name: manifest.files[name].sha256 for name in names if name in manifest.files}


def write_entry(
    cache: Path,
    key: Key,
    engines: Mapping[str, Content],
    attention: str,
    vocabulary: int,
    checked: Check | None,
) -> Entry:
    """Write an engine whole, or leave nothing; replaces the one of this key. Call it `locked`.

    Args:
        cache: see `open_cache`.
        key: what the engine is.
        engines: both, serialised, by name of the graph.
        attention, vocabulary, checked: see `Entry`.

    Raises:
        OSError: it cannot be written.
    """
    files = {ENGINES[graph]: file_entry(content) for graph, content in engines.items()}
    entry = Entry(key, attention, vocabulary, files, checked)
    temporary = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=cache))  # 0700
    try:
        for graph, content in engines.items():
            write_file(temporary / ENGINES[graph], memoryview(content))
        write_file(temporary / ENTRY, _spelled(entry))
        path = cache / key.digest
        if path.is_dir() and not path.is_symlink():
            path.rename(Path(tempfile.mkdtemp(prefix=_BUILDING, dir=cache)) / "old")
        else:
            path.unlink(missing_ok=True)
        temporary.rename(path)
    finally:
        for left in cache.glob(f"{_BUILDING}*"):
            shutil.rmtree(left, ignore_errors=True)
    return entry


def update_check(cache: Path, entry: Entry, checked: Check) -> Entry:
    """Write down that an engine was checked."""
    entry = replace(entry, checked=checked)
    write_file(cache / entry.key.digest / ENTRY, _spelled(entry))
    return entry


def read_entry(cache: Path, digest: str) -> Entry:
    """Return what a cache says of the engine of a key.

    Raises:
        BundleError: there is none, it is damaged (the file is named) or of another schema version.
    """
    path = cache / digest
    if path.is_symlink():
        raise EngineError(f"{path} is a symbolic link; there must be none")
    if not path.is_dir():
        raise EngineError(f"there is no engine at {path}")
    check_private(path)
    data = read_plain(path, ENTRY, _MAX_ENTRY_BYTES)
    try:
        content = json.loads(data.decode())
        version = content["schema_version"]
    except (ValueError, RecursionError, TypeError, KeyError):
        raise EngineError(f"{ENTRY} in {path} is damaged: it is no such JSON object") from None
    if version != SCHEMA_VERSION or type(version) is not int:
        raise EngineError(
            f"{ENTRY} in {path} has schema version {str(version)[:20]}; this program reads version "
            f"{SCHEMA_VERSION}"
        )
    try:
        entry = _parsed(content)
        intact = _spelled(entry) == data and entry.key.digest == digest
    except (ValueError, TypeError, KeyError, AttributeError):
        intact = False
    if not intact:
        raise EngineError(f"{ENTRY} in {path} is damaged: it is not what its own digest says")
    return entry


def read_engines(cache: Path, entry: Entry) -> dict[str, Content]:
    """Return both engines by name of the graph, mapped, every digest checked.

    Raises:
        BundleError: one is not what `engine.json` says; it is named.
    """
    path = cache / entry.key.digest
    engines: dict[str, Content] = {}
    for graph, name in ENGINES.items():
        content = map_plain(path, name, entry.files[name].bytes)
        if file_entry(content) != entry.files[name]:
            raise EngineError(f"{name} in {path} is damaged: its SHA-256 is not that of {ENTRY}")
        engines[graph] = content
    return engines


def entries_for(cache: Path, graphs: Mapping[str, str], library: str) -> list[Entry]:
    """Return the readable entries for some graphs of a library, whatever its version and GPU."""
    entries = []
    for path in sorted(cache.iterdir()):
        if _SHA256.fullmatch(path.name):
            try:
                entry = read_entry(cache, path.name)
            except BundleError:
                continue
            if (entry.key.graphs, entry.key.library) == (graphs, library):
                entries.append(entry)
    return entries


def _spelled(entry: Entry) -> bytes:
    content = {"schema_version": SCHEMA_VERSION, **asdict(entry)}
    content["digest"] = hashlib.sha256(spell(content)).hexdigest()
    return spell(content)


def _parsed(content: dict[str, Any]) -> Entry:
    """Return the entry that a JSON object spells; whatever does not fit raises."""
    key = dict(content["key"])
    key["lengths"] = Lengths(**key["lengths"])
    files = {name: FileEntry(**about) for name, about in content["files"].items()}
    checked = None if content["checked"] is None else Check(**content["checked"])
    entry = Entry(Key(**key), content["attention"], content["vocabulary"], files, checked)
    counts = [entry.vocabulary, *asdict(entry.key.lengths).values()]
    if (
        set(files) != set(ENGINES.values())
        or not all(
            type(f.bytes) is int and 0 < f.bytes <= _MAX_ENGINE_BYTES for f in files.values()
        )
        or not all(type(count) is int and count > 0 for count in counts)
        or entry.attention not in ATTENTION
        or entry.key.library not in LIBRARIES
    ):
        raise ValueError("not what an entry says")
    return entry


# --- what libraries keep for themselves ---------------------------------------------------------


def read_blob(path: Path) -> bytes:
    """Return what `write_blob` wrote; nothing where it is not there or not what was written."""
    try:
        data = read_plain(path.parent, path.name, _MAX_BLOB_BYTES)
    except BundleError:
        return b""
    size = hashlib.sha256().digest_size
    digest, content = data[:size], data[size:]
    return content if hashlib.sha256(content).digest() == digest else b""


def write_blob(path: Path, content: bytes) -> None:
    """Write bytes behind their own digest, so that native code never reads damaged ones."""
    write_file(path, hashlib.sha256(content).digest() + content)
