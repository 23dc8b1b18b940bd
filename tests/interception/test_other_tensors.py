"""Patched models on the meta device, under torch.func.vmap, and under other default dtypes."""

import pytest
import torch
from conftest import make_profile, make_wan, wan_inputs

import freeloc

POLICIES = ["vrpr", "tsa", "vrpr+tsa"]


def profile_of(policy):
    return make_profile({policy: [0], "none": [1]})


def expected(policy, **others):
    model = make_wan(num_layers=2)
    with freeloc.patch(model, profile_of(policy)), torch.no_grad():
        return model(**wan_inputs(9) | others)[0]


def test_shapes_on_the_meta_device():
    model = make_wan(num_layers=2).to("meta")
    inputs = {
        name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in wan_inputs(9).items()
    }
    with freeloc.patch(model, profile_of("vrpr+tsa")) as patch, torch.no_grad():
        out = model(**inputs)[0]
    assert (out.shape, out.device.type) == (inputs["hidden_states"].shape, "meta")
    assert patch.report().layers[0].calls == {9: 1}


# Reason: torch warns that it computes attention under vmap sample by sample.
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("policy", POLICIES)
def test_vmap(policy):
    model, inputs = make_wan(num_layers=2), wan_inputs(9)
    videos = torch.stack([inputs["hidden_states"], inputs["hidden_states"].flip(2)])
    want = torch.stack([expected(policy, hidden_states=video) for video in videos])
    with freeloc.patch(model, profile_of(policy)), torch.no_grad():
        found = torch.func.vmap(lambda video: model(**inputs | {"hidden_states": video, "return_dict": False})[0])(
            videos
        )
    assert (found - want).abs().max() <= 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_default_dtype(dtype):
    model, inputs, before = make_wan(num_layers=2), wan_inputs(9), torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with freeloc.patch(model, profile_of("vrpr+tsa")), torch.no_grad():
            found = model(**inputs)[0]
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(found, expected("vrpr+tsa"))
