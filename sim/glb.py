"""Writes triangles with colours and textures as binary glTF 2.0 (.glb).

glTF is Y-up: the world's (x, y, z) becomes (x, z, -y). Materials are unlit, because light is part
of the colours.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sim.textures import texture

# Numbers of the glTF 2.0 specification.
_FLOAT, _BYTE, _UINT = 5126, 5121, 5125
_VERTICES, _INDICES = 34962, 34963
_LINEAR, _LINEAR_MIPMAP, _REPEAT = 9729, 9987, 10497

_ROW = np.dtype([("place", "<f4", 3), ("colour", "u1", 4), ("uv", "<f4", 2)])


@dataclass(frozen=True, slots=True, eq=False)
class Triangles:
    """Triangles under one texture.

    Attributes:
        vertices: float32 [V, 3], metres, z up.
        colours: uint8 [V, 3].
        uv: float32 [V, 2], v goes up.
        faces: unsigned [F, 3], counter-clockwise seen from outside.
        texture: a key of `sim.textures.TEXTURES`; "" for none.
    """

    vertices: NDArray[np.float32]
    colours: NDArray[np.uint8]
    uv: NDArray[np.float32]
    faces: NDArray[np.uint32]
    texture: str


def glb(pieces: Sequence[Triangles]) -> bytes:
    """Return a file that holds the pieces as one mesh."""
    buffers: list[bytes] = []
    views: list[dict[str, Any]] = []
    accessors: list[dict[str, Any]] = []
    primitives, materials, textures, images = [], [], [], []

    length = 0

    def add_view(data: bytes, **more: int) -> int:
        nonlocal length
        buffers.append(data + b"\0" * (-len(data) % 4))
        views.append({"buffer": 0, "byteOffset": length, "byteLength": len(data)} | more)
        length += len(buffers[-1])
        return len(views) - 1

    def add_accessor(view: int, kind: int, shape: str, count: int, **more: Any) -> int:
        accessors.append(
            {"bufferView": view, "componentType": kind, "type": shape, "count": count} | more
        )
        return len(accessors) - 1

    for piece in pieces:
        rows = np.empty(len(piece.vertices), _ROW)
        x, y, z = piece.vertices.T
        place = rows["place"]
        place[:, 0], place[:, 1], place[:, 2] = x, z, -y
        rows["colour"][:, :3] = piece.colours
        rows["colour"][:, 3] = 255
        rows["uv"][:, 0] = piece.uv[:, 0]
        rows["uv"][:, 1] = -piece.uv[:, 1]  # in glTF v goes down
        count = len(rows)
        view = add_view(rows.tobytes(), target=_VERTICES, byteStride=_ROW.itemsize)
        low, high = place.min(axis=0).tolist(), place.max(axis=0).tolist()
        position = add_accessor(view, _FLOAT, "VEC3", count, min=low, max=high)
        colour = add_accessor(view, _BYTE, "VEC4", count, byteOffset=12, normalized=True)
        uv = add_accessor(view, _FLOAT, "VEC2", count, byteOffset=16)
        view = add_view(piece.faces.astype("<u4").tobytes(), target=_INDICES)
        indices = add_accessor(view, _UINT, "SCALAR", piece.faces.size)
        surface: dict[str, Any] = {"metallicFactor": 0.0}
        if piece.texture:
            images.append({"bufferView": add_view(_png(piece.texture)), "mimeType": "image/png"})
            textures.append({"source": len(images) - 1, "sampler": 0})
            surface["baseColorTexture"] = {"index": len(textures) - 1}
        materials.append(
            {"pbrMetallicRoughness": surface, "extensions": {"KHR_materials_unlit": {}}}
        )
        attributes = {"POSITION": position, "COLOR_0": colour}
        if piece.texture:
            attributes["TEXCOORD_0"] = uv
        primitives.append(
            {"attributes": attributes, "indices": indices, "material": len(materials) - 1}
        )
    body = b"".join(buffers)
    document: dict[str, Any] = {
        "asset": {"version": "2.0"},
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": primitives}],
        "materials": materials,
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(body)}],
    }
    if textures:
        document["textures"], document["images"] = textures, images
        document["samplers"] = [
            {"magFilter": _LINEAR, "minFilter": _LINEAR_MIPMAP, "wrapS": _REPEAT, "wrapT": _REPEAT}
        ]
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    whole = 12 + 8 + len(text) + 8 + len(body)
    return b"".join(
        [
            struct.pack("<4sII", b"glTF", 2, whole),
            struct.pack("<I4s", len(text), b"JSON"),
            text,
            struct.pack("<I4s", len(body), b"BIN\0"),
            body,
        ]
    )


@cache
def _png(name: str) -> bytes:
    data = io.BytesIO()
    # Uncompressed: it is read far more often than it is written.
    Image.fromarray(texture(name)).save(data, "PNG", compress_level=0)
    return data.getvalue()
