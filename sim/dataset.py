"""Data sets: episodes written to a directory of Parquet shards and read back.

A directory holds the shards of any number of families, levels and splits, and `dataset.json`, which
names the arguments and the SHA-256 of every finished shard. Every byte follows from the arguments,
not from the number of workers, the machines or interruptions.
"""

from __future__ import annotations

import errno
import json
import math
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sim.episodes import DatasetError, Episode, draw_episode, row_to_episode, style_seed
from sim.family import FAMILIES, NAME, check_family
from sim.files import write_file
from sim.index import INDEX_NAME, claimed, enter_shards, expected_files, known_shards
from sim.png import encode_png
from sim.renderers import Renderer, open_renderer
from sim.request import DatasetRequest, Exclusion
from sim.sampling import check_split
from sim.shards import (
    FORMAT,
    Progress,
    Shard,
    finished_digest,
    named_exclusion,
    read_rows,
    shard_size,
)

__all__ = [
    "INDEX_NAME",
    "PREVIEW_NAME",
    "DatasetError",
    "Episode",
    "expected_bytes",
    "generate_episodes",
    "iter_episodes",
    "load_episodes",
    "plan_shards",
    "style_seed",
    "write_dataset",
]

PREVIEW_NAME = "preview.png"

#: A killed run leaves at most the shards of this time [s] out of the index; the next finds them.
_ENTER_EVERY = 2.0

_NOTHING: Exclusion = {}

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def generate_episodes(
    family: str,
    level: int,
    split: str,
    seed: int,
    count: int,
    size: int = 128,
    renderer: str = "panda",
    styles: str = "varied",
    exclude: Exclusion = _NOTHING,
) -> Iterator[Episode]:
    """Yield episodes with the seeds `seed` to `seed + count - 1`, pictures of `size` × `size` px.

    No episode of the splits train and validation has a state of `exclude`.

    Raises:
        ValueError: an argument is out of range.
        sim.renderers.MissingRendererError: the renderer is not installed.
        sim.readback.ReadbackError: a renderer's world does not hold the state it was built from.
    """
    request = DatasetRequest([(family, level)], split, seed, count, size, renderer, styles, exclude)
    with open_renderer(renderer) as drawer:
        for own_seed in range(seed, seed + count):
            yield _drawn_episode(drawer, request, family, level, own_seed)


def _drawn_episode(
    drawer: Renderer, request: DatasetRequest, family: str, level: int, seed: int
) -> Episode:
    left_out = request.left_out(family, level)
    return draw_episode(
        drawer, family, level, request.split, seed, request.size, request.styles, left_out
    )


# --- Writing ---


def plan_shards(request: DatasetRequest, part: tuple[int, int] = (0, 1)) -> list[Shard]:
    """Return the shards of part (i, n) of a data set; the parts are disjoint and of like size.

    Large grids come first: they take longest, and what comes last decides how long workers wait
    for each other at the end.
    """
    full = shard_size(request.size)
    shards = [
        Shard(
            family,
            level,
            request.split,
            request.seed + start,
            min(full, request.count - start),
            i,
            request.size,
            request.renderer,
            request.styles,
            request.left_out(family, level),
        )
        for family, level in sorted(request.pairs, key=lambda pair: -pair[1])
        for i, start in enumerate(range(0, request.count, full))
    ]
    first, step = part
    return shards[first::step]


def write_dataset(
    out: Path,
    request: DatasetRequest,
    workers: int = 1,
    progress: Progress = lambda episodes: None,
    part: tuple[int, int] = (0, 1),
    ray: str = "",
    preview: int = 0,
) -> dict[str, int]:
    """Write the episodes of a request into the directory `out`.

    What is there already, from this or another family, level or split, is kept; shards that an
    interrupted run has finished are not drawn again.

    Args:
        out: the directory; made where it is not there.
        request: what to draw.
        workers: processes that draw.
        progress: called with the number of episodes whenever some are done.
        part: (i, n) to write only the i-th of n parts. Parts can be written at the same time into
            one directory; all of them make the same bytes as (0, 1) does.
        ray: address of a Ray cluster that draws, see `sim.ray_pool`; "" draws on this machine.
        preview: number of episodes to show in `PREVIEW_NAME` before the first shard is drawn.

    Returns:
        {"episodes": of this part, "written": drawn now, "shards": files of this part}.

    Raises:
        DatasetError: `workers` or `preview` is out of range, `out` was made with other arguments,
            or another program is writing to it.
        OSError: a file cannot be written, a renderer or Ray is not there, or a worker died.
    """
    shards = plan_shards(request, part)
    if workers < 1:
        raise DatasetError(f"workers must be at least 1, not {workers}")
    most = len(request.pairs) * request.count
    if not 0 <= preview <= most:
        raise DatasetError(f"preview must be 0 to {most} pictures, not {preview}")
    if ray:
        from sim.ray_pool import check_ray

        check_ray(ray)
    if out.exists() and not out.is_dir():
        raise DatasetError(f"{out} is not a directory")
    arguments = _arguments(request)
    with _saying_when_full(out):
        if not out.exists():
            _check_space(out, shards)
            out.mkdir(parents=True, exist_ok=True)
        whole = json.dumps([arguments, part[1]])
        with claimed(out, whole, part[0]) as lock:
            known = known_shards(out, arguments)
            found: dict[str, Any] = {}
            missing = []
            for shard in shards:
                entered = known.get(shard.file_name, {}).get("sha256")
                digest = finished_digest(out / shard.file_name, shard, entered)
                if digest is None:
                    missing.append(shard)
                else:
                    found[shard.file_name] = _entry(shard, digest)
                    progress(shard.count)
            _check_space(out, missing)
            # The arguments before the first shard, and what a killed run had not entered.
            enter_shards(out, lock, arguments, found)
            if preview and part[0] == 0:
                _write_preview(out, request, preview)
            done: dict[str, Any] = {}
            entered_at = time.monotonic()
            for shard, digest in _drawn(out, missing, workers, ray, progress):
                done[shard.file_name] = _entry(shard, digest)
                if time.monotonic() - entered_at > _ENTER_EVERY:
                    enter_shards(out, lock, arguments, done)
                    done, entered_at = {}, time.monotonic()
            enter_shards(out, lock, arguments, done)
    return {
        "episodes": sum(shard.count for shard in shards),
        "written": sum(shard.count for shard in missing),
        "shards": len(shards),
    }


def _arguments(request: DatasetRequest) -> dict[str, Any]:
    """Return what `dataset.json` holds of a request."""
    common = {
        "format": FORMAT,
        "renderer": request.renderer,
        "shard_size": shard_size(request.size),
        "size": request.size,
        "styles": request.styles,
    }
    own = {"count": request.count, "seed": request.seed}
    parts = {
        f"{family}-{level}-{request.split}": own | named_exclusion(request.left_out(family, level))
        for family, level in sorted(set(request.pairs))
    }
    return {"common": common, "parts": parts}


def _entry(shard: Shard, digest: str) -> dict[str, Any]:
    return {"sha256": digest, "episodes": shard.count}


def _drawn(
    out: Path, shards: Sequence[Shard], workers: int, ray: str, progress: Progress
) -> Iterator[tuple[Shard, str]]:
    """Draw and write shards; yield each with its SHA-256 as soon as it is done."""
    if not shards:
        return
    if ray:
        from sim.ray_pool import draw_with_ray

        yield from draw_with_ray(out, shards, ray, workers, progress)
        return
    from sim.workers import draw_here, draw_in_processes

    if workers == 1 or len(shards) == 1:
        yield from draw_here(out, shards, progress)
    else:
        yield from draw_in_processes(out, shards, workers, progress)


def expected_bytes(size: int) -> float:
    """Return what an episode with a picture of `size` × `size` px takes on the disk at most."""
    return 2000 + 2.5 * size**2  # measured in every family and style, a tenth added


def _check_space(out: Path, shards: Sequence[Shard]) -> None:
    """Raise an OSError where the disk of a directory, which need not exist yet, is too small."""
    needed = sum(shard.count * expected_bytes(shard.size) for shard in shards)
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        episodes = sum(shard.count for shard in shards)
        raise OSError(
            f"{episodes} episodes take up to {needed / 1e9:.3g} GB, but only {free / 1e9:.3g} GB "
            f"are free on the disk of {out}: free space, lower --count or take another --out"
        )


@contextmanager
def _saying_when_full(out: Path) -> Iterator[None]:
    """Say in an OSError that the disk of `out` is full, and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise OSError(
            f"the disk of {out} takes no more ({error.strerror}); nothing is half-written: free "
            "space and run the same command again, it goes on where it stopped"
        ) from error


def _write_preview(out: Path, request: DatasetRequest, number: int) -> None:
    """Write pictures of the first episodes of every family and level, with captions."""
    from sim.drawing import contact_sheet, draw_plan

    pictures = []
    with open_renderer(request.renderer) as drawer:
        for i in range(number):
            family, level = request.pairs[i % len(request.pairs)]
            seed = request.seed + i // len(request.pairs)
            episode = _drawn_episode(drawer, request, family, level, seed)
            plan = " ".join(action.value for action in episode.plan)
            caption = f"{family} {level}, seed {seed}: {plan}"
            pictures.append(draw_plan(episode.image, [], lambda cell: (0, 0), caption=caption))
    sheet = contact_sheet(pictures, math.ceil(math.sqrt(number)))
    write_file(out / PREVIEW_NAME, encode_png(sheet))


# --- Reading ---


def load_episodes(
    directory: str | Path,
    split: str,
    family: str | None = None,
    level: int | None = None,
    limit: int | None = None,
) -> list[Episode]:
    """Return a data set's episodes, or those of one family or level, at most `limit`.

    Order: by family (this package's before others), level and seed. See `iter_episodes` for the
    errors.
    """
    return list(iter_episodes(directory, split, family, level, limit))


def iter_episodes(
    directory: str | Path,
    split: str,
    family: str | None = None,
    level: int | None = None,
    limit: int | None = None,
) -> Iterator[Episode]:
    """Yield episodes as `load_episodes` returns them, holding one shard in memory at a time.

    Raises:
        DatasetError: the directory is missing or has no such episodes, a shard is missing or
            damaged, or a row holds no picture, state, plan or camera, or belongs in another file;
            the message names the file and row.
    """
    check_split(split)
    paths = _shard_paths(Path(directory), split, family, level)
    left = limit
    for path in paths:
        for number, row in enumerate(read_rows(path)):
            if left == 0:
                return
            where = f"{path}, row {number}"
            episode = row_to_episode(row, where)
            shown = f"{row['family']}-{row['level']}-{row['split']}"
            if not path.name.startswith(f"{shown}-"):
                raise DatasetError(f"{where}: it holds {shown}, not what its file is named after")
            yield episode
            left = None if left is None else left - 1


def _shard_paths(directory: Path, split: str, family: str | None, level: int | None) -> list[Path]:
    if not directory.is_dir():
        raise DatasetError(f"{directory}: no such directory of a data set")
    if family is not None:
        check_family(family)
    # Whatever families and levels there are: tasks cut from scans may have any level.
    one = NAME.pattern if family is None else family
    other = r"\d+" if level is None else str(level)
    part = rf"(?:{one})-(?:{other})-{split}"
    named = re.compile(rf"{part}-\d+\.parquet")
    paths = [path for path in directory.iterdir() if named.fullmatch(path.name)]
    paths.sort(key=_family_level_and_number)
    if not paths:
        what = " ".join([split, family or "", "" if level is None else f"level {level}"]).strip()
        raise DatasetError(f"{directory} holds no {what} episodes")
    _check_all_there(directory, {path.name for path in paths}, re.compile(part))
    return paths


def _check_all_there(directory: Path, names: set[str], wanted: re.Pattern[str]) -> None:
    """Raise DatasetError where the index knows of a file that is not among `names`.

    Without it a run that was stopped, or a copy that was, would be judged as if it were whole.
    """
    for part, number in expected_files(directory).items():
        there = sum(name.startswith(f"{part}-") for name in names)
        if there < number and wanted.fullmatch(part):
            first = next(n for i in range(number) if (n := f"{part}-{i:05d}.parquet") not in names)
            raise DatasetError(
                f"{directory / first} is missing, {number - there} of {number} files of {part} in "
                "all; run the command that makes them again, it draws only what is not there"
            )


def _family_level_and_number(path: Path) -> tuple[int, str, int, int]:
    """Return what sorts a shard, by level and number however many digits they have."""
    family, level, _, number = path.stem.split("-")
    place = FAMILIES.index(family) if family in FAMILIES else len(FAMILIES)
    return place, family, int(level), int(number)
