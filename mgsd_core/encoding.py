"""Prompts and pictures into the tensors of a forward pass, with each sequence's own positions."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import pad
from transformers import DynamicCache, Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    BaseModelOutputWithDeepstackFeatures,
    Qwen3VLModel,
)

from mgsd_core.kernels import WANTED
from mgsd_core.model import Backbone
from mgsd_core.prompts import Prompt
from mgsd_core.runtime.preprocess import mrope_positions, patchify

_SEEN_ARGUMENT = "mm_encoder_outputs"

# Largest share by which the shortest sequence of a group falls short of its longest.
_WASTE = 0.15

#: Whether the model can read what was seen before; an older transformers would silently ignore it.
TAKES_SEEN = _SEEN_ARGUMENT in inspect.signature(Qwen3VLModel.forward).parameters


@dataclass(frozen=True)
class Seen:
    """What the vision tower makes of pictures; like an array of pictures, it has items.

    Attributes:
        features: [pictures, tokens, H]; the first stands for the placeholders, the others are added
            to the outputs of the first layers.
    """

    features: tuple[torch.Tensor, ...]

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.features[0])

    def __getitem__(self, chosen: Sequence[int]) -> Seen:
        """Return that of the chosen pictures."""
        index = torch.tensor(chosen, device=self.features[0].device)
        return Seen(tuple(f.index_select(0, index) for f in self.features))


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
        seen: of the pictures, where they were looked at before; instead of `pixels` and `grid`.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    completion: torch.Tensor
    pixels: torch.Tensor | None
    grid: torch.Tensor | None
    left: bool
    seen: Seen | None = None

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
            self.seen,
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
    images: NDArray[np.uint8] | Seen | None = None,
    left: bool = False,
) -> Batch:
    """Pad sequences into a batch.

    Args:
        backbone: gives padding, placeholder and picture format.
        prompts: token ids of each prompt.
        completions: token ids that follow each prompt; None for generation.
        images: fitted pictures uint8 [N, size, size, 3], one for each prompt that has
            placeholders, in their order; or what was seen of them.
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
    if isinstance(images, Seen):
        return Batch(ids, mask, positions, completion, None, None, left, images)
    if images is not None:
        pixels, grid = _pixels(backbone, images)
    return Batch(ids, mask, positions, completion, pixels, grid, left)


def _pixels(backbone: Backbone, images: NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor]:
    side = backbone.image.grid
    grid = torch.tensor([[1, side, side]]).expand(len(images), 3)
    return torch.from_numpy(patchify(images, backbone.image)), grid


def see(backbone: Backbone, images: NDArray[np.uint8]) -> Seen:
    """Look at fitted pictures uint8 [N, size, size, 3]."""
    model = backbone.model
    pixels, grid = _pixels(backbone, images)
    output = model.model.get_image_features(pixels.to(model.device), grid.to(model.device))
    parts = (output.pooler_output, *output.deepstack_features)
    return Seen(tuple(torch.stack(part) for part in parts))


def completion_hidden(model: Qwen3VLForConditionalGeneration, batch: Batch) -> torch.Tensor:
    """Return the last hidden state that predicts each completion token [N, H].

    N counts the completion tokens of the batch in row-major order.
    """
    # Token t is predicted at position t - 1.
    places = pad(batch.completion[:, 1:], (0, 1)).flatten().nonzero()[:, 0]
    return last_hidden(model, batch, places)


def last_hidden(
    model: Qwen3VLForConditionalGeneration,
    batch: Batch,
    places: torch.Tensor,
    cache: DynamicCache | None = None,
) -> torch.Tensor:
    """Return the last hidden states at `places` of the batch, in row-major order [N, H].

    Args:
        model: of any forwards, see `mgsd_core.kernels`.
        batch: what it reads.
        places: int64 [N].
        cache: is given keys and values.
    """
    more: dict[str, Any] = {WANTED: places}
    if batch.seen is not None:
        first, *others = (feature.unbind() for feature in batch.seen.features)
        more[_SEEN_ARGUMENT] = {
            "image": BaseModelOutputWithDeepstackFeatures(
                pooler_output=first, deepstack_features=others
            )
        }
    hidden = model.model(
        input_ids=batch.ids,
        # Causal attention never looks at padding on the right: without a mask it is faster.
        attention_mask=batch.mask.long() if batch.left and not batch.mask.all() else None,
        position_ids=batch.positions,
        pixel_values=batch.pixels,
        image_grid_thw=batch.grid,
        past_key_values=cache,
        use_cache=cache is not None,
        **more,
    ).last_hidden_state
    return hidden if hidden.ndim == 2 else hidden.flatten(0, 1).index_select(0, places)


def completion_logits(backbone: Backbone, batch: Batch) -> torch.Tensor:
    """Return the logits that predict each completion token, float32 [N, V].

    Only their positions are projected onto the vocabulary. Training never holds so much at a time:
    see `mgsd_core.vocabulary`.
    """
    return backbone.model.lm_head(completion_hidden(backbone.model, batch)).float()


def completion_tokens(batch: Batch) -> torch.Tensor:
    """Return the completion tokens themselves, int64 [N], in the order of `completion_hidden`."""
    return batch.ids[:, 1:][batch.completion[:, 1:]]


def length_buckets(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Split sequences into groups of similar length, so that little of a batch is padding.

    Args:
        lengths: of the sequences [tokens].
        most: tokens of a group, padding included; a longer sequence is a group of its own.

    Returns:
        Indices into `lengths`, every one once; long sequences first.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True)
    groups: list[list[int]] = []
    for i in order:
        if groups:
            longest = lengths[groups[-1][0]]
            full = longest * (len(groups[-1]) + 1) > most
        if not groups or full or lengths[i] < (1.0 - _WASTE) * longest:
            groups.append([])
        groups[-1].append(i)
    return groups
