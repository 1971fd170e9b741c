from __future__ import annotations

import numpy as np
import pytest
import torch

from mgsd_core import prompts
from mgsd_core.encoding import (
    completion_logits,
    completion_tokens,
    make_batch,
    prompt_ids,
    text_ids,
)
from mgsd_core.rollout import generate
from sim import FAMILIES, LEVELS, sample, solve


def _asked(backbone, family):
    return prompt_ids(backbone, prompts.student_prompt(family, "brief"))


def test_a_prompt_holds_one_placeholder_a_visual_token(trained_backbone):
    for family in FAMILIES:
        ids = _asked(trained_backbone, family)
        assert ids.count(trained_backbone.image_token) == trained_backbone.image.tokens
        # The instruction comes before the picture, so that its keys are computed once.
        place = ids.index(trained_backbone.image_token)
        assert trained_backbone.tokenizer.decode(ids[:place]).count(
            prompts.instruction(family, "brief")
        )


def test_text_prompts_have_no_placeholder(trained_backbone):
    state = sample("maze", 3, 0)
    ids = prompt_ids(trained_backbone, prompts.symbolic_prompt(state, "brief", solve(state)))
    assert trained_backbone.image_token not in ids


def test_placeholders_in_a_text_are_not_taken_for_a_picture(trained_backbone):
    prompt = prompts.Prompt("See.", "What is <|image_pad|>?", has_image=False)
    with pytest.raises(ValueError, match="image placeholders"):
        prompt_ids(trained_backbone, prompt)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_word_of_a_response_is_one_token(trained_backbone, family):
    for level in LEVELS[family]:
        state = sample(family, level, 1)
        text = prompts.response_text(state, solve(state))
        ids = text_ids(trained_backbone, text)
        assert trained_backbone.tokenizer.decode(ids) == text
        words = text.replace(".", " .").replace("<answer>", " <answer> ").replace("</", " </")
        assert len(ids) == len(words.split()) + 1  # and the space before <answer>


def test_padding_changes_nothing(trained_backbone, lake_episodes):
    """Logits of a sequence are the same alone, padded right among longer ones, and padded left."""
    backbone = trained_backbone
    asked = [_asked(backbone, "frozenlake"), _asked(backbone, "minibehaviour")]
    said = [
        text_ids(backbone, "Size 3."),
        text_ids(backbone, "Size 5. Agent (0,0). Printer (1,1)."),
    ]
    images = np.stack([e.image for e in lake_episodes[:2]])
    with torch.no_grad():
        alone = [
            completion_logits(backbone, make_batch(backbone, [a], [s], images[i : i + 1]))
            for i, (a, s) in enumerate(zip(asked, said, strict=True))
        ]
        for left in (False, True):
            batch = make_batch(backbone, asked, said, images, left=left)
            together = completion_logits(backbone, batch)
            torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)
            assert completion_tokens(batch).tolist() == said[0] + said[1]


def test_positions_are_those_of_transformers(trained_backbone, lake_episodes):
    """Passing our positions gives the logits that the model computes with its own."""
    backbone = trained_backbone
    ids = _asked(backbone, "frozenlake") + text_ids(backbone, "Size 3. Start (0,0).")
    batch = make_batch(backbone, [ids], images=lake_episodes[0].image[None])
    with torch.no_grad():
        ours = backbone.model(
            input_ids=batch.ids,
            position_ids=batch.positions,
            pixel_values=batch.pixels,
            image_grid_thw=batch.grid,
        ).logits
        theirs = backbone.model(
            input_ids=batch.ids,
            pixel_values=batch.pixels,
            image_grid_thw=batch.grid,
            mm_token_type_ids=(batch.ids == backbone.image_token).int(),
        ).logits
    torch.testing.assert_close(ours, theirs)


def test_greedy_generation_is_that_of_transformers(trained_backbone, lake_episodes):
    backbone = trained_backbone
    ids = _asked(backbone, "frozenlake")
    images = np.stack([e.image for e in lake_episodes[:4]])
    ours = generate(backbone, [ids] * 4, images, max_new_tokens=60)
    for image, response in zip(images, ours, strict=True):
        batch = make_batch(backbone, [ids], images=image[None])
        backbone.model.model.rope_deltas = None
        theirs = backbone.model.generate(
            input_ids=batch.ids,
            attention_mask=batch.mask.long(),
            pixel_values=batch.pixels,
            image_grid_thw=batch.grid,
            mm_token_type_ids=(batch.ids == backbone.image_token).int(),
            max_new_tokens=len(response),
            do_sample=False,
            suppress_tokens=backbone.suppressed_tokens(),
        )[0, len(ids) :].tolist()
        assert response == theirs


def test_rollouts_stop_at_the_answer_and_never_hold_placeholders(trained_backbone, lake_episodes):
    backbone = trained_backbone
    ids = _asked(backbone, "frozenlake")
    images = np.stack([e.image for e in lake_episodes])
    drawn = {}
    for seed in (0, 0, 1):
        uniforms = torch.rand(len(images), 60, generator=torch.Generator().manual_seed(seed))
        responses = generate(backbone, [ids] * len(images), images, 60, 4.0, uniforms)
        assert all(drawn.setdefault(seed, responses)[i] == r for i, r in enumerate(responses))
        banned = set(backbone.suppressed_tokens())
        stop = text_ids(backbone, prompts.STOP_TEXT)[0]
        for response in responses:
            assert not banned & set(response)
            assert not {stop, backbone.end_token} & set(response[:-1])
            assert len(response) <= 60
    assert drawn[0] != drawn[1]
