"""Writes triangles with colours and textures as binary glTF 2.0 (.glb).

glTF is Y-up: the world's (x, y, z) becomes (x, z, -y). Materials are unlit, because light is part
of the colours.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sim.textures import texture

# Numbers of the glTF 2.0 specification.
_FLOAT, _BYTE, _UINT = 5126, 5121, 5125
_VERTICES, _INDICES = 34962, 34963
_SAMPLER = '{"magFilter":9729,"minFilter":9987,"wrapS":10497,"wrapT":10497}'  # linear, repeating

_HEAD = (
    '"asset":{"version":"2.0"},"extensionsUsed":["KHR_materials_unlit"],'
    '"scene":0,"scenes":[{"nodes":[0]}],"nodes":[{"mesh":0}]'
)

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
    # Written as text piece by piece: a scene has a file for every role, and json would take longer
    # over them than over all the triangles.
    views: list[str] = []
    accessors: list[str] = []
    meshes: list[str] = []
    materials: list[str] = []
    images: list[str] = []
    length = 0

    def view(data: bytes, more: str = "") -> int:
        nonlocal length
        views.append(f'{{"buffer":0,"byteOffset":{length},"byteLength":{len(data)}{more}}}')
        buffers.append(data + b"\0" * (-len(data) % 4))
        length += len(buffers[-1])
        return len(views) - 1

    for piece in pieces:
        rows = np.empty(len(piece.vertices), _ROW)
        x, y, z = piece.vertices.T
        place = rows["place"]
        place[:, 0], place[:, 1], place[:, 2] = x, z, -y
        rows["colour"][:, :3] = piece.colours
        rows["colour"][:, 3] = 255
        rows["uv"][:, 0] = piece.uv[:, 0]
        rows["uv"][:, 1] = -piece.uv[:, 1]  # in glTF v goes down
        low, high = place.min(axis=0).tolist(), place.max(axis=0).tolist()
        vertices = view(rows.tobytes(), f',"target":{_VERTICES},"byteStride":{_ROW.itemsize}')
        indices = view(piece.faces.astype("<u4").tobytes(), f',"target":{_INDICES}')
        first, count = len(accessors), f'"count":{len(rows)}'
        own = f'{{"bufferView":{vertices},{count}'
        accessors += [
            f'{own},"componentType":{_FLOAT},"type":"VEC3","min":{low},"max":{high}}}',
            f'{own},"componentType":{_BYTE},"type":"VEC4","byteOffset":12,"normalized":true}}',
            f'{own},"componentType":{_FLOAT},"type":"VEC2","byteOffset":16}}',
            f'{{"bufferView":{indices},"count":{piece.faces.size},"componentType":{_UINT},'
            '"type":"SCALAR"}',
        ]
        surface, uv = '"metallicFactor":0', ""
        if piece.texture:
            surface += f',"baseColorTexture":{{"index":{len(images)}}}'
            uv = f',"TEXCOORD_0":{first + 2}'
            images.append(f'{{"bufferView":{view(_png(piece.texture))},"mimeType":"image/png"}}')
        meshes.append(
            f'{{"attributes":{{"POSITION":{first},"COLOR_0":{first + 1}{uv}}},'
            f'"indices":{first + 3},"material":{len(materials)}}}'
        )
        materials.append(
            f'{{"pbrMetallicRoughness":{{{surface}}},"extensions":{{"KHR_materials_unlit":{{}}}}}}'
        )
    body = b"".join(buffers)
    lists = {
        "meshes": [f'{{"primitives":[{",".join(meshes)}]}}'],
        "materials": materials,
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [f'{{"byteLength":{len(body)}}}'],
    }
    if images:
        lists["images"] = images
        lists["textures"] = [f'{{"source":{i},"sampler":0}}' for i in range(len(images))]
        lists["samplers"] = [_SAMPLER]
    rest = ",".join(f'"{name}":[{",".join(items)}]' for name, items in lists.items())
    text = f"{{{_HEAD},{rest}}}".encode()
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
