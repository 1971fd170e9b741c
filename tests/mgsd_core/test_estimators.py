from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgsd_core.estimators import DIRECTIONS, divergence, sampled_loss, topk_divergence

VOCABULARY = 7


def _logits(seed: int, rows: int = 3, double: bool = True) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.float64 if double else torch.float32
    return 3 * torch.randn(rows, VOCABULARY, generator=generator, dtype=dtype)


def _log(logits: torch.Tensor) -> torch.Tensor:
    return logits.log_softmax(-1)


def _brute_kl(p: list[float], q: list[float]) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def _brute(direction: str, student: list[float], teacher: list[float], mix: float) -> float:
    if direction == "reverse":
        return _brute_kl(student, teacher)
    if direction == "forward":
        return _brute_kl(teacher, student)
    middle = [mix * t + (1 - mix) * s for s, t in zip(student, teacher, strict=True)]
    return mix * _brute_kl(teacher, middle) + (1 - mix) * _brute_kl(student, middle)


seeds = st.integers(0, 2**31)


@given(seeds, seeds, st.sampled_from(DIRECTIONS), st.floats(0.05, 0.95))
@settings(deadline=None)
def test_divergence_equals_brute_force(a, b, direction, mix):
    student, teacher = _logits(a), _logits(b)
    values = divergence(_log(student), _log(teacher), direction, mix)
    for row, value in enumerate(values):
        p, q = student[row].softmax(-1).tolist(), teacher[row].softmax(-1).tolist()
        assert value.item() == pytest.approx(_brute(direction, p, q, mix), abs=1e-6)


@given(seeds, seeds, st.sampled_from(DIRECTIONS), st.integers(1, VOCABULARY + 2))
@settings(deadline=None)
def test_topk_equals_brute_force_over_tokens_and_a_bucket(a, b, direction, k):
    student, teacher = _logits(a), _logits(b)
    values = topk_divergence(_log(student), _log(teacher), k, direction, 0.5)
    for row, value in enumerate(values):
        p, q = student[row].softmax(-1).tolist(), teacher[row].softmax(-1).tolist()
        best = sorted(range(VOCABULARY), key=lambda i: -p[i])[:k]
        p, q = ([d[i] for i in best] + [1 - sum(d[i] for i in best)] for d in (p, q))
        if k >= VOCABULARY:
            p, q = p[:-1], q[:-1]
        assert value.item() == pytest.approx(_brute(direction, p, q, 0.5), abs=1e-6)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("k", [2, VOCABULARY])
def test_gradients_agree_with_finite_differences(direction, k):
    teacher = _log(_logits(1))
    student = _logits(0).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: topk_divergence(_log(s), teacher, k, direction, 0.3), (student,)
    )
    assert torch.autograd.gradcheck(
        lambda s: divergence(_log(s), teacher, direction, 0.3), (student,)
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_equal_distributions_have_no_divergence_and_no_gradient(direction):
    student = _logits(0).requires_grad_()
    same = _log(student)
    divergence(same, same, direction).sum().backward()
    assert divergence(same, same, direction).abs().max() < 1e-12
    assert student.grad.abs().max() < 1e-9


def test_the_teacher_gets_no_gradient():
    teacher = _logits(1).requires_grad_()
    divergence(_log(_logits(0).requires_grad_()), _log(teacher)).sum().backward()
    assert teacher.grad is None


def test_mean_gradient_of_the_sampled_estimator_is_that_of_the_full_one():
    """Weighted by the chance of each token, the sampled gradients are the exact one."""
    teacher = _logits(1, rows=1)
    student = _logits(0, rows=1).requires_grad_()
    divergence(_log(student), _log(teacher)).sum().backward()
    exact = student.grad.clone()
    chances = student.detach().softmax(-1)[0]
    mean = torch.zeros_like(exact)
    for token in range(VOCABULARY):
        student.grad = None
        tokens = torch.tensor([token])
        old = student.detach().log_softmax(-1)[:, token]
        sampled_loss(_log(student), _log(teacher), old, tokens).sum().backward()
        mean += chances[token] * student.grad
    torch.testing.assert_close(mean, exact, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("old_offset", "teacher_gain", "moves"),
    [
        (0.0, 1.0, True),  # one inner epoch: the ratio is 1, nothing is clipped
        (-0.5, 2.0, False),  # already much likelier than when sampled: no more push up
        (0.5, -2.0, False),  # already much less likely: no more push down
        (-2.0, -4.0, False),  # far off and bad: the dual clip bounds the loss
    ],
)
def test_clipping(old_offset, teacher_gain, moves):
    student = _logits(0, rows=1).requires_grad_()
    log_p = student.detach().log_softmax(-1)
    tokens = torch.tensor([2])
    old = log_p[:, 2] + old_offset
    # A teacher whose log-probability of the token is old + teacher_gain, as far as it can be.
    target = min((old + teacher_gain).exp().item(), 0.999)
    rest = (1 - target) / (VOCABULARY - 1)
    teacher = torch.full((1, VOCABULARY), rest, dtype=torch.float64)
    teacher[0, 2] = target
    sampled_loss(_log(student), teacher.log(), old, tokens).sum().backward()
    assert (student.grad.abs().max() > 1e-6) == moves


@pytest.mark.parametrize("mix", [0.0, 1.0, -1.0])
def test_mixing_weight_is_checked(mix):
    with pytest.raises(ValueError, match="mixing weight"):
        divergence(_logits(0), _logits(1), "jsd", mix)


def test_unknown_direction():
    with pytest.raises(ValueError, match="directions are"):
        divergence(_logits(0), _logits(1), "sideways")
