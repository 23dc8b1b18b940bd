"""Gradients through a patched model: compiled, checkpointed, and after the patch is removed."""

import gc

import pytest
import torch
from conftest import make_profile, make_wan, wan_inputs
from subjects import in_threads

import freeloc
from freeloc.errors import LayoutError, PatchError

# Reason: raised inside torch._inductor and torch._dynamo on import or compilation, not by this project.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")

BACKENDS = ["eager", *(pytest.param(backend, marks=pytest.mark.slow) for backend in ("aot_eager", "inductor"))]
PROFILE = make_profile({"vrpr+tsa": [0]})


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def trained_wan():
    return make_wan(num_layers=1).requires_grad_(True).train()


def loss_of(model, frames=9):
    return model(**wan_inputs(frames))[0].square().mean()


def gradients_of(model, loss):
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def difference(found, expected):
    """The largest difference, relative to the largest gradient of each weight."""
    assert found.keys() == expected.keys()
    return max(float((found[name] - expected[name]).abs().max() / expected[name].abs().max()) for name in expected)


@pytest.fixture(scope="module")
def expected():
    """The gradients of the patched model that is not compiled."""
    model, plain = trained_wan(), trained_wan()
    with freeloc.patch(model, PROFILE):
        found = gradients_of(model, loss_of(model))
    assert difference(found, gradients_of(plain, loss_of(plain))) > 0.1
    return found


@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_of_compiled_blocks(expected, backend, is_checkpointed):
    model = trained_wan()
    if is_checkpointed:
        model.enable_gradient_checkpointing()
    model.compile_repeated_blocks(backend=backend)
    with freeloc.patch(model, PROFILE) as patch:
        assert difference(gradients_of(model, loss_of(model)), expected) <= 1e-5
    report = patch.report()
    assert report.models[0].forwards == {9: 1}
    assert "note: run again in backward, by gradient checkpointing or compiled code" in str(report)


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_a_compiled_model(expected, backend):
    model = trained_wan()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with freeloc.patch(model, PROFILE) as patch:
        assert difference(gradients_of(model, loss_of(compiled)), expected) <= 1e-5
    assert patch.report().models[0].forwards == {9: 1}


@pytest.mark.slow
def test_of_a_compiled_model_in_another_thread_than_its_forward(expected):
    """Gradients on a GPU are computed in a thread of their own."""
    model = trained_wan()
    with freeloc.patch(model, PROFILE):
        loss = loss_of(torch.compile(model, backend="eager"))
        found = []
        assert in_threads(lambda: found.append(gradients_of(model, loss))) == [None]
    assert difference(found[0], expected) <= 1e-5


def test_of_a_compiled_model_whose_patch_is_gone_are_refused():
    model = trained_wan()
    with freeloc.patch(model, PROFILE):
        loss = loss_of(torch.compile(model, backend="eager"))
    gc.collect()
    with pytest.raises(PatchError, match=r"call backward\(\) inside the `with freeloc\.patch"):
        loss.backward()


@pytest.mark.slow
def test_of_a_checkpointed_model_compiled_as_a_whole_are_refused():
    model = trained_wan()
    model.enable_gradient_checkpointing()
    compiled = torch.compile(model, backend="eager")
    with freeloc.patch(model, PROFILE):
        loss = loss_of(compiled)
        with pytest.raises(
            LayoutError, match=r"blocks\.0\.attn1 .*gradient checkpointing runs it again, .* compile the blocks alone"
        ):
            loss.backward()


def test_after_the_patch_is_removed(expected):
    model = trained_wan()
    with freeloc.patch(model, PROFILE):
        loss = loss_of(model)
    assert difference(gradients_of(model, loss), expected) == 0


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_ones_after_the_patch_is_removed_are_refused(use_reentrant):
    model, inputs = trained_wan(), wan_inputs(9)
    inputs["hidden_states"].requires_grad_()
    model.enable_gradient_checkpointing(
        lambda *call: torch.utils.checkpoint.checkpoint(*call, use_reentrant=use_reentrant)
    )
    with freeloc.patch(model, PROFILE):
        loss = model(**inputs)[0].square().mean()
    with pytest.raises(PatchError, match="gradient checkpointing runs WanAttention again, but the patch under which"):
        loss.backward()
    loss_of(model).backward()  # without a patch, it is as before
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_hooks_of_a_refusal_are_gone_after_a_backward_pass_that_needs_none():
    model = trained_wan()
    with freeloc.patch(model, PROFILE):
        loss = loss_of(model)
    loss.backward()
    assert not any(module._forward_pre_hooks for module in model.modules())
