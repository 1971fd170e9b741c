"""The command `mgsd evaluate`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.files import write_file

if TYPE_CHECKING:
    from mgsd_core.evaluation.models import JudgedModel
    from mgsd_core.evaluation.score import Record
    from mgsd_core.scenes import Scenes


# Of a picture's side [px].
_LARGEST = 4096


def register_evaluate(commands: Any) -> None:
    """Add `evaluate` to the parser of `mgsd`."""
    parser = commands.add_parser(
        "evaluate",
        help="how well a model plans on held-out scenes or public benchmarks, and why plans fail",
        description="Let a model plan from held-out pictures, execute its plans in the true states "
        "and write results.json, a line for every response, and report.html. Or compare two such "
        "results scene by scene. docs/evaluation.md says what the figures mean.",
    )
    add = parser.add_argument
    judged = parser.add_mutually_exclusive_group(required=True)
    judged.add_argument(
        "--model",
        help="weights trained here; a bundle: then what a robot runs is judged; or any "
        "vision-language checkpoint of Hugging Face's format, a directory or hf:NAME",
    )
    judged.add_argument(
        "--endpoint",
        metavar="URL",
        help="an OpenAI-compatible server, such as http://127.0.0.1:8000/v1: every picture is sent "
        "there; answers are kept in --out, so that a run goes on where it was",
    )
    judged.add_argument(
        "--compare",
        type=Path,
        nargs=2,
        metavar=("A", "B"),
        help="two directories of results about the same scenes: a table of B minus A, with "
        "confidence intervals; with --out also comparison.json",
    )
    scenes = parser.add_mutually_exclusive_group()
    scenes.add_argument("--data", type=Path, help="what `mgsd generate` wrote")
    scenes.add_argument(
        "--cases",
        type=Path,
        help="cases of a public benchmark, as `mgsd cases` reads them: with their own pictures, or "
        "drawn as flat boards",
    )
    add("--out", type=Path, help="directory for results.json")
    add("--split", default="test", help="split of --data to evaluate on")
    add(
        "--planner",
        metavar="DIR",
        help="weights trained here that plan from the state which --model, trained here too, reads "
        "off the picture: two models in a row, to compare with one; of text the planner reads the "
        "true state",
    )
    add(
        "--input",
        choices=("image", "text", "both"),
        help="what the model reads; text is the symbolic state, the upper bound (default: both; of "
        "a bundle, which reads nothing else, and of an endpoint image; with --compare image)",
    )
    add(
        "--swap-images",
        action="store_true",
        help="answer once more with the pictures of other scenes of the same family and level: a "
        "model that looks falls to what chance gives",
    )
    add("--limit", type=int, help="scenes of each family and level [count]")
    add("--batch", type=int, default=64, help="responses at a time [count]; a bundle has 1")
    others = parser.add_argument_group("of models that were not trained here")
    others.add_argument(
        "--picture-size", type=int, help="side of the pictures that they see [px] (default: 512)"
    )
    others.add_argument(
        "--max-tokens",
        type=int,
        help="longest answer [tokens] (default: twice the longest right one, at least 1024)",
    )
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


def _evaluate(args: argparse.Namespace) -> int:
    if args.planner is not None and args.model is None:
        raise ValueError("--planner plans from what --model reads: give --model DIR beside it")
    if args.compare is not None:
        return _compare(args)
    if (args.data is None and args.cases is None) or args.out is None:
        raise ValueError("--data (or --cases) and --out are needed to evaluate a model")
    if args.batch < 1 or (args.limit is not None and args.limit < 1):
        raise ValueError("--batch and --limit must be at least 1")
    if args.picture_size is not None and not 1 <= args.picture_size <= _LARGEST:
        raise ValueError(f"--picture-size must be 1 to {_LARGEST} px, not {args.picture_size}")
    if args.max_tokens is not None and args.max_tokens < 1:
        raise ValueError(f"--max-tokens must be at least 1, not {args.max_tokens}")
    model = _model(args)
    asked = args.input or ("image" if args.endpoint else "both")
    sources = model.reads if asked == "both" else (asked,)
    if not set(sources) <= set(model.reads):
        raise ValueError(f"{args.model} is a bundle: it reads pictures only (--input image)")
    scenes, problems = _scenes(args, model)
    if args.swap_images and not scenes.swapped()[1]:
        raise ValueError("--swap-images needs at least two scenes of a family and level")
    return _judge(args, model, scenes, sources, problems)


def _judge(
    args: argparse.Namespace,
    model: JudgedModel,
    scenes: Scenes,
    sources: tuple[str, ...],
    problems: list[str],
) -> int:
    from mgsd_core.evaluation.answers import plan_records
    from mgsd_core.evaluation.intervals import add_intervals, paired
    from mgsd_core.evaluation.report import write_report
    from mgsd_core.evaluation.results import write_results
    from mgsd_core.evaluation.summary import summarise, table
    from mgsd_core.installed import package_version
    from mgsd_core.prompts import prompts_digest

    args.out.mkdir(parents=True, exist_ok=True)
    # Before hours of answers, not after them.
    write_file(args.out / ".writable", "")
    (args.out / ".writable").unlink()
    records: dict[str, list[Record]] = {}
    rows = []
    for source in sources:
        records[source] = _answers(model, scenes, source, source)
        rows.append((source, add_intervals(summarise(records[source]), records[source])))
    results = dict(rows)
    # The first source stands at the top, where other programs look for it.
    report = {
        "model": model.name,
        "model_digest": model.digest,
        "data": str(args.data or args.cases),
        "data_digest": scenes.digest,
        "split": args.split if args.cases is None else None,
        "limit": args.limit,
        "picture_size": model.image.size,
        "max_tokens": args.max_tokens,
        "prompts": {
            "style": model.style,
            "digest": prompts_digest(model.style, sorted({s.family for s in scenes.states})),
        },
        "version": package_version(),
        "input": sources[0],
        **results[sources[0]],
    }
    if len(sources) == 2:
        gap = paired(list(zip(records["image"], records["text"], strict=True)))
        report["symbolic"] = results["text"]
        report["modality_gap"] = gap["macro"]["success"]["difference"]
        report["modality_gap_interval"] = gap["macro"]["success"]["interval"]
        report["modality_gap_families"] = {
            family: {name: told["success"][name] for name in ("difference", "interval")}
            for family, told in gap["families"].items()
        }
    swapped = None
    if args.swap_images:
        swapped, shown = scenes.swapped()
        records["swapped"] = _answers(model, swapped, "image", "swapped")
        control = add_intervals(summarise(records["swapped"]), records["swapped"])
        # As if the scene that is shown had been read and planned without a fault.
        chance = summarise(plan_records(swapped, [scenes.plans[i] for i in shown]))
        report["image_swapped"] = {**control, "chance": chance}
        rows += [("swapped", control), ("chance", chance)]
    report |= model.about()
    if args.cases is not None:
        report["problems"] = problems
    write_results(args.out, report, records, scenes, swapped)
    page = write_report(args.out)
    print(table(rows), file=sys.stderr)
    where = {"results": str(args.out / "results.json"), "report": str(page)}
    print(json.dumps({**where, **results[sources[0]]["macro"]}))
    return _status(report.get("failed", ()), problems)


def _status(failed: Any, problems: list[str]) -> int:
    for problem in problems:
        print(f"mgsd evaluate: left out: {problem}", file=sys.stderr)
    if failed:
        print(
            f"mgsd evaluate: {len(failed)} answers are missing and count as failures, first "
            f"for {failed[0]['scene']}: {failed[0]['reason']}; the same command asks again",
            file=sys.stderr,
        )
    return 1 if failed or problems else 0


def _compare(args: argparse.Namespace) -> int:
    from mgsd_core.evaluation.compare import compare, comparison_table
    from mgsd_core.evaluation.results import read_results

    asked = ("data", "cases", "limit", "swap_images", "picture_size", "max_tokens", "endpoint")
    if given := [name for name in asked if getattr(args, name) not in (None, False)]:
        option = given[0].replace("_", "-")
        raise ValueError(f"--compare reads results, and takes no --{option}")
    if args.input == "both":
        raise ValueError("--compare looks at one --input: image or text")
    first, second = (read_results(path) for path in args.compare)
    compared = compare(first, second, args.input or "image")
    print(comparison_table(compared), file=sys.stderr)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        write_file(args.out / "comparison.json", json.dumps(compared, indent=1) + "\n")
    print(json.dumps({"count": compared["count"], **compared["macro"]["success"]}))
    return 0


def _scenes(args: argparse.Namespace, model: JudgedModel) -> tuple[Scenes, list[str]]:
    """Return what is evaluated on, and why cases were left out."""
    from mgsd_core.scenes import load_case_scenes, load_scenes
    from sim.cases import CaseError

    if args.cases is None:
        return load_scenes(args.data, args.split, model.image, limit=args.limit), []
    problems: list[str] = []
    try:
        scenes = load_case_scenes(
            args.cases, model.image, args.limit, lambda error: problems.append(str(error))
        )
    except CaseError as error:
        raise ValueError(f"{error}; {problems[0]}" if problems else str(error)) from None
    return scenes, problems


def _answers(model: JudgedModel, scenes: Scenes, source: str, title: str) -> list[Record]:
    from tqdm import tqdm

    with tqdm(total=len(scenes.states), desc=title, unit="scene", disable=None) as bar:
        return model.answer(scenes, source, bar.update)


def _model(args: argparse.Namespace) -> JudgedModel:
    from mgsd_core.evaluation.models import load_model, load_pipeline

    if args.endpoint is not None:
        return _endpoint(args)
    if args.endpoint_model is not None:
        raise ValueError("--endpoint-model needs --endpoint")
    if args.planner is not None:
        return load_pipeline(args.model, args.planner, args.batch)
    return load_model(args.model, args.batch, args.picture_size, args.max_tokens)


def _endpoint(args: argparse.Namespace) -> JudgedModel:
    from mgsd_core.evaluation.endpoint import Endpoint
    from mgsd_core.evaluation.endpoint_run import EndpointRun
    from mgsd_core.evaluation.models import DEFAULT_SIZE, endpoint_model

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
    run = EndpointRun(endpoint, args.out, args.concurrency, args.max_tokens)
    return endpoint_model(run, args.picture_size or DEFAULT_SIZE, *prices)
