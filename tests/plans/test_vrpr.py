"""VRPR: properties for every length, trained length and flooring, and the published numbers computed by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from freeloc import FreelocError, frame_plan, load_profile
from freeloc.plans.frame_plan import FramePlan, relative_positions
from freeloc.plans.vrpr import VrprSettings, derive_settings, vrpr_plan, vrpr_positions

FLOORINGS = pytest.mark.parametrize("flooring", ["distance", "position"])
FRAMES = st.one_of(st.integers(1, 150), st.sampled_from([161, 200, 321, 500, 1000]))
TRAINED = st.integers(1, 60)


@st.composite
def some_settings(draw):
    near = draw(st.integers(0, 70))
    mid = near + draw(st.integers(0, 40))
    mid_group = draw(st.integers(1, 9))
    return VrprSettings(
        near_frames=near, mid_frames=mid, mid_group=mid_group, far_group=mid_group + draw(st.integers(0, 20))
    )


def reference_tiers(distance, near, mid, mid_group, far_group):
    """The formula in the docstring of vrpr_positions, in Python ints, without the limit."""
    if distance <= near:
        return distance
    if distance <= mid:
        return distance // mid_group + near - near // mid_group
    end_of_mid = mid // mid_group + near - near // mid_group
    return distance // far_group - mid // far_group + end_of_mid


def reference_positions(frames, trained, near, mid, mid_group, far_group):
    rows = []
    for i in range(frames):
        row = []
        for j in range(frames):
            size = min(reference_tiers(abs(i - j), near, mid, mid_group, far_group), trained - 1)
            row.append(size if i > j else -size)
        rows.append(row)
    return rows


def numbers(tiers):
    return tiers.near_frames, tiers.mid_frames, tiers.mid_group, tiers.far_group


def with_near(tiers, near):
    width = tiers.mid_frames - tiers.near_frames
    return near, near + width, tiers.mid_group, tiers.far_group


@FLOORINGS
@settings(max_examples=60, deadline=None)
@given(frames=FRAMES, trained=TRAINED, tiers=st.none() | some_settings())
def test_positions_stay_in_the_trained_range_and_are_antisymmetric(flooring, frames, trained, tiers):
    positions = vrpr_positions(frames, trained, tiers, flooring)
    assert positions.shape == (frames, frames)
    assert positions.dtype == torch.float64
    assert positions.abs().max() <= trained - 1
    assert torch.equal(positions, -positions.T)
    assert torch.equal(positions, positions.round())


@FLOORINGS
@settings(max_examples=60, deadline=None)
@given(frames=FRAMES, trained=TRAINED, tiers=st.none() | some_settings())
def test_positions_are_true_inside_the_near_window(flooring, frames, trained, tiers):
    positions, true = vrpr_positions(frames, trained, tiers, flooring), relative_positions(frames)
    near = (tiers or derive_settings(frames, trained)).near_frames
    inside = true.abs() <= min(near, trained - 1)
    assert torch.equal(positions[inside], true[inside])


@FLOORINGS
@settings(max_examples=40, deadline=None)
@given(trained=TRAINED, shorter=st.integers(0, 59), tiers=st.none() | some_settings())
def test_up_to_the_trained_length_nothing_changes(flooring, trained, shorter, tiers):
    frames = max(1, trained - shorter)
    assert vrpr_plan(frames, trained, tiers, flooring).is_identity


@pytest.mark.parametrize("trained", [2, 3, 21, 22])
def test_one_frame_beyond_the_trained_length_is_corrected(trained):
    plan = vrpr_plan(trained + 1, trained)
    assert not plan.is_identity
    assert plan.largest_position == trained - 1


@settings(max_examples=150, deadline=None)
@given(frames=FRAMES, trained=TRAINED)
def test_derived_positions_grow_with_distance_without_a_jump(frames, trained):
    by_distance = vrpr_positions(frames, trained)[-1].flip(0)
    steps = by_distance.diff()
    assert by_distance[0] == 0
    assert set(steps.tolist()) <= {0.0, 1.0}


@settings(max_examples=60, deadline=None)
@given(trained=TRAINED, longer=st.integers(1, 150))
def test_derived_settings_stay_in_the_trained_range_without_the_limit(trained, longer):
    frames = trained + longer
    tiers = numbers(derive_settings(frames, trained))
    assert max(reference_tiers(distance, *tiers) for distance in range(frames)) <= trained - 1


@settings(max_examples=60, deadline=None)
@given(frames=FRAMES, trained=TRAINED, tiers=st.none() | some_settings())
def test_the_floorings_differ_by_at_most_one(frames, trained, tiers):
    by_distance, by_position = (vrpr_positions(frames, trained, tiers, how) for how in ("distance", "position"))
    assert (by_distance - by_position).abs().max() <= 1


def test_flooring_by_position_floors_each_frame_by_itself():
    tiers = VrprSettings(near_frames=2, mid_frames=5, mid_group=2, far_group=4)
    positions = vrpr_positions(12, 9, tiers, "position")
    # Distance 3 is in the mid tier: 5 // 2 - 2 // 2 = 1 and 4 // 2 - 1 // 2 = 2, each continued from 2 - 2 // 2 = 1.
    assert (positions[5, 2], positions[4, 1]) == (2, 3)
    # Distance 6 is in the far tier: 10 // 4 - 4 // 4 = 1 and 9 // 4 - 3 // 4 = 2, from 5 // 2 + 1 - 5 // 4 = 2.
    assert (positions[10, 4], positions[9, 3]) == (3, 4)
    assert (positions[4, 10], positions[3, 9]) == (-3, -4)


@settings(max_examples=60, deadline=None)
@given(longer=st.integers(1, 30), trained=st.integers(1, 30), tiers=some_settings())
def test_flooring_by_position_is_the_formula_in_python_ints(longer, trained, tiers):
    near, mid, mid_group, far_group = numbers(tiers)
    frames = trained + longer
    end_of_near = near - near // mid_group
    end_of_mid = mid // mid_group + end_of_near
    positions = vrpr_positions(frames, trained, tiers, "position").tolist()
    for i in range(frames):
        for j in range(i + 1):
            expected = i - j
            if i - j > mid:
                expected = i // far_group - j // far_group - mid // far_group + end_of_mid
            elif i - j > near:
                expected = i // mid_group - j // mid_group + end_of_near
            assert positions[i][j] == min(expected, trained - 1)


@settings(max_examples=60, deadline=None)
@given(frames=st.integers(1, 40), trained=TRAINED, tiers=some_settings())
def test_positions_are_the_formula_in_python_ints(frames, trained, tiers):
    expected = reference_positions(frames, trained, *numbers(tiers))
    if frames <= trained:
        expected = [[i - j for j in range(frames)] for i in range(frames)]
    assert vrpr_positions(frames, trained, tiers).tolist() == expected


@settings(max_examples=150, deadline=None)
@given(frames=st.integers(2, 1000), trained=TRAINED)
def test_the_derived_near_window_is_the_widest_that_fits(frames, trained):
    limit, farthest = trained - 1, frames - 1
    tiers = derive_settings(frames, trained)
    if frames <= trained:
        assert tiers.near_frames >= farthest
        return
    assert tiers.mid_frames - tiers.near_frames == round(0.8 * limit**2 / farthest)
    assert tiers.mid_group == 2
    assert reference_tiers(farthest, *numbers(tiers)) <= limit
    for wider in range(tiers.near_frames + 1, limit + 2):
        assert reference_tiers(farthest, *with_near(tiers, wider)) > limit


@settings(max_examples=150, deadline=None)
@given(frames=st.integers(2, 1000), trained=TRAINED)
def test_the_far_group_doubles_only_where_the_near_window_would_be_narrower_than_two_fifths(frames, trained):
    limit, farthest = trained - 1, frames - 1
    tiers = derive_settings(frames, trained)
    assert 5 * tiers.near_frames >= 2 * limit
    doublings = [8 * 2**times for times in range(20)]
    assert tiers.far_group in doublings
    if tiers.far_group > 8:
        near, mid, mid_group, _ = numbers(tiers)
        width = mid - near
        for narrower in range(limit + 1):
            if 5 * narrower >= 2 * limit:
                half = (narrower, narrower + width, mid_group, tiers.far_group // 2)
                assert reference_tiers(farthest, *half) > limit


def test_every_length_up_to_1000_has_settings_for_a_model_trained_on_21_frames():
    for frames in range(1, 1001):
        near, mid, mid_group, far_group = numbers(derive_settings(frames, 21))
        assert near >= 8
        if frames > 21:
            assert 15 <= reference_tiers(frames - 1, near, mid, mid_group, far_group) <= 20, frames


@pytest.mark.parametrize("trained", [1, 2, 3, 5, 60])
def test_every_trained_length_has_settings_for_long_videos(trained):
    for frames in range(1, 1001, 37):
        near, mid, mid_group, far_group = numbers(derive_settings(frames, trained))
        if frames > trained:
            assert reference_tiers(frames - 1, near, mid, mid_group, far_group) <= trained - 1


@pytest.mark.parametrize("frames", [22, 41, 61, 81, 161, 333, pytest.param(1000, marks=pytest.mark.slow)])
def test_whole_plans_of_many_lengths(frames):
    plan = vrpr_plan(frames, trained_frames=21)
    assert isinstance(plan, FramePlan)
    assert bool((plan.visibility == 2).all())
    assert 15 <= plan.largest_position <= 20
    assert plan.positions[-1].tolist() == [
        reference_tiers(frames - 1 - j, *numbers(derive_settings(frames, 21))) for j in range(frames)
    ]


@pytest.mark.parametrize(
    ("frames", "tiers", "some_positions"),
    [
        # 12 exact; 13 // 2 + 12 - 6; 20 // 2 + 6 ends the mid tier at 16; 24 // 8 - 20 // 8 + 16; 40 // 8 - 2 + 16.
        (41, (12, 20, 2, 8), {12: 12, 13: 12, 14: 13, 20: 16, 21: 16, 23: 16, 24: 17, 32: 18, 39: 18, 40: 19}),
        # 14 // 2 + 10 - 5 ends the mid tier at 12; 72 // 8 - 14 // 8 + 12 = 20; 80 would be 21 and is clamped to 20.
        (81, (10, 14, 2, 8), {10: 10, 11: 10, 12: 11, 14: 12, 15: 12, 16: 13, 24: 14, 71: 19, 72: 20, 79: 20, 80: 20}),
    ],
)
def test_the_shipped_profile_has_the_published_numbers(frames, tiers, some_positions):
    profile = load_profile("wan2.1")
    assert numbers(profile.vrpr.lengths[str(frames)]) == tiers
    assert profile.vrpr.flooring == "distance"
    positions = frame_plan(profile, layer=2, frames=frames).positions
    assert {distance: positions[distance, 0].item() for distance in some_positions} == some_positions
    assert positions.tolist() == reference_positions(frames, 21, *tiers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"near_frames": 15}, "0 <= near_frames <= mid_frames, found 15 and 14"),
        ({"near_frames": -1}, "0 <= near_frames <= mid_frames, found -1 and 14"),
        ({"mid_group": 9}, "mid_group <= far_group, found 9 and 8"),
        ({"mid_group": 0}, "greater than 0"),
        ({"far_group": 8.0}, "valid integer"),
        ({"far": 8}, "Extra inputs are not permitted"),
    ],
)
def test_settings_out_of_order_are_refused_with_both_values(change, message):
    with pytest.raises(ValidationError, match=message):
        VrprSettings(**({"near_frames": 10, "mid_frames": 14, "mid_group": 2, "far_group": 8} | change))


def test_a_video_without_frames_is_refused():
    with pytest.raises(FreelocError, match="expected at least 1 latent frame, found 0"):
        vrpr_plan(0, trained_frames=21)
