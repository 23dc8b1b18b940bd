"""Mochi beyond the tests of all families: the frequencies of its RoPE are weights."""

import accelerate
import pytest
import torch
from freeloc_adapters.examples import mochi

import freeloc


def run(model):
    with torch.no_grad():
        return model(**mochi.inputs(9, 2, 3, 2)).sample


def test_frequencies_are_read_before_weights_are_offloaded():
    model = mochi.mochi()
    profile = freeloc.default_profile(model, "vrpr+tsa", trained_latent_frames=4)
    with freeloc.patch(model, profile):
        expected = run(model)
        accelerate.cpu_offload(model, execution_device="cpu")
        assert torch.equal(run(model), expected)
    with pytest.raises(
        freeloc.errors.AdapterError, match=r"MochiTransformer3DModel's RoPE are weights.*patch it before"
    ):
        freeloc.patch(model, profile)


def test_half_precision_frequencies_are_those_that_the_model_uses():
    model = mochi.mochi()
    profile = freeloc.default_profile(model, "vrpr+tsa", trained_latent_frames=4)
    rounded = model.pos_frequencies.to(torch.bfloat16).float()
    assert not torch.equal(rounded, model.pos_frequencies)
    model.pos_frequencies.copy_(rounded)
    with freeloc.patch(model, profile):
        expected = run(model)
    model.pos_frequencies.data = rounded.to(torch.bfloat16)  # the model rotates by them in float32
    with freeloc.patch(model, profile):
        assert torch.equal(run(model), expected)
