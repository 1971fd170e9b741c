"""Backbones: the small `nano` built here from nothing, and pretrained Qwen3-VL weights by path.

A backbone directory is what transformers writes for model, tokenizer and image processor, plus
`mgsd.json` (picture format and prompt style): it opens there like any other Qwen3-VL.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
from PIL.Image import Resampling
from safetensors import SafetensorError
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.utils import logging

from mgsd_core import prompts
from mgsd_core.products import linear
from mgsd_core.runtime.preprocess import ImageSpec, patchify
from sim import FAMILIES, LEVELS, sample, solve
from sim.errors import first_line
from sim.files import write_file

METADATA = "mgsd.json"
PROCESSOR = "preprocessor_config.json"

# Progress is shown by our commands, once, not by every file that is read or written.
logging.disable_progress_bar()

_PAD, _START, _END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_IMAGE = "<|image_pad|>"
SPECIAL_TOKENS = (
    _PAD,
    _START,
    _END,
    "<|vision_start|>",
    "<|vision_end|>",
    _IMAGE,
    "<|video_pad|>",
)

# Qwen's turn markers without the line break after each: nano reads every token at a price.
_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "<|im_start|>{{ message.role }}\n"
    "{%- if message.content is string -%}{{ message.content }}"
    "{%- else -%}{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- else -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "<|im_end|>"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}"
)

# A piece never spans two words, so a cell or an action is one token wherever it stands.
_PIECES = r" ?\(\d+,\d+\)|</?answer>| ?[A-Za-z]+| ?\d+|[^\sA-Za-z\d]|\s"


class BackboneError(ValueError):
    """A backbone that cannot be loaded or used; the message says why."""


@dataclass(frozen=True)
class NanoConfig:
    """Sizes of the `nano` backbone; everything else follows Qwen3-VL.

    Raises:
        ValueError: no model has these sizes; the message names one of them.
    """

    hidden: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 384
    vision_hidden: int = 64
    vision_layers: int = 3
    vision_heads: int = 4
    vision_intermediate: int = 192
    deepstack: tuple[int, ...] = (0,)
    patch: int = 16
    merge: int = 2

    def __post_init__(self) -> None:
        for name, size in vars(self).items():
            if name != "deepstack" and size < 1:
                raise ValueError(f"{name} must be at least 1, not {size}")
        head = self.hidden // self.heads
        if head < 2 or head % 2:
            raise ValueError(f"hidden // heads must be even and above 0, not {head}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads = {self.kv_heads}")
        if self.vision_hidden % (4 * self.vision_heads):  # rows and columns, sines and cosines
            raise ValueError(
                f"vision_hidden must be a multiple of 4 * vision_heads = {4 * self.vision_heads}"
            )
        # Each goes into a layer of the language model of its own.
        others = [i for i in self.deepstack if not 0 <= i < self.vision_layers]
        if others or not len(set(self.deepstack)) == len(self.deepstack) <= self.layers:
            raise ValueError(
                f"deepstack must be at most {self.layers} different numbers from 0 to "
                f"{self.vision_layers - 1}, not {list(self.deepstack)}"
            )


@dataclass
class Backbone:
    """A model with all that is needed to speak to it."""

    model: Qwen3VLForConditionalGeneration
    tokenizer: PreTrainedTokenizerFast
    image: ImageSpec
    style: str

    @property
    def image_token(self) -> int:
        """Id of the placeholder that a visual token replaces."""
        return int(self.model.config.image_token_id)

    @property
    def end_token(self) -> int:
        """Id of the end-of-turn token."""
        return int(self.tokenizer.convert_tokens_to_ids(_END))

    @property
    def pad_token(self) -> int:
        """Id used for padding; never attended to."""
        return int(self.tokenizer.convert_tokens_to_ids(_PAD))

    def suppressed_tokens(self) -> list[int]:
        """Ids that are never generated: all special tokens but end-of-turn.

        A sampled image placeholder would make the next forward pass fail on its feature count.
        """
        special = {i for i, t in self.tokenizer.added_tokens_decoder.items() if t.special}
        # Ids beyond the tokenizer are padding of the embedding table: they decode to nothing.
        beyond = range(len(self.tokenizer), self.model.config.text_config.vocab_size)
        return sorted((special - {self.end_token}) | set(beyond))


def build_nano(config: NanoConfig, image_size: int, seed: int) -> Backbone:
    """Build an untrained `nano` with its own tokenizer; deterministic in its arguments.

    Args:
        config: sizes.
        image_size: side of the pictures it sees [px].
        seed: of the random weights.
    """
    tokenizer = build_nano_tokenizer()
    head = config.hidden // config.heads
    # Interleaved M-RoPE splits half a head's dimensions between time, height and width.
    height = width = head // 6
    spec = ImageSpec(image_size, config.patch, config.merge)
    ids = {t: tokenizer.convert_tokens_to_ids(t) for t in SPECIAL_TOKENS}
    model_config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": config.hidden,
            "intermediate_size": config.intermediate,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.kv_heads,
            "head_dim": head,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
            "pad_token_id": ids[_PAD],
            "eos_token_id": ids[_END],
            "bos_token_id": None,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [head // 2 - height - width, height, width],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": config.vision_layers,
            "hidden_size": config.vision_hidden,
            "intermediate_size": config.vision_intermediate,
            "num_heads": config.vision_heads,
            "out_hidden_size": config.hidden,
            "patch_size": config.patch,
            "spatial_merge_size": config.merge,
            "temporal_patch_size": spec.temporal,
            "num_position_embeddings": spec.grid**2,
            "deepstack_visual_indexes": list(config.deepstack),
        },
        image_token_id=ids[_IMAGE],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(model_config)
        # transformers starts all embeddings at a scale that fits pretraining at length. Beside the
        # patches' own values that leaves where a patch is almost unsaid, and a short training does
        # not get over it (measured: a lake's holes read off right in 95 % instead of 72 % of
        # pictures after 200 steps of stage 1).
        torch.nn.init.normal_(model.model.visual.pos_embed.weight, std=0.5)
    model.generation_config.eos_token_id = ids[_END]
    model.generation_config.pad_token_id = ids[_PAD]
    return Backbone(_with_linear_patches(model.float().eval()), tokenizer, spec, style="brief")


def build_nano_tokenizer() -> PreTrainedTokenizerFast:
    """Train nano's byte-level BPE on the project's own texts; lossless on any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,  # an upper end: training stops when every piece is one token
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_tokenizer_corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=_CHAT_TEMPLATE,
        eos_token=_END,
        pad_token=_PAD,
        additional_special_tokens=[t for t in SPECIAL_TOKENS if t not in (_PAD, _END)],
        clean_up_tokenization_spaces=False,
    )


def _tokenizer_corpus() -> Iterator[str]:
    largest = max(max(levels) for levels in LEVELS.values())
    yield "system\nuser\nassistant\n Reference"
    yield "".join(f" ({r},{c})" for r in range(largest) for c in range(largest))
    yield "".join(f" {n}" for n in range(largest + 1))
    sides = ("L", "D", "R", "U")
    chosen = ("".join(s for i, s in enumerate(sides) if bits >> i & 1) for bits in range(1, 16))
    yield " ".join(("", *chosen, "none", "PICK", "DROP"))
    for action in (*sides, "PICK", "DROP"):
        yield f"<answer>{action}</answer>"
    for family in FAMILIES:
        prompt = prompts.student_prompt(family, "brief")
        yield from (prompt.system, prompt.user)
        for seed in range(20):
            state = sample(family, LEVELS[family][0], seed)
            teacher = prompts.symbolic_prompt(state, "brief", solve(state))
            yield from (teacher.system, teacher.user)
            yield prompts.response_text(state, solve(state) or ())
            for question, answer in prompts.questions(state):
                yield from (question, answer)


def load_backbone(
    path: str | Path,
    image_size: int | None = None,
    style: str = "full",
    dtype: str | torch.dtype = "auto",
) -> Backbone:
    """Load a backbone: a directory that `save_backbone` wrote, or Qwen3-VL weights by path or name.

    Weights are read into the memory that they stay in, so loading needs no second copy of them. An
    adapter's directory gives its base with the adapter on top.

    Args:
        path: directory; a text, unlike a `Path`, may also be a name that transformers resolves.
        image_size: picture side [px], needed for weights without `mgsd.json`.
        style: prompt style for weights without `mgsd.json`.
        dtype: of the weights; `auto` is what they are stored in.

    Raises:
        BackboneError: not there, not a Qwen3-VL, or its tokenizer or processor does not fit.
    """
    with _one_line(path):
        _check_path(path)
        model, report = Qwen3VLForConditionalGeneration.from_pretrained(
            path, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
        if missing := sorted(report["missing_keys"]):  # transformers would make them up
            raise BackboneError(f"the weights in {path} lack {len(missing)}, such as {missing[0]}")
        return _speaking(model.eval(), path, image_size, style)


def outline_backbone(
    path: str | Path, image_size: int | None = None, style: str = "full"
) -> Backbone:
    """Return what `load_backbone` would, its weights having shapes but no values.

    It reads and writes tokens and tells sizes; nothing large is read.

    Raises:
        BackboneError: as `load_backbone`.
    """
    with _one_line(path):
        _check_path(path)
        adapter = Path(path) / "adapter_config.json"
        base = path
        if adapter.is_file():
            base = json.loads(adapter.read_text())["base_model_name_or_path"]
        config = Qwen3VLConfig.from_pretrained(base)
        with torch.device("meta"):
            model = Qwen3VLForConditionalGeneration(config)
        return _speaking(model.eval(), path, image_size, style)


@contextmanager
def _one_line(path: str | Path) -> Iterator[None]:
    """Turn what transformers raises about a directory of weights into one line."""
    try:
        yield
    except BackboneError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
        raise BackboneError(
            f"cannot load a Qwen3-VL model from {path}: {first_line(error)}"
        ) from None


def _check_path(path: str | Path) -> None:
    # A name on the hub is one word or two around a slash.
    named = isinstance(path, str) and path.count("/") < 2 and not path.startswith(("/", ".", "~"))
    if not named and not Path(path).is_dir():
        # Else transformers would take a mistyped path for a name and ask its hub for it.
        raise BackboneError(f"{path}: no such directory of weights")
    file = Path(path) / "config.json"
    if file.is_file():
        kind = json.loads(file.read_text()).get("model_type")
        if kind != Qwen3VLConfig.model_type:
            raise BackboneError(f"{path} holds a model of the type {kind!r}, not a Qwen3-VL")


def _speaking(
    model: Qwen3VLForConditionalGeneration,
    path: str | Path,
    image_size: int | None,
    style: str,
) -> Backbone:
    """Give a model the tokenizer, picture format and prompt style that its directory says."""
    metadata = _read_metadata(Path(path))
    tokenizer = AutoTokenizer.from_pretrained(path)
    if metadata is not None:
        spec, style = ImageSpec(**metadata["image"]), metadata["prompt_style"]
    elif image_size is None:
        raise BackboneError(f"{path} has no {METADATA}: say the picture side with image_size")
    else:
        spec = _processor_spec(path, image_size)
        # transformers reads it from files that a tokenizer alone does not know of.
        template = Qwen3VLProcessor.get_processor_dict(path)[0].get("chat_template")
        tokenizer.chat_template = template or tokenizer.chat_template
    if not isinstance(tokenizer.chat_template, str):
        raise BackboneError(f"{path} has no chat template, or more than one")
    config, vision = model.config, model.config.vision_config
    sides = (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
    if (spec.patch, spec.merge, spec.temporal) != sides:
        says = METADATA if metadata is not None else "the image processor"
        raise BackboneError(f"{says} in {path} contradicts the model's patch and merge sizes")
    if len(tokenizer) > config.text_config.vocab_size:
        raise BackboneError(f"the tokenizer in {path} has more tokens than the model's vocabulary")
    known = tokenizer.get_vocab()
    if missing := [t for t in (_PAD, _START, _END, _IMAGE) if t not in known]:
        raise BackboneError(f"the tokenizer in {path} has no {missing[0]}")
    if known[_IMAGE] != config.image_token_id:
        raise BackboneError(
            f"the tokenizer in {path} has {_IMAGE} as {known[_IMAGE]}, the model as "
            f"{config.image_token_id}"
        )
    # The published settings are for chats: they sample from the 20 likeliest tokens.
    model.generation_config = GenerationConfig(
        eos_token_id=known[_END], pad_token_id=known[_PAD], do_sample=False
    )
    return Backbone(_with_linear_patches(model), tokenizer, spec, style)


def _processor_spec(path: str | Path, size: int) -> ImageSpec:
    """Return how the image processor of `path` treats pictures of `size` x `size` px.

    The robot has no transformers, so `mgsd_core.runtime.preprocess` does the processor's work. A
    picture of noise is put through both: whatever the processor does otherwise shows there.

    Raises:
        BackboneError: it takes no pictures of that size, or does to them what ours does not.
    """
    # Pillow's, as ours: torchvision need not be there, and where it is resizes otherwise.
    processor = AutoImageProcessor.from_pretrained(path, backend="pil")
    if not isinstance(processor, Qwen2VLImageProcessorPil):  # Qwen3-VL has none of its own
        raise BackboneError(
            f"the image processor in {path}, a {type(processor).__name__}, is not Qwen3-VL's"
        )
    least, most = processor.size["shortest_edge"], processor.size["longest_edge"]
    means, deviations = set(processor.image_mean), set(processor.image_std)
    sides = (processor.patch_size, processor.merge_size, processor.temporal_patch_size)
    unit = processor.patch_size * processor.merge_size
    if not least <= size * size <= most or size % unit:
        raise BackboneError(
            f"the image processor in {path} takes pictures of {least} to {most} px, with sides "
            f"that are multiples of {unit} px; {size} × {size} px is not one"
        )
    differs = BackboneError(
        f"the image processor in {path} resizes or normalises in a way that this package does not "
        f"(mean {processor.image_mean}, standard deviation {processor.image_std}, resampling "
        f"{processor.resample})"
    )
    if len(means) != 1 or len(deviations) != 1 or processor.resample != Resampling.BICUBIC:
        raise differs
    spec = ImageSpec(size, *sides, mean=means.pop(), std=deviations.pop())
    noise = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    theirs = processor(images=list(noise), return_tensors="np")
    ours = patchify(noise, spec)
    if (
        theirs["image_grid_thw"].tolist() != [[1, spec.grid, spec.grid]]
        or theirs["pixel_values"].shape != ours.shape
        or not np.allclose(theirs["pixel_values"], ours, rtol=0, atol=1e-5)
    ):
        raise differs
    return spec


def default_device() -> torch.device:
    """Return the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _with_linear_patches(
    model: Qwen3VLForConditionalGeneration,
) -> Qwen3VLForConditionalGeneration:
    """Compute the patch embedding as a matrix product; weights and their names stay as they are.

    The kernel covers a whole patch, so the convolution is one product, and on a CPU Conv3d takes
    over eight times as long for it, forward and backward (benchmarks/patch_embedding.py).
    """
    embed = model.model.visual.patch_embed

    def forward(self: Any, patches: torch.Tensor) -> torch.Tensor:
        weight = self.proj.weight
        return linear(patches.to(weight.dtype), weight.flatten(1), self.proj.bias)

    embed.forward = MethodType(forward, embed)
    return model


def save_backbone(
    backbone: Backbone, path: Path, weights: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Write a backbone directory (safetensors); the caller names a fresh or temporary directory.

    Args:
        backbone: what is written; of a model with an adapter, the adapter alone.
        path: an existing directory.
        weights: what `state_dict` would give, where the model itself holds only a part of it.
    """
    # The published names are the model's own. What a merged adapter was loaded from had others,
    # which transformers would go back to.
    backbone.model.save_pretrained(path, state_dict=weights, save_original_format=False)
    backbone.tokenizer.save_pretrained(path)
    spec = backbone.image
    processor = {
        "processor_class": "Qwen3VLProcessor",
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": spec.patch,
        "merge_size": spec.merge,
        "temporal_patch_size": spec.temporal,
        "image_mean": [spec.mean] * 3,
        "image_std": [spec.std] * 3,
        # Square pictures come out as the model was trained on them.
        "size": {"shortest_edge": spec.size**2, "longest_edge": spec.size**2},
    }
    write_file(path / PROCESSOR, json.dumps(processor, indent=1) + "\n")
    metadata = {
        "image": asdict(backbone.image),
        "prompt_style": backbone.style,
        "prompts_digest": prompts.prompts_digest(backbone.style),
    }
    write_file(path / METADATA, json.dumps(metadata, indent=1) + "\n")


def _read_metadata(path: Path) -> dict[str, Any] | None:
    if not (path / METADATA).is_file():
        return None
    try:
        metadata = json.loads((path / METADATA).read_text())
        ImageSpec(**metadata["image"])
        digest, style = metadata["prompts_digest"], metadata["prompt_style"]
        expected = prompts.prompts_digest(style)
    except (ValueError, KeyError, TypeError) as error:
        raise BackboneError(f"{path / METADATA} is damaged: {error}") from None
    if digest != expected:
        raise BackboneError(
            f"{path} was trained with other prompts than this version has; train it again"
        )
    return metadata
