"""Pictures with their true states, fitted to a model and held in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mgsd_core.runtime.preprocess import ImageSpec, fit
from sim import Plan, State, state_digest


@dataclass(frozen=True)
class Scenes:
    """What a stage learns from or is judged on.

    Attributes:
        images: uint8 [N, size, size, 3], fitted to the model.
        states, plans: the true state and the optimal plan of each picture.
        digest: SHA-256 (hex) of all of it, so that a run is not resumed on other data.
    """

    images: NDArray[np.uint8]
    states: Sequence[State]
    plans: Sequence[Plan]
    digest: str

    def tasks(self) -> list[tuple[str, int]]:
        """Return the (family, level) pairs that occur, sorted."""
        return sorted({(s.family, s.size) for s in self.states})


def load_scenes(path: Path, split: str, image: ImageSpec, limit: int | None = None) -> Scenes:
    """Load a split of what `mgsd generate` wrote.

    Args:
        path: the data directory.
        split: train, validation or test.
        image: picture format of the model.
        limit: most episodes of each family and level; None takes all.

    Raises:
        sim.dataset.DatasetError: nothing of that split there, or a damaged file.
    """
    from sim.dataset import load_episodes

    images, states, plans = [], [], []
    digest = hashlib.sha256(repr(image).encode())
    taken: dict[tuple[str, int], int] = {}
    for episode in load_episodes(path, split):
        task = (episode.state.family, episode.state.size)
        taken[task] = taken.get(task, 0) + 1
        if limit is not None and taken[task] > limit:
            continue
        picture = fit(episode.image, image)
        digest.update(picture.tobytes())
        digest.update(state_digest(episode.state).encode())
        images.append(picture)
        states.append(episode.state)
        plans.append(episode.plan)
    return Scenes(np.stack(images), states, plans, digest.hexdigest())
