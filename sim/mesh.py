"""A scene as triangles that any renderer can draw, light included in their colours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sim.light import lit
from sim.models import Parts, Point
from sim.scene import Scene
from sim.shapes import shape

#: Length of a texture's side on a surface [cells].
TEXTURE_LENGTH = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Mesh:
    """Triangles of a scene's objects, each object in its own frame, one after the other.

    Attributes:
        vertices: float32 [V, 3], metres, in the object's frame.
        world: float32 [V, 3], the same in the world's.
        colours: uint8 [V, 3], sRGB, lit; a texture is to be multiplied with them.
        uv: float32 [V, 2], place in the object's texture, which repeats; v goes up.
        faces: uint32 [F, 3], indices into `vertices`, counter-clockwise seen from outside.
        vertex_ends, face_ends: int64 [objects], where each object's vertices and faces end.
    """

    vertices: NDArray[np.float32]
    world: NDArray[np.float32]
    colours: NDArray[np.uint8]
    uv: NDArray[np.float32]
    faces: NDArray[np.uint32]
    vertex_ends: NDArray[np.int64]
    face_ends: NDArray[np.int64]


def mesh_of(scene: Scene) -> Mesh:
    """Return a scene's triangles, objects in the scene's order."""
    objects = scene.objects
    # Objects that look the same share one tuple of parts.
    shared = {id(thing.parts): thing.parts for thing in objects}
    outlines = {
        key: tuple((part.shape, part.centre, part.size, part.yaw) for part in parts)
        for key, parts in shared.items()
    }
    geometries = {key: _geometry(outline) for key, outline in outlines.items()}
    painted = {key: _colours(parts, geometries[key]) for key, parts in shared.items()}
    keys = [id(thing.parts) for thing in objects]
    models = [geometries[key] for key in keys]
    vertex_counts = np.array([len(model.vertices) for model in models])
    vertex_ends = np.cumsum(vertex_counts)
    face_counts = np.array([len(model.faces) for model in models])
    local = np.concatenate([model.vertices for model in models])
    colours = np.concatenate([painted[key] for key in keys])
    uv = np.concatenate([model.uv for model in models])
    faces = np.concatenate([model.faces for model in models])
    faces += np.repeat(vertex_ends - vertex_counts, face_counts)[:, None].astype(np.uint32)
    # Neighbours go on where the other's texture ends.
    position = np.array([thing.position for thing in objects], np.float32)
    uv += np.repeat(position[:, :2] / scene.cell_size / TEXTURE_LENGTH % 1, vertex_counts, axis=0)
    vertices = local * np.float32(scene.cell_size)
    yaw = np.repeat([thing.yaw for thing in objects], vertex_counts)
    world = _turned(vertices, yaw) + np.repeat(position, vertex_counts, axis=0)
    normals = _turned(np.concatenate([model.normals for model in models]), yaw)
    shown = lit(colours, world, normals, objects, scene.state.size, scene.cell_size, scene.style)
    return Mesh(vertices, world, shown, uv, faces, vertex_ends, np.cumsum(face_counts))


@dataclass(frozen=True, slots=True, eq=False)
class _Geometry:
    """Triangles of a list of parts [cells]; arrays as in `Mesh`.

    Attributes:
        vertex_counts: int64 [parts].
    """

    vertices: NDArray[np.float32]
    normals: NDArray[np.float32]
    uv: NDArray[np.float32]
    faces: NDArray[np.uint32]
    vertex_counts: NDArray[np.int64]


def _colours(parts: Parts, geometry: _Geometry) -> NDArray[np.uint8]:
    colours = np.array([part.colour for part in parts], np.uint8)
    return np.repeat(colours, geometry.vertex_counts, axis=0)


# Models come again in every scene in other colours.
@lru_cache(maxsize=512)
def _geometry(outline: tuple[tuple[str, Point, Point, float], ...]) -> _Geometry:
    vertices, normals, faces = [], [], []
    counts: list[int] = []
    for name, centre, size, yaw in outline:
        unit = shape(name)
        vertices.append(_turned(unit.vertices * size, yaw) + centre)
        leaning = _turned(unit.normals / size, yaw)
        normals.append(leaning / np.linalg.norm(leaning, axis=1, keepdims=True))
        faces.append(unit.faces + sum(counts))
        counts.append(len(unit.vertices))
    places, directions = np.concatenate(vertices), np.concatenate(normals)
    return _Geometry(
        places.astype(np.float32),
        directions.astype(np.float32),
        _uv(places, directions).astype(np.float32),
        np.concatenate(faces).astype(np.uint32),
        np.array(counts),
    )


def _uv(places: NDArray[np.float64], normals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lay a texture on surfaces from the axis that they face most."""
    axis = np.abs(normals).argmax(axis=1)
    flat = np.array([(1, 2), (0, 2), (0, 1)])[axis]
    return np.take_along_axis(places, flat, axis=1) / TEXTURE_LENGTH


def _turned(vectors: NDArray, yaw: NDArray | float) -> NDArray:
    """Turn vectors [N, 3] about z by yaw, one for all or one each."""
    cosine, sine = np.cos(yaw), np.sin(yaw)
    x, y = vectors[:, 0], vectors[:, 1]
    turned = np.stack([cosine * x - sine * y, sine * x + cosine * y, vectors[:, 2]], axis=1)
    return turned.astype(vectors.dtype)
