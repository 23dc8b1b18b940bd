"""The token grid read from a submodule: its output, its argument, or three of its arguments."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import make_wan, wan_inputs
from diffusers import WanTransformer3DModel
from freeloc_adapters import wan
from subjects import Subject, first, in_threads
from submodule_grids import ADAPTERS, OUTPUT, hooks_of, patched
from torch.utils.checkpoint import checkpoint

import freeloc
from freeloc.adapter import TokenGrid
from freeloc.errors import AdapterError, LayoutError
from freeloc.interception.registration import patched_models


@pytest.mark.parametrize("label", ADAPTERS)
def test_it_equals_the_grid_of_the_transformers_argument(label):
    subject = Subject(label)
    plain = {frames: subject.run(frames) for frames in (4, 9)}
    with subject.patch():
        expected = {frames: subject.run(frames) for frames in (4, 9, 12)}
    with subject.patch(adapter=ADAPTERS[label]) as patch:
        for frames in (12, 4, 9):
            assert torch.equal(subject.run(frames), expected[frames])
    assert torch.equal(expected[4], plain[4])
    assert (expected[9] - plain[9]).abs().max() > 1e-3 * plain[9].abs().max()
    assert all(layer.calls.keys() == {12, 9} for layer in patch.report().layers)
    assert hooks_of(subject.model) == []
    assert torch.equal(subject.run(9), plain[9])


@pytest.mark.parametrize("label", ["wan", "hunyuan-video", "kandinsky5"])
def test_other_sizes_and_inputs_changed_by_the_hooks_of_others(label):
    subject = Subject(label)
    inputs = subject.example.inputs(9, 3, 2, 1)
    with subject.patch(), torch.no_grad():
        expected = first(subject.model, inputs)
    with subject.patch(adapter=ADAPTERS[label]), torch.no_grad():
        assert torch.equal(first(subject.model, inputs), expected)
        change = subject.model.register_forward_pre_hook(lambda *_: ((), inputs), with_kwargs=True)
        assert torch.equal(first(subject.model, subject.example.inputs(4, 2, 3, 2)), expected)
        change.remove()


class Padded(WanTransformer3DModel):
    """Wan, with the size of a frame rounded up to whole patches."""

    def forward(self, hidden_states, timestep, encoder_hidden_states, return_dict=True):
        height, width = hidden_states.shape[3:]
        whole = F.pad(hidden_states, (0, width % 2, 0, height % 2))
        (out,) = super().forward(whole, timestep, encoder_hidden_states, return_dict=False)
        return (out[..., :height, :width],)


def test_a_model_that_pads_its_input_is_right_with_the_output_and_refused_with_the_argument():
    model, padded = make_wan(), make_wan(cls=Padded)
    inputs = {frames: wan_inputs(frames, height=5, width=9) for frames in (2, 3, 9)}

    def expected(frames):
        whole = F.pad(inputs[frames]["hidden_states"], (0, 1, 0, 1))
        with torch.no_grad():
            return model(**inputs[frames] | {"hidden_states": whole})[0][..., :5, :9]

    plain = expected(9)
    with patched(model, wan.DIFFUSERS), patched(padded), torch.no_grad():
        for frames in (3, 9):
            assert torch.equal(padded(**inputs[frames])[0], expected(frames))
        assert (plain - expected(9)).abs().max() > 1e-2
    with patched(padded, wan.DIFFUSERS), torch.no_grad():
        assert torch.equal(padded(**inputs[2])[0], expected(2))
        for frames in (3, 9):  # 3 are within the trained length, but as many tokens as 5 of the assumed size
            with pytest.raises(
                LayoutError, match=rf"{frames} latent frames of 2 x 4 = {8 * frames}, found {15 * frames}"
            ):
                padded(**inputs[frames])


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_forwards_of_other_lengths_before_one_backward(use_reentrant):
    model = make_wan().requires_grad_(True).train()

    def gradient(adapter, *lengths):
        model.zero_grad()
        inputs = [wan_inputs(frames) for frames in lengths]
        for each in inputs:  # reentrant checkpoints require an input with a gradient
            each["hidden_states"].requires_grad_()
        with patched(model, adapter):
            sum(model(**each)[0].square().mean() for each in inputs).backward()
        return model.blocks[0].attn1.to_q.weight.grad.clone()

    expected = gradient(wan.DIFFUSERS, 9, 12, 3)
    model.enable_gradient_checkpointing(lambda *call: checkpoint(*call, use_reentrant=use_reentrant))
    assert (gradient(ADAPTERS["wan"], 9, 12, 3) - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert (gradient(ADAPTERS["wan"], 9) - expected).abs().max() > 1e-2 * expected.abs().max()


def test_a_nested_call_and_an_exception_inside(small_wan, run):
    plain = run(small_wan, 9)
    with patched(small_wan):
        expected = run(small_wan, 9), run(small_wan, 6)
        inner = []
        hook = small_wan.condition_embedder.register_forward_hook(
            lambda *_: None if inner else inner.append(None) or inner.append(run(small_wan, 6))
        )
        assert torch.equal(run(small_wan, 9), expected[0])
        assert torch.equal(inner[1], expected[1])
        hook.remove()
        for part in (small_wan.patch_embedding, small_wan.blocks[1].attn1.to_q):
            hook = part.register_forward_pre_hook(lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run(small_wan, 6)
            hook.remove()
            assert torch.equal(run(small_wan, 9), expected[0])
    assert hooks_of(small_wan) == []
    assert torch.equal(run(small_wan, 9), plain)


def test_threads(small_wan, run):
    with patched(small_wan):
        expected = {frames: run(small_wan, frames) for frames in (3, 6, 9)}
        found = in_threads(*[lambda n=frames: [run(small_wan, n) for _ in range(5)] for frames in expected])
    for outputs, right in zip(found, expected.values(), strict=True):
        assert all(torch.equal(output, right) for output in outputs), outputs


def test_copied_and_pickled(small_wan, run):
    adapter = replace(ADAPTERS["wan"], rope=replace(wan.ROPE, channels=8))  # without a function, to be pickled
    with patched(small_wan, adapter):
        expected = run(small_wan, 9)
        others = [copy.deepcopy(small_wan), pickle.loads(pickle.dumps(small_wan))]
    for other in others:
        assert torch.equal(run(other, 9), expected)
        assert list(patched_models(other.patch_embedding))
        freeloc.unpatch(other)
        assert hooks_of(other) == []


def test_removed_while_it_runs(small_wan, run):
    patch = patched(small_wan)
    hook = small_wan.condition_embedder.register_forward_hook(lambda *_: patch.remove())
    run(small_wan, 9)
    hook.remove()
    assert hooks_of(small_wan) == []


def test_a_frame_appended_after_the_submodule_is_refused(small_wan, run):
    """A hook of another library that changes what the submodule returns, after freeloc has read it."""
    with patched(small_wan):
        add = small_wan.patch_embedding.register_forward_hook(
            lambda module, args, out: torch.cat([out, out[:, :, :1]], 2)
        )
        rope = small_wan.rope.register_forward_pre_hook(
            lambda module, args: (torch.cat([args[0], args[0][:, :, :1]], 2),)
        )
        for frames in (4, 9):
            with pytest.raises(LayoutError, match=rf"expected {15 * frames} tokens.*found {15 * (frames + 1)}"):
                run(small_wan, frames)
        add.remove()
        rope.remove()


@pytest.mark.parametrize("before", [True, False])
def test_a_submodule_that_runs_more_than_once(small_wan, run, before):
    """As on a reference image: the call with the most tokens counts."""
    plain, sizes = run(small_wan, 3), []

    def again(module, args, *out):
        if sizes:
            small_wan.patch_embedding(torch.zeros(1, 4, *sizes.pop()))

    with patched(small_wan):
        expected = run(small_wan, 9)
        register = small_wan.rope.register_forward_pre_hook if before else small_wan.rope.register_forward_hook
        for size in ((1, 6, 10), (6, 6, 10), (9, 6, 10), (9, 2, 10)):
            sizes.append(size)
            register(again)
            assert torch.equal(run(small_wan, 9), expected), size
        sizes.append((1, 6, 10))
        assert torch.equal(run(small_wan, 3), plain)
        for size, message in (
            ((9, 10, 6), r"patch_embedding ran more than once, on grids of .*\(9, 5, 3\).* tokens"),
            ((10, 6, 10), "expected 150 tokens, 10 latent frames of 3 x 5 = 150, found 135"),
        ):
            sizes.append(size)
            with pytest.raises(LayoutError, match=message):
                run(small_wan, 9)


@pytest.mark.parametrize(
    ("grid", "error", "message"),
    [
        (TokenGrid(of="embedding"), AdapterError, "no 'embedding', where its adapter expects its token grid"),
        (TokenGrid(of="blocks.0.attn1"), AdapterError, "TokenGrid.of: expected a submodule that runs before"),
        (TokenGrid(of="blocks.0"), LayoutError, "blocks.0 of WanTransformer3DModel has not run, from which"),
        (TokenGrid(of="norm_out"), LayoutError, "norm_out of WanTransformer3DModel has not run, from which"),
        (TokenGrid("output", of="rope"), LayoutError, r"expected output with axes \(b c f h w\), found a tuple"),
        (TokenGrid("output", "b t c f h w", of="patch_embedding"), LayoutError, r"f h w\), found shape \(2, 48, 9,"),
        (TokenGrid("video", of="patch_embedding"), LayoutError, "Conv3d was called without video, from which its grid"),
    ],
)  # fmt: skip
def test_a_wrong_submodule_is_an_error(small_wan, run, grid, error, message):
    plain = run(small_wan, 9)
    adapter = replace(wan.DIFFUSERS, grid=replace(grid, patch=(1, 1, 1)))
    with pytest.raises(error, match=message), patched(small_wan, adapter):
        run(small_wan, 9)
    assert hooks_of(small_wan) == []
    assert torch.equal(run(small_wan, 9), plain)


def test_arguments_that_are_refused_are_those_of_the_transformer(small_wan, run):
    grid = replace(OUTPUT, refused={"return_dict": "no reason", "encoder_hidden_states_image": "an image"})
    with patched(small_wan, replace(wan.DIFFUSERS, grid=grid)), torch.no_grad():
        inputs = {name: value for name, value in wan_inputs(9).items() if name != "return_dict"}
        small_wan(**inputs)
        with pytest.raises(LayoutError, match="cannot be corrected when called with return_dict: no reason"):
            run(small_wan, 9)
        run(small_wan, 3)
