"""Flats to scan: written as GLB from a plan in text, so that the truth is known by construction.

In a plan, cells stand at odd places of odd lines: `.` is floor, `#` floor with a block on it.
Between them `|` and `-` are walls.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from sim.glb import Triangles, glb

CELL = 0.5  # [m]
HEIGHT = 2.4  # of a storey's rooms [m]
THICKNESS = 0.1  # of walls [m]
BLOCK = (0.3, 0.4)  # width and height of a block [m]

#: Two rooms above, a corridor and two rooms below; the room at the bottom left has no door.
PLAN = """
+-+-+-+-+-+-+-+-+
|. . . .|. . . .|
+ + + + + + + + +
|. . . . . # . .|
+ + + + + + + + +
|. . . .|. . . .|
+-+ +-+-+-+-+ +-+
|. . . . . . . .|
+-+-+-+-+ +-+-+-+
|. . .|. . .|. .|
+ + + + + + + + +
|. . .|. # . . .|
+-+-+-+-+-+-+-+-+
"""

#: One room, the storey above.
ATTIC = """
+-+-+-+
|. . .|
+ + + +
|. .|.|
+ + + +
|. . .|
+-+-+-+
"""


def free_cells(plan: str) -> np.ndarray:
    """Return which cells are free, bool [rows, columns]."""
    lines = plan.strip().splitlines()
    return np.array([[mark == "." for mark in line[1::2]] for line in lines[1::2]])


def wall_bits(plan: str) -> np.ndarray:
    """Return the wall bits of every cell, a cell with a block walled on all sides."""
    lines = plan.strip().splitlines()
    free = free_cells(plan)
    bits = np.zeros(free.shape, int)
    for row, column in np.ndindex(*free.shape):
        r, c = 2 * row + 1, 2 * column + 1
        for bit, dr, dc in ((1, -1, 0), (2, 1, 0), (4, 0, -1), (8, 0, 1)):
            there = (row + dr, column + dc)
            inside = all(0 <= i < n for i, n in zip(there, free.shape, strict=True))
            walled = lines[r + dr][c + dc] != " " or not inside
            if walled or not free[row, column] or not free[there]:
                bits[row, column] |= bit
    return bits


def storey(plan: str, floor: float = 0.0) -> list[Triangles]:
    """Return a storey: floor, walls, blocks and a ceiling, cell (0, 0) centred at x = y = 0."""
    lines = plan.strip().splitlines()
    rows, columns = len(lines) // 2, len(lines[0]) // 2
    half = THICKNESS / 2
    low, high = -CELL / 2 - half, CELL / 2 + half
    left, right = low, (columns - 1) * CELL + high
    bottom, top = (1 - rows) * CELL + low, high
    pieces = [
        box((left, bottom, floor - 0.1), (right, top, floor), (205, 190, 160)),
        box((left, bottom, floor + HEIGHT), (right, top, floor + HEIGHT + 0.1), (120, 160, 220)),
    ]
    for r, line in enumerate(lines):
        for c, mark in enumerate(line):
            x, y = (c - 1) / 2 * CELL, -(r - 1) / 2 * CELL
            if mark == "#":
                side, height = BLOCK[0] / 2, floor + BLOCK[1]
                corner = (x - side, y - side, floor)
                pieces.append(box(corner, (x + side, y + side, height), (140, 90, 60)))
            elif mark in "|-":
                reach = CELL / 2 + half
                dx, dy = (half, reach) if mark == "|" else (reach, half)
                corner = (x - dx, y - dy, floor)
                pieces.append(box(corner, (x + dx, y + dy, floor + HEIGHT), (225, 222, 215)))
                # A cut wall is seen from above as what lies inside: nothing, in a real scan.
                pieces.append(box(corner, (x + dx, y + dy, floor + 0.01), (20, 20, 20)))
    return pieces


def box(low: tuple, high: tuple, colour: tuple[int, int, int]) -> Triangles:
    """Return a box between two corners [m], its sides darker than its top."""
    corners = np.array([low, high], np.float32)
    vertices, shades, faces = [], [], []
    for axis in range(3):
        for side in (0, 1):
            across, along = (axis + 1) % 3, (axis + 2) % 3
            start = len(vertices)
            for a, b in (
                ((0, 0), (1, 0), (1, 1), (0, 1)) if side else ((0, 0), (0, 1), (1, 1), (1, 0))
            ):
                point = np.empty(3, np.float32)
                point[axis] = corners[side, axis]
                point[across], point[along] = corners[a, across], corners[b, along]
                vertices.append(point)
                shades.append([round(value * (0.7, 0.8, 1.0)[axis]) for value in colour])
            faces += [(start, start + 1, start + 2), (start, start + 2, start + 3)]
    return Triangles(
        np.array(vertices, np.float32),
        np.array(shades, np.uint8),
        np.zeros((len(vertices), 2), np.float32),
        np.array(faces, np.uint32),
        "",
    )


def write_stage(folder: Path, name: str, pieces: list[Triangles]) -> Path:
    """Write a stage with its config; return the config's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.glb").write_bytes(glb([joined(pieces)]))
    config = {"render_asset": f"{name}.glb", "up": [0, 1, 0], "front": [0, 0, -1]}
    path = folder / f"{name}.stage_config.json"
    path.write_text(json.dumps(config | {"force_flat_shading": True}))
    return path


def joined(pieces: list[Triangles]) -> Triangles:
    starts = np.cumsum([0] + [len(piece.vertices) for piece in pieces[:-1]])
    faces = [piece.faces + start for piece, start in zip(pieces, starts, strict=True)]
    return Triangles(
        np.concatenate([piece.vertices for piece in pieces]),
        np.concatenate([piece.colours for piece in pieces]),
        np.concatenate([piece.uv for piece in pieces]),
        np.concatenate(faces).astype(np.uint32),
        "",
    )


def write_furnished(folder: Path) -> Path:
    """Write a scene dataset as ReplicaCAD's: a flat with a chair and a plant; return its config.

    The chair stands in cell (1, 1), the plant in cell (5, 6).
    """
    write_stage(folder / "stages", "flat", storey(PLAN))
    for name, number, colour in (("chair", 7, (90, 60, 160)), ("plant", 9, (40, 120, 60))):
        low, high = (-0.1, -0.1, 0.0), (0.1, 0.1, 0.45)
        objects = folder / "objects"
        objects.mkdir(exist_ok=True)
        (objects / f"{name}.glb").write_bytes(glb([box(low, high, colour)]))
        config = {"render_asset": f"{name}.glb", "semantic_id": number, "mass": 1.0}
        (objects / f"{name}.object_config.json").write_text(json.dumps(config))
    things = [("chair", (1, 1)), ("plant", (5, 6))]
    instances = [
        {
            "template_name": f"objects/{name}",
            "translation": [cell[1] * CELL, 0.225, cell[0] * CELL],
            "motion_type": "DYNAMIC",
        }
        for name, cell in things
    ]
    scene = {
        "stage_instance": {"template_name": "stages/flat"},
        "object_instances": instances,
        "semantic_scene_instance": "lexicon",
    }
    (folder / "scenes").mkdir()
    (folder / "scenes" / "home.scene_instance.json").write_text(json.dumps(scene))
    classes = [{"name": "armchair", "id": 7}, {"name": "indoor-plant", "id": 9}]
    (folder / "lexicon.json").write_text(json.dumps({"classes": classes}))
    config = {
        "stages": {"paths": {".json": ["stages/*"]}},
        "objects": {"paths": {".json": ["objects/*"]}},
        "scene_instances": {"paths": {".json": ["scenes/*"]}},
        "semantic_scene_descriptor_instances": {"lexicon": "lexicon.json"},
    }
    path = folder / "homes.scene_dataset_config.json"
    path.write_text(json.dumps(config))
    return path


def write_annotated(folder: Path) -> Path:
    """Write a flat annotated as scans of HM3D: floor and the block in cell (1, 5).

    Return its config. A second mesh says by its colours what is what.
    """
    config = write_stage(folder, "flat", storey(PLAN))
    x, y = 5 * CELL, -1 * CELL
    side, height = BLOCK[0] / 2, BLOCK[1]
    floor = box((-0.3, -2.8, -0.1), (3.8, 0.3, 0.0), (255, 0, 0))
    block = box((x - side, y - side, 0.0), (x + side, y + side, height), (0, 255, 0))
    plain = [
        dataclasses.replace(piece, colours=np.full_like(piece.colours, colour))
        for piece, colour in ((floor, (255, 0, 0)), (block, (0, 255, 0)))
    ]
    (folder / "flat.semantic.glb").write_bytes(glb([joined(plain)]))
    lines = ["HM3D Semantic Annotations", '1,FF0000,"floor",0', '2,00FF00,"ottoman",0']
    (folder / "flat.semantic.txt").write_text("\n".join([*lines, ""]))
    annotations = {
        "semantic_asset": "flat.semantic.glb",
        "semantic_descriptor_filename": "flat.semantic.txt",
        "semantic_up": [0, 1, 0],
        "semantic_front": [0, 0, -1],
        "has_semantic_textures": False,
    }
    config.write_text(json.dumps(json.loads(config.read_text()) | annotations))
    return config
