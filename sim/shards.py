"""Shards: the Parquet files of a data set, each drawn as one piece of work.

A shard's bytes follow from its fields alone (and from the versions of the libraries that draw and
pack), not from who draws it, where or when.
"""

from __future__ import annotations

import atexit
import gc
import hashlib
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sim.episodes import COLUMNS, DatasetError, draw_episode, episode_to_row
from sim.renderers import Renderer, open_renderer

#: Changes whenever equal arguments give other bytes or columns.
FORMAT = 2

# Where `datasets` finds that the column is an image.
_FEATURES = {"image": {"_type": "Image"}} | {
    field.name: {"dtype": str(field.type), "_type": "Value"} for field in list(COLUMNS)[1:]
}
_TEXTS = [field.name for field in COLUMNS if field.type == pa.string()]

Progress = Callable[[int], object]


def shard_size(size: int) -> int:
    """Return how many episodes with pictures of `size` × `size` px a full shard has.

    A hundred, so that workers stay busy to the end; fewer when pictures are so large that a hundred
    would fill the memory.
    """
    return max(10, min(100, 100 * 512**2 // size**2))


@dataclass(frozen=True, slots=True)
class Shard:
    """A file's worth of episodes, those with the seeds `seed` to `seed + count - 1`.

    Attributes:
        family, level, split: what they show.
        seed: of the first.
        count: of episodes.
        index: number of the file among those of its family, level and split.
        size: side of the pictures [px].
        renderer: that draws, one of `sim.renderers.RENDERERS`.
        styles: one of `sim.style.STYLES`.
        exclude: digests of states of this family and level that no episode must have.
    """

    family: str
    level: int
    split: str
    seed: int
    count: int
    index: int
    size: int
    renderer: str
    styles: str
    exclude: frozenset[str] = frozenset()

    @property
    def file_name(self) -> str:
        """Name of its Parquet file."""
        return f"{self.family}-{self.level}-{self.split}-{self.index:05d}.parquet"


def draw_shard(drawer: Renderer, shard: Shard, progress: Progress) -> memoryview:
    """Draw a shard's episodes and return its file; call `progress(1)` after each episode."""
    rows = []
    # What the libraries hold need not be looked through with every collection of garbage: that
    # takes a tenth of the time.
    gc.freeze()
    try:
        for seed in range(shard.seed, shard.seed + shard.count):
            episode = draw_episode(
                drawer,
                shard.family,
                shard.level,
                shard.split,
                seed,
                shard.size,
                shard.styles,
                shard.exclude,
            )
            rows.append(episode_to_row(episode))
            progress(1)
    finally:
        gc.unfreeze()
    return packed(rows, _arguments(shard))


def packed(rows: list[dict[str, Any]], arguments: dict[str, Any]) -> memoryview:
    """Return a Parquet file of rows (see `episode_to_row`) that knows how it was made."""
    metadata = {
        "huggingface": json.dumps({"info": {"features": _FEATURES}}),
        "mgsd": json.dumps(arguments),
    }
    table = pa.Table.from_pylist(rows, schema=COLUMNS.with_metadata(metadata))
    file = pa.BufferOutputStream()
    # PNGs shrink no further, and nobody looks for the smallest of them.
    pq.write_table(
        table,
        file,
        compression={name: "zstd" if name in _TEXTS else "none" for name in _leaves()},
        use_dictionary=_TEXTS,
        write_statistics=False,
        write_page_checksum=True,
    )
    return memoryview(file.getvalue())


def _leaves() -> list[str]:
    return ["image.bytes", "image.path", *COLUMNS.names[1:]]


def _arguments(shard: Shard) -> dict[str, Any]:
    arguments = {"format": FORMAT} | asdict(shard)
    del arguments["exclude"]
    return arguments | named_exclusion(shard.exclude)


def named_exclusion(exclude: Collection[str]) -> dict[str, str]:
    """Return what names a set of excluded states among a data set's arguments: nothing if empty."""
    if not exclude:
        return {}
    return {"exclude": hashlib.sha256(" ".join(sorted(exclude)).encode()).hexdigest()[:16]}


def sha256(data: memoryview) -> str:
    """Return the digest (hex) by which `dataset.json` knows a shard's file."""
    return hashlib.sha256(data).hexdigest()


def finished_digest(path: Path, shard: Shard, known: str | None) -> str | None:
    """Return the SHA-256 of a shard's file where it is there and whole, else None.

    `known` is the digest that it was entered with. A run can be killed between writing a shard and
    entering it, so a file that is not known is judged by the arguments inside it.
    """
    if not path.exists():
        return None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if known is not None:
        return digest if digest == known else None
    try:
        meta = pq.read_metadata(path)
        arguments = json.loads((meta.metadata or {}).get(b"mgsd", b"{}"))
    except (pa.ArrowException, OSError, ValueError):
        return None
    return digest if arguments == _arguments(shard) and meta.num_rows == shard.count else None


@cache
def kept_renderer(name: str) -> Renderer:
    """Return this process's renderer, opened by the first call and kept until the process ends."""
    drawer = open_renderer(name)
    atexit.register(drawer.close)
    return drawer


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a shard's file; raise DatasetError where it is damaged."""
    # Damaged files also raise UnicodeDecodeError, a ValueError, and exceptions of Arrow's own.
    damage = (pa.ArrowException, OSError, ValueError)
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        columns = file.schema_arrow
    except damage as error:
        raise _damaged(path, error) from error
    if not columns.equals(COLUMNS):
        raise DatasetError(f"{path} has other columns than a data set of this version")
    found = 0
    try:
        for batch in file.iter_batches(batch_size=100):
            found += batch.num_rows
            yield from batch.to_pylist()
    except damage as error:
        raise _damaged(path, error) from error
    # A page whose head is damaged can read as one without rows.
    if found != file.metadata.num_rows:
        raise DatasetError(f"{path} is damaged: {found} rows of {file.metadata.num_rows} are left")


def _damaged(path: Path, error: Exception) -> DatasetError:
    return DatasetError(f"{path} is damaged or no Parquet file: {str(error)[:200]}")
