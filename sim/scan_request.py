"""What is asked of a scan, and whether its files can be what they are said to be.

Simulators end the whole process over some damaged files; what can be seen from outside is said here
in one line.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.camera import PROJECTIONS
from sim.occupancy import SCAN_FAMILIES, ScanError
from sim.request import check_episodes
from sim.states import MAX_SIZE

#: Where a camera may look from.
VIEWS = ("top", "oblique")

_STAGE_SUFFIX = ".stage_config.json"
_SUFFIXES = (".glb", ".ply", _STAGE_SUFFIX)
_DATASET_SUFFIX = ".scene_dataset_config.json"
_MAX_JSON = 1 << 28  # bytes; the JSON part of the largest scans is below a hundredth of this
_MAX_HEADER = 1 << 16  # bytes of a PLY's header


@dataclass(frozen=True, slots=True)
class ScanRequest:
    """Tasks of one family, level and split to be cut from a scan.

    Attributes:
        scene: path of a GLB, a PLY or a stage config; with `dataset`, the name of a scene there.
        dataset: path of a scene-dataset config; "" for none.
        family, level, split: of the states; any level from 2 to `sim.states.MAX_SIZE`.
        seed: of the first episode; the others' follow.
        count: of episodes.
        size: side of the square pictures [px].
        styles: set of styles of the robot, the goal and the photo, one of `sim.style.STYLES`.
        view: one of `VIEWS`: straight down, or tilted by `tilt` from there.
        tilt: of an oblique view [degrees].
        projection: one of `sim.camera.PROJECTIONS`; oblique views are orthographic.
        cut_height: what is higher above the floor is not drawn [m].
        cell_size: side of a cell [m].
        floor: height of the storey [m], any within it; None for the one with most room.
        agent_radius, agent_height: of the robot that a navigation mesh is computed for [m].
        recompute: whether to compute a navigation mesh even where the scan comes with one.

    Raises:
        ScanError: a number is out of range, or two fields do not go together.
        ValueError: the same of what all data sets are asked for.
        sim.renderers.MissingRendererError: habitat-sim is not installed.
    """

    scene: str
    dataset: str
    family: str
    level: int
    split: str
    seed: int
    count: int
    size: int = 128
    styles: str = "varied"
    view: str = "top"
    tilt: float = 35.0
    projection: str = "pinhole"
    cut_height: float = 1.5
    cell_size: float = 0.5
    floor: float | None = None
    agent_radius: float = 0.1
    agent_height: float = 1.5
    recompute: bool = False

    def __post_init__(self) -> None:
        check_episodes(self.split, self.seed, self.count, self.size, "habitat", self.styles)
        if self.family not in SCAN_FAMILIES:
            raise ScanError(f"scans have tasks of {' or '.join(SCAN_FAMILIES)}, not {self.family}")
        if not 2 <= self.level <= MAX_SIZE:
            raise ScanError(f"level must be 2 to {MAX_SIZE} cells, not {self.level}")
        if self.view not in VIEWS:
            raise ScanError(f"view must be {' or '.join(VIEWS)}, not {self.view}")
        if self.projection not in PROJECTIONS:
            raise ScanError(f"projection must be {' or '.join(PROJECTIONS)}, not {self.projection}")
        if self.view == "oblique" and self.projection != "orthographic":
            raise ScanError("an oblique view needs --projection orthographic")
        for name, (low, high, unit) in _RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise ScanError(
                    f"{name.replace('_', '-')} must be {low:g} to {high:g} {unit}, "
                    f"not {getattr(self, name):g}"
                )
        if self.floor is not None and not math.isfinite(self.floor):
            raise ScanError(f"floor must be a finite height in metres, not {self.floor}")


_RANGES = {
    "tilt": (1.0, 60.0, "degrees"),
    "cut_height": (0.1, 10.0, "m"),
    "cell_size": (0.1, 5.0, "m"),
    "agent_radius": (0.01, 2.0, "m"),
    "agent_height": (0.05, 5.0, "m"),
}


def check_files(request: ScanRequest) -> None:
    """Raise ScanError where the files that a request names are not there or damaged."""
    if request.dataset:
        check_dataset(Path(request.dataset))
        if not request.scene:
            raise ScanError(f"name a scene of {request.dataset}")
    else:
        check_scene(Path(request.scene))


def scan_digest(request: ScanRequest) -> str:
    """Return the SHA-256 (hex) of what a request names, by which a scan is known on any machine.

    That is the scene's file, the one that a stage config has it drawn from and the navigation mesh
    beside it; with a dataset the dataset's config, whose scenes have names of their own.

    Raises:
        ScanError: see `check_files`.
        OSError: a file cannot be read.
    """
    check_files(request)
    scene = Path(request.scene)
    files = [Path(request.dataset)]
    if not request.dataset:
        files = [scene, scene.with_suffix(".navmesh")]
        if scene.name.endswith(_STAGE_SUFFIX):
            config = _read_json(scene)
            named = [config.get(key) for key in ("render_asset", "nav_asset")]
            files += [scene.parent / name for name in named if isinstance(name, str) and name]
    digest = hashlib.sha256()
    for path in files:
        if path.is_file():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def check_scene(path: Path) -> None:
    """Raise ScanError where a file is no scene: a GLB, a PLY or a stage config that names one."""
    if not path.is_file():
        raise ScanError(f"{path}: no such file of a scene")
    if path.name.endswith(_STAGE_SUFFIX):
        _check_stage_config(path)
    elif path.suffix == ".glb":
        _check_glb(path)
    elif path.suffix == ".ply":
        _check_ply(path)
    else:
        raise ScanError(f"{path} is no scene: its name must end in one of {', '.join(_SUFFIXES)}")


def check_dataset(path: Path) -> None:
    """Raise ScanError where a file is no scene-dataset config."""
    if not path.is_file():
        raise ScanError(f"{path}: no such file of a scene dataset")
    if not path.name.endswith(_DATASET_SUFFIX):
        raise ScanError(f"{path} is no scene dataset: its name must end in {_DATASET_SUFFIX}")
    _read_json(path)


def _check_stage_config(path: Path) -> None:
    asset = _read_json(path).get("render_asset")
    if not isinstance(asset, str) or not asset:
        raise ScanError(f"{path} names no render_asset")
    render = path.parent / asset
    if render.suffix not in (".glb", ".ply"):
        raise ScanError(f"{path}: its render_asset {asset} is no .glb or .ply file")
    check_scene(render)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ScanError(f"{path} is not readable as JSON: {str(error)[:200]}") from error
    if not isinstance(data, dict):
        raise ScanError(f"{path} holds no JSON object")
    return data


def _check_glb(path: Path) -> None:
    """Check what binary glTF 2.0 says of its parts: header, chunks, buffers, views, accessors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(20)
        if len(head) < 20 or head[:4] != b"glTF":
            raise ScanError(f"{path} is no GLB file: it does not begin with glTF")
        version, length, text_size = struct.unpack("<4xIII", head[:16])
        if version != 2:
            raise ScanError(f"{path} is a GLB file of version {version}; only version 2 is known")
        if length != size:
            raise ScanError(f"{path} is damaged: it should have {length} bytes and has {size}")
        if head[16:] != b"JSON" or text_size > min(size - 20, _MAX_JSON):
            raise ScanError(f"{path} is damaged: its first part is no JSON that fits into it")
        try:
            document = json.loads(file.read(text_size))
        except (ValueError, RecursionError) as error:
            raise ScanError(f"{path} is damaged: its JSON cannot be read") from error
        rest = file.read(8)
    body = 0
    if rest:
        body, kind = struct.unpack("<I4s", rest) if len(rest) == 8 else (size, b"")
        if kind != b"BIN\0" or 28 + text_size + body > size:
            raise ScanError(f"{path} is damaged: its second part does not fit into it")
    try:
        _check_document(document, body)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ScanError(f"{path} is damaged: {error}") from error


def _check_document(document: dict[str, Any], body: int) -> None:
    """Raise some error where a glTF document has no mesh or points outside its own data."""
    if not document.get("meshes"):
        raise ValueError("it holds no mesh")
    buffers = document.get("buffers", [])
    lengths = [buffer["byteLength"] for buffer in buffers]
    # The first buffer is the file's second part unless it says where else it lies.
    if buffers and "uri" not in buffers[0]:
        lengths[0] = body
    if any(buffer["byteLength"] > length for buffer, length in zip(buffers, lengths, strict=True)):
        raise ValueError("its data are shorter than they should be")
    views = document.get("bufferViews", [])
    for view in views:
        if not 0 <= view.get("byteOffset", 0) <= lengths[view["buffer"]] - view["byteLength"]:
            raise ValueError("a part of its data lies outside them")
    accessors = document.get("accessors", [])
    for accessor in accessors:
        if "bufferView" in accessor:
            width = _WIDTHS[accessor["componentType"]] * _COUNTS[accessor["type"]]
            view = views[accessor["bufferView"]]
            stride = view.get("byteStride", width)
            end = accessor.get("byteOffset", 0) + stride * (accessor["count"] - 1) + width
            if accessor["count"] < 1 or end > view["byteLength"]:
                raise ValueError("an array lies outside its data")
    for mesh in document["meshes"]:
        for primitive in mesh["primitives"]:
            used = [*primitive["attributes"].values(), primitive.get("indices", 0)]
            if any(not 0 <= index < len(accessors) for index in used):
                raise ValueError("a mesh uses an array that is not there")


# Bytes of glTF's component types, and components of its types.
_WIDTHS = {5120: 1, 5121: 1, 5122: 2, 5123: 2, 5125: 4, 5126: 4}
_COUNTS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}


def _check_ply(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(_MAX_HEADER)
    if not head.startswith((b"ply\n", b"ply\r\n")) or b"\nend_header" not in head:
        raise ScanError(f"{path} is no PLY file: it has no header of one")
    if path.stat().st_size <= head.index(b"\nend_header") + len(b"\nend_header\n"):
        raise ScanError(f"{path} is damaged: nothing follows its header")
