"""What a simulator knows of the scan that it has loaded: storeys, grid, ground, things in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import habitat_sim
import magnum as mn
import numpy as np
from habitat_sim.physics import MotionType

from sim.habitat import bounds, to_habitat
from sim.models import Point
from sim.occupancy import (
    BETWEEN,
    Occupancy,
    ScanError,
    Target,
    find_storeys,
    make_occupancy,
    nearest_cell,
    places_per_cell,
)
from sim.scan_request import ScanRequest

#: Things of these kinds are nowhere to be sent to.
STRUCTURE = frozenset(
    """
    void/unknown/undefined/unlabeled/background/misc/object/objects/wall/floor/ceiling/roof/beam/
    column/pillar/stair/stairs/staircase/railing/door frame/window frame/room/ground/rug/carpet/mat/
    floor mat/
    """.replace("\n    ", "").split("/")
)

# A navigation mesh's voxels: sides as a share of the robot's radius, the range of them, height [m].
_VOXEL, _VOXELS, _VOXEL_HEIGHT = 0.25, (0.02, 0.05), 0.05
_AGENT_CLIMB = 0.2  # highest step [m]
_MIN_REGION = 8  # side of the smallest piece of a navigation mesh [voxels]

_CEILING = 8.0  # height above a floor up to which a ceiling is looked for [m]
_LEVEL = 0.35  # how far a place to stand may be above or below its storey's floor [m]
_WITHIN_REACH = 1.6  # height above the floor at which a target may begin, at most [m]

_FLOOR_SAMPLES = 200


def scene_handle(dataset: Path, name: str) -> str:
    """Return the handle by which a dataset knows a scene; ScanError where it has none such."""
    settings = habitat_sim.SimulatorConfiguration()
    settings.scene_dataset_config_file = str(dataset)
    mediator = habitat_sim.metadata.MetadataMediator(settings)
    handles = [
        *mediator.get_scene_handles(),
        *mediator.stage_template_manager.get_template_handles(),
    ]
    # A scene or a stage by its whole name, without folders and endings, or by its path.
    for handle in handles:
        if name in (handle, Path(handle).name, Path(handle).name.partition(".")[0]):
            return handle
    ends = [handle for handle in handles if handle.endswith(f"/{name}")]
    if ends:
        return ends[0]
    names = {Path(handle).name.partition(".")[0] for handle in handles}
    known = sorted(names - {"NONE"})  # Habitat's own empty stage
    raise ScanError(
        f"{dataset.name} has no scene {name!r}; it has {len(known)}"
        + (f": {', '.join(known[:8])}{', …' if len(known) > 8 else ''}" if known else "")
    )


def objects_of(manager: Any) -> list[Any]:
    """Return all that a manager of rigid or articulated objects holds."""
    return list(manager.get_objects_by_handle_substring("").values())


def freeze(simulator: habitat_sim.Simulator) -> list[Any]:
    """Make everything in a scan stand still and in the way; return its rigid objects."""
    things = objects_of(simulator.get_rigid_object_manager())
    for thing in [*things, *objects_of(simulator.get_articulated_object_manager())]:
        thing.motion_type = MotionType.STATIC
    return things


def make_navmesh(simulator: habitat_sim.Simulator, request: ScanRequest) -> None:
    """Compute a scan's navigation mesh unless it came with one; ScanError where it has no floor."""
    pathfinder = simulator.pathfinder
    if request.recompute or not pathfinder.is_loaded:
        settings = habitat_sim.NavMeshSettings()
        settings.set_defaults()
        settings.cell_size = float(np.clip(_VOXEL * request.agent_radius, *_VOXELS))
        settings.cell_height = _VOXEL_HEIGHT
        settings.agent_radius, settings.agent_height = request.agent_radius, request.agent_height
        settings.agent_max_climb = _AGENT_CLIMB
        settings.region_min_size = _MIN_REGION
        settings.include_static_objects = True
        try:
            made = simulator.recompute_navmesh(pathfinder, settings)
        except Exception:  # a failed check of Habitat's own
            made = False
        if not made:
            raise _no_floor(request)
    if not pathfinder.is_loaded or not pathfinder.navigable_area > 0:
        raise _no_floor(request)


def _no_floor(request: ScanRequest) -> ScanError:
    return ScanError(
        f"{request.scene} has no floor for a robot of radius {request.agent_radius:g} m and height "
        f"{request.agent_height:g} m; a bare GLB is taken to be z up, a stage config says otherwise"
    )


def storeys_of(simulator: habitat_sim.Simulator) -> list[float]:
    """Return the heights of a scan's floors [m], the one with most room first.

    Only what lies under a ceiling counts where that is a tenth of all or more: else a roof is the
    largest floor.
    """
    corners = np.array(simulator.pathfinder.build_navmesh_vertices(), np.float64).reshape(-1, 3, 3)
    one, other = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    room = np.linalg.norm(np.cross(one, other), axis=1) / 2
    middles = corners.mean(axis=1)
    up = mn.Vector3(0, 1, 0)
    rays = [habitat_sim.geo.Ray(mn.Vector3(*middle) + _LEVEL * up, up) for middle in middles]
    covered = np.array([simulator.cast_ray(ray, _CEILING).has_hits() for ray in rays])
    counted = covered if room[covered].sum() >= room.sum() / 10 else np.ones(len(room), bool)
    return find_storeys(middles[counted, 1], room[counted])


def choose_storey(storeys: list[float], wanted: float | None) -> float:
    """Return the storey nearest to a height [m], or the first; ScanError where none is near."""
    if wanted is None:
        return storeys[0]
    nearest = min(storeys, key=lambda height: abs(height - wanted))
    if abs(nearest - wanted) > BETWEEN / 2:
        known = ", ".join(f"{height:.2f}" for height in sorted(storeys))
        raise ScanError(f"no floor lies near {wanted:g} m; there are floors at {known} m")
    return nearest


def occupancy_of(simulator: habitat_sim.Simulator, floor: float, cell_size: float) -> Occupancy:
    """Return the grid of a storey; ScanError where no cell is free."""
    pathfinder = simulator.pathfinder
    step = cell_size / places_per_cell(cell_size)
    navigable = np.asarray(pathfinder.get_topdown_view(step, floor, _LEVEL), bool)
    low, _ = pathfinder.get_bounds()
    if not navigable.any():
        raise ScanError(f"no place on the floor at {floor:.2f} m can be stood on")
    return make_occupancy(navigable, (low[0], -low[2]), cell_size)


def ground_at(simulator: habitat_sim.Simulator, x: float, y: float, floor: float) -> float | None:
    """Return the height of what lies under a place of a storey [m], None where nothing does.

    A navigation mesh lies up to the height of its voxels above the floor.
    """
    ray = habitat_sim.geo.Ray(to_habitat((x, y, floor + _LEVEL)), mn.Vector3(0, -1, 0))
    found = simulator.cast_ray(ray, 2 * _LEVEL)
    return floor + _LEVEL - found.hits[0].ray_distance if found.has_hits() else None


def floor_height(simulator: habitat_sim.Simulator, grid: Occupancy, floor: float) -> float:
    """Return the height of a storey's floor [m], the median of places spread over its region."""
    cells = np.argwhere(grid.region)
    centres = [grid.centre((r, c)) for r, c in cells[:: -(-len(cells) // _FLOOR_SAMPLES)].tolist()]
    heights = [ground_at(simulator, x, y, floor) for x, y in centres]
    hits = [height for height in heights if height is not None]
    return float(np.median(hits)) if hits else floor


def targets_of(
    simulator: habitat_sim.Simulator, things: list[Any], grid: Occupancy, floor: float
) -> list[Target]:
    """Return the things with a category on a storey, in the order in which the scan has them."""
    scene = simulator.semantic_scene
    kinds = [] if scene is None else scene.categories
    names = {kind.index(): kind.name() for kind in kinds if kind is not None}
    found: list[tuple[str, str, Point, Point]] = []
    for thing in things:
        # A handle is the model's name and a number: chair_:0003.
        model = thing.handle.partition("_:")[0]
        category = names.get(thing.semantic_id, model) if thing.semantic_id else model
        found.append((thing.handle, category, *bounds(thing)))
    for thing in [] if scene is None else scene.objects:
        if thing is not None and thing.category is not None:
            low, high = _box(thing)
            found.append((thing.id, thing.category.name(), low, high))
    largest = grid.region.sum() * grid.cell_size**2 / 4
    targets = []
    for name, category, low, high in found:
        footprint = (high[0] - low[0]) * (high[1] - low[1])
        if (
            category.strip().lower() not in STRUCTURE
            and np.isfinite([*low, *high]).all()
            and 0 < footprint < largest
            and low[2] < floor + _WITHIN_REACH
            and high[2] > floor
        ):
            cell = nearest_cell(grid, low[:2], high[:2])
            if cell is not None:
                targets.append(Target(name, category.strip(), cell))
    return targets


def _box(thing: Any) -> tuple[Point, Point]:
    """Return two corners of a semantic object's axis-aligned bounding box in our world [m].

    Not from its own `aabb`: that holds the world's origin as well.
    """
    box = thing.obb
    x, y, z, w = box.rotation
    turn = mn.Quaternion(mn.Vector3(x, y, z), w).to_matrix()
    reach = np.abs(np.array(turn)) @ np.array(box.half_extents)
    (x, y, z), (width, height, depth) = box.center, reach
    return (x - width, -z - depth, y - height), (x + width, -z + depth, y + height)
