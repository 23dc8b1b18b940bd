"""The engine against the reference implementation: any plan, layout, mask and precision."""

import functools
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from random_calls import (
    CHANGES,
    MASKS,
    PAIRINGS,
    ROPE,
    TOLERANCE,
    assert_equals_the_reference,
    random_inputs,
    random_mask,
    random_plan,
)

from freeloc import FramePlan
from freeloc.adapter import TemporalRope
from freeloc.attention import TokenLayout, attend, attend_reference
from freeloc.attention.backends.stripes import CHUNKS
from freeloc.attention.prepared import PreparedPlan
from freeloc.errors import LayoutError
from freeloc.plans.frame_plan import NONE, STRIPED
from freeloc.plans.tsa import TsaSettings, tsa_visibility
from freeloc.plans.vrpr import vrpr_plan, vrpr_positions

THIN = TsaSettings(dense_frames=1, striped_frames=3, stripe=0.3)


@st.composite
def layouts(draw):
    text_first, text_last = draw(st.sampled_from([(0, 0), (3, 0), (0, 5), (2, 1)]))
    return TokenLayout(
        frames=draw(st.integers(1, 7)),
        height=draw(st.sampled_from([1, 3, 5])),
        width=draw(st.sampled_from([1, 2, 7])),
        text_first=text_first,
        text_last=text_last,
    )


@st.composite
def ropes(draw):
    """A head size and a rope that covers all or some of its channels."""
    head_dim = draw(st.sampled_from([8, 12, 24]))
    channels = 2 * draw(st.integers(1, head_dim // 2))
    first = draw(st.integers(0, head_dim - channels))
    theta = draw(st.sampled_from([10_000.0, 256.0]))
    within = channels + 2 * draw(st.integers(0, (head_dim - first - channels) // 2))
    return head_dim, TemporalRope(channels, first, draw(st.sampled_from(PAIRINGS)), theta, within)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    layout=layouts(),
    rope=ropes(),
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    stripe=st.floats(0.05, 1),
    scale=st.none() | st.floats(0.05, 1.5),
    changes=st.sets(st.sampled_from(CHANGES)),
)
def test_any_plan_equals_the_reference(dtype, kind, seed, layout, rope, batch, heads, stripe, scale, changes):
    generator = torch.Generator().manual_seed(seed)
    head_dim, rope = rope
    plan = random_plan(generator, layout.frames, stripe, changes=changes)
    tensors = random_inputs(generator, layout, batch, heads, head_dim, dtype)
    mask = random_mask(generator, kind, batch, heads, layout, dtype)
    assert_equals_the_reference(tensors, plan, rope, layout, mask, scale)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), layout=layouts(), own_frame=st.sampled_from([None, STRIPED, NONE]))
def test_frames_without_full_attention_to_themselves_equal_the_reference(seed, layout, own_frame):
    generator = torch.Generator().manual_seed(seed)
    plan = random_plan(generator, layout.frames, own_frame=own_frame)
    assert_equals_the_reference(random_inputs(generator, layout), plan, ROPE, layout)


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_accuracy_at_long_distances(dtype, kind, pairing):
    # Keys are rotated by up to 55 radians: angles in half precision would be wrong by a tenth of a radian.
    generator = torch.Generator().manual_seed(3)
    layout = TokenLayout(frames=60, height=1, width=3, text_last=2)
    plan = FramePlan(vrpr_positions(60, 5), tsa_visibility(60, 5, TsaSettings(dense_frames=20, striped_frames=40)))
    rope = TemporalRope(channels=8, pairing=pairing, theta=10.0)
    tensors = random_inputs(generator, layout, dtype=dtype)
    mask = random_mask(generator, kind, 1, 2, layout, dtype)
    assert_equals_the_reference(tensors, plan, rope, layout, mask)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_decayed_logits_of_half_precision_are_computed_in_float32(dtype):
    generator = torch.Generator().manual_seed(21)
    layout = TokenLayout(frames=5, height=3, width=5, text_last=2)
    plan = random_plan(generator, 5, changes=["decay"])
    query, key, value = random_inputs(generator, layout, head_dim=64, dtype=dtype)
    large = (400 * query, 20 * key, value)  # products beyond float16, logits of reasonable size
    tables = PreparedPlan(plan, ROPE, 64)
    found = attend(*large, tables, layout, scale=1 / 8000)
    expected = attend_reference(*large, plan, ROPE, layout, scale=1 / 8000)
    torch.testing.assert_close(found, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("kind", MASKS)
def test_permuted_views_equal_the_reference(kind):
    generator = torch.Generator().manual_seed(4)
    layout = TokenLayout(frames=6, height=3, width=5, text_first=2)
    plan = random_plan(generator, 6)
    stored = torch.randn(3, 2, layout.tokens, 3, 12, generator=generator)  # b l h d
    tensors = [tensor.transpose(1, 2) for tensor in stored]
    assert not tensors[0].is_contiguous()
    assert_equals_the_reference(tensors, plan, ROPE, layout, random_mask(generator, kind, 2, 3, layout))
    # A tensor expanded over heads cannot be written to: the engine must not try.
    broadcast = [tensor[:, :1].expand(-1, 3, -1, -1) for tensor in tensors]
    assert_equals_the_reference(broadcast, plan, ROPE, layout)


def test_inputs_are_not_changed():
    generator = torch.Generator().manual_seed(5)
    layout = TokenLayout(frames=5, height=2, width=3, text_first=1, text_last=1)
    plan = random_plan(generator, 5)
    tensors = random_inputs(generator, layout)
    mask = random_mask(generator, "float pairs", 1, 2, layout)
    before = [tensor.clone() for tensor in (*tensors, mask, plan.positions, plan.visibility)]
    attend(*tensors, PreparedPlan(plan, ROPE, 12), layout, mask)
    for tensor, copy in zip((*tensors, mask, plan.positions, plan.visibility), before, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize(
    ("height", "width", "stripe", "texts"),
    [
        (10, 15, 0.125, (0, 0)),
        (10, 15, 0.125, (3, 2)),
        (15, 20, 0.5, (0, 2)),
        (1, 257, 0.01, (1, 0)),
        (11, 13, 1.0, (0, 0)),
    ],
)
@pytest.mark.parametrize("kind", ["none", "bool keys", "float pairs"])
def test_stripes_in_frames_of_several_chunks_equal_the_reference(height, width, stripe, texts, kind):
    assert height * width > CHUNKS[1]
    generator = torch.Generator().manual_seed(6)
    layout = TokenLayout(3, height, width, *texts)
    plan = random_plan(generator, 3, stripe)
    plan.visibility[0, 1:] = STRIPED
    decay = torch.rand(3, 3, generator=generator, dtype=torch.float64)
    mask = random_mask(generator, kind, 1, 1, layout)
    for each in (None, decay):
        plan = FramePlan(plan.positions, plan.visibility, stripe, decay=each)
        assert_equals_the_reference(random_inputs(generator, layout, heads=1), plan, ROPE, layout, mask)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("scale", [None, 0.7])
def test_the_identity_plan_is_ordinary_attention(kind, scale):
    generator = torch.Generator().manual_seed(10)
    layout = TokenLayout(5, 3, 5, text_first=1, text_last=4)
    query, key, value = random_inputs(generator, layout, batch=2)
    mask = random_mask(generator, kind, 2, 2, layout)
    found = attend(query, key, value, PreparedPlan(FramePlan.identity(5), ROPE, 12), layout, mask, scale)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=2e-6)


def test_one_set_of_tables_serves_every_precision_and_grid():
    generator = torch.Generator().manual_seed(12)
    plan = random_plan(generator, 4)
    tables = PreparedPlan(plan, ROPE, 12)
    for dtype in (torch.bfloat16, torch.float32, torch.float64, torch.float32):
        for grid in ((2, 3), (1, 5)):
            layout = TokenLayout(4, *grid)
            query, key, value = random_inputs(generator, layout, dtype=dtype)
            found = attend(query, key, value, tables, layout)
            expected = attend_reference(query, key, value, plan, ROPE, layout)
            torch.testing.assert_close(found, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_tables_first_used_in_inference_mode_serve_training():
    generator = torch.Generator().manual_seed(13)
    layout = TokenLayout(5, 2, 2)
    query, key, value = random_inputs(generator, layout)
    with torch.inference_mode():
        tables = PreparedPlan(vrpr_plan(5, 2), ROPE, 12)
        found = attend(query, key, value, tables, layout)
    key.requires_grad_()
    again = attend(query, key, value, tables, layout)
    again.sum().backward()
    assert torch.equal(found, again.detach())
    assert key.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("queries", "keys", "found"),
    [(31, 31, "31 queries and 31 keys"), (33, 30, "33 queries and 30 keys"), (0, 33, "0 queries and 33 keys")],
)
@pytest.mark.parametrize("reference", [False, True])
def test_another_number_of_tokens_is_refused_with_both_numbers(queries, keys, found, reference):
    layout = TokenLayout(frames=5, height=2, width=3, text_first=1, text_last=2)
    plan = FramePlan.identity(5)
    query, key = torch.zeros(1, 1, queries, 12), torch.zeros(1, 1, keys, 12)
    # 1 + 5 * 6 + 2 tokens
    message = f"expected self-attention over 33 tokens (5 latent frames of 2 x 3, 3 of text), found {found}"
    tables = plan if reference else PreparedPlan(plan, ROPE, 12)
    run = functools.partial(attend_reference, rope=ROPE) if reference else attend
    with pytest.raises(LayoutError, match=f"^{re.escape(message)}$"):
        run(query, key, key, tables, layout=layout)


def test_a_plan_for_another_length_is_refused_with_both_lengths():
    tensor = torch.zeros(1, 1, 30, 12)
    with pytest.raises(LayoutError, match="the plan is for 6 latent frames, the video has 5"):
        attend(tensor, tensor, tensor, PreparedPlan(FramePlan.identity(6), ROPE, 12), TokenLayout(5, 2, 3))


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_gradients_are_those_of_the_reference(kind, pairing):
    generator = torch.Generator().manual_seed(15)
    layout = TokenLayout(5, 3, 3, text_first=2, text_last=1)
    rope = TemporalRope(channels=6, first=2, pairing=pairing)
    plan = FramePlan(vrpr_positions(5, 3) + 0.25, tsa_visibility(5, 2, THIN), THIN.stripe)
    leaves = [t.requires_grad_() for t in random_inputs(generator, layout, batch=2, dtype=torch.float64)]
    mask = random_mask(generator, kind, 2, 2, layout, torch.float64)
    upstream = torch.randn(leaves[0].shape, generator=generator, dtype=torch.float64)
    fast = attend(*leaves, PreparedPlan(plan, rope, 12), layout, mask)
    slow = attend_reference(*leaves, plan, rope, layout, mask)
    found = torch.autograd.grad((fast * upstream).sum(), leaves)
    expected = torch.autograd.grad((slow * upstream).sum(), leaves)
    for gradient, reference in zip(found, expected, strict=True):
        assert reference.abs().max() > 0.1
        torch.testing.assert_close(gradient, reference, atol=1e-9, rtol=1e-9)
