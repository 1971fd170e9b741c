"""The command `mgsd evaluate`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.files import write_file
from sim.help_text import HelpFormatter

if TYPE_CHECKING:
    from mgsd_core.evaluate import Record
    from mgsd_core.runtime.preprocess import ImageSpec
    from mgsd_core.scenes import Scenes


def register_evaluate(commands: Any) -> None:
    """Add `evaluate` to the parser of `mgsd`."""
    parser = commands.add_parser(
        "evaluate",
        help="success, optimality, legality and state recovery on held-out scenes",
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    judged = parser.add_mutually_exclusive_group(required=True)
    judged.add_argument(
        "--model",
        type=Path,
        help="weights directory, or a bundle: then what a robot runs is judged",
    )
    judged.add_argument(
        "--endpoint",
        metavar="URL",
        help="an OpenAI-compatible server, such as http://127.0.0.1:8000/v1: every picture is sent "
        "there; answers are kept in --out, so that a run goes on where it was",
    )
    add("--data", type=Path, required=True, help="what `mgsd generate` wrote")
    add("--out", type=Path, required=True, help="directory for results.json")
    add("--split", default="test", help="split to evaluate on")
    add(
        "--input",
        choices=("image", "text", "both"),
        help="what the model reads; text is the symbolic state, the upper bound (default: both; of "
        "a bundle, which reads nothing else, and of an endpoint image)",
    )
    add(
        "--swap-images",
        action="store_true",
        help="answer once more with the pictures of other scenes of the same family and level: a "
        "model that looks falls to what chance gives",
    )
    add("--limit", type=int, help="episodes of each family and level [count]")
    add("--batch", type=int, default=64, help="responses at a time [count]; a bundle has 1")
    _add_endpoint(parser.add_argument_group("of an endpoint"))
    parser.set_defaults(run=_evaluate)


def _add_endpoint(group: Any) -> None:
    add = group.add_argument
    add("--endpoint-model", metavar="NAME", help="what the server calls the model")
    add(
        "--key-variable",
        metavar="NAME",
        help="environment variable with the key; where it is not named, OPENAI_API_KEY, if that is "
        "set",
    )
    add("--picture-size", type=int, default=512, help="side of the pictures that are sent [px]")
    add("--concurrency", type=int, default=8, help="requests at a time [count]")
    add("--timeout", type=float, default=120.0, help="longest time for one answer [s]")
    add("--retries", type=int, default=5, help="attempts after the first [count]")
    add(
        "--extra",
        default="{}",
        metavar="JSON",
        help="further fields of every request; null takes one away",
    )
    add("--price-in", type=float, help="price of a million tokens that are sent")
    add("--price-out", type=float, help="price of a million tokens that are answered")


@dataclass(frozen=True)
class _Model:
    """What is judged: name, picture format, digest, what it can read, and how it answers scenes.

    `about` returns what else the results say, after the last answer.
    """

    name: str
    image: ImageSpec
    digest: str
    reads: tuple[str, ...]
    answer: Callable[[Scenes, str, Callable[[int], Any]], list[Record]]
    about: Callable[[], dict[str, Any]] = dict


def _evaluate(args: argparse.Namespace) -> int:
    from mgsd_core.evaluate import plan_records, record_dict, summarise, table
    from mgsd_core.scenes import load_scenes

    if args.batch < 1 or (args.limit is not None and args.limit < 1):
        raise ValueError("--batch and --limit must be at least 1")
    model = _model(args)
    asked = args.input or ("image" if args.endpoint else "both")
    sources = model.reads if asked == "both" else (asked,)
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
        "model": model.name,
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
    report |= model.about()
    write_file(args.out / "results.json", json.dumps(report, indent=1) + "\n")
    print(table(rows), file=sys.stderr)
    print(json.dumps({"results": str(args.out / "results.json"), **report["macro"]}))
    if failed := report.get("failed"):
        print(
            f"mgsd evaluate: {len(failed)} requests have no answer and count as failures, first "
            f"for {failed[0]['scene']}: {failed[0]['reason']}; the same command asks them again",
            file=sys.stderr,
        )
        return 1
    return 0


def _answers(model: _Model, scenes: Scenes, source: str, title: str) -> list[Record]:
    from tqdm import tqdm

    with tqdm(total=len(scenes.states), desc=title, unit="scene", disable=None) as bar:
        return model.answer(scenes, source, bar.update)


def _model(args: argparse.Namespace) -> _Model:
    from mgsd_core.runtime.bundle import MANIFEST

    if args.endpoint is not None:
        return _endpoint(args)
    if args.endpoint_model is not None:
        raise ValueError("--endpoint-model needs --endpoint")
    is_bundle = (args.model / MANIFEST).is_file()
    return _bundle(args.model) if is_bundle else _weights(args.model, args.batch)


def _weights(path: Path, batch: int) -> _Model:
    from mgsd_core.evaluate import evaluate
    from mgsd_core.model import default_device, load_backbone
    from mgsd_core.training import directory_digest

    backbone = load_backbone(path)
    backbone.model.to(default_device())

    def answer(scenes: Scenes, source: str, progress: Callable[[int], Any]) -> list[Record]:
        return evaluate(backbone, scenes, source, batch, progress)

    return _Model(str(path), backbone.image, directory_digest(path), ("image", "text"), answer)


def _bundle(path: Path) -> _Model:
    from mgsd_core.evaluate import evaluate_bundle
    from mgsd_core.runtime.bundle import read_bundle

    bundle = read_bundle(path)

    def answer(scenes: Scenes, _: str, progress: Callable[[int], Any]) -> list[Record]:
        return evaluate_bundle(path, scenes, progress)

    return _Model(str(path), bundle.manifest.image, bundle.digest, ("image",), answer)


def _endpoint(args: argparse.Namespace) -> _Model:
    from mgsd_core.endpoint import Endpoint
    from mgsd_core.endpoint_evaluate import EndpointRun
    from mgsd_core.runtime.preprocess import ImageSpec

    if args.endpoint_model is None:
        raise ValueError("--endpoint needs --endpoint-model, the model's name there")
    prices = (args.price_in, args.price_out)
    if any(price is not None and not 0 <= price < float("inf") for price in prices):
        raise ValueError("--price-in and --price-out must be at least 0")
    if (args.price_in is None) != (args.price_out is None):
        raise ValueError("--price-in and --price-out belong together")
    key = os.environ.get(args.key_variable or "OPENAI_API_KEY")
    if not key and args.key_variable is not None:
        raise ValueError(f"--key-variable: {args.key_variable} is not set")
    try:
        extra = json.loads(args.extra)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--extra is not JSON: {error}") from None
    if not isinstance(extra, dict):
        raise ValueError("--extra must be a JSON object, such as '{\"top_p\": 1}'")
    endpoint = Endpoint(
        args.endpoint, args.endpoint_model, key or None, args.timeout, args.retries, extra
    )
    run = EndpointRun(endpoint, args.out, args.concurrency)

    def about() -> dict[str, Any]:
        return run.about(*prices)

    image = ImageSpec(args.picture_size)
    return _Model(endpoint.model, image, run.digest, ("image", "text"), run.answer, about)
