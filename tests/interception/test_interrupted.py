"""Interrupted runs leave nothing behind, although PyTorch calls no hooks after a KeyboardInterrupt."""

import threading

import pytest
import torch
import torch.nn.functional as F
from conftest import make_profile, make_wan, wan_inputs
from subjects import EXAMPLES, in_threads
from torch.overrides import TorchFunctionMode, _get_current_function_mode

import freeloc
from freeloc.discovery import transformers_of
from freeloc.errors import LayoutError
from freeloc.interception.layers import LayerHook


@pytest.fixture
def interrupted(monkeypatch):
    """Raises KeyboardInterrupt in the attention of the second layer while the list is not empty."""
    left, run = [], LayerHook.attend

    def interrupt(hook, *arguments):
        if left and hook.report.layer == 1:
            raise left.pop()
        return run(hook, *arguments)

    monkeypatch.setattr(LayerHook, "attend", interrupt)
    return left


def plain_attention_is_right():
    query = torch.randn(2, 2, 135, 8, generator=torch.Generator().manual_seed(0))
    weights = (query @ query.mT / 8**0.5).softmax(dim=-1)
    return torch.allclose(F.scaled_dot_product_attention(query, query, query), weights @ query, atol=1e-5)


@pytest.mark.parametrize("name", ["wan", "cogvideox", "open-sora-1.2", "open-sora-2"])
@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit, MemoryError])
def test_leaving_the_block_leaves_no_trace(name, ending, interrupted):
    example = EXAMPLES[name]
    model, inputs = example.model(), example.inputs(9, 3, 5, 2)
    adapter = transformers_of(model, None)[0][1]
    profile = freeloc.default_profile(model, "tsa" if adapter.rope_of(model) is None else "vrpr+tsa", 3)

    def run():
        with torch.no_grad():
            out = model(**inputs)
        return out if isinstance(out, torch.Tensor) else out[0]

    before = run()
    held = {path: dict(vars(module)) for path, module in model.named_modules() if path.endswith("processor")}
    interrupted.append(ending())
    with pytest.raises(ending), freeloc.patch(model, profile):
        run()
    assert _get_current_function_mode() is None
    assert plain_attention_is_right()
    assert torch.equal(run(), before)
    assert all(dict(vars(model.get_submodule(path))) == attributes for path, attributes in held.items())


def test_an_interrupted_model_still_works_while_patched(small_wan, run, interrupted):
    with freeloc.patch(small_wan, make_profile()):
        expected = run(small_wan, 9)
        backend = small_wan.blocks[1].attn1.processor._attention_backend
        interrupted.append(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            run(small_wan, 9)
        assert plain_attention_is_right()
        assert torch.equal(run(make_wan(), 3), run(small_wan, 3))
        assert torch.equal(run(small_wan, 9), expected)
        assert _get_current_function_mode() is None
        assert small_wan.blocks[1].attn1.processor._attention_backend is backend


def test_what_an_interrupted_call_has_read_answers_no_other_call(small_wan, run, interrupted):
    with freeloc.patch(small_wan, make_profile()) as patch:
        interrupted.append(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            run(small_wan, 9)
        corrected = patch.report().corrected_calls
        with pytest.raises(LayoutError, match="outside a call of"), torch.no_grad():
            small_wan.forward(**wan_inputs(9))
        assert patch.report().corrected_calls == corrected


def test_other_torch_function_modes_stay_active(small_wan, run, interrupted):
    class Counting(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.calls += 1
            return func(*args, **(kwargs or {}))

    patch = freeloc.patch(small_wan, make_profile())
    interrupted.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(small_wan, 9)
    with Counting() as counting:
        patch.remove()
        assert _get_current_function_mode() is counting
        torch.zeros(1).add(1)
        assert counting.calls > 0
    assert _get_current_function_mode() is None


def test_one_patched_model_in_several_threads(small_wan, run):
    plain = run(small_wan, 3)
    backend = small_wan.blocks[0].attn1.processor._attention_backend
    with freeloc.patch(small_wan, make_profile()):
        sizes = (9, 3, 13, 6)
        expected = [run(small_wan, frames) for frames in sizes]
        several = in_threads(*([lambda n=frames: [run(small_wan, n) for _ in range(8)] for frames in sizes]))
        for outputs, right in zip(several, expected, strict=True):
            assert isinstance(outputs, list), outputs
            assert all(torch.equal(output, right) for output in outputs)
    assert small_wan.blocks[0].attn1.processor._attention_backend is backend
    assert torch.equal(run(small_wan, 3), plain)


def test_removed_while_it_runs(small_wan, run):
    before = run(small_wan, 9)
    patch = freeloc.patch(small_wan, make_profile())
    cancel = small_wan.blocks[1].attn1.to_out[0].register_forward_pre_hook(lambda module, inputs: patch.remove())
    run(small_wan, 9)
    cancel.remove()
    assert _get_current_function_mode() is None
    assert torch.equal(run(small_wan, 9), before)
    assert not small_wan.blocks[1].attn1._forward_hooks


def test_removed_by_another_thread_while_it_runs(small_wan, run):
    before = run(small_wan, 9)
    patch = freeloc.patch(small_wan, make_profile())
    inside, removed = threading.Event(), threading.Event()

    def wait(module, inputs):
        inside.set()
        assert removed.wait(timeout=60)

    def generate():
        run(small_wan, 9)
        return _get_current_function_mode()

    def remove():
        assert inside.wait(timeout=60)
        patch.remove()
        removed.set()

    waiting = small_wan.blocks[1].attn1.to_out[0].register_forward_pre_hook(wait)
    left, nothing = in_threads(generate, remove)
    waiting.remove()
    assert left is None
    assert nothing is None
    assert torch.equal(run(small_wan, 9), before)
    assert not small_wan.blocks[1].attn1._forward_hooks


def test_a_removed_patch_is_not_entered_again(small_wan):
    patch = freeloc.patch(small_wan, make_profile())
    with patch:
        pass
    with pytest.raises(freeloc.errors.PatchError, match=r"removed already.*patch the model again"), patch:
        pass


def test_checkpointed_forwards_that_autograd_repeats_in_another_thread(small_wan):
    small_wan.requires_grad_(True).train()
    small_wan.enable_gradient_checkpointing()
    try:
        with freeloc.patch(small_wan, make_profile()):
            small_wan(**wan_inputs(9))[0].square().mean().backward()
            expected = small_wan.blocks[0].attn1.to_q.weight.grad.clone()
            small_wan.zero_grad()
            loss = small_wan(**wan_inputs(9))[0].square().mean()
            assert in_threads(loss.backward) == [None]
            assert torch.equal(small_wan.blocks[0].attn1.to_q.weight.grad, expected)
    finally:
        small_wan.disable_gradient_checkpointing()
        small_wan.requires_grad_(False).eval()
        small_wan.zero_grad()
