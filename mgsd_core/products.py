"""The matrix product of a linear layer; on a CPU in float32 by oneDNN, whoever made the processor.

PyTorch hands such products to MKL, which on processors that are not Intel's does without AVX-512:
there oneDNN is over twice as fast (benchmarks/products.py). It rounds otherwise, not more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch.nn import Parameter, functional

# Rows that are multiplied at a time. oneDNN compiles a product for its shape, a millisecond and a
# megabyte or so each, and no two batches are of the same length.
_ROWS = 256

# Narrower products, such as an adapter's, are left alone: they wait for memory, not for arithmetic.
_NARROW = 16

# Bytes of a compiled product (measured: 0.4 to 0.9 MB).
_COMPILED = 2**19


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return x · weightᵀ + bias, as `torch.nn.functional.linear`.

    Args:
        x: [..., K].
        weight: [N, K].
        bias: [N].
    """
    if not _fits(x, weight):
        return functional.linear(x, weight, bias)
    y: torch.Tensor = _Linear.apply(x, weight, bias)
    return y


def compiled_bytes(model: torch.nn.Module) -> int:
    """Return what oneDNN's products take of memory once a model was trained on a CPU, about."""
    if not _is_exact():
        return 0
    shapes = {tuple(m.weight.shape) for m in model.modules() if type(m) is torch.nn.Linear}
    # Forward, and the gradients of both sides.
    return 3 * _COMPILED * sum(min(shape) >= _NARROW for shape in shapes)


def _fits(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        type(weight) in (torch.Tensor, Parameter)  # one that is split is more than its values
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() >= _ROWS * x.shape[-1]
        and min(weight.shape) >= _NARROW
        and not torch.is_autocast_enabled("cpu")
        and _is_exact()
    )


@cache
def _is_exact() -> bool:
    """Return whether this torch has oneDNN multiply, and it does not round to bfloat16 here.

    With Intel's AMX it does; MKL is as fast there.
    """
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.backends.mkldnn, "matmul"):
        return False
    a, b = (
        torch.linspace(0.1, 1.0, _ROWS * 128).view(_ROWS, 128),
        torch.linspace(0.1, 1.0, 128 * 64),
    )
    b = b.view(128, 64)
    with _by_onednn():
        y = a @ b
    return torch.allclose(y.double(), a.double() @ b.double(), rtol=1e-5, atol=0.0)


@contextmanager
def _by_onednn() -> Iterator[None]:
    """Have torch's products computed by oneDNN.

    It does so where bfloat16 would be precise enough, whether or not oneDNN then makes use of that.
    """
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        y = _times(x.reshape(-1, x.shape[-1]), weight.T)
        if bias is not None:
            y += bias
        return y.view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        g = grads[0].reshape(-1, len(weight))
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            _times(g, weight).view_as(x) if wants_x else None,
            _across(g, x.reshape(-1, x.shape[-1])) if wants_weight else None,
            g.sum(0) if wants_bias else None,
        )


def _times(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return a · b for a [M, K] and b [K, N]; nothing is recorded."""
    y = a.new_empty(len(a), b.shape[1])
    whole = len(a) - len(a) % _ROWS
    with _by_onednn():
        for begin in range(0, whole, _ROWS):
            end = begin + _ROWS
            torch.mm(a[begin:end], b, out=y[begin:end])
    if whole < len(a):
        torch.mm(a[whole:], b, out=y[whole:])
    return y


def _across(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return aᵀ · b for a [M, K] and b [M, N]; nothing is recorded."""
    y = a.new_zeros(a.shape[1], b.shape[1])
    whole = len(a) - len(a) % _ROWS
    with _by_onednn():
        for begin in range(0, whole, _ROWS):
            end = begin + _ROWS
            y.addmm_(a[begin:end].T, b[begin:end])
    return y.addmm_(a[whole:].T, b[whole:]) if whole < len(a) else y
