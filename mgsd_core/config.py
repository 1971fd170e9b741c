"""Settings of a training run: a YAML file, a frozen dataclass a section, every value checked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from mgsd_core.estimators import DIRECTIONS, ESTIMATORS
from mgsd_core.model import NanoConfig
from mgsd_core.prompts import PROMPT_STYLES

T = TypeVar("T")


#: Of the products in forward and backward passes.
PRECISIONS = ("fp32", "bf16")

#: What a supervised stage on pictures teaches.
TARGETS = ("state", "plan")


class ConfigError(ValueError):
    """A setting that is unknown or out of range; the message names it."""


@dataclass(frozen=True)
class BackboneConfig:
    """Which model is trained.

    Attributes:
        path: directory or name of Qwen3-VL weights; None builds `nano` from nothing.
        image_size: side of the pictures the model sees [px].
        prompt_style: `brief` or `full`, see `mgsd_core.prompts`.
        nano: sizes of `nano`; ignored when `path` is given.
        seed: of nano's random weights.
    """

    path: str | None = None
    image_size: int = 128
    prompt_style: str = "brief"
    nano: NanoConfig = field(default_factory=NanoConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        _choice("backbone.prompt_style", self.prompt_style, PROMPT_STYLES)
        if self.path is None and self.prompt_style != "brief":
            raise ConfigError("backbone.prompt_style must be brief for nano: it reads nothing else")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on all linear layers but the vocabulary head (arXiv 2106.09685).

    Attributes:
        rank: 0 trains all parameters instead.
        alpha: an adapter's output is scaled by alpha / rank.
        dropout: of an adapter's input; what is dropped follows seed and step, and differs between
            the processes that train together.
    """

    rank: int = 0
    alpha: int = 16
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _at_least("lora.rank", self.rank, 0)
        _at_least("lora.alpha", self.alpha, 1)
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"lora.dropout must be in [0, 1), not {self.dropout}")


@dataclass(frozen=True)
class ComputeConfig:
    """How a step is computed; none of it changes what is computed beyond rounding.

    Attributes:
        precision: `fp32`, or `bf16`: products in bfloat16; parameters that are trained, the
            optimizer and everything over the vocabulary stay float32, frozen weights do not.
        gradient_checkpointing: keep one activation a layer and compute the rest again.
        pass_tokens: most tokens, padding included, of one pass forward and backward; a step's
            batch is split into such passes by length, and a longer sequence is a pass of its own.
        logit_mib: most memory that the logits of one side take at a time [MiB]; at least one
            token's.
        max_tokens: longest sequence, prompt with picture and answer [tokens].
    """

    precision: str = "fp32"
    gradient_checkpointing: bool = False
    pass_tokens: int = 2048
    logit_mib: int = 24
    max_tokens: int = 2048

    def __post_init__(self) -> None:
        _choice("compute.precision", self.precision, PRECISIONS)
        for key in ("pass_tokens", "logit_mib", "max_tokens"):
            _at_least(f"compute.{key}", getattr(self, key), 1)


@dataclass(frozen=True)
class StageConfig:
    """What all stages have in common.

    Attributes:
        steps: optimizer steps; 0 skips the stage, unless `epochs` says how many.
        epochs: passes over the samples, instead of `steps`. Samples are every picture; of stage 1
            without `by_length` every question of every picture. Replayed text comes on top of them.
            Stage 0 has none to come back to, and takes `steps` only.
        batch: samples a step, of all processes together.
        learning_rate: peak of the schedule.
        schedule: `cosine` to zero, or `constant`; both after the warm-up.
        warmup: share of the steps over which the rate rises from zero.
        weight_decay: of AdamW.
        clip: largest gradient norm.
        checkpoint_every: steps between checkpoints.
        validate_every: steps between validations, the best weights are kept; 0 keeps the last.
        validate_count: validation episodes of each family and level.
        patience: validations in a row without a better score after which the stage ends early; 0
            never ends it.
        seed: of data order and samples.
    """

    batch: int
    learning_rate: float
    steps: int = 0
    epochs: float = 0.0
    schedule: str = "cosine"
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    checkpoint_every: int = 100
    validate_every: int = 0
    validate_count: int = 50
    patience: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        name = type(self).__name__
        for key in ("batch", "checkpoint_every", "validate_count"):
            _at_least(f"{name}.{key}", getattr(self, key), 1)
        for key in ("steps", "epochs", "validate_every", "patience"):
            _at_least(f"{name}.{key}", getattr(self, key), 0)
        for key in ("learning_rate", "weight_decay"):
            _at_least(f"{name}.{key}", getattr(self, key), 0)
        for key in ("epochs", "learning_rate", "weight_decay"):
            if not math.isfinite(getattr(self, key)):
                raise ConfigError(f"{name}.{key} must be finite, not {getattr(self, key)}")
        if not self.clip > 0:  # 0 learns nothing, and below it goes uphill
            raise ConfigError(f"{name}.clip must be above 0, not {self.clip}")
        if self.steps and self.epochs:
            raise ConfigError(f"{name}: give steps or epochs, not both")
        _choice(f"{name}.schedule", self.schedule, ("cosine", "constant"))
        if not 0.0 <= self.warmup < 1.0:
            raise ConfigError(f"{name}.warmup must be in [0, 1), not {self.warmup}")

    @property
    def replayed(self) -> int:
        """Samples a step that are replayed text."""
        return 0


@dataclass(frozen=True)
class TextConfig(StageConfig):
    """Stage 0, `nano` only: planning from text, what a pretrained backbone already can.

    Attributes:
        reference: share of the prompts that hold the reference plan.
        detours: share of the responses that begin with a given detour, to be gone on from: the
            teacher of stage 2 meets such ones.
        own_state: share of the samples whose prompt does not tell the state; the response begins
            with it, and the plan is learned: a student plans from what it has said itself.
    """

    reference: float = 0.5
    detours: float = 0.0
    own_state: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs:
            raise ConfigError("text.epochs: every sample is a new one, so give text.steps")
        _share("text.reference", self.reference)
        _share("text.detours", self.detours)
        _share("text.own_state", self.own_state)


@dataclass(frozen=True)
class ColdstartConfig(StageConfig):
    """Stage 1: questions about the state of an image.

    Attributes:
        target: `state`, stage 1 itself; or `plan`: instead of questions the planning instruction,
            answered by a reference plan. That is what one would do without MGSD, to compare with.
        replay: share of the samples that are stage 0's text planning, so that a small model does
            not forget how to plan.
        reference: share of the replayed prompts that hold the reference plan.
        detours: share of the replayed responses that begin with a given detour.
        own_state: share of the replayed samples whose state stands in the response alone.
        by_length: ask every picture once an epoch, a long answer's question more often; otherwise
            ask every question of every picture once an epoch.
        curriculum: share of the steps over which the levels join in, the smallest first, one after
            the other; 0 shows all from the start.
        lora: the adapter that is trained, if any.
    """

    target: str = "state"
    replay: float = 0.0
    reference: float = 0.5
    detours: float = 0.0
    own_state: float = 0.0
    by_length: bool = True
    curriculum: float = 0.0
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _choice("coldstart.target", self.target, TARGETS)
        _replay("coldstart.replay", self.replay, self)
        _share("coldstart.reference", self.reference)
        _share("coldstart.detours", self.detours)
        _share("coldstart.own_state", self.own_state)
        _share("coldstart.curriculum", self.curriculum)
        if self.curriculum and not self.by_length:
            raise ConfigError("coldstart.curriculum is for coldstart.by_length=true only")

    @property
    def replayed(self) -> int:
        """See `StageConfig`."""
        return round(self.batch * self.replay)


@dataclass(frozen=True)
class DistillConfig(StageConfig):
    """Stage 2: on-policy self-distillation.

    Attributes:
        estimator: `full`, `topk` or `sampled`, see `mgsd_core.estimators`.
        direction: `reverse`, `forward` or `jsd`; `sampled` is always reverse.
        mix: weight of the teacher in `jsd`.
        topk: tokens of `topk`.
        clip_low, clip_high, dual_clip: bounds of `sampled`'s policy ratio, see
            `estimators.sampled_loss`.
        reference: the teacher reads the reference plan.
        temperature: of the rollouts.
        max_response: longest rollout [tokens].
        slack: tokens that a rollout may be longer than the longest reference response of its
            step; negative: as long as `max_response`.
        replay: share of the samples that are text planning, so that a small model does not forget
            it: as `coldstart` replays it, the state in the response alone.
        merge: merge the student's adapter and train all parameters against a frozen copy of the
            base, as published; otherwise an adapter stays one, and the teacher is the same
            weights with it switched off.
    """

    estimator: str = "full"
    direction: str = "reverse"
    mix: float = 0.5
    topk: int = 32
    clip_low: float = 0.2
    clip_high: float = 0.3
    dual_clip: float = 3.0
    reference: bool = True
    temperature: float = 1.0
    max_response: int = 2048
    slack: int = 16
    replay: float = 0.0
    merge: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _choice("distill.estimator", self.estimator, ESTIMATORS)
        _choice("distill.direction", self.direction, DIRECTIONS)
        _replay("distill.replay", self.replay, self)
        _at_least("distill.topk", self.topk, 1)
        _at_least("distill.max_response", self.max_response, 1)
        if not (0.0 < self.clip_low < 1.0 and self.clip_high > 0.0 and self.dual_clip > 1.0):
            raise ConfigError(
                "distill.clip_low must be in (0, 1), clip_high above 0 and dual_clip above 1, not "
                f"{self.clip_low}, {self.clip_high} and {self.dual_clip}"
            )
        if not 0.0 < self.mix < 1.0:
            raise ConfigError(f"distill.mix must be between 0 and 1, not {self.mix}")
        if self.estimator == "sampled" and self.direction != "reverse":
            raise ConfigError("distill.direction must be reverse with the sampled estimator")
        if not self.temperature > 0:
            raise ConfigError(f"distill.temperature must be above 0, not {self.temperature}")

    @property
    def replayed(self) -> int:
        """See `StageConfig`."""
        return round(self.batch * self.replay)


@dataclass(frozen=True)
class Config:
    """A whole run: the backbone, its stages and how they are computed.

    `text` is None for pretrained weights, which can plan from text already.
    """

    backbone: BackboneConfig
    coldstart: ColdstartConfig
    distill: DistillConfig
    text: TextConfig | None = None
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        if (self.backbone.path is None) != (self.text is not None):
            raise ConfigError(
                "the section text is for nano, which is built from nothing (no backbone.path)"
            )


def load_config(source: str, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, or a configuration that comes with the package by its name (`nano`).

    Args:
        source: path of a YAML file, or a name.
        overrides: `section.key=value` settings that win over the file.

    Raises:
        ConfigError: not there, not YAML, an unknown key, or a value of the wrong type or range.
    """
    data = _read_yaml(source)
    for override in overrides:
        key, equals, value = override.partition("=")
        parts = key.split(".")
        if not equals or not all(parts):
            raise ConfigError(f"{override!r} is not of the form section.key=value")
        section = data
        for part in parts[:-1]:
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                raise ConfigError(f"{key}: {part} is no section")
        section[parts[-1]] = _parse(value, f"the value of {key}")
    return build(Config, data, "")


def config_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as plain data."""
    return dataclasses.asdict(config)


def _read_yaml(source: str) -> dict[str, Any]:
    packaged = files("mgsd_core") / "configs" / f"{source}.yaml"
    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"there is no configuration file {source}")
        text = path.read_text()
    elif packaged.is_file():
        text = packaged.read_text()
    else:
        entries = (files("mgsd_core") / "configs").iterdir()
        names = sorted(e.name[:-5] for e in entries if e.name.endswith(".yaml"))
        raise ConfigError(f"no configuration {source!r}; there are {', '.join(names)}, or a .yaml")
    data = _parse(text, source)
    if not isinstance(data, dict):
        raise ConfigError(f"{source} must hold sections")
    return data


def _parse(text: str, what: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # the latter of a day that no month has
        raise ConfigError(f"{what} is not YAML: {' '.join(str(error).split())}") from None


def build(cls: type[T], data: Any, where: str) -> T:
    """Return a dataclass made from plain data; ConfigError names a key or value that does not fit.

    Args:
        cls: the dataclass.
        data: a mapping of its fields.
        where: what stands before the names of the fields in messages.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where or 'the configuration'} must hold keys, not {data!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(data) - set(fields)):
        raise ConfigError(f"unknown setting {_join(where, str(unknown[0]))}")
    types = get_type_hints(cls)
    values: dict[str, Any] = {}
    for name, spec in fields.items():
        if name not in data:
            if spec.default is spec.default_factory is dataclasses.MISSING:
                raise ConfigError(f"setting {_join(where, name)} is missing")
            continue
        values[name] = _convert(data[name], types[name], _join(where, name))
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as error:  # of a class that does not know where it stands
        raise ConfigError(_join(where, str(error))) from None


def _convert(value: Any, wanted: Any, name: str) -> Any:
    if isinstance(wanted, UnionType):  # of one type and None
        return None if value is None else _convert(value, get_args(wanted)[0], name)
    if dataclasses.is_dataclass(wanted):
        return build(wanted, value, name)  # type: ignore[arg-type]
    if wanted is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if wanted is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if wanted is bool and isinstance(value, bool):
        return value
    if wanted is str and isinstance(value, str):
        return value
    if get_origin(wanted) is tuple:
        if isinstance(value, (list, tuple)):
            of = get_args(wanted)[0]
            return tuple(_convert(v, of, f"{name}[{i}]") for i, v in enumerate(value))
        raise ConfigError(f"{name} must be a list, not {value!r}")
    raise ConfigError(f"{name} must be {wanted.__name__}, not {value!r}")


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise ConfigError(f"{name} must be at least {least}, not {value}")


def _share(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"{name} must be from 0 to 1, not {value}")


def _replay(name: str, value: float, stage: StageConfig) -> None:
    _share(name, value)
    if stage.replayed == stage.batch:
        raise ConfigError(f"{name} leaves no sample for pictures; make it smaller")
