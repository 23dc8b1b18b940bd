"""Cosmos 2.5 Transfer: the ControlNet is corrected too, with the plans of the layers beside which it runs."""

import contextlib
import copy
import pickle
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from cosmos_control import EVERY, SCALE, pipeline, run
from dense import oracle
from families import cosmos as family
from lengths import plan_of_call

import freeloc
from freeloc.adapter import Beside
from freeloc.discovery import find_adapter, transformers_of

TRAINED = 4
FACTS = {
    "transformer": family.facts(SCALE, fps=30),
    "controlnet": family.facts(SCALE, fps=30, path="control_blocks.*.attn1", layers=(0, EVERY)),
}


@pytest.fixture
def pipe():
    return pipeline()


def profile_of(pipe):
    """Another policy in every layer, so that a wrong number shows."""
    profile = freeloc.default_profile(pipe, "vrpr+tsa", trained_latent_frames=TRAINED)
    return profile.model_copy(update={"layers": {"vrpr+tsa": [0], "vrpr": [1], "tsa": [2], "none": [3]}})


@contextlib.contextmanager
def oracles(pipe, profile, frames, parts=tuple(FACTS)):
    with contextlib.ExitStack() as stack:
        for part in parts:
            plan = lambda layer, count: plan_of_call(profile, layer, count, FACTS["transformer"].spacing)  # noqa: E731
            stack.enter_context(oracle(pipe.components[part], FACTS[part], plan, frames, 2, 3))
        yield


def error(found, expected):
    return float((found - expected).abs().max())


@pytest.mark.parametrize("frames", [3, 4, 5, 9, 16])
def test_both_networks_equal_the_oracle(pipe, frames):
    profile = profile_of(pipe)
    before = run(pipe, frames)
    with oracles(pipe, profile, frames):
        expected = run(pipe, frames)
    with freeloc.patch(pipe, profile) as patch:
        found = run(pipe, frames)
    assert error(found, expected) <= 2e-5
    if frames > 2 * TRAINED:
        assert error(expected, before) > 1e-2
        paths = [(layer.layer, layer.path) for layer in patch.report().transformers[1]]
        assert paths == [(0, "control_blocks.0.attn1"), (2, "control_blocks.1.attn1")]
    assert torch.equal(run(pipe, frames), before)


def test_left_uncorrected_it_is_the_models_own_and_named(pipe):
    profile = profile_of(pipe)
    with oracles(pipe, profile, 9):
        both = run(pipe, 9)
    with oracles(pipe, profile, 9, parts=["transformer"]):
        expected = run(pipe, 9)
    with freeloc.patch(pipe, profile, leave_uncorrected=["controlnet"]) as patch:
        found = run(pipe, 9)
    assert error(found, expected) <= 2e-5
    assert error(found, both) > 1e-2
    assert "left uncorrected, as asked: controlnet (CosmosControlNetModel)" in str(patch.report())


def test_a_transformer_that_is_patched_alone_refuses_its_output(pipe):
    transformer = pipe.components["transformer"]
    name = "block_controlnet_hidden_states"
    with freeloc.patch(transformer, profile_of(pipe)), pytest.raises(freeloc.errors.LayoutError, match=name):
        run(pipe, 9)
    with freeloc.patch(transformer, profile_of(pipe), leave_uncorrected=[name]) as patch:
        run(pipe, 9)
    assert patch.report().left == [f"{name} (an argument)"]


def test_alone_it_has_layers_of_its_own(pipe):
    controlnet = pipe.components["controlnet"]
    profile = freeloc.default_profile(controlnet, "vrpr+tsa", trained_latent_frames=TRAINED)
    assert profile.model.layers == 2
    with freeloc.patch(controlnet, profile) as patch:
        run(pipe, 9)
    assert [layer.layer for layer in patch.report().layers] == [0, 1]
    with pytest.raises(freeloc.errors.ProfileError, match="expected 4 layers, found 2"):
        freeloc.patch(controlnet, profile_of(pipe))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
def test_a_copy_is_patched_too(pipe, copied):
    with freeloc.patch(pipe, profile_of(pipe)):
        expected = run(pipe, 9)
        other = copied(pipe)
    assert torch.equal(run(other, 9), expected)


def test_the_transformer_comes_first_whatever_the_order_of_components(pipe):
    turned = SimpleNamespace(components=dict(reversed(pipe.components.items())))
    for each in (pipe, turned):
        assert [adapter.name for _, adapter in transformers_of(each)] == ["cosmos", "cosmos-controlnet"]


def test_a_transformer_without_layers_for_it_is_an_error():
    with pytest.raises(freeloc.errors.AdapterError, match=r"every_n': expected in the transformer a number n, .* None"):
        transformers_of(pipeline(every=None))
    with pytest.raises(freeloc.errors.AdapterError, match=r"0 to 3, found \(0, 2, 4\)"):
        transformers_of(pipeline(blocks=3))


def test_beside_a_model_of_another_family_is_an_error(pipe, small_wan):
    other = SimpleNamespace(transformer=small_wan, controlnet=pipe.components["controlnet"])
    with pytest.raises(freeloc.errors.AdapterError, match="beside a transformer of the adapter 'cosmos', found wan"):
        freeloc.patch(other)


@pytest.mark.parametrize(
    ("found", "numbers"),
    [(7, (0, 7, 14)), ([0, 5, 8], (0, 5, 8)), ((1, 2, 3, 4), (1, 2, 3))],
)
def test_numbers_of_layers(found, numbers):
    assert Beside("a", layers="config.b").numbers(found, own=3) == numbers


@pytest.mark.parametrize("found", [None, 0, [0, 1], ["a", "b", "c"], "abc"])
def test_what_holds_no_numbers_of_layers_is_an_error(found):
    with pytest.raises(freeloc.errors.AdapterError, match=r"Beside\.layers 'config\.b'"):
        Beside("a", layers="config.b").numbers(found, own=3)


def test_a_description_of_another_network_beside_a_transformer(small_wan):
    """As of a ControlNet for Wan that somebody has written, which runs beside the layers that a list names."""
    known = find_adapter(small_wan)
    controlnet = copy.deepcopy(small_wan)
    controlnet.blocks = controlnet.blocks[:2]
    small_wan.control_layers = [1, 3]
    beside = replace(known, name="wan-controlnet", beside=Beside("wan", layers="control_layers"))
    bound = beside.bound(controlnet, small_wan, known)
    assert [layer for _, layer, _, _ in bound.places(controlnet)] == [1, 3]
    assert bound == beside
