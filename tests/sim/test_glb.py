"""GLB files: what is written is binary glTF 2.0 that says what it was given."""

from __future__ import annotations

import json
import struct

import numpy as np

from sim.glb import Triangles, glb


def test_a_file_holds_its_pieces_y_up() -> None:
    vertices = np.array([(0, 0, 1), (2, 0, 1), (0, 3, 1)], np.float32)
    colours = np.array([(1, 2, 3), (4, 5, 6), (7, 8, 9)], np.uint8)
    uv = np.array([(0, 0), (1, 0), (0, 1)], np.float32)
    faces = np.array([(0, 1, 2)], np.uint32)
    plain = Triangles(vertices, colours, uv, faces, "")
    data = glb([plain, Triangles(vertices + 5, colours, uv, faces, "brick")])
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON" and size % 4 == 0
    document = json.loads(data[20 : 20 + size])
    body_size, body_kind = struct.unpack_from("<I4s", data, 20 + size)
    body = data[28 + size :]
    assert body_kind == b"BIN\0" and document["buffers"] == [{"byteLength": len(body)}]
    assert body_size == len(body)

    def array(number: int, dtype: str, width: int) -> np.ndarray:
        accessor = document["accessors"][number]
        view = document["bufferViews"][accessor["bufferView"]]
        start = view["byteOffset"] + accessor.get("byteOffset", 0)
        step = view.get("byteStride", np.dtype(dtype).itemsize * width)
        rows = [
            np.frombuffer(body, dtype, width, start + i * step) for i in range(accessor["count"])
        ]
        return np.array(rows)

    one, other = document["meshes"][0]["primitives"]
    place = array(one["attributes"]["POSITION"], "<f4", 3)
    assert place.tolist() == [[0, 1, 0], [2, 1, 0], [0, 1, -3]]
    accessor = document["accessors"][one["attributes"]["POSITION"]]
    assert accessor["min"] == place.min(0).tolist() and accessor["max"] == place.max(0).tolist()
    assert array(one["attributes"]["COLOR_0"], "u1", 4).tolist()[1] == [4, 5, 6, 255]
    assert array(one["indices"], "<u4", 1).ravel().tolist() == [0, 1, 2]
    assert "TEXCOORD_0" not in one["attributes"]
    assert array(other["attributes"]["TEXCOORD_0"], "<f4", 2).tolist() == [[0, 0], [1, 0], [0, -1]]
    material = document["materials"][other["material"]]
    image = document["images"][
        document["textures"][material["pbrMetallicRoughness"]["baseColorTexture"]["index"]][
            "source"
        ]
    ]
    view = document["bufferViews"][image["bufferView"]]
    assert body[view["byteOffset"] :].startswith(b"\x89PNG") and view["byteLength"] > 1000
