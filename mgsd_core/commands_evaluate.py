"""The command `mgsd evaluate`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.files import write_file

if TYPE_CHECKING:
    from mgsd_core.evaluate import Record
    from mgsd_core.runtime.preprocess import ImageSpec
    from mgsd_core.scenes import Scenes


def register_evaluate(commands: Any) -> None:
    """Add `evaluate` to the parser of `mgsd`."""
    parser = commands.add_parser(
        "evaluate",
        help="success, optimality, legality and state recovery on held-out scenes",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--model",
        type=Path,
        required=True,
        help="weights directory, or a bundle: then what a robot runs is judged",
    )
    add("--data", type=Path, required=True, help="what `mgsd generate` wrote")
    add("--out", type=Path, required=True, help="directory for results.json")
    add("--split", default="test", help="split to evaluate on")
    add(
        "--input",
        choices=("image", "text", "both"),
        help="what the model reads; text is the symbolic state, the upper bound (default: both; of "
        "a bundle, which reads nothing else, image)",
    )
    add(
        "--swap-images",
        action="store_true",
        help="answer once more with the pictures of other scenes of the same family and level: a "
        "model that looks falls to what chance gives",
    )
    add("--limit", type=int, help="episodes of each family and level [count]")
    add("--batch", type=int, default=64, help="responses at a time [count]; a bundle has 1")
    parser.set_defaults(run=_evaluate)


@dataclass(frozen=True)
class _Model:
    """What is judged: picture format, digest, what it can read, and how it answers scenes."""

    image: ImageSpec
    digest: str
    reads: tuple[str, ...]
    answer: Callable[[Scenes, str, Callable[[int], Any]], list[Record]]


def _evaluate(args: argparse.Namespace) -> int:
    from mgsd_core.evaluate import plan_records, record_dict, summarise, table
    from mgsd_core.runtime.bundle import MANIFEST
    from mgsd_core.scenes import load_scenes

    if args.batch < 1 or (args.limit is not None and args.limit < 1):
        raise ValueError("--batch and --limit must be at least 1")
    is_bundle = (args.model / MANIFEST).is_file()
    model = _bundle(args.model) if is_bundle else _weights(args.model, args.batch)
    sources = model.reads if args.input in (None, "both") else (args.input,)
    if not set(sources) <= set(model.reads):
        raise ValueError(f"{args.model} is a bundle: it reads pictures only (--input image)")
    scenes = load_scenes(args.data, args.split, model.image, limit=args.limit)
    swapped, shown = scenes.swapped()
    if args.swap_images and not shown:
        raise ValueError("--swap-images needs at least two scenes of a family and level")
    results: dict[str, Any] = {}
    args.out.mkdir(parents=True, exist_ok=True)
    for source in sources:
        records = _answers(model, scenes, source, source)
        results[source] = summarise(records)
        lines = "".join(json.dumps(record_dict(r)) + "\n" for r in records)
        write_file(args.out / f"responses_{source}.jsonl", lines)
    rows = list(results.items())
    # The first source stands at the top, where other programs look for it.
    report = {
        "schema_version": 1,
        "model": str(args.model),
        "model_digest": model.digest,
        "data_digest": scenes.digest,
        "split": args.split,
        "input": sources[0],
        **results[sources[0]],
    }
    if len(sources) == 2:
        report["symbolic"] = results["text"]
        report["modality_gap"] = (
            results["text"]["macro"]["success"] - results["image"]["macro"]["success"]
        )
    if args.swap_images:
        control = summarise(_answers(model, swapped, "image", "swapped"))
        # As if the scene that is shown had been read and planned without a fault.
        chance = summarise(plan_records(swapped, [scenes.plans[i] for i in shown]))
        report["image_swapped"] = {**control, "chance": chance}
        rows += [("swapped", control), ("chance", chance)]
    write_file(args.out / "results.json", json.dumps(report, indent=1) + "\n")
    print(table(rows), file=sys.stderr)
    print(json.dumps({"results": str(args.out / "results.json"), **report["macro"]}))
    return 0


def _answers(model: _Model, scenes: Scenes, source: str, title: str) -> list[Record]:
    from tqdm import tqdm

    with tqdm(total=len(scenes.states), desc=title, unit="scene", disable=None) as bar:
        return model.answer(scenes, source, bar.update)


def _weights(path: Path, batch: int) -> _Model:
    from mgsd_core.evaluate import evaluate
    from mgsd_core.model import default_device, load_backbone
    from mgsd_core.training import directory_digest

    backbone = load_backbone(path)
    backbone.model.to(default_device())

    def answer(scenes: Scenes, source: str, progress: Callable[[int], Any]) -> list[Record]:
        return evaluate(backbone, scenes, source, batch, progress)

    return _Model(backbone.image, directory_digest(path), ("image", "text"), answer)


def _bundle(path: Path) -> _Model:
    from mgsd_core.evaluate import evaluate_bundle
    from mgsd_core.runtime.bundle import read_bundle

    bundle = read_bundle(path)

    def answer(scenes: Scenes, _: str, progress: Callable[[int], Any]) -> list[Record]:
        return evaluate_bundle(path, scenes, progress)

    return _Model(bundle.manifest.image, bundle.digest, ("image",), answer)
