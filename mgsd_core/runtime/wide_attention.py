"""Rewrites an fp16 graph so that attention is computed in fp32, from the scores to the sums.

For runtimes whose own attention is too coarse for a model. What enters and leaves stays fp16, the
cache too. Needs `onnx`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_UNSEEN = -1e30


def attend_in_fp32(model: onnx.ModelProto) -> None:
    """Rewrite all Attention of one of our graphs, see `mgsd_core.export.graphs`, in place.

    The vision tower's gets casts around it. The decoder's becomes matrix products and a softmax:
    TensorRT does not build fp32 attention over an fp16 cache.
    """
    graph = _Rewriter(model)
    cache = next((i for i in model.graph.input if i.name == "past_key_0"), None)
    for node in model.graph.node:
        if node.op_type != "Attention":
            graph.nodes.append(_copy(node))
        elif cache is None:
            _cast_around(graph, node)
        else:
            _, heads, length, size = (d.dim_value for d in cache.type.tensor_type.shape.dim)
            _spell_out(graph, node, heads, length, size)
    del model.graph.node[:]
    model.graph.node.extend(graph.nodes)


class _Rewriter:
    """The new nodes; constants go into the model at once."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._constants = model.graph.initializer
        self.nodes: list[onnx.NodeProto] = []

    def op(self, kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        name = f"wide.{kind}_{len(self.nodes)}"
        out = out or name
        self.nodes.append(helper.make_node(kind, inputs, [out], name=name, **attributes))
        return out

    def constant(self, value: Any) -> str:
        name = f"wide.constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def widen(self, names: Any) -> list[str]:
        return [self.op("Cast", name, to=TensorProto.FLOAT) for name in names]


def _cast_around(graph: _Rewriter, node: onnx.NodeProto) -> None:
    wide = _copy(node)
    wide.input[:] = graph.widen(node.input)
    wide.output[0] = f"{node.output[0]}.wide"
    graph.nodes.append(wide)
    graph.op("Cast", wide.output[0], out=node.output[0], to=TensorProto.FLOAT16)


def _spell_out(graph: _Rewriter, node: onnx.NodeProto, heads: int, length: int, size: int) -> None:
    """Attend with matrix products over keys and values [1, KV, Smax, D].

    Heads that share a key stand one after the other, so their queries [1, H, S, D] are as well
    [1, KV, H / KV * S, D].
    """
    q, k, v, mask = node.input
    scale = next(a.f for a in node.attribute if a.name == "scale")
    by_query = graph.op("Shape", q)
    by_head = graph.op("Shape", q, end=3)
    q, k, v = graph.widen((q, k, v))
    q = graph.op("Reshape", q, graph.constant(np.array([1, heads, -1, size])))
    scores = graph.op("MatMul", q, graph.op("Transpose", k, perm=[0, 1, 3, 2]))
    apart = graph.op("Concat", by_head, graph.constant(np.array([length])), axis=0)
    scores = graph.op("Mul", graph.op("Reshape", scores, apart), graph.constant(np.float32(scale)))
    scores = graph.op("Where", mask, scores, graph.constant(np.float32(_UNSEEN)))
    shares = graph.op("Softmax", scores, axis=-1)
    together = graph.constant(np.array([1, heads, -1, length]))
    y = graph.op("MatMul", graph.op("Reshape", shares, together), v)
    y = graph.op("Reshape", y, by_query)
    graph.op("Cast", y, out=node.output[0], to=TensorProto.FLOAT16)


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy
