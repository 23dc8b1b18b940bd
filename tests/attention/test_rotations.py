"""Rotations of queries and keys: each pair at its position, frequencies of each head, precision, refusals."""

import math

import pytest
import torch
from random_calls import (
    PAIRINGS,
    ROPE,
    assert_equals_the_reference,
    random_inputs,
    random_plan,
)

from freeloc import FramePlan
from freeloc.adapter import TemporalRope
from freeloc.attention import TokenLayout, attend, attend_reference
from freeloc.attention.prepared import PreparedPlan
from freeloc.attention.rotation import rotate
from freeloc.errors import AdapterError
from freeloc.plans.frame_plan import relative_positions
from freeloc.plans.tsa import TsaSettings, tsa_plan


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rotated_keys_of_half_precision_are_rounded_once(dtype, pairing):
    generator = torch.Generator().manual_seed(18)
    tables = PreparedPlan(random_plan(generator, 9), TemporalRope(12, pairing=pairing), 12)
    keys = torch.randn(1, 2, 9, 50, 12, generator=generator).to(dtype)
    frames = torch.arange(9)
    rotations = tables.rotations(4, frames, keys)
    assert rotations.dtype == torch.complex64
    found = rotate(keys, rotations, tables.span, pairing)
    exact = rotate(keys.double(), tables.rotations(4, frames, keys.double()), tables.span, pairing)
    # Where float32 and float64 fall on different sides of a tie, one rounding differs.
    assert (found != exact.to(dtype)).double().mean() < 0.01


def rotated_to(x, position, rope):
    """x rotated by RoPE to a position, one pair of channels at a time."""
    first, stop = rope.span(x.shape[-1])
    pairs, block = rope.channels // 2, (stop - first) // 2
    out = x.clone()
    for pair in range(pairs):
        a, b = (2 * pair, 2 * pair + 1) if rope.pairing == "(pair two)" else (pair, block + pair)
        angle = position * rope.theta ** (-pair / pairs)
        one, other = x[..., first + a], x[..., first + b]
        out[..., first + a] = one * math.cos(angle) - other * math.sin(angle)
        out[..., first + b] = one * math.sin(angle) + other * math.cos(angle)
    return out


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize(("channels", "within"), [(4, None), (10, None), (4, 8), (2, 10)])
def test_each_pair_is_at_the_position_that_the_plan_gives(pairing, channels, within):
    """From un-rotated queries and keys and an independent rotation: the reference shares `rotate` with the engine."""
    generator = torch.Generator().manual_seed(7)
    frames, n, head_dim = 5, 6, 12
    layout = TokenLayout(frames, 2, 3)
    rope = TemporalRope(channels, first=2, pairing=pairing, theta=100.0, within=within)
    plan = random_plan(generator, frames)
    query, key, value = random_inputs(generator, layout, batch=2, head_dim=head_dim, dtype=torch.float64)
    of_frame = [slice(frame * n, (frame + 1) * n) for frame in range(frames)]
    logits = torch.empty(2, 2, layout.tokens, layout.tokens, dtype=torch.float64)
    for i in range(frames):
        for j in range(frames):
            placed = rotated_to(query[:, :, of_frame[i]], plan.positions[i, j].item(), rope)
            logits[:, :, of_frame[i], of_frame[j]] = placed @ key[:, :, of_frame[j]].mT
    hidden = ~plan.token_mask(n)
    expected = (logits * head_dim**-0.5).masked_fill(hidden, -math.inf).softmax(-1) @ value
    rotated = [
        torch.cat([rotated_to(tensor[:, :, of_frame[frame]], frame, rope) for frame in range(frames)], dim=2)
        for tensor in (query, key)
    ]
    for found in (
        attend(*rotated, value, PreparedPlan(plan, rope, head_dim), layout),
        attend_reference(*rotated, value, plan, rope, layout),
    ):
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_each_head_is_rotated_by_its_own_frequencies(pairing):
    generator = torch.Generator().manual_seed(11)
    layout, rope = TokenLayout(6, 2, 3, text_last=2), TemporalRope(12, pairing=pairing)
    tensors = random_inputs(generator, layout, batch=2, heads=3)
    frequencies = torch.rand(3, 6, generator=generator, dtype=torch.float64) * (torch.arange(6) % 3 == 0)
    plan = random_plan(generator, 6)
    found = attend(*tensors, PreparedPlan(plan, rope, 12, frequencies), layout)
    expected = attend_reference(*tensors, plan, rope, layout, frequencies=frequencies)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)
    for head in range(3):
        alone = [tensor[:, head : head + 1] for tensor in tensors]
        by_itself = attend(*alone, PreparedPlan(plan, rope, 12, frequencies[head]), layout)
        torch.testing.assert_close(found[:, head : head + 1], by_itself, atol=2e-5, rtol=2e-5)


def test_frames_whose_visible_pairs_keep_true_positions_are_not_rotated():
    plan = tsa_plan(12, 5, TsaSettings(dense_frames=2, striped_frames=4, sink_frames=1))
    # Only the sink, clamped to 4 frames away, is rotated; hidden pairs are clamped too.
    assert PreparedPlan(plan, ROPE, 12).rotated == [frame > 4 for frame in range(12)]


@pytest.mark.parametrize("rope", [TemporalRope(5), TemporalRope(0), TemporalRope(10, first=4)])
def test_a_rope_that_does_not_fit_the_head_is_refused(rope):
    with pytest.raises(AdapterError, match=f"even number of temporal channels within 12, found {rope.channels}"):
        PreparedPlan(FramePlan.identity(2), rope, head_dim=12)


@pytest.mark.parametrize("within", [2, 7, 14])
def test_a_block_that_does_not_fit_the_head_is_refused(within):
    with pytest.raises(AdapterError, match=f"expected 4 to 12 paired channels, an even number, found {within}"):
        PreparedPlan(FramePlan.identity(2), TemporalRope(4, within=within), head_dim=12)


def test_a_position_offset_shared_by_a_whole_row_changes_the_result():
    """Positions are absolute for each pair: a plan that shifts all positions of a query is another plan."""
    generator = torch.Generator().manual_seed(16)
    layout = TokenLayout(4, 1, 3)
    tensors = random_inputs(generator, layout)
    dense = FramePlan.identity(4).visibility
    true, shifted = (FramePlan(relative_positions(4) + offset, dense) for offset in (0.0, 1.5))
    outputs = [attend(*tensors, PreparedPlan(plan, ROPE, 12), layout) for plan in (true, shifted)]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-2
    assert_equals_the_reference(tensors, shifted, ROPE, layout)


def test_frequencies_are_powers_of_the_base():
    found = TemporalRope(channels=8, theta=10_000.0).frequencies(24)
    torch.testing.assert_close(found, torch.tensor([1.0, 0.1, 0.01, 0.001], dtype=torch.float64))
