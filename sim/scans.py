"""Opens scans in Habitat-Sim and draws tasks in them.

The truth comes from the scan's navigation mesh, see `sim.occupancy`; robot and goal are put into
the scan as objects and read back from there.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from sim import models
from sim.camera import Camera
from sim.episodes import Episode, style_seed
from sim.grid import cell_centre, make_grid
from sim.habitat import (
    add_role,
    colour_picture,
    open_simulator,
    semantic_picture,
    to_habitat,
)
from sim.mesh import mesh_of
from sim.models import MODELS, Point
from sim.occupancy import (
    ScanError,
    Target,
    Task,
    cut_state,
    draw_task,
    find_aims,
    find_windows,
)
from sim.photo import develop
from sim.planning import solve
from sim.readback import TOLERANCE, ReadbackError, check_state
from sim.scan_request import ScanRequest, check_files
from sim.scan_survey import (
    choose_storey,
    floor_height,
    freeze,
    ground_at,
    make_navmesh,
    objects_of,
    occupancy_of,
    scene_handle,
    storeys_of,
    targets_of,
)
from sim.scene import MARGIN, Scene, SceneObject
from sim.states import Cell, FrozenLake, Maze, State, StateError
from sim.style import Style, make_style

#: Semantic ids of the robot and the goal, above those of any scan.
MARKERS = {"goal": 65004, "robot": 65005}

#: Share of a cell's area in the picture that robot and goal must each be seen on.
MIN_SEEN = 0.08

_DISTANCE = 3.0  # of the camera, in sides of the window
_ABOVE = 1.0  # of the camera above the height of the cut, at least [m]
_VIEW_TRIES = 50


class Scan:
    """A scan that is open in a simulator; use it as a context manager or call `close`.

    It belongs to the thread that made it.

    Attributes:
        simulator: that holds it.
        storeys: heights of its storeys' floors [m], the one with most room first.
        floor: height of the storey that tasks are cut from [m].
        grid: of that storey.
        targets: things on that storey that have a category and a free cell before them.
    """

    def __init__(self, request: ScanRequest) -> None:
        """Open a scan.

        Raises:
            ScanError: its files are damaged, it has no floor, or no such tasks.
            sim.habitat.HabitatError: the simulator does not load it.
        """
        check_files(request)
        self.request = request
        size, projection = request.size, request.projection
        if request.dataset:
            dataset = Path(request.dataset).resolve()
            scene = scene_handle(dataset, request.scene)
            self.simulator = open_simulator(scene, size, size, projection, dataset)
        else:
            stage = Path(request.scene).resolve()
            self.simulator = open_simulator(stage, size, size, projection)
        self._folder = tempfile.TemporaryDirectory(prefix="mgsd-scan-")
        self._drawn = 0
        try:
            things = freeze(self.simulator)
            make_navmesh(self.simulator, request)
            self.storeys = storeys_of(self.simulator)
            self.floor = choose_storey(self.storeys, request.floor)
            self.grid = occupancy_of(self.simulator, self.floor, request.cell_size)
            self.floor = floor_height(self.simulator, self.grid, self.floor)
            self.targets = targets_of(self.simulator, things, self.grid, self.floor)
            self._windows = find_windows(self.grid, request.family, request.level)
            self._aims = find_aims(self.targets, self._windows, request.level)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Scan:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back the simulator's memory."""
        self.simulator.close()
        self._folder.cleanup()

    def draw(self, seed: int) -> tuple[Episode, Target | None]:
        """Return the episode of a seed, and the thing at its goal where there is one.

        Robot and goal are seen in its picture.

        Raises:
            ScanError: there is no such task.
            sim.readback.ReadbackError: robot or goal do not stand in the simulator where the state
                says.
        """
        request = self.request
        style_number = style_seed(request.family, request.level, request.split, seed)
        style = make_style(style_number, request.styles)
        for attempt in range(_VIEW_TRIES):
            task = self.task(seed, attempt)
            camera = self.camera(task.corner)
            self.place(task, style)
            state = check_state(self.read_state(task.corner), task.state)
            if min(self.seen(task, camera).values()) >= MIN_SEEN:
                break
        else:
            raise ScanError(
                f"robot or goal is hidden in {_VIEW_TRIES} tasks of {request.scene}: take a lower "
                "--cut-height or --view top"
            )
        plan = solve(state)
        assert plan is not None, "start and goal are connected"
        picture = colour_picture(self.simulator, camera, self.floor + request.cut_height)
        episode = Episode(
            image=develop(picture, style.photo, style_number),
            camera=camera,
            grid=make_grid(state.size, camera, request.cell_size, self._origin(task.corner)),
            state=state,
            plan=plan,
            seed=seed,
            styles=request.styles,
            style=style_number,
            renderer="habitat",
            family=request.family,
            level=request.level,
            split=request.split,
        )
        return episode, task.target

    def task(self, seed: int, attempt: int = 0) -> Task:
        """Return a task of a seed; see `sim.occupancy.draw_task`."""
        request = self.request
        what = (request.family, request.level, self._windows, self._aims, request.split)
        return draw_task(self.grid, *what, seed, attempt)

    def camera(self, corner: Cell) -> Camera:
        """Return the camera over the window that begins at a cell."""
        request = self.request
        side = request.level * request.cell_size
        x, y, floor = self._origin(corner)
        middle = (x + (side - request.cell_size) / 2, y - (side - request.cell_size) / 2, floor)
        return scan_camera(middle, side, request)

    def place(self, task: Task, style: Style) -> None:
        """Put robot and goal into the scan in place of those of another task."""
        objects = self.simulator.get_rigid_object_manager()
        for thing in self._markers().values():
            objects.remove_object_by_id(thing.object_id)
        scene = _markers_scene(task.state, style, self.request.cell_size, self.camera(task.corner))
        mesh = mesh_of(scene)
        for role, cell in zip(("goal", "robot"), _ends(task.state), strict=True):
            path = Path(self._folder.name) / f"{self._drawn}-{role}.glb"
            x, y = self.grid.centre((task.corner[0] + cell[0], task.corner[1] + cell[1]))
            ground = ground_at(self.simulator, x, y, self.floor)
            thing = add_role(self.simulator, scene, mesh, role, path, MARKERS[role])
            thing.translation = to_habitat((x, y, self.floor if ground is None else ground))
        self._drawn += 1

    def read_state(self, corner: Cell) -> State:
        """Return the state of the window that begins at a cell, its ends read from the simulator.

        Raises:
            sim.readback.ReadbackError: robot or goal is not there or not in the centre of a free
                cell.
        """
        request, markers = self.request, self._markers()
        cells = []
        for role in ("goal", "robot"):
            if role not in markers:
                raise ReadbackError(f"there is no {role} in the scan")
            place = markers[role].translation
            x, y = self.grid.origin
            exact = ((y + place.z) / request.cell_size, (place.x - x) / request.cell_size)
            cell = (round(exact[0]), round(exact[1]))
            if math.dist(cell, exact) > TOLERANCE:
                raise ReadbackError(
                    f"{role} at ({place.x:.3f}, {-place.z:.3f}) m stands in the centre of no cell"
                )
            cells.append(cell)
        goal, start = cells
        try:
            return cut_state(self.grid, request.family, request.level, corner, start, goal)
        except StateError as error:
            raise ReadbackError(f"robot or goal stand where they cannot: {error}") from error

    def seen(self, task: Task, camera: Camera) -> dict[str, float]:
        """Return on which share of a cell's area in the picture robot and goal are seen."""
        ceiling = self.floor + self.request.cut_height
        shown = semantic_picture(self.simulator, camera, ceiling)
        x, y, z = self._origin(task.corner)
        step = self.request.cell_size
        corner, along, down = camera.project([(x, y, z), (x + step, y, z), (x, y - step, z)])
        area = abs(float(np.linalg.det([along - corner, down - corner])))
        return {role: float((shown == number).sum()) / area for role, number in MARKERS.items()}

    def _origin(self, corner: Cell) -> Point:
        return (*self.grid.centre(corner), self.floor)

    def _markers(self) -> dict[str, Any]:
        roles = {number: role for role, number in MARKERS.items()}
        objects = objects_of(self.simulator.get_rigid_object_manager())
        return {roles[thing.semantic_id]: thing for thing in objects if thing.semantic_id in roles}


# --- Pictures ---


def scan_camera(middle: Point, side: float, request: ScanRequest) -> Camera:
    """Return a camera over a square of the floor that it shows whole, with a margin.

    Args:
        middle: of the square [m].
        side: of the square [m].
        request: says from where and how it looks.
    """
    tilt = math.radians(request.tilt) if request.view == "oblique" else 0.0
    distance = max(_DISTANCE * side, (request.cut_height + _ABOVE) / math.cos(tilt))
    back = np.array([0.0, -math.sin(tilt), math.cos(tilt)])
    eye = (np.array(middle) + distance * back).tolist()
    size = request.size
    unit = Camera.looking_at(eye, middle, (0, 1, 0), size, size, 1.0, request.projection)
    reach = side / 2 * (1 + 2 * MARGIN)
    x, y, z = middle
    corners = [(x + i * reach, y + j * reach, z) for i in (-1, 1) for j in (-1, 1)]
    spread = np.abs(unit.project(corners) - (unit.cx, unit.cy)).max()
    focal = size / 2 / float(spread)
    return Camera.looking_at(eye, middle, (0, 1, 0), size, size, focal, request.projection)


def _ends(state: State) -> tuple[Cell, Cell]:
    """Return the cells of the goal and the robot."""
    assert isinstance(state, FrozenLake | Maze)
    return state.goal, state.start


def _markers_scene(state: State, style: Style, cell_size: float, camera: Camera) -> Scene:
    """Return a scene with nothing but the goal and the robot of a state."""
    goal, start = (cell_centre(cell, state.size, cell_size) for cell in _ends(state))
    number = {kind: style.models[kind] % MODELS[kind] for kind in ("goal", "robot")}
    target = models.goal(number["goal"], style.colours)
    robot = models.robot(number["robot"], style.colours)
    turn = style.turns * math.pi / 2
    objects = (
        SceneObject("goal", "goal", (*goal, 0.0), turn, target),
        SceneObject("robot", "robot", (*start, 0.0), style.robot_yaw, robot),
    )
    return Scene(state, style, cell_size, objects, camera)
