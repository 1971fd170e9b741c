"""Data sets: episodes written to Parquet shards and read back.

A directory holds one shard for every `SHARD_SIZE` episodes of a (family, level, split), and
`dataset.json`, which names the arguments and the SHA-256 of every finished shard. A shard's bytes
follow from its arguments alone, not from the number of workers or from interruptions.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from sim.actions import FAMILIES, Plan, check_family, format_plan, parse_plan
from sim.camera import Camera
from sim.files import write_file
from sim.planning import solve
from sim.readback import checked_state
from sim.sampling import LEVELS, SPLITS, check_level, check_split, sample_split
from sim.scene import build_scene
from sim.states import State, state_from_dict, state_to_dict

#: Episodes in a full shard.
SHARD_SIZE = 500

#: Changes whenever equal arguments give other bytes or columns.
FORMAT = 1

INDEX_NAME = "dataset.json"
MIN_SIZE, MAX_SIZE = 32, 2048
RENDERERS = ("panda",)

_COLUMNS = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("state", pa.string()),
        ("plan", pa.string()),
        ("camera", pa.string()),
        ("family", pa.string()),
        ("level", pa.int64()),
        ("split", pa.string()),
        ("seed", pa.int64()),
        ("style", pa.int64()),
        ("renderer", pa.string()),
    ]
)
_FEATURES = {"image": {"_type": "Image"}} | {
    field.name: {"dtype": str(field.type), "_type": "Value"} for field in list(_COLUMNS)[1:]
}


class DatasetError(ValueError):
    """A data set that cannot be read or written; the message names the file and what is wrong."""


@dataclass(frozen=True, slots=True, eq=False)
class Episode:
    """One picture with its truth.

    Attributes:
        image: uint8 [height, width, 3].
        camera: that took it.
        state: as read back from the renderer's scene graph.
        plan: the optimal plan of `state`.
        seed: from which the state was sampled.
        style: from which the scene's style was drawn.
        renderer: name of the renderer.
        family, level, split: what was asked for.
    """

    image: NDArray[np.uint8]
    camera: Camera
    state: State
    plan: Plan
    seed: int
    style: int
    renderer: str
    family: str
    level: int
    split: str


@dataclass(frozen=True, slots=True)
class Shard:
    """A file's worth of episodes: what is in it follows from these fields alone."""

    family: str
    level: int
    split: str
    seed: int
    count: int
    index: int
    size: int
    renderer: str

    @property
    def file_name(self) -> str:
        """Name of its Parquet file."""
        return f"{self.family}-{self.level}-{self.split}-{self.index:05d}.parquet"


def style_seed(family: str, level: int, split: str, seed: int) -> int:
    """Return the style of an episode, 0 to 2⁶³ - 1. No two splits share one."""
    text = f"style/{split}/{family}/{level}/{seed}"
    drawn = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    # The remainder names the split, so a style belongs to one split for certain.
    return (drawn // len(SPLITS) - 1) * len(SPLITS) + SPLITS.index(split)


def generate_episodes(
    family: str,
    level: int,
    split: str,
    seed: int,
    count: int,
    size: int = 128,
    renderer: str = "panda",
) -> Iterator[Episode]:
    """Yield episodes with the seeds `seed` to `seed + count - 1`, pictures of `size` × `size` px.

    Raises:
        ValueError: an argument is out of range.
        sim.readback.ReadbackError: a scene graph does not hold the state it was built from.
    """
    check_request(family, level, split, seed, count, size, renderer)
    # Panda3D is loaded only where something is drawn.
    from sim.panda import PandaRenderer

    with PandaRenderer() as drawer:
        for own_seed in range(seed, seed + count):
            style = style_seed(family, level, split, own_seed)
            scene = build_scene(sample_split(family, level, split, own_seed), style, size, size)
            state = checked_state(drawer.things(scene), scene.state, scene.cell_size)
            plan = solve(state)
            assert plan is not None, "sampled states have a plan"
            image = drawer.render(scene).rgb
            yield Episode(
                image, scene.camera, state, plan, own_seed, style, renderer, family, level, split
            )


def check_request(
    family: str, level: int, split: str, seed: int, count: int, size: int, renderer: str
) -> None:
    """Raise a ValueError that names the first argument that is out of range."""
    check_level(check_family(family), level)
    check_split(split)
    if count < 1:
        raise DatasetError(f"count must be at least 1, not {count}")
    if not 0 <= seed < 1 << 62:
        raise DatasetError(f"seed must be 0 to 2^62 - 1, not {seed}")
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise DatasetError(f"size must be {MIN_SIZE} to {MAX_SIZE} px, not {size}")
    if renderer not in RENDERERS:
        raise DatasetError(f"unknown renderer {renderer!r}; renderers are: {', '.join(RENDERERS)}")


def parse_families(text: str) -> tuple[str, ...]:
    """Return the families that `all` or a family's name stands for."""
    return FAMILIES if text == "all" else (check_family(text),)


def parse_levels(text: str, families: Sequence[str]) -> list[tuple[str, int]]:
    """Return the (family, level) pairs of `3`, `3-5` or `all`.

    One family must have all the levels named; of several, each takes those that it has.

    Raises:
        ValueError: the text is no level or range, or a level exists in none of `families`.
    """
    if text == "all":
        return [(family, level) for family in families for level in LEVELS[family]]
    first, dash, last = text.partition("-")
    try:
        wanted = range(int(first), int(last if dash else first) + 1)
    except ValueError:
        wanted = range(0)
    if not wanted:
        raise DatasetError(f"level must be a number, a range such as 3-5, or all, not {text!r}")
    for level in (wanted[0], wanted[-1]):
        if not any(level in LEVELS[family] for family in families):
            check_level(families[0], level)
    return [(family, level) for family in families for level in LEVELS[family] if level in wanted]


# --- Writing ---


def write_dataset(
    out: Path,
    pairs: Sequence[tuple[str, int]],
    split: str,
    seed: int,
    count: int,
    size: int = 128,
    renderer: str = "panda",
    workers: int = 1,
    progress: Callable[[int], object] = lambda episodes: None,
) -> dict[str, int]:
    """Write `count` episodes of each (family, level) into the directory `out`.

    What is there already, from this or another family, level or split, is kept; shards that an
    interrupted run has finished are not drawn again. `progress` is called with the number of
    episodes whenever some are done.

    Returns:
        {"episodes": in all, "written": drawn now, "shards": number of files}.

    Raises:
        ValueError: an argument is out of range.
        DatasetError: `out` was made with other arguments, or another program is writing to it.
        OSError: a file cannot be written, or a worker process died.
    """
    for family, level in pairs:
        check_request(family, level, split, seed, count, size, renderer)
    if workers < 1:
        raise DatasetError(f"workers must be at least 1, not {workers}")
    if out.exists() and not out.is_dir():
        raise DatasetError(f"{out} is not a directory")
    out.mkdir(parents=True, exist_ok=True)
    with _lock(out):
        index = _read_index(out)
        shards = _plan_shards(index, out, pairs, split, seed, count, size, renderer)
        _write_index(out, index)  # the arguments, before the first shard
        missing = []
        for shard in shards:
            if _is_finished(out, shard, index["shards"]):
                progress(shard.count)
            else:
                missing.append(shard)
        _write_index(out, index)  # with what a killed run had finished but not entered
        for shard, digest in _write_shards(out, missing, workers, progress):
            index["shards"][shard.file_name] = {"sha256": digest, "episodes": shard.count}
            _write_index(out, index)
    written = sum(shard.count for shard in missing)
    return {"episodes": len(pairs) * count, "written": written, "shards": len(shards)}


def _plan_shards(
    index: dict[str, Any],
    out: Path,
    pairs: Sequence[tuple[str, int]],
    split: str,
    seed: int,
    count: int,
    size: int,
    renderer: str,
) -> list[Shard]:
    """Enter the arguments into the index, or refuse where it has others; return the shards."""
    common = {"format": FORMAT, "renderer": renderer, "size": size, "shard_size": SHARD_SIZE}
    _enter(index.setdefault("common", dict(common)), common, f"{out}")
    shards = []
    for family, level in pairs:
        part = f"{family}-{level}-{split}"
        own = {"count": count, "seed": seed}
        _enter(index.setdefault("parts", {}).setdefault(part, dict(own)), own, f"{out}: {part}")
        for i, start in enumerate(range(0, count, SHARD_SIZE)):
            rows = min(SHARD_SIZE, count - start)
            shards.append(Shard(family, level, split, seed + start, rows, i, size, renderer))
    return shards


def _enter(there: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
    differing = [
        f"{name} {there.get(name)} (now {value})"
        for name, value in wanted.items()
        if there.get(name) != value
    ]
    if differing:
        raise DatasetError(
            f"{where} was made with {', '.join(differing)}; use the same arguments or another --out"
        )


def _write_shards(
    out: Path, shards: list[Shard], workers: int, progress: Callable[[int], object]
) -> Iterator[tuple[Shard, str]]:
    """Write shards; yield each with its SHA-256 as soon as it is done."""
    if workers == 1 or len(shards) < 2:
        for shard in shards:
            yield shard, _write_shard(out, shard, progress)
        return
    # Spawn: a forked child would share the renderer libraries' state with its parent.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(shards)), context, _start_worker)
    try:
        jobs = {pool.submit(_write_shard, out, shard): shard for shard in shards}
        for job in as_completed(jobs):
            digest = job.result()
            progress(jobs[job].count)
            yield jobs[job], digest
    except BrokenProcessPool as error:
        raise OSError(
            "a worker process died (out of memory?); the same command goes on where it stopped"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Let this worker process end with the one that started it, and at once on Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_shard(
    out: Path, shard: Shard, progress: Callable[[int], object] = lambda episodes: None
) -> str:
    """Draw a shard's episodes and write its file; return the file's SHA-256."""
    rows = []
    for episode in generate_episodes(
        shard.family,
        shard.level,
        shard.split,
        shard.seed,
        shard.count,
        shard.size,
        shard.renderer,
    ):
        rows.append(episode_to_row(episode))
        progress(1)
    return _write_rows(out / shard.file_name, rows, asdict(shard))


def episode_to_row(episode: Episode) -> dict[str, Any]:
    """Return an episode as a row of a shard: JSON texts and a PNG."""
    png = io.BytesIO()
    # Level 1: a data set is written once but waits for every picture.
    Image.fromarray(episode.image).save(png, "PNG", compress_level=1)
    return {
        "image": {"bytes": png.getvalue(), "path": None},
        "state": json.dumps(state_to_dict(episode.state)),
        "plan": format_plan(episode.plan),
        "camera": json.dumps(episode.camera.to_dict()),
        "family": episode.family,
        "level": episode.level,
        "split": episode.split,
        "seed": episode.seed,
        "style": episode.style,
        "renderer": episode.renderer,
    }


def _write_rows(path: Path, rows: list[dict[str, Any]], shard: dict[str, Any]) -> str:
    metadata = {
        # Where `datasets` finds that the column is an image.
        "huggingface": json.dumps({"info": {"features": _FEATURES}}),
        "mgsd": json.dumps({"format": FORMAT} | shard),
    }
    table = pa.Table.from_pylist(rows, schema=_COLUMNS.with_metadata(metadata))
    data = io.BytesIO()
    pq.write_table(table, data, compression="zstd", row_group_size=100, write_page_checksum=True)
    write_file(path, data.getbuffer())
    return hashlib.sha256(data.getbuffer()).hexdigest()


def _is_finished(out: Path, shard: Shard, known: dict[str, Any]) -> bool:
    """Return whether a shard's file is there and whole; enter it into `known` where it is not yet.

    A run can be killed between writing a shard and entering it, so a file that is not known is
    judged by the arguments inside it. A file with other bytes than its digest says is drawn again.
    """
    path = out / shard.file_name
    if not path.exists():
        return False
    digest = _sha256(path)
    if shard.file_name in known:
        return known[shard.file_name] == {"sha256": digest, "episodes": shard.count}
    try:
        meta = pq.read_metadata(path)
        arguments = json.loads((meta.metadata or {}).get(b"mgsd", b"{}"))
    except (pa.ArrowException, OSError, ValueError):
        return False
    if arguments != {"format": FORMAT} | asdict(shard) or meta.num_rows != shard.count:
        return False
    known[shard.file_name] = {"sha256": digest, "episodes": shard.count}
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _lock(out: Path) -> Iterator[None]:
    handle = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DatasetError(f"{out}: another program is writing to this directory") from None
        yield
    finally:
        os.close(handle)


def _read_index(out: Path) -> dict[str, Any]:
    path = out / INDEX_NAME
    try:
        index = json.loads(path.read_text())
    except FileNotFoundError:
        return {"parts": {}, "shards": {}}
    except (ValueError, OSError) as error:
        raise DatasetError(f"{path} is not readable as JSON: {error}") from error
    if not isinstance(index, dict) or not all(
        isinstance(index.get(key), dict) for key in ("common", "parts", "shards")
    ):
        raise DatasetError(f"{path} is no index of a data set")
    return index


def _write_index(out: Path, index: dict[str, Any]) -> None:
    write_file(out / INDEX_NAME, json.dumps(index, indent=1, sort_keys=True) + "\n")


# --- Reading ---


def load_episodes(
    directory: str | Path,
    split: str,
    family: str | None = None,
    level: int | None = None,
    limit: int | None = None,
) -> list[Episode]:
    """Return a data set's episodes, or those of one family or level, at most `limit`.

    Order: by family, level and seed. See `iter_episodes` for the errors.
    """
    return list(iter_episodes(directory, split, family, level, limit))


def iter_episodes(
    directory: str | Path,
    split: str,
    family: str | None = None,
    level: int | None = None,
    limit: int | None = None,
) -> Iterator[Episode]:
    """Yield episodes as `load_episodes` returns them, holding a hundred in memory at a time.

    Raises:
        DatasetError: the directory is missing or has no such episodes, a shard is damaged, or a row
            holds no picture, state, plan or camera; the message names the file and row.
    """
    check_split(split)
    paths = _shard_paths(Path(directory), split, family, level)
    left = limit
    for path in paths:
        for number, row in enumerate(_rows(path)):
            if left == 0:
                return
            yield row_to_episode(row, f"{path}, row {number}")
            left = None if left is None else left - 1


def _shard_paths(directory: Path, split: str, family: str | None, level: int | None) -> list[Path]:
    if not directory.is_dir():
        raise DatasetError(f"{directory}: no such directory of a data set")
    if family is not None:
        check_family(family)
    families = FAMILIES if family is None else (family,)
    paths = []
    for name in families:
        for own_level in LEVELS[name] if level is None else (level,):
            paths += sorted(directory.glob(f"{name}-{own_level}-{split}-*.parquet"))
    if not paths:
        what = " ".join([split, family or "", "" if level is None else f"level {level}"]).strip()
        raise DatasetError(f"{directory} holds no {what} episodes")
    return paths


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    # Damaged files also raise UnicodeDecodeError, a ValueError, and exceptions of Arrow's own.
    damage = (pa.ArrowException, OSError, ValueError)
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        columns = file.schema_arrow
    except damage as error:
        raise _damaged(path, error) from error
    if not columns.equals(_COLUMNS):
        raise DatasetError(f"{path} has other columns than a data set of this version")
    try:
        for batch in file.iter_batches(batch_size=100):
            yield from batch.to_pylist()
    except damage as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DatasetError:
    return DatasetError(f"{path} is damaged or no Parquet file: {str(error)[:200]}")


def row_to_episode(row: dict[str, Any], where: str) -> Episode:
    """Return the episode in a row; `where` names the row in errors (DatasetError)."""
    if None in row.values():
        raise DatasetError(f"{where}: a value is missing")
    try:
        state = state_from_dict(json.loads(row["state"]))
        camera = Camera.from_dict(json.loads(row["camera"]))
        plan = parse_plan(row["plan"], state.family)
        check_split(row["split"])
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where}: {str(error)[:200]}") from error
    if (row["family"], row["level"]) != (state.family, state.size):
        raise DatasetError(
            f"{where}: family and level are not those of its state, {state.family} {state.size}"
        )
    image = _decoded(row["image"]["bytes"], camera, where)
    rest = {name: row[name] for name in ("seed", "style", "renderer", "family", "level", "split")}
    return Episode(image, camera, state, plan, **rest)


def _decoded(png: bytes | None, camera: Camera, where: str) -> NDArray[np.uint8]:
    try:
        picture = Image.open(io.BytesIO(png or b""), formats=["PNG"])
        # Before decoding: a few bytes can claim to be a picture of any size.
        if picture.size != (camera.width, camera.height):
            raise DatasetError(
                f"{where}: the image has {picture.width} × {picture.height} px, "
                f"its camera {camera.width} × {camera.height}"
            )
        return np.array(picture.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{where}: the image cannot be decoded ({error})") from error
