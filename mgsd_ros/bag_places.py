"""Where the files of a bag's evaluation may go: not into the recording, and not below a file."""

from __future__ import annotations

import os
from pathlib import Path

from mgsd_ros.bag_reader import BagError


def check_directory(path: Path) -> None:
    """Check that there can be a directory at `path`, before there is anything to be put into it.

    Raises:
        NotADirectoryError: it, or something above it, is a file.
    """
    for place in (path, *path.parents):
        if place.is_dir():
            return
        if place.exists():
            raise NotADirectoryError(f"{place} is a file, not a directory")


def _resolved(path: Path) -> Path:
    """Return a path without links; unlike `Path.resolve` where these lead to each other, too."""
    return Path(os.path.realpath(path))


def check_places(bag: Path, out: Path, plans: Path | None) -> None:
    """Check that neither results nor a bag of plans take the place of the bag that is evaluated.

    Args:
        bag: its directory, or one file of it.
        out: directory of the results.
        plans: the bag of plans, which may take the place of an older one.

    Raises:
        BagError: they would.
        NotADirectoryError: one of them is to lie below a file.
    """
    # By its own name and by what that leads to: neither link nor recording is to be replaced.
    recordings = [_resolved(bag), _resolved(bag.parent) / bag.name]
    if plans is not None:
        place = _resolved(plans)
        if any(_overlap(place, recording) for recording in recordings):
            raise BagError(
                f"{plans} is the bag that is evaluated, or one of them lies inside the other; "
                "give the plans a place of their own"
            )
        check_directory(plans.parent)
    is_one_file = bag.is_file() and (bag.parent / "metadata.yaml").exists()
    if _resolved(out) == _resolved(bag.parent if is_one_file else bag) and bag.exists():
        raise BagError(f"{out} is the bag that is evaluated; give --out a place of its own")
    check_directory(out)


def _overlap(a: Path, b: Path) -> bool:
    return a.is_relative_to(b) or b.is_relative_to(a)
