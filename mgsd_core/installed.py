"""What is installed: the package's version, and its files that are no Python.

Those are model, profiles and parameters. In a checkout they lie at its top; an installation (pip,
colcon) puts them into `share/mgsd_ros`, where ROS looks too.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

#: The bundle that plans when none is named.
SHIPPED_BUNDLE = "models/nano"

#: What it has learned: levels by family, as `mgsd generate` takes them.
SHIPPED_LEVELS = {"frozenlake": "3-6", "maze": "3-5", "minibehaviour": "5-6"}


def installed_path(name: str) -> Path:
    """Return a file or directory that comes with the package, named as in the repository.

    Raises:
        FileNotFoundError: neither a checkout nor an installation has it.
    """
    code = Path(__file__).resolve().parents
    # <checkout>/mgsd_core, or <prefix>/lib/python3.11/site-packages/mgsd_core, or after
    # `pip install --target` <prefix>/mgsd_core.
    prefixes = [*code[4:5], code[1], Path(sys.prefix)]
    places = [code[1], *(prefix / "share" / "mgsd_ros" for prefix in prefixes)]
    for place in places:
        if (place / name).exists():
            return place / name
    raise FileNotFoundError(f"{name} is in none of {', '.join(map(str, dict.fromkeys(places)))}")


def shipped_bundle() -> Path:
    """Return the bundle that comes with the package.

    Raises:
        FileNotFoundError: it was left out of this installation.
    """
    try:
        return installed_path(SHIPPED_BUNDLE)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"this installation has no model of its own, name a bundle: {error}"
        ) from None


def package_version() -> str:
    """Return the version of this package, "unknown" where it is not installed."""
    try:
        return version("mgsd_ros")
    except PackageNotFoundError:
        return "unknown"
