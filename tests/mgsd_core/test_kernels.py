from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from mgsd_core import prompts
from mgsd_core.adapters import add_adapter
from mgsd_core.config import ComputeConfig, LoraConfig
from mgsd_core.encoding import (
    completion_hidden,
    completion_logits,
    last_hidden,
    make_batch,
    prompt_ids,
    see,
    text_ids,
)
from mgsd_core.kernels import quicken
from mgsd_core.model import load_backbone
from mgsd_core.rollout import generate
from mgsd_core.training import activation_checkpointing, mixed
from sim import FAMILIES, sample, solve

IMAGE = 64


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    from small_qwen import write_small_qwen

    path = write_small_qwen(tmp_path_factory.mktemp("qwen") / "weights", vision_layers=4, layers=4)
    backbone = load_backbone(path, image_size=256)
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(4)
    return backbone


@pytest.fixture(scope="module", params=["nano", "qwen"])
def plain(request, make_restless):
    if request.param == "qwen":
        return request.getfixturevalue("qwen")
    return make_restless(seed=5, image_size=IMAGE)


def quick(backbone):
    backbone = copy.deepcopy(backbone)
    quicken(backbone.model)
    return backbone


def with_adapter(backbone):
    backbone = copy.deepcopy(backbone)
    add_adapter(backbone, LoraConfig(rank=4), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # an untrained one says nothing
        for name, parameter in backbone.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return backbone


def asked(backbone, count: int, pictures: bool):
    """Prompts of several lengths, with answers of several lengths, and pictures or none."""
    questions, answers = [], []
    for i in range(count):
        state = sample(FAMILIES[i % len(FAMILIES)], 5, i)
        prompt = (
            prompts.student_prompt(state.family, backbone.style)
            if pictures
            else prompts.symbolic_prompt(state, backbone.style)
        )
        questions.append(prompt_ids(backbone, prompt))
        text = prompts.response_text(state, solve(state) or ())
        answers.append(text_ids(backbone, text)[: 5 + 7 * i])
    size = backbone.image.size
    noise = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return questions, answers, noise if pictures else None


def scored(backbone, batch, precision="fp32"):
    """Log-probabilities of what was answered, and the gradients of their weighted sum."""
    model = backbone.model
    model.zero_grad()
    with mixed(ComputeConfig(precision=precision), torch.device("cpu")):
        logits = completion_logits(backbone, batch)
    log_p = logits.log_softmax(-1)
    weights = torch.linspace(-1.0, 1.0, log_p.numel()).view_as(log_p)
    (log_p * weights).mean().backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return log_p.detach(), grads


def close(ours, theirs, tolerance):
    (log_p, grads), (expected, expected_grads) = ours, theirs
    assert (log_p - expected).abs().max() < tolerance
    assert grads.keys() == expected_grads.keys()
    for name, grad in grads.items():
        wanted = expected_grads[name]
        scale = wanted.norm() + 1e-4 * max(g.norm() for g in expected_grads.values())
        assert (grad - wanted).norm() < tolerance * scale, name


@pytest.mark.parametrize("pictures", [True, False])
@pytest.mark.parametrize("adapter", [False, True])
def test_probabilities_and_gradients_are_those_of_transformers(plain, pictures, adapter):
    backbone = with_adapter(plain) if adapter else plain
    batch = make_batch(backbone, *asked(backbone, 4, pictures))
    expected = scored(backbone, batch)
    close(scored(quick(backbone), batch), expected, 1e-4)
    # And the comparison can fail.
    other = quick(backbone)
    with torch.no_grad():
        other.model.model.language_model.layers[1].self_attn.k_norm.weight[3] *= 1.05
    with pytest.raises(AssertionError):
        close(scored(other, batch), expected, 1e-4)


@pytest.mark.parametrize("pictures", [True, False])
def test_half_precision_differs_by_its_rounding(plain, pictures):
    batch = make_batch(plain, *asked(plain, 3, pictures))
    exact, _ = scored(plain, batch)
    theirs, _ = scored(plain, batch, "bf16")
    ours, _ = scored(quick(plain), batch, "bf16")
    rounding = (theirs - exact).norm()
    assert 0 < (ours - exact).norm() < 1.2 * rounding


def test_gradient_checkpointing_changes_nothing(plain):
    backbone = quick(plain)
    batch = make_batch(backbone, *asked(backbone, 2, True))
    expected = scored(backbone, batch)
    activation_checkpointing(backbone.model, True)
    backbone.model.train()
    close(scored(backbone, batch), expected, 1e-5)


@pytest.mark.parametrize("left", [False, True])
def test_the_last_hidden_states_of_any_places(plain, left):
    questions, answers, noise = asked(plain, 3, True)
    batch = make_batch(plain, questions, answers, noise, left=left)
    places = batch.mask.flatten().nonzero()[:, 0][[0, 5, 60, 61, 80, -1]]
    with torch.no_grad():
        expected = last_hidden(plain.model, batch, places)
        found = last_hidden(quick(plain).model, batch, places)
    assert expected.shape == (6, plain.model.config.text_config.hidden_size)
    assert (found - expected).abs().max() < 1e-4
    assert (found - expected.roll(1, 0)).abs().max() > 0.1


@pytest.mark.parametrize("grids", [[(4, 4)], [(4, 4)] * 3, [(4, 4), (6, 4)], [(2, 8), (4, 4)]])
def test_pictures_of_one_size_or_of_several(plain, grids):
    merge = plain.image.merge
    grid = torch.tensor([[1, h * merge // 2, w * merge // 2] for h, w in grids])
    tower = plain.model.model.visual
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(
        int(grid.prod(1).sum()), tower.patch_embed.proj.weight[0].numel(), generator=generator
    )
    with torch.no_grad():
        theirs = tower(patches, grid_thw=grid)
        ours = quick(plain).model.model.visual(patches, grid_thw=grid)
    pairs = [
        (ours.pooler_output, theirs.pooler_output),
        *zip(ours.deepstack_features, theirs.deepstack_features, strict=True),
    ]
    for found, expected in pairs:
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_pictures_looked_at_once_give_the_same_gradients(plain):
    questions, answers, noise = asked(plain, 4, True)
    batch = make_batch(plain, questions, answers, noise)
    backbone = quick(plain)
    expected = scored(backbone, batch)
    for rows in ([0, 1, 2, 3], [3, 1, 2, 0]):
        seen = see(backbone, noise[rows])
        back = [rows.index(i) for i in range(4)]
        close(
            scored(backbone, make_batch(backbone, questions, answers, seen[back])), expected, 1e-5
        )
    wrong = make_batch(backbone, questions, answers, see(backbone, noise[[1, 0, 2, 3]]))
    assert (scored(backbone, wrong)[0] - expected[0]).abs().max() > 0.01


@pytest.mark.parametrize("adapter", [False, True])
def test_rollouts_are_the_same(plain, adapter):
    backbone = with_adapter(plain) if adapter else plain
    faster = quick(backbone)
    questions, _, noise = asked(backbone, 3, True)
    uniforms = torch.rand(3, 12, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        seen = see(faster, noise)
    for settings in ((0.0, None), (1.0, uniforms)):
        expected = generate(backbone, questions, noise, 12, *settings)
        assert generate(faster, questions, noise, 12, *settings) == expected
        assert generate(faster, questions, seen, 12, *settings) == expected


def test_once_more_changes_nothing(plain):
    backbone = quick(plain)
    batch = make_batch(backbone, *asked(backbone, 2, True))
    with torch.no_grad():
        once = completion_hidden(backbone.model, batch)
        quicken(backbone.model)
        assert torch.equal(completion_hidden(backbone.model, batch), once)
    assert backbone.model.state_dict().keys() == plain.model.state_dict().keys()
