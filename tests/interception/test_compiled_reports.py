"""The report of a compiled model."""

from unittest import mock

import pytest
import torch
from conftest import make_profile, make_wan, wan_inputs
from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from diffusers_caches import start

import freeloc
from freeloc.errors import LayoutError

# Reason: raised inside torch._dynamo on import or compilation, not by this project.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")

whole_or_in_parts = pytest.mark.parametrize("whole", [pytest.param(True, marks=pytest.mark.slow), False])


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compile_it(model, whole):
    if whole:
        return torch.compile(model, backend="eager")
    model.compile_repeated_blocks(backend="eager")
    return model


def call_a_method(block, hidden_states, encoder_hidden_states, temb, rotary_emb, *rest):
    """The forward of a block that does not call its attention, but a method of it, so that no hook runs."""
    return hidden_states + block.attn1.forward(block.norm1(hidden_states), None, None, rotary_emb)


@whole_or_in_parts
def test_attention_that_is_called_as_a_method_is_refused(run, whole):
    model = make_wan(num_layers=2)
    with mock.patch.object(WanTransformerBlock, "forward", call_a_method):
        plain = run(model, 3)
        compiled = compile_it(model, whole)
        with freeloc.patch(model, make_profile({"vrpr+tsa": [0], "none": [1]})) as patch:
            assert (run(compiled, 3) - plain).abs().max() <= 2e-5
            with pytest.raises(LayoutError, match=r"9 latent frames, and none of the 1 layers .*blocks\.0\.attn1"):
                run(compiled, 9)
    text = str(patch.report())
    assert text.startswith("freeloc: NOTHING WAS CORRECTED: no layer that was due")
    assert "1 at 9 latent frames" in text


@whole_or_in_parts
def test_forward_passes_and_what_a_cache_left_out_are_counted(run, whole):
    model, profile = make_wan(), make_profile({"vrpr+tsa": [0, 1, 2], "none": [3]})
    apply_first_block_cache(model, FirstBlockCacheConfig(threshold=10.0))
    start(model)
    with freeloc.patch(model, profile):
        expected = [run(model, 9) for _ in range(3)]
    start(model)
    compiled = compile_it(model, whole)
    with freeloc.patch(model, profile) as patch:
        found = [run(compiled, 9) for _ in range(3)]
    assert max(float((one - other).abs().max()) for one, other in zip(found, expected, strict=True)) <= 2e-5
    report = patch.report()
    assert report.models[0].forwards == {9: 3}
    assert [layer.calls for layer in report.layers] == [{9: 3}, {9: 1}, {9: 1}, {}]
    assert [layer.skipped for layer in report.layers] == [{}, {(9, "FBCBlockHook"): 2}, {(9, "FBCBlockHook"): 2}, {}]
    assert "not counted: calls of layer 3 (blocks.3.attn1) in compiled code" in str(report)


def test_a_model_that_the_profile_leaves_alone(run):
    """Its calls cannot be counted, so the report does not say that it has not run."""
    model = make_wan(num_layers=2)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    plain = run(compiled, 9)
    with freeloc.patch(model, make_profile({"none": [0, 1]})) as patch:
        assert torch.equal(run(compiled, 9), plain)
    assert "or only in compiled code: the profile leaves every layer alone" in str(patch.report())


@pytest.mark.slow
def test_what_is_read_behind_autograd():
    """Compiled by AOTAutograd, as by inductor, an operator runs where PyTorch ignores pending conjugates."""
    model = make_wan(num_layers=2)
    with freeloc.patch(model, make_profile({"vrpr+tsa": [0, 1]})), torch.no_grad():
        expected = model(**wan_inputs(9))[0]
        found = torch.compile(model, backend="aot_eager", fullgraph=True)(**wan_inputs(9))[0]
    assert (found - expected).abs().max() <= 2e-5


@whole_or_in_parts
def test_what_is_read_when_compiled_code_runs(run, whole):
    """A rope that is interpolated after compilation, and references: as in the eager model, and in the report."""
    model = make_wan(num_layers=2)
    profile = make_profile({"vrpr+tsa": [0, 1]})
    compiled = compile_it(model, whole)
    with freeloc.patch(model, profile, reference_frames=(1, 1)) as patch:
        run(compiled, 11)
        assert "read from rotary tables" not in str(patch.report())
        channels = model.rope.t_dim
        angles = torch.arange(1024.0)[:, None] * 10_000.0 ** (-torch.arange(0.0, channels, 2) / channels) * 0.4
        angles = angles.repeat_interleave(2, 1)
        model.rope.freqs_cos[:, :channels], model.rope.freqs_sin[:, :channels] = angles.cos(), angles.sin()
        found = run(compiled, 11)
    with freeloc.patch(model, profile, reference_frames=(1, 1)), torch.compiler.set_stance("force_eager"):
        assert (found - run(model, 11)).abs().max() <= 2e-5
    report = str(patch.report())
    assert "reference images, not counted as latent frames: 1 before the video, 1 after it (2 forward passes)" in report
    assert "read from rotary tables, not those of the adapter (1 forward pass)" in report
