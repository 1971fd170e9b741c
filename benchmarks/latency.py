"""From frame to plan: a bundle's `Planner` against transformers' `generate`, in one run.

python benchmarks/latency.py --json latency.json
python benchmarks/latency.py --shape 4b --layers 4 --json latency_4b.json

The first takes held-out pictures of all families and levels that `models/nano` has learned. Every
family's pictures are planned by transformers (with the number of threads that is faster for it), by
the planner as it comes, and by planners without forced tokens, without the prefix cache and without
both; they take turns, so that all meet the same machine. Texts must be equal. `bare` repeats
exactly the session runs of every plan, bound as the planner bound them, and nothing else;
`scene_stands_still` plans on a picture for the second time.

Memory is that of a process which does nothing else, after a tenth of its plans and after all.
`speedup_p50` is transformers' median over the planner's, `overhead_p50` the planner's median over
that of its bare session runs. The roofline of a decode step is the time in which memory brings its
weights and its cache, at the bandwidth measured here.

The second builds decoder layers of Qwen3-VL-4B's shape with random weights and times prefill and
decode steps of the exported graphs against the same layers in torch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mgsd_core.export.reference import greedy_text
from mgsd_core.installed import SHIPPED_LEVELS, installed_path
from mgsd_core.model import load_backbone
from mgsd_core.runtime import Planner
from mgsd_core.runtime.bundle import DECODER, read_bundle
from mgsd_core.runtime.ort_engine import OrtEngine
from sim.dataset import generate_episodes

#: A prompt of Qwen3-VL with a picture of 512 × 512 px [tokens].
PROMPT = 292

VARIANTS: dict[str, dict[str, Any]] = {
    "planner": {},
    "without_forced_tokens": {"forced_tokens": False},
    "without_prefix_cache": {"prefix_cache": False},
    "without_both": {"forced_tokens": False, "prefix_cache": False},
}


class Recorder:
    """An engine that remembers what it was asked, to ask it again."""

    def __init__(self, engine: OrtEngine) -> None:
        self.engine, self.vocabulary = engine, engine.vocabulary
        self.calls: list[Callable[[], object]] = []

    def see(self, pixels: NDArray[np.float32]) -> None:
        """Record and see."""
        run = self.engine._vision.run
        self.calls = [lambda: run(["image_embeds", "deepstack_embeds"], {"pixel_values": pixels})]
        self.engine.see(pixels)

    def read(
        self, ids: Sequence[int], positions: NDArray[np.int64], start: int, asked: int = 1
    ) -> tuple[list[int], list[float]]:
        """Record and read."""
        said = self.engine.read(ids, positions, start, asked)
        step = self.engine._passes[len(ids), asked, self.engine._image_token in ids, False]
        index = step.inputs["write_index"]  # all passes share it

        def run() -> None:
            index[0] = start
            self.engine._decoder.run_with_iobinding(step.binding)

        self.calls.append(run)
        return said

    def reset(self) -> None:
        """Reset."""
        self.engine.reset()


def replayed(calls: list[Callable[[], object]]) -> None:
    """Call them all."""
    for call in calls:
        call()


def pictures(each: int, size: int) -> list[tuple[str, NDArray[np.uint8]]]:
    """Return (family, picture) for held-out scenes of every family and level."""
    found = []
    for family, span in SHIPPED_LEVELS.items():
        low, high = map(int, span.split("-"))
        for level in range(low, high + 1):
            episodes = generate_episodes(
                family, level, "test", seed=810_000, count=each, size=size, styles="overhead"
            )
            found += [(family, episode.image) for episode in episodes]
    return found


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return how long a call took [s], and what it returned."""
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return p50, p95 and p99 [ms]."""
    return {f"p{q}_ms": float(np.percentile(seconds, q)) * 1e3 for q in (50, 95, 99)}


def memory_bandwidth() -> float:
    """Return how fast one core reads memory [bytes/s]; best of some sums over 256 MiB."""
    array = np.ones(1 << 25)
    return array.nbytes / min(timed(array.sum)[0] for _ in range(10))


COLD_START = """
import sys, time
began = time.perf_counter()
from mgsd_core.runtime import Planner, read_image
planner = Planner.load(sys.argv[1], family=sys.argv[2])
loaded = time.perf_counter() - began
planner.plan(read_image(sys.argv[3]))
first = time.perf_counter() - began
# Not `getrusage`, which begins with what the process had that started this one.
status = open("/proc/self/status").read().split()
print(loaded, first, status[status.index("VmHWM:") + 1])
"""


def cold_start(bundle: Path) -> dict[str, float]:
    """Return import and load [s], the same with a first plan [s], and peak memory [MiB]."""
    golden = read_bundle(bundle).manifest.goldens[0]
    command = [sys.executable, "-c", COLD_START, str(bundle), golden.family]
    runs = []
    for _ in range(5):
        run = subprocess.run(
            [*command, str(bundle / golden.image)], capture_output=True, text=True, check=True
        )
        runs.append([float(value) for value in run.stdout.split()])
    loaded, first, peak = np.median(runs, axis=0)
    return {"load_s": loaded, "first_plan_s": first, "peak_mib": peak / 1024}


MANY_PLANS = """
import sys
from mgsd_core.runtime import Planner, read_image
planner = Planner.load(sys.argv[1], family=sys.argv[2])
pictures = [read_image(path) for path in sys.argv[4:]]
count = int(sys.argv[3])
for i in range(count):
    planner.plan(pictures[i % len(pictures)])
    if i + 1 in (count // 10, count):
        status = open("/proc/self/status").read().split()
        print(status[status.index("VmRSS:") + 1])
"""


def memory(bundle: Path, count: int) -> dict[str, float]:
    """Return the memory of a process after a tenth of so many plans, and after all [MiB]."""
    goldens = read_bundle(bundle).manifest.goldens
    family = goldens[0].family
    shown = [str(bundle / golden.image) for golden in goldens if golden.family == family]
    command = [sys.executable, "-c", MANY_PLANS, str(bundle), family, str(count), *shown]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    early, late = (int(value) / 1024 for value in run.stdout.split())
    return {"plans": float(count), "early_mib": early, "late_mib": late, "ratio": late / early}


def measure(
    bundle: Path, model: Path, each: int, rounds: int, threads: int | None
) -> dict[str, Any]:
    """Plan on all pictures in all ways; return what they took."""
    backbone = load_backbone(model)
    backbone.model.eval()
    manifest = read_bundle(bundle).manifest
    shown = pictures(each, 160)

    def transformers(family: str, rgb: NDArray[np.uint8]) -> str:
        return greedy_text(backbone, family, rgb, manifest.prompts[family].max_new_tokens)

    seconds: dict[str, list[float]] = {}
    stages: dict[str, list[float]] = {}
    said: dict[str, list[Any]] = {}
    torch_threads = fastest_threads(lambda: transformers(*shown[0]))
    torch.set_num_threads(torch_threads)
    for family in dict.fromkeys(family for family, _ in shown):
        of_family = [rgb for other, rgb in shown if other == family]
        ways: dict[str, Callable[[NDArray[np.uint8]], Any]]
        ways = {"transformers": partial(transformers, family)}
        for name, options in VARIANTS.items():
            ways[name] = Planner.load(bundle, family=family, threads=threads, **options).plan
        recorder = Recorder(OrtEngine(read_bundle(bundle), threads))
        recording = Planner(read_bundle(bundle), recorder, family)
        recorded = []
        for rgb in of_family:
            recording.plan(rgb)
            recorded.append(recorder.calls)
        for turn in range(rounds + 1):  # the first warms up
            for name, way in ways.items():
                runs = [timed(partial(way, rgb)) for rgb in of_family]
                if turn:
                    seconds.setdefault(name, []).extend(took for took, _ in runs)
                    said.setdefault(name, []).extend(response for _, response in runs)
            runs = [timed(partial(replayed, calls)) for calls in recorded]
            if turn:
                seconds.setdefault("bare", []).extend(took for took, _ in runs)
            for rgb in of_family if turn else ():
                ways["planner"](rgb)
                seconds.setdefault("scene_stands_still", []).append(
                    timed(partial(ways["planner"], rgb))[0]
                )
    for response in said["planner"]:
        for stage, value in response.timings.items():
            stages.setdefault(stage, []).append(value)
    texts = [{said[name][i].text for name in VARIANTS} for i in range(len(said["planner"]))]
    equal = sum(t == {text} for t, text in zip(texts, said["transformers"], strict=True))
    p50 = {name: float(np.median(values)) for name, values in seconds.items()}
    return {
        "pictures": len(shown),
        "plans": len(texts),
        "equal_texts": equal,
        "torch_threads": torch_threads,
        "tokens_mean": float(np.mean([r.tokens for r in said["planner"]])),
        "passes_mean": {n: float(np.mean([r.passes for r in said[n]])) for n in VARIANTS},
        "latency": {name: quantiles(values) for name, values in seconds.items()},
        "stages": {name: quantiles(values) for name, values in stages.items()},
        "speedup_p50": p50["transformers"] / p50["planner"],
        "overhead_p50": p50["planner"] / p50["bare"],
        "forced_tokens_gain_p50": p50["without_forced_tokens"] / p50["planner"],
        "prefix_cache_gain_p50": p50["without_prefix_cache"] / p50["planner"],
    }


def fastest_threads(call: Callable[[], object]) -> int:
    """Return the number of torch's threads, 1 to all, with which a call is fastest."""
    took = {}
    for threads in range(1, (os.cpu_count() or 1) + 1):
        torch.set_num_threads(threads)
        call()
        took[threads] = min(timed(call)[0] for _ in range(3))
    return min(took, key=lambda threads: took[threads])


def decode_roofline(bundle: Path, threads: int | None) -> dict[str, float]:
    """Return the time of a decode step, and the least in which memory brings what it reads."""
    read = read_bundle(bundle)
    engine = OrtEngine(read, threads)
    place = read.manifest.cache_length // 2
    position = np.full((3, 1), place)
    step = float(
        np.median([timed(lambda: engine.read([1], position, place))[0] for _ in range(500)])
    )
    weights = read.graph_bytes(DECODER)
    cache = sum(array.nbytes for array in engine._cache.values())
    bandwidth = memory_bandwidth()
    bound = (weights + cache) / bandwidth
    return {
        "decode_step_ms": step * 1e3,
        "weights_mib": weights / 2**20,
        "cache_mib": cache / 2**20,
        "bandwidth_gb_s": bandwidth / 1e9,
        "bound_ms": bound * 1e3,
        "bound_over_step": bound / step,
    }


# --- layers of the published size ---------------------------------------------------------------


def measure_shape(layers: int, rounds: int) -> dict[str, Any]:
    """Time `layers` decoder layers of Qwen3-VL-4B's shape: torch and the graphs, fp32 and int4."""
    from mgsd_core.export.graphs import decoder_graph
    from mgsd_core.runtime.bundle import DATA_SUFFIX

    torch.manual_seed(0)
    model = four_b(layers)
    found: dict[str, Any] = {"layers": layers, "torch_threads": torch.get_num_threads()}
    found["torch"] = torch_times(model, rounds)
    length = PROMPT + 128
    for precision in ("fp32", "fp16", "int4"):
        with tempfile.TemporaryDirectory() as folder:
            name = DECODER + DATA_SUFFIX
            with (Path(folder) / name).open("wb") as data:
                graph = decoder_graph(model, length, precision=precision, data=data, data_name=name)
            (Path(folder) / DECODER).write_bytes(graph.SerializeToString())
            found[precision] = graph_times(Path(folder) / DECODER, length, rounds)
            found[precision]["weights_gib"] = (Path(folder) / name).stat().st_size / 2**30
    found["bandwidth_gb_s"] = memory_bandwidth() / 1e9
    for precision in ("fp32", "fp16", "int4"):
        of = found[precision]
        of["decode_speedup"] = found["torch"]["decode_ms"] / of["decode_ms"]
        of["prefill_speedup"] = found["torch"]["prefill_ms"] / of["prefill_ms"]
    return found


def four_b(layers: int) -> Any:
    """Return a Qwen3-VL with so many of the 4B's decoder layers; tower and vocabulary are small."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    config = Qwen3VLConfig(
        text_config={
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": layers,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 1024,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 1,
            "hidden_size": 64,
            "num_heads": 2,
            "intermediate_size": 64,
            "out_hidden_size": 2560,
            "deepstack_visual_indexes": [],
        },
        tie_word_embeddings=True,
    )
    return Qwen3VLForConditionalGeneration(config).eval()


@torch.no_grad()
def torch_times(model: Any, rounds: int) -> dict[str, float]:
    """Return what transformers' layers take [ms], with its static cache."""
    from transformers import StaticCache

    text = model.model.language_model
    prompt = torch.randn(1, PROMPT, 2560)
    one = torch.randn(1, 1, 2560)
    prefill, decode = [], []
    for _ in range(rounds):
        cache = StaticCache(config=text.config, max_cache_len=PROMPT + 128)
        prefill.append(timed(partial(text, inputs_embeds=prompt, past_key_values=cache))[0])
        for _ in range(8):
            took, _out = timed(partial(text, inputs_embeds=one, past_key_values=cache))
            decode.append(took)
    return {
        "prefill_ms": float(np.median(prefill)) * 1e3,
        "decode_ms": float(np.median(decode)) * 1e3,
    }


def graph_times(path: Path, length: int, rounds: int) -> dict[str, float]:
    """Return what the graph takes [ms], its cache bound in place."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    times: dict[int, list[float]] = {PROMPT: [], 1: []}
    half = {"tensor(float16)": np.float16, "tensor(float)": np.float32}
    kinds = {**half, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}
    for count, taken in times.items():
        binding = session.io_binding()
        caches = {}
        for i in session.get_inputs():
            shape = [{"S": count, "N": 1}.get(d, d) for d in i.shape]
            array: NDArray[Any] = np.zeros(shape, kinds[i.type])
            if i.name == "attention_mask":
                array[0, 0] = np.tri(length, dtype=bool)[:count]
            if i.name == "asked":
                array[:] = count - 1
            value = ort.OrtValue.ortvalue_from_numpy(array)
            caches[i.name] = array, value
            binding.bind_ortvalue_input(i.name, value)
        for o in session.get_outputs():
            past = o.name.replace("present", "past")
            if past in caches:
                binding.bind_ortvalue_output(o.name, caches[past][1])
            elif o.name != "logits":
                binding.bind_output(o.name)
        for _ in range(rounds + 1 if count > 1 else 8 * rounds + 1):
            taken.append(timed(partial(session.run_with_iobinding, binding))[0])
    return {
        "prefill_ms": float(np.median(times[PROMPT][1:])) * 1e3,
        "decode_ms": float(np.median(times[1][1:])) * 1e3,
    }


# --- what it prints -----------------------------------------------------------------------------


def show(results: dict[str, Any], indent: str = "") -> None:
    """Print results as lines of names and values."""
    for name, value in results.items():
        if isinstance(value, dict) and all(isinstance(v, float) for v in value.values()):
            print(f"{indent}{name:<28}", "  ".join(f"{k} {v:.3g}" for k, v in value.items()))
        elif isinstance(value, dict):
            print(f"{indent}{name}")
            show(value, indent + "  ")
        else:
            print(
                f"{indent}{name:<28} {value:.4g}"
                if isinstance(value, float)
                else f"{indent}{name:<28} {value}"
            )


def main() -> None:
    """Measure and print a table; write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file of the results")
    parser.add_argument("--bundle", type=Path, help="default: models/nano")
    parser.add_argument("--model", type=Path, help="its weights; default: models/nano-weights")
    parser.add_argument("--each", type=int, default=6, help="pictures a family and level [count]")
    parser.add_argument("--threads", type=int, help="CPU threads of the planner; default: its own")
    parser.add_argument("--plans", type=int, default=5000, help="plans of the memory test [count]")
    parser.add_argument("--shape", choices=("nano", "4b"), default="nano", help="what is measured")
    parser.add_argument("--layers", type=int, default=4, help="decoder layers of --shape 4b")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds [count]")
    args = parser.parse_args()
    if args.shape == "4b":
        results = measure_shape(args.layers, args.rounds)
    else:
        bundle = args.bundle or installed_path("models/nano")
        model = args.model or installed_path("models/nano-weights")
        results = {
            **measure(bundle, model, args.each, args.rounds, args.threads),
            "decode_roofline": decode_roofline(bundle, args.threads),
            "cold_start": cold_start(bundle),
            "memory": memory(bundle, args.plans),
        }
    show(results)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
