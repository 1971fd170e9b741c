"""Batched generation with a KV cache: sampled rollouts for training, greedy answers for evaluation.

Knows nothing of tasks: it takes token ids and pictures and returns token ids.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from mgsd_core.encoding import make_batch, text_ids
from mgsd_core.model import Backbone
from mgsd_core.prompts import STOP_TEXT

# Tokens that may spell STOP_TEXT together when it is not one token of the vocabulary.
_STOP_WINDOW = len(STOP_TEXT)


@torch.no_grad()
def generate(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    images: NDArray[np.uint8] | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """Return a response for every prompt.

    Args:
        backbone: the model.
        prompts: token ids of each prompt (see `encoding.prompt_ids`).
        images: fitted pictures uint8 [N, size, size, 3], one for each prompt with placeholders.
        max_new_tokens: a response is cut there.
        temperature: 0 is greedy; else tokens are sampled from the whole distribution.
        generator: of the samples; needed when temperature > 0.

    Returns:
        Token ids of each response, ending with the token that completes `</answer>` or with the
        end-of-turn token. Special tokens other than end-of-turn are never generated.
    """
    model, device = backbone.model, backbone.model.device
    batch = make_batch(backbone, prompts, images=images, left=True).to(device)
    suppressed = torch.tensor(backbone.suppressed_tokens(), device=device)
    stop_ids = text_ids(backbone, STOP_TEXT)
    stop_token = stop_ids[0] if len(stop_ids) == 1 else None

    cache = DynamicCache(config=model.config.text_config)
    mask = batch.mask.long()
    next_position = batch.positions.amax(dim=(0, 2)) + 1
    hidden = model.model(
        input_ids=batch.ids,
        attention_mask=mask,
        position_ids=batch.positions,
        pixel_values=batch.pixels,
        image_grid_thw=batch.grid,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state[:, -1]
    responses: list[list[int]] = [[] for _ in prompts]
    running = torch.ones(len(prompts), dtype=torch.bool)
    for _ in range(max_new_tokens):
        logits = model.lm_head(hidden).float()
        logits[:, suppressed] = -torch.inf
        tokens = _choose(logits, temperature, generator)
        for i, token in enumerate(tokens.tolist()):
            if not running[i]:
                continue
            responses[i].append(token)
            if token in (backbone.end_token, stop_token):
                running[i] = False
            elif stop_token is None:
                tail = backbone.tokenizer.decode(responses[i][-_STOP_WINDOW:])
                running[i] = STOP_TEXT not in tail
        if not running.any():
            break
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
        hidden = model.model(
            input_ids=tokens[:, None],
            attention_mask=mask,
            position_ids=next_position.view(1, -1, 1).expand(3, -1, 1),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        next_position = next_position + 1
    return responses


def _choose(
    logits: torch.Tensor, temperature: float, generator: torch.Generator | None
) -> torch.Tensor:
    if temperature == 0.0:
        return logits.argmax(-1)
    # Inverse transform of uniform numbers drawn on the CPU: the same seed gives the same rollout
    # whatever device the logits are on.
    total = torch.softmax(logits / temperature, dim=-1).cumsum(-1)
    drawn = torch.rand(len(logits), 1, generator=generator).to(total)
    return (total <= drawn * total[:, -1:]).sum(-1).clamp(max=logits.shape[-1] - 1)
