"""What rectifying a frame takes, and what it is worth to the model that comes with the package.

Times: one table for undistortion and homography against cv2.undistort and cv2.warpPerspective, and
against the same with the undistortion's table kept, in one run on one picture of 1920 × 1080 px
through a barrel lens. Worth (--scenes): plans on pictures of the styles `varied`, cameras tilted up
to 45°, as they come and rectified by what is known of the camera; and on pictures from straight
above that are cut to the grid, with a margin put around them again. Judged in the true states.

python benchmarks/rectify.py --scenes 10 --json rectify.json
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np

from mgsd_core.installed import SHIPPED_LEVELS
from mgsd_core.runtime import Planner, with_margin
from mgsd_ros.grid_frame import GridFrame
from mgsd_ros.work_area import (
    MAX_SIDE,
    MIN_SIDE,
    AreaCorners,
    AreaPose,
    CameraCalibration,
    CameraPose,
    Rectifier,
)
from sim import simulate
from sim.dataset import generate_episodes
from sim.episodes import Episode
from sim.request import parse_levels
from sim.scene import CELL_SIZE, MARGIN, cell_centre

WIDTH, HEIGHT, CELLS = 1920, 1080, 5


def milliseconds(work: Callable[[], Any], rounds: int) -> float:
    """Return the median time of a call [ms]."""
    work()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return median(times) * 1e3


def measure_times(side: int, threads: int, rounds: int) -> dict[str, float]:
    """Return the time [ms] that each way takes for one frame and the table for all of them."""
    cv2.setNumThreads(threads)
    k = np.array([[1100, 0, 959.5], [0, 1100, 539.5], [0, 0, 1]])
    d = np.array([-0.25, 0.06, 0.001, -0.001, 0])
    calibration = CameraCalibration(WIDTH, HEIGHT, tuple(k.ravel().tolist()), tuple(d.tolist()))
    grid = GridFrame("map", *cell_centre((0, 0), CELLS), 0.0, CELL_SIZE)
    tilt = math.radians(30)
    eye = (0.0, -3.4 * math.sin(tilt), 3.4 * math.cos(tilt))
    area = AreaPose(CELLS, grid, CameraPose.from_rpy(*eye, math.pi + tilt, 0.0, 0.0))
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    frame = cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)

    rectifier = Rectifier(area, side)
    began = time.perf_counter()
    square = rectifier.rectify(frame, calibration)
    first = (time.perf_counter() - began) * 1e3
    side = len(square)

    view = rectifier.view(WIDTH, HEIGHT, calibration)
    per_cell = side / (CELLS * (1 + 2 * MARGIN))
    middle = (side - 1) / 2 - (CELLS - 1) / 2 * per_cell
    from_cells = np.array([[per_cell, 0, middle], [0, per_cell, middle], [0, 0, 1]])
    to_square = from_cells @ np.linalg.inv(k @ np.array(view.to_direction))
    table = cv2.initUndistortRectifyMap(k, d, None, k, (WIDTH, HEIGHT), cv2.CV_16SC2)

    def in_two_passes() -> Any:
        return cv2.warpPerspective(cv2.undistort(frame, k, d), to_square, (side, side))

    def in_two_passes_with_a_table() -> Any:
        straight = cv2.remap(frame, *table, cv2.INTER_LINEAR)
        return cv2.warpPerspective(straight, to_square, (side, side))

    difference = np.abs(square.astype(int) - in_two_passes())
    return {
        "side_px": side,
        "threads": threads,
        "rectify_ms": milliseconds(lambda: rectifier.rectify(frame, calibration), rounds),
        "undistort_and_warp_ms": milliseconds(in_two_passes, rounds),
        "undistort_with_a_table_and_warp_ms": milliseconds(in_two_passes_with_a_table, rounds),
        "first_frame_ms": first,
        "median_difference": float(np.median(difference)),
    }


def rectified(episode: Episode, side: int) -> np.ndarray:
    """Return an episode's picture as seen from above, by its camera and the place of its grid."""
    camera, size = episode.camera, episode.state.size
    k = (camera.fx, 0.0, camera.cx, 0.0, camera.fy, camera.cy, 0.0, 0.0, 1.0)
    grid = GridFrame("world", *cell_centre((0, 0), size), 0.0, CELL_SIZE)
    area = AreaPose(size, grid, CameraPose.from_matrix(camera.matrix()))
    calibration = CameraCalibration(camera.width, camera.height, k)
    return Rectifier(area, side).rectify(episode.image, calibration)


def measure_plans(scenes: int, size: int, seed: int) -> dict[str, Any]:
    """Return how often plans on pictures of `size` px succeed in the true states, by family."""
    results: dict[str, Any] = {}
    for family, levels in SHIPPED_LEVELS.items():
        planner = Planner.load(family=family)
        side = 2 * planner.image.size  # as the node has it
        counts = dict.fromkeys(("scenes", "raw", "rectified", "raw_states", "rectified_states"), 0)
        for _, level in parse_levels(levels, [family]):
            for episode in generate_episodes(family, level, "test", seed, scenes, size):
                counts["scenes"] += 1
                for name, picture in (
                    ("raw", episode.image),
                    ("rectified", rectified(episode, side)),
                ):
                    response = planner.plan(picture)
                    counts[f"{name}_states"] += response.state == episode.state
                    if response.plan is not None:
                        counts[name] += simulate(episode.state, response.plan).success
        results[family] = counts
    everything = {name: sum(c[name] for c in results.values()) for name in counts}
    return results | {"all": everything}


def measure_margins(scenes: int, size: int, seed: int) -> dict[str, Any]:
    """Return how often plans on pictures that end where the grid ends succeed, by family."""
    results: dict[str, Any] = {}
    edge = round(size * MARGIN / (1 + 2 * MARGIN))
    low, high = -0.5, size - 2 * edge - 0.5
    corners = ((low, low), (high, low), (high, high), (low, high))
    for family, levels in SHIPPED_LEVELS.items():
        planner = Planner.load(family=family)
        counts = dict.fromkeys(("scenes", "drawn", "cut", "with_margin", "area"), 0)
        for _, level in parse_levels(levels, [family]):
            area = Rectifier(AreaCorners(level, corners), 2 * planner.image.size)
            drawn = generate_episodes(family, level, "test", seed, scenes, size, styles="overhead")
            for episode in drawn:
                cut = np.ascontiguousarray(episode.image[edge : size - edge, edge : size - edge])
                pictures = (episode.image, cut, with_margin(cut), area.rectify(cut))
                counts["scenes"] += 1
                for name, rgb in zip(list(counts)[1:], pictures, strict=True):
                    plan = planner.plan(rgb).plan
                    counts[name] += plan is not None and simulate(episode.state, plan).success
        results[family] = counts
    everything = {name: sum(c[name] for c in results.values()) for name in counts}
    return results | {"all": everything}


def main() -> None:
    """Measure and print tables; write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file of the results")
    parser.add_argument("--threads", type=int, default=1, help="OpenCV's threads")
    parser.add_argument("--rounds", type=int, default=50, help="timed frames [count]")
    parser.add_argument(
        "--sides",
        type=int,
        nargs="*",
        default=[320],
        help="of rectified pictures [px]",
    )
    parser.add_argument(
        "--scenes", type=int, default=0, help="scenes of each family and level to plan in [count]"
    )
    parser.add_argument("--size", type=int, default=480, help="side of these pictures [px]")
    parser.add_argument("--seed", type=int, default=70_000, help="of the first scene")
    args = parser.parse_args()
    if any(not MIN_SIDE <= side <= MAX_SIDE for side in args.sides):
        parser.error(f"--sides must be {MIN_SIDE} to {MAX_SIDE} px")

    results: dict[str, Any] = {
        "frame_px": [WIDTH, HEIGHT],
        "opencv": cv2.__version__,
        "times": [measure_times(side, args.threads, args.rounds) for side in args.sides],
    }
    for times in results["times"]:
        print("\n".join(f"{name:>36}  {value:.4g}" for name, value in times.items()), end="\n\n")
    if args.scenes:
        results |= {"size_px": args.size, "seed": args.seed}
        results["plans"] = measure_plans(args.scenes, args.size, args.seed)
        print(f"{'family':>14} {'scenes':>7} {'success raw':>12} {'rectified':>10}", end=" ")
        print(f"{'states raw':>11} {'rectified':>10}")
        for family, counts in results["plans"].items():
            n = counts["scenes"]
            shares = [
                f"{counts[name] / n:.1%}"
                for name in ("raw", "rectified", "raw_states", "rectified_states")
            ]
            print("{:>14} {:>7} {:>12} {:>10} {:>11} {:>10}".format(family, n, *shares))
        results["margins"] = measure_margins(args.scenes, args.size, args.seed)
        print("\nsuccess where pictures are cut to the grid, overhead styles")
        for family, counts in results["margins"].items():
            print(f"{family:>14} ", "  ".join(f"{name} {n}" for name, n in counts.items()))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
