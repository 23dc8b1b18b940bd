"""The segments that the Triton kernel walks: every visible pair of frames once, at the angle that the plan says."""

from dataclasses import replace

import pytest
import torch
from random_calls import CHANGES, random_plan

import freeloc
from freeloc import FramePlan
from freeloc.adapter import TemporalRope
from freeloc.attention.backends.triton.segments import (
    DENSE_FRAMES,
    EVERYTHING,
    STRIPED_FRAMES,
    TEXT,
    Segment,
    segments_of,
)
from freeloc.attention.prepared import PreparedPlan
from freeloc.plans.baselines import riflex, sliding_window, ultravico, yarn
from freeloc.plans.frame_plan import DENSE, NONE, STRIPED, relative_positions
from freeloc.plans.vrpr import vrpr_plan
from freeloc.profile.planning import policy_plan

ROPE = TemporalRope(channels=44)
WAN = freeloc.load_profile("wan2.1")
VISIBILITY = {DENSE_FRAMES: DENSE, STRIPED_FRAMES: STRIPED}


def of_pairs(segments, frames):
    """What a list of segments does with each pair of frames: visibility, angle of the logits, factor and bias."""
    visibility = torch.zeros(frames, frames, dtype=torch.uint8)
    angles = torch.zeros(frames, frames, *segments.angles.shape[1:], dtype=torch.float64)
    factors = torch.ones(frames, frames, dtype=torch.float64)
    biases = torch.zeros(frames, frames, dtype=torch.float64)
    for frame, own in enumerate(segments.of_queries[1:]):
        for segment in own:
            if segment in TEXT:
                continue
            keys = slice(segment.first, segment.first + segment.frames) if segment.frames else slice(None)
            assert not visibility[frame, keys].any()
            visibility[frame, keys] = VISIBILITY.get(segment.kind, DENSE)
            if segment.rotation >= 0:
                angles[frame, keys] += segments.angles[segment.rotation]
            if segment.rotated_keys:
                angles[frame, keys] -= segments.copy_angles[keys]
            factors[frame, keys], biases[frame, keys] = segment.factor, segment.bias
    return visibility, angles, factors, biases


def of_the_plan(plan, frequencies):
    wide = (..., *[None] * frequencies.ndim)
    new = plan.frequencies(frequencies) if plan.frequencies else frequencies
    return relative_positions(plan.frames)[wide] * frequencies - plan.positions[wide] * new


METHODS = ("vrpr", "tsa", "vrpr+tsa")
PLANS = {
    **{
        f"{name} of {frames}": policy_plan(WAN, name, frames)
        for name in ("vrpr", "tsa", "vrpr+tsa")
        for frames in (41, 81)
    },
    "sliding window": sliding_window(81, 21),
    "riflex": riflex(81, 21),
    "yarn": yarn(81, 21),
    "ultravico": ultravico(81, 21),
    "bias by groups": replace(vrpr_plan(81, 21), bias=-0.3 * (vrpr_plan(81, 21).positions.abs() - 10).clamp(min=0)),
    "no correction": FramePlan.identity(5),
    "shift": FramePlan(relative_positions(6) + 20, torch.full((6, 6), DENSE, dtype=torch.uint8)),
    "random": random_plan(torch.Generator().manual_seed(0), 9),
    "all at random": random_plan(torch.Generator().manual_seed(1), 9, changes=CHANGES),
}


@pytest.mark.parametrize(
    ("name", "of_each_head"),
    [(name, each) for each in (False, True) for name, plan in PLANS.items() if not (each and plan.frequencies)],
)
def test_every_visible_pair_once_at_its_angle(name, of_each_head):
    plan, frequencies = PLANS[name], ROPE.frequencies(128)
    if of_each_head:
        frequencies = frequencies * torch.tensor([[1.0], [0.3]], dtype=torch.float64)
    prepared = PreparedPlan(plan, ROPE, 128, frequencies)
    visibility, angles, factors, biases = of_pairs(segments_of(prepared, tokens_per_frame=1560), plan.frames)
    assert torch.equal(visibility, plan.visibility)
    visible = plan.visibility != NONE
    torch.testing.assert_close(angles[visible], of_the_plan(plan, frequencies)[visible], atol=1e-10, rtol=0)
    if plan.decay is not None:
        assert torch.equal(factors[visible], plan.decay[visible])
    wanted = torch.zeros_like(biases) if plan.bias is None else plan.bias
    assert torch.equal(biases[visible], wanted[visible])


@pytest.mark.parametrize(
    ("name", "most", "copied"),
    [
        ("vrpr of 81", 16, True),  # 54 without the copy of the keys
        ("vrpr+tsa of 81", 14, True),
        ("tsa of 81", 8, True),
        ("yarn", 3, True),
        ("sliding window", 3, False),
        ("bias by groups", 16, True),  # a bias that is one for a group of VRPR costs no segments
        ("no correction", 1, False),
        ("shift", 3, False),
    ],
)
def test_there_are_few_segments(name, most, copied):
    plan = PLANS[name]
    segments = segments_of(PreparedPlan(plan, ROPE, 128), tokens_per_frame=1560)
    assert sum(map(len, segments.of_queries[1:])) / plan.frames <= most
    assert (segments.copy_angles is not None) == copied


def blocks_of(plan, tokens, queries, keys):
    """What the kernel computes in tiles of so many tokens: the share of all pairs, and blocks for each rotation."""
    prepared = PreparedPlan(plan, ROPE, 128)
    blocks = rotations = 0
    for segment in (segment for own in segments_of(prepared, tokens).of_queries[1:] for segment in own):
        for first in range(0, tokens, queries):
            last, reach = min(first + queries, tokens) - 1, prepared.stripe_tokens(tokens)
            striped = min(tokens, last + reach) - max(0, first - reach + 1)
            dense = segment.kind == DENSE_FRAMES
            blocks += -(-segment.frames * tokens // keys) if dense else segment.frames * -(-striped // keys)
            rotations += segment.rotation >= 0
    return blocks * queries * keys / (plan.frames * tokens) ** 2, blocks / max(rotations, 1)


@pytest.mark.parametrize(
    ("name", "tokens", "tile", "share", "blocks"),
    [
        ("vrpr of 81", 1560, (128, 64), 1.07, 160),
        ("vrpr of 81", 1560, (64, 64), 1.03, 160),
        ("tsa of 81", 1560, (128, 64), 0.33, 280),
        ("vrpr+tsa of 81", 1560, (128, 64), 0.33, 70),
        ("vrpr+tsa of 81", 1560, (64, 64), 0.31, 70),
        ("vrpr+tsa of 81", 60, (64, 64), 0.58, 4.7),
    ],
)
def test_the_shares_that_the_page_about_performance_gives(name, tokens, tile, share, blocks):
    found = blocks_of(PLANS[name], tokens, *tile)
    assert round(found[0], 2) == share
    assert found[1] == pytest.approx(blocks, rel=0.1)


def test_queries_start_as_they_are():
    """The kernel rotates queries from the second segment on."""
    for plan in PLANS.values():
        for own in segments_of(PreparedPlan(plan, ROPE, 128), 1560).of_queries:
            assert own[0].rotation == -1


def test_text_sees_everything_and_a_frame_that_sees_all_as_it_is_needs_no_list():
    plan = vrpr_plan(8, trained_frames=4)
    segments = segments_of(PreparedPlan(plan, ROPE, 128), 10)
    assert segments.of_queries[0] == [Segment(EVERYTHING)]
    assert segments_of(PreparedPlan(FramePlan.identity(3), ROPE, 128), 10).of_queries == [[Segment(EVERYTHING)]] * 4


def test_stripes_as_wide_as_a_frame_are_dense():
    plan = FramePlan(relative_positions(3), torch.full((3, 3), STRIPED, dtype=torch.uint8), stripe=0.3)
    prepared = PreparedPlan(plan, ROPE, 128)
    assert segments_of(prepared, tokens_per_frame=1).of_queries[1] == [Segment(EVERYTHING)]
    assert segments_of(prepared, tokens_per_frame=2).of_queries[1] == [*TEXT, Segment(STRIPED_FRAMES, 0, 3)]
