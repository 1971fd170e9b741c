"""Commands of `mgsd` that train; the others register themselves in modules beside this one."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgsd_core.places import weights_place, weights_word

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from accelerate import Accelerator

    from mgsd_core.config import ComputeConfig, Config, StageConfig
    from mgsd_core.evaluation.score import Record
    from mgsd_core.model import Backbone
    from mgsd_core.scenes import Scenes
    from mgsd_core.training import ValidateFunction
    from sim.request import Exclusion


def register(commands: Any) -> None:
    """Add this package's commands to the parser of `mgsd`."""
    from mgsd_core.commands_engine import register_engine
    from mgsd_core.commands_evaluate import register_evaluate
    from mgsd_core.commands_experiment import register_experiment
    from mgsd_core.commands_export import register_export
    from mgsd_core.commands_family import register_family
    from mgsd_core.commands_inspect import register_inspect
    from mgsd_core.commands_plan import register_plan
    from mgsd_core.commands_report import register_report

    coldstart = commands.add_parser(
        "coldstart",
        help="stage 1: teach a backbone to read the state off a picture (nano: stage 0 before it)",
    )
    _add_training_arguments(coldstart)
    coldstart.add_argument(
        "--base",
        type=weights_place,
        help="weights to start from instead of the configuration's: a directory or hf:NAME",
    )
    coldstart.set_defaults(run=_coldstart)

    distill = commands.add_parser(
        "distill",
        help="stage 2: on-policy self-distillation from the frozen base that reads symbols",
    )
    _add_training_arguments(distill)
    distill.add_argument(
        "--student",
        type=weights_place,
        required=True,
        help="stage-1 weights (OUT/stage1/model): a directory or hf:NAME",
    )
    distill.add_argument(
        "--teacher",
        type=weights_place,
        help="base weights, before stage 1 (OUT/base/model): a directory or hf:NAME; an adapter "
        "knows its own",
    )
    distill.set_defaults(run=_distill)

    register_evaluate(commands)
    register_report(commands)
    register_experiment(commands)
    register_family(commands)
    register_export(commands)
    register_inspect(commands)
    register_engine(commands)
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
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="what `mgsd generate` wrote, or a folder of pictures with states",
    )
    parser.add_argument(
        "--limit", type=int, help="training scenes of each family and level [count]; default: all"
    )
    parser.add_argument(
        "--exclude",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="benchmark cases (see `mgsd cases`) whose states are not learned from; the same paths "
        "as of `mgsd generate`. May be given several times",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="directory of the run; the same command resumes it"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what memory the run takes, by part, and whether it is there; load nothing",
    )


def _coldstart(args: argparse.Namespace) -> int:
    return _in_processes(args, ["text", "coldstart"], _train_coldstart)


def _distill(args: argparse.Namespace) -> int:
    return _in_processes(args, ["distill"], _train_distill)


def _in_processes(
    args: argparse.Namespace,
    stages: Sequence[str],
    train: Callable[[argparse.Namespace, Config, Accelerator], dict[str, str]],
) -> int:
    """Join the processes of the run, train in all of them, and print the result in one."""
    from mgsd_core.config import load_config
    from mgsd_core.processes import end_processes, start_processes

    config = load_config(args.config, args.set)
    processes = start_processes(config.compute)
    _check_memory(config, processes, stages, show=args.dry_run)
    if not args.dry_run:
        result = train(args, config, processes)
        if processes.is_main_process:
            print(json.dumps(result | {"processes": processes.num_processes}))
    end_processes(processes)
    return 0


def _train_coldstart(
    args: argparse.Namespace, config: Config, processes: Accelerator
) -> dict[str, str]:
    from mgsd_core.adapters import add_adapter
    from mgsd_core.coldstart import (
        check_not_shown,
        check_same_exclusion,
        state_recovery,
        train_coldstart,
        train_text,
    )
    from mgsd_core.config import config_dict
    from mgsd_core.model import build_nano, load_backbone
    from mgsd_core.scenes import load_scenes
    from sim.cases import excluded_states

    exclude = excluded_states(args.exclude)
    settings = config.backbone
    lora = config.coldstart.lora
    source = args.base or settings.path
    if source is None:
        backbone = build_nano(settings.nano, settings.image_size, settings.seed)
    else:
        backbone = load_backbone(
            source,
            settings.image_size,
            settings.prompt_style,
            _dtype(config, trained=not lora.rank),
        )
        if Path(source).is_dir():  # an adapter must find it from any directory
            backbone.model.name_or_path = str(Path(source).resolve())
    scenes = load_scenes(args.data, "train", backbone.image, _limit(args))
    text = config.text if source is None else None
    # Without text planning nothing is learned but what the pictures show.
    if exclude or text is not None or config.coldstart.replay:
        check_same_exclusion(args.data, scenes.tasks(), exclude)
    check_not_shown(scenes, exclude)
    judge, measure = (
        (state_recovery, "state") if config.coldstart.target == "state" else (_plans, "success")
    )
    validate, judged_on = _validation(
        args.data,
        config.coldstart,
        config.compute,
        processes,
        backbone,
        judge,
        measure,
        exclude,
    )
    if text is not None:
        base = train_text(
            backbone,
            text,
            config.compute,
            processes,
            scenes.tasks(),
            args.out / "base",
            {"backbone": config_dict(settings)},
            exclude,
        )
        backbone.model.name_or_path = str(base.resolve())
    if lora.rank:
        add_adapter(backbone, lora, config.coldstart.seed)
    final = train_coldstart(
        backbone,
        config.coldstart,
        config.compute,
        processes,
        scenes,
        args.out / "stage1",
        {
            "base": _identity(backbone.model.name_or_path),
            "backbone": config_dict(settings),
            **judged_on,
        },
        validate,
        exclude,
    )
    return {"base": weights_word(backbone.model.name_or_path), "model": str(final)}


def _train_distill(
    args: argparse.Namespace, config: Config, processes: Accelerator
) -> dict[str, str]:
    from mgsd_core.adapters import AdapterError, base_of, merge_adapter, train_adapter
    from mgsd_core.coldstart import check_not_shown, check_same_exclusion
    from mgsd_core.distill import adapter_off_teacher, frozen_teacher, train_distill
    from mgsd_core.model import load_backbone
    from mgsd_core.scenes import load_scenes
    from sim.cases import excluded_states

    exclude = excluded_states(args.exclude)
    base = base_of(args.student)
    if base is None and args.teacher is None:
        raise AdapterError(
            f"{args.student} holds all weights, no adapter: say with --teacher which base it had"
        )
    if base is not None and args.teacher is not None and not _same(base, args.teacher):
        raise AdapterError(
            f"the adapter in {args.student} stands on {base}: {args.teacher} cannot be its teacher"
        )
    keep = base is not None and not config.distill.merge
    settings = config.backbone
    form = (settings.image_size, settings.prompt_style)
    student = load_backbone(args.student, *form, _dtype(config, trained=not keep))
    if keep:
        train_adapter(student)
        teacher = adapter_off_teacher(student)
    else:
        merge_adapter(student)
        below = load_backbone(args.teacher or base or "", *form, _dtype(config, trained=False))
        teacher = frozen_teacher(below)
    scenes = load_scenes(args.data, "train", student.image, _limit(args))
    if exclude or config.distill.replay:
        check_same_exclusion(args.data, scenes.tasks(), exclude)
    check_not_shown(scenes, exclude)
    validate, judged_on = _validation(
        args.data, config.distill, config.compute, processes, student, _plans, "success", exclude
    )
    final = train_distill(
        student,
        teacher,
        config.distill,
        config.compute,
        processes,
        scenes,
        args.out / "stage2",
        {
            "student": _identity(str(args.student)),
            "teacher": _identity(str(args.teacher or base)),
            "prompt_style": student.style,
            **judged_on,
        },
        validate,
        config.coldstart,
        exclude,
    )
    return {"model": str(final)}


def _limit(args: argparse.Namespace) -> int | None:
    if args.limit is not None and args.limit < 1:
        raise ValueError("--limit must be at least 1")
    limit: int | None = args.limit
    return limit


def _plans(backbone: Backbone, held_out: Scenes) -> list[Record]:
    from mgsd_core.evaluation.answers import evaluate

    return evaluate(backbone, held_out, "image")


def _check_memory(
    config: Config, processes: Accelerator, stages: Sequence[str], show: bool
) -> None:
    """Refuse stages that cannot fit into the memory here, before anything is loaded.

    nano fits everywhere: it is looked at where somebody asks only.
    """
    from mgsd_core.estimate import (
        available_memory,
        check_fits,
        estimate,
        estimate_dict,
        format_estimate,
    )
    from mgsd_core.model import build_nano, outline_backbone
    from mgsd_core.processes import wants_shards

    settings = config.backbone
    if settings.path is not None:
        outline = outline_backbone(settings.path, settings.image_size, settings.prompt_style)
    elif show:
        outline = build_nano(settings.nano, settings.image_size, settings.seed)
    else:
        return
    wanted = estimate(
        config, outline, None, processes.num_processes, wants_shards(processes), stages
    )
    if show and processes.is_main_process:
        print(format_estimate(wanted), file=sys.stderr)
        print(json.dumps(estimate_dict(wanted)))
    check_fits(wanted, *available_memory(processes.device))


def _dtype(config: Config, trained: bool) -> Any:
    """Return how weights are kept: what is trained in float32, frozen ones as they are used."""
    import torch

    return torch.float32 if trained or config.compute.precision == "fp32" else torch.bfloat16


def _identity(source: str) -> str:
    """Return what says which weights these are: the digest of a directory, or a name."""
    from mgsd_core.training import directory_digest

    return directory_digest(Path(source)) if Path(source).is_dir() else source


def _same(one: Path | str, other: Path | str) -> bool:
    if isinstance(one, str) or isinstance(other, str):  # a name on a hub
        return one == other
    return one == other or (one.exists() and other.exists() and one.samefile(other))


def _validation(
    data: Path,
    stage: StageConfig,
    compute: ComputeConfig,
    processes: Accelerator,
    backbone: Backbone,
    judge: Callable[[Backbone, Scenes], list[Record]],
    measure: str,
    exclude: Exclusion,
) -> tuple[ValidateFunction | None, dict[str, str]]:
    """Return what scores a stage on held-out scenes by the macro average of a measure.

    Beside it what names these scenes in what a resumed run compares: they choose its best weights.
    The scenes are shared out among the processes. None may show a state of `exclude`.
    """
    from mgsd_core.coldstart import check_not_shown
    from mgsd_core.evaluation.summary import MEASURES, summarise
    from mgsd_core.processes import agree, share, together
    from mgsd_core.scenes import load_scenes
    from mgsd_core.training import mixed

    if not stage.validate_every:
        return None, {}
    held_out = load_scenes(data, "validation", backbone.image, limit=stage.validate_count)
    check_not_shown(held_out, exclude)
    mine = held_out.part(share(processes, range(len(held_out.states))))

    def validate() -> tuple[float, dict[str, float]]:
        records: list[Record] = []
        failed: Exception | None = None
        try:
            with mixed(compute, processes.device):
                records = judge(backbone, mine)
        except (ValueError, OSError) as error:
            failed = error
        agree(processes, failed)
        macro = summarise(together(processes, records))["macro"]
        return macro[measure], {f"validation_{m}": macro[m] for m in MEASURES if m != measure}

    return validate, {"validation": held_out.digest}
