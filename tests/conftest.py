"""What several tests share: rendered episodes, and a small student that really plans from them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that needs a hub is a mistake
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # nothing that a test runs calls home

LAKES = 16


@pytest.fixture(scope="session")
def lake_episodes():
    """Sixteen rendered 3 × 3 lakes with their true states."""
    from sim.dataset import generate_episodes

    return list(generate_episodes("frozenlake", 3, "train", seed=0, count=LAKES, size=128))


@pytest.fixture(scope="session")
def trained_backbone(lake_episodes):
    """A nano that knows `lake_episodes` by heart, trained here in seconds on the real pictures."""
    import torch

    from mgsd_core import prompts
    from mgsd_core.coldstart import Sample, supervised_passes
    from mgsd_core.config import ComputeConfig
    from mgsd_core.model import NanoConfig, build_nano
    from mgsd_core.training import PassLoss

    sizes = NanoConfig(hidden=96, layers=2, heads=3, kv_heads=1, intermediate=192, vision_layers=2)
    backbone = build_nano(sizes, image_size=128, seed=0)
    prompt = prompts.student_prompt("frozenlake", "brief")
    samples = [Sample(prompt, prompts.response_text(e.state, e.plan), "") for e in lake_episodes]
    images = np.stack([e.image for e in lake_episodes])
    compute = ComputeConfig()
    passes = supervised_passes(backbone, compute, samples, images)
    loss_of_pass = PassLoss(backbone.model, compute)
    optimizer = torch.optim.AdamW(backbone.model.parameters(), lr=3e-3)
    backbone.model.train()
    for _ in range(400):
        sums = [loss_of_pass(p.batch, p.loss_of)[0] for p in passes]
        loss = torch.stack(sums).sum() / sum(p.tokens for p in passes)
        if loss.item() < 0.01:
            break
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(backbone.model.parameters(), 1.0)
        optimizer.step()
    else:
        pytest.fail(f"the small student did not learn its pictures: loss {loss.item():.3f}")
    backbone.model.eval()
    return backbone


@pytest.fixture(scope="session")
def model_dir(trained_backbone, tmp_path_factory) -> Path:
    """The weights of `trained_backbone` on disk."""
    from mgsd_core.model import save_backbone

    path = tmp_path_factory.mktemp("weights") / "model"
    path.mkdir()
    save_backbone(trained_backbone, path)
    return path


@pytest.fixture(scope="session")
def bundle_dir(trained_backbone, lake_episodes, tmp_path_factory) -> Path:
    """A bundle of `trained_backbone` for frozenlake, level 3."""
    from mgsd_core.export import export_bundle

    return export_bundle(
        trained_backbone,
        tmp_path_factory.mktemp("bundle") / "nano",
        families=["frozenlake"],
        levels={"frozenlake": [3]},
        goldens=[("frozenlake", e.image) for e in lake_episodes[:2]],
    )
