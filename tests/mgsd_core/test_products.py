from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from mgsd_core import products
from mgsd_core.kernels import quicken
from mgsd_core.products import compiled_bytes, linear


def with_gradients(function, x, weight, bias):
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias) if t is not None]
    y = function(*leaves)
    y.backward(torch.linspace(-1.0, 1.0, y.numel(), dtype=y.dtype).view_as(y))
    return [y.detach(), *(t.grad for t in leaves)]


def values(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)  # oneDNN compiles a product for its shape
@given(
    leading=st.sampled_from([(255,), (256,), (257,), (700,), (3, 100), (2, 5, 60), (1,), ()]),
    inner=st.integers(1, 70),
    outer=st.integers(1, 70),
    has_bias=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_values_and_gradients_are_those_of_torch(leading, inner, outer, has_bias, seed):
    x, weight = values(seed, *leading, inner), values(seed + 1, outer, inner)
    bias = values(seed + 2, outer) if has_bias else None
    ours = with_gradients(linear, x, weight, bias)
    for mine, theirs in zip(ours, with_gradients(functional.linear, x, weight, bias), strict=True):
        assert mine.shape == theirs.shape
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_arguments_need_not_lie_in_order():
    x, weight = values(0, 24, 30, 20).transpose(0, 1), values(1, 24, 17)[:20].T
    assert not x.is_contiguous() and not weight.is_contiguous()
    for mine, theirs in zip(
        with_gradients(linear, x, weight, None),
        with_gradients(functional.linear, x, weight, None),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_needs_no_gradient_gets_none(frozen):
    leaves = [values(0, 300, 20), values(1, 30, 20), values(2, 30)]
    for i, leaf in enumerate(leaves):
        leaf.requires_grad_(i != frozen)
    linear(*leaves).sum().backward()
    assert [leaf.grad is None for leaf in leaves] == [i == frozen for i in range(3)]


def test_other_numbers_are_left_to_torch():
    x, weight = values(0, 300, 20), values(1, 30, 20)
    for dtype in (torch.float64, torch.bfloat16):
        y = linear(x.to(dtype), weight.to(dtype))
        assert y.dtype == dtype
        assert torch.equal(y, functional.linear(x.to(dtype), weight.to(dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    assert linear(x[:0], weight).shape == (0, 30)
    assert linear(x[:, :0], weight[:, :0]).tolist() == [[0.0] * 30] * 300


def made_by(y):
    return type(y.grad_fn).__name__


needs_onednn = pytest.mark.skipif(
    not products._is_exact(), reason="oneDNN is not there, or rounds to bfloat16 on this processor"
)


@needs_onednn
def test_onednn_multiplies_what_is_large_enough():
    x, weight = values(0, 300, 20).requires_grad_(), values(1, 30, 20)
    assert made_by(linear(x, weight)) == "_LinearBackward"
    for left_alone in (linear(x[:255], weight), linear(x, weight[:8])):
        assert made_by(left_alone) != "_LinearBackward"


@needs_onednn
def test_a_quickened_models_layers_do_it_so(make_restless):
    model = make_restless(seed=0).model
    layer = model.model.language_model.layers[0].mlp.up_proj
    x = values(0, 300, layer.in_features)
    plain = layer(x)
    assert made_by(plain) != "_LinearBackward"
    quicken(model)
    assert made_by(layer(x)) == "_LinearBackward"
    torch.testing.assert_close(layer(x), plain, rtol=1e-4, atol=1e-5)


@needs_onednn
def test_compiled_products_are_counted_once_a_shape():
    same = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.Linear(32, 64))
    more = torch.nn.Sequential(*same, torch.nn.Linear(64, 32), torch.nn.Linear(32, 8))
    assert compiled_bytes(more) == 2 * compiled_bytes(same) > 0


def test_without_onednn_torch_does_it(monkeypatch):
    x, weight = values(0, 300, 20), values(1, 30, 20)
    monkeypatch.setattr(products, "_is_exact", lambda: False)
    assert torch.equal(linear(x, weight), functional.linear(x, weight))


def test_the_setting_stays_as_it_was_also_after_an_error():
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    linear(values(0, 300, 20), values(1, 30, 20))
    with pytest.raises(RuntimeError):
        linear(values(0, 300, 20), values(1, 30, 21))
    assert setting.fp32_precision == before
