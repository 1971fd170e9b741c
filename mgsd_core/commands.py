"""Commands of `mgsd` that train and evaluate; export and plan register themselves beside theirs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.files import write_file

if TYPE_CHECKING:
    from mgsd_core.config import Config
    from mgsd_core.model import Backbone


def register(commands: Any) -> None:
    """Add this package's commands to the parser of `mgsd`."""
    from mgsd_core.commands_export import register_export
    from mgsd_core.commands_plan import register_plan

    formatter = argparse.ArgumentDefaultsHelpFormatter

    coldstart = commands.add_parser(
        "coldstart",
        help="stage 1: teach a backbone to read the state off a picture (nano: stage 0 before it)",
        formatter_class=formatter,
    )
    _add_training_arguments(coldstart)
    coldstart.set_defaults(run=_coldstart)

    distill = commands.add_parser(
        "distill",
        help="stage 2: on-policy self-distillation from the frozen base that reads symbols",
        formatter_class=formatter,
    )
    _add_training_arguments(distill)
    distill.add_argument(
        "--student", type=Path, required=True, help="stage-1 weights (OUT/stage1/model)"
    )
    distill.add_argument(
        "--teacher", type=Path, required=True, help="base weights, before stage 1 (OUT/base/model)"
    )
    distill.set_defaults(run=_distill)

    evaluate = commands.add_parser(
        "evaluate",
        help="success, optimality, legality and state recovery on held-out scenes",
        formatter_class=formatter,
    )
    evaluate.add_argument("--model", type=Path, required=True, help="weights directory")
    evaluate.add_argument("--data", type=Path, required=True, help="what `mgsd generate` wrote")
    evaluate.add_argument("--out", type=Path, required=True, help="directory for results.json")
    evaluate.add_argument("--split", default="test", help="split to evaluate on")
    evaluate.add_argument(
        "--input",
        choices=("image", "text", "both"),
        default="both",
        help="what the model reads; text is the symbolic state, the upper bound",
    )
    evaluate.add_argument("--limit", type=int, help="episodes of each family and level [count]")
    evaluate.add_argument("--batch", type=int, default=64, help="responses at a time [count]")
    evaluate.set_defaults(run=_evaluate)

    register_export(commands)
    register_plan(commands)


def _add_training_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="nano", help="name of a configuration, or a .yaml file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change one setting; may be given again",
    )
    parser.add_argument("--data", type=Path, required=True, help="what `mgsd generate` wrote")
    parser.add_argument(
        "--out", type=Path, required=True, help="directory of the run; the same command resumes it"
    )


def _coldstart(args: argparse.Namespace) -> int:
    from mgsd_core.coldstart import train_coldstart, train_text
    from mgsd_core.config import config_dict, load_config
    from mgsd_core.model import build_nano, default_device, load_backbone
    from mgsd_core.scenes import load_scenes
    from mgsd_core.training import directory_digest

    config = load_config(args.config, args.set)
    settings = config.backbone
    if settings.path is None:
        backbone = build_nano(settings.nano, settings.image_size, settings.seed)
        backbone.model.to(default_device())
        scenes = load_scenes(args.data, "train", backbone.image)
        base = train_text(
            backbone,
            config.text,
            scenes.tasks(),
            args.out / "base",
            {"backbone": config_dict(settings)},
        )
    else:
        backbone = load_backbone(settings.path, settings.image_size, settings.prompt_style)
        backbone.model.float().to(default_device())
        scenes = load_scenes(args.data, "train", backbone.image)
        base = Path(settings.path)
    final = train_coldstart(
        backbone,
        config.coldstart,
        scenes,
        args.out / "stage1",
        {"base": directory_digest(base), "backbone": config_dict(settings)},
    )
    print(json.dumps({"base": str(base), "model": str(final)}))
    return 0


def _distill(args: argparse.Namespace) -> int:
    from mgsd_core.config import load_config
    from mgsd_core.distill import train_distill
    from mgsd_core.evaluate import evaluate, summarise
    from mgsd_core.scenes import load_scenes
    from mgsd_core.training import directory_digest

    config = load_config(args.config, args.set)
    student, teacher = _load(args.student, config), _load(args.teacher, config)
    scenes = load_scenes(args.data, "train", student.image)
    validate = None
    if config.distill.validate_every:
        held_out = load_scenes(
            args.data, "validation", student.image, limit=config.distill.validate_count
        )

        def validate() -> tuple[float, dict[str, float]]:
            macro = summarise(evaluate(student, held_out, "image"))["macro"]
            return macro["success"], {"validation_state": macro["state"]}

    final = train_distill(
        student,
        teacher,
        config.distill,
        scenes,
        args.out / "stage2",
        {"student": directory_digest(args.student), "teacher": directory_digest(args.teacher)},
        validate,
    )
    print(json.dumps({"model": str(final)}))
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from mgsd_core.evaluate import evaluate, record_dict, summarise, table
    from mgsd_core.model import default_device, load_backbone
    from mgsd_core.scenes import load_scenes
    from mgsd_core.training import directory_digest

    if args.batch < 1 or (args.limit is not None and args.limit < 1):
        raise ValueError("--batch and --limit must be at least 1")
    backbone = load_backbone(args.model)
    backbone.model.to(default_device())
    scenes = load_scenes(args.data, args.split, backbone.image, limit=args.limit)
    sources = ("image", "text") if args.input == "both" else (args.input,)
    results: dict[str, Any] = {}
    rows = []
    args.out.mkdir(parents=True, exist_ok=True)
    for source in sources:
        with tqdm(total=len(scenes.states), desc=source, unit="scene", disable=None) as bar:
            records = evaluate(backbone, scenes, source, args.batch, bar.update)
        results[source] = summarise(records)
        rows.append((source, results[source]))
        lines = "".join(json.dumps(record_dict(r)) + "\n" for r in records)
        write_file(args.out / f"responses_{source}.jsonl", lines)
    # The first source stands at the top, where other programs look for it.
    report = {
        "schema_version": 1,
        "model": str(args.model),
        "model_digest": directory_digest(args.model),
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
    write_file(args.out / "results.json", json.dumps(report, indent=1) + "\n")
    print(table(rows), file=sys.stderr)
    print(json.dumps({"results": str(args.out / "results.json"), **report["macro"]}))
    return 0


def _load(path: Path, config: Config) -> Backbone:
    from mgsd_core.model import default_device, load_backbone

    backbone = load_backbone(path, config.backbone.image_size, config.backbone.prompt_style)
    backbone.model.float().to(default_device())
    return backbone
