from pathlib import Path

from setuptools import setup

# All else is in pyproject.toml. What is here is what it cannot say: files for the ROS index, and
# packages named one by one, so that nothing else in the work tree is ever installed.
SHARE = "share/mgsd_ros"


def files(folder: str, pattern: str) -> list[str]:
    return sorted(str(path) for path in Path(folder).glob(pattern))


setup(
    packages=[
        "sim",
        "mgsd_core",
        "mgsd_core.configs",
        "mgsd_core.evaluation",
        "mgsd_core.export",
        "mgsd_core.runtime",
        "mgsd_ros",
    ],
    # Said again because colcon cannot read what setuptools makes of pyproject's `requires-python`.
    python_requires=">=3.11",
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/mgsd_ros"]),
        # colcon build --symlink-install builds from what is listed here, and needs these two.
        (SHARE, ["package.xml", "pyproject.toml", "README.md"]),
        (f"{SHARE}/launch", files("launch", "*.launch.py")),
        (f"{SHARE}/config", files("config", "*.*")),
        (f"{SHARE}/deploy", files("deploy", "*")),
        (f"{SHARE}/models/nano", files("models/nano", "*.*")),
        (f"{SHARE}/models/nano/goldens", files("models/nano/goldens", "*.*")),
    ],
)
