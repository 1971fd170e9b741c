"""Batched generation with a KV cache: sampled rollouts for training, greedy answers for evaluation.

Knows nothing of tasks: it takes token ids and pictures and returns token ids.

transformers reads the prompts. The tokens after them are computed here, over the modules of the
decoder's layers: a step of a small model costs what is called, not what is computed, so it makes as
few calls as it can. A response that is complete leaves the batch at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import Linear
from torch.nn.functional import rms_norm, scaled_dot_product_attention
from transformers import DynamicCache
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextDecoderLayer,
    Qwen3VLTextMLP,
    Qwen3VLTextModel,
    Qwen3VLTextRMSNorm,
)

from mgsd_core.encoding import Seen, last_hidden, length_buckets, make_batch
from mgsd_core.model import Backbone
from mgsd_core.prompts import STOP_TEXT

# STOP_TEXT may be spelled by several tokens, none of which is empty.
_STOP_WINDOW = len(STOP_TEXT)

# Most prompt tokens, padding included, that are read in one pass.
READ_TOKENS = 16_384

# Most bytes of weights that are copied for the sake of fewer calls.
_JOINED_BYTES = 64 * 2**20

# Tokens of a response that the cache has room for at first; most responses end early.
_FIRST_ROOM = 64

# The cache's length is a multiple of it, so that attention on a GPU takes the mask as it lies.
_ALIGNMENT = 16


class RolloutError(ValueError):
    """A model that cannot go on writing; the message says why."""


@torch.no_grad()  # and no inference mode: there autocast would convert all weights at every step
def generate(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    images: NDArray[np.uint8] | Seen | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    uniforms: torch.Tensor | None = None,
) -> list[list[int]]:
    """Return a response for every prompt.

    Neither the order of the prompts nor what else is in the batch changes a response, beyond what
    rounding does to its probabilities.

    Args:
        backbone: the model, in evaluation mode.
        prompts: token ids of each prompt (see `encoding.prompt_ids`).
        images: fitted pictures uint8 [N, size, size, 3], one for each prompt with placeholders, in
            their order; or what was seen of them.
        max_new_tokens: a response is cut there.
        temperature: 0 is greedy; else tokens are sampled from the whole distribution.
        uniforms: float32 [prompts, max_new_tokens] in [0, 1) on the CPU, needed when
            temperature > 0: token t of response i is drawn with number [i, t], so the same numbers
            give the same responses on any device and in any batch.

    Returns:
        Token ids of each response, ending with the token that completes `</answer>` or with the
        end-of-turn token. Special tokens other than end-of-turn are never generated.

    Raises:
        ValueError: an argument is out of range, or pictures or uniforms do not fit the prompts.
        RolloutError: the model's logits are not finite numbers.
    """
    _check(backbone, prompts, images, max_new_tokens, temperature, uniforms)
    responses: list[list[int]] = [[] for _ in prompts]
    if not responses:
        return responses
    hidden, rows = _read(backbone, prompts, images, max_new_tokens)
    _write(backbone, hidden, rows, responses, max_new_tokens, temperature, uniforms)
    return responses


def _check(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    images: NDArray[np.uint8] | Seen | None,
    max_new_tokens: int,
    temperature: float,
    uniforms: torch.Tensor | None,
) -> None:
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    if not 0.0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be 0 (greedy) or more, not {temperature}")
    if not all(map(len, prompts)):
        raise ValueError("a prompt is empty; it needs at least one token to go on from")
    pictured = sum(backbone.image_token in p for p in prompts)
    given = 0 if images is None else len(images)
    if given != pictured:
        raise ValueError(f"{pictured} prompts show a picture, but {given} pictures were given")
    if temperature == 0.0:
        return
    wanted = [len(prompts), max_new_tokens]
    if uniforms is None:
        raise ValueError(f"sampling needs uniforms, float32 {wanted}")
    if list(uniforms.shape) != wanted or uniforms.dtype != torch.float32:
        raise ValueError(
            f"uniforms must be float32 {wanted}, not "
            f"{str(uniforms.dtype).removeprefix('torch.')} {list(uniforms.shape)}"
        )
    if not bool(((uniforms >= 0.0) & (uniforms < 1.0)).all()):
        raise ValueError("uniforms must be in [0, 1)")


@dataclass
class _Rows:
    """The responses that are being written, one a row, with their keys and values.

    All prompts end in the same column of the cache; the next token of every row goes into column
    `length`.

    Attributes:
        prompts: int64 [R] on the CPU, the prompt of each row.
        positions: int64 [R], of the next token.
        keys, values: of each layer [R, KV, capacity, D].
        mask: [R, 1, 1, capacity], -inf on the padding before shorter prompts; None without any.
        length: columns that are filled.
        limit: columns that are filled at most.
    """

    prompts: torch.Tensor
    positions: torch.Tensor
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    mask: torch.Tensor | None
    length: int
    limit: int

    def keep(self, kept: list[int], tokens: torch.Tensor) -> torch.Tensor:
        """Go on with the rows in `kept` (ascending) alone; return their `tokens`.

        The last rows move into the places that become free, nothing else is copied.
        """
        count = len(kept)
        free = sorted(set(range(count)).difference(kept))
        into = torch.tensor(free, dtype=torch.long)
        out_of = torch.tensor(kept[count - len(free) :], dtype=torch.long)
        self.prompts = _close_up(self.prompts, into, out_of, count)
        into, out_of = into.to(tokens.device), out_of.to(tokens.device)
        self.positions = _close_up(self.positions, into, out_of, count)
        self.keys = [_close_up(k, into, out_of, count) for k in self.keys]
        self.values = [_close_up(v, into, out_of, count) for v in self.values]
        if self.mask is not None:
            self.mask = _close_up(self.mask, into, out_of, count)
        return _close_up(tokens, into, out_of, count)

    def make_room(self) -> None:
        """Have room for one more column; layer by layer, the cache grows by half."""
        capacity = self.keys[0].shape[2]
        if self.length < capacity:
            return
        capacity = _aligned(min(capacity + capacity // 2, self.limit))
        for cache in (self.keys, self.values):
            for i, old in enumerate(cache):
                cache[i] = old.new_empty(*old.shape[:2], capacity, old.shape[3])
                cache[i][:, :, : self.length] = old
        if self.mask is not None:
            mask = self.mask.new_zeros(len(self.mask), 1, 1, capacity)
            mask[..., : self.length] = self.mask
            self.mask = mask


def _close_up(
    rows: torch.Tensor, into: torch.Tensor, out_of: torch.Tensor, count: int
) -> torch.Tensor:
    if len(into):
        rows[into] = rows[out_of]
    return rows[:count]


def _aligned(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT


def _read(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    images: NDArray[np.uint8] | Seen | None,
    max_new_tokens: int,
) -> tuple[torch.Tensor, _Rows]:
    """Read the prompts; return the hidden state of each row's last token [R, H], and the rows.

    Prompts of similar length are read together, but their keys and values all go into one cache:
    padding costs little there, and a second batch would cost every step a second time.
    """
    model = backbone.model
    lengths = [len(p) for p in prompts]
    width = max(lengths)
    capacity = _aligned(width + min(max_new_tokens, _FIRST_ROOM))
    shows = np.array([backbone.image_token in p for p in prompts])
    picture = shows.cumsum() - 1
    groups = length_buckets(lengths, READ_TOKENS)
    order = [i for group in groups for i in group]
    hidden, positions = [], []
    keys: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    begin = 0
    for group in groups:
        shown = [picture[i] for i in group if shows[i]]
        batch = make_batch(
            backbone,
            [prompts[i] for i in group],
            images=images[shown] if images is not None and shown else None,
            left=True,
        )
        batch = batch.to(model.device)
        past = DynamicCache(config=model.config.text_config)
        ends = torch.arange(1, len(group) + 1, device=model.device) * batch.ids.shape[1] - 1
        hidden.append(last_hidden(model, batch, ends, past))
        positions.append(batch.positions.amax(dim=(0, 2)) + 1)
        end, first = begin + len(group), width - batch.ids.shape[1]
        for i in range(len(past.layers)):
            layer = past.layers.pop(0)  # and is let go
            for cache, new in ((keys, layer.keys), (values, layer.values)):
                if len(cache) == i:
                    # Zeros, since even what is masked has to be a number: 0 times NaN is NaN.
                    shape = (len(prompts), new.shape[1], capacity, new.shape[3])
                    cache.append(new.new_zeros(shape, dtype=_attention_dtype(new)))
                cache[i][begin:end, :, first:width] = new
        begin = end
    mask = None
    if min(lengths) < width:
        mask = keys[0].new_zeros(len(prompts), 1, 1, capacity)
        for row, i in enumerate(order):
            mask[row, ..., : width - lengths[i]] = -torch.inf
    rows = _Rows(
        prompts=torch.tensor(order),
        positions=torch.cat(positions),
        keys=keys,
        values=values,
        mask=mask,
        length=width,
        limit=width + max_new_tokens,
    )
    return torch.cat(hidden), rows


def _attention_dtype(tensor: torch.Tensor) -> torch.dtype:
    """Return what attention computes in: autocast would convert the whole cache at every step."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


def _write(
    backbone: Backbone,
    hidden: torch.Tensor,
    rows: _Rows,
    responses: list[list[int]],
    max_new_tokens: int,
    temperature: float,
    uniforms: torch.Tensor | None,
) -> None:
    """Append the tokens of every row to its response; `hidden` and `rows` are what `_read` gave."""
    model, text = backbone.model, backbone.model.model.language_model
    rotary = _rotary(text, int(rows.positions.max()) + max_new_tokens)
    layers = _layers(text)
    bias, nearest = (t.to(model.device) for t in _suppression(backbone))
    is_complete = _StopRule(backbone)
    for step in range(max_new_tokens):
        logits = model.lm_head(hidden).float().add_(bias)
        if uniforms is not None and temperature > 0.0:
            numbers = uniforms[rows.prompts, step].to(model.device)
            tokens = nearest[_draw(logits, temperature, numbers)]
        else:
            tokens = _best(logits)
        kept = []
        chosen = zip(rows.prompts.tolist(), tokens.tolist(), strict=True)
        for row, (prompt, token) in enumerate(chosen):
            if token == len(bias):
                raise RolloutError(
                    "the model's logits are not finite numbers: its weights are damaged or overflow"
                )
            responses[prompt].append(token)
            if not is_complete(responses[prompt]):
                kept.append(row)
        if not kept or step + 1 == max_new_tokens:
            return
        if len(kept) < len(tokens):
            tokens = rows.keep(kept, tokens)
        rows.make_room()
        hidden = _step(text, layers, rows, tokens, rotary)


class _StopRule:
    """Whether a response is complete: its last token ends the turn or completes STOP_TEXT."""

    def __init__(self, backbone: Backbone) -> None:
        self._end = backbone.end_token
        self._tokenizer = backbone.tokenizer
        # Of each token, whether STOP_TEXT's last character is in it: none else can complete it, so
        # few responses have to be decoded.
        self._closing: dict[int, bool] = {}

    def __call__(self, response: list[int]) -> bool:
        token = response[-1]
        if token == self._end:
            return True
        if token not in self._closing:
            self._closing[token] = STOP_TEXT[-1] in self._tokenizer.decode([token])
        return self._closing[token] and STOP_TEXT in self._tokenizer.decode(
            response[-_STOP_WINDOW:]
        )


def _suppression(backbone: Backbone) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what is added to the logits [V], and the allowed token next to each token [V + 1].

    The second is for what `_draw` may do on a GPU, where a sum over more tokens can come out a
    rounding error smaller: then a token whose probability is 0 can seem to have one.
    """
    count = backbone.model.config.text_config.vocab_size
    allowed = torch.ones(count, dtype=torch.bool)
    allowed[backbone.suppressed_tokens()] = False
    bias = torch.zeros(count).masked_fill_(~allowed, -torch.inf)
    below = torch.arange(count).masked_fill_(~allowed, -1).cummax(0).values
    nearest = torch.where(below < 0, allowed.int().argmax(), below)
    return bias, torch.cat((nearest, torch.tensor([count])))


def _best(logits: torch.Tensor) -> torch.Tensor:
    """Return the likeliest token of each row [R]; V where logits [R, V] are not finite."""
    best, tokens = logits.max(-1)
    return tokens.where(best.isfinite(), logits.shape[1])


def _draw(logits: torch.Tensor, temperature: float, uniforms: torch.Tensor) -> torch.Tensor:
    """Return a token of each row [R] by inverse transform of uniforms [R]; V as `_best` does.

    The memory of `logits` [R, V] is used again: with a large vocabulary every copy counts.
    """
    total = torch.cumsum(torch.softmax(logits.div_(temperature), -1), -1, out=logits)
    # The whole is not exactly 1, but a number below 1 times it is below it, so there is a token; it
    # is the first whose sum lies above, so its probability is not 0. Above NaN there is none.
    return torch.searchsorted(total, uniforms[:, None] * total[:, -1:], right=True)[:, 0]


@dataclass(frozen=True)
class _Layer:
    """A layer of the decoder in as few calls as there can be.

    Attributes:
        heads: from hidden states [R, H] to queries, keys and values [R, (heads + 2 KV) D].
        mlp: from hidden states to what is added to them.
        weights: of the norm of queries and keys [heads + KV, D].
        module: the layer itself.
    """

    heads: Callable[[torch.Tensor], torch.Tensor]
    mlp: Callable[[torch.Tensor], torch.Tensor]
    weights: torch.Tensor
    module: Qwen3VLTextDecoderLayer


def _layers(text: Qwen3VLTextModel) -> list[_Layer]:
    """Return the layers; products that read the same become one where that takes little memory."""
    layers = []
    products = [
        (
            [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj],
            [layer.mlp.gate_proj, layer.mlp.up_proj],
        )
        for layer in text.layers
    ]
    every = [m for pair in products for modules in pair for m in modules]
    joins = (
        # An adapter's layer is more than a product.
        all(type(m) is Linear and m.bias is None for m in every)
        and sum(m.weight.nbytes for m in every) <= _JOINED_BYTES
    )
    for layer, (reading, gating) in zip(text.layers, products, strict=True):
        attention = layer.self_attn
        counts = [m.out_features // attention.head_dim for m in reading]
        norms = (attention.q_norm.weight, attention.k_norm.weight)
        weights = torch.cat([w.expand(n, -1) for w, n in zip(norms, counts, strict=False)])
        heads, mlp = partial(_side_by_side, reading), layer.mlp
        if joins:
            heads = partial(torch.matmul, other=_joined(reading))
            mlp = partial(_gated, _joined(gating), layer.mlp)
        layers.append(_Layer(heads, mlp, weights, layer))
    return layers


def _joined(modules: Sequence[Linear]) -> torch.Tensor:
    weight = torch.cat([m.weight for m in modules])
    return weight.to(_attention_dtype(weight)).T.contiguous()


def _side_by_side(modules: Sequence[Linear], x: torch.Tensor) -> torch.Tensor:
    return torch.cat([m(x) for m in modules], -1)


def _gated(weight: torch.Tensor, mlp: Qwen3VLTextMLP, x: torch.Tensor) -> torch.Tensor:
    gate, up = (x @ weight).chunk(2, -1)
    result: torch.Tensor = mlp.down_proj(mlp.act_fn(gate) * up)
    return result


def _step(
    text: Qwen3VLTextModel,
    layers: Sequence[_Layer],
    rows: _Rows,
    tokens: torch.Tensor,
    rotary: torch.Tensor,
) -> torch.Tensor:
    """Read a token in every row, for which there is room; return the hidden states [R, H]."""
    column = rows.length
    rows.length += 1
    cos, sin = rotary.index_select(0, rows.positions).unsqueeze(2).unbind(1)
    rows.positions += 1
    mask = None if rows.mask is None else rows.mask[..., : rows.length]
    x = text.embed_tokens(tokens)
    for layer, all_keys, all_values in zip(layers, rows.keys, rows.values, strict=True):
        module, count = layer.module, all_keys.shape[1]
        attention = module.self_attn
        size = attention.head_dim
        heads = layer.heads(_normed(x, module.input_layernorm)).view(len(x), -1, size)
        turning, values = heads.tensor_split((len(layer.weights),), 1)
        turned = _rotate(
            rms_norm(turning, (size,), None, attention.q_norm.variance_epsilon) * layer.weights,
            cos,
            sin,
        )
        query, key = turned.tensor_split((len(layer.weights) - count,), 1)
        all_keys[:, :, column] = key
        all_values[:, :, column] = values
        # Query heads that share a key head stand together, as if they were queries of that one
        # head: then no kernel has to repeat the keys.
        y = scaled_dot_product_attention(
            query.reshape(len(x), count, -1, size),
            all_keys[:, :, : rows.length],
            all_values[:, :, : rows.length],
            mask,
            scale=attention.scaling,
        )
        x = x + attention.o_proj(y.reshape(len(x), -1))
        x = x + layer.mlp(_normed(x, module.post_attention_layernorm))
    return _normed(x, text.norm)


def _normed(x: torch.Tensor, norm: Qwen3VLTextRMSNorm) -> torch.Tensor:
    """Return what the norm returns, in one call."""
    return rms_norm(x, norm.weight.shape, None, norm.variance_epsilon) * norm.weight


def _rotary(text: Qwen3VLTextModel, count: int) -> torch.Tensor:
    """Return cos and sin for `_rotate` at the positions of text below `count` [count, 2, D].

    Text has one position on all three axes of M-RoPE.
    """
    weight = text.embed_tokens.weight  # says device and dtype
    positions = torch.arange(count, device=weight.device).expand(3, 1, -1)
    cos, sin = text.rotary_emb(weight, positions)
    sin[..., : sin.shape[-1] // 2].neg_()
    return torch.stack((cos[0], sin[0]), dim=1)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn heads [R, heads, D] by the angles of `_rotary` [R, 1, D].

    transformers negates the first half of the heads with their halves swapped; here the sines have
    that sign.
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
