"""A step of stage 2 against the straightforward loop and against TRL, in one run.

python benchmarks/distill_step.py --json distill_step.json
python benchmarks/distill_step.py --trl-python /elsewhere/bin/python --json distill_step.json

Every side takes whole steps (rollout, teacher, student, update) with the same weights, the same
pictures of lakes and mazes of level 3 in the same batches, the exact reverse KL, AdamW, float32:

- `ours`: `mgsd_core.distill.train_distill`, logging and the final weights on the disk included.
- `plain`: transformers' `generate`, one pass with the full float32 logits [B, S, V] of student and
  teacher, the divergence on the response's tokens, one backward pass. The teacher is a model of its
  own, also where the student has an adapter.
- `trl`: `trl.DistillationTrainer`, run where `import trl` works in `--trl-python` (beside what this
  package imports); else its figures are left out.

What TRL's trainer cannot do, as of 1.16.0: its teacher reads the student's own input, picture and
all, so no symbols, no reference plan, and the image is never left out; the teacher is a second
model, also with an adapter (never the same weights with it switched off); it offers no estimator
but the whole vocabulary's, and its loss does not leave out what rollouts suppress; on a CPU it
projects padding too. So its steps are the same work with another teacher's prompt, and its loss is
not comparable. It does read pictures and never holds the whole logits. (`trl.experimental.sdft` has
a privileged teacher and can switch an adapter off, but reads text only.)

Sizes: `nano` as configured; `vocabulary`, nano with Qwen3-VL's 151,936 tokens; `adapter`, the same
with an adapter of rank 8. Models are untrained, so responses run to the limit on every side.
Tokens are those of the responses, up to where each ends; tokens/s is the median step's, after
a warm-up. Peak memory (weights, optimizer and teacher included) is what a fresh process takes on
top of its imports; on a GPU it is what torch allocated there. The sides take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from PIL import Image
from torch.nn.functional import kl_div, log_softmax
from transformers import AutoImageProcessor, LogitsProcessor, LogitsProcessorList
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from mgsd_core import prompts
from mgsd_core.adapters import add_adapter
from mgsd_core.config import Config, LoraConfig, load_config
from mgsd_core.distill import adapter_off_teacher, frozen_teacher, train_distill
from mgsd_core.encoding import make_batch, prompt_ids, text_ids
from mgsd_core.model import Backbone, build_nano, default_device, load_backbone, save_backbone
from mgsd_core.processes import start_processes
from mgsd_core.runtime.preprocess import ImageSpec
from mgsd_core.scenes import Scenes, load_scenes
from mgsd_core.training import epoch_indices
from sim.dataset import write_dataset
from sim.request import DatasetRequest

#: Tokens of Qwen3-VL's tokenizer, and rows of its embedding.
QWEN_TOKENS, QWEN_VOCABULARY = 151_669, 151_936

#: Steps that are not timed.
WARM_UP = 1

#: The sides' first losses differ by what was sampled and by the few tokens that ours leaves out.
LOSS_TOLERANCE = 0.1


@dataclass(frozen=True)
class Size:
    """What is trained: prompts a step, embedding rows (0: nano's own), and the adapter's rank."""

    batch: int
    vocabulary: int = 0
    rank: int = 0


SIZES = {
    "nano": Size(batch=32),
    "vocabulary": Size(batch=8, vocabulary=QWEN_VOCABULARY),
    "adapter": Size(batch=8, vocabulary=QWEN_VOCABULARY, rank=8),
}


@dataclass(frozen=True)
class Job:
    """What one process runs.

    Attributes:
        side: `ours`, `plain` or `trl`.
        size: a key of `SIZES`.
        work: directory with `data`, `base` and `student`.
        steps: steps, warm-up included.
        longest: longest response [tokens].
        threads: of torch.
        settings: `section.key=value` for the configuration of `ours`.
    """

    side: str
    size: str
    work: str
    steps: int
    longest: int
    threads: int
    settings: list[str] = field(default_factory=list)

    def config(self) -> Config:
        """Return the configuration of a run of this job."""
        return load_config(
            "nano",
            [
                f"distill.batch={SIZES[self.size].batch}",
                f"distill.steps={self.steps}",
                f"distill.max_response={self.longest}",
                "distill.slack=-1",
                "distill.validate_every=0",
                *self.settings,
            ],
        )

    def backbone(self, name: str) -> Backbone:
        """Load `base`, or the `student`; with an adapter, both have the same weights."""
        rank = SIZES[self.size].rank
        backbone = load_backbone(Path(self.work) / ("base" if rank else name))
        if rank and name == "student":
            add_adapter(backbone, LoraConfig(rank=rank), seed=0)
        return backbone


@dataclass(frozen=True)
class Steps:
    """Of every step its duration [s] and response tokens; the first step's loss."""

    seconds: list[float]
    tokens: list[float]
    loss: float


def ours(job: Job, scenes: Scenes) -> Steps:
    """Take this package's steps."""
    student = job.backbone("student")
    rank = SIZES[job.size].rank
    teacher = adapter_off_teacher(student) if rank else frozen_teacher(job.backbone("base"))
    config = job.config()
    with tempfile.TemporaryDirectory() as out:
        train_distill(
            student,
            teacher,
            config.distill,
            config.compute,
            start_processes(config.compute),
            scenes,
            Path(out),
            {},
        )
        lines = [json.loads(x) for x in (Path(out) / "metrics.jsonl").read_text().splitlines()]
        # The duration of a step is in TensorBoard's file alone.
        from tensorboard.backend.event_processing import event_accumulator  # type: ignore[import-untyped]

        events = event_accumulator.EventAccumulator(str(Path(out) / "tensorboard")).Reload()
        seconds = [event.value for event in events.Scalars("seconds")]
    return Steps(seconds, [line["tokens"] for line in lines], lines[0]["loss"])


class Suppress(LogitsProcessor):
    """Suppresses tokens in one addition; transformers' own looks all of them up at every step."""

    def __init__(self, backbone: Backbone) -> None:
        self.bias = torch.zeros(backbone.model.config.text_config.vocab_size)
        self.bias[backbone.suppressed_tokens()] = -torch.inf
        self.bias = self.bias.to(backbone.model.device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores with the tokens suppressed."""
        return scores + self.bias


def end_tokens(backbone: Backbone) -> list[int]:
    """Return the tokens that end a response; nano writes `</answer>` as one."""
    return [backbone.end_token, *text_ids(backbone, prompts.STOP_TEXT)]


def plain(job: Job, scenes: Scenes) -> Steps:
    """Take the straightforward loop's steps."""
    config = job.config().distill
    student, base = job.backbone("student"), job.backbone("base")
    device = default_device()
    model, teacher = student.model.to(device), base.model.to(device)
    teacher.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    suppress = LogitsProcessorList([Suppress(student)])
    style = student.style
    asked = [prompt_ids(student, prompts.student_prompt(s.family, style)) for s in scenes.states]
    told = [
        prompt_ids(base, prompts.symbolic_prompt(s, style, plan))
        for s, plan in zip(scenes.states, scenes.plans, strict=True)
    ]
    seconds, tokens, losses = [], [], []
    for step in range(job.steps):
        began = time.perf_counter()
        chosen = epoch_indices(len(scenes.states), config.batch, config.seed, step)
        batch = make_batch(
            student, [asked[i] for i in chosen], images=scenes.images[chosen], left=True
        ).to(device)
        pictures = {"pixel_values": batch.pixels, "image_grid_thw": batch.grid}
        model.eval()
        ids = model.generate(
            input_ids=batch.ids,
            attention_mask=batch.mask.long(),
            mm_token_type_ids=(batch.ids == student.image_token).int(),
            **pictures,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=job.longest,
            eos_token_id=end_tokens(student),
            pad_token_id=student.pad_token,
            logits_processor=suppress,
        )
        responses = ids[:, batch.ids.shape[1] :]
        said = responses != student.pad_token  # which is never sampled, and follows the end
        places = slice(-responses.shape[1] - 1, -1)  # a token is predicted at the one before it

        model.train()
        logits = model(
            input_ids=ids,
            attention_mask=torch.cat([batch.mask, said], 1).long(),
            mm_token_type_ids=(ids == student.image_token).int(),
            **pictures,
            use_cache=False,
        ).logits.float()
        read = make_batch(base, [told[i] for i in chosen], left=True).to(device)
        with torch.no_grad():
            target = teacher(
                input_ids=torch.cat([read.ids, responses], 1),
                attention_mask=torch.cat([read.mask, said], 1).long(),
                use_cache=False,
            ).logits.float()
        log_p, log_q = log_softmax(logits[:, places], -1), log_softmax(target[:, places], -1)
        divergence = kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
        loss = divergence[said].mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        seconds.append(time.perf_counter() - began)
        tokens.append(float(said.sum()))
        # Nothing of a step is kept into the next.
        del logits, target, log_p, log_q, divergence, loss
    return Steps(seconds, tokens, losses[0])


class VideolessProcessor(Qwen3VLProcessor):
    """Qwen3-VL's processor where torchvision, which only videos need, is not installed."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """Let there be no video processor."""
        if argument_name != "video_processor":
            return super().check_argument_for_proper_class(argument_name, argument)
        return type(argument)


def trl(job: Job, scenes: Scenes) -> Steps:
    """Take the steps of TRL's trainer, its teacher reading what the student reads."""
    import peft
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer  # type: ignore[import-not-found]

    config, rank = job.config().distill, SIZES[job.size].rank
    base = job.backbone("base")
    student = load_backbone(Path(job.work) / ("base" if rank else "student"))  # adds it itself
    student.model.generation_config.eos_token_id = end_tokens(student)
    tokenizer = student.tokenizer
    tokenizer.padding_side = "left"
    processor = VideolessProcessor(
        AutoImageProcessor.from_pretrained(Path(job.work) / "student", backend="pil"),
        tokenizer,
        None,
        chat_template=tokenizer.chat_template,
    )
    rows: dict[str, list[Any]] = {"prompt": [], "image": []}
    for step in range(job.steps):
        for i in epoch_indices(len(scenes.states), config.batch, config.seed, step):
            prompt = prompts.student_prompt(scenes.states[i].family, student.style)
            said = (("system", prompt.system), ("user", prompt.user))
            rows["prompt"].append([{"role": role, "content": text} for role, text in said])
            rows["image"].append(Image.fromarray(scenes.images[i]))
    ends: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as out:
        trainer = DistillationTrainer(
            model=student.model,
            teacher_model=base.model,
            args=DistillationConfig(
                output_dir=out,
                per_device_train_batch_size=config.batch,
                max_steps=job.steps,
                max_completion_length=job.longest,
                beta=1.0,
                learning_rate=config.learning_rate,
                weight_decay=config.weight_decay,
                max_grad_norm=config.clip,
                lr_scheduler_type="constant",
                optim="adamw_torch_fused",
                bf16=False,
                gradient_checkpointing=False,
                shuffle_dataset=False,
                generation_kwargs={"suppress_tokens": student.suppressed_tokens()},
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict(rows),
            processing_class=processor,
            callbacks=[Clock()],
            peft_config=peft.LoraConfig(r=rank, lora_alpha=16, target_modules="all-linear")
            if rank
            else None,
        )
        trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    return Steps(
        [after - before for before, after in pairwise(ends)],
        [line["completions/mean_length"] * config.batch for line in lines],
        lines[0]["loss"],
    )


SIDES: dict[str, Callable[[Job, Scenes], Steps]] = {"ours": ours, "plain": plain, "trl": trl}


def resident(key: str) -> int:
    """Return `VmRSS` or `VmHWM`, its peak, of this process [bytes]."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


def run(job: Job) -> dict[str, Any]:
    """Run a job in this process, which has done nothing yet; return its figures."""
    torch.set_num_threads(job.threads)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    if job.side == "trl":
        from trl import DistillationTrainer, __version__

        assert DistillationTrainer
        versions["trl"] = __version__
    backbone = job.config().backbone
    spec = ImageSpec(backbone.image_size, backbone.nano.patch, backbone.nano.merge)
    scenes = load_scenes(Path(job.work) / "data", "train", spec)
    # Libraries allocate for themselves, once.
    ones = torch.ones(512, 512, requires_grad=True)
    (ones @ ones).sum().backward()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from here on
    baseline = resident("VmRSS")
    steps = SIDES[job.side](job, scenes)
    peak = resident("VmHWM") - baseline
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    return asdict(steps) | {"peak_mib": peak / 2**20, "versions": versions}


def alone(job: Job, python: str) -> dict[str, Any]:
    """Run a job in a process of its own."""
    root = str(Path(__file__).resolve().parents[1])
    done = subprocess.run(
        [python, __file__, "--job", json.dumps(asdict(job))],
        env={**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{job.side} at {job.size} failed:\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def prepare(work: Path, size: Size, image_size: int) -> None:
    """Write the pictures and the two models of a size."""
    # More pictures than a batch, so that steps differ.
    pairs = [("frozenlake", 3), ("maze", 3)]
    write_dataset(
        work / "data", DatasetRequest(pairs, "train", seed=0, count=size.batch, size=image_size)
    )
    nano = load_config("nano").backbone.nano
    for seed, name in enumerate(("base", "student")):
        backbone = build_nano(nano, image_size, seed)
        if size.vocabulary:
            torch.manual_seed(seed)
            backbone.model.resize_token_embeddings(size.vocabulary, mean_resizing=False)
        (work / name).mkdir()
        save_backbone(backbone, work / name)
        if size.vocabulary:
            # Tokens that no text is made of, so that, as in Qwen's, few rows belong to no token.
            file = work / name / "tokenizer.json"
            tokenizer = json.loads(file.read_text())
            known = len(backbone.tokenizer)
            tokenizer["model"]["vocab"] |= {f"unused{i}": i for i in range(known, QWEN_TOKENS)}
            file.write_text(json.dumps(tokenizer))


def compare(
    name: str, sides: dict[str, str], rounds: int, steps: int, options: dict[str, Any]
) -> dict[str, Any]:
    """Return the figures of all sides at a size; `sides` says which Python runs each."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        prepare(work, SIZES[name], load_config("nano").backbone.image_size)
        for _ in range(rounds):
            for side, python in sides.items():
                job = Job(side, name, directory, steps + WARM_UP, **options)
                found[side].append(alone(job, python))
    result: dict[str, Any] = {"size": name, **asdict(SIZES[name])}
    for side, runs in found.items():
        timed = [
            pair
            for run in runs
            for pair in list(zip(run["tokens"], run["seconds"], strict=True))[WARM_UP:]
        ]
        result[side] = {
            "tokens_per_s": median(tokens / seconds for tokens, seconds in timed),
            "peak_mib": median(run["peak_mib"] for run in runs),
            "tokens_per_step": median(tokens for tokens, _ in timed),
            "seconds_per_step": median(seconds for _, seconds in timed),
            "first_loss": runs[0]["loss"],
            "versions": runs[0]["versions"],
            "rounds": runs,
        }
    mine = result["ours"]
    for side, ending in (("plain", ""), ("trl", "_trl")):
        if side in result:
            other = result[side]
            result[f"tokens_per_s_ratio{ending}"] = mine["tokens_per_s"] / other["tokens_per_s"]
            result[f"peak_memory_ratio{ending}"] = mine["peak_mib"] / other["peak_mib"]
    if "plain" in result:
        one, another = mine["first_loss"], result["plain"]["first_loss"]
        if abs(one - another) > LOSS_TOLERANCE * abs(another):
            sys.exit(f"{name}: losses of {one:.4g} and {another:.4g} cannot be of the same step")
    return result


def trl_version(python: str) -> str | None:
    """Return the version of TRL that a Python has; None without."""
    done = subprocess.run(
        [python, "-c", "import trl; print(trl.__version__)"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.split()[-1] if done.returncode == 0 else None


def show(result: dict[str, Any]) -> None:
    """Print the table of one size."""
    print(
        f"\n{result['size']}: batch {result['batch']}, vocabulary {result['vocabulary'] or 'own'}"
        f", adapter rank {result['rank']}"
    )
    columns = (
        ("tokens_per_s", "tokens/s"),
        ("seconds_per_step", "s/step"),
        ("tokens_per_step", "tokens/step"),
        ("peak_mib", "peak MiB"),
        ("first_loss", "first loss"),
    )
    print(f"{'':>8}", *(f"{title:>12}" for _, title in columns))
    for side in SIDES:
        if side in result:
            print(f"{side:>8}", *(f"{result[side][key]:>12.4g}" for key, _ in columns))
    for key, value in result.items():
        if "_ratio" in key:
            print(f"{key:>26}  {value:.3f}")


def main() -> None:
    """Measure and print a table; write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--json", type=Path, help="file of the results")
    add("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES), help="default: all")
    add("--sides", nargs="+", choices=list(SIDES), default=list(SIDES), help="default: all")
    add("--trl-python", default=sys.executable, metavar="PATH", help="a Python that has TRL")
    add("--rounds", type=int, default=2, help="processes of each side [count] (default: 2)")
    add("--steps", type=int, default=5, help="timed steps of a process [count] (default: 5)")
    add("--longest", type=int, default=64, help="longest response [tokens] (default: 64)")
    add("--threads", type=int, default=1, help="CPU threads (default: 1)")
    add(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="other configuration of ours",
    )
    add("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        print(json.dumps(run(Job(**json.loads(args.job)))))
        return
    sides = dict.fromkeys(["ours", *args.sides], sys.executable)
    version = None
    if "trl" in sides:
        version, sides["trl"] = trl_version(args.trl_python), args.trl_python
        if version is None:
            print(f"TRL is not installed in {args.trl_python}: its figures are left out")
            del sides["trl"]
        else:
            print(
                f"trl {version}: DistillationTrainer's teacher reads the student's own prompt and "
                "picture; it can have\nneither symbols nor a reference plan, and is a second model "
                "even where the student has an adapter"
            )
    options = {"longest": args.longest, "threads": args.threads, "settings": args.set}
    results: dict[str, Any] = {
        "threads": args.threads,
        "longest": args.longest,
        "settings": args.set,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": version,
        "device": str(default_device()),
        "load_before": os.getloadavg()[0],  # above 0.5 other programs took part of the cores
        "sizes": {},
    }
    for name in args.sizes:
        results["sizes"][name] = compare(name, sides, args.rounds, args.steps, options)
        show(results["sizes"][name])
    results["load_after"] = os.getloadavg()[0]
    print(f"\nload {results['load_before']:.1f} before, {results['load_after']:.1f} after")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
