"""The projection onto the vocabulary, a few positions at a time: logits are never held in full.

At Qwen3-VL's 151,936 tokens one position's logits and what a loss makes of them take some 3 MB.
Here every chunk's gradient is taken as soon as its loss is known, so only one chunk is alive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mgsd_core.products import linear

#: From logits float32 [C, V] of the positions in a slice to one loss each [C], and to values [C]
#: that are only to be logged.
LossOfLogits = Callable[[torch.Tensor, slice], tuple[torch.Tensor, dict[str, torch.Tensor]]]


def chunk_length(vocabulary: int, logit_mib: int) -> int:
    """Return how many positions' float32 logits fit into `logit_mib` MiB, at least one."""
    return max(1, logit_mib * 2**20 // (4 * vocabulary))


def chunked_loss(
    hidden: torch.Tensor, weight: torch.Tensor, loss_of: LossOfLogits, chunk: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the sum of a loss over positions, with gradient, and the sums of what it logs.

    Args:
        hidden: what is projected [N, H].
        weight: of the vocabulary's head [V, H].
        loss_of: see `LossOfLogits`.
        chunk: positions projected at a time.
    """
    sums: dict[str, torch.Tensor] = {}
    return _ChunkedLoss.apply(hidden, weight, loss_of, chunk, sums), sums


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        loss_of: LossOfLogits,
        chunk: int,
        sums: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        wanted = [i for i in (0, 1) if ctx.needs_input_grad[i]]
        total = hidden.new_zeros((), dtype=torch.float32)
        hidden_grad = torch.empty_like(hidden) if 0 in wanted else None
        weight_grad = torch.zeros_like(weight) if 1 in wanted else None
        # Converted once, here: autocast would keep another copy of the head for every chunk.
        head = weight.detach().to(_product_dtype(weight)).requires_grad_(1 in wanted)
        for begin in range(0, len(hidden), chunk):
            places = slice(begin, min(begin + chunk, len(hidden)))
            part = hidden[places].detach().to(head.dtype).requires_grad_(0 in wanted)
            with torch.enable_grad():
                losses, logged = loss_of(linear(part, head).float(), places)
                loss = losses.sum()
            if wanted:
                grads = iter(torch.autograd.grad(loss, [(part, head)[i] for i in wanted]))
                if hidden_grad is not None:
                    hidden_grad[places] = next(grads)
                if weight_grad is not None:
                    weight_grad += next(grads)
            total += loss.detach()
            for name, values in logged.items():
                sums[name] = sums.get(name, 0) + values.detach().sum()
        ctx.save_for_backward(hidden_grad, weight_grad)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        return (*(None if g is None else g * grads[0] for g in ctx.saved_tensors), None, None, None)


def _product_dtype(weight: torch.Tensor) -> torch.dtype:
    device = weight.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype
