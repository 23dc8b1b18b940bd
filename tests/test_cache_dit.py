"""Caches of cache-dit, with a patch, in both orders."""

import pytest
import torch
from conftest import make_profile, make_wan, wan_inputs
from torch import nn

import freeloc

cache_dit = pytest.importorskip("cache_dit", reason="cache-dit is not installed: pip install cache-dit==1.5.3")

STEPS = 6


def run(model, frames=9, steps=STEPS):
    """The outputs of a few steps, with an input that changes a little."""
    given = wan_inputs(frames)
    latents = given.pop("hidden_states")
    with torch.no_grad():
        return torch.stack([model(latents * (1 - step / 20), **given)[0] for step in range(steps)])


def enable(model):
    options = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "max_warmup_steps": 2, "residual_diff_threshold": 10.0}
    options |= {"num_inference_steps": STEPS, "enable_separate_cfg": False}  # without guidance
    config = cache_dit.DBCacheConfig(**options)
    cache_dit.enable_cache(model, cache_config=config)


@pytest.fixture
def expected():
    model = make_wan()
    enable(model)
    with freeloc.patch(model, make_profile()):
        return run(model)


@pytest.mark.parametrize("order", ["cache first", "patch first"])
@pytest.mark.parametrize("ends", ["cache", "patch"])
def test_both_orders_and_both_ways_to_undo(expected, order, ends):
    model, plain = make_wan(), run(make_wan())
    with freeloc.patch(model, make_profile()):
        corrected = run(model)
    if order == "cache first":
        enable(model)
    patch = freeloc.patch(model, make_profile())
    if order == "patch first":
        enable(model)
    found = run(model)
    assert torch.equal(found, expected)
    assert (found - corrected).abs().max() > 1e-3  # the cache has answered
    if ends == "cache":
        cache_dit.disable_cache(model)
        assert torch.equal(run(model), corrected)
        patch.remove()
    else:
        patch.remove()
        cache_dit.disable_cache(model)
    assert torch.equal(run(model), plain)
    assert not any(isinstance(each, nn.Module) and each._forward_hooks for each in model.modules())


def test_the_report_counts_what_ran_and_names_the_layers_that_were_left_out():
    model = make_wan()
    enable(model)
    with freeloc.patch(model, make_profile()) as patch:
        run(model)
    layers = patch.report().layers
    assert [sum(layer.calls.values()) for layer in layers] == [STEPS, 2, 2, 0]
    assert [sum(layer.skipped.values()) for layer in layers] == [0, STEPS - 2, STEPS - 2, 0]
    assert "left out before" not in str(patch.report())


def test_a_cache_that_was_filled_before_the_patch_is_noted_until_it_is_refreshed():
    model = make_wan()
    with freeloc.patch(model, make_profile()):
        corrected = run(model, steps=1)
    enable(model)
    run(model, steps=4)  # an interrupted run
    with freeloc.patch(model, make_profile()) as patch:
        stale = run(model, steps=1)
        assert "left out before any call of the layer" in str(patch.report())
    cache_dit.refresh_context(model, num_inference_steps=STEPS)
    with freeloc.patch(model, make_profile()) as patch:
        fresh = run(model, steps=1)
        assert "left out before" not in str(patch.report())
    assert torch.equal(fresh, corrected)
    assert not torch.equal(stale, corrected)
