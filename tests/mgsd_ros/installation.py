"""The package as users install it, and the programs that they do it with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ros_processes import ROOT, Client

from mgsd_core.runtime import Planner
from sim import state_to_dict
from sim.dataset import generate_episodes

FAMILY = "maze"

# Programs that pip has installed beside the tests' Python come first.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def program(name: str) -> str | None:
    """Return where a program is, if it is installed."""
    return shutil.which(name, path=PATH)


def users_environment(env: dict[str, str]) -> dict[str, str]:
    """Return an environment in which Python does not find the checkout."""
    paths = env.get("PYTHONPATH", "").split(os.pathsep)
    kept = os.pathsep.join(path for path in paths if path and Path(path) != ROOT)
    return env | {"PATH": PATH, "PYTHONPATH": kept}


def colcon_build(workspace: Path, *options: str) -> Path:
    """Build a copy of the package with colcon and return the folder `install`."""
    ignore = shutil.ignore_patterns(".*", "runs", "build", "install", "log", "*.egg-info")
    shutil.copytree(ROOT, workspace / "src" / "mgsd_ros", ignore=ignore)
    colcon = program("colcon")
    assert colcon is not None
    # The package must build with the Python that colcon runs with, not with ours.
    ours = ("PYTHONPATH", "LD_LIBRARY_PATH")
    env = {name: text for name, text in os.environ.items() if name not in ours} | {"PATH": PATH}
    subprocess.run([colcon, "build", *options], cwd=workspace, env=env, check=True, timeout=120)
    return workspace / "install"


def with_setup(install: Path, *command: str) -> list[str]:
    """Return a command that runs another after the set-up of colcon's folder `install`."""
    return ["sh", "-c", '. "$0" && exec "$@"', str(install / "local_setup.sh"), *command]


def check_plans(
    client: Client, publish: Callable[[Any], None], planner: str = "/planner", count: int = 3
) -> list[dict[str, Any]]:
    """Show the node mazes, check that it plans as the shipped bundle does, return its answers."""
    from std_msgs.msg import String

    expected = Planner.load(family=FAMILY)
    heard = client.listen(String, f"{planner}/actions", latched=True)
    answers = []
    for episode in generate_episodes(FAMILY, 3, "test", 0, count, 128, styles="overhead"):
        heard.clear()
        publish(episode.image)
        client.spin_until(lambda: heard)
        answers.append(json.loads(heard[-1].data))
        response = expected.plan(episode.image)
        assert response.state is not None and response.plan
        assert answers[-1]["state"] == state_to_dict(response.state)
        assert answers[-1]["actions"] == [action.value for action in response.plan]
    return answers
