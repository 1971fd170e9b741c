"""What transformers says: the answers and logits that an export must reproduce."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig

from mgsd_core.encoding import completion_logits, make_batch, prompt_ids
from mgsd_core.model import Backbone
from mgsd_core.prompts import STOP_TEXT, student_prompt
from mgsd_core.runtime.ort_engine import OrtEngine
from mgsd_core.runtime.preprocess import fit, mrope_positions, patchify


@torch.no_grad()
def greedy_ids(
    backbone: Backbone, family: str, rgb: NDArray[np.uint8], max_new_tokens: int
) -> list[int]:
    """Return the token ids that `transformers`' own greedy generation answers with.

    Args:
        backbone: the model.
        family: whose instruction it reads.
        rgb: picture uint8 [H, W, 3].
        max_new_tokens: the response is cut there.
    """
    model, spec = backbone.model, backbone.image
    ids = torch.tensor([prompt_ids(backbone, student_prompt(family, backbone.style))])
    pixels = torch.from_numpy(patchify(fit(rgb, spec)[None], spec))
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == backbone.image_token).int(),
        "pixel_values": pixels.to(model.dtype),
        "image_grid_thw": torch.tensor([[1, spec.grid, spec.grid]]),
    }
    output = model.generate(
        **{name: tensor.to(model.device) for name, tensor in inputs.items()},
        generation_config=GenerationConfig(
            do_sample=False,
            repetition_penalty=1.0,
            max_new_tokens=max_new_tokens,
            eos_token_id=backbone.end_token,
            pad_token_id=backbone.pad_token,
            suppress_tokens=backbone.suppressed_tokens(),
            stop_strings=[STOP_TEXT],
        ),
        tokenizer=backbone.tokenizer,
    )
    return output[0, ids.shape[1] :].tolist()


def greedy_text(
    backbone: Backbone, family: str, rgb: NDArray[np.uint8], max_new_tokens: int
) -> str:
    """Return that answer as text, up to `</answer>`; the arguments are those of `greedy_ids`."""
    ids = greedy_ids(backbone, family, rgb, max_new_tokens)
    text = backbone.tokenizer.decode([i for i in ids if i != backbone.end_token])
    return text[: text.index(STOP_TEXT) + len(STOP_TEXT)] if STOP_TEXT in text else text


@torch.no_grad()
def response_logits(
    backbone: Backbone, family: str, rgb: NDArray[np.uint8], response: Sequence[int]
) -> NDArray[np.float32]:
    """Return transformers' logits [N, V] for each of the N tokens of a response, in one pass."""
    ids = prompt_ids(backbone, student_prompt(family, backbone.style))
    batch = make_batch(backbone, [ids], [response], fit(rgb, backbone.image)[None])
    return completion_logits(backbone, batch.to(backbone.model.device)).cpu().numpy()


def logit_difference(
    backbone: Backbone,
    engine: OrtEngine,
    family: str,
    rgb: NDArray[np.uint8],
    response: Sequence[int],
) -> float:
    """Return how far an engine's logits are from transformers' along a response.

    The engine reads prompt and response as a robot does: the prompt in one pass, then token by
    token. The result is the largest difference over the largest logit (at least 1).
    """
    expected = response_logits(backbone, family, rgb, response)
    ids = prompt_ids(backbone, student_prompt(family, backbone.style))
    positions = mrope_positions([*ids, *response], backbone.image_token, backbone.image)
    engine.see(patchify(fit(rgb, backbone.image)[None], backbone.image))
    logits = [engine.read_logits(ids, positions[:, : len(ids)], start=0).copy()]
    for place, token in enumerate(response[:-1], start=len(ids)):
        logits.append(engine.read_logits([token], positions[:, place, None], start=place).copy())
    return float(np.abs(np.concatenate(logits) - expected).max() / max(1.0, np.abs(expected).max()))
