"""Stage 2's losses: how far the student's next-token distribution is from the teacher's.

All take log-probabilities at the *same* response tokens, float32 [N, V], and return one value a
token, float32 [N]. The teacher's carry no gradient. Method: MGSD (arXiv 2606.06076).
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import kl_div

ESTIMATORS = ("full", "topk", "sampled")
DIRECTIONS = ("reverse", "forward", "jsd")


def divergence(
    student: torch.Tensor, teacher: torch.Tensor, direction: str = "reverse", mix: float = 0.5
) -> torch.Tensor:
    """Return the exact divergence at every position.

    Args:
        student: log-probabilities [N, V], with gradient.
        teacher: log-probabilities [N, V].
        direction: `reverse` KL(student ‖ teacher), `forward` KL(teacher ‖ student), or `jsd`, the
            generalised Jensen–Shannon divergence mix·KL(teacher ‖ m) + (1 − mix)·KL(student ‖ m)
            with m = mix·teacher + (1 − mix)·student.
        mix: weight of the teacher in `jsd`, in (0, 1).
    """
    teacher = teacher.detach()
    # kl_div(input, target) is KL(target ‖ input).
    if direction == "reverse":
        return _kl(student, teacher)
    if direction == "forward":
        return _kl(teacher, student)
    if direction != "jsd":
        raise ValueError(f"unknown direction {direction!r}; directions are: {DIRECTIONS}")
    if not 0.0 < mix < 1.0:
        raise ValueError(f"the mixing weight must be between 0 and 1, not {mix}")
    middle = torch.logaddexp(teacher + math.log(mix), student + math.log(1.0 - mix))
    return mix * _kl(teacher, middle) + (1.0 - mix) * _kl(student, middle)


def topk_divergence(
    student: torch.Tensor,
    teacher: torch.Tensor,
    k: int,
    direction: str = "reverse",
    mix: float = 0.5,
) -> torch.Tensor:
    """Return the divergence over the student's k likeliest tokens and one bucket for the rest.

    The bucket keeps both sides normalised: truncated mass alone is minimised by a collapse.
    """
    if k >= student.shape[-1]:
        return divergence(student, teacher, direction, mix)
    chosen = student.detach().topk(k, dim=-1).indices
    rest = torch.ones_like(student, dtype=torch.bool).scatter_(-1, chosen, value=False)

    def bucket(log_p: torch.Tensor) -> torch.Tensor:
        tail = log_p.masked_fill(~rest, -torch.inf).logsumexp(-1, keepdim=True)
        return torch.cat([log_p.gather(-1, chosen), tail], dim=-1)

    return divergence(bucket(student), bucket(teacher), direction, mix)


def sampled_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    old: torch.Tensor,
    tokens: torch.Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.3,
    dual_clip: float = 3.0,
) -> torch.Tensor:
    """Return the published estimator: a clipped policy gradient on each sampled token.

    The advantage of a token is log π_T − log π_old, without returns-to-go or normalisation.

    Args:
        student: log-probabilities [N, V], with gradient.
        teacher: log-probabilities [N, V].
        old: log-probabilities [N] of `tokens` under the policy that sampled them.
        tokens: sampled token ids [N].
        clip_low, clip_high: the ratio is clipped to [1 − low, 1 + high].
        dual_clip: for negative advantages the loss is bounded by this many times the advantage.
    """
    index = tokens[:, None]
    log_p = student.gather(-1, index)[:, 0]
    advantage = teacher.detach().gather(-1, index)[:, 0] - old
    ratio = (log_p - old).exp()
    loss = torch.maximum(
        -advantage * ratio, -advantage * ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    )
    return torch.where(advantage < 0, torch.minimum(loss, -advantage * dual_clip), loss)


def entropy(log_p: torch.Tensor) -> torch.Tensor:
    """Return the entropy [nat] of every distribution, from log-probabilities [N, V]."""
    return -(log_p.exp() * log_p).sum(-1)


def _kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return kl_div(q, p, reduction="none", log_target=True).sum(-1)
