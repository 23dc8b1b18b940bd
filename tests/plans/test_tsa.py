"""TSA, and how policies of a profile become plans."""

import re

import pytest
import torch
from conftest import make_profile
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from freeloc import FramePlan, FreelocError, frame_plan, load_profile
from freeloc.errors import ProfileError, RegistryError
from freeloc.plans.frame_plan import relative_positions
from freeloc.plans.method import Method
from freeloc.plans.tsa import TsaSettings, derive_settings, tsa_plan, tsa_visibility
from freeloc.plans.vrpr import vrpr_positions
from freeloc.profile.planning import policy_plan, resolve_method

TIERS = TsaSettings(dense_frames=1, striped_frames=3, stripe=0.3, sink_frames=2)


@st.composite
def some_settings(draw):
    dense = draw(st.integers(0, 30))
    return TsaSettings(
        dense_frames=dense,
        striped_frames=dense + draw(st.integers(0, 30)),
        stripe=draw(st.floats(0.01, 1)),
        sink_frames=draw(st.integers(0, 5)),
    )


def reference_visibility(frames, trained, tiers):
    rows = []
    for i in range(frames):
        row = []
        for j in range(frames):
            if frames <= trained or j < tiers.sink_frames or abs(i - j) <= tiers.dense_frames:
                row.append(2)
            elif abs(i - j) <= tiers.striped_frames:
                row.append(1)
            else:
                row.append(0)
        rows.append(row)
    return rows


def same(plan, other):
    return (
        torch.equal(plan.positions, other.positions)
        and torch.equal(plan.visibility, other.visibility)
        and plan.stripe == other.stripe
    )


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 60), st.integers(1, 30), some_settings())
def test_visibility_is_the_double_loop(frames, trained, tiers):
    assert tsa_visibility(frames, trained, tiers).tolist() == reference_visibility(frames, trained, tiers)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 30))
def test_visibility_without_settings_uses_the_derived_ones(frames, trained):
    assert tsa_visibility(frames, trained).tolist() == reference_visibility(frames, trained, derive_settings(trained))


def test_every_frame_attends_densely_to_the_first_frames():
    tiers = TsaSettings(dense_frames=0, striped_frames=0, sink_frames=2)
    visibility = tsa_visibility(30, 5, tiers)
    assert (visibility[:, :2] == 2).all()
    assert visibility[10].nonzero().flatten().tolist() == [0, 1, 10]
    # The first frames themselves attend to no more frames than others do.
    assert visibility[0].nonzero().flatten().tolist() == [0, 1]


def test_without_a_sink_the_first_frame_is_like_any_other():
    tiers = TsaSettings(dense_frames=1, striped_frames=2, sink_frames=0)
    assert tsa_visibility(9, 3, tiers)[5].tolist() == [0, 0, 0, 1, 2, 2, 2, 1, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dense_frames": 25}, "dense_frames <= striped_frames, found 25 and 24"),
        ({"dense_frames": -1}, "greater than or equal to 0"),
        ({"sink_frames": -1}, "greater than or equal to 0"),
        ({"stripe": 0.0}, "greater than 0"),
        ({"stripe": 1.5}, "less than or equal to 1"),
        ({"dense": 1}, "Extra inputs are not permitted"),
    ],
)
def test_invalid_settings_are_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        TsaSettings(**({"dense_frames": 8, "striped_frames": 24} | change))


def test_derived_settings_at_the_published_length_are_the_published_ones():
    assert derive_settings(21) == TsaSettings(dense_frames=8, striped_frames=24, stripe=0.125, sink_frames=1)
    assert load_profile("wan2.1").tsa == derive_settings(21)


def test_derived_settings_are_in_proportion_to_the_trained_range():
    for trained in range(1, 101):
        tiers = derive_settings(trained)
        assert abs(20 * tiers.dense_frames - 8 * (trained - 1)) <= 10
        assert abs(20 * tiers.striped_frames - 24 * (trained - 1)) <= 10


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 90), st.integers(1, 30), st.none() | some_settings())
def test_positions_are_true_ones_clamped_to_the_trained_range(frames, trained, tiers):
    plan = tsa_plan(frames, trained, tiers)
    limit = trained - 1
    expected = [[max(-limit, min(limit, i - j)) for j in range(frames)] for i in range(frames)]
    assert plan.positions.tolist() == expected
    assert plan.stripe == (tiers or derive_settings(trained)).stripe


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(0, 39), st.none() | some_settings())
def test_up_to_the_trained_length_nothing_changes(trained, shorter, tiers):
    assert tsa_plan(max(1, trained - shorter), trained, tiers).is_identity


def test_one_frame_beyond_the_trained_length_is_sparse():
    plan = tsa_plan(22, 21)
    assert (plan.visibility != 2).any()
    assert plan.largest_position == 20


POLICY_OF_LAYER = {0: "vrpr", 1: "tsa", 2: "vrpr+tsa", 3: "none"}


@pytest.mark.parametrize("frames", [5, 9, 20])
def test_each_policy_is_its_positions_and_its_visibility(frames):
    profile = make_profile(tsa=TIERS.model_dump())
    dense, thin = FramePlan.identity(frames).visibility, tsa_visibility(frames, 4, TIERS)
    true = relative_positions(frames)
    expected = {
        "vrpr": (vrpr_positions(frames, 4), dense),
        "tsa": (true.clamp(-3, 3), thin),
        "vrpr+tsa": (vrpr_positions(frames, 4), thin),
        "none": (true, dense),
    }
    for layer, policy in POLICY_OF_LAYER.items():
        plan = frame_plan(profile, layer, frames)
        positions, visibility = expected[policy]
        assert torch.equal(plan.positions, positions), policy
        assert torch.equal(plan.visibility, visibility), policy
        assert same(policy_plan(profile, policy, frames), plan)
        assert plan.is_identity == (policy == "none")
        if "tsa" in policy:
            assert plan.stripe == 0.3
            assert plan.density(tokens_per_frame=20) < 1


@pytest.mark.parametrize("frames", [1, 3, 4])
@pytest.mark.parametrize("layer", POLICY_OF_LAYER)
def test_every_policy_is_the_identity_up_to_the_trained_length(layer, frames):
    plan = frame_plan(make_profile(), layer, frames)
    assert plan.is_identity
    assert plan.frames == frames


def test_a_profile_without_sparse_settings_gets_the_derived_ones():
    plan = frame_plan(make_profile(trained_latent_frames=6), 1, 30)
    assert same(plan, tsa_plan(30, 6, derive_settings(6)))


def test_a_profiles_own_settings_hold_for_their_length_only():
    own = {"near_frames": 1, "mid_frames": 2, "mid_group": 2, "far_group": 4}
    profile = make_profile(vrpr={"lengths": {"9": own}})
    # 1 exact; 2 // 2 + 1 - 1 // 2 = 2; then 3 // 4 - 0 + 2 = 2, and 4 // 4 + 2 = 3.
    assert frame_plan(profile, 0, 9).positions[-1].tolist() == [3, 3, 3, 3, 3, 2, 2, 1, 0]
    assert torch.equal(frame_plan(profile, 0, 10).positions, vrpr_positions(10, 4))
    assert not torch.equal(frame_plan(profile, 0, 9).positions, vrpr_positions(9, 4))


def test_a_profiles_flooring_is_used():
    profile = make_profile(trained_latent_frames=8, vrpr={"flooring": "position"})
    by_position = vrpr_positions(30, 8, flooring="position")
    assert torch.equal(frame_plan(profile, 0, 30).positions, by_position)
    assert not torch.equal(by_position, vrpr_positions(30, 8))


def test_the_shipped_profile_keeps_every_layer_in_the_trained_range():
    profile = load_profile("wan2.1")
    for layer in range(profile.model.layers):
        for frames in (22, 41, 81):
            plan = frame_plan(profile, layer, frames)
            assert plan.largest_position <= 20
            assert bool((plan.visibility == 0).any()) == ("tsa" in profile.policy(layer) and frames > 25)


def test_a_layer_that_the_model_lacks_is_refused():
    with pytest.raises(ProfileError, match="expected a layer from 0 to 3, found 4"):
        frame_plan(make_profile(), 4, 9)


def test_no_method_is_the_profiles_own_choice():
    profile = make_profile()
    name, method = resolve_method(None)
    assert name is None
    for layer, policy in POLICY_OF_LAYER.items():
        assert same(method(profile, layer, 9), policy_plan(profile, policy, 9))


@pytest.mark.parametrize("policy", ["vrpr", "tsa", "vrpr+tsa"])
def test_a_named_method_is_that_policy_on_every_layer(policy):
    profile = make_profile()
    name, method = resolve_method(policy)
    assert name == policy
    for layer in range(4):
        assert same(method(profile, layer, 9), policy_plan(profile, policy, 9))


def test_a_function_or_a_method_is_used_as_it_is():
    def my_plan(profile, layer, frames):
        return FramePlan.identity(frames)

    assert resolve_method(my_plan) == ("my_plan", my_plan)
    assert resolve_method(Method("mine", my_plan)) == ("mine", my_plan)


@pytest.mark.parametrize("method", ["vrpr + tsa", "VRPR", "", "nothing"])
def test_an_unknown_method_is_refused_with_the_known_ones(method):
    with pytest.raises(
        RegistryError,
        match=f"no method is named '{re.escape(method)}'.*known: balanced, clip, combined, direct, .*vrpr",
    ):
        resolve_method(method)


def test_a_similar_name_is_suggested():
    with pytest.raises(RegistryError, match="no method is named 'riflx'; did you mean riflex"):
        resolve_method("riflx")


@pytest.mark.parametrize("method", [3, ["vrpr"]])
def test_an_object_that_is_no_method_is_refused(method):
    message = f"expected method to be a name, a Method or a function, found {method!r}"
    with pytest.raises(FreelocError, match=f"^{re.escape(message)}$"):
        resolve_method(method)
