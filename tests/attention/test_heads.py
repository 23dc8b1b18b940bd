"""Plans that differ between the heads of a layer: the engine against dense logits, the profile, what is refused."""

from typing import Any

import pytest
import torch
from conftest import make_profile, make_wan, wan_inputs
from torch import Tensor

import freeloc
from freeloc import FramePlan
from freeloc.adapter import TemporalRope
from freeloc.adapter.spec import ModelShape
from freeloc.attention import LayerPlans, TokenLayout, attend, attend_reference
from freeloc.errors import LayoutError
from freeloc.plans.baselines import sliding_window
from freeloc.plans.length import VideoLength
from freeloc.profile.planning import layer_plans, policy_plan

FRAMES, HEADS, DIM = 7, 4, 24
LAYOUT = TokenLayout(FRAMES, 2, 3, text_first=2)
ROPE = TemporalRope(channels=8)
PROFILE = make_profile({"vrpr": [0]}, trained_latent_frames=3)
PLANS = [policy_plan(PROFILE, policy, FRAMES) for policy in ("vrpr", "none", "vrpr+tsa", "vrpr")]


def tensors() -> Tensor:
    return torch.randn(3, 2, HEADS, LAYOUT.tokens, DIM, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("per_head_frequencies", [False, True])
@pytest.mark.parametrize("mask", ["none", "all heads", "each head"])
def test_each_head_has_its_own_plan(per_head_frequencies: bool, mask: str) -> None:
    frequencies = ROPE.frequencies(DIM)
    if per_head_frequencies:
        frequencies = frequencies * torch.tensor([1.0, 0.5, 0.3, 0.2], dtype=torch.float64)[:, None]
    shape = {
        "none": None,
        "all heads": (2, 1, 1, LAYOUT.tokens),
        "each head": (1, HEADS, LAYOUT.tokens, LAYOUT.tokens),
    }[mask]
    own = None if shape is None else torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.2
    prepared = LayerPlans(lambda layer, frames: PLANS, ModelShape(1, HEADS, DIM), ROPE, frequencies)
    plan = prepared.at(0, VideoLength(FRAMES))
    assert [group.heads for group in plan.groups] == [[0, 3], [1], [2]]
    out = attend(*tensors(), plan, LAYOUT, own)
    for head, own_plan in enumerate(PLANS):
        q, k, v = (tensor[:, head : head + 1] for tensor in tensors())
        mine = own[:, head : head + 1] if own is not None and own.shape[1] > 1 else own
        own_frequencies = frequencies[head] if per_head_frequencies else frequencies
        expected = attend_reference(q, k, v, own_plan, ROPE, LAYOUT, mine, frequencies=own_frequencies)
        assert (out[:, head : head + 1] - expected).abs().max() < 1e-5, head


def test_tables_are_shared() -> None:
    shape, frequencies = ModelShape(2, HEADS, DIM), ROPE.frequencies(DIM)
    prepared = LayerPlans(lambda layer, frames: PLANS, shape, ROPE, frequencies)
    first, second = (prepared.at(layer, VideoLength(FRAMES)).groups for layer in (0, 1))
    assert [a.plan is b.plan for a, b in zip(first, second, strict=True)] == [True, True, True]
    same = LayerPlans(lambda layer, frames: [PLANS[0]] * HEADS, shape, ROPE, frequencies).at(0, VideoLength(FRAMES))
    assert [group.heads for group in same.groups] == [None]


def test_the_density_is_the_mean_over_heads() -> None:
    several = [sliding_window(FRAMES, 3), FramePlan.identity(FRAMES), FramePlan.identity(FRAMES), PLANS[0]]
    prepared = LayerPlans(lambda layer, frames: several, ModelShape(1, HEADS, DIM), ROPE, ROPE.frequencies(DIM))
    found = prepared.at(0, VideoLength(FRAMES)).density(LAYOUT.tokens_per_frame)
    assert found == pytest.approx((several[0].density(LAYOUT.tokens_per_frame) + 3) / 4)


@pytest.mark.parametrize(
    ("plans", "words"),
    [
        (PLANS[:3], "expected a plan for each of 4 heads, the method made 3"),
        ([*PLANS[:3], FramePlan.identity(5)], "expected a plan for 7 latent frames, the method made one for 5"),
    ],
)
def test_plans_that_do_not_fit(plans: list[FramePlan], words: str) -> None:
    prepared = LayerPlans(lambda layer, frames: plans, ModelShape(1, HEADS, DIM), ROPE, ROPE.frequencies(DIM))
    with pytest.raises(LayoutError, match=words):
        prepared.at(0, VideoLength(FRAMES))


def heads(**changes: Any) -> freeloc.Profile:
    return make_profile({"vrpr": [0, 1], "none": [2, 3]}, heads=changes)


def test_a_profile_gives_policies_to_heads() -> None:
    profile = heads(**{"0": {"vrpr+tsa": [1]}, "3": {"tsa": [0]}})
    assert [profile.head_policies(layer) for layer in range(4)] == [
        ["vrpr", "vrpr+tsa"],
        ["vrpr", "vrpr"],
        ["none", "none"],
        ["tsa", "none"],
    ]
    plans = layer_plans(profile, 0, 12)
    assert [plan.same_as(freeloc.frame_plan(profile, 0, 12, head)) for head, plan in enumerate(plans)] == [True, True]
    assert plans[0].same_as(freeloc.frame_plan(profile, 0, 12))
    assert isinstance(layer_plans(profile, 1, 12), FramePlan)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"4": {"vrpr": [0]}}, "heads: layers 0 to 3, found layer 4"),
        ({"0": {"vrpr": [2]}}, "heads: 0 to 1 of layer 0, found 2"),
        ({"0": {"vrpr": [1], "tsa": [1]}}, "heads: each head of layer 0 once, found head 1 2 times"),
        ({"0": {"vrpr": []}}, "heads: at least one head of layer 0, found none"),
        ({"00": {"vrpr": [0]}}, "String should match pattern"),
    ],
)
def test_wrong_heads_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        heads(**changes)


def test_a_model_with_policies_for_heads() -> None:
    """Heads with the same policy equal a layer policy; one with another policy changes the output and the report."""
    model, inputs = make_wan(), wan_inputs(12)

    def out(profile: freeloc.Profile) -> tuple[Tensor, freeloc.patching.Report]:
        with freeloc.patch(model, profile) as patch:
            return model(**inputs)[0], patch.report()

    whole, _ = out(make_profile({"vrpr": [0], "none": [1, 2, 3]}))
    by_head, _ = out(make_profile({"none": [0, 1, 2, 3]}, heads={"0": {"vrpr": [0, 1]}}))
    assert torch.equal(whole, by_head)
    mixed, report = out(make_profile({"none": [0, 1, 2, 3]}, heads={"0": {"vrpr+tsa": [1]}}))
    assert not torch.equal(mixed, model(**inputs)[0])
    first = report.layers[0]
    assert first.method == "none, vrpr+tsa"
    assert first.largest_after == 11  # of the head that is left alone
    assert first.attended == pytest.approx((1 + policy_plan(PROFILE, "vrpr+tsa", 12).density(15)) / 2, abs=0.1)
    assert first.calls == {12: 2} or first.calls == {12: 1}


def test_a_method_may_treat_heads_differently() -> None:
    model, inputs = make_wan(), wan_inputs(12)

    def window_on_one(profile: freeloc.Profile, layer: int, frames: int) -> list[FramePlan]:
        return [FramePlan.identity(frames), sliding_window(frames, 4)]

    with freeloc.patch(model, make_profile({"none": [0, 1, 2, 3]}), method=window_on_one) as patch:
        model(**inputs)
    assert "window_on_one" in str(patch.report())
