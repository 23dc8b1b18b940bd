"""Layers that are due for correction and make no call: an error, or a line in the report."""

import copy
import pickle
from unittest import mock

import pytest
import torch
from conftest import make_profile, make_wan, wan_inputs
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from subjects import Subject

import freeloc
from freeloc.discovery import find_adapter
from freeloc.errors import LayoutError


class CallsAMethod(WanTransformerBlock):
    """A block that does not call its attention, but a method of it, so that no hook runs."""

    way = staticmethod(lambda attention, *inputs: attention.forward(*inputs))

    def forward(self, hidden_states, encoder_hidden_states, temb, rotary_emb, *rest):
        return hidden_states + self.way(self.attn1, self.norm1(hidden_states), None, None, rotary_emb)


class CallsTheProcessor(CallsAMethod):
    way = staticmethod(lambda attention, *inputs: attention.processor(attention, *inputs))


class CallsTheClass(CallsAMethod):
    way = staticmethod(lambda attention, *inputs: type(attention).forward(attention, *inputs))


def replace_blocks(model, cls, *which):
    for index in which:
        model.blocks[index].__class__ = cls
    return model


@pytest.mark.parametrize("cls", [CallsAMethod, CallsTheProcessor, CallsTheClass])
def test_attention_that_is_called_as_a_method_is_refused(run, cls):
    model = replace_blocks(make_wan(), cls, 0, 1, 2, 3)
    plain = run(model, 4)
    with freeloc.patch(model, make_profile()) as patch:
        assert torch.equal(run(model, 4), plain)  # nothing is due
        assert "WARNING" not in str(patch.report())
        with pytest.raises(LayoutError, match=r"16 latent frames, and none of the 3 layers .*blocks.0.attn1"):
            run(model, 16)
    text = str(patch.report())
    assert text.startswith("freeloc: NOTHING WAS CORRECTED: no layer that was due for correction made a call")
    assert "forward passes: 1 at 4 latent frames, 1 at 16 latent frames" in text
    assert "WARNING: 3 layers (blocks.0.attn1, blocks.1.attn1, blocks.2.attn1) were due" in text


@pytest.mark.parametrize("label", ["cogvideox", "hunyuan-video", "ltx-2", "open-sora-2"])
def test_other_families_whose_attention_is_called_as_a_method(label):
    subject = Subject(label)
    classes = {type(module) for _, _, _, module in find_adapter(subject.model).places(subject.model)}
    plain = subject.run(4)
    with subject.patch() as patch:
        for cls in classes:
            cls.__call__ = lambda module, *args, **kwargs: module.forward(*args, **kwargs)
        try:
            assert torch.equal(subject.run(4), plain)
            with pytest.raises(LayoutError, match=r"none of the . layers that were due for correction made a call"):
                subject.run(9)
        finally:
            for cls in classes:
                del cls.__call__
        assert "NOTHING WAS CORRECTED" in str(patch.report())
        subject.run(9)
    assert patch.report().corrected_calls


def test_a_model_whose_attention_gets_the_grid_and_makes_no_call():
    """Its length is not known then."""
    subject = Subject("wan-original")
    cls = type(subject.model.blocks[0].self_attn)
    with subject.patch() as patch, mock.patch.object(cls, "__call__", lambda module, *args: module.forward(*args)):
        subject.run(9)
    text = str(patch.report())
    assert text.startswith("freeloc: NOTHING WAS CORRECTED: no attention module was called")
    assert "\nnote: no attention module was called, so that the number" in text
    assert "is not known (1 forward pass)" in text


def test_one_layer_of_several_is_named(run):
    model = replace_blocks(make_wan(), CallsAMethod, 1)
    with freeloc.patch(model, make_profile()) as patch:
        run(model, 9)
        model.blocks[1].__class__ = WanTransformerBlock
        run(model, 9)
        run(model, 4)
    report = patch.report()
    assert [layer.skipped for layer in report.layers] == [{}, {(9, ""): 1}, {}, {}]
    assert [sum(layer.calls.values()) for layer in report.layers] == [2, 1, 2, 0]
    assert (
        "WARNING: layer 1 (blocks.1.attn1) was due for correction in 2 forward passes at 9 latent frames, and made no "
        "call in 1 of them: skipped by a cache or layer skip that the adapter does not describe, or the attention was "
        "called as a method of the module, where freeloc cannot intercept it"
    ) in str(report)


def test_a_layer_that_was_left_out_before_its_first_corrected_call_is_noted(small_wan, run):
    """A cache that was filled before the patch may have answered for it."""
    with freeloc.patch(small_wan, make_profile()) as patch:
        small_wan.blocks[1].forward = lambda hidden_states, *rest: hidden_states
        run(small_wan, 9)
        early = "note: left out before any call of the layer at this length was corrected: a cache of another library"
        assert early in str(patch.report())
        assert str(patch.report()).count("(1 calls)") == 1
        del small_wan.blocks[1].forward
    with freeloc.patch(small_wan, make_profile()) as patch:
        run(small_wan, 9)
        small_wan.blocks[1].forward = lambda hidden_states, *rest: hidden_states
        run(small_wan, 9)
        assert "left out before" not in str(patch.report())


def test_a_block_that_was_replaced_after_the_patch_is_named(small_wan, run):
    with freeloc.patch(small_wan, make_profile()) as patch:
        small_wan.blocks[2] = copy.deepcopy(make_wan(seed=1).blocks[2])
        run(small_wan, 9)
    assert [layer.skipped for layer in patch.report().layers] == [{}, {}, {(9, ""): 1}, {}]


def test_a_cache_of_another_library_may_leave_out_every_block_later(small_wan, run):
    """Not in its first run: what it would answer with is not corrected."""

    def leave_out(block):
        block.forward = lambda hidden_states, *rest: hidden_states

    with freeloc.patch(small_wan, make_profile()) as patch:
        run(small_wan, 9)
        for block in small_wan.blocks:
            leave_out(block)
        run(small_wan, 9)
        with pytest.raises(LayoutError, match="none of the 3 layers that were due"):
            run(small_wan, 12)
        for block in small_wan.blocks:
            del block.forward
    report = patch.report()
    assert report.layers[0].skipped == {(9, ""): 1, (12, ""): 1}
    assert report.models[0].forwards == {9: 2, 12: 1}
    assert "3 attention calls corrected" in str(report)
    assert "WARNING: 3 layers" in str(report)


def test_blocks_that_a_cache_replaces_while_the_model_runs(small_wan, run):
    """As cache-dit does: they are back when the forward pass has ended."""
    blocks, forward = small_wan.blocks, small_wan.forward

    class All(torch.nn.Module):
        def forward(self, hidden_states, *rest):
            for block in blocks[: 4 - 3 * self.skips]:
                hidden_states = block(hidden_states, *rest)
            return hidden_states

    together = All()

    def with_other_blocks(*args, **kwargs):
        small_wan.blocks = torch.nn.ModuleList([together])
        try:
            return forward(*args, **kwargs)
        finally:
            small_wan.blocks = blocks

    with freeloc.patch(small_wan, make_profile()):
        expected = run(small_wan, 9)
    small_wan.forward = with_other_blocks
    with freeloc.patch(small_wan, make_profile()) as patch:
        together.skips = False
        assert torch.equal(run(small_wan, 9), expected)
        together.skips = True
        run(small_wan, 9)
    assert [layer.skipped[9, ""] for layer in patch.report().layers] == [0, 1, 1, 0]


def test_calls_that_end_in_an_error_are_not_counted(small_wan, run):
    def stop(*args):
        raise RuntimeError("stop here")

    with freeloc.patch(small_wan, make_profile()) as patch:
        hook = small_wan.blocks[3].attn1.to_q.register_forward_hook(stop)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="stop here"):
                run(small_wan, 9)
        report = patch.report()
        assert "forward passes: 2 ended in an error" in str(report)
        assert [sum(layer.calls.values()) for layer in report.layers] == [2, 2, 2, 0]
        assert report.untouched_calls == 0
        hook.remove()
        first = small_wan.blocks[0].attn1.to_q.register_forward_hook(stop)
        with pytest.raises(RuntimeError, match="stop here"):
            run(small_wan, 12)
        first.remove()
        run(small_wan, 9)
    report = patch.report()
    assert "forward passes: 1 at 9 latent frames, 3 ended in an error" in str(report)
    assert not any(layer.skipped for layer in report.layers)


def test_a_run_that_only_fails_is_not_one_that_has_not_been():
    model = make_wan()
    with freeloc.patch(model, make_profile()) as patch:
        with pytest.raises(RuntimeError):
            model(**wan_inputs(9, encoder_hidden_states=torch.zeros(1, 3, 7)))
        assert str(patch.report()).startswith("freeloc: NOTHING WAS CORRECTED: every forward pass ended in an error")


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_calls_that_checkpointing_runs_again_are_noted(use_reentrant):
    model = make_wan().requires_grad_(True).train()
    model.enable_gradient_checkpointing(
        lambda function, *inputs: torch.utils.checkpoint.checkpoint(function, *inputs, use_reentrant=use_reentrant)
    )
    inputs = wan_inputs(9)
    inputs["hidden_states"].requires_grad_()
    with freeloc.patch(model, make_profile()) as patch:
        model(**inputs)[0].square().mean().backward()
    report = patch.report()
    assert [sum(layer.calls.values()) for layer in report.layers] == [2, 2, 2, 0]
    assert report.models[0].forwards == {9: 1}
    assert "note: run again in backward, by gradient checkpointing or compiled code (4 calls)" in str(report)


def test_a_whole_model_that_checkpointing_runs_again_is_noted():
    model, inputs = make_wan().requires_grad_(True).train(), wan_inputs(9)
    video = inputs.pop("hidden_states").requires_grad_()
    with freeloc.patch(model, make_profile()) as patch:
        out = torch.utils.checkpoint.checkpoint(lambda each: model(each, **inputs)[0], video, use_reentrant=False)
        out.square().mean().backward()
    report = patch.report()
    assert report.models[0].forwards == {9: 1}
    assert report.models[0].failed == 0
    assert "note: run again in backward, by gradient checkpointing or compiled code (1 forward pass)" in str(report)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_of_model_and_patch_counts_for_itself(small_wan, run, copied):
    with freeloc.patch(small_wan, make_profile()) as patch:
        run(small_wan, 9)
        other, other_patch = copied((small_wan, patch))
        run(other, 9)
        run(other, 12)
        assert other_patch.report().models[0].forwards == {9: 2, 12: 1}
        assert patch.report().models[0].forwards == {9: 1}
        assert other_patch.report().layers[0].calls == {9: 2, 12: 1}
        other_patch.remove()
        run(other, 9)
        assert other_patch.report().corrected_calls == 9
