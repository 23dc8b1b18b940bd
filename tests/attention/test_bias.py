"""What a plan adds to the logits of pairs of frames: its meaning, and how little it costs."""

import math
from dataclasses import replace

import pytest
import torch
from random_calls import ROPE, random_bias, random_inputs, random_mask, random_plan
from test_blocks import peak_bytes

import freeloc
from freeloc import FramePlan
from freeloc.attention import TokenLayout, attend, attend_reference
from freeloc.attention.backends import sdpa
from freeloc.attention.prepared import PreparedPlan
from freeloc.attention.schedule import make_schedule
from freeloc.plans.method import Method
from freeloc.plans.tsa import TsaSettings, tsa_plan
from freeloc.plans.vrpr import vrpr_plan
from freeloc.tiny.model import load_transformer, noise
from freeloc.tiny.synthetic import PROMPTS, prompt_embeds

TIERS = TsaSettings(dense_frames=1, striped_frames=4, stripe=0.3)
PLANS = {"vrpr": vrpr_plan(9, 4), "tsa": tsa_plan(9, 4, TIERS), "identity": FramePlan.identity(9)}


def test_the_log_of_a_number_counts_a_frame_so_many_times():
    """Against ordinary attention in which keys and values of a frame are there several times."""
    layout, times = TokenLayout(4, 2, 3, text_last=2), torch.tensor([1, 3, 2, 1])
    query, key, value = random_inputs(torch.Generator().manual_seed(0), layout, dtype=torch.float64)
    repeated = torch.arange(4).repeat_interleave(times)
    tokens = torch.cat([(repeated[:, None] * 6 + torch.arange(6)).flatten(), torch.tensor([24, 25])])
    expected = torch.nn.functional.scaled_dot_product_attention(query, key[:, :, tokens], value[:, :, tokens])
    whole = FramePlan.identity(4)
    plan = FramePlan(whole.positions, whole.visibility, bias=times.double().log().expand(4, 4).contiguous())
    for found in (
        attend(query, key, value, PreparedPlan(plan, ROPE, 12), layout),
        attend_reference(query, key, value, plan, ROPE, layout),
    ):
        torch.testing.assert_close(found[:, :, :24], expected[:, :, :24], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_bias_that_is_the_same_along_each_row_changes_nothing(name, requires_grad):
    """Without text, which has no bias."""
    layout, plan = TokenLayout(9, 3, 5), PLANS[name]
    tensors = random_inputs(torch.Generator().manual_seed(1), layout, dtype=torch.float64)
    tensors[0].requires_grad_(requires_grad)
    constant = torch.linspace(-3, 3, 9, dtype=torch.float64)[:, None].expand(9, 9).contiguous()
    found = attend(*tensors, PreparedPlan(replace(plan, bias=constant), ROPE, 12), layout)
    torch.testing.assert_close(found, attend(*tensors, PreparedPlan(plan, ROPE, 12), layout), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bias_of_hidden_pairs_and_zeros_leaves_every_bit(name, dtype):
    layout, plan = TokenLayout(9, 3, 5, text_first=2), PLANS[name]
    tensors = random_inputs(torch.Generator().manual_seed(2), layout, dtype=dtype)
    bias = torch.where(plan.visibility == 0, 5.0, 0.0).double()
    prepared = PreparedPlan(replace(plan, bias=bias), ROPE, 12)
    assert prepared.bias is None
    assert torch.equal(attend(*tensors, prepared, layout), attend(*tensors, PreparedPlan(plan, ROPE, 12), layout))


def test_query_frames_with_the_same_bias_share_a_call():
    bias = torch.zeros(4, 4, dtype=torch.float64)
    bias[1:3, 2] = 0.5
    plan = PreparedPlan(replace(FramePlan.identity(4), bias=bias), ROPE, 12)
    dense, striped = make_schedule(plan.plan, tokens_per_frame=6, bias=plan.bias)
    assert {block.queries for block in dense} == {(0, 3), (1, 2)}
    assert striped == []
    assert plan.runs == [range(0, 1), range(1, 3), range(3, 4)]


@pytest.mark.parametrize("kind", ["none", "bool keys", "float pairs"])
def test_gradients_are_those_of_the_reference(kind):
    generator = torch.Generator().manual_seed(3)
    layout = TokenLayout(6, 3, 3, text_first=2, text_last=1)
    plan = random_plan(generator, 6, changes=["bias", "scale by tokens"])
    leaves = [t.requires_grad_() for t in random_inputs(generator, layout, batch=2, dtype=torch.float64)]
    mask = random_mask(generator, kind, 2, 2, layout, torch.float64)
    upstream = torch.randn(leaves[0].shape, generator=generator, dtype=torch.float64)
    found, expected = (
        torch.autograd.grad((run(*leaves) * upstream).sum(), leaves)
        for run in (
            lambda *qkv: attend(*qkv, PreparedPlan(plan, ROPE, 12), layout, mask),
            lambda *qkv: attend_reference(*qkv, plan, ROPE, layout, mask),
        )
    )
    for gradient, reference in zip(found, expected, strict=True):
        assert reference.abs().max() > 0.1
        torch.testing.assert_close(gradient, reference, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", ["vrpr", "tsa"])
def test_a_bias_takes_no_memory_of_the_size_of_the_pairs(name):
    layout = TokenLayout(81, 5, 8)
    plan = {"vrpr": vrpr_plan, "tsa": tsa_plan}[name](81, 21)
    tensors = random_inputs(torch.Generator(), layout, heads=2, head_dim=64)
    peaks = []
    for own in (plan, replace(plan, bias=random_bias(torch.Generator(), 81))):
        prepared = PreparedPlan(own, ROPE, 64)
        attend(*tensors, prepared, layout)  # what is kept from call to call is made here
        peaks.append(peak_bytes(lambda prepared=prepared: attend(*tensors, prepared, layout)))
    pairs = 4 * layout.tokens**2  # bytes of one float32 for each pair of tokens
    assert peaks[1] - peaks[0] < 0.02 * pairs


def test_it_is_computed_by_blocks(monkeypatch):
    monkeypatch.setattr(sdpa, "attend_gathered", lambda *call: pytest.fail("computed by gathered keys"))
    generator = torch.Generator().manual_seed(4)
    layout = TokenLayout(9, 3, 5, text_last=3)
    tensors = random_inputs(generator, layout)
    plan = replace(PLANS["tsa"], bias=random_bias(generator, 9))
    mask = random_mask(generator, "bool keys", 1, 2, layout)
    found = attend(*tensors, PreparedPlan(plan, ROPE, 12), layout, mask)
    torch.testing.assert_close(found, attend_reference(*tensors, plan, ROPE, layout, mask), atol=2e-5, rtol=2e-5)


class PerToken:
    """A factor that depends on the tokens of a frame."""

    def __call__(self, tokens_per_frame):
        return 1 + math.log(tokens_per_frame) / 10


def biased(profile, layer, frames):
    plan = vrpr_plan(frames, profile.model.trained_latent_frames)
    return replace(plan, bias=-0.3 * plan.positions.abs(), logit_scale=PerToken())


@pytest.mark.slow
def test_a_compiled_model_gives_what_the_model_gives():
    model = load_transformer()
    call = {
        "hidden_states": noise([5], latent_frames=25),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": prompt_embeds([PROMPTS[0]]),
        "return_dict": False,
    }
    with torch.no_grad():
        plain = model(**call)[0]
        with freeloc.patch(model, method=Method("biased", biased)):
            expected = model(**call)[0]
            found = torch.compile(model, backend="eager")(**call)[0]
    assert (expected - plain).abs().max() > 1e-2
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
