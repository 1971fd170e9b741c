"""A Qwen3-VL as two ONNX graphs (opset 24) that ONNX Runtime and TensorRT both read.

The graphs are built node by node from the weights instead of being traced: they hold exactly the
operators named here, the same bytes come out every time, and no exporter's patterns are lost.

`vision`, one static picture size:
    pixel_values [P, 3 * temporal * patch * patch] -> image_embeds [P / merge², H],
    deepstack_embeds [L, P / merge², H]

`decoder`, prefill and decode in one (S tokens now, a cache of Smax tokens):
    input_ids i64 [1, S], visual_embeds [1, S, H], deepstack_embeds [1, L, S, H],
    position_ids i64 [3, 1, S], write_index i64 [1], attention_mask bool [1, 1, S, Smax],
    asked i64 [N], past_key_i and past_value_i [1, KV, Smax, D]
    -> tokens i64 [1, N], probabilities f32 [1, N], total f32 [1, N],
    logits f32 [1, N, V], present_key_i and present_value_i as the past

L is the number of deepstack layers, KV the number of key/value heads, D the size of a head.
Visual inputs count only where `input_ids` is the image token; deepstack must be 0 elsewhere.
Attention takes an explicit mask: runtimes disagree about how `is_causal` aligns with a cache.
`asked` are the places among the S tokens whose successors are wanted: `tokens` are the likeliest
that may be said and `probabilities` theirs among those, so that nothing else need leave a GPU, and
`total` is the sum of the logits, which is finite only if all of them are.

`portable` graphs hold operators of opset 20 only (21 with int4 weights): TensorRT 10.13, that of
JetPack 7.1, does not read Attention, nor TensorScatter, RotaryEmbedding and RMSNormalization, which
came with 10.15. Their decoder attends to the past and to the new tokens side by side: its mask is
[1, 1, S, Smax + S], it has no `write_index`, and present_key_i and present_value_i are
[1, KV, S, D], the new tokens' alone, which the caller writes into its cache.

Precisions: `fp32`; `fp16`, weights, activations and cache (norms and logits are computed in fp32;
in which precision Attention computes its softmax is not said: TensorRT refuses graphs that say so,
and ONNX Runtime takes fp32 either way); `int4`, the decoder's linear layers as signed 4-bit numbers
with a scale to every 128 of a column, all else as in `fp32`; `int4-fp16`, the same over `fp16`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from transformers import Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextDecoderLayer,
    Qwen3VLTextRMSNorm,
    Qwen3VLVisionBlock,
    Qwen3VLVisionPatchMerger,
)

from mgsd_core.runtime.bundle import PRECISIONS
from mgsd_core.runtime.preprocess import ImageSpec

OPSET = 24
# The oldest that may hold an opset: readers refuse versions they do not know.
_IR_VERSIONS = {20: 9, 21: 10, OPSET: 11}
# Smaller weights stay in the graph: shapes and axes must be known when it is read.
_EXTERNAL_BYTES = 1024
# Readers map external data page by page.
_PAGE = 4096
# What is never said gets this logit. Minus infinity would do, but not in every runtime.
_NEVER = -1e30
_INT4_BLOCK = 128


class ExportError(ValueError):
    """A backbone that cannot be exported, or an export that does not do what the model does."""


@dataclass
class _Graph:
    """Nodes and weights while a graph is built; `op` returns the name of its first output.

    Attributes:
        half: weights and activations are fp16.
        int4: weights of linear layers are 4-bit.
        portable: no operators that TensorRT 10.13 does not read.
        data: file for the weights, of this name in the bundle; without it they are in the graph.
    """

    half: bool = False
    int4: bool = False
    portable: bool = False
    data: BinaryIO | None = None
    data_name: str = ""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def op(self, kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        return self.ops(kind, *inputs, out=[out or f"{kind}_{len(self.nodes)}"], **attributes)[0]

    def ops(self, kind: str, *inputs: str, out: list[str], **attributes: Any) -> list[str]:
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, out, name=name, **attributes))
        return out

    @property
    def _opset(self) -> int:
        return (21 if self.int4 else 20) if self.portable else OPSET

    @property
    def number(self) -> int:
        """Type of activations."""
        return int(TensorProto.FLOAT16 if self.half else TensorProto.FLOAT)

    def weight(self, name: str, value: torch.Tensor | NDArray[Any], keep: bool = False) -> str:
        """Add a constant; numbers get the graph's type unless they are to keep theirs."""
        array = value.detach().cpu().float().numpy() if isinstance(value, torch.Tensor) else value
        if array.dtype == np.float32 and self.half and not keep:
            array = array.astype(np.float16)
        tensor = numpy_helper.from_array(np.asarray(array, order="C"), name)
        return self._add(tensor)

    def _add(self, tensor: onnx.TensorProto) -> str:
        if self.data is not None and len(tensor.raw_data) >= _EXTERNAL_BYTES:
            self.data.write(b"\0" * (-self.data.tell() % _PAGE))
            where = {"location": self.data_name, "offset": self.data.tell()}
            where["length"] = self.data.write(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in where.items():
                tensor.external_data.add(key=key, value=str(value))
        self.weights[tensor.name] = tensor
        return tensor.name

    def ints(self, *values: int) -> str:
        name = "ints_" + "_".join(map(str, values))
        if name not in self.weights:
            self.weight(name, np.array(values, dtype=np.int64))
        return name

    def linear(self, x: str, name: str, *layers: nn.Linear) -> str:
        """One product for several linear layers that read the same input."""
        matrix = torch.cat([layer.weight for layer in layers]).T
        if self.int4:
            weight = self._int4(f"{name}.weight", matrix)
        else:
            weight = self.weight(f"{name}.weight", matrix)
        y = self.op("MatMul", x, weight)
        if layers[0].bias is None:
            return y
        bias = torch.cat([layer.bias for layer in layers])
        return self.op("Add", y, self.weight(f"{name}.bias", bias))

    def _int4(self, name: str, matrix: torch.Tensor) -> str:
        """Add a matrix [K, N] as numbers -8 to 7 with a scale to every block of a column.

        Symmetric, because TensorRT reads nothing else. Of the scales from the one that reaches the
        largest value down to 0.7 of it, a block gets that with the least squared error.
        """
        values = matrix.detach().cpu().float()
        size = next((b for b in (_INT4_BLOCK, 64, 32, 16) if len(values) % b == 0), None)
        if size is None:
            raise ExportError(f"{name} has {len(values)} rows, which int4 cannot cut into blocks")
        blocks = values.reshape(-1, size, values.shape[1])
        # The largest value becomes -8 or 8 less a step, whichever sign it has.
        largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
        best = torch.full_like(largest, torch.inf)
        scale = torch.ones_like(largest)
        for share in np.linspace(0.7, 1.0, 16):
            tried = (largest * share / -8).where(largest != 0, torch.tensor(1.0))
            if self.half:
                tried = tried.half().float()
                tried = tried.where(tried != 0, torch.tensor(1.0))
            error = ((blocks / tried).round().clamp(-8, 7) * tried - blocks).square()
            error = error.sum(1, keepdim=True)
            scale, best = tried.where(error < best, scale), error.minimum(best)
        numbers = (blocks / scale).round().clamp(-8, 7).to(torch.int8).flatten().numpy()
        # Two to a byte, the first in the lower half.
        nibbles = (numbers & 0xF).astype(np.uint8)
        nibbles = np.append(nibbles, np.zeros(len(nibbles) % 2, np.uint8))
        packed = nibbles[0::2] | (nibbles[1::2] << 4)
        tensor = TensorProto(name=name, data_type=TensorProto.INT4, dims=list(values.shape))
        tensor.raw_data = packed.tobytes()
        scales = self.weight(f"{name}.scale", scale.squeeze(1))
        return self.op("DequantizeLinear", self._add(tensor), scales, axis=0, block_size=size)

    def model(
        self, name: str, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes, name, inputs, outputs, initializer=list(self.weights.values())
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", self._opset)],
            ir_version=_IR_VERSIONS[self._opset],
            producer_name="mgsd_ros",
        )
        if self.data is None:  # else it is checked where it is written, beside its data
            onnx.checker.check_model(model, full_check=True)
        return model


def vision_graph(
    model: Qwen3VLForConditionalGeneration,
    spec: ImageSpec,
    precision: str = "fp32",
    portable: bool = False,
    data: BinaryIO | None = None,
    data_name: str = "",
) -> onnx.ModelProto:
    """Build the graph from patches to visual tokens; positions are constants of `spec`'s grid.

    Args:
        model: the weights.
        spec: the pictures.
        precision: one of `PRECISIONS`; int4 is for the decoder only.
        portable: build the portable variant.
        data: file that the weights are written to; None keeps them in the graph.
        data_name: of that file, as the graph names it.
    """
    tower = model.model.visual
    config = tower.config
    _require("vision activation", config.hidden_act, "gelu_pytorch_tanh")
    g = _graph(precision.removeprefix("int4-"), portable, data, data_name)
    g.int4 = False
    kernel = tower.patch_embed.proj.weight.flatten(1)
    places, cos, sin = _vision_places(model, spec)
    pixels = g.op("Cast", "pixel_values", to=g.number) if g.half else "pixel_values"
    x = g.op("MatMul", pixels, g.weight("patch_embed.weight", kernel.T))
    x = g.op("Add", x, g.weight("patch_embed.places", places))
    x = g.op("Unsqueeze", x, g.ints(0))
    g.weight("rotary.cos", cos)
    g.weight("rotary.sin", sin)
    deepstack = []
    for i, block in enumerate(tower.blocks):
        x = _vision_block(g, x, f"blocks.{i}", block)
        if i in tower.deepstack_visual_indexes:
            k = tower.deepstack_visual_indexes.index(i)
            deepstack.append(_merger(g, x, f"deepstack.{k}", tower.deepstack_merger_list[k]))
    g.op("Squeeze", _merger(g, x, "merger", tower.merger), g.ints(0), out="image_embeds")
    # One [1, tokens, H] for each deepstack layer, in the order of the decoder's layers.
    g.op("Concat", *deepstack, axis=0, out="deepstack_embeds")
    hidden = model.config.text_config.hidden_size
    return g.model(
        "vision",
        [_value("pixel_values", TensorProto.FLOAT, spec.grid**2, kernel.shape[1])],
        [
            _value("image_embeds", g.number, spec.tokens, hidden),
            _value("deepstack_embeds", g.number, len(deepstack), spec.tokens, hidden),
        ],
    )


def decoder_graph(
    model: Qwen3VLForConditionalGeneration,
    cache_length: int,
    suppressed: Sequence[int] = (),
    precision: str = "fp32",
    portable: bool = False,
    data: BinaryIO | None = None,
    data_name: str = "",
) -> onnx.ModelProto:
    """Build the graph from tokens and visual tokens to the likeliest next tokens.

    Args:
        model: the weights.
        cache_length: Smax, most tokens of prompt and response together.
        suppressed: ids of tokens that are never said.
        precision: one of `PRECISIONS`.
        portable: build the portable variant.
        data: file that the weights are written to; None keeps them in the graph.
        data_name: of that file, as the graph names it.
    """
    text = model.model.language_model
    config = text.config
    _require("text activation", config.hidden_act, "silu")
    layers = len(model.model.visual.deepstack_visual_indexes)
    g = _graph(precision, portable, data, data_name)
    embedding = g.weight("embedding", text.embed_tokens.weight)
    image = g.weight("image_token", np.array(model.config.image_token_id, dtype=np.int64))
    is_image = g.op("Unsqueeze", g.op("Equal", "input_ids", image), g.ints(-1))
    x = g.op("Where", is_image, "visual_embeds", g.op("Gather", embedding, "input_ids"))
    cos, sin = _text_rotary(g, model)
    for i, layer in enumerate(text.layers):
        x = _text_layer(g, x, i, layer, cos, sin)
        if i < layers:
            k = g.weight(f"deepstack_{i}", np.array(i, dtype=np.int64))
            x = g.op("Add", x, g.op("Gather", "deepstack_embeds", k, axis=1))
    x = _rms_norm(g, g.op("Gather", x, "asked", axis=1), "norm", text.norm)
    # Gemm reads the head as [V, H], so weights that are tied to the embedding are stored once.
    tied = model.lm_head.weight.data_ptr() == text.embed_tokens.weight.data_ptr()
    head = embedding if tied else g.weight("head", model.lm_head.weight)
    flat = g.op("Reshape", x, g.ints(-1, config.hidden_size))
    y = g.op("Gemm", flat, head, transB=1)
    y = g.op("Cast", y, to=TensorProto.FLOAT) if g.half else y
    g.op("Unsqueeze", y, g.ints(0), out="logits")
    _sum(g, "logits", out="total")
    never = np.zeros(config.vocab_size, np.float32)
    never[list(suppressed)] = _NEVER
    spoken = g.op("Add", "logits", g.weight("never", never, keep=True))
    g.op("ArgMax", spoken, axis=-1, keepdims=0, out="tokens")
    # Spelled out: a runtime's own ReduceLogSumExp may overflow where logits are large.
    below = g.op("Sub", spoken, g.op("ReduceMax", spoken, g.ints(-1), keepdims=1))
    g.op("Reciprocal", _sum(g, g.op("Exp", below)), out="probabilities")

    hidden, kv_heads, size = config.hidden_size, config.num_key_value_heads, config.head_dim
    past = (1, kv_heads, cache_length, size)
    present = (1, kv_heads, "S", size) if portable else past
    names = [f"{kind}_{i}" for i in range(len(text.layers)) for kind in ("key", "value")]
    index = [] if portable else [_value("write_index", TensorProto.INT64, 1)]
    seen = "Smax + S" if portable else cache_length
    return g.model(
        "decoder",
        [
            _value("input_ids", TensorProto.INT64, 1, "S"),
            _value("visual_embeds", g.number, 1, "S", hidden),
            _value("deepstack_embeds", g.number, 1, layers, "S", hidden),
            _value("position_ids", TensorProto.INT64, 3, 1, "S"),
            *index,
            _value("attention_mask", TensorProto.BOOL, 1, 1, "S", seen),
            _value("asked", TensorProto.INT64, "N"),
            *(_value(f"past_{name}", g.number, *past) for name in names),
        ],
        [
            _value("tokens", TensorProto.INT64, 1, "N"),
            _value("probabilities", TensorProto.FLOAT, 1, "N"),
            _value("total", TensorProto.FLOAT, 1, "N"),
            _value("logits", TensorProto.FLOAT, 1, "N", config.vocab_size),
            *(_value(f"present_{name}", g.number, *present) for name in names),
        ],
    )


def _sum(g: _Graph, x: str, out: str | None = None) -> str:
    return g.op("ReduceSum", x, g.ints(-1), keepdims=0, out=out)


def _graph(precision: str, portable: bool, data: BinaryIO | None, data_name: str) -> _Graph:
    if precision not in PRECISIONS:
        raise ExportError(f"unknown precision {precision!r}; there are: {', '.join(PRECISIONS)}")
    return _Graph("fp16" in precision, "int4" in precision, portable, data, data_name)


# --- vision tower -------------------------------------------------------------------------------


def _vision_places(
    model: Qwen3VLForConditionalGeneration, spec: ImageSpec
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what the tower adds to every patch [P, C], and its rotary tables cos, sin [1, P, D/2].

    It is what enters the first block when all pixel values are 0: the patches' bias and the
    embeddings of their places, however this version of transformers computes those.
    """
    tower = model.model.visual
    entering: dict[str, Any] = {}

    def record(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        entering.update(named, hidden_states=arguments[0])

    pixels = torch.zeros(spec.grid**2, tower.patch_embed.proj.weight[0].numel())
    handle = tower.blocks[0].register_forward_pre_hook(record, with_kwargs=True)
    try:
        with torch.no_grad():
            grid = torch.tensor([[1, spec.grid, spec.grid]], device=tower.device)
            tower(pixels.to(tower.device), grid_thw=grid)
    finally:
        handle.remove()
    cos, sin = entering["position_embeddings"]
    # transformers repeats the angles for both halves of a head; ONNX wants them once.
    half = cos.shape[-1] // 2
    return entering["hidden_states"], cos[None, :, :half], sin[None, :, :half]


def _vision_block(g: _Graph, x: str, name: str, block: Qwen3VLVisionBlock) -> str:
    heads = block.attn.num_heads
    y = _layer_norm(g, x, f"{name}.norm1", block.norm1)
    y = g.linear(y, f"{name}.qkv", block.attn.qkv)
    parts = [f"{name}.{part}" for part in "qkv"]
    q, k, v = g.ops("Split", y, out=parts, axis=-1, num_outputs=3)
    if g.portable:
        q, k, v = (_to_heads(g, part, heads) for part in (q, k, v))
        q, k = (_portable_rotary(g, part, "rotary.cos", "rotary.sin") for part in (q, k))
        y = _from_heads(g, _softmax_attention(g, q, k, v, block.attn.scaling), block.attn.dim)
    else:
        q, k = (
            g.op("RotaryEmbedding", part, "rotary.cos", "rotary.sin", num_heads=heads)
            for part in (q, k)
        )
        counts = {"q_num_heads": heads, "kv_num_heads": heads}
        y = g.op("Attention", q, k, v, scale=block.attn.scaling, **counts)
    x = g.op("Add", x, g.linear(y, f"{name}.proj", block.attn.proj))
    y = _layer_norm(g, x, f"{name}.norm2", block.norm2)
    y = g.linear(y, f"{name}.fc1", block.mlp.linear_fc1)
    y = g.op("Gelu", y, approximate="tanh")
    return g.op("Add", x, g.linear(y, f"{name}.fc2", block.mlp.linear_fc2))


def _merger(g: _Graph, x: str, name: str, merger: Qwen3VLVisionPatchMerger) -> str:
    """Neighbouring patches become one token; they stand together, so a reshape joins them."""
    joined = g.ints(1, -1, merger.hidden_size)
    if merger.use_postshuffle_norm:
        x = _layer_norm(g, g.op("Reshape", x, joined), f"{name}.norm", merger.norm)
    else:
        x = g.op("Reshape", _layer_norm(g, x, f"{name}.norm", merger.norm), joined)
    x = g.op("Gelu", g.linear(x, f"{name}.fc1", merger.linear_fc1))
    return g.linear(x, f"{name}.fc2", merger.linear_fc2)


# --- decoder ------------------------------------------------------------------------------------


def _text_rotary(g: _Graph, model: Qwen3VLForConditionalGeneration) -> tuple[str, str]:
    """Return cos and sin [1, S, D / 2] of interleaved M-RoPE.

    Every frequency turns with one of time, height and width. The frequencies stand in a table
    [3, 1, 1, D / 2] that is 0 for the other two, so multiplying and adding up over the three picks
    the right one, exactly. A matrix product would do the same, but a GPU may round its inputs.
    """
    rotary = model.model.language_model.rotary_emb
    _require("rotary embedding", rotary.rope_type, "default")
    half = len(rotary.inv_freq)
    axis = np.zeros(half, dtype=np.int64)
    for dimension, offset in ((1, 1), (2, 2)):
        axis[offset : rotary.mrope_section[dimension] * 3 : 3] = dimension
    table = np.zeros((3, 1, 1, half), dtype=np.float32)
    table[axis, 0, 0, np.arange(half)] = rotary.inv_freq.float().cpu().numpy()
    # Angles are fp32 always: fp16 has no room for a position of some hundreds and its fractions.
    positions = g.op("Cast", "position_ids", to=TensorProto.FLOAT)
    frequencies = g.weight("rotary.frequencies", table, keep=True)
    turned = g.op("Mul", g.op("Unsqueeze", positions, g.ints(-1)), frequencies)
    angles = g.op("ReduceSum", turned, g.ints(0), keepdims=0)
    cos, sin = g.op("Cos", angles), g.op("Sin", angles)
    return (
        (g.op("Cast", cos, to=g.number), g.op("Cast", sin, to=g.number)) if g.half else (cos, sin)
    )


def _text_layer(
    g: _Graph,
    x: str,
    i: int,
    layer: Qwen3VLTextDecoderLayer,
    cos: str,
    sin: str,
) -> str:
    attention, name = layer.self_attn, f"layers.{i}"
    config, size = attention.config, attention.head_dim
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    y = _rms_norm(g, x, f"{name}.norm1", layer.input_layernorm)
    y = g.linear(y, f"{name}.qkv", attention.q_proj, attention.k_proj, attention.v_proj)
    # All heads in one step; then queries, keys and values part.
    y = _to_heads(g, y, heads + 2 * kv_heads)
    parts = [f"{name}.{part}" for part in "qkv"]
    q, k, v = g.ops("Split", y, g.ints(heads, kv_heads, kv_heads), out=parts, axis=1)
    q = _rms_norm(g, q, f"{name}.q_norm", attention.q_norm)
    k = _rms_norm(g, k, f"{name}.k_norm", attention.k_norm)
    rotary = _portable_rotary if g.portable else _rotary
    q, k = (rotary(g, part, cos, sin) for part in (q, k))
    if g.portable:
        y = _portable_attention(g, q, k, v, i, heads // kv_heads, attention.scaling)
    else:
        past_k, past_v = f"past_key_{i}", f"past_value_{i}"
        k = g.op("TensorScatter", past_k, k, "write_index", axis=2, out=f"present_key_{i}")
        v = g.op("TensorScatter", past_v, v, "write_index", axis=2, out=f"present_value_{i}")
        y = g.op("Attention", q, k, v, "attention_mask", scale=attention.scaling)
    y = _from_heads(g, y, heads * size)
    x = g.op("Add", x, g.linear(y, f"{name}.o", attention.o_proj))
    y = _rms_norm(g, x, f"{name}.norm2", layer.post_attention_layernorm)
    y = g.linear(y, f"{name}.gate_up", layer.mlp.gate_proj, layer.mlp.up_proj)
    gate, up = g.ops("Split", y, out=[f"{name}.gate", f"{name}.up"], axis=-1, num_outputs=2)
    y = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)
    return g.op("Add", x, g.linear(y, f"{name}.down", layer.mlp.down_proj))


def _portable_attention(g: _Graph, q: str, k: str, v: str, i: int, group: int, scale: float) -> str:
    """Attend to past and new tokens, [1, heads, S, D], with matrix products and a softmax.

    Queries that share a key are a dimension of their own, so that keys and values stay as they are.
    """
    g.op("Identity", k, out=f"present_key_{i}")
    g.op("Identity", v, out=f"present_value_{i}")
    k = g.op("Unsqueeze", g.op("Concat", f"past_key_{i}", k, axis=2), g.ints(2))
    v = g.op("Unsqueeze", g.op("Concat", f"past_value_{i}", v, axis=2), g.ints(2))
    # [1, heads, S, D] -> [1, KV, group, S, D] and back.
    size = g.op("Shape", q, start=2, end=4)
    q = g.op("Reshape", q, g.op("Concat", g.ints(1, -1, group), size, axis=0))
    mask = g.op("Unsqueeze", "attention_mask", g.ints(2))
    y = _softmax_attention(g, q, k, v, scale, mask)
    return g.op("Reshape", y, g.op("Concat", g.ints(1, -1), size, axis=0))


# --- pieces -------------------------------------------------------------------------------------


def _layer_norm(g: _Graph, x: str, name: str, norm: nn.LayerNorm) -> str:
    weight, bias = g.weight(f"{name}.weight", norm.weight), g.weight(f"{name}.bias", norm.bias)
    return g.op("LayerNormalization", x, weight, bias, epsilon=norm.eps)


def _rms_norm(g: _Graph, x: str, name: str, norm: Qwen3VLTextRMSNorm) -> str:
    weight = g.weight(f"{name}.weight", norm.weight)
    if not g.portable:
        return g.op("RMSNormalization", x, weight, epsilon=norm.variance_epsilon)
    x = g.op("Cast", x, to=TensorProto.FLOAT) if g.half else x
    epsilon = np.array(norm.variance_epsilon, np.float32)
    square = g.op("ReduceMean", g.op("Mul", x, x), g.ints(-1), keepdims=1)
    size = g.op("Sqrt", g.op("Add", square, g.weight(f"{name}.epsilon", epsilon, keep=True)))
    x = g.op("Div", x, size)
    return g.op("Mul", g.op("Cast", x, to=g.number) if g.half else x, weight)


def _rotary(g: _Graph, x: str, cos: str, sin: str) -> str:
    return g.op("RotaryEmbedding", x, cos, sin)


def _portable_rotary(g: _Graph, x: str, cos: str, sin: str) -> str:
    """Turn the halves of every head, x [1, heads, S, D] by angles [1, S, D / 2]."""
    first, second = g.ops("Split", x, out=[f"{x}.0", f"{x}.1"], axis=-1, num_outputs=2)
    cos, sin = (g.op("Unsqueeze", part, g.ints(1)) for part in (cos, sin))
    turned = (
        g.op("Sub", g.op("Mul", first, cos), g.op("Mul", second, sin)),
        g.op("Add", g.op("Mul", second, cos), g.op("Mul", first, sin)),
    )
    return g.op("Concat", *turned, axis=-1)


def _softmax_attention(
    g: _Graph, q: str, k: str, v: str, scale: float, mask: str | None = None
) -> str:
    """Attend with matrix products over the last two dimensions, [..., S, D]."""
    axes = [0, 1, 3, 2] if mask is None else [0, 1, 2, 4, 3]
    scores = g.op("MatMul", q, g.op("Transpose", k, perm=axes))
    scores = g.op("Cast", scores, to=TensorProto.FLOAT) if g.half else scores
    scores = g.op("Mul", scores, g.weight("scale", np.array(scale, np.float32), keep=True))
    if mask is not None:
        unseen = g.weight("unseen", np.array(_NEVER, np.float32), keep=True)
        scores = g.op("Where", mask, scores, unseen)
    shares = g.op("Softmax", scores, axis=-1)
    return g.op("MatMul", g.op("Cast", shares, to=g.number) if g.half else shares, v)


def _to_heads(g: _Graph, x: str, heads: int) -> str:
    """[1, S, heads * D] -> [1, heads, S, D]."""
    return g.op("Transpose", g.op("Reshape", x, g.ints(1, 0, heads, -1)), perm=[0, 2, 1, 3])


def _from_heads(g: _Graph, x: str, width: int) -> str:
    """[1, heads, S, D] -> [1, S, heads * D]."""
    return g.op("Reshape", g.op("Transpose", x, perm=[0, 2, 1, 3]), g.ints(1, -1, width))


def _require(what: str, found: str, known: str) -> None:
    if found != known:
        raise ExportError(f"the model's {what} is {found!r}; only {known!r} can be exported")


def _value(name: str, kind: int, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)
