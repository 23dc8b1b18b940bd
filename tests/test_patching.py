"""What patch promises around the correction: undoing, exceptions, copies, threads, other methods."""

import copy
import threading
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import make_profile, make_wan

import freeloc

HOOK_DICTS = [
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
]


def state_of(model):
    """All state that a patch could leave behind."""
    modules = {
        path: (
            type(module),
            sorted(module.__dict__),
            [list(getattr(module, name)) for name in HOOK_DICTS],
            type(getattr(module, "processor", None)),
            dict(getattr(getattr(module, "processor", None), "__dict__", {})),
        )
        for path, module in model.named_modules()
    }
    return modules, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(model, state):
    modules, tensors = state_of(model)
    assert modules == state[0]
    assert tensors.keys() == state[1].keys()
    assert all(torch.equal(tensors[name], state[1][name]) for name in tensors)


def test_unpatching_leaves_no_trace(small_wan, run):
    state, before = state_of(small_wan), run(small_wan, 9)
    patch = freeloc.patch(small_wan, make_profile())
    run(small_wan, 9)
    patch.remove()
    assert_same_state(small_wan, state)
    assert torch.equal(run(small_wan, 9), before)
    patch.remove()
    assert_same_state(small_wan, state)


@pytest.mark.parametrize("where", ["blocks.2.attn1.to_out.0", "blocks.2.attn1.to_q", "blocks.1.ffn", "proj_out"])
def test_an_exception_inside_a_layer_leaves_no_trace(small_wan, run, where):
    state, before, kernel = state_of(small_wan), run(small_wan, 9), F.scaled_dot_product_attention

    def fail(module, args):
        raise RuntimeError("out of memory")

    handle = small_wan.get_submodule(where).register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"), freeloc.patch(small_wan, make_profile()):
        run(small_wan, 9)
    handle.remove()
    assert_same_state(small_wan, state)
    assert F.scaled_dot_product_attention is kernel
    assert torch.equal(run(small_wan, 9), before)


def test_a_model_that_failed_midway_works_again_while_still_patched(small_wan, run):
    with freeloc.patch(small_wan, make_profile()):
        expected = run(small_wan, 9)
        handle = small_wan.blocks[1].attn1.to_v.register_forward_pre_hook(lambda module, args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(small_wan, 9)
        handle.remove()
        assert torch.equal(run(small_wan, 9), expected)


def test_patching_twice_says_how_to_undo(small_wan, run):
    before = run(small_wan, 9)
    freeloc.patch(small_wan, make_profile())
    with pytest.raises(freeloc.errors.PatchError, match=r"patched already.*freeloc\.unpatch\(model\)"):
        freeloc.patch(small_wan, make_profile())
    freeloc.unpatch(small_wan)
    freeloc.unpatch(small_wan)
    assert torch.equal(run(small_wan, 9), before)


def test_when_one_of_two_transformers_is_refused_neither_is_patched(small_wan):
    other = make_wan(num_layers=3)
    states = state_of(small_wan), state_of(other)
    pipeline = SimpleNamespace(transformer=small_wan, transformer_2=other)
    with pytest.raises(freeloc.errors.ProfileError, match=r"4 layers, found 3"):
        freeloc.patch(pipeline, make_profile())
    assert_same_state(small_wan, states[0])
    assert_same_state(other, states[1])


def test_removing_takes_the_hooks_off_both_transformers(small_wan):
    other = make_wan(num_layers=4, seed=1)
    states = state_of(small_wan), state_of(other)
    patch = freeloc.patch(SimpleNamespace(transformer=small_wan, transformer_2=other), make_profile())
    assert other._forward_hooks
    patch.remove()
    assert_same_state(small_wan, states[0])
    assert_same_state(other, states[1])


def test_two_models_with_different_patches_do_not_affect_each_other(small_wan, run):
    other = copy.deepcopy(small_wan)
    with freeloc.patch(small_wan, make_profile()):
        alone = run(small_wan, 9)
    with freeloc.patch(small_wan, make_profile()), freeloc.patch(other, make_profile({"tsa": [0, 1, 2, 3]})) as patch:
        run(other, 16)
        assert torch.equal(run(small_wan, 9), alone)
    assert {frames for layer in patch.report().layers for frames in layer.calls} == {16}


def test_a_copy_of_a_patched_model_is_patched_on_its_own(small_wan, run):
    plain = run(small_wan, 9)
    with freeloc.patch(small_wan, make_profile()) as patch:
        corrected = run(small_wan, 9)
        copied = copy.deepcopy(small_wan)
        calls = patch.report().corrected_calls
        assert torch.equal(run(copied, 9), corrected)
        assert patch.report().corrected_calls == calls
        copied.blocks[0].attn1.to_q.weight.zero_()
        assert not torch.equal(run(copied, 9), corrected)
        freeloc.unpatch(copied)
        assert torch.equal(run(small_wan, 9), corrected)
    assert torch.equal(run(small_wan, 9), plain)
    copied.blocks[0].attn1.to_q.weight.copy_(small_wan.blocks[0].attn1.to_q.weight)
    assert torch.equal(run(copied, 9), plain)


def test_two_threads_with_a_model_each(small_wan, run):
    models = [small_wan, make_wan(seed=1)]
    profiles = [make_profile(), make_profile({"vrpr": [0, 1, 2, 3]})]
    expected, found = [], {}
    for model, profile in zip(models, profiles, strict=True):
        with freeloc.patch(model, profile):
            expected.append(run(model, 12))

    def work(index):
        with freeloc.patch(models[index], profiles[index]):
            found[index] = [run(models[index], 12) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(out, expected[index]) for index in (0, 1) for out in found[index])


def test_a_user_defined_method(small_wan, run):
    seen = []

    def freeze(profile, layer, frames):
        seen.append((layer, frames))
        return freeloc.FramePlan(torch.zeros(frames, frames).double(), freeloc.FramePlan.identity(frames).visibility)

    with freeloc.patch(small_wan, make_profile(), method=freeze) as patch:
        run(small_wan, 3)
    assert seen == [(layer, 3) for layer in range(4)]
    assert [(layer.method, layer.largest_after) for layer in patch.report().layers] == [("freeze", 0)] * 4


def test_one_policy_on_every_layer_instead_of_the_profiles_choice(small_wan, run):
    with freeloc.patch(small_wan, make_profile({"vrpr": [0, 1, 2, 3]})):
        expected = run(small_wan, 9)
    with freeloc.patch(small_wan, make_profile(), method="vrpr"):
        assert torch.equal(run(small_wan, 9), expected)
