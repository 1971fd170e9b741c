"""Students for the tests of export and runtime. None of them had to be trained."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

# Before torch is imported. At these sizes a second thread gains nothing, and on a busy machine the
# two wait for each other: a test then takes ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SIZES = {"hidden": 96, "layers": 3, "heads": 3, "kv_heads": 1, "vision_layers": 3}


def restless(seed: int = 1, image_size: int = 128, **sizes):
    """An untrained nano with large weights: it says something else about every picture."""
    import torch

    from mgsd_core.model import NanoConfig, build_nano

    backbone = build_nano(NanoConfig(**{**SIZES, "deepstack": (0, 1), **sizes}), image_size, seed)
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(4)
    return backbone


def scripted(script: list[int], new_tokens: tuple[str, ...] = ()):
    """A nano that answers every picture with the tokens of `script`, each at most once in it.

    Attention and MLP add nothing, so the last token alone decides, through an untied head, what
    comes next. Ids in `script` from the tokenizer's length on are `new_tokens`, in order.
    """
    import torch

    from mgsd_core.encoding import prompt_ids
    from mgsd_core.model import NanoConfig, build_nano
    from mgsd_core.prompts import student_prompt

    backbone = build_nano(NanoConfig(), 64, 0)
    model = backbone.model
    backbone.tokenizer.add_tokens(list(new_tokens))
    model.resize_token_embeddings(len(backbone.tokenizer), mean_resizing=False)
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    last = prompt_ids(backbone, student_prompt("frozenlake", "brief"))[-1]
    with torch.no_grad():
        embedding = model.model.language_model.embed_tokens.weight
        embedding.copy_(torch.randn(embedding.shape, generator=torch.Generator().manual_seed(0)))
        for layer in model.model.language_model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        head = torch.zeros_like(embedding)
        for before, after in zip([last, *script], script, strict=False):
            head[after] = embedding[before]
        model.lm_head.weight = torch.nn.Parameter(head)
    return backbone


def picture(seed: int, size: int = 128) -> np.ndarray:
    """Sixteen squares of random colours, uint8 [size, size, 3]."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.kron(colours, np.ones((size // 4, size // 4, 1), np.uint8))


@pytest.fixture(scope="session")
def make_restless():
    return restless


@pytest.fixture(scope="session")
def make_scripted():
    return scripted


@pytest.fixture(scope="session")
def make_picture():
    return picture


@pytest.fixture(scope="session")
def restless_backbone():
    return restless()


@pytest.fixture(scope="session")
def restless_bundle(restless_backbone, tmp_path_factory) -> Path:
    """A bundle of `restless_backbone` for lakes and mazes of level 3."""
    from mgsd_core.export import export_bundle

    return export_bundle(
        restless_backbone,
        tmp_path_factory.mktemp("restless") / "bundle",
        families=["frozenlake", "maze"],
        levels={"frozenlake": [3], "maze": [3]},
    )
