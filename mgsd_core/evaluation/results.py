"""What an evaluation leaves in a directory, written and read back.

    results.json            averages, intervals, failures; what was judged and on what
    responses_image.jsonl   a line a scene: its record, and the true state
    responses_text.jsonl    the same of the symbolic input, where it was asked for
    responses_swapped.jsonl the same of the swapped pictures, where they were asked for
    gallery.jsonl           some of the scenes' pictures, for people

Other people's results are read too, and believed in nothing: only fields of the right type are.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any, get_type_hints

from mgsd_core.evaluation.score import Record, record_dict
from mgsd_core.scenes import Scenes
from sim import State, StateError, state_from_dict, state_to_dict
from sim.files import write_file

SCHEMA_VERSION = 2

#: What a model can have read: pictures, the symbolic state, or the pictures of other scenes.
SOURCES = ("image", "text", "swapped")

#: Most pictures of a gallery, and their width [px].
MOST_PICTURES, PICTURE_WIDTH = 120, 280

Matrix = tuple[tuple[float, float, float], ...]


class ResultsError(ValueError):
    """Results that cannot be read; the message names the file, the line and why."""


@dataclass(frozen=True)
class Shown:
    """A picture of a gallery.

    Attributes:
        scene: name of the scene.
        url: data URL of the picture.
        grid: 3 × 3, from (column, row, 1), whole numbers at the cells' centres, to homogeneous
            (x, y) in shares of the picture's sides; None where nobody knows.
    """

    scene: str
    url: str
    grid: Matrix | None


@dataclass(frozen=True)
class Results:
    """What a directory holds.

    Attributes:
        path: of the directory.
        report: what `results.json` says.
        records: by source (see `SOURCES`), of those that were asked for.
        states: the true state of every scene.
        pictures: SHA-256 (hex) of the picture of every scene, where it is known.
        gallery: pictures, in the order of their scenes.
    """

    path: Path
    report: Mapping[str, Any]
    records: Mapping[str, Sequence[Record]]
    states: Mapping[str, State]
    pictures: Mapping[str, str]
    gallery: Sequence[Shown]


def write_results(
    out: Path,
    report: Mapping[str, Any],
    records: Mapping[str, Sequence[Record]],
    scenes: Scenes,
    swapped: Scenes | None = None,
) -> None:
    """Write results. Nothing of an earlier evaluation is left in `out`.

    Args:
        out: directory; it is made if need be.
        report: for `results.json`, without the schema's version.
        records: by source.
        scenes: that were judged, for their states and pictures.
        swapped: the same with swapped pictures, where there are records of these.
    """
    out.mkdir(parents=True, exist_ok=True)
    # Last what says that the rest is there; what it said before is no longer true.
    for name in ("results.json", "report.html"):
        (out / name).unlink(missing_ok=True)
    states = dict(zip(scenes.names, scenes.states, strict=True))
    seen = {"image": scenes, "swapped": swapped}
    for source in SOURCES:
        file = out / f"responses_{source}.jsonl"
        shown_as = seen.get(source)  # from text no picture is seen
        pictures = dict(zip(shown_as.names, shown_as.pictures, strict=False)) if shown_as else {}
        if source in records:
            lines = [
                record_dict(r)
                | {"true_state": state_to_dict(states[r.scene]), "picture": pictures.get(r.scene)}
                for r in records[source]
            ]
            write_file(file, _lines(lines))
        else:
            file.unlink(missing_ok=True)
    shown = records.get("image") or next(iter(records.values()))
    write_file(out / "gallery.jsonl", _lines(_gallery(scenes, shown)))
    told = {"schema_version": SCHEMA_VERSION, **report}
    write_file(out / "results.json", json.dumps(told, indent=1) + "\n")


def read_results(path: Path) -> Results:
    """Read what `write_results` wrote.

    Raises:
        ResultsError: there are none, or they are damaged.
    """
    file = path / "results.json"
    if not file.is_file():
        raise ResultsError(f"{path} holds no results.json: `mgsd evaluate` writes one")
    report = _read(file.read_bytes(), str(file))
    if report.get("schema_version") != SCHEMA_VERSION:
        raise ResultsError(
            f"{file} has the schema {report.get('schema_version')!r}, not {SCHEMA_VERSION}: "
            "evaluate again"
        )
    records: dict[str, list[Record]] = {}
    states: dict[str, State] = {}
    pictures: dict[str, str] = {}
    for source in SOURCES:
        lines = path / f"responses_{source}.jsonl"
        if lines.is_file():
            records[source] = []
            seen: set[str] = set()
            for where, line in _numbered(lines):
                record, state = _record(line, where)
                if states.setdefault(record.scene, state) != state:
                    raise ResultsError(f"{where}: {record.scene} has two true states")
                if record.scene in seen:
                    raise ResultsError(f"{where}: {record.scene} stands there twice")
                seen.add(record.scene)
                records[source].append(record)
                if source == "image" and isinstance(line.get("picture"), str):
                    pictures[record.scene] = line["picture"]
    if not records:
        raise ResultsError(f"{path} holds no responses_….jsonl beside results.json")
    gallery = path / "gallery.jsonl"
    shown = [_shown(*numbered) for numbered in _numbered(gallery)] if gallery.is_file() else []
    return Results(path, report, records, states, pictures, shown)


# --- the gallery --------------------------------------------------------------------------------


def _gallery(scenes: Scenes, records: Sequence[Record]) -> list[dict[str, Any]]:
    from mgsd_core.html import picture_url

    index = {name: i for i, name in enumerate(scenes.names)}
    return [
        {
            "scene": record.scene,
            "url": picture_url(scenes.images[index[record.scene]], PICTURE_WIDTH),
            "grid": scenes.grids[index[record.scene]],
        }
        for record in _chosen(records)
    ]


def _chosen(records: Sequence[Record]) -> list[Record]:
    """Return at most `MOST_PICTURES` records: of every family and level as many, half of them
    failures as far as there are any, and of both kinds some from beginning to end."""
    groups: dict[tuple[str, int], list[int]] = {}
    for i, record in enumerate(records):
        groups.setdefault((record.family, record.level), []).append(i)
    each = max(1, MOST_PICTURES // len(groups))
    chosen: list[int] = []
    for group in groups.values():
        failed = [i for i in group if not records[i].success]
        good = [i for i in group if records[i].success]
        of_failed = min(len(failed), max(each - len(good), each - each // 2))
        chosen += _spread(failed, of_failed) + _spread(good, min(len(good), each - of_failed))
    return [records[i] for i in sorted(chosen[:MOST_PICTURES])]


def _spread(values: Sequence[int], count: int) -> list[int]:
    return [values[i * len(values) // count] for i in range(count)]


# --- reading ------------------------------------------------------------------------------------


def _lines(values: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def _numbered(file: Path) -> list[tuple[str, dict[str, Any]]]:
    lines = file.read_bytes().splitlines()
    where = [f"{file}, line {number}" for number in range(1, len(lines) + 1)]
    return [(place, _read(line, place)) for place, line in zip(where, lines, strict=True)]


def _read(data: bytes, where: str) -> dict[str, Any]:
    try:
        told = _whole(json.loads(data))
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise ResultsError(f"{where}: not a JSON object")
    return told


def _whole(value: Any) -> Any:
    """Return a value of JSON without halves of characters, which JSON can say and no file hold."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {_whole(name): _whole(item) for name, item in value.items()}
    return value


def _record(line: Mapping[str, Any], where: str) -> tuple[Record, State]:
    for name, kind in get_type_hints(Record).items():
        if name not in line or not _is(line[name], kind):
            raise ResultsError(f"{where}: {name!r} is missing or of the wrong type")
    try:
        state = state_from_dict(line.get("true_state"))  # type: ignore[arg-type]
    except (StateError, ValueError) as error:
        raise ResultsError(f"{where}: the true state is none: {error}") from None
    if (state.family, state.size) != (line["family"], line["level"]):
        raise ResultsError(f"{where}: the true state is of another family or level")
    if set(line["fields"]) != {field.name for field in fields(state)}:
        raise ResultsError(f"{where}: 'fields' are not those of a state of {state.family}")
    return Record(**{field.name: line[field.name] for field in fields(Record)}), state


def _is(value: Any, kind: Any) -> bool:
    """Return whether a value is what a field of a record must be."""
    if kind == dict[str, bool]:
        return isinstance(value, dict) and all(isinstance(v, bool) for v in value.values())
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
    # To Python a bool is an int.
    return isinstance(value, kind) and (kind is not int or not isinstance(value, bool))


def _shown(where: str, line: Mapping[str, Any]) -> Shown:
    url, grid, scene = line.get("url"), line.get("grid"), line.get("scene")
    if not isinstance(scene, str) or not isinstance(url, str):
        raise ResultsError(f"{where}: 'scene' or 'url' is missing or of the wrong type")
    if not url.startswith("data:image/"):
        raise ResultsError(f"{where}: the picture is no data URL")  # a page must ask for nothing
    return Shown(scene, url, None if grid is None else _matrix(grid, where))


def _matrix(value: Any, where: str) -> Matrix:
    try:
        rows = tuple(tuple(float(number) for number in row) for row in value)
    except (TypeError, ValueError, OverflowError):
        rows = ()
    if Counter(map(len, rows)) != {3: 3} or not all(map(math.isfinite, chain(*rows))):
        raise ResultsError(f"{where}: 'grid' must be 3 rows of 3 numbers")
    return rows  # type: ignore[return-value]
