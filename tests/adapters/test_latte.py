"""Latte beyond the tests of all families: it supports only the number of frames that it was built for."""

import pytest
import torch
from dense import oracle
from diffusers import LatteTransformer3DModel
from families import FACTS
from freeloc_adapters.examples import latte

import freeloc
from freeloc.testing import random_model


def make(video_length):
    return random_model(lambda: LatteTransformer3DModel(**latte.SIZES | {"video_length": video_length}))


def run(model, frames):
    with torch.no_grad():
        return model(**latte.inputs(frames, 2, 3, 2)).sample


def test_released_weights_loaded_for_a_longer_video(tmp_path):
    make(4).save_pretrained(tmp_path)
    model = LatteTransformer3DModel.from_pretrained(tmp_path, video_length=9).requires_grad_(False)
    profile = freeloc.default_profile(model, "tsa", trained_latent_frames=4)
    before = run(model, 9)
    with oracle(model, FACTS["latte"], lambda layer, count: freeloc.frame_plan(profile, layer, count), 9, 2, 3):
        expected = run(model, 9)
    with freeloc.patch(model, profile) as patch:
        found = run(model, 9)
    assert (found - expected).abs().max() <= 2e-5
    assert (found - before).abs().max() > 1e-2
    assert [layer.path for layer in patch.report().layers] == [
        f"temporal_transformer_blocks.{index}.attn1" for index in range(3)
    ]


def test_another_length_is_an_error():
    model = make(4)
    with freeloc.patch(model, freeloc.default_profile(model, "tsa", trained_latent_frames=4)):
        with pytest.raises(freeloc.errors.LayoutError, match=r"at most 4 latent frames, .* a larger video_length"):
            run(model, 9)
        with pytest.raises(RuntimeError, match="must match the size"):  # the model's own
            run(model, 3)
        assert run(model, 4).isfinite().all()
