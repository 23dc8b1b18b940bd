"""Smooth compression of distances: exact when near, monotone, inside the trained range, in plain loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freeloc.plans.frame_plan import relative_positions
from freeloc.plans.smooth import smooth_positions

CURVES = ("linear", "logarithmic")


@pytest.mark.parametrize("curve", CURVES)
@settings(max_examples=80, deadline=None)
@given(frames=st.integers(1, 120), trained=st.integers(1, 30), near=st.none() | st.integers(0, 40))
def test_positions_are_exact_when_near_then_grow_to_the_largest_trained_one(curve, frames, trained, near):
    found, true = smooth_positions(frames, trained, near, curve), relative_positions(frames)
    limit = trained - 1
    assert torch.equal(found, -found.T)
    assert found.abs().max() <= limit or frames == 1
    if frames <= trained:
        assert torch.equal(found, true)
        return
    exact = true.abs() <= min(limit // 2 if near is None else near, limit)
    assert torch.equal(found[exact], true[exact])
    steps = found[-1].flip(0).diff()  # from distance 0 on
    assert (steps >= -1e-12).all()
    assert (steps <= 1 + 1e-9).all()
    assert found[-1, 0] == pytest.approx(limit)  # the farthest pair uses the whole range


def test_the_linear_curve_has_one_slope():
    found = smooth_positions(81, 21, near_frames=10, curve="linear")[80].flip(0)
    assert found[10:].diff().tolist() == pytest.approx([10 / 70] * 70)


def test_the_logarithmic_curve_leaves_the_exact_part_at_slope_one_and_bends():
    found = smooth_positions(1001, 21, near_frames=10, curve="logarithmic")[1000].flip(0)
    steps = found[10:].diff()
    assert (steps.diff() < 0).all()
    # n + s log(1 + (a - n) / s): s from the end, and the value in the middle from s.
    scale = next(s / 1000 for s in range(1, 20_000) if s / 1000 * math.log1p(990 / (s / 1000)) >= 10)
    assert found[505].item() == pytest.approx(10 + scale * math.log1p(495 / scale), abs=0.01)


@pytest.mark.parametrize("curve", CURVES)
def test_an_exact_part_as_long_as_the_trained_range_leaves_clipped_positions(curve):
    assert torch.equal(smooth_positions(9, 4, 7, curve), relative_positions(9).clamp(-3, 3))
