"""Balance, slope and the factor for the number of keys, in plain loops."""

import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_calls import random_plan

from freeloc.plans.baselines import clip
from freeloc.plans.frame_plan import DENSE, NONE, STRIPED, FramePlan
from freeloc.plans.logits import LogarithmOfKeys, balance_bias, multiplicity, slope_bias, visible_share
from freeloc.plans.tsa import tsa_plan
from freeloc.plans.vrpr import vrpr_plan


@pytest.mark.parametrize("tokens", [200, 1560])
@pytest.mark.parametrize("stripe", [0.125, 0.5, 1.0])
def test_the_share_of_a_striped_frame_is_that_of_many_tokens(tokens, stripe):
    one_striped_pair = FramePlan(torch.zeros(1, 1, dtype=torch.float64), torch.tensor([[STRIPED]]).byte(), stripe)
    share = visible_share(torch.tensor([[STRIPED]]), stripe).item()
    assert share == pytest.approx(one_striped_pair.density(tokens), rel=0.02)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.floats(0.05, 1))
def test_each_frame_counts_the_frames_that_it_sees_at_the_same_position(seed, frames, stripe):
    plan = random_plan(torch.Generator().manual_seed(seed), frames, stripe)
    positions = (plan.positions / 10).round()  # so that many are shared
    found = multiplicity(positions, plan.visibility, stripe)
    weight = {NONE: 0.0, STRIPED: stripe * (2 - stripe), DENSE: 1.0}
    for i in range(frames):
        for j in range(frames):
            count = sum(
                weight[plan.visibility[i, k].item()] for k in range(frames) if positions[i, k] == positions[i, j]
            )
            assert found[i, j] == pytest.approx(1 if plan.visibility[i, j] == NONE else max(1, count))


def test_equal_numbers_are_equal_bits():
    """Backends look for rows and neighbours that are equal."""
    plan = tsa_plan(81, 21)
    found = multiplicity(plan.positions, plan.visibility, plan.stripe)
    seen = plan.visibility != NONE
    assert len(found[seen].unique()) == len((found[seen] * 1e6).round().unique())
    near = seen & (plan.positions.abs() < 8)
    assert (balance_bias(plan.positions, plan.visibility, plan.stripe, 0.25)[near] == 0).all()


def test_fractions_that_differ_by_less_than_half_a_frame_count_as_shared():
    positions = torch.arange(9, dtype=torch.float64)[None] / 4
    found = multiplicity(positions, torch.full((1, 9), DENSE), 0.125)
    assert found.tolist() == [[2, 3, 3, 3, 3, 3, 3, 3, 2]]


@pytest.mark.parametrize("plan", [clip(40, 8), vrpr_plan(40, 8)], ids=["clip", "vrpr"])
def test_with_balance_one_a_position_weighs_as_much_as_in_training(plan):
    weight = balance_bias(plan.positions, plan.visibility, plan.stripe, 1.0).exp()
    for row, positions in zip(weight, plan.positions, strict=True):
        for position in positions.unique():
            assert row[positions == position].sum() == pytest.approx(1)


def test_a_slope_begins_beyond_the_near_frames():
    found = slope_bias(9, 0.25, near_frames=3)
    for i in range(9):
        for j in range(9):
            assert found[i, j] == -0.25 * max(0, abs(i - j) - 3)


@pytest.mark.parametrize("tokens", [1, 2, 35, 1560])
def test_the_factor_grows_with_the_logarithm_of_the_number_of_keys(tokens):
    full = LogarithmOfKeys(81, 21, strength=1.0)(tokens)
    assert full == pytest.approx(math.log(81 * tokens) / math.log(21 * tokens))
    half = LogarithmOfKeys(81, 21, strength=0.5, factor=1.1)(tokens)
    assert half == pytest.approx(1.1 * (1 + full) / 2)


@pytest.mark.parametrize(("visible", "trained", "tokens"), [(21, 21, 5), (7, 21, 5), (9, 1, 1)])
def test_no_more_keys_than_in_training_or_a_single_one_leave_the_factor(visible, trained, tokens):
    assert LogarithmOfKeys(visible, trained, strength=1.0, factor=1.2)(tokens) == 1.2


def test_rules_can_be_compared_and_pickled():
    rule = LogarithmOfKeys(81.0, 21, 0.5)
    assert pickle.loads(pickle.dumps(rule)) == rule != LogarithmOfKeys(81.0, 21, 0.6)
