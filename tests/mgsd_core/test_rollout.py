from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig
from transformers import GenerationConfig

from mgsd_core import prompts
from mgsd_core.encoding import (
    completion_logits,
    completion_tokens,
    make_batch,
    prompt_ids,
    text_ids,
)
from mgsd_core.rollout import RolloutError, generate
from sim import FAMILIES, sample

IMAGE = 64


@pytest.fixture(scope="module")
def restless(make_restless):
    return make_restless(seed=3, image_size=IMAGE)


@pytest.fixture(scope="module")
def pictures(make_picture):
    return np.stack([make_picture(i, IMAGE) for i in range(6)])


def biased(backbone, **logits: float):
    """A copy whose head adds to the logits of tokens; `end` is the end of the turn."""
    backbone = copy.deepcopy(backbone)
    bias = torch.zeros(backbone.model.config.text_config.vocab_size)
    for name, value in logits.items():
        bias[getattr(backbone, f"{name}_token")] = value
    backbone.model.lm_head.bias = torch.nn.Parameter(bias)
    return backbone


def shown(backbone, count: int) -> list[list[int]]:
    """Prompts with a picture, of all families in turn; every second is a question and longer."""
    asked = []
    for i in range(count):
        family = FAMILIES[i % len(FAMILIES)]
        question = prompts.questions(sample(family, 5, i))[0][0]
        asked.append(
            prompts.question_prompt(question, "brief")
            if i % 2
            else prompts.student_prompt(family, "brief")
        )
    return [prompt_ids(backbone, prompt) for prompt in asked]


def told(backbone, count: int) -> list[list[int]]:
    """Prompts without a picture; the longest is several times as long as the shortest."""
    states = [sample(FAMILIES[i % len(FAMILIES)], 5, i) for i in range(count - 1)]
    asked = [prompt_ids(backbone, prompts.symbolic_prompt(s, "brief")) for s in states]
    return [*asked, text_ids(backbone, "Size 3.")]


def uniform(rows: int, tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(rows, tokens, generator=torch.Generator().manual_seed(seed))


def theirs(backbone, prompt: list[int], image=None, max_new_tokens: int = 40) -> list[int]:
    """The greedy answer of transformers to one prompt."""
    batch = make_batch(backbone, [prompt], images=None if image is None else image[None])
    pictured = {}
    if image is not None:
        pictured = {
            "pixel_values": batch.pixels,
            "image_grid_thw": batch.grid,
            "mm_token_type_ids": (batch.ids == backbone.image_token).int(),
        }
    backbone.model.model.rope_deltas = None
    ids = backbone.model.generate(
        input_ids=batch.ids,
        attention_mask=batch.mask.long(),
        **pictured,
        generation_config=GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=backbone.end_token,
            pad_token_id=backbone.pad_token,
            suppress_tokens=backbone.suppressed_tokens(),
            stop_strings=[prompts.STOP_TEXT],
        ),
        tokenizer=backbone.tokenizer,
    )
    return ids[0, len(prompt) :].tolist()


def shortfall(backbone, prompt_list, responses, images=None) -> float:
    """How far, at most, a response's token lies below transformers' best, in logits."""
    worst = 0.0
    for i, (prompt, response) in enumerate(zip(prompt_list, responses, strict=True)):
        batch = make_batch(
            backbone, [prompt], [response], None if images is None else images[i : i + 1]
        )
        with torch.no_grad():
            logits = completion_logits(backbone, batch)
        logits[:, backbone.suppressed_tokens()] = -torch.inf
        said = logits.gather(1, completion_tokens(batch)[:, None])[:, 0]
        worst = max(worst, float((logits.amax(1) - said).max()))
    return worst


def test_greedy_answers_to_pictures_are_those_of_transformers(restless, pictures):
    asked = shown(restless, 6)
    assert len({len(a) for a in asked}) > 1
    ours = generate(restless, asked, pictures, max_new_tokens=40)
    assert ours == [theirs(restless, a, p) for a, p in zip(asked, pictures, strict=True)]
    assert len({tuple(r) for r in ours}) == 6


def test_greedy_answers_to_text_are_those_of_transformers(restless):
    asked = told(restless, 5)
    assert max(map(len, asked)) > 4 * min(map(len, asked))
    assert generate(restless, asked, None, 40) == [theirs(restless, a) for a in asked]


def test_pictures_and_text_in_one_batch(restless, pictures):
    seen, read = shown(restless, 3), told(restless, 4)
    asked = [read[3], seen[0], read[0], seen[1], seen[2], read[1]]
    images = [None, pictures[0], None, pictures[1], pictures[2], None]
    expected = [theirs(restless, a, i) for a, i in zip(asked, images, strict=True)]
    assert generate(restless, asked, pictures[:3], 40) == expected


def test_long_responses_outgrow_the_first_cache(restless, pictures):
    asked = [shown(restless, 1)[0], told(restless, 2)[1]]
    ours = generate(restless, asked, pictures[:1], max_new_tokens=300)
    assert ours == [
        theirs(restless, asked[0], pictures[0], 300),
        theirs(restless, asked[1], None, 300),
    ]
    assert max(map(len, ours)) > 200


def test_a_response_depends_neither_on_its_neighbours_nor_on_its_place(restless, pictures):
    """Responses end at very different lengths, so rows leave and change places all the time."""
    backbone = biased(restless, end=9.0)
    rng = np.random.default_rng(0)
    asked = [*shown(backbone, 6), *told(backbone, 6)] * 2
    pictured = {i: pictures[i % 6] for i, a in enumerate(asked) if backbone.image_token in a}
    numbers = uniform(len(asked), 80)

    def say(rows):
        images = [pictured[i] for i in rows if i in pictured]
        return generate(
            backbone,
            [asked[i] for i in rows],
            np.stack(images) if images else None,
            80,
            4.0,
            numbers[rows],
        )

    together = say(list(range(len(asked))))
    lengths = [len(r) for r in together]
    assert len(set(lengths)) > len(asked) // 3 and max(lengths) == 80
    assert [say([i])[0] for i in range(len(asked))] == together
    order = rng.permutation(len(asked)).tolist()
    assert say(order) == [together[i] for i in order]
    half = order[: len(asked) // 2]
    assert say(half) == [together[i] for i in half]


def test_uniforms_are_what_decides(restless):
    asked = [told(restless, 2)[0]] * 8
    first = generate(restless, asked, None, 20, 2.0, uniform(8, 20, seed=0))
    assert first == generate(restless, asked, None, 20, 2.0, uniform(8, 20, seed=0))
    assert first != generate(restless, asked, None, 20, 2.0, uniform(8, 20, seed=1))
    assert len({tuple(r) for r in first}) == 8


def _probabilities(backbone, prompt, temperature):
    with torch.no_grad():
        logits = backbone.model(input_ids=torch.tensor([prompt])).logits[0, -1].double()
    logits[backbone.suppressed_tokens()] = -torch.inf
    return torch.softmax(logits / temperature, -1)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_tokens_are_drawn_from_the_models_distribution(restless, temperature):
    draws, prompt = 16000, text_ids(restless, "Size 3.")
    responses = generate(restless, [prompt] * draws, None, 1, temperature, uniform(draws, 1))
    counts = torch.bincount(torch.tensor(responses)[:, 0], minlength=len(restless.tokenizer))

    def chi_square(probabilities):
        """Per degree of freedom; tokens that are expected fewer than 5 times count as one."""
        expected = draws * probabilities
        often = expected >= 5
        seen = torch.cat((counts[often], counts[~often].sum()[None]))
        wanted = torch.cat((expected[often], expected[~often].sum()[None]))
        return float(((seen - wanted) ** 2 / wanted).sum() / (len(wanted) - 1)), len(wanted) - 1

    right, freedom = chi_square(_probabilities(restless, prompt, temperature))
    bound = 1.0 + 4.0 * (2.0 / freedom) ** 0.5  # four standard deviations
    assert right < bound
    for wrong in (0.8 * temperature, 1.25 * temperature):
        assert chi_square(_probabilities(restless, prompt, wrong))[0] > bound


def test_the_inverse_transform_hits_every_tokens_share(restless):
    """The number in the middle of a token's share of [0, 1) draws that token."""
    prompt = text_ids(restless, "Size 3.")
    share = _probabilities(restless, prompt, 2.0)
    likely = (share > 1e-4).nonzero()[:, 0]
    middle = (share.cumsum(0) - share / 2)[likely].float()[:, None]
    responses = generate(restless, [prompt] * len(likely), None, 1, 2.0, middle)
    assert [r[0] for r in responses] == likely.tolist()
    ends = torch.tensor([[0.0], [1.0 - 2.0**-24]])
    first, last = generate(restless, [prompt] * 2, None, 1, 50.0, ends)
    allowed = (_probabilities(restless, prompt, 50.0) > 0).nonzero()[:, 0]
    assert (first[0], last[0]) == (allowed[0], allowed[-1])


@pytest.mark.parametrize("temperature", [0.0, 1.0, 100.0])
def test_suppressed_tokens_are_never_said(restless, temperature):
    backbone = biased(restless, image=200.0, pad=100.0)
    asked = told(backbone, 6)
    responses = generate(backbone, asked, None, 60, temperature, uniform(6, 60))
    assert not set(backbone.suppressed_tokens()) & {t for r in responses for t in r}


def test_ids_beyond_the_tokenizer_are_never_said(make_restless):
    backbone = make_restless(seed=3, image_size=IMAGE)
    known = len(backbone.tokenizer)
    backbone.model.resize_token_embeddings(4 * known, mean_resizing=False)
    asked = told(backbone, 6)
    for temperature in (0.0, 100.0):
        responses = generate(backbone, asked, None, 60, temperature, uniform(6, 60))
        assert max(t for r in responses for t in r) < known


def test_a_response_ends_with_the_end_of_the_turn(restless, pictures):
    at_once = biased(restless, end=1000.0)
    end = at_once.end_token
    assert generate(at_once, shown(at_once, 3), pictures[:3], 10) == [[end]] * 3
    # One of several ends with its first token: the number in the middle of that token's share.
    backbone = biased(restless, end=3.0)
    asked, numbers = told(backbone, 4), uniform(4, 30)
    share = _probabilities(backbone, asked[1], 2.0)
    assert share[end] > 1e-5
    numbers[1, 0] = float(share.cumsum(0)[end] - share[end] / 2)
    responses = generate(backbone, asked, None, 30, 2.0, numbers)
    assert responses[1] == [end]
    assert all(len(r) > 1 for i, r in enumerate(responses) if i != 1)
    for response in responses:
        assert end not in response[:-1]


@pytest.mark.parametrize("most", [1, 2, 63, 64, 65, 130])
def test_responses_are_cut_at_max_new_tokens(restless, most):
    asked = told(restless, 3)
    whole = generate(restless, asked, None, 130)
    assert max(map(len, whole)) == 130
    assert generate(restless, asked, None, most) == [r[:most] for r in whole]


@pytest.mark.parametrize("spelling", [["</answer>"], list("</answer>")])
def test_a_response_ends_with_the_stop_text_however_it_is_spelled(make_scripted, spelling):
    ids = build_ids(make_scripted, ["Ġ(0,0)", *spelling, "."])
    backbone = make_scripted(ids)
    image = np.zeros((1, IMAGE, IMAGE, 3), np.uint8)
    asked = prompt_ids(backbone, prompts.student_prompt("frozenlake", "brief"))
    assert generate(backbone, [asked], image, 20) == [ids[:-1]]


def test_a_response_goes_on_after_what_only_looks_like_the_stop_text(make_scripted):
    ids = build_ids(make_scripted, ["<answer>", "/", "s", "w", "e", "r", ">", "."])
    backbone = make_scripted(ids)
    image = np.zeros((1, IMAGE, IMAGE, 3), np.uint8)
    asked = prompt_ids(backbone, prompts.student_prompt("frozenlake", "brief"))
    assert generate(backbone, [asked], image, len(ids))[0] == ids


def build_ids(make_scripted, pieces: list[str]) -> list[int]:
    tokenizer = make_scripted([]).tokenizer
    ids = tokenizer.convert_tokens_to_ids(pieces)
    assert None not in ids and len(set(ids)) == len(ids)
    return ids


def test_adapters_speak_when_on_and_not_when_off(make_restless, pictures):
    backbone = make_restless(seed=3, image_size=IMAGE)
    asked = shown(backbone, 3)
    base = generate(backbone, asked, pictures[:3], 30)
    backbone.model.add_adapter(
        LoraConfig(target_modules="all-linear", r=4, lora_alpha=32, init_lora_weights=False)
    )
    backbone.model.eval()
    adapted = generate(backbone, asked, pictures[:3], 30)
    assert adapted == [theirs(backbone, a, p, 30) for a, p in zip(asked, pictures[:3], strict=True)]
    assert all(a != b for a, b in zip(adapted, base, strict=True))
    backbone.model.disable_adapters()
    assert generate(backbone, asked, pictures[:3], 30) == base


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [True, False])
def test_every_precision_says_what_transformers_would(make_restless, pictures, weights, autocast):
    """Rounding may decide between equals, so a token may lie that much below the best."""
    backbone = make_restless(seed=3, image_size=IMAGE)
    backbone.model.to(weights)
    asked = shown(backbone, 3)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        responses = generate(backbone, asked, pictures[:3], 40)
        below = shortfall(backbone, asked, responses, pictures[:3])
        other = shortfall(backbone, asked, [r[::-1] for r in responses], pictures[:3])
    exact = weights is torch.float32 and not autocast
    assert below <= (1e-4 if exact else 0.1)
    assert other > 1.0  # what other tokens give


def test_a_pass_trained_in_the_same_autocast_region_gets_its_gradients(make_restless):
    backbone = make_restless(seed=3, image_size=IMAGE)
    asked = told(backbone, 2)
    with torch.autocast("cpu", torch.bfloat16):
        responses = generate(backbone, asked, None, 5)
        completion_logits(backbone, make_batch(backbone, asked, responses)).sum().backward()
    layers = backbone.model.model.language_model.named_parameters()
    assert [n for n, p in layers if p.grad is None] == []


def test_no_prompts_have_no_responses(restless):
    assert generate(restless, [], None, 5) == []


def test_broken_weights_are_said_to_be(make_restless):
    backbone = make_restless(seed=3, image_size=IMAGE)
    asked = told(backbone, 2)
    with torch.no_grad():
        backbone.model.model.language_model.norm.weight[0] = torch.nan
    for temperature in (0.0, 1.0):
        with pytest.raises(RolloutError, match="not finite numbers"):
            generate(backbone, asked, None, 5, temperature, uniform(2, 5))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, not 0"),
        ({"temperature": -1.0}, r"temperature must be 0 \(greedy\) or more, not -1.0"),
        ({"temperature": float("nan")}, "not nan"),
        ({"uniforms": None}, r"sampling needs uniforms, float32 \[2, 5\]"),
        ({"uniforms": uniform(2, 4)}, r"must be float32 \[2, 5\], not float32 \[2, 4\]"),
        ({"uniforms": uniform(3, 5)}, r"must be float32 \[2, 5\], not float32 \[3, 5\]"),
        ({"uniforms": uniform(2, 5).double()}, r"not float64 \[2, 5\]"),
        ({"uniforms": torch.ones(2, 5)}, r"uniforms must be in \[0, 1\)"),
        ({"uniforms": torch.full((2, 5), torch.nan)}, r"uniforms must be in \[0, 1\)"),
        ({"images": np.zeros((1, IMAGE, IMAGE, 3), np.uint8)}, "2 prompts show a picture, but 1 "),
        ({"images": None}, "2 prompts show a picture, but 0 pictures were given"),
        ({"prompts": [[], [5]]}, "a prompt is empty"),
    ],
)
def test_arguments_that_do_not_fit_are_named(restless, pictures, changed, message):
    arguments = {
        "prompts": shown(restless, 2),
        "images": pictures[:2],
        "max_new_tokens": 5,
        "temperature": 1.0,
        "uniforms": uniform(2, 5),
    }
    with pytest.raises(ValueError, match=message):
        generate(restless, **{**arguments, **changed})
