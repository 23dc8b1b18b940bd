"""The method combined: each part alone, parts together, and what stays as it is; balanced is a choice of it."""

import math
import re
from pathlib import Path

import pytest
import torch
from conftest import make_profile
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from freeloc.plans import baselines
from freeloc.plans.combined import BALANCED, COMBINED, combined_plan
from freeloc.plans.combined_settings import (
    BalancedSettings,
    ClippedPositions,
    CombinedSettings,
    Slope,
    SmoothPositions,
    Temperature,
    Tiers,
    TruePositions,
    VrprPositions,
    Window,
    combined_label,
)
from freeloc.plans.frame_plan import DENSE, NONE, STRIPED, relative_positions
from freeloc.plans.logits import LogarithmOfKeys, balance_bias, slope_bias
from freeloc.plans.smooth import smooth_positions
from freeloc.plans.tsa import TsaSettings, tsa_plan, tsa_visibility
from freeloc.plans.vrpr import VrprPart, VrprSettings, vrpr_plan, vrpr_positions
from freeloc.plans.windows import LvsaSettings, window_visibility
from freeloc.profile.planning import policy_plan

FRAMES, TRAINED = 81, 21
OWN = VrprSettings(near_frames=3, mid_frames=5, mid_group=2, far_group=8)


def plan(**parts):
    return combined_plan(FRAMES, TRAINED, CombinedSettings(**parts))


def test_without_any_part_it_is_vrpr():
    assert plan().same_as(vrpr_plan(FRAMES, TRAINED))
    assert policy_plan(make_profile(), "combined", 9).same_as(policy_plan(make_profile(), "vrpr", 9))


@pytest.mark.parametrize(
    ("part", "positions"),
    [
        (TruePositions(), relative_positions(FRAMES)),
        (VrprPositions(settings=VrprPart(lengths={"81": OWN})), vrpr_positions(FRAMES, TRAINED, OWN)),
        (
            VrprPositions(settings=VrprPart(flooring="position")),
            vrpr_positions(FRAMES, TRAINED, flooring="position"),
        ),
        (ClippedPositions(), relative_positions(FRAMES).clamp(-20, 20)),
        (ClippedPositions(distance=10), relative_positions(FRAMES).clamp(-10, 10)),
        (ClippedPositions(distance=50), relative_positions(FRAMES).clamp(-20, 20)),
        (SmoothPositions(near_frames=5, curve="linear"), smooth_positions(FRAMES, TRAINED, 5, "linear")),
        (SmoothPositions(), smooth_positions(FRAMES, TRAINED)),
    ],
)
def test_positions(part, positions):
    found = plan(positions=part)
    assert torch.equal(found.positions, positions)
    assert (found.visibility == DENSE).all()
    assert found.bias is None
    assert found.logit_scale == 1


@pytest.mark.parametrize(
    ("part", "visibility"),
    [
        (Window(), window_visibility(FRAMES, TRAINED)),
        (Window(frames=1), window_visibility(FRAMES, 1)),
        (
            Window(frames=7, sink_frames=2, anchor_every=9, anchor_offset=4),
            window_visibility(FRAMES, 7, 2, 9, 4),
        ),
        (Tiers(), tsa_visibility(FRAMES, TRAINED)),
        (
            Tiers(settings=TsaSettings(dense_frames=1, striped_frames=3, stripe=0.4, sink_frames=3)),
            tsa_visibility(FRAMES, TRAINED, TsaSettings(dense_frames=1, striped_frames=3, sink_frames=3)),
        ),
    ],
)
def test_attention(part, visibility):
    found = plan(attention=part)
    assert torch.equal(found.visibility, visibility)
    assert torch.equal(found.positions, vrpr_positions(FRAMES, TRAINED))
    if isinstance(part, Tiers) and part.settings:
        assert found.stripe == 0.4


def test_clipped_positions_and_tiers_are_tsa():
    assert plan(positions=ClippedPositions(), attention=Tiers()).same_as(tsa_plan(FRAMES, TRAINED))


def test_parts_without_settings_have_those_of_the_profile():
    profile = make_profile(
        vrpr={"lengths": {"9": {"near_frames": 1, "mid_frames": 1, "mid_group": 1, "far_group": 4}}},
        tsa={"dense_frames": 1, "striped_frames": 2, "stripe": 0.3},
    )
    parts = CombinedSettings(attention=Tiers())
    found = COMBINED.plan(profile, 0, 9, parts)
    assert found.same_as(policy_plan(profile, "vrpr+tsa", 9))
    assert BALANCED.defaults(profile).vrpr == profile.vrpr


def test_balance_and_slope_add_up():
    found = plan(balance=0.5, slope=Slope(per_frame=0.1, near_frames=4))
    dense = vrpr_plan(FRAMES, TRAINED)
    wanted = balance_bias(dense.positions, dense.visibility, dense.stripe, 0.5) + slope_bias(FRAMES, 0.1, 4)
    assert torch.equal(found.bias, wanted)
    beyond_training = plan(slope=Slope(per_frame=0.1)).bias
    assert torch.equal(beyond_training, slope_bias(FRAMES, 0.1, TRAINED - 1))


@pytest.mark.parametrize("part", [Window(frames=1), Window()])
def test_a_window_within_the_trained_range_has_nothing_to_balance(part):
    assert plan(positions=TruePositions(), attention=part, balance=1.0).bias is None


def test_balance_with_tiers_counts_what_is_visible():
    parts = {"attention": Tiers(settings=TsaSettings(dense_frames=4, striped_frames=40, stripe=0.5)), "balance": 1.0}
    found = plan(**parts)
    row, positions, visibility = found.bias[80], found.positions[80], found.visibility[80]
    for position in positions[visibility != NONE].unique():
        at = (positions == position) & (visibility != NONE)
        share = (visibility[at] == DENSE).sum() + 0.75 * (visibility[at] == STRIPED).sum()
        assert row[at].tolist() == pytest.approx([-math.log(max(1.0, share))] * int(at.sum()))
    assert row[80 - 4 :].abs().max() == 0


def test_the_rule_for_the_number_of_keys_counts_what_a_frame_in_the_middle_sees():
    rule = Temperature(strength=1.0)
    assert plan(temperature=rule).logit_scale == LogarithmOfKeys(81.0, TRAINED, 1.0)
    window = plan(temperature=rule, attention=Window(frames=30, sink_frames=2)).logit_scale
    assert window.visible_frames == 32
    narrow = plan(temperature=rule, attention=Window(frames=8))
    assert narrow.scale_at(1560) == 1
    balanced = plan(temperature=rule, balance=1.0)
    middle = vrpr_plan(FRAMES, TRAINED).positions[40].unique()
    assert balanced.logit_scale.visible_frames == pytest.approx(len(middle))  # each position weighs as one frame
    assert plan(temperature=Temperature(factor=1.05)).logit_scale == 1.05


def test_only_clipping_at_the_trained_range_leaves_a_model_without_rope_as_it_is():
    for part, optional in (
        (ClippedPositions(), True),
        (ClippedPositions(distance=3), False),
        (VrprPositions(), False),
    ):
        assert plan(positions=part).positions_optional == optional


POSITIONS = [TruePositions(), VrprPositions(), ClippedPositions(), ClippedPositions(distance=2), SmoothPositions()]
ATTENTION = [Window(), Window(frames=1), Window(frames=3, sink_frames=9, anchor_every=4), Tiers()]
PARTS = {
    "positions": st.sampled_from(POSITIONS),
    "attention": st.sampled_from(ATTENTION),
    "balance": st.floats(0, 1),
    "slope": st.none() | st.builds(Slope, per_frame=st.floats(0, 3), near_frames=st.none() | st.integers(0, 50)),
    "temperature": st.builds(Temperature, factor=st.floats(0.5, 2), strength=st.floats(0, 2)),
}


@settings(max_examples=150, deadline=None)
@given(frames=st.integers(1, 60), trained=st.integers(1, 20), parts=st.fixed_dictionaries({}, optional=PARTS))
def test_any_parts_make_a_plan_inside_the_trained_range_and_change_nothing_within_it(frames, trained, parts):
    chosen = CombinedSettings(**parts)
    found = combined_plan(frames, trained, chosen)
    if frames <= trained:
        assert found.is_identity
        return
    if not isinstance(chosen.positions, TruePositions):
        assert found.positions.abs().max() <= trained - 1
    assert found.bias is None or (found.bias <= 0).all()
    assert found.scale_at(7) >= chosen.temperature.factor
    assert found.same_as(combined_plan(frames, trained, chosen))
    assert CombinedSettings.model_validate_json(chosen.model_dump_json()) == chosen
    assert len(combined_label(chosen)) < 120


def test_balanced_is_vrpr_with_balance_and_factor():
    found = policy_plan(make_profile(), "balanced", 9)
    parts = CombinedSettings(balance=0.25, temperature=Temperature(factor=1.05))
    assert found.same_as(combined_plan(9, 4, parts))
    assert not found.same_as(policy_plan(make_profile(), "vrpr", 9))
    own = BALANCED.plan(make_profile(), 0, 9, BalancedSettings(balance=0.0, factor=1.0))
    assert own.same_as(vrpr_plan(9, 4))
    assert policy_plan(make_profile(), "balanced", 4).is_identity


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"positions": {"kind": "rope"}}, "'true', 'vrpr', 'clip', 'smooth'"),
        ({"positions": {"distance": 3}}, "Unable to extract tag using discriminator 'kind'"),
        ({"attention": {"kind": "window", "frames": 0}}, "greater than or equal to 1"),
        ({"attention": {"kind": "window", "anchor_every": 0}}, "greater than or equal to 1"),
        ({"attention": {"kind": "all", "frames": 3}}, "Extra inputs are not permitted"),
        ({"balance": 1.5}, "less than or equal to 1"),
        ({"slope": {}}, "Field required"),
        ({"temperature": {"factor": 0}}, "greater than 0"),
        ({"temperature": {"strength": -1}}, "greater than or equal to 0"),
    ],
)
def test_wrong_settings_are_refused(given, words):
    with pytest.raises(ValidationError, match=re.escape(words)):
        CombinedSettings.model_validate(given)


@pytest.mark.parametrize(
    ("parts", "label"),
    [
        ({}, "vrpr"),
        (
            {
                "positions": ClippedPositions(distance=10),
                "attention": Window(frames=8, sink_frames=1, anchor_every=6),
                "balance": 0.25,
                "slope": Slope(per_frame=0.1),
                "temperature": Temperature(factor=1.05, strength=0.5),
            },
            "clip 10, window 8 + first 1 + every 6, balance 0.25, slope 0.1, x 1.05, log n x 0.5",
        ),
        (
            {
                "positions": SmoothPositions(near_frames=4),
                "attention": Tiers(settings=TsaSettings(dense_frames=2, striped_frames=5)),
            },
            "logarithmic from 4, tsa 2/5",
        ),
        ({"positions": TruePositions(), "attention": Window()}, "true, window"),
    ],
)
def test_labels(parts, label):
    assert combined_label(CombinedSettings(**parts)) == label


def test_the_page_of_settings_has_every_field():
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `([a-z_]+)`", page, re.MULTILINE))
    parts = (
        CombinedSettings,
        BalancedSettings,
        LvsaSettings,
        ClippedPositions,
        SmoothPositions,
        Window,
        Slope,
        Temperature,
    )
    fields = {name for part in parts for name in part.model_fields} - {"kind"}
    assert fields <= listed, fields - listed


def test_baselines_that_these_parts_make_too():
    assert plan(positions=TruePositions(), attention=Window()).same_as(baselines.sliding_window(FRAMES, TRAINED))
    clipped = plan(positions=ClippedPositions(distance=20))
    assert clipped.same_as(baselines.clip(FRAMES, TRAINED))
