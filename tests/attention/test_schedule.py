"""The blocks of a plan: every visible pair once, at the position that one rotation of each frame gives."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import slow_unless
from random_calls import ROPE, TOLERANCE, random_inputs, random_mask, random_plan

from freeloc import FramePlan, load_profile
from freeloc.adapter import TemporalRope
from freeloc.attention import TokenLayout, attend, attend_reference, prepared, schedule
from freeloc.attention.backends import frames, stripes
from freeloc.attention.prepared import PreparedPlan
from freeloc.attention.runs import even_runs
from freeloc.attention.schedule import make_schedule
from freeloc.plans.baselines import clip, position_interpolation, sliding_window, yarn
from freeloc.plans.frame_plan import DENSE, STRIPED
from freeloc.plans.tsa import TsaSettings, tsa_plan
from freeloc.plans.vrpr import vrpr_plan
from freeloc.profile.planning import policy_plan

VRPR = {flooring: vrpr_plan(40, 11, flooring=flooring) for flooring in ("distance", "position")}
TSA = tsa_plan(40, 11, TsaSettings(dense_frames=4, striped_frames=12))
PLANS = VRPR | {
    "tsa": TSA,
    "vrpr and tsa": FramePlan(VRPR["distance"].positions, TSA.visibility, TSA.stripe),
    "sliding window": sliding_window(40, 11),
    "interpolation": position_interpolation(40, 11),
    "other frequencies": yarn(40, 11),
    "clip": clip(40, 11),
    "identity": FramePlan.identity(40),
    "any": random_plan(torch.Generator().manual_seed(0), 40),
}
WAYS = ("as_bands", "as_blocks", "as_combs")


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """One way to divide the pairs, with blocks as small as can be."""
    monkeypatch.setattr(schedule, "SHORTEST_BAND", 2)
    monkeypatch.setattr(schedule, "ENOUGH", (2, 1))
    monkeypatch.setattr(schedule, "LEAST", (1, 1))
    monkeypatch.setattr(schedule, "COMB", 1)
    for name in WAYS:
        monkeypatch.setattr(schedule._Finder, name, getattr(schedule._Finder, request.param))
    return request.param


def pairs_of(block):
    """The pairs of frames that a block computes."""
    moved = range(0, block.copies * block.step, block.step)
    return [(query + by, key + by) for by in moved for query in block.queries for key in block.keys]


def assert_divided(plan, tokens_per_frame=6):
    seen = set()
    for kind, blocks in zip((DENSE, STRIPED), make_schedule(plan, tokens_per_frame), strict=True):
        found = Counter(pair for block in blocks for pair in pairs_of(block))
        assert found == Counter(map(tuple, (plan.visibility == kind).nonzero().tolist()))
        for block in blocks:
            assert block.is_first == seen.isdisjoint(block.all_queries)
            seen.update(block.all_queries)


@pytest.mark.parametrize("name", PLANS)
def test_every_visible_pair_is_in_one_block(name, way):
    assert_divided(PLANS[name])


@pytest.mark.parametrize("tokens", [1, 35, 1560])
@pytest.mark.parametrize("name", PLANS)
def test_every_visible_pair_is_in_one_block_of_the_usual_sizes(name, tokens):
    assert_divided(PLANS[name], tokens)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.sampled_from([1, 60]))
def test_any_plan_is_divided(seed, frames, tokens):
    assert_divided(random_plan(torch.Generator().manual_seed(seed), frames), tokens)


@pytest.mark.parametrize("name", PLANS)
def test_queries_and_keys_of_a_block_are_rotated_to_the_positions_of_the_plan(name, way):
    plan = PreparedPlan(PLANS[name], TemporalRope(channels=8), 24)
    placed, one = plan.blocks(6, torch.ones(1, dtype=torch.float64)), torch.ones(40, 40, 1, 4, dtype=torch.complex128)
    blocks = zip(make_schedule(plan.plan, 6), (placed.dense, placed.striped), strict=True)
    for block, own in [pair for kind in blocks for pair in zip(*kind, strict=True)]:
        of_queries = one if own.query_rotations is None else own.query_rotations[:, 0]
        of_keys = one[0] if own.key_rotations is None else own.key_rotations
        assert not own.is_bare or torch.equal(of_keys, placed.bare[own.keys])
        sizes = map(torch.arange, (block.copies, len(block.queries), len(block.keys)))
        copy, query, key = torch.cartesian_prod(*sizes).unbind(dim=1)
        moved = copy * block.step
        # A key that is rotated forward, and a query that is rotated back, are rotated by the difference.
        found = of_keys[key + moved, 0] * of_queries[copy, query, 0].conj()
        angles = plan._angles[plan._row[torch.tensor(block.queries)[query] + moved, block.keys.start + key + moved]]
        torch.testing.assert_close(found, torch.polar(torch.ones_like(angles), angles), atol=1e-6, rtol=0)


CALLS = [(name, kind) for name in PLANS for kind in ("none", "float keys", "bool pairs")]


@pytest.mark.parametrize(
    ("name", "kind"),
    [slow_unless(kind == "none" or name in ("distance", "any"), name, kind) for name, kind in CALLS],
)
def test_bands_and_blocks_equal_the_reference(name, kind, way):
    generator, layout = torch.Generator().manual_seed(1), TokenLayout(40, 2, 3, text_first=2, text_last=1)
    tensors = random_inputs(generator, layout, batch=2)
    mask = random_mask(generator, kind, 2, 2, layout)
    found = attend(*tensors, PreparedPlan(PLANS[name], ROPE, 12), layout, mask)
    expected = attend_reference(*tensors, PLANS[name], ROPE, layout, mask)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", ["distance", "vrpr and tsa"])
def test_each_head_may_have_frequencies_of_its_own(name, way):
    generator, layout = torch.Generator().manual_seed(6), TokenLayout(40, 2, 3, text_last=1)
    tensors = random_inputs(generator, layout)
    frequencies = torch.rand(2, len(ROPE.frequencies(12)), generator=generator, dtype=torch.float64)
    found = attend(*tensors, PreparedPlan(PLANS[name], ROPE, 12, frequencies), layout)
    expected = attend_reference(*tensors, PLANS[name], ROPE, layout, frequencies=frequencies)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_many_parts_are_as_exact_as_one(dtype, way, monkeypatch):
    """Each part is added in float32: the error is that of one rounding of the output."""
    layout, plan = TokenLayout(40, 2, 3), PLANS["distance"]
    tensors = random_inputs(torch.Generator().manual_seed(2), layout, dtype=dtype)
    found = attend(*tensors, PreparedPlan(plan, ROPE, 12), layout)
    expected = attend_reference(*(tensor.double() for tensor in tensors), plan, ROPE, layout)
    assert (found - expected).abs().max() < TOLERANCE[dtype] / 2


@pytest.mark.parametrize("most", [1, 20])
@pytest.mark.parametrize("name", ["distance", "vrpr and tsa", "sliding window"])
def test_blocks_of_many_queries_are_computed_in_parts(name, most, way, monkeypatch):
    for module in (frames, stripes):
        monkeypatch.setattr(module, "MOST_QUERIES", most)
    layout = TokenLayout(40, 2, 3, text_last=1)
    tensors = random_inputs(torch.Generator().manual_seed(5), layout)
    found = attend(*tensors, PreparedPlan(PLANS[name], ROPE, 12), layout)
    torch.testing.assert_close(found, attend_reference(*tensors, PLANS[name], ROPE, layout), atol=2e-5, rtol=2e-5)


def test_bias_is_the_same_for_all_queries_of_a_block(way):
    generator, layout = torch.Generator().manual_seed(3), TokenLayout(30, 2, 2, text_last=3)
    plan = random_plan(generator, 30, changes=["bias"])
    tensors = random_inputs(generator, layout)
    found = attend(*tensors, PreparedPlan(plan, ROPE, 12), layout)
    torch.testing.assert_close(found, attend_reference(*tensors, plan, ROPE, layout), atol=2e-5, rtol=2e-5)


def test_a_sliding_window_is_a_band_and_two_ends():
    dense, striped = make_schedule(sliding_window(81, 21), tokens_per_frame=60)
    assert [(len(block.queries), len(block.keys), block.copies) for block in dense] == [
        (1, 21, 61),
        (10, 21, 1),
        (10, 21, 1),
    ]
    assert not striped


def test_queries_of_one_group_share_a_block():
    """floor((i - j) / 8) goes the same way for query frames that are 8 apart."""
    dense, _ = make_schedule(vrpr_plan(81, 21), tokens_per_frame=240)
    steps = {block: set(torch.tensor(block.queries).diff().tolist()) for block in dense if len(block.queries) > 4}
    together = [block for block, apart in steps.items() if apart == {8}]
    assert sum(len(block.queries) * len(block.keys) for block in together) > 1000
    assert len(dense) < 250


def test_the_blocks_of_a_plan_are_found_once(monkeypatch):
    plan, layout = PreparedPlan(TSA, ROPE, 12), TokenLayout(40, 2, 3)
    tensors = random_inputs(torch.Generator().manual_seed(4), layout)
    first = attend(*tensors, plan, layout)
    monkeypatch.setattr(prepared, "make_schedule", lambda *call: pytest.fail("found again"))
    assert torch.equal(attend(*tensors, plan, layout), first)


def test_frames_of_one_group_of_vrpr_are_a_comb_and_short_groups_are_joined():
    """Frames of 60 tokens: groups of 8 key frames are for many query frames each; those of 2 are computed together."""
    plan = policy_plan(load_profile("wan2.1"), "vrpr", frames=81)
    dense, _ = make_schedule(plan, tokens_per_frame=60)
    combs = [block for block in dense if len(block.queries) > 1 and block.copies > 1]
    assert {(len(block.keys), block.copies, block.step) for block in combs} == {(8, 8, 1)}
    assert all(set(torch.tensor(block.queries).diff().tolist()) == {8} for block in combs)
    joined = [block for block in dense if block.step > 1]
    assert [(len(block.keys), block.copies, block.step) for block in joined] == [(5, 31, 2)] * 4
    assert len(dense) < 80


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.integers(1, 3))
def test_runs_rise_evenly_and_cover_everything_once(values, lag):
    runs = even_runs(values, lag)
    assert sorted(index for run in runs for index in run) == list(range(len(values)))
    for run in runs:
        assert len({values[at + lag] - values[at] for at in run[:-lag]}) <= 1
