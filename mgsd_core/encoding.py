"""Prompts and pictures into the tensors of a forward pass, with each sequence's own positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Qwen3VLForConditionalGeneration

from mgsd_core.model import Backbone
from mgsd_core.prompts import Prompt
from mgsd_core.runtime.preprocess import mrope_positions, patchify


@dataclass(frozen=True)
class Batch:
    """One padded batch.

    Attributes:
        ids: int64 [B, S].
        mask: bool [B, S], False on padding.
        positions: int64 [3, B, S], M-RoPE (time, height, width).
        completion: bool [B, S], True on the tokens that the model is to say.
        pixels: float32 [P, 3 * temporal * patch * patch] of all pictures in batch order, or None.
        grid: int64 [pictures, 3], patches (time, height, width) of each picture, or None.
        left: padding stands on the left.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    completion: torch.Tensor
    pixels: torch.Tensor | None
    grid: torch.Tensor | None
    left: bool

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`."""
        return Batch(
            self.ids.to(device),
            self.mask.to(device),
            self.positions.to(device),
            self.completion.to(device),
            None if self.pixels is None else self.pixels.to(device),
            None if self.grid is None else self.grid.to(device),
            self.left,
        )


def chat_text(backbone: Backbone, prompt: Prompt) -> str:
    """Render a prompt through the backbone's chat template, one placeholder for the picture."""
    content: list[dict[str, str]] = [{"type": "text", "text": prompt.user}]
    if prompt.has_image:
        content.append({"type": "image"})
    messages = [
        {"role": "system", "content": [{"type": "text", "text": prompt.system}]},
        {"role": "user", "content": content},
    ]
    return str(
        backbone.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    )


def prompt_ids(backbone: Backbone, prompt: Prompt) -> list[int]:
    """Return the token ids of a prompt, the picture's placeholder repeated once a visual token.

    Raises:
        ValueError: the chat template does not write exactly one placeholder for the picture.
    """
    ids = text_ids(backbone, chat_text(backbone, prompt))
    places = [i for i, token in enumerate(ids) if token == backbone.image_token]
    if len(places) != int(prompt.has_image):
        raise ValueError(
            f"the chat template wrote {len(places)} image placeholders for "
            f"{int(prompt.has_image)} picture"
        )
    for place in places:
        ids[place : place + 1] = [backbone.image_token] * backbone.image.tokens
    return ids


def text_ids(backbone: Backbone, text: str) -> list[int]:
    """Return the token ids of plain text; nothing is added."""
    return list(backbone.tokenizer(text, add_special_tokens=False).input_ids)


def make_batch(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]] | None = None,
    images: NDArray[np.uint8] | None = None,
    left: bool = False,
) -> Batch:
    """Pad sequences into a batch.

    Args:
        backbone: gives padding, placeholder and picture format.
        prompts: token ids of each prompt.
        completions: token ids that follow each prompt; None for generation.
        images: fitted pictures uint8 [N, size, size, 3], one for each prompt that has
            placeholders, in their order.
        left: pad on the left (for generation) instead of the right.
    """
    tails = completions if completions is not None else [()] * len(prompts)
    rows = [[*p, *t] for p, t in zip(prompts, tails, strict=True)]
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), backbone.pad_token)
    mask = torch.zeros((len(rows), length), dtype=torch.bool)
    completion = torch.zeros_like(mask)
    positions = torch.zeros((3, len(rows), length), dtype=torch.int64)
    for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        begin = length - len(row) if left else 0
        end = begin + len(row)
        ids[i, begin:end] = torch.tensor(row)
        mask[i, begin:end] = True
        completion[i, begin + len(prompt) : end] = True
        positions[:, i, begin:end] = torch.from_numpy(
            mrope_positions(row, backbone.image_token, backbone.image)
        )
    pixels = grid = None
    if images is not None:
        pixels = torch.from_numpy(patchify(images, backbone.image))
        side = backbone.image.grid
        grid = torch.tensor([[1, side, side]]).expand(len(images), 3)
    return Batch(ids, mask, positions, completion, pixels, grid, left)


def completion_hidden(model: Qwen3VLForConditionalGeneration, batch: Batch) -> torch.Tensor:
    """Return the last hidden state that predicts each completion token [N, H].

    N counts the completion tokens of the batch in row-major order.
    """
    hidden = model.model(
        input_ids=batch.ids,
        # Causal attention never looks at padding on the right: without a mask it is faster.
        attention_mask=batch.mask.long() if batch.left else None,
        position_ids=batch.positions,
        pixel_values=batch.pixels,
        image_grid_thw=batch.grid,
        use_cache=False,
    ).last_hidden_state
    # Token t is predicted at position t - 1.
    return hidden[:, :-1][batch.completion[:, 1:]]


def completion_logits(backbone: Backbone, batch: Batch) -> torch.Tensor:
    """Return the logits that predict each completion token, float32 [N, V].

    Only their positions are projected onto the vocabulary. Training never holds so much at a time:
    see `mgsd_core.vocabulary`.
    """
    return backbone.model.lm_head(completion_hidden(backbone.model, batch)).float()


def completion_tokens(batch: Batch) -> torch.Tensor:
    """Return the completion tokens themselves, int64 [N], in the order of `completion_hidden`."""
    return batch.ids[:, 1:][batch.completion[:, 1:]]


def length_buckets(
    lengths: Sequence[int], waste: float = 0.15, most: int | None = None
) -> list[list[int]]:
    """Split sequences into groups of similar length, so that little of a batch is padding.

    Args:
        lengths: of the sequences [tokens].
        waste: largest share by which the shortest of a group falls short of its longest.
        most: tokens of a group, padding included; a longer sequence is a group of its own.

    Returns:
        Indices into `lengths`, every one once; long sequences first.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True)
    groups: list[list[int]] = []
    for i in order:
        if groups:
            longest = lengths[groups[-1][0]]
            full = most is not None and longest * (len(groups[-1]) + 1) > most
        if not groups or full or lengths[i] < (1.0 - waste) * longest:
            groups.append([])
        groups[-1].append(i)
    return groups
