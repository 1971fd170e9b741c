"""A Qwen3-VL as two ONNX graphs (opset 24) that ONNX Runtime and TensorRT both read.

The graphs are built node by node from the weights instead of being traced: they hold exactly the
operators named here, the same bytes come out every time, and no exporter's patterns are lost.

`vision`, one static picture size:
    pixel_values [P, 3 * temporal * patch * patch] -> image_embeds [P / merge², H],
    deepstack_embeds [L, P / merge², H]

`decoder`, prefill and decode in one (S tokens now, a cache of Smax tokens):
    input_ids i64 [1, S], visual_embeds [1, S, H], deepstack_embeds [1, L, S, H],
    position_ids i64 [3, 1, S], write_index i64 [1], attention_mask bool [1, 1, S, Smax],
    past_key_i and past_value_i [1, KV, Smax, D]
    -> logits f32 [1, 1, V] of the last token, present_key_i and present_value_i as the past

L is the number of deepstack layers, KV the number of key/value heads, D the size of a head.
Visual inputs count only where `input_ids` is the image token; deepstack must be 0 elsewhere.
Attention takes an explicit mask: runtimes disagree about how `is_causal` aligns with a cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

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

from mgsd_core.runtime.preprocess import ImageSpec

OPSET = 24
# Older than opset 24 asks for nothing newer: readers refuse versions they do not know.
_IR_VERSION = 11


class ExportError(ValueError):
    """A backbone that cannot be exported, or an export that does not do what the model does."""


@dataclass
class _Graph:
    """Nodes and weights while a graph is built; `op` returns the name of its first output."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def op(self, kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        return self.ops(kind, *inputs, out=[out or f"{kind}_{len(self.nodes)}"], **attributes)[0]

    def ops(self, kind: str, *inputs: str, out: list[str], **attributes: Any) -> list[str]:
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, out, name=name, **attributes))
        return out

    def weight(self, name: str, value: torch.Tensor | NDArray[Any]) -> str:
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
        self.weights[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def ints(self, *values: int) -> str:
        name = "ints_" + "_".join(map(str, values))
        if name not in self.weights:
            self.weight(name, np.array(values, dtype=np.int64))
        return name

    def linear(self, x: str, name: str, *layers: nn.Linear) -> str:
        """One product for several linear layers that read the same input."""
        matrix = torch.cat([layer.weight for layer in layers]).T
        y = self.op("MatMul", x, self.weight(f"{name}.weight", matrix))
        if layers[0].bias is None:
            return y
        bias = torch.cat([layer.bias for layer in layers])
        return self.op("Add", y, self.weight(f"{name}.bias", bias))

    def model(
        self, name: str, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes, name, inputs, outputs, initializer=list(self.weights.values())
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=_IR_VERSION,
            producer_name="mgsd_ros",
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def vision_graph(model: Qwen3VLForConditionalGeneration, spec: ImageSpec) -> onnx.ModelProto:
    """Build the graph from patches to visual tokens; positions are constants of `spec`'s grid."""
    tower = model.model.visual
    config = tower.config
    _require("vision activation", config.hidden_act, "gelu_pytorch_tanh")
    g = _Graph()
    kernel = tower.patch_embed.proj.weight.flatten(1)
    places, cos, sin = _vision_places(model, spec)
    x = g.op("MatMul", "pixel_values", g.weight("patch_embed.weight", kernel.T))
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
            _value("image_embeds", TensorProto.FLOAT, spec.tokens, hidden),
            _value("deepstack_embeds", TensorProto.FLOAT, len(deepstack), spec.tokens, hidden),
        ],
    )


def decoder_graph(model: Qwen3VLForConditionalGeneration, cache_length: int) -> onnx.ModelProto:
    """Build the graph from tokens and visual tokens to the next token's logits.

    Args:
        model: the weights.
        cache_length: Smax, most tokens of prompt and response together.
    """
    text = model.model.language_model
    config = text.config
    _require("text activation", config.hidden_act, "silu")
    layers = len(model.model.visual.deepstack_visual_indexes)
    g = _Graph()
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
    last = g.weight("last", np.array(-1, dtype=np.int64))
    x = _rms_norm(g, g.op("Gather", x, last, axis=1), "norm", text.norm)
    # Gemm reads the head as [V, H], so weights that are tied to the embedding are stored once.
    tied = model.lm_head.weight.data_ptr() == text.embed_tokens.weight.data_ptr()
    head = embedding if tied else g.weight("head", model.lm_head.weight)
    g.op("Unsqueeze", g.op("Gemm", x, head, transB=1), g.ints(0), out="logits")

    number, hidden = TensorProto.FLOAT, config.hidden_size
    cache = (1, config.num_key_value_heads, cache_length, config.head_dim)
    names = [f"{kind}_{i}" for i in range(len(text.layers)) for kind in ("key", "value")]
    return g.model(
        "decoder",
        [
            _value("input_ids", TensorProto.INT64, 1, "S"),
            _value("visual_embeds", number, 1, "S", hidden),
            _value("deepstack_embeds", number, 1, layers, "S", hidden),
            _value("position_ids", TensorProto.INT64, 3, 1, "S"),
            _value("write_index", TensorProto.INT64, 1),
            _value("attention_mask", TensorProto.BOOL, 1, 1, "S", cache_length),
            *(_value(f"past_{name}", number, *cache) for name in names),
        ],
        [
            _value("logits", TensorProto.FLOAT, 1, 1, config.vocab_size),
            *(_value(f"present_{name}", number, *cache) for name in names),
        ],
    )


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
    q, k = (
        g.op("RotaryEmbedding", part, "rotary.cos", "rotary.sin", num_heads=heads)
        for part in (q, k)
    )
    y = g.op("Attention", q, k, v, q_num_heads=heads, kv_num_heads=heads, scale=block.attn.scaling)
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
    positions = g.op("Cast", "position_ids", to=TensorProto.FLOAT)
    turned = g.op(
        "Mul", g.op("Unsqueeze", positions, g.ints(-1)), g.weight("rotary.frequencies", table)
    )
    angles = g.op("ReduceSum", turned, g.ints(0), keepdims=0)
    return g.op("Cos", angles), g.op("Sin", angles)


def _text_layer(
    g: _Graph, x: str, i: int, layer: Qwen3VLTextDecoderLayer, cos: str, sin: str
) -> str:
    attention, name = layer.self_attn, f"layers.{i}"
    config, size = attention.config, attention.head_dim
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    y = _rms_norm(g, x, f"{name}.norm1", layer.input_layernorm)
    y = g.linear(y, f"{name}.qkv", attention.q_proj, attention.k_proj, attention.v_proj)
    # All heads as [1, heads, S, D] in one step; then queries, keys and values part.
    y = g.op("Reshape", y, g.ints(1, -1, heads + 2 * kv_heads, size))
    y = g.op("Transpose", y, perm=[0, 2, 1, 3])
    parts = [f"{name}.{part}" for part in "qkv"]
    q, k, v = g.ops("Split", y, g.ints(heads, kv_heads, kv_heads), out=parts, axis=1)
    q = _rms_norm(g, q, f"{name}.q_norm", attention.q_norm)
    k = _rms_norm(g, k, f"{name}.k_norm", attention.k_norm)
    q, k = (g.op("RotaryEmbedding", part, cos, sin) for part in (q, k))
    k = g.op("TensorScatter", f"past_key_{i}", k, "write_index", axis=2, out=f"present_key_{i}")
    v = g.op("TensorScatter", f"past_value_{i}", v, "write_index", axis=2, out=f"present_value_{i}")
    y = g.op("Attention", q, k, v, "attention_mask", scale=attention.scaling)
    y = g.op("Transpose", y, perm=[0, 2, 1, 3])
    y = g.op("Reshape", y, g.ints(1, -1, heads * size))
    x = g.op("Add", x, g.linear(y, f"{name}.o", attention.o_proj))
    y = _rms_norm(g, x, f"{name}.norm2", layer.post_attention_layernorm)
    y = g.linear(y, f"{name}.gate_up", layer.mlp.gate_proj, layer.mlp.up_proj)
    gate, up = g.ops("Split", y, out=[f"{name}.gate", f"{name}.up"], axis=-1, num_outputs=2)
    y = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)
    return g.op("Add", x, g.linear(y, f"{name}.down", layer.mlp.down_proj))


# --- pieces -------------------------------------------------------------------------------------


def _layer_norm(g: _Graph, x: str, name: str, norm: nn.LayerNorm) -> str:
    weight, bias = g.weight(f"{name}.weight", norm.weight), g.weight(f"{name}.bias", norm.bias)
    return g.op("LayerNormalization", x, weight, bias, epsilon=norm.eps)


def _rms_norm(g: _Graph, x: str, name: str, norm: Qwen3VLTextRMSNorm) -> str:
    weight = g.weight(f"{name}.weight", norm.weight)
    return g.op("RMSNormalization", x, weight, epsilon=norm.variance_epsilon)


def _require(what: str, found: str, known: str) -> None:
    if found != known:
        raise ExportError(f"the model's {what} is {found!r}; only {known!r} can be exported")


def _value(name: str, kind: int, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)
