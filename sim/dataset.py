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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sim.episodes import DatasetError, Episode, draw_episode, row_to_episode, style_seed
from sim.family import FAMILIES, NAME, check_family, find_family
from sim.files import write_file
from sim.index import INDEX_NAME, claimed, enter_shards, expected_files, known_shards
from sim.png import encode_png
from sim.renderers import check_renderer, open_renderer
from sim.sampling import check_level, check_split
from sim.shards import (
    FORMAT,
    Progress,
    Shard,
    finished_digest,
    named_exclusion,
    read_rows,
    shard_size,
)
from sim.style import check_styles

__all__ = [
    "INDEX_NAME",
    "PREVIEW_NAME",
    "DatasetError",
    "Episode",
    "expected_bytes",
    "generate_episodes",
    "iter_episodes",
    "load_episodes",
    "parse_families",
    "parse_levels",
    "parse_part",
    "plan_shards",
    "style_seed",
    "write_dataset",
]

PREVIEW_NAME = "preview.png"
MIN_SIZE, MAX_SIZE = 32, 2048
MAX_COUNT = 10_000_000
MAX_PARTS = 100_000

#: A killed run leaves at most the shards of this time [s] out of the index; the next finds them.
_ENTER_EVERY = 2.0

#: Digests of states that are kept out of training and validation, by family and level.
Exclusion = Mapping[tuple[str, int], frozenset[str]]

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
    check_request([(family, level)], split, seed, count, size, renderer, styles)
    with open_renderer(renderer) as drawer:
        for own_seed in range(seed, seed + count):
            left_out = _left_out(exclude, family, level, split)
            yield draw_episode(drawer, family, level, split, own_seed, size, styles, left_out)


def check_request(
    pairs: Sequence[tuple[str, int]],
    split: str,
    seed: int,
    count: int,
    size: int,
    renderer: str,
    styles: str,
) -> None:
    """Raise an error that names the first argument that is out of range.

    Raises:
        ValueError: an argument is out of range.
        sim.renderers.MissingRendererError: the renderer is not installed.
    """
    for family, level in pairs:
        check_level(family, level)
        if find_family(family).build is None:
            raise DatasetError(f"{family} is not drawn by a renderer: bring pictures of your own")
        if family not in FAMILIES and renderer != "panda":
            raise DatasetError(f"only the renderer panda draws {family}; {renderer} does not")
    check_split(split)
    if not 1 <= count <= MAX_COUNT:
        raise DatasetError(f"count must be 1 to {MAX_COUNT}, not {count}")
    if not 0 <= seed < 1 << 62:
        raise DatasetError(f"seed must be 0 to 2^62 - 1, not {seed}")
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise DatasetError(f"size must be {MIN_SIZE} to {MAX_SIZE} px, not {size}")
    check_styles(styles)
    check_renderer(renderer)


def parse_families(text: str) -> tuple[str, ...]:
    """Return the families that `all` (those of this package) or a family's name stands for."""
    return FAMILIES if text == "all" else (check_family(text),)


def parse_levels(text: str, families: Sequence[str]) -> list[tuple[str, int]]:
    """Return the (family, level) pairs of `3`, `3-5` or `all`.

    One family must have all the levels named; of several, each takes those that it has.

    Raises:
        ValueError: the text is no level or range, or a level exists in none of `families`.
    """
    if text == "all":
        return [(family, level) for family in families for level in find_family(family).levels]
    first, dash, last = text.partition("-")
    try:
        wanted = range(int(first), int(last if dash else first) + 1)
    except ValueError:
        wanted = range(0)
    if not wanted:
        raise DatasetError(f"level must be a number, a range such as 3-5, or all, not {text!r}")
    levels = {family: find_family(family).levels for family in families}
    for level in (wanted[0], wanted[-1]):
        if not any(level in own for own in levels.values()):
            check_level(families[0], level)
    return [(family, level) for family in families for level in levels[family] if level in wanted]


def parse_part(text: str) -> tuple[int, int]:
    """Return (i, n) of `i/n`: the i-th of n parts, 0 <= i < n.

    Raises:
        DatasetError: the text is something else.
    """
    first, _, last = text.partition("/")
    if first.isdecimal() and last.isdecimal() and len(text) < 20:
        part, parts = int(first), int(last)
        if part < parts <= MAX_PARTS:
            return part, parts
    raise DatasetError(
        f"shard must be i/n with 0 <= i < n <= {MAX_PARTS}, such as 0/4, not {text!r}"
    )


# --- Writing ---


def plan_shards(
    pairs: Sequence[tuple[str, int]],
    split: str,
    seed: int,
    count: int,
    size: int = 128,
    renderer: str = "panda",
    styles: str = "varied",
    part: tuple[int, int] = (0, 1),
    exclude: Exclusion = _NOTHING,
) -> list[Shard]:
    """Return the shards of part (i, n) of a data set; the parts are disjoint and of like size.

    Large grids come first: they take longest, and what comes last decides how long workers wait
    for each other at the end.

    Raises:
        ValueError: an argument is out of range.
        sim.renderers.MissingRendererError: the renderer is not installed.
    """
    check_request(pairs, split, seed, count, size, renderer, styles)
    full = shard_size(size)
    shards = []
    for family, level in sorted(pairs, key=lambda pair: -pair[1]):
        for i, start in enumerate(range(0, count, full)):
            rows = min(full, count - start)
            shards.append(
                Shard(
                    family,
                    level,
                    split,
                    seed + start,
                    rows,
                    i,
                    size,
                    renderer,
                    styles,
                    _left_out(exclude, family, level, split),
                )
            )
    first, step = part
    return shards[first::step]


def write_dataset(
    out: Path,
    pairs: Sequence[tuple[str, int]],
    split: str,
    seed: int,
    count: int,
    size: int = 128,
    renderer: str = "panda",
    workers: int = 1,
    progress: Progress = lambda episodes: None,
    styles: str = "varied",
    part: tuple[int, int] = (0, 1),
    ray: str = "",
    preview: int = 0,
    exclude: Exclusion = _NOTHING,
) -> dict[str, int]:
    """Write `count` episodes of each (family, level) into the directory `out`.

    What is there already, from this or another family, level or split, is kept; shards that an
    interrupted run has finished are not drawn again.

    Args:
        out: the directory; made where it is not there.
        pairs: the families and levels.
        split: train, validation or test.
        seed: of the first episode of each pair; the others' follow.
        count: of episodes of each pair.
        size: side of the square pictures [px].
        renderer: one of `sim.renderers.RENDERERS`.
        workers: processes that draw.
        progress: called with the number of episodes whenever some are done.
        styles: one of `sim.style.STYLES`.
        part: (i, n) to write only the i-th of n parts. Parts can be written at the same time into
            one directory; all of them make the same bytes as (0, 1) does.
        ray: address of a Ray cluster that draws, see `sim.ray_pool`; "" draws on this machine.
        preview: number of episodes to show in `PREVIEW_NAME` before the first shard is drawn.
        exclude: states that no episode of the splits train and validation has; in their place the
            next states that the seeds give are taken.

    Returns:
        {"episodes": of this part, "written": drawn now, "shards": files of this part}.

    Raises:
        ValueError: an argument is out of range.
        DatasetError: `out` was made with other arguments, or another program is writing to it.
        OSError: a file cannot be written, a renderer or Ray is not there, or a worker died.
    """
    shards = plan_shards(pairs, split, seed, count, size, renderer, styles, part, exclude)
    if workers < 1:
        raise DatasetError(f"workers must be at least 1, not {workers}")
    if not 0 <= preview <= len(pairs) * count:
        raise DatasetError(f"preview must be 0 to {len(pairs) * count} pictures, not {preview}")
    if ray:
        from sim.ray_pool import check_ray

        check_ray(ray)
    if out.exists() and not out.is_dir():
        raise DatasetError(f"{out} is not a directory")
    arguments = _arguments(pairs, split, seed, count, size, renderer, styles, exclude)
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
                _write_preview(out, pairs, split, seed, preview, size, renderer, styles, exclude)
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


def _arguments(
    pairs: Sequence[tuple[str, int]],
    split: str,
    seed: int,
    count: int,
    size: int,
    renderer: str,
    styles: str,
    exclude: Exclusion,
) -> dict[str, Any]:
    """Return what `dataset.json` holds of the arguments of `write_dataset`."""
    common = {
        "format": FORMAT,
        "renderer": renderer,
        "shard_size": shard_size(size),
        "size": size,
        "styles": styles,
    }
    own = {"count": count, "seed": seed}
    parts = {
        f"{family}-{level}-{split}": own | named_exclusion(_left_out(exclude, family, level, split))
        for family, level in sorted(set(pairs))
    }
    return {"common": common, "parts": parts}


def _left_out(exclude: Exclusion, family: str, level: int, split: str) -> frozenset[str]:
    """Return the digests of the states that episodes must not have; in the split test any may."""
    return frozenset() if split == "test" else exclude.get((family, level), frozenset())


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


def _write_preview(
    out: Path,
    pairs: Sequence[tuple[str, int]],
    split: str,
    seed: int,
    number: int,
    size: int,
    renderer: str,
    styles: str,
    exclude: Exclusion,
) -> None:
    """Write pictures of the first episodes of every family and level, with captions."""
    from sim.drawing import contact_sheet, draw_plan

    pictures = []
    with open_renderer(renderer) as drawer:
        for i in range(number):
            family, level = pairs[i % len(pairs)]
            own_seed = seed + i // len(pairs)
            left_out = _left_out(exclude, family, level, split)
            episode = draw_episode(drawer, family, level, split, own_seed, size, styles, left_out)
            plan = " ".join(action.value for action in episode.plan)
            caption = f"{family} {level}, seed {own_seed}: {plan}"
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
