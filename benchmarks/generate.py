"""How much of what a renderer can draw arrives on the disk, with one worker and with two.

python benchmarks/generate.py --renderer panda --json generate.json
python benchmarks/generate.py --memory 20000 --json memory.json

`bare` draws scenes that are loaded already and packs the pictures; `generate` is everything: states
sampled, scenes built, loaded, read back and drawn, plans solved, shards packed and written. Both
draw the same scenes, each run in a new process. `fraction_of_bare` is of both cores: two workers
against two bare loops side by side. The kinds of runs take turns, so that they meet
the same machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from sim.dataset import write_dataset
from sim.episodes import style_seed
from sim.png import encode_png
from sim.renderers import RENDERERS, open_renderer
from sim.request import DatasetRequest, parse_families, parse_levels
from sim.sampling import sample_split
from sim.scene import build_scene

PAIRS = parse_levels("all", parse_families("all"))

#: Episodes of a run that are not timed.
WARM_UP = 24


def bare_rate(renderer: str, count: int, size: int) -> float:
    """Return episodes/s of drawing loaded scenes, each once, and packing the pictures alone."""
    seconds = 0.0
    with open_renderer(renderer) as drawer:
        for i in range(count):
            family, level = PAIRS[i % len(PAIRS)]
            seed = i // len(PAIRS)
            state = sample_split(family, level, "train", seed)
            scene = build_scene(state, style_seed(family, level, "train", seed), size, size)
            drawer.read_state(scene)  # loads it
            began = time.perf_counter()
            encode_png(drawer.render(scene).rgb)
            seconds += time.perf_counter() - began
    return count / seconds


def generate_rates(renderer: str, count: int, size: int, workers: int) -> tuple[float, float]:
    """Return episodes/s of a run of `count` episodes: over nearly all, and over its middle.

    Over all but the first, in which libraries and textures are loaded, it is of the same scenes
    that `bare_rate` draws. In the middle, both of two workers are busy.
    """
    seen: list[float] = []
    per_pair = -(-count // len(PAIRS))

    def progress(episodes: int) -> None:
        seen.extend([time.perf_counter()] * episodes)

    with tempfile.TemporaryDirectory() as out:
        write_dataset(
            Path(out),
            DatasetRequest(PAIRS, "train", 0, per_pair, size, renderer),
            workers=workers,
            progress=progress,
        )

    def rate(first: int, last: int) -> float:
        return (last - first) / (seen[last] - seen[first])

    total = len(seen)
    return rate(WARM_UP, total - 1), rate(int(0.15 * total), int(0.85 * total))


def resident_mib() -> float:
    """Return the memory that this process holds [MiB]."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def watch_memory(renderer: str, episodes: int, size: int) -> dict[str, float]:
    """Draw so many episodes in this process; return what it holds after 10 % and at the end."""
    per_pair = -(-episodes // len(PAIRS))
    total = per_pair * len(PAIRS)
    done, early = 0, 0.0

    def progress(number: int) -> None:
        nonlocal done, early
        done += number
        if not early and done >= 0.1 * total:
            early = resident_mib()

    with tempfile.TemporaryDirectory() as out:
        write_dataset(
            Path(out),
            DatasetRequest(PAIRS, "train", 0, per_pair, size, renderer),
            progress=progress,
        )
    late = resident_mib()
    return {
        "episodes": total,
        "mib_after_10_percent": early,
        "mib_at_end": late,
        "ratio": late / early,
    }


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function gives in a new process, as a run of the command would."""
    context = multiprocessing.get_context("spawn")
    # No pool's daemons: they may not have workers of their own.
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, *arguments).result()


def beside_itself(function: Callable[..., float], *arguments: Any) -> float:
    """Return the sum of what a function gives in two new processes at the same time."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        return sum(job.result() for job in [pool.submit(function, *arguments) for _ in range(2)])


def main() -> None:
    """Measure and print a table; write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--json", type=Path, help="file of the results")
    add("--renderer", choices=RENDERERS, default="panda", help="what draws (default: panda)")
    add("--size", type=int, default=256, help="side of the pictures [px] (default: 256)")
    add("--episodes", type=int, default=2400, help="of each timed run (default: 2400)")
    add("--rounds", type=int, default=3, help="times that every kind runs (default: 3)")
    add(
        "--memory",
        type=int,
        default=0,
        metavar="EPISODES",
        help="also draw so many in one worker and watch its memory (default: 0, not at all)",
    )
    args = parser.parse_args()
    load = os.getloadavg()[0]  # above 0.5 other programs took part of the two cores
    kinds = ("bare", "bare_twice", "whole", "one_worker", "two_workers")
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    what = (args.renderer, args.episodes, args.size)
    for _ in range(args.rounds):
        rates["bare"].append(alone(bare_rate, *what))
        rates["bare_twice"].append(beside_itself(bare_rate, *what))
        whole, one_worker = alone(generate_rates, *what, 1)
        rates["whole"].append(whole)
        rates["one_worker"].append(one_worker)
        rates["two_workers"].append(alone(generate_rates, *what, 2)[1])
    results: dict[str, Any] = {
        "renderer": args.renderer,
        "size": args.size,
        "episodes": args.episodes,
        "bare_one_process_per_s": median(rates["bare"]),
        "bare_two_processes_per_s": median(rates["bare_twice"]),
        "one_worker_per_s": median(rates["whole"]),
        "two_workers_per_s": median(rates["two_workers"]),
        "episodes_per_s": median(rates["two_workers"]),
        "fraction_of_bare": median(
            two / bare for two, bare in zip(rates["two_workers"], rates["bare_twice"], strict=True)
        ),
        "fraction_of_bare_one_process": median(
            whole / bare for whole, bare in zip(rates["whole"], rates["bare"], strict=True)
        ),
        "two_worker_ratio": median(
            two / one for two, one in zip(rates["two_workers"], rates["one_worker"], strict=True)
        ),
        "rounds": rates,
        "load_before": load,
    }
    if args.memory:
        results["memory"] = alone(watch_memory, args.renderer, args.memory, args.size)
    for name, value in results.items():
        if isinstance(value, float):
            print(f"{name:>30}  {value:8.3f}")
    for name, value in results.get("memory", {}).items():
        print(f"{name:>30}  {value:8.4g}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
