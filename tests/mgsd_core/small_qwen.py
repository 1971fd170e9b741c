"""A small random Qwen3-VL with tokenizer and processor, written to disk as the published ones are.

Names, files and special tokens are the published ones; the sizes are not, and the tokenizer knows
little more than this project's texts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AddedToken,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    Qwen2Tokenizer,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from mgsd_core import prompts
from sim import FAMILIES, LEVELS, sample, solve

#: In the order of their published ids, which begin right after the ordinary tokens.
SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>"),
    *("<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
#: Added, yet ordinary to the tokenizer, as published.
ORDINARY = ("<tool_call>", "</tool_call>", "<think>", "</think>")

#: What the published template writes for the messages that occur here, tools left out.
TEMPLATE = """\
{%- macro say(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for part in content -%}
            {%- if part.type == 'image' or 'image' in part -%}
                <|vision_start|><|image_pad|><|vision_end|>
            {%- elif part.type == 'video' or 'video' in part -%}
                <|vision_start|><|video_pad|><|vision_end|>
            {%- elif 'text' in part -%}
                {{- part.text -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {{- say(message.content) -}}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

#: As published.
PREPROCESSOR = {
    "size": {"longest_edge": 16777216, "shortest_edge": 65536},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
}


def write_small_qwen(
    path: Path,
    *,
    hidden: int = 64,
    layers: int = 3,
    intermediate: int = 128,
    vision_hidden: int = 32,
    vision_layers: int = 3,
    vocabulary: int | None = None,
    tied: bool = True,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    template_file: str = "chat_template.jinja",
    **preprocessor: Any,
) -> Path:
    """Write weights, tokenizer and processor into the directory `path` and return it.

    Args:
        path: made here.
        hidden, layers, intermediate: of the text model; heads have 32 dimensions.
        vision_hidden, vision_layers: of the vision tower.
        vocabulary: rows of the embedding; some more than the tokenizer has where not given.
        tied: the head is the embedding, as in the 4B model; the 8B model has its own.
        dtype: of the weights on disk.
        seed: of the weights.
        template_file: `chat_template.json` is where older versions of transformers kept it.
        preprocessor: other values in the image processor's configuration.
    """
    tokenizer = small_tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    heads = 2 * hidden // 32  # wider together than the hidden state, as published
    config = Qwen3VLConfig(
        text_config={
            # The published embedding has more rows than the tokenizer has tokens.
            "vocab_size": vocabulary or len(tokenizer) + 37,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 2,
            "head_dim": 32,
            "max_position_embeddings": 262144,
            "tie_word_embeddings": tied,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5_000_000,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": vision_layers,
            "hidden_size": vision_hidden,
            "intermediate_size": 4 * vision_hidden,
            "num_heads": vision_hidden // 16,
            "out_hidden_size": hidden,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2:  # else it says the same about every picture
                    parameter.mul_(4)
    generation = model.generation_config
    generation.do_sample, generation.top_k, generation.top_p = True, 20, 0.8
    generation.temperature, generation.repetition_penalty = 0.7, 1.0
    generation.eos_token_id = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    generation.pad_token_id = ids["<|endoftext|>"]
    path.mkdir(parents=True)
    model.to(dtype).save_pretrained(path)
    tokenizer.save_pretrained(path)
    if template_file.endswith(".json"):
        (path / template_file).write_text(json.dumps({"chat_template": TEMPLATE}))
    else:
        (path / template_file).write_text(TEMPLATE)
    (path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR | preprocessor))
    video = PREPROCESSOR | {"size": {"longest_edge": 25165824, "shortest_edge": 4096}}
    video.pop("image_processor_type")
    video["video_processor_type"] = "Qwen3VLVideoProcessor"
    (path / "video_preprocessor_config.json").write_text(json.dumps(video))
    return path


def small_tokenizer() -> Qwen2Tokenizer:
    """A tokenizer of Qwen's kind that was trained on this project's texts."""
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces.train_from_iterator(_texts(), trainer)
    model = json.loads(pieces.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=262144,
        extra_special_tokens=[t for t in SPECIAL if t not in ("<|endoftext|>", "<|im_end|>")],
    )
    tokenizer.add_tokens([AddedToken(token, special=False) for token in ORDINARY])
    return tokenizer


def _texts() -> Iterator[str]:
    for family in FAMILIES:
        prompt = prompts.student_prompt(family, "full")
        yield from ("system\nuser\nassistant\n", prompt.system, prompt.user)
        for level in LEVELS[family]:
            state = sample(family, level, 0)
            yield prompts.symbolic_prompt(state, "full", solve(state)).user
            yield prompts.response_text(state, solve(state) or ())


def real_processor(path: Path) -> Qwen3VLProcessor:
    """Return what transformers loads for `path`; without torchvision, put together by hand.

    Videos need torchvision, so without it `AutoProcessor` loads nothing of a processor that could
    take one. Pictures are always prepared by Pillow: torchvision resizes to other values.
    """
    try:
        processor = AutoProcessor.from_pretrained(path)
    except ImportError:
        processor = _VideolessProcessor(
            image_processor=AutoImageProcessor.from_pretrained(path, backend="pil"),
            tokenizer=AutoTokenizer.from_pretrained(path),
            video_processor=Qwen3VLVideoProcessor(),
            chat_template=Qwen3VLProcessor.get_processor_dict(path)[0]["chat_template"],
        )
    processor.image_processor = AutoImageProcessor.from_pretrained(path, backend="pil")
    return processor


class _VideolessProcessor(Qwen3VLProcessor):
    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if argument_name != "video_processor":
            return super().check_argument_for_proper_class(argument_name, argument)
        return type(argument)
