"""Draws scenes with Habitat-Sim and reads their states back from its simulator.

A scene becomes rigid objects, one for each role in `SEMANTIC_IDS`: floor and walls static, the rest
kinematic, each with its own GLB and its role's semantic id. They stand on a stage that is
loaded once with the simulator: exchanging a stage takes 7 ms, half of it for the cameras, which it
throws away, exchanging all objects 3 ms (one core, pictures of 768 × 768 samples).

Habitat's world is y up: ours (x, y, z) is its (x, z, -y).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Both are read when the libraries load. One thread each: what runs side by side are processes.
os.environ.setdefault("HABITAT_SIM_LOG", "quiet")
os.environ.setdefault("MAGNUM_LOG", "quiet")
os.environ.setdefault("LP_NUM_THREADS", "0")

import habitat_sim
import magnum as mn
from habitat_sim.physics import MotionType

from sim.camera import Camera, CameraError, Frame
from sim.glb import Triangles, glb
from sim.grid import CELL_SIZE
from sim.mesh import Mesh, mesh_of
from sim.models import Point
from sim.photo import develop
from sim.readback import Placed, ReadbackError, grid_size, grouped, only_cell, table_cells
from sim.renderers import Renderer
from sim.scene import SEMANTIC_IDS, Scene
from sim.states import (
    WALL_DOWN,
    WALL_LEFT,
    WALL_RIGHT,
    WALL_UP,
    FrozenLake,
    Maze,
    MiniBehaviour,
    State,
)

#: Samples along each side of a pixel of a colour picture. Pictures so large that the samples would
#: take more than `MAX_BUFFER_SIDE` are drawn with one sample.
SUPERSAMPLING = 3
MAX_BUFFER_SIDE = 4096

# Habitat never lets go of an asset that it loaded: begin anew before they fill the memory.
_SCENES_PER_SIMULATOR = 768

_NEAR, _FAR = 0.02, 200.0  # [m]
_STATIC = ("floor", "wall")  # what the navigation mesh is made of: a hole is where no floor is
_ALONE = ("goal", "robot", "printer", "table")  # roles of one object, with a frame of its own
_ROLES = {number: role for role, number in SEMANTIC_IDS.items()}

# Lengths of the navigation mesh, in cells: a voxel's side and height, the agent's radius and
# height, the highest step that it takes. With a side of 1/8 all of 20,000 states came back; 1/7 and
# 0.16 are a little faster and lose a cell in one of them.
_VOXEL, _VOXEL_HEIGHT = 0.125, 0.06
_AGENT_RADIUS, _AGENT_HEIGHT, _AGENT_CLIMB = 0.1, 0.6, 0.06
_MIN_REGION = 2  # voxels along a side: a single cell between holes is a place to stand

_TO_HABITAT = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
_OPENGL = np.diag([1.0, -1, -1, 1])  # camera frames: OpenCV's x right, y down to OpenGL's y up


class HabitatError(OSError):
    """Habitat-Sim could not start, load what it was given, or was closed."""


class HabitatRenderer(Renderer):
    """Draws one scene after another; use it as a context manager or call `close`.

    It belongs to the thread that made it.

    Attributes:
        simulator: the `habitat_sim.Simulator` that holds the scene drawn last; None before the
            first. Another one takes its place from time to time.
    """

    name = "habitat"

    def __init__(self) -> None:
        self.simulator: habitat_sim.Simulator | None = None
        # In memory where that can be: every scene passes through this folder.
        memory = Path("/dev/shm")
        self._folder = tempfile.TemporaryDirectory(
            prefix="mgsd-habitat-", dir=memory if os.access(memory, os.W_OK) else None
        )
        self._buffers: tuple[int, int, str] | None = None
        self._scene: Scene | None = None
        self._loaded = 0
        self._open = True

    def close(self) -> None:
        """Give back the simulator's memory; drawing afterwards raises HabitatError."""
        self._stop()
        self._folder.cleanup()
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

        Raises:
            CameraError: the camera's principal point is not the middle of the picture or its
                pixels are not square.
        """
        camera = scene.camera if camera is None else camera
        simulator = self._load(scene, camera)
        rgb = develop(colour_picture(simulator, camera), scene.style.photo, scene.style.seed or 0)
        return Frame(
            rgb,
            depth_picture(simulator, camera) if depth else None,
            semantic_picture(simulator, camera) if semantic else None,
        )

    def read_state(self, scene: Scene) -> State:
        """Return the state that stands in the simulator once `scene` is loaded into it.

        Raises:
            sim.readback.ReadbackError: what stands there makes no state.
        """
        return read_state(self._load(scene, scene.camera), scene.cell_size)

    def _load(self, scene: Scene, camera: Camera) -> habitat_sim.Simulator:
        """Put a scene into the simulator unless it is there; return the simulator."""
        if not self._open:
            raise HabitatError("the renderer is closed")
        buffers = (camera.width, camera.height, camera.projection)
        if self._buffers != buffers or self._loaded >= _SCENES_PER_SIMULATOR:
            self._stop()
            self.simulator = open_simulator(stage_files(Path(self._folder.name)), *buffers)
            self._buffers = buffers
        assert self.simulator is not None
        if self._scene is not scene:
            self._scene = None
            _exchange(self.simulator, scene, Path(self._folder.name), self._loaded)
            self._loaded += 1
            self._scene = scene
        return self.simulator

    def _stop(self) -> None:
        if self.simulator is not None:
            self.simulator.close()
        self.simulator, self._scene, self._buffers, self._loaded = None, None, None, 0


# --- The simulator ---


def stage_files(folder: Path) -> Path:
    """Write the stage, a slab out of sight, with its config; return the config's path.

    It is small: the navigation mesh spans all that there is.
    """
    config = folder / "stage.stage_config.json"
    if not config.exists():
        corners = np.array([(-1, -1, -2), (1, -1, -2), (1, 1, -2), (-1, 1, -2)], np.float32)
        slab = Triangles(
            corners,
            np.full((4, 3), 60, np.uint8),
            np.zeros((4, 2), np.float32),
            np.array([(0, 1, 2), (0, 2, 3)], np.uint32),
            "",
        )
        (folder / "stage.glb").write_bytes(glb([slab]))
        # Without a config Habitat takes a stage to be z up and turns it.
        axes = {"up": [0, 1, 0], "front": [0, 0, -1]}
        config.write_text(
            json.dumps({"render_asset": "stage.glb", "force_flat_shading": True} | axes)
        )
    return config


def open_simulator(
    stage: Path | str,
    width: int,
    height: int,
    projection: str = "pinhole",
    dataset: Path | None = None,
) -> habitat_sim.Simulator:
    """Start a simulator with physics and cameras for colour, depth and semantic ids.

    Args:
        stage: path of a stage (GLB or stage config), or the name of a scene of `dataset`.
        width, height: of its pictures [px].
        projection: one of `sim.camera.PROJECTIONS`.
        dataset: a scene-dataset config.

    Raises:
        HabitatError: it did not start; the message holds the simulator's own last words.
    """
    settings = habitat_sim.SimulatorConfiguration()
    settings.gpu_device_id = -1  # EGL's own choice: no CUDA needed
    settings.enable_physics = True
    settings.scene_id = str(stage)
    if dataset is not None:
        settings.scene_dataset_config_file = str(dataset)
    settings.scene_light_setup = habitat_sim.gfx.NO_LIGHT_KEY
    settings.override_scene_light_defaults = True
    settings.load_semantic_mesh = True
    samples = _samples(width, height)
    kinds = habitat_sim.SensorType
    agent = habitat_sim.agent.AgentConfiguration()
    agent.sensor_specifications = [
        _sensor("colour", kinds.COLOR, width * samples, height * samples, projection),
        _sensor("depth", kinds.DEPTH, width, height, projection),
        _sensor("semantic", kinds.SEMANTIC, width, height, projection),
    ]
    with _last_words() as words, _without_image_based_lighting(settings) as mediator:
        try:
            _show_in_own_colours(mediator)
            simulator = habitat_sim.Simulator(
                habitat_sim.Configuration(settings, [agent], mediator)
            )
        except Exception as error:
            raise HabitatError(f"Habitat-Sim cannot load {stage}: {words() or error}") from error
    return simulator


def _sensor(
    name: str, kind: habitat_sim.SensorType, width: int, height: int, projection: str
) -> habitat_sim.CameraSensorSpec:
    spec = habitat_sim.CameraSensorSpec()
    spec.uuid = name
    spec.sensor_type = kind
    spec.sensor_subtype = (
        habitat_sim.SensorSubType.PINHOLE
        if projection == "pinhole"
        else habitat_sim.SensorSubType.ORTHOGRAPHIC
    )
    spec.resolution = [height, width]
    spec.position = mn.Vector3(0.0)
    spec.ortho_scale = 1.0
    spec.near, spec.far = _NEAR, _FAR
    if kind != habitat_sim.SensorType.COLOR:
        spec.channels = 1
    return spec


def _samples(width: int, height: int) -> int:
    return SUPERSAMPLING if max(width, height) * SUPERSAMPLING <= MAX_BUFFER_SIDE else 1


def _show_in_own_colours(mediator: habitat_sim.metadata.MetadataMediator) -> None:
    """Let a dataset's objects be drawn as stages are, light and shade being part of their colours.

    Else they are black: there are no lights.
    """
    templates = mediator.object_template_manager
    for handle in templates.get_file_template_handles():
        template = templates.get_template_by_handle(handle)
        template.force_flat_shading = True
        templates.register_template(template, handle)
    templates = mediator.ao_template_manager
    for handle in templates.get_template_handles():
        template = templates.get_template_by_handle(handle)
        template.shader_type = "flat"
        templates.register_template(template, handle)


@contextlib.contextmanager
def _without_image_based_lighting(
    settings: habitat_sim.SimulatorConfiguration,
) -> Iterator[habitat_sim.metadata.MetadataMediator]:
    """Yield a mediator that knows no environment map.

    With one, a simulator computes image-based lighting for ten seconds when it starts, though
    nothing here is lit by it. The setting is read from below the working directory and from nowhere
    else: change there for as long as it is read, so that pictures do not depend on where one is.
    """
    here = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="mgsd-habitat-") as folder:
        data = Path(folder) / "data"
        data.mkdir()
        lighting = {"enable_ibl": False, "ibl_envmap_filename": "none"}
        (data / "default.pbr_config.json").write_text(json.dumps(lighting))
        os.chdir(folder)
        try:
            mediator = habitat_sim.metadata.MetadataMediator(settings)
        finally:
            os.chdir(here)
        yield mediator


@contextlib.contextmanager
def _last_words() -> Iterator[Any]:
    """Keep what the C++ side writes to stderr; yield a function that returns its last error.

    Habitat complains of the missing environment map each time, and a user should read of real
    trouble in one line.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as kept:

        def last() -> str:
            kept.seek(0)
            lines = kept.read().decode(errors="replace").splitlines()
            told = [line for line in lines if line.strip() and "IBL" not in line]
            told = [line for line in told if "AnyImageImporter" not in line]
            return told[-1].rpartition(": ")[2].strip() if told else ""

        os.dup2(kept.fileno(), 2)
        try:
            yield last
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


# --- Scenes ---


def _exchange(simulator: habitat_sim.Simulator, scene: Scene, folder: Path, number: int) -> None:
    """Take everything out of a simulator and put a scene's objects in."""
    objects = simulator.get_rigid_object_manager()
    objects.remove_all_objects()
    mesh = mesh_of(scene)
    for role, semantic_id in SEMANTIC_IDS.items():
        if any(thing.role == role for thing in scene.objects):
            add_role(simulator, scene, mesh, role, folder / f"{number}-{role}.glb", semantic_id)
    if not simulator.recompute_navmesh(simulator.pathfinder, _navmesh_settings(scene.cell_size)):
        raise HabitatError("Habitat-Sim found no floor to stand on in a scene")


def add_role(
    simulator: habitat_sim.Simulator,
    scene: Scene,
    mesh: Mesh,
    role: str,
    path: Path,
    semantic_id: int,
) -> Any:
    """Put all of a scene's objects of one role into a simulator as one rigid object; return it.

    Args:
        simulator: that takes it.
        scene: that holds the objects.
        mesh: of the scene.
        role: of which the scene has at least one object.
        path: of a file that is there while Habitat loads it. Habitat keeps what it loaded by this
            name: use another each time.
        semantic_id: of its pixels.

    Raises:
        HabitatError: the simulator cannot load it.
    """
    templates = simulator.get_object_template_manager()
    chosen = [i for i, thing in enumerate(scene.objects) if thing.role == role]
    path.write_bytes(glb(_pieces(scene, mesh, chosen, own_frame=role in _ALONE)))
    name = f"mgsd-{role}"
    if templates.get_library_has_handle(name):
        template = templates.get_template_by_handle(name)
    else:
        template = templates.create_new_template(name, False)
        template.force_flat_shading = True
        template.is_collidable = role in _ALONE
        # Else Habitat moves an object's frame to the middle of its box.
        template.compute_COM_from_shape = False
        template.com = mn.Vector3(0.0)
    template.render_asset_handle = template.collision_asset_handle = str(path)
    template.semantic_id = semantic_id
    templates.register_template(template, name)
    thing = simulator.get_rigid_object_manager().add_object_by_template_handle(
        name, light_setup_key=habitat_sim.gfx.NO_LIGHT_KEY
    )
    path.unlink()
    if thing is None:
        raise HabitatError(f"Habitat-Sim cannot load the {role} of a scene")
    if role in _ALONE:
        meant = scene.objects[chosen[0]]
        thing.translation = to_habitat(meant.position)
        thing.rotation = mn.Quaternion.rotation(mn.Rad(meant.yaw), mn.Vector3.y_axis())
    thing.motion_type = MotionType.STATIC if role in _STATIC else MotionType.KINEMATIC
    return thing


def _pieces(scene: Scene, mesh: Mesh, chosen: list[int], own_frame: bool) -> list[Triangles]:
    """Return the triangles of some objects, one piece for each run of them with one texture."""
    vertices = mesh.vertices if own_frame else mesh.world
    pieces = []
    first = 0
    for i, number in enumerate(chosen):
        following = chosen[i + 1] if i + 1 < len(chosen) else -1
        texture = scene.objects[number].texture
        if following == number + 1 and scene.objects[following].texture == texture:
            continue
        low, faces_low = (
            _start(mesh.vertex_ends, chosen[first]),
            _start(mesh.face_ends, chosen[first]),
        )
        rows = slice(low, mesh.vertex_ends[number])
        faces = mesh.faces[faces_low : mesh.face_ends[number]] - low
        pieces.append(Triangles(vertices[rows], mesh.colours[rows], mesh.uv[rows], faces, texture))
        first = i + 1
    return pieces


def _start(ends: NDArray[np.int64], number: int) -> np.uint32:
    return np.uint32(ends[number - 1] if number else 0)


def _navmesh_settings(cell_size: float) -> habitat_sim.NavMeshSettings:
    settings = habitat_sim.NavMeshSettings()
    settings.set_defaults()
    settings.cell_size = _VOXEL * cell_size
    settings.cell_height = _VOXEL_HEIGHT * cell_size
    settings.agent_radius = _AGENT_RADIUS * cell_size
    settings.agent_height = _AGENT_HEIGHT * cell_size
    settings.agent_max_climb = _AGENT_CLIMB * cell_size
    settings.region_min_size = _MIN_REGION
    settings.include_static_objects = True
    return settings


def to_habitat(point: Point) -> mn.Vector3:
    """Return a point of our world in Habitat's."""
    x, y, z = point
    return mn.Vector3(x, z, -y)


# --- Truth ---


def read_state(simulator: habitat_sim.Simulator, cell_size: float = CELL_SIZE) -> State:
    """Return the symbolic state, recovered from a simulator alone.

    Rigid objects say by their semantic ids what they are and by their poses where; floor and holes
    together span the grid; the navigation mesh says on which cells one can stand, and between which
    one can walk.

    Raises:
        sim.readback.ReadbackError: what stands there makes no state.
    """
    by_role = grouped(_placed(thing) for thing in _objects(simulator))
    size = grid_size(by_role.get("floor", []) + by_role.get("hole", []), cell_size)
    cells = [(row, column) for row in range(size) for column in range(size)]
    closed = frozenset(c for c in cells if not _can_stand(simulator, *c, size, cell_size))
    robot = only_cell("robot", by_role, size, cell_size)
    try:
        if "printer" not in by_role and "wall" not in by_role:
            goal = only_cell("goal", by_role, size, cell_size)
            return FrozenLake(size, robot, goal, closed)
        if closed:
            raise ReadbackError(f"there is no floor to stand on in {sorted(closed)}")
        if "printer" in by_role:
            printer = only_cell("printer", by_role, size, cell_size)
            return MiniBehaviour(size, robot, printer, table_cells(by_role, size, cell_size))
        goal = only_cell("goal", by_role, size, cell_size)
        return Maze(size, robot, goal, _wall_bits(simulator, size, cell_size))
    except ReadbackError:
        raise
    except ValueError as error:
        raise ReadbackError(f"what is there is no valid state: {error}") from error


def _objects(simulator: habitat_sim.Simulator) -> list[Any]:
    return list(simulator.get_rigid_object_manager().get_objects_by_handle_substring("").values())


def _placed(thing: Any) -> Placed:
    """Return what a rigid object is and where, in our world."""
    if thing.semantic_id not in _ROLES:
        raise ReadbackError(f"{thing.handle} has the unknown semantic id {thing.semantic_id}")
    low, high = bounds(thing)
    place = thing.translation
    return Placed(_ROLES[thing.semantic_id], (place.x, -place.z, place.y), low, high)


def bounds(thing: Any) -> tuple[Point, Point]:
    """Return two corners of a rigid object's axis-aligned bounding box in our world [m]."""
    box, matrix = thing.aabb, np.array(thing.transformation)
    half = np.abs(matrix[:3, :3]) @ (np.array(box.size()) / 2)
    x, y, z = matrix[:3, :3] @ np.array(box.center()) + matrix[:3, 3]
    middle, reach = np.array((x, -z, y)), half[[0, 2, 1]]
    return tuple((middle - reach).tolist()), tuple((middle + reach).tolist())


def _can_stand(
    simulator: habitat_sim.Simulator, row: float, column: float, size: int, cell_size: float
) -> bool:
    """Return whether the navigation mesh has floor at a place given in rows and columns."""
    middle = (size - 1) / 2
    point = np.array([(column - middle) * cell_size, 0.0, (row - middle) * cell_size], np.float32)
    return simulator.pathfinder.is_navigable(point, 3 * _VOXEL_HEIGHT * cell_size)


def _wall_bits(
    simulator: habitat_sim.Simulator, size: int, cell_size: float
) -> tuple[tuple[int, ...], ...]:
    """Return the walls between cells where nobody can stand; `Maze` itself walls the border."""
    bits = [[0] * size for _ in range(size)]
    for row in range(size):
        for column in range(size):
            if column + 1 < size and not _can_stand(simulator, row, column + 0.5, size, cell_size):
                bits[row][column] |= WALL_RIGHT
                bits[row][column + 1] |= WALL_LEFT
            if row + 1 < size and not _can_stand(simulator, row + 0.5, column, size, cell_size):
                bits[row][column] |= WALL_DOWN
                bits[row + 1][column] |= WALL_UP
    return tuple(map(tuple, bits))


# --- Pictures ---


def colour_picture(
    simulator: habitat_sim.Simulator, camera: Camera, ceiling: float | None = None
) -> Image.Image:
    """Return what a camera sees, samples averaged; nothing higher than `ceiling` [m] is drawn."""
    pixels = _observe(simulator, "colour", camera, ceiling)
    size = pixels.shape[1::-1]
    picture = Image.frombuffer("RGBX", size, pixels.data, "raw", "RGBX", 0, 1)
    samples = _samples(camera.width, camera.height)
    if samples > 1:
        picture = picture.reduce(samples)
    return picture.convert("RGB")


def depth_picture(simulator: habitat_sim.Simulator, camera: Camera) -> NDArray[np.float32]:
    """Return distances along the optical axis [m], float32 [height, width]; 0: nothing there."""
    depth = _observe(simulator, "depth", camera).astype(np.float64)
    if camera.projection == "orthographic":
        depth = _orthographic_depth(depth)
    return depth.astype(np.float32)


def _orthographic_depth(depth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Undo the perspective division that Habitat applies to an orthographic picture as well.

    It gives b / (d + a) for the depth buffer's d, 0 at the near plane and 1 at the far one, with a
    and b from the projection matrix (Magnum's calculateDepthUnprojection).
    """
    reach = _FAR - _NEAR
    a, b = -1 / reach - 0.5, -_NEAR / reach - 0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        buffer = b / depth - a
    return np.where((depth != 0) & (buffer < 1), _NEAR + buffer * reach, 0.0)


def semantic_picture(
    simulator: habitat_sim.Simulator, camera: Camera, ceiling: float | None = None
) -> NDArray[np.uint16]:
    """Return the semantic id at each pixel's centre, uint16 [height, width]; 0: stage or none.

    Nothing higher than `ceiling` [m] is drawn.
    """
    return _observe(simulator, "semantic", camera, ceiling).astype(np.uint16)


def _observe(
    simulator: habitat_sim.Simulator, name: str, camera: Camera, ceiling: float | None = None
) -> NDArray[Any]:
    """Draw one picture; return what the sensor holds, first row at the top."""
    middle = ((camera.width - 1) / 2, (camera.height - 1) / 2)
    if not np.allclose((camera.cx, camera.cy), middle, atol=1e-6) or camera.fx != camera.fy:
        raise CameraError(
            f"Habitat-Sim's cameras have square pixels and their principal point in the middle, "
            f"{middle}; this one has fx, fy = {camera.fx}, {camera.fy} and cx, cy = "
            f"{camera.cx}, {camera.cy}"
        )
    wrapper = simulator.sensors[name]
    sensor = wrapper.sensor_object
    pose = _TO_HABITAT @ camera.matrix() @ _OPENGL
    outer, near = np.eye(4), _NEAR
    if ceiling is not None and camera.projection == "orthographic":
        outer, pose = _without_ceiling(pose, ceiling)
    elif ceiling is not None:
        near = float(pose[1, 3]) - ceiling
        if not near >= _NEAR or abs(pose[1, 2] - 1) > 1e-9:
            raise CameraError(
                "a ceiling is only cut from the picture of an orthographic camera, or of one that "
                "looks straight down from above it"
            )
    sensor.near_plane_dist = near
    simulator.agents[0].scene_node.transformation = mn.Matrix4(outer.T.tolist())
    sensor.node.transformation = mn.Matrix4(pose.T.tolist())
    if camera.projection == "pinhole":
        sensor.fov = mn.Rad(2 * math.atan(camera.width / 2 / camera.fx))
    else:
        sensor.reset_zoom()
        sensor.zoom(camera.fx / camera.width)
    wrapper.draw_observation()
    return np.ascontiguousarray(wrapper.get_observation())


def _without_ceiling(
    pose: NDArray[np.float64], ceiling: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return an orthographic camera's pose sheared such that its near plane is level, at `ceiling`.

    Where a point lands in the picture does not change, only its place in the depth buffer: that
    falls with its height, as it does along every ray that goes down.

    A node of Habitat's can turn and stretch but not shear; a node within another can: the product
    of the two matrices that are returned is the pose, by its singular value decomposition.
    """
    view = np.linalg.inv(pose)
    view[2] = (0, 1, 0, -ceiling - _NEAR)
    sheared = np.linalg.inv(view)
    turn, stretch, rest = np.linalg.svd(sheared[:3, :3])
    handed = np.linalg.det(turn)  # 1 or -1: neither matrix may mirror
    outer, inner = np.eye(4), np.eye(4)
    outer[:3, :3], outer[:3, 3] = handed * turn * stretch, sheared[:3, 3]
    inner[:3, :3] = handed * rest
    return outer, inner
