from __future__ import annotations

import numpy as np

from mgsd_core import prompts
from mgsd_core.encoding import prompt_ids
from mgsd_core.rollout import generate
from mgsd_core.runtime import Planner
from mgsd_core.runtime.bundle import read_bundle
from sim.dataset import generate_episodes

HELD_OUT = 100


def test_onnx_runtime_says_what_transformers_says_on_held_out_pictures(
    trained_backbone, bundle_dir
):
    """Pictures that the student never saw: it is unsure, so any difference would show."""
    episodes = generate_episodes("frozenlake", 3, "test", seed=0, count=HELD_OUT, size=128)
    images = [e.image for e in episodes]
    asked = prompt_ids(trained_backbone, prompts.student_prompt("frozenlake", "brief"))
    limit = read_bundle(bundle_dir).manifest.prompts["frozenlake"].max_new_tokens
    responses = generate(trained_backbone, [asked] * HELD_OUT, np.stack(images), limit)
    expected = [trained_backbone.tokenizer.decode(r, skip_special_tokens=True) for r in responses]
    planner = Planner.load(bundle_dir, family="frozenlake")
    assert [planner.plan(image).text for image in images] == expected
    assert len(set(expected)) > HELD_OUT // 4  # and not one answer to everything
