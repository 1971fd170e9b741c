"""Faster forwards for transformers' modules: the same functions of the same weights, rounded anew.

Weights, their names and the modules that hold them stay as they are, so adapters, split
parameters, gradient checkpointing and saving never notice. What is gained is passes over memory:
a small model on a CPU spends more time between its matrix products than in them.

- Pictures of one size go through the vision tower as a batch, with the positions of one of them.
- The root mean square norm, and the rotation of heads after it, are one step each, whose gradient
  is written out instead of being recorded operation by operation.
- The last layer may be asked for some places only, see `WANTED`.
- Linear layers go through `products.linear`.
"""

from __future__ import annotations

import math
from types import MethodType
from typing import Any

import torch
from torch.nn.functional import gelu, scaled_dot_product_attention
from transformers import Qwen3VLForConditionalGeneration
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    BaseModelOutputWithDeepstackFeatures,
    Qwen3VLTextAttention,
    Qwen3VLTextDecoderLayer,
    Qwen3VLTextRMSNorm,
    Qwen3VLVisionAttention,
    Qwen3VLVisionMLP,
    Qwen3VLVisionModel,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from mgsd_core.products import linear

#: Name of an argument of the model: int64 [N], places of the batch in row-major order. With faster
#: forwards, the last hidden states are those of these places alone [N, H]; else it does nothing.
WANTED = "wanted_places"


def quicken(model: Qwen3VLForConditionalGeneration) -> None:
    """Give a model's modules faster forwards, in place; once more changes nothing."""
    text, tower = model.model.language_model, model.model.visual
    forwards: dict[type[torch.nn.Module], Any] = {
        Qwen3VLTextRMSNorm: _norm,
        Qwen3VLTextAttention: _text_attention,
        torch.nn.Linear: _linear,
    }
    if tower.config._attn_implementation == "sdpa":
        forwards |= {Qwen3VLVisionModel: _tower, Qwen3VLVisionAttention: _vision_attention}
    if tower.config.hidden_act == "gelu_pytorch_tanh":
        forwards[Qwen3VLVisionMLP] = _vision_mlp
    for module in model.modules():
        # Not of subclasses: a quantised layer, say, is more than a product.
        if forward := forwards.get(type(module)):
            module.forward = MethodType(forward, module)
    # What a picture adds to a layer's output is added everywhere.
    if len(tower.deepstack_visual_indexes) < len(text.layers):
        text.layers[-1].forward = MethodType(_last_layer, text.layers[-1])


def _linear(self: torch.nn.Linear, input: torch.Tensor) -> torch.Tensor:
    return linear(input, self.weight, self.bias)


# --- text ---------------------------------------------------------------------------------------


def _norm(self: Qwen3VLTextRMSNorm, hidden_states: torch.Tensor) -> torch.Tensor:
    if not hidden_states.dtype == self.weight.dtype == torch.float32:
        return Qwen3VLTextRMSNorm.forward(self, hidden_states)
    y: torch.Tensor = _Norm.apply(hidden_states, self.weight, self.variance_epsilon)
    return y


def _text_attention(
    self: Qwen3VLTextAttention,
    hidden_states: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    attention_mask: torch.Tensor | None,
    past_key_values: Any = None,
    places: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    shape = hidden_states.shape[:-1]
    heads = (*shape, -1, self.head_dim)
    query = _turned(self.q_norm, self.q_proj(hidden_states).view(heads), *position_embeddings)
    key = _turned(self.k_norm, self.k_proj(hidden_states).view(heads), *position_embeddings)
    value = self.v_proj(hidden_states).view(heads).transpose(1, 2)
    if past_key_values is not None:
        key, value = past_key_values.update(key, value, self.layer_idx)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(
        self.config._attn_implementation, eager_attention_forward
    )
    dropout = self.attention_dropout if self.training else 0.0
    y, weights = attend(
        self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
    )
    y = y.reshape(*shape, -1)
    if places is not None:
        y = y.flatten(0, 1).index_select(0, places)
    return self.o_proj(y), weights


def _last_layer(
    self: Qwen3VLTextDecoderLayer, hidden_states: torch.Tensor, **kwargs: Any
) -> torch.Tensor:
    """Return the layer's output [B, S, H], or of wanted places only, [N, H]."""
    places = kwargs.pop(WANTED, None)
    if places is None:
        return Qwen3VLTextDecoderLayer.forward(self, hidden_states, **kwargs)
    # Keys and values are needed of all places.
    y, _ = self.self_attn(self.input_layernorm(hidden_states), places=places, **kwargs)
    x = hidden_states.flatten(0, 1).index_select(0, places) + y
    return x + self.mlp(self.post_attention_layernorm(x))


def _turned(
    norm: Qwen3VLTextRMSNorm, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """Return heads [B, S, heads, D], normed and turned by angles [B, S, D], as [B, heads, S, D]."""
    weight, eps = norm.weight, norm.variance_epsilon
    if heads.dtype == weight.dtype == cos.dtype == torch.float32:
        turned = _NormTurn.apply(heads, weight, cos.unsqueeze(2), _signed(sin).unsqueeze(2), eps)
        return turned.transpose(1, 2)
    y = norm(heads).transpose(1, 2)
    return apply_rotary_pos_emb(y, y[:, :0], cos, sin)[0]


def _signed(sin: torch.Tensor) -> torch.Tensor:
    """Return sines [..., D], those of the first half negated.

    transformers negates half of what is turned instead, which is larger.
    """
    low, high = sin.chunk(2, -1)
    return torch.cat((-low, high), -1)


def _swapped(x: torch.Tensor) -> torch.Tensor:
    return x.roll(x.shape[-1] // 2, -1)


def _scale(x: torch.Tensor, eps: float) -> torch.Tensor:
    """Return what the root mean square norm multiplies x [..., D] by [..., 1]."""
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


class _Norm(torch.autograd.Function):
    """y = x · scale(x) · weight."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        scale = _scale(x, eps)
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        x_grad, weight_grad = _norm_grads(grads[0], x, weight, scale, ctx.needs_input_grad[1])
        return x_grad, weight_grad, None


class _NormTurn(torch.autograd.Function):
    """z = y · cos + swapped(y) · sin of y = x · scale(x) · weight, for x [B, S, heads, D]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        eps: float,
    ) -> torch.Tensor:
        scale = _scale(x, eps)
        ctx.save_for_backward(x, weight, scale, cos, sin)
        # The weights go into the angles, which all heads share.
        z = (x * (cos * weight)).addcmul_(_swapped(x), sin * _swapped(weight))
        return z.mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, scale, cos, sin = ctx.saved_tensors
        (g,) = grads
        y_grad = (g * cos).addcmul_(_swapped(g), _swapped(sin))
        x_grad, weight_grad = _norm_grads(y_grad, x, weight, scale, ctx.needs_input_grad[1])
        return x_grad, weight_grad, None, None, None


def _norm_grads(
    g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, weighted: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the gradients of x and, if it is `weighted`, the weight from that of the norm."""
    gx = g * x
    weight_grad = scale.flatten() @ gx.flatten(0, -2) if weighted else None
    # scale = (mean(x²) + eps)^-1/2, so d scale / dx = -scale³ · x / D.
    along = (gx @ weight).unsqueeze(-1).mul_(scale.pow(3)).div_(-x.shape[-1])
    return (g * weight).mul_(scale).addcmul_(x, along), weight_grad


# --- vision -------------------------------------------------------------------------------------


def _tower(
    self: Qwen3VLVisionModel, hidden_states: torch.Tensor, grid_thw: torch.Tensor, **kwargs: Any
) -> Any:
    """Return the features of patches [P, C]; `grid_thw` [pictures, 3] as for transformers."""
    if not bool((grid_thw == grid_thw[0]).all()):
        return Qwen3VLVisionModel.forward(self, hidden_states, grid_thw, **kwargs)
    x = self.patch_embed(hidden_states)
    frame = grid_thw[:1] * grid_thw.new_tensor([0, 1, 1]) + grid_thw.new_tensor([1, 0, 0])
    nearest, weights = get_vision_interpolation_indices_and_weights(
        frame,
        num_grid_per_side=self.num_grid_per_side,
        mode=self.interpolation_mode,
        align_corners=self.interpolation_align_corners,
        spatial_merge_size=self.spatial_merge_size,
    )
    places = (self.pos_embed(nearest) * weights[:, :, None]).sum(1).to(x.dtype)
    angles = self.rotary_pos_emb(x, get_vision_position_ids(frame, self.spatial_merge_size))
    x = (x.view(-1, *places.shape) + places).view_as(x)
    deepstack = []
    for i, block in enumerate(self.blocks):
        x = block(x, cu_seqlens=None, position_embeddings=angles)
        if i in self.deepstack_visual_indexes:
            merger = self.deepstack_merger_list[self.deepstack_visual_indexes.index(i)]
            deepstack.append(merger(x))
    return BaseModelOutputWithDeepstackFeatures(
        last_hidden_state=x, pooler_output=self.merger(x), deepstack_features=deepstack
    )


def _vision_attention(
    self: Qwen3VLVisionAttention,
    hidden_states: torch.Tensor,
    cu_seqlens: torch.Tensor | None,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    **kwargs: Any,
) -> torch.Tensor:
    """Without `cu_seqlens`, all pictures are as large as `position_embeddings` (from `_tower`)."""
    if cu_seqlens is not None:
        return Qwen3VLVisionAttention.forward(
            self, hidden_states, cu_seqlens, position_embeddings, **kwargs
        )
    cos, sin = position_embeddings
    # For queries and keys of all heads: with so few values a head, one row for many is faster.
    turn = [t[:, None, None].repeat(1, 2, self.num_heads, 1) for t in (cos, _signed(sin))]
    qkv = self.qkv(hidden_states).view(-1, len(cos), 3, self.num_heads, self.head_dim)
    turning, value = qkv.split((2, 1), 2)
    seen = turning.float()
    turned = torch.addcmul(seen * turn[0], _swapped(seen), turn[1]).to(qkv.dtype)
    query, key = turned.transpose(1, 3).unbind(2)
    y = scaled_dot_product_attention(query, key, value[:, :, 0].transpose(1, 2), scale=self.scaling)
    return self.proj(y.transpose(1, 2).reshape(hidden_states.shape))


def _vision_mlp(self: Qwen3VLVisionMLP, hidden_state: torch.Tensor) -> torch.Tensor:
    x = self.linear_fc1(hidden_state)
    if x.device.type == "cpu" and x.dtype == torch.float32:
        y = _Gelu.apply(x)
    else:
        y = gelu(x, approximate="tanh")
    return self.linear_fc2(y)


class _Gelu(torch.autograd.Function):
    """gelu(x) with the approximation by tanh: torch's own takes three times as long on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        # x / 2 · (1 + tanh(u)) = x · sigmoid(2u), u = √(2 / π) · (x + 0.044715 x³).
        factor = math.sqrt(8.0 / math.pi)
        y = (x * x).mul_(0.044715 * factor).add_(factor)
        return y.mul_(x).sigmoid_().mul_(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.gelu_backward(grads[0], x, approximate="tanh")
