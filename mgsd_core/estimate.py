"""What a run will need, before anything is loaded: parameters, tokens, and memory by part.

Nothing here is a formula for what a layer keeps: the largest pass of a stage is run, forward and
backward, with the trainer's own functions on tensors that have shapes but no values, and what
would be alive is added up. What is fixed beside it (weights, optimizer, cache) is counted.
"""

from __future__ import annotations

import random
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy, linear
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import DynamicCache, Qwen3VLForConditionalGeneration

from mgsd_core import prompts, rollout
from mgsd_core.adapters import add_adapter
from mgsd_core.config import ComputeConfig, Config, DistillConfig, LoraConfig, StageConfig
from mgsd_core.distill import Teacher, distill_loss, frozen_teacher, sees_once
from mgsd_core.encoding import length_buckets, prompt_ids, text_ids
from mgsd_core.kernels import WANTED, quicken
from mgsd_core.model import Backbone, default_device
from mgsd_core.products import compiled_bytes
from mgsd_core.training import activation_checkpointing, mixed
from mgsd_core.vocabulary import LossOfLogits, chunk_length, chunked_loss
from sim import LEVELS, sample_split, solve

#: AdamW keeps two moments of every trained parameter, float32.
_MOMENTS = 2 * 4

# States of each family and level that say how long texts are, and steps that are drawn from them.
_STATES = 20
_STEPS = 50


class EstimateError(ValueError):
    """A run that cannot fit; the message says what takes the memory and what to change."""


@dataclass(frozen=True)
class StageEstimate:
    """What one stage needs of every process.

    Attributes:
        name: of the stage.
        trained: parameters that are trained.
        adapter: parameters of the adapter, 0 without.
        tokens: of a step, of all processes: read and written by the student, padding not counted.
        pass_shape: sequences and their length [tokens] in the largest pass.
        parts: bytes of `weights`, `teacher` (a frozen copy), `gradients`, `optimizer`,
            `activations` (kept for the backward pass), `logits` (of one chunk, with what the loss
            and the head's gradient take), `cache` (keys and values of rollouts), `inputs`
            (pictures and the teacher's hidden states of a step) and `kernels` (compiled for a
            CPU). Not all are there at once.
        peak: most bytes at any time.
    """

    name: str
    trained: int
    adapter: int
    tokens: int
    pass_shape: tuple[int, int]
    parts: dict[str, int]
    peak: int


@dataclass(frozen=True)
class Estimate:
    """What a run needs.

    Attributes:
        parameters: of the backbone.
        precision: see `mgsd_core.config.ComputeConfig`.
        processes: that share a step's samples.
        sharded: what is trained is split over them (FSDP2), too.
        stages: in the order in which they run; skipped ones are left out.
    """

    parameters: int
    precision: str
    processes: int
    sharded: bool
    stages: tuple[StageEstimate, ...]


@dataclass(frozen=True)
class _Texts:
    """Lengths of what a stage reads and writes [tokens], a pair (prompt, answer) a sample."""

    lengths: Sequence[tuple[int, int]]
    pictures: bool


@dataclass(frozen=True)
class _Shape:
    """The largest pass of a stage: `rows` sequences of `length`, the last `said` answers."""

    rows: int
    length: int
    said: int
    pictures: bool
    alone: bool  # there is no other pass in its step
    looked: int = 0  # pictures that are looked at once, before all passes


def estimate(
    config: Config,
    outline: Backbone,
    tasks: Sequence[tuple[str, int]] | None = None,
    processes: int = 1,
    sharded: bool = False,
    stages: Sequence[str] = ("text", "coldstart", "distill"),
) -> Estimate:
    """Return what a run needs of every process.

    Args:
        config: of the run.
        outline: the backbone, its weights need no values, see `model.outline_backbone`.
        tasks: (family, level) pairs of the data; default: all.
        processes: that train together.
        sharded: parameters, gradients and optimizer are split over the processes (FSDP2).
        stages: to look at.
    """
    tasks = tasks or [(family, level) for family, of in LEVELS.items() for level in of]
    found = []
    if "text" in stages and config.text is not None and _runs(config.text):
        texts = [_planning(outline, tasks)]
        found.append(_stage(config, "text", outline, config.text, texts, processes, sharded))
    if "coldstart" in stages and _runs(config.coldstart):
        texts = [_questions(outline, tasks)]
        if config.coldstart.replay:
            texts.append(_planning(outline, tasks))
        stage = config.coldstart
        found.append(_stage(config, "coldstart", outline, stage, texts, processes, sharded))
    if "distill" in stages and _runs(config.distill):
        texts = [_responses(config, outline, tasks)]
        found.append(_stage(config, "distill", outline, config.distill, texts, processes, sharded))
    parameters = sum(p.numel() for p in outline.model.parameters())
    return Estimate(parameters, config.compute.precision, processes, sharded, tuple(found))


def check_fits(wanted: Estimate, available: int, where: str) -> None:
    """Raise `EstimateError` when a stage needs more than there is.

    Args:
        wanted: see `estimate`.
        available: bytes for each process.
        where: what has them, for the message.
    """
    for stage in wanted.stages:
        if stage.peak <= available:
            continue
        parts = sorted(stage.parts.items(), key=lambda part: -part[1])
        shown = ", ".join(f"{name} {_gib(size)}" for name, size in parts[:4] if size)
        if not stage.adapter:
            advice = (
                "train an adapter (distill.merge=false)"
                if stage.name == "distill"
                else f"train an adapter ({stage.name}.lora.rank=8)"
            )
            advice += ", or shard it over more processes"
        elif stage.parts["activations"] + stage.parts["logits"] > stage.parts["weights"]:
            advice = (
                "set compute.gradient_checkpointing=true or lower compute.pass_tokens and "
                "compute.logit_mib"
            )
        else:
            advice = "take a smaller backbone or shard it over more processes"
        raise EstimateError(
            f"{stage.name} needs about {_gib(stage.peak)} a process ({shown}), and {where} has "
            f"{_gib(available)}: {advice}"
        )


def available_memory(device: torch.device) -> tuple[int, str]:
    """Return the bytes that a process may take on a device, and what has them."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0], torch.cuda.get_device_name(device)
    lines = Path("/proc/meminfo").read_text().splitlines()
    values = {
        name: int(rest.split()[0]) * 1024 for name, _, rest in (x.partition(":") for x in lines)
    }
    free = values["MemAvailable"]
    limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free, "this machine"


def estimate_dict(wanted: Estimate) -> dict[str, Any]:
    """Return an estimate as plain data; sizes in bytes."""
    return asdict(wanted)


def format_estimate(wanted: Estimate) -> str:
    """Return an estimate as a table for people."""
    split = ", split over them" if wanted.sharded else ""
    lines = [
        f"{wanted.parameters:,} parameters, {wanted.precision}, {wanted.processes} "
        f"process{'es' if wanted.processes > 1 else ''}{split}",
        f"{'memory of a process':24}" + "".join(f"{stage.name:>16}" for stage in wanted.stages),
    ]
    rows: list[tuple[str, list[str]]] = []
    for part in wanted.stages[0].parts if wanted.stages else ():
        rows.append((part, [_gib(stage.parts[part]) for stage in wanted.stages]))
    rows.append(("peak", [_gib(stage.peak) for stage in wanted.stages]))
    rows.append(("trained parameters", [f"{stage.trained:,}" for stage in wanted.stages]))
    rows.append(("of the adapter", [f"{stage.adapter:,}" for stage in wanted.stages]))
    rows.append(("tokens a step", [f"{stage.tokens:,}" for stage in wanted.stages]))
    shapes = [f"{stage.pass_shape[0]} × {stage.pass_shape[1]}" for stage in wanted.stages]
    rows.append(("largest pass", shapes))
    lines += [f"{name:24}" + "".join(f"{value:>16}" for value in values) for name, values in rows]
    return "\n".join(lines)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _runs(stage: StageConfig) -> bool:
    return bool(stage.steps or stage.epochs)


# --- how long texts are -------------------------------------------------------------------------


def _states(tasks: Sequence[tuple[str, int]]) -> list[Any]:
    return [sample_split(f, level, "train", seed) for f, level in tasks for seed in range(_STATES)]


def _questions(outline: Backbone, tasks: Sequence[tuple[str, int]]) -> _Texts:
    asked: dict[str, int] = {}
    lengths = []
    for state in _states(tasks):
        for question, answer in prompts.questions(state):
            if question not in asked:
                prompt = prompts.question_prompt(question, outline.style)
                asked[question] = len(prompt_ids(outline, prompt))
            lengths.append((asked[question], len(text_ids(outline, answer)) + 1))
    return _Texts(lengths, pictures=True)


def _planning(outline: Backbone, tasks: Sequence[tuple[str, int]]) -> _Texts:
    lengths = []
    for state in _states(tasks):
        plan = solve(state) or ()
        prompt = prompts.symbolic_prompt(state, outline.style, plan)
        answer = prompts.response_text(state, plan)
        lengths.append((len(prompt_ids(outline, prompt)), len(text_ids(outline, answer)) + 1))
    return _Texts(lengths, pictures=False)


def _responses(config: Config, outline: Backbone, tasks: Sequence[tuple[str, int]]) -> _Texts:
    """Return the prompts of rollouts, each answered at full length."""
    limit = config.distill.max_response
    if config.distill.slack >= 0:
        states = _states(tasks)
        perfect = [prompts.response_text(state, solve(state) or ()) for state in states]
        longest = max(len(text_ids(outline, text)) for text in perfect)
        limit = min(limit, longest + config.distill.slack)
    read = [prompts.student_prompt(family, outline.style) for family, _ in tasks]
    return _Texts([(len(prompt_ids(outline, p)), limit) for p in read], pictures=True)


def _largest_pass(texts: _Texts, batch: int, compute: ComputeConfig) -> _Shape:
    """Return the largest pass that occurs in steps of `batch` samples drawn from `texts`."""
    rng = random.Random(0)
    found: list[_Shape] = []
    for _ in range(_STEPS):
        drawn = [rng.choice(texts.lengths) for _ in range(batch)]
        groups = length_buckets([sum(pair) for pair in drawn], compute.pass_tokens)
        for group in groups:
            length, said = max(sum(drawn[i]) for i in group), max(drawn[i][1] for i in group)
            found.append(_Shape(len(group), length, said, texts.pictures, len(groups) == 1))
    return max(found, key=lambda shape: shape.rows * shape.length)


# --- a stage ------------------------------------------------------------------------------------


def _stage(
    config: Config,
    name: str,
    outline: Backbone,
    stage: StageConfig,
    texts: Sequence[_Texts],
    processes: int,
    sharded: bool,
) -> StageEstimate:
    compute = config.compute
    lora = None if name == "text" or not config.coldstart.lora.rank else config.coldstart.lora
    if name == "distill" and config.distill.merge:
        lora = None
    batch = -(-stage.batch // processes)
    shapes = [_largest_pass(t, batch, compute) for t in texts]
    if len(shapes) > 1:
        shapes = [replace(shape, alone=False) for shape in shapes]
    if (
        isinstance(stage, DistillConfig)
        and not (lora or sharded)
        and sees_once(outline, stage, compute, processes)
    ):
        shapes = [replace(shape, looked=batch) for shape in shapes]
    with FakeTensorMode():
        student = _student(outline, compute, lora)
        total = sum(p.numel() for p in outline.model.parameters())
        trained = sum(p.numel() for p in student.model.parameters() if p.requires_grad)
        frozen = 4 if compute.precision == "fp32" else 2
        parts = {
            "weights": total * (frozen if lora else 4) + (4 * trained if lora else 0),
            "teacher": total * frozen if name == "distill" and not lora else 0,
            "gradients": 4 * trained,
            "optimizer": _MOMENTS * trained,
        }
        if sharded:
            for part in ("weights", "gradients", "optimizer"):
                parts[part] //= processes
        teacher = None
        if name == "distill":
            teacher = (
                Teacher(student, nullcontext) if lora else frozen_teacher(_frozen(outline, compute))
            )
        measured = [
            _measure_pass(student, compute, shape, _loss(config, student, teacher, shape))
            for shape in shapes
        ]
        working = max(peak for _, _, peak in measured)
        parts["activations"] = max(kept for kept, _, _ in measured)
        parts["logits"] = max(logits for _, logits, _ in measured)
        parts["cache"], reading = 0, 0
        if name == "distill":
            parts["cache"], reading = _rollout(student, compute, texts[0], batch)
    if sharded:
        working -= 4 * trained - parts["gradients"]
        reading += total * 4  # gathered meanwhile
    parts["inputs"] = _inputs(outline, texts, batch, frozen if teacher else 0)
    parts["kernels"] = 0
    if compute.precision == "fp32" and default_device().type == "cpu":
        parts["kernels"] = compiled_bytes(outline.model)
    fixed = parts["weights"] + parts["teacher"] + parts["optimizer"] + parts["kernels"]
    copies = 2 if processes > 1 and not sharded else 1  # one is summed over the processes
    mean = sum(sum(map(sum, t.lengths)) / len(t.lengths) for t in texts) / len(texts)
    return StageEstimate(
        name=name,
        trained=trained,
        adapter=trained if lora else 0,
        tokens=round(stage.batch * mean),
        pass_shape=max(((s.rows, s.length) for s in shapes), key=lambda s: s[0] * s[1]),
        parts=parts,
        peak=fixed + max(parts["inputs"] + working, copies * parts["gradients"], reading),
    )


def _inputs(outline: Backbone, texts: Sequence[_Texts], batch: int, hidden: int) -> int:
    """Return the bytes of a step's pictures, and of what the teacher computed for all responses."""
    spec, width = outline.image, outline.model.config.text_config.hidden_size
    pictures = batch * spec.grid**2 * 3 * spec.temporal * spec.patch**2 * 4
    if not any(t.pictures for t in texts):
        pictures = 0
    return pictures + hidden * width * batch * max(said for t in texts for _, said in t.lengths)


def _student(outline: Backbone, compute: ComputeConfig, lora: LoraConfig | None) -> Backbone:
    """Return the backbone as a stage trains it, of tensors without values."""
    with torch.device("meta"):
        student = replace(outline, model=Qwen3VLForConditionalGeneration(outline.model.config))
        if lora is not None:
            add_adapter(student, lora, 0)
    _on_cpu(student.model, compute)
    quicken(student.model)
    if compute.gradient_checkpointing:
        activation_checkpointing(student.model, True)
    return student


def _frozen(outline: Backbone, compute: ComputeConfig) -> Backbone:
    """Return the backbone as a frozen copy of the base, of tensors without values."""
    with torch.device("meta"):
        base = replace(outline, model=Qwen3VLForConditionalGeneration(outline.model.config))
    base.model.requires_grad_(False)
    _on_cpu(base.model, compute)
    quicken(base.model)
    return base


def _on_cpu(model: torch.nn.Module, compute: ComputeConfig) -> None:
    """Put a model from the device `meta` where operations choose what they would on a real one.

    On `meta` they do not: attention there keeps the whole matrix of weights.
    """
    made: dict[torch.Tensor, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is not None and old not in made:
                frozen = torch.bfloat16 if compute.precision == "bf16" else torch.float32
                kind = torch.float32 if old.requires_grad else frozen
                made[old] = torch.nn.Parameter(
                    torch.empty(old.shape, dtype=kind), old.requires_grad
                )
            if old is not None:
                module._parameters[name] = made[old]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _loss(
    config: Config, student: Backbone, teacher: Teacher | None, shape: _Shape
) -> LossOfLogits:
    count = shape.rows * shape.said
    tokens = torch.zeros(count, dtype=torch.int64)
    if teacher is None:
        return lambda logits, places: (
            cross_entropy(logits, tokens[places], reduction="none"),
            {},
        )
    head = teacher.backbone.model.lm_head.weight
    hidden = torch.empty(count, head.shape[1], dtype=head.dtype)
    return distill_loss(student, teacher, hidden, tokens, config.distill)


# --- a pass, on tensors without values ------------------------------------------------------------


class _Alive(TorchDispatchMode):
    """Adds up the memory of all tensors that operations make while it is active.

    Attributes:
        now: bytes that are alive.
        peak: most that were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [s for s in _storages(result) if s._cdata not in self._known]
        # A view makes nothing; what it looks at may have been there before.
        given = {s._cdata for s in _storages((args, kwargs))} if made else set()
        for storage in made:
            if storage._cdata not in given | self._known:
                self._known.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _storages(tensors: Any) -> list[torch.UntypedStorage]:
    return [t.untyped_storage() for t in tree_iter(tensors) if isinstance(t, torch.Tensor)]


def _measure_pass(
    student: Backbone, compute: ComputeConfig, shape: _Shape, loss_of: LossOfLogits
) -> tuple[int, int, int]:
    """Return the bytes of activations and of logits, and the most with gradients and all else."""
    model = student.model
    model.train()
    alive = _Alive()
    with alive:
        trained = [p for p in model.parameters() if p.requires_grad]
        for parameter in trained:
            parameter.grad = None if shape.alone else torch.zeros_like(parameter)
        before = alive.now
        with mixed(compute, torch.device("cpu")):
            seen = None
            if shape.looked:
                seen = _seen(model, shape.looked, student.image.grid**2)
            hidden = _hidden(student, shape, seen)
            kept, alive.peak = alive.now - before, alive.now
            weight = model.lm_head.weight
            chunk = chunk_length(model.config.text_config.vocab_size, compute.logit_mib)
            loss, _ = chunked_loss(hidden, weight, loss_of, chunk)
        logits = alive.peak - before - kept
        loss.backward()
        del loss, hidden
        peak = alive.peak
        for parameter in trained:
            parameter.grad = None
    return kept, logits, peak


def _hidden(
    student: Backbone,
    shape: _Shape,
    seen: torch.Tensor | None = None,
    past: DynamicCache | None = None,
) -> torch.Tensor:
    """Return the last hidden states of what is said [rows * said, H].

    Sequences begin with a picture. Where its tokens stand does not matter to memory, so they are
    not looked up: that would need values.

    Args:
        student: of tensors without values.
        shape: of the pass.
        seen: of all pictures, where they were looked at before.
        past: is given keys and values.
    """
    model, spec = student.model, student.image
    text = model.model.language_model
    rows, length = shape.rows, shape.length
    embedded = text.embed_tokens(torch.zeros(rows, length, dtype=torch.int64))
    if shape.pictures:
        if seen is None:
            seen = _seen(model, rows, spec.grid**2)
        mine = seen[: rows * spec.tokens].view(rows, spec.tokens, -1)
        embedded = torch.cat([mine.to(embedded.dtype), embedded[:, spec.tokens :]], 1)
    hidden: torch.Tensor = text(
        inputs_embeds=embedded,
        position_ids=torch.zeros(3, rows, length, dtype=torch.int64),
        past_key_values=past,
        use_cache=past is not None,
        **{WANTED: torch.zeros(rows * shape.said, dtype=torch.int64)},
    ).last_hidden_state
    return hidden if hidden.ndim == 2 else hidden[:, -shape.said :].flatten(0, 1)


def _seen(model: Qwen3VLForConditionalGeneration, pictures: int, patches: int) -> torch.Tensor:
    """Return the sum of all that the vision tower gives to the text model."""
    tower = model.model.visual
    kernel = tower.patch_embed.proj
    pixels = torch.empty(pictures * patches, kernel.weight[0].numel(), dtype=kernel.weight.dtype)
    x = linear(pixels, kernel.weight.flatten(1), kernel.bias)
    angles = torch.empty(patches, tower.config.hidden_size // tower.config.num_heads)
    given: list[torch.Tensor] = []
    for i, block in enumerate(tower.blocks):
        x = block(x, cu_seqlens=None, position_embeddings=(angles, angles))
        if i in tower.deepstack_visual_indexes:
            given.append(tower.deepstack_merger_list[len(given)](x))
    return sum(given, tower.merger(x))


@torch.no_grad()
def _rollout(
    student: Backbone, compute: ComputeConfig, texts: _Texts, batch: int
) -> tuple[int, int]:
    """Return the bytes of the finished cache, and the most that rollouts take."""
    model, config = student.model, student.model.config.text_config
    prompt, said = max(texts.lengths)
    column = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * batch
    column *= 4 if compute.precision == "fp32" else 2
    model.eval()
    alive = _Alive()
    with alive, mixed(compute, torch.device("cpu")):
        rows = max(1, min(batch, rollout.READ_TOKENS // prompt))
        shape = _Shape(rows, prompt, 1, True, alone=True)
        _hidden(student, shape, past=DynamicCache(config=config))
    cache = column * (prompt + said)
    # Logits, their copy in float32, their softmax and its sum, for each response.
    writing = batch * config.vocab_size * 4 * 4
    return cache, max(
        column * prompt + alive.peak, cache + cache // config.num_hidden_layers + writing
    )
