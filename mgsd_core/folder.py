"""Folders of pictures that nobody here drew: photographs, or another simulator's, with states.

A folder holds pictures and, for each split, a list `train.jsonl`, `validation.jsonl` or
`test.jsonl` with one line a picture:

    {"image": "images/0001.png", "state": {"family": "frozenlake", "size": 3, …}, "plan": "R D"}

`state` is what `sim.state_to_dict` writes. `plan` may be left out: the shortest is then found.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mgsd_core.runtime.images import read_image
from sim import SPLITS, Plan, State, parse_plan, simulate, solve, state_from_dict

#: Takes homogeneous (column, row, 1), whole numbers at the cells' centres, to w (x, y, 1) in shares
#: of a picture's width and height: 0 at its left and upper edge, 1 at the others.
Grid3x3 = tuple[tuple[float, ...], ...]

_FIELDS = {"image", "state"}


class FolderError(ValueError):
    """A folder of pictures that cannot be used; the message names the list, the line and why."""


@dataclass(frozen=True)
class Picture:
    """A picture with its truth, not yet read.

    Attributes:
        name: of the picture, for messages.
        read: returns it, uint8 [H, W, 3]; raises ValueError or OSError where it cannot be read.
        state, plan: the true state and its optimal plan.
        chosen: the plan as somebody chose it among equally short ones; "" for the usual one.
        grid: where the cells are in the picture, None where nobody knows.
    """

    name: str
    read: Callable[[], NDArray[np.uint8]]
    state: State
    plan: Plan
    chosen: str = ""
    grid: Grid3x3 | None = None


def is_folder(path: Path) -> bool:
    """Return whether a directory is such a folder, and no data set of `mgsd generate`.

    Raises:
        FolderError: it is both.
    """
    if not any((path / f"{split}.jsonl").exists() for split in SPLITS):
        return False
    if (path / "dataset.json").exists():
        raise FolderError(
            f"{path} holds lists of pictures and what `mgsd generate` wrote; keep them apart"
        )
    return True


def folder_pictures(path: Path, split: str) -> Iterator[Picture]:
    """Yield the pictures of a split of a folder, in the order of its list.

    Raises:
        FolderError: there is no such list, it is empty, or a line is not as it must be.
        OSError: the list cannot be read.
    """
    list_path = path / f"{split}.jsonl"
    if not list_path.exists():
        raise FolderError(f"{path} holds no {split} pictures: there is no {list_path.name}")
    count = 0
    for number, line in enumerate(list_path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            yield _picture(path, line, f"{list_path} line {number}")
        except (ValueError, RecursionError) as error:
            raise FolderError(f"{list_path} line {number}: {str(error)[:300]}") from error
        count += 1
    if not count:
        raise FolderError(f"{list_path} lists no pictures")


def _picture(folder: Path, line: bytes, where: str) -> Picture:
    entry = json.loads(line.decode())
    if not isinstance(entry, dict) or not _FIELDS <= set(entry) <= _FIELDS | {"plan"}:
        raise ValueError("it must be an object with `image`, `state` and, if you like, `plan`")
    name = entry["image"]
    if not isinstance(name, str) or not _is_inside(folder, name):
        raise ValueError(f"image must be the path of a file inside the folder, not {name!r}")
    if not (folder / name).is_file():
        raise ValueError(f"there is no picture {name}")
    state = state_from_dict(entry["state"])
    plan = solve(state)
    if plan is None:
        raise ValueError("nothing can be done in this state: it has no plan")
    chosen = entry.get("plan")
    if chosen is not None:
        plan = _checked_plan(chosen, state, plan)

    def read() -> NDArray[np.uint8]:
        try:
            return read_image(folder / name)
        except (ValueError, OSError) as error:
            raise FolderError(f"{where}: {error}") from error

    return Picture(name, read, state, plan, "" if chosen is None else " ".join(plan))


def _is_inside(folder: Path, name: str) -> bool:
    # Unlike `Path.resolve` it does not raise where links lead to each other.
    path, whole = Path(os.path.realpath(folder / name)), Path(os.path.realpath(folder))
    return path != whole and path.is_relative_to(whole)


def _checked_plan(text: Any, state: State, shortest: Plan) -> Plan:
    if not isinstance(text, str) or "<" in text:
        raise ValueError(f"plan must be a text such as 'R D D', not {text!r:.60}")
    plan = parse_plan(f"<answer>{text}</answer>", state.family)
    outcome = simulate(state, plan)
    if not outcome.success:
        raise ValueError(f"the plan {text[:60]!r} does not succeed: {outcome.failure}")
    if len(plan) != len(shortest):
        raise ValueError(
            f"the plan has {len(plan)} actions, but {len(shortest)} are enough; "
            "without `plan` the shortest is found"
        )
    return plan
