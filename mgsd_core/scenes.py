"""Pictures with their true states, fitted to a model and held in memory."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mgsd_core.folder import Grid3x3, Picture, folder_pictures, is_folder
from mgsd_core.runtime.preprocess import ImageSpec, fit
from sim import Plan, State, solve, state_digest
from sim.sampling import check_split

if TYPE_CHECKING:
    from sim.cases import Report
    from sim.grid import Grid


@dataclass(frozen=True)
class Scenes:
    """What a stage learns from or is judged on.

    Attributes:
        images: uint8 [N, size, size, 3], fitted to the model.
        states, plans: the true state and the optimal plan of each picture.
        names: of each picture, every one another: family, level, split and seed; or its file's.
        digest: SHA-256 (hex) of all of it, so that a run is not resumed on other data.
        grids: where the cells are in each picture, see `mgsd_core.folder.Grid3x3`; None where
            nobody knows, by default in all.
        pictures: SHA-256 (hex) of every picture as it was before it was fitted, or none.
    """

    images: NDArray[np.uint8]
    states: Sequence[State]
    plans: Sequence[Plan]
    names: Sequence[str]
    digest: str
    grids: Sequence[Grid3x3 | None] = ()
    pictures: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.grids:
            object.__setattr__(self, "grids", [None] * len(self.states))

    def tasks(self) -> list[tuple[str, int]]:
        """Return the (family, level) pairs that occur, sorted."""
        return sorted({(s.family, s.size) for s in self.states})

    def part(self, indices: Sequence[int]) -> Scenes:
        """Return some of the scenes; the digest stays that of all."""
        return Scenes(
            self.images[list(indices)],
            [self.states[i] for i in indices],
            [self.plans[i] for i in indices],
            [self.names[i] for i in indices],
            self.digest,
            [self.grids[i] for i in indices],
            [self.pictures[i] for i in indices] if self.pictures else (),
        )

    def swapped(self) -> tuple[Scenes, list[int]]:
        """Return the scenes with another picture each, of the same family and level.

        What plans from pictures fails on them. A scene that is alone in its family and level is
        left out.

        Returns:
            The scenes, and whose picture each has (an index into `self`).
        """
        groups: dict[tuple[str, int], list[int]] = {}
        for i, state in enumerate(self.states):
            groups.setdefault((state.family, state.size), []).append(i)
        chosen, shown = [], []
        for group in groups.values():
            if len(group) > 1:
                half = len(group) // 2
                chosen += group
                shown += group[half:] + group[:half]
        others = self.part(shown)
        swapped = replace(
            self.part(chosen),
            images=others.images,
            grids=others.grids,
            pictures=others.pictures,
        )
        return swapped, shown


def load_scenes(path: Path, split: str, image: ImageSpec, limit: int | None = None) -> Scenes:
    """Load a split of what `mgsd generate` wrote, or of a folder as `mgsd_core.folder` reads it.

    Args:
        path: the data directory.
        split: train, validation or test.
        image: picture format of the model.
        limit: most pictures of each family and level; None takes all.

    Raises:
        sim.dataset.DatasetError: nothing of that split there, or a damaged file.
        mgsd_core.folder.FolderError: the same of a folder; names the line of its list.
    """
    check_split(split)
    shown = folder_pictures(path, split) if is_folder(path) else _episodes(path, split)
    return _scenes(shown, image, limit)


def load_case_scenes(
    path: Path, image: ImageSpec, limit: int | None = None, report: Report | None = None
) -> Scenes:
    """Load cases of public benchmarks, as `sim.cases` reads them, to be planned.

    A case shows the benchmark's own picture; where it has none, the renderer `flat` draws it. The
    plan is the solver's; what a case lists itself is checked.

    Args:
        path: file or folder.
        image: picture format of the model.
        limit: most cases of each family and level, the first; None takes all.
        report: called with the CaseError of every case that cannot be read or lists what is wrong,
            and the rest goes on. Without it the error is raised.

    Raises:
        sim.cases.CaseError: there is none that can be planned, or something is wrong and `report`
            is None.
    """
    return _scenes(_cases(path, image.size, limit, report), image)


def _scenes(pictures: Iterable[Picture], image: ImageSpec, limit: int | None = None) -> Scenes:
    images, states, plans, names, grids, pictures_seen = [], [], [], [], [], []
    digest = hashlib.sha256(repr(image).encode())
    taken: dict[tuple[str, int], int] = {}
    counts: Counter[str] = Counter()
    taken_names: set[str] = set()
    for shown in pictures:
        task = (shown.state.family, shown.state.size)
        taken[task] = taken.get(task, 0) + 1
        if limit is not None and taken[task] > limit:
            continue
        rgb = shown.read()
        pictures_seen.append(hashlib.sha256(rgb.tobytes()).hexdigest())
        picture = fit(rgb, image)
        digest.update(picture.tobytes())
        digest.update((state_digest(shown.state) + shown.chosen).encode())
        images.append(picture)
        states.append(shown.state)
        plans.append(shown.plan)
        name = shown.name
        while name in taken_names:  # a folder may list a picture twice
            counts[shown.name] += 1
            name = f"{shown.name} ({1 + counts[shown.name]})"
        taken_names.add(name)
        names.append(name)
        grids.append(shown.grid)
    return Scenes(np.stack(images), states, plans, names, digest.hexdigest(), grids, pictures_seen)


def _episodes(path: Path, split: str) -> Iterator[Picture]:
    from sim.dataset import iter_episodes

    for episode in iter_episodes(path, split):
        state, rgb = episode.state, episode.image
        name = f"{state.family}-{state.size}-{split}-{episode.seed}"
        grid = _in_shares(episode.grid, rgb)
        yield Picture(name, partial(np.asarray, rgb), state, episode.plan, grid=grid)


def _cases(path: Path, size: int, limit: int | None, report: Report | None) -> Iterator[Picture]:
    from sim.cases import CaseError, check_case, load_cases, show_case
    from sim.flat import FlatRenderer

    taken: Counter[tuple[str, int]] = Counter()
    with FlatRenderer() as drawer:
        for case in load_cases(path, report=report):
            state = case.state
            if limit is not None and taken[state.family, state.size] >= limit:
                continue
            try:
                check_case(case)
                rgb, grid = show_case(case, size, drawer)
            except CaseError as error:
                if report is None:
                    raise
                report(error)
                continue
            taken[state.family, state.size] += 1
            plan = solve(state)
            assert plan is not None, "what was checked has a plan"
            where = None if grid is None else _in_shares(grid, rgb)
            yield Picture(case.name, partial(np.asarray, rgb), state, plan, grid=where)
    if not taken:
        raise CaseError(str(path), "there is no case that can be planned")


def _in_shares(grid: Grid, rgb: NDArray[np.uint8]) -> Grid3x3:
    """Return a grid's map to the picture, in shares; they stay when the picture is fitted."""
    height, width = rgb.shape[:2]
    # Whole numbers are the pixels' centres.
    to_shares = np.array([[1 / width, 0, 0.5 / width], [0, 1 / height, 0.5 / height], [0, 0, 1]])
    return tuple(map(tuple, (to_shares @ np.array(grid.cell_to_pixel)).tolist()))
