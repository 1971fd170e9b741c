from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgsd_core.runtime.preprocess import (
    MAX_PIXELS,
    ImageError,
    ImageSpec,
    check_rgb,
    fit,
    mrope_positions,
    patchify,
    with_margin,
)


def noise(side: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def processor():
    """Qwen's own image processor, for pictures of 128 px."""
    module = pytest.importorskip(
        "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl",
        reason="this transformers has no Qwen image processor on Pillow",
    )
    return module.Qwen2VLImageProcessorPil(
        patch_size=16,
        merge_size=2,
        temporal_patch_size=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": 32 * 32, "longest_edge": 128 * 128},
    )


@pytest.mark.parametrize("side", [128, 137, 300])
def test_pictures_become_what_qwens_processor_makes_of_them(processor, side):
    spec = ImageSpec(128)
    images = [noise(side, seed) for seed in range(3)]
    expected = processor(images=images, return_tensors="np")["pixel_values"]
    patches = patchify(np.stack([fit(image, spec) for image in images]), spec)
    assert patches.dtype == np.float32 and patches.shape == (3 * 64, 1536)
    np.testing.assert_allclose(patches, expected, rtol=0, atol=1e-6)


def test_patches_of_other_sizes_hold_every_pixel():
    spec = ImageSpec(90, patch=5, merge=3, temporal=1, mean=0.0, std=1 / 255)
    image = noise(90, 0)
    patches = patchify(image[None], spec).reshape(6, 6, 3, 3, 3, 5, 5)
    # block row, block column, row, column, channel, y, x -> the picture again
    np.testing.assert_allclose(
        patches.transpose(0, 2, 5, 1, 3, 6, 4).reshape(90, 90, 3), image, rtol=0, atol=1e-3
    )


@given(height=st.integers(1, 90), width=st.integers(1, 90), seed=st.integers(0, 9))
def test_a_margin_lies_around_the_same_picture(height, width, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    shown = with_margin(image)
    top, left = round(0.08 * height), round(0.08 * width)
    assert shown.dtype == np.uint8 and shown.shape == (height + 2 * top, width + 2 * left, 3)
    assert np.array_equal(shown[top : top + height, left : left + width], image)
    around = np.ones(shown.shape[:2], bool)
    around[top : top + height, left : left + width] = False
    assert len(np.unique(shown[around], axis=0)) <= 1


def test_a_margin_has_the_colour_of_the_edges():
    image = np.full((50, 50, 3), (200, 10, 30), np.uint8)
    image[10:40, 10:40] = 0
    assert (with_margin(image)[:4] == (200, 10, 30)).all()


def test_a_picture_that_is_too_large_with_its_margin_is_refused_before_it_is_made():
    large = np.broadcast_to(np.uint8(0), (7990, 7990, 3))
    with pytest.raises(ImageError, match="with its margin has 9268 × 9268 px"):
        with_margin(large)


@pytest.mark.parametrize("bad", [np.zeros((0, 5, 3), np.uint8), np.zeros((5, 5), np.uint8), "x"])
def test_no_margin_is_put_around_what_is_no_picture(bad):
    with pytest.raises(ImageError):
        with_margin(bad)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.one_of(st.just("picture"), st.integers(1, 9)), min_size=1, max_size=6))
def test_positions_are_those_of_qwen(parts):
    import torch
    from transformers import Qwen3VLConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

    spec, image_token = ImageSpec(96), 7
    # Two pictures side by side are one run of tokens to transformers; the template parts them.
    ids: list[int] = []
    for part in parts:
        ids += [1, *[image_token] * spec.tokens, 2] if part == "picture" else [3] * part
    tensor = torch.tensor([ids])

    class Positions(Qwen3VLModel):  # only its arithmetic, without building a model
        def __init__(self):
            torch.nn.Module.__init__(self)
            self.config = Qwen3VLConfig(vision_config={"spatial_merge_size": 2})

    expected, delta = Positions().get_rope_index(
        tensor,
        mm_token_type_ids=(tensor == image_token).int(),
        image_grid_thw=torch.tensor([[1, spec.grid, spec.grid]] * parts.count("picture")),
    )
    positions = mrope_positions(ids, image_token, spec)
    assert np.array_equal(positions, expected[:, 0].numpy())
    # Generation goes on at one more than the largest, as transformers' delta says.
    assert positions.max() + 1 == len(ids) + delta.item()


def test_a_torn_run_of_image_tokens_is_refused():
    with pytest.raises(ValueError, match="9 image tokens in one run"):
        mrope_positions([1, *[7] * 8, 2], 7, ImageSpec(96))


@pytest.mark.parametrize(
    ("rgb", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), "uint8 array, not float32"),
        ([[[0, 0, 0]]], "uint8 array, not list"),
        (np.zeros((8, 8), np.uint8), r"\[H, W, 3\], not \[8, 8\]"),
        (np.zeros((8, 8, 4), np.uint8), r"\[H, W, 3\], not \[8, 8, 4\]"),
        (np.zeros((0, 8, 3), np.uint8), "empty: 8 × 0 px"),
        (np.zeros((8, 0, 3), np.uint8), "empty: 0 × 8 px"),
        (np.broadcast_to(np.uint8(0), (MAX_PIXELS, 2, 3)), "more than"),
    ],
)
def test_what_is_no_picture_is_refused(rgb, message):
    with pytest.raises(ImageError, match=message):
        check_rgb(rgb)
    with pytest.raises(ImageError, match=message):
        fit(rgb, ImageSpec(64))


def test_pictures_of_any_strides_are_fitted():
    image = noise(200, 0)
    expected = fit(np.ascontiguousarray(image[::-1, ::2]), ImageSpec(64))
    assert np.array_equal(fit(image[::-1, ::2], ImageSpec(64)), expected)


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="multiple of 32 px"):
        ImageSpec(100)
