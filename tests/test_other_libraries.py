"""A patched model with other attention backends, offloading, LoRA and gradient checkpointing."""

import pytest
import torch
from accelerate import cpu_offload
from conftest import make_profile, wan_inputs
from diffusers.hooks import apply_group_offloading
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend
from peft import LoraConfig, get_peft_model

import freeloc


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # from cross-attention
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
def test_a_globally_set_backend_is_corrected_too(small_wan, run):
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
