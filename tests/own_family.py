"""The example of docs/own_task.md, installed for the tests as `pip install examples/parcels` would.

Without network: what an installation leaves behind for `importlib.metadata` is written by hand,
from what the example itself declares.
"""

from __future__ import annotations

import shutil
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "parcels"


def install(site: Path, name: str, groups: dict[str, dict[str, str]], **modules: str) -> Path:
    """Put a distribution with entry points and modules into a directory; return the directory."""
    info = site / f"{name}-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    lines = []
    for group, entries in groups.items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for module, text in modules.items():
        (site / f"{module}.py").write_text(text)
    return site


@contextmanager
def parcels_installed(site: Path) -> Iterator[Path]:
    """Install the example into a directory and let this process find it there."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    install(site, project["name"], project["entry-points"])
    shutil.copy(EXAMPLE / "parcels.py", site)
    with found_in(site):
        yield site


@contextmanager
def found_in(site: Path) -> Iterator[None]:
    """Let this process find what is installed in a directory."""
    sys.path.insert(0, str(site))
    try:
        yield
    finally:
        sys.path.remove(str(site))
