"""What patch promises around the correction: undoing, errors, copies, wrappers, other attention backends."""

import copy
import threading
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from accelerate import cpu_offload
from conftest import make_profile, make_wan, wan_inputs
from diffusers.hooks import apply_group_offloading
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend
from peft import LoraConfig, get_peft_model
from torch import nn

import freeloc
from freeloc.testing import examples

HOOK_DICTS = [
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
]


def state_of(model):
    """Everything that a patch could leave behind."""
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


def test_two_models_with_different_patches_do_not_see_each_other(small_wan, run):
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
        twin = copy.deepcopy(small_wan)
        calls = patch.report().corrected_calls
        assert torch.equal(run(twin, 9), corrected)
        assert patch.report().corrected_calls == calls
        twin.blocks[0].attn1.to_q.weight.zero_()
        assert not torch.equal(run(twin, 9), corrected)
        freeloc.unpatch(twin)
        assert torch.equal(run(small_wan, 9), corrected)
    assert torch.equal(run(small_wan, 9), plain)
    twin.blocks[0].attn1.to_q.weight.copy_(small_wan.blocks[0].attn1.to_q.weight)
    assert torch.equal(run(twin, 9), plain)


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


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # cross-attention's own
@pytest.mark.parametrize("backend", ["_native_math", "flex"])
def test_other_attention_backends_are_corrected_and_come_back(small_wan, run, backend):
    with freeloc.patch(small_wan, make_profile()):
        expected = run(small_wan, 9)
    with attention_backend("native"):  # set_attention_backend below also sets a global one: this puts it back
        small_wan.set_attention_backend(backend)
        with freeloc.patch(small_wan, make_profile()):
            assert (run(small_wan, 9) - expected).abs().max() <= 2e-5
            processor = small_wan.blocks[0].attn1.processor
            assert processor._attention_backend == AttentionBackendName(backend)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_backend_that_is_set_for_everything_is_corrected_too(small_wan, run):
    with freeloc.patch(small_wan, make_profile()):
        expected = run(small_wan, 9)
        with attention_backend("flex"):
            assert (run(small_wan, 9) - expected).abs().max() <= 2e-5


CPU = torch.device("cpu")
OFFLOADS = {
    "accelerate": lambda model: cpu_offload(model, execution_device=CPU),
    "groups": lambda model: apply_group_offloading(
        model, onload_device=CPU, offload_device=CPU, offload_type="leaf_level"
    ),
}


@pytest.mark.parametrize("offload", OFFLOADS)
@pytest.mark.parametrize("first", ["offload", "patch"])
def test_offloaded_models_in_either_order(small_wan, run, offload, first):
    plain = run(small_wan, 9)
    with freeloc.patch(small_wan, make_profile()):
        expected = run(small_wan, 9)
    if first == "offload":
        OFFLOADS[offload](small_wan)
    patch = freeloc.patch(small_wan, make_profile())
    if first == "patch":
        OFFLOADS[offload](small_wan)
    assert torch.equal(run(small_wan, 9), expected)
    patch.remove()
    assert torch.equal(run(small_wan, 9), plain)


def test_lora_is_active_under_a_patch(small_wan, run):
    with freeloc.patch(small_wan, make_profile()):
        plain = run(small_wan, 9)
    wrapped = get_peft_model(small_wan, LoraConfig(target_modules=["to_q"], init_lora_weights=False)).eval()
    with freeloc.patch(wrapped, make_profile()) as patch:
        assert not torch.allclose(run(wrapped, 9), plain, atol=1e-4)
    assert patch.report().corrected_calls == 3


def test_gradients_flow_through_a_patched_model_and_checkpointing_changes_nothing(small_wan):
    inputs = wan_inputs(9)
    inputs["hidden_states"].requires_grad_()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            small_wan.train().enable_gradient_checkpointing()
        with freeloc.patch(small_wan, make_profile()):
            small_wan(**inputs)[0].square().mean().backward()
        gradients.append(inputs["hidden_states"].grad.clone())
        inputs["hidden_states"].grad = None
    assert gradients[0].abs().max() > 0
    assert torch.allclose(gradients[0], gradients[1], atol=1e-7)


def test_a_method_of_ones_own(small_wan, run):
    seen = []

    def freeze(profile, layer, frames):
        seen.append((layer, frames))
        return freeloc.FramePlan(torch.zeros(frames, frames).double(), freeloc.FramePlan.identity(frames).visibility)

    with freeloc.patch(small_wan, make_profile(), method=freeze) as patch:
        run(small_wan, 3)
    assert seen == [(layer, 3) for layer in range(4)]
    assert [(layer.method, layer.largest_after) for layer in patch.report().layers] == [("freeze", 0)] * 4


def test_a_policy_everywhere_instead_of_the_profiles_choice(small_wan, run):
    with freeloc.patch(small_wan, make_profile({"vrpr": [0, 1, 2, 3]})):
        expected = run(small_wan, 9)
    with freeloc.patch(small_wan, make_profile(), method="vrpr"):
        assert torch.equal(run(small_wan, 9), expected)


def test_the_report_proves_engagement(small_wan, run):
    with freeloc.patch(small_wan, make_profile()) as patch:
        assert "has not run yet" in str(patch.report())
        run(small_wan, 16)
        run(small_wan, 16)
        run(small_wan, 4)
    report = patch.report()
    first, second, _, last = report.layers
    assert (first.path, first.method, first.calls) == ("blocks.0.attn1", "vrpr", {16: 2})
    assert (first.largest_before, first.largest_after, first.attended) == (15, 3, 1)
    plan = freeloc.frame_plan(make_profile(), layer=1, frames=16)
    assert second.attended == pytest.approx(plan.token_mask(15).double().mean().item())
    assert last.untouched == {
        "16 latent frames, which the profile leaves alone": 2,
        "4 latent frames, which the profile leaves alone": 1,
    }
    text = str(report)
    assert "6 attention calls corrected, 6 left as they are (profile: small, default)" in text
    assert "15 -> 3" in text
    assert "4 latent frames, for which the plan changes nothing" in text


def test_the_report_says_the_share_of_pairs_over_all_calls(small_wan, run):
    with freeloc.patch(small_wan, make_profile()) as patch:
        for frames in (16, 9, 9):
            run(small_wan, frames)
    shares = {frames: freeloc.frame_plan(make_profile(), layer=1, frames=frames).density(15) for frames in (9, 16)}
    assert shares[9] > shares[16]
    assert patch.report().layers[1].attended == pytest.approx((2 * shares[9] + shares[16]) / 3)


class TestBadInput:
    def test_no_frames(self, small_wan):
        inputs = wan_inputs(9, hidden_states=torch.zeros(1, 4, 0, 6, 10))
        with pytest.raises(freeloc.errors.LayoutError, match=r"at least 1 latent frame.*found 0 x 3 x 5"):  # noqa: SIM117
            with freeloc.patch(small_wan, make_profile()):
                small_wan(**inputs)

    def test_a_tensor_of_other_axes(self, small_wan):
        with (
            pytest.raises(freeloc.errors.LayoutError, match=r"axes \(b c f h w\), found shape \(1, 4, 6, 10\)"),
            freeloc.patch(small_wan, make_profile()),
        ):
            small_wan(**wan_inputs(9, hidden_states=torch.zeros(1, 4, 6, 10)))

    def test_a_layer_that_makes_no_attention_call(self, small_wan, run):
        class Linear:
            def __call__(self, attn, hidden_states, *rest):
                q, k, v = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
                return attn.to_out[0](q @ (k.mT @ v))

        small_wan.blocks[1].attn1.set_processor(Linear())
        with (
            pytest.raises(
                freeloc.errors.LayoutError,
                match=r"blocks\.1\.attn1 \(WanAttention\) made no call of .*Linear attention",
            ),
            freeloc.patch(small_wan, make_profile()),
        ):
            run(small_wan, 9)

    def test_tokens_that_are_not_the_grid(self, small_wan, run):
        def drop_a_token(module, args):
            cos, sin = args[3]
            return args[0][:, 1:], *args[1:3], (cos[:, 1:], sin[:, 1:])

        small_wan.blocks[0].attn1.register_forward_pre_hook(drop_a_token)
        with (
            pytest.raises(
                freeloc.errors.LayoutError,
                match=r"blocks\.0\.attn1: expected self-attention over 135 tokens \(9 latent frames of 3 x 5, 0 of "
                r"text\), found 134 queries and 134 keys \(adapter 'wan'\)",
            ),
            freeloc.patch(small_wan, make_profile()),
        ):
            run(small_wan, 9)

    def test_a_block_that_is_called_without_its_transformer(self, small_wan):
        with (
            pytest.raises(freeloc.errors.LayoutError, match=r"ran outside a call of .*Call model\(\.\.\.\)"),
            freeloc.patch(small_wan, make_profile()),
        ):
            small_wan.blocks[0].attn1(torch.zeros(1, 30, 48))

    def test_causal_attention(self, small_wan, run):
        class Causal:
            def __call__(self, attn, hidden_states, encoder_hidden_states=None, mask=None, rope=None):
                q = k = v = attn.to_q(hidden_states).unflatten(2, (2, -1)).transpose(1, 2)
                return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)

        small_wan.blocks[0].attn1.set_processor(Causal())
        with (
            pytest.raises(freeloc.errors.LayoutError, match="expected is_causal=False in its attention, found True"),
            freeloc.patch(small_wan, make_profile()),
        ):
            run(small_wan, 9)

    def test_a_model_that_no_adapter_describes(self):
        wording = r"Looked at: torch\.nn\.modules\.linear\.Linear.*docs/write-an-adapter"
        with pytest.raises(freeloc.errors.AdapterError, match=wording):
            freeloc.patch(nn.Linear(2, 2), make_profile())

    def test_an_unknown_method(self, small_wan):
        with pytest.raises(freeloc.FreelocError, match="no method is named 'vprr'; did you mean vrpr"):
            freeloc.patch(small_wan, make_profile(), method="vprr")

    @pytest.mark.parametrize("made", [None, torch.zeros(9, 9), [torch.zeros(9, 9)] * 2, []])
    def test_a_method_that_makes_no_plan(self, small_wan, run, made):
        wording = "expected (the method to make a FramePlan|a plan for each of 2 heads)"
        with (
            freeloc.patch(small_wan, make_profile(), method=lambda profile, layer, frames: made),
            pytest.raises(freeloc.errors.LayoutError, match=wording),
        ):
            run(small_wan, 9)

    def test_a_plan_of_lists(self):
        with pytest.raises(freeloc.FreelocError, match="as tensors, found list and list"):
            freeloc.FramePlan([[0.0]], [[2]])

    def test_a_name_in_place_of_an_adapter(self, small_wan):
        with pytest.raises(freeloc.errors.AdapterError, match=r"expected adapter to be an Adapter.*found 'wan'"):
            freeloc.patch(small_wan, make_profile(), adapter="wan")

    def test_no_such_head(self):
        with pytest.raises(freeloc.FreelocError, match="expected a head from 0 to 1, found 9"):
            freeloc.frame_plan(make_profile(), layer=0, frames=9, head=9)

    @pytest.mark.parametrize("method", ["riflex", "yarn"])
    def test_frequencies_that_heads_do_not_share_are_refused_before_anything_runs(self, method):
        model = next(example for example in examples("mochi")).model()
        profile = freeloc.default_profile(model, trained_latent_frames=4)
        with pytest.raises(freeloc.errors.PatchError, match="each head of this model has its own"):
            freeloc.patch(model, profile, method=method)
        freeloc.patch(model, profile).remove()

    def test_a_plan_for_another_number_of_frames(self, small_wan, run):
        def wrong(profile, layer, frames):
            return freeloc.FramePlan.identity(frames + 1)

        with (
            pytest.raises(
                freeloc.errors.LayoutError, match="expected a plan for 9 latent frames, the method made one for 10"
            ),
            freeloc.patch(small_wan, make_profile(), method=wrong),
        ):
            run(small_wan, 9)
