"""Draws scenes with Panda3D's software renderer: no display, no GPU, no system package.

A scene becomes a scene graph with one node an object; the picture is drawn from it and the truth
is read back from it. The software pipe draws without anti-aliasing and snaps corners to whole
pixels, so pictures are drawn `SUPERSAMPLING` times as large and averaged.
"""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
from numpy.typing import NDArray
from panda3d import core
from PIL import Image

from sim.camera import Camera, Frame
from sim.mesh import mesh_of
from sim.photo import develop
from sim.readback import Placed, read_state
from sim.renderers import Renderer
from sim.scene import BACKGROUND, Scene
from sim.states import State
from sim.textures import SIDE, texture

core.load_prc_file_data(
    "mgsd",
    "\n".join(
        [
            "load-display p3tinydisplay",
            "window-type offscreen",
            "audio-library-name null",
            "notify-level error",
            # The cache would keep the transforms of every scene ever drawn.
            "transform-cache false",
        ]
    ),
)

#: Samples along each side of a pixel of a colour picture.
SUPERSAMPLING = 3

#: The same where only the one at a pixel's centre is taken. The software pipe draws surfaces up to
#: half a sample larger on all sides than they are.
CENTRE_SUPERSAMPLING = 7

#: Pictures so large that their samples would take more are drawn with fewer.
MAX_BUFFER_SIDE = 4096

_NEAREST = 0.01  # [m]
_names = itertools.count()


class RendererError(OSError):
    """Panda3D could not open its software renderer, or the renderer was closed."""


class PandaRenderer(Renderer):
    """Draws one scene after another; use it as a context manager or call `close`.

    It belongs to the thread that made it.
    """

    name = "panda"

    def __init__(self) -> None:
        self._engine = core.GraphicsEngine()
        self._buffer = _open_buffer(self._engine)
        self._size = (1, 1)
        self._texture = core.Texture()
        self._buffer.add_render_texture(
            self._texture, core.GraphicsOutput.RTM_copy_ram, core.GraphicsOutput.RTP_color
        )
        self._eye = core.NodePath(core.Camera("camera"))
        self._buffer.make_display_region().set_camera(self._eye)
        self._root = core.NodePath("scene")
        self._scene: Scene | None = None
        self._open = True

    def close(self) -> None:
        """Give back the renderer's memory; drawing afterwards raises RendererError."""
        if not self._open:
            return
        for used in self._root.find_all_textures():
            used.release_all()
        # Panda3D 1.10 never frees the memory of a software buffer, but it does when it resizes it.
        self._resize((1, 1))
        self._engine.render_frame()
        self._engine.remove_all_windows()
        self._root.remove_node()
        self._scene = None
        self._open = False

    def render(
        self,
        scene: Scene,
        camera: Camera | None = None,
        depth: bool = False,
        semantic: bool = False,
    ) -> Frame:
        """Return what `camera` (default: the scene's own) sees of a scene.

        Equal arguments give equal bytes.
        """
        camera = scene.camera if camera is None else camera
        self._load(scene)
        samples = self._aim(camera, SUPERSAMPLING)
        rgb = develop(self._draw(samples), scene.style.photo, scene.style.seed or 0)
        if not depth and not semantic:
            return Frame(rgb)
        faces = self._visible_faces(self._aim(camera, CENTRE_SUPERSAMPLING))
        return Frame(
            rgb,
            self._depth(faces, camera) if depth else None,
            self._face_ids[faces] if semantic else None,
        )

    def read_state(self, scene: Scene) -> State:
        """Return the state that stands in the scene graph which is drawn for a scene.

        Raises:
            sim.readback.ReadbackError: what stands there makes no state.
        """
        self._load(scene)
        nodes = [node for node in self._root.children if node.get_tag("role") not in BACKGROUND]
        things = [_placed(node, self._root) for node in nodes]
        return read_state(things, scene.cell_size, scene.state.family)

    def _load(self, scene: Scene) -> None:
        """Build the scene graph of a scene unless it is there."""
        if not self._open:
            raise RendererError("the renderer is closed")
        if scene is self._scene:
            return
        mesh = mesh_of(scene)
        self._root.remove_node()
        self._root = core.NodePath("scene")
        # In the order of the nodes: Panda3D's own order goes by memory addresses, and the order
        # decides which of two surfaces at one depth is seen.
        self._root.set_bin("unsorted", 0)
        face_starts = np.concatenate([[0], mesh.face_ends])
        data = _vertex_data(mesh.vertices, mesh.colours, mesh.uv)
        for i, thing in enumerate(scene.objects):
            node = core.GeomNode(thing.name)
            node.add_geom(_geom(data, mesh.faces[face_starts[i] : face_starts[i + 1]]))
            node.set_tag("role", thing.role)
            path = self._root.attach_new_node(node)
            path.set_pos_hpr(*thing.position, math.degrees(thing.yaw), 0, 0)
            if thing.texture:
                path.set_texture(_texture(thing.texture))
        self._faces = mesh.world[mesh.faces]
        # All but the ground, which may reach behind the camera.
        self._corners = mesh.world[mesh.vertex_ends[0] :]
        ids = np.array([thing.semantic_id for thing in scene.objects], np.uint16)
        per_object = np.repeat(ids, np.diff(mesh.face_ends, prepend=0))
        self._face_ids = np.concatenate([np.zeros(1, np.uint16), per_object])
        self._scene = scene

    def _aim(self, camera: Camera, samples: int) -> int:
        """Set size, lens and pose; return the samples along a pixel's side, an odd number."""
        width, height = camera.width, camera.height
        while samples > 1 and max(width, height) * samples > MAX_BUFFER_SIDE:
            samples -= 2
        size = (width * samples, height * samples)
        self._resize(size)
        pinhole = camera.projection == "pinhole"
        lens = core.PerspectiveLens() if pinhole else core.OrthographicLens()
        # As close around the scene as can be: the software pipe's depth buffer is coarse.
        depths = camera.depth_of(self._corners)
        lens.set_near_far(max(_NEAREST, 0.5 * depths.min()), max(1.0, 5 * depths.max()))
        # In samples; the edge of the picture at 0, the centre of the first sample at 0.5.
        fx, fy = camera.fx * samples, camera.fy * samples
        cx, cy = (camera.cx + 0.5) * samples, (camera.cy + 0.5) * samples
        # The software pipe maps its view to size - 0.5 samples: make the view that much smaller.
        view = (size[0] - 0.5, size[1] - 0.5)
        film = np.array([view[0], view[1] * fx / fy])
        offset = np.array([view[0] / 2 - cx, (cy - view[1] / 2) * fx / fy])
        if pinhole:
            lens.set_focal_length(fx)
        else:
            film, offset = film / fx, offset / fx  # the film of an orthographic lens is in metres
        lens.set_film_size(*film)
        lens.set_film_offset(*offset)
        self._eye.node().set_lens(lens)
        pose = camera.matrix()
        # A Panda3D camera looks along its y axis, with x to the right and z up; its matrices act
        # on row vectors.
        right, down, forward, place = pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3]
        rows = [(*right, 0), (*forward, 0), (*-down, 0), (*place, 1)]
        self._eye.set_mat(core.LMatrix4(*itertools.chain(*rows)))
        return samples

    def _resize(self, size: tuple[int, int]) -> None:
        if size != self._size:
            self._buffer.set_size(*size)
            self._size = size

    def _draw_samples(self, root: core.NodePath) -> NDArray[np.uint8]:
        """Draw what hangs under `root`; return the samples as they lie in memory until the next.

        They are BGRX, first row at the bottom.
        """
        self._eye.reparent_to(root)
        self._engine.render_frame()
        self._eye.detach_node()
        width, height = self._size
        data = np.frombuffer(memoryview(self._texture.get_ram_image()), np.uint8)
        return data.reshape(height, width, 4)

    def _draw(self, samples: int) -> Image.Image:
        """Return the scene as an RGB picture, samples averaged."""
        drawn = self._draw_samples(self._root)
        if samples > 1:
            # What Pillow takes for red is blue, which does not matter to it.
            picture = Image.frombuffer("RGBX", self._size, drawn, "raw", "RGBX", 0, 1)
            drawn = np.asarray(picture.reduce(samples))
        return Image.fromarray(np.ascontiguousarray(drawn[::-1, :, 2::-1]))

    def _visible_faces(self, samples: int) -> NDArray[np.intp]:
        """Return the number of the face at every pixel's centre, [height, width]; 0: none.

        Every face is drawn in a flat colour that is its number.
        """
        numbers = np.arange(1, len(self._faces) + 1, dtype="<u4")
        colours = np.repeat(numbers.view(np.uint8).reshape(-1, 4)[:, :3], 3, axis=0)
        corners = self._faces.reshape(-1, 3)
        node = core.GeomNode("faces")
        order = np.arange(len(corners), dtype=np.uint32).reshape(-1, 3)
        node.add_geom(_geom(_vertex_data(corners, colours, corners[:, :2]), order))
        middle = samples // 2
        drawn = self._draw_samples(core.NodePath(node))[middle::samples, middle::samples]
        blue, green, red = np.moveaxis(drawn[::-1, :, :3].astype(np.intp), 2, 0)
        return red + (green << 8) + (blue << 16)

    def _depth(self, faces: NDArray[np.intp], camera: Camera) -> NDArray[np.float32]:
        """Return where the rays through the pixels' centres meet the planes of their faces."""
        corners = self._faces.astype(np.float64)
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        v, u = np.nonzero(faces)
        index = faces[v, u] - 1
        starts, rays = camera.rays(np.stack([u, v], axis=1))
        distances = ((corners[index, 0] - starts) * normals[index]).sum(axis=1)
        depth = np.zeros(faces.shape, np.float32)
        depth[v, u] = distances / (rays * normals[index]).sum(axis=1)
        return depth


@cache
def _texture(name: str) -> core.Texture:
    """Return a texture for all renderers."""
    made = core.Texture(name)
    made.setup_2d_texture(SIDE, SIDE, core.Texture.T_unsigned_byte, core.Texture.F_rgb)
    # Panda3D keeps pictures as BGR, first row at the bottom.
    made.set_ram_image(texture(name)[::-1, :, ::-1].tobytes())
    made.set_wrap_u(core.SamplerState.WM_repeat)
    made.set_wrap_v(core.SamplerState.WM_repeat)
    made.set_minfilter(core.SamplerState.FT_linear)
    made.set_magfilter(core.SamplerState.FT_linear)
    return made


def _open_buffer(engine: core.GraphicsEngine) -> core.GraphicsBuffer:
    """Open a buffer of one pixel on the software pipe."""
    pipe = core.GraphicsPipeSelection.get_global_ptr().make_pipe(
        "TinyOffscreenGraphicsPipe", "p3tinydisplay"
    )
    properties = core.FrameBufferProperties()
    properties.set_rgba_bits(8, 8, 8, 8)
    properties.set_depth_bits(24)
    flags = core.GraphicsPipe.BF_refuse_window | core.GraphicsPipe.BF_resizeable
    size = core.WindowProperties(size=(1, 1))
    buffer = pipe and engine.make_output(pipe, f"mgsd{next(_names)}", 0, properties, size, flags)
    if not buffer:
        raise RendererError("Panda3D cannot open its software renderer (p3tinydisplay) here")
    buffer.set_clear_color((0, 0, 0, 0))
    return buffer


_FORMAT = core.GeomVertexFormat.get_v3c4t2()
_ROW = np.dtype([("vertex", "<f4", 3), ("colour", "u1", 4), ("uv", "<f4", 2)])


def _vertex_data(
    vertices: NDArray[np.float32], colours: NDArray[np.uint8], uv: NDArray[np.float32]
) -> core.GeomVertexData:
    rows = np.empty(len(vertices), _ROW)
    rows["vertex"] = vertices
    rows["colour"][:, :3] = colours
    rows["colour"][:, 3] = 255
    rows["uv"] = uv
    data = core.GeomVertexData("", _FORMAT, core.Geom.UH_static)
    data.unclean_set_num_rows(len(rows))
    memoryview(data.modify_array(0)).cast("B")[:] = rows.tobytes()
    return data


def _geom(data: core.GeomVertexData, faces: NDArray[np.uint32]) -> core.Geom:
    triangles = core.GeomTriangles(core.Geom.UH_static)
    triangles.set_index_type(core.Geom.NT_uint32)
    indices = triangles.modify_vertices()
    indices.unclean_set_num_rows(faces.size)
    memoryview(indices).cast("B")[:] = faces.astype("<u4").tobytes()
    geom = core.Geom(data)
    geom.add_primitive(triangles)
    return geom


def _placed(path: core.NodePath, root: core.NodePath) -> Placed:
    x, y, z = path.get_pos(root)
    low, high = path.get_tight_bounds(root)
    return Placed(path.get_tag("role"), (x, y, z), tuple(low), tuple(high))
