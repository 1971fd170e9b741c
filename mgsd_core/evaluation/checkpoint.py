"""Any vision-language checkpoint that transformers can load, asked as one behind an endpoint is.

Qwen3-VL is judged by this package's own code, as it is trained; this is for all others, to compare
with. They know nothing of the task: they are told all of it, in the words of the style `full`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, Qwen3VLConfig

from mgsd_core import prompts
from mgsd_core.evaluation.models import JudgedModel, Progress, weights_digest
from mgsd_core.evaluation.score import Record, score
from mgsd_core.evaluation.untaught import STYLE, prompt_of, response_limit
from mgsd_core.model import BackboneError, default_device
from mgsd_core.runtime.preprocess import ImageSpec
from mgsd_core.scenes import Scenes
from sim import FAMILIES
from sim.errors import first_line

# Else transformers would ask on the terminal whether to run a checkpoint's own code.
_NO_CODE = {"trust_remote_code": False}

# What transformers raises where files are missing, damaged, of another model, or have code.
_UNLOADABLE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError),
    SafetensorError,
)


def load_checkpoint(
    path: str | Path, size: int, batch: int, max_tokens: int | None = None
) -> JudgedModel:
    """Load a checkpoint.

    Args:
        path: directory, or as a text a name that transformers resolves. Its weights must be
            safetensors, and no code of its own is run.
        size: side of the pictures that it is shown [px]; its processor may resize them.
        batch: responses generated at a time.
        max_tokens: longest answer [tokens]; None leaves room for twice the longest right one.

    Raises:
        BackboneError: transformers cannot load it, or it has no chat template.
    """
    try:
        processor = AutoProcessor.from_pretrained(path, **_NO_CODE)
        model, report = AutoModelForImageTextToText.from_pretrained(
            path, dtype="auto", use_safetensors=True, output_loading_info=True, **_NO_CODE
        )
    except _UNLOADABLE as error:
        raise BackboneError(
            f"cannot load a vision-language model from {path}: {first_line(error)}"
        ) from None
    if missing := sorted(report["missing_keys"]):  # transformers would make them up
        raise BackboneError(f"the weights in {path} lack {len(missing)}, such as {missing[0]}")
    if not isinstance(getattr(processor, "chat_template", None), str):
        raise BackboneError(f"{path} has no chat template, or more than one")
    try:
        _in_template(processor, prompts.student_prompt(FAMILIES[0], STYLE))
    except Exception as error:  # a template is a program
        raise BackboneError(f"the chat template in {path} fails: {first_line(error)}") from None
    processor.tokenizer.padding_side = "left"  # all answers begin at the end
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    model = model.to(default_device()).eval()

    def answer(scenes: Scenes, source: str, progress: Progress) -> list[Record]:
        records: dict[int, Record] = {}
        # One family at a time: how long an answer may be must not depend on its neighbours.
        families: dict[str, list[int]] = {}
        for i, state in enumerate(scenes.states):
            families.setdefault(state.family, []).append(i)
        parts = [
            of_family[begin : begin + batch]
            for of_family in families.values()
            for begin in range(0, len(of_family), batch)
        ]
        for chosen in parts:
            texts = _answers(model, processor, scenes, chosen, source, max_tokens)
            for i, text in zip(chosen, texts, strict=True):
                state, plan = scenes.states[i], scenes.plans[i]
                parsed = prompts.parse_response(text, state.family)
                records[i] = score(scenes.names[i], state, plan, parsed, text)
            progress(len(chosen))
        return [records[i] for i in range(len(scenes.states))]

    image = ImageSpec(size, patch=1, merge=1)
    digest = weights_digest(path, model)
    return JudgedModel(str(path), image, digest, STYLE, ("image", "text"), answer)


def is_other_checkpoint(path: str | Path) -> bool:
    """Return whether a directory (Path) or a name (text) is of a model that is no Qwen3-VL."""
    if isinstance(path, Path) and not (path / "config.json").is_file():
        return False
    try:
        kind: str = AutoConfig.from_pretrained(path, **_NO_CODE).model_type
    except _UNLOADABLE:
        return isinstance(path, Path)  # `load_checkpoint` says what is wrong
    return kind != Qwen3VLConfig.model_type


@torch.inference_mode()
def _answers(
    model: Any,
    processor: Any,
    scenes: Scenes,
    chosen: Sequence[int],
    source: str,
    max_tokens: int | None,
) -> list[str]:
    states = [scenes.states[i] for i in chosen]
    texts = [_in_template(processor, prompt_of(state, source)) for state in states]
    shown = [[Image.fromarray(scenes.images[i])] for i in chosen]
    images = shown if source == "image" else None
    # A template may write the token that texts begin with; the tokenizer would write it once more.
    begin = processor.tokenizer.bos_token
    begins = begin is not None and texts[0].startswith(begin)
    inputs = processor(
        text=texts,
        images=images,
        padding=True,
        add_special_tokens=not begins,
        return_tensors="pt",
    )
    inputs = inputs.to(model.device, dtype=model.dtype)
    said = model.generate(
        **inputs,
        max_new_tokens=max_tokens or response_limit(states[0].family),
        do_sample=False,
        stop_strings=[prompts.STOP_TEXT],
        tokenizer=processor.tokenizer,
    )
    new = said[:, inputs["input_ids"].shape[1] :]
    decoded: list[str] = processor.tokenizer.batch_decode(new, skip_special_tokens=True)
    return decoded


def _in_template(processor: Any, prompt: prompts.Prompt) -> str:
    """Return a prompt as the model's own chat template writes it."""
    picture = [{"type": "image"}] if prompt.has_image else []

    def asked(user: str) -> dict[str, Any]:
        return {"role": "user", "content": [{"type": "text", "text": user}, *picture]}

    system = {"role": "system", "content": [{"type": "text", "text": prompt.system}]}
    try:
        turns = [system, asked(prompt.user)]
        text: str = processor.apply_chat_template(turns, add_generation_prompt=True)
    except TemplateError:
        text = ""
    if prompt.system not in text:  # some templates have no room for what the system says
        turns = [asked(f"{prompt.system} {prompt.user}")]
        text = processor.apply_chat_template(turns, add_generation_prompt=True)
    return text
