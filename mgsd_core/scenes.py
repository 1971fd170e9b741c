"""Pictures with their true states, fitted to a model and held in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mgsd_core.folder import Picture, folder_pictures, is_folder
from mgsd_core.runtime.preprocess import ImageSpec, fit
from sim import Plan, State, state_digest
from sim.sampling import check_split


@dataclass(frozen=True)
class Scenes:
    """What a stage learns from or is judged on.

    Attributes:
        images: uint8 [N, size, size, 3], fitted to the model.
        states, plans: the true state and the optimal plan of each picture.
        names: of each picture, for messages: family, level, split and seed; or its file's.
        digest: SHA-256 (hex) of all of it, so that a run is not resumed on other data.
    """

    images: NDArray[np.uint8]
    states: Sequence[State]
    plans: Sequence[Plan]
    names: Sequence[str]
    digest: str

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
        return replace(self.part(chosen), images=self.images[shown]), shown


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
    images, states, plans, names = [], [], [], []
    digest = hashlib.sha256(repr(image).encode())
    taken: dict[tuple[str, int], int] = {}
    check_split(split)
    for shown in folder_pictures(path, split) if is_folder(path) else _episodes(path, split):
        task = (shown.state.family, shown.state.size)
        taken[task] = taken.get(task, 0) + 1
        if limit is not None and taken[task] > limit:
            continue
        picture = fit(shown.read(), image)
        digest.update(picture.tobytes())
        digest.update((state_digest(shown.state) + shown.chosen).encode())
        images.append(picture)
        states.append(shown.state)
        plans.append(shown.plan)
        names.append(shown.name)
    return Scenes(np.stack(images), states, plans, names, digest.hexdigest())


def _episodes(path: Path, split: str) -> Iterator[Picture]:
    from sim.dataset import iter_episodes

    for episode in iter_episodes(path, split):
        state = episode.state
        name = f"{state.family}-{state.size}-{split}-{episode.seed}"
        yield Picture(name, partial(np.asarray, episode.image), state, episode.plan)
