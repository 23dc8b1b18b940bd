"""Each baseline method against its published formula in plain loops, and in a real Wan against the oracle."""

import math

import pytest
import torch
from conftest import make_profile
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import use_oracle_of

import freeloc
from freeloc.plans import baselines
from freeloc.plans.frame_plan import DENSE, NONE, relative_positions
from freeloc.plans.method import Method
from freeloc.profile.planning import resolve_method
from freeloc.registry import registry

LENGTHS = [(22, 21), (41, 21), (81, 21), (161, 21), (49, 13), (7, 3), (5, 2), (9, 1)]
WAN = 10_000.0 ** (-torch.arange(22, dtype=torch.float64) / 22)
"""Temporal frequencies of a Wan head of 128 channels."""
TINY = 10_000.0 ** (-torch.arange(8, dtype=torch.float64) / 8)
"""Those of 16 temporal channels: CogVideoX's and the tiny model's."""
HUNYUAN = 256.0 ** (-torch.arange(8, dtype=torch.float64) / 8)


def plain(plan):
    """A plan that changes positions only."""
    return (
        (plan.visibility == DENSE).all() and plan.frequencies is None and plan.logit_scale == 1 and plan.decay is None
    )


@pytest.mark.parametrize(("frames", "trained"), LENGTHS)
def test_in_a_sliding_window_each_frame_attends_to_as_many_frames_as_in_training(frames, trained):
    plan = baselines.sliding_window(frames, trained)
    for i in range(frames):
        first = min(max(i - (trained - 1) // 2, 0), frames - trained)
        for j in range(frames):
            assert plan.visibility[i, j] == (DENSE if first <= j < first + trained else NONE)
    assert torch.equal(plan.positions, relative_positions(frames))
    assert plan.largest_position <= trained - 1


@pytest.mark.parametrize(("frames", "trained"), LENGTHS)
def test_clipped_positions(frames, trained):
    plan = baselines.clip(frames, trained)
    assert plain(plan)
    for i in range(frames):
        for j in range(frames):
            assert plan.positions[i, j] == max(-(trained - 1), min(trained - 1, i - j))


def self_extended(i, j, window, group):
    if abs(i - j) < window:
        return i - j
    return i // group - j // group + math.copysign(window - window // group, i - j) * (i != j)


@pytest.mark.parametrize(("frames", "trained"), LENGTHS)
def test_self_extend_floors_each_position_and_shifts_by_the_window(frames, trained):
    plan, limit = baselines.self_extend(frames, trained), trained - 1
    window = limit // 2
    group = next(g for g in range(1, frames + 1) if (frames - 1) // g + window - window // g <= limit)
    assert plain(plan)
    assert plan.largest_position <= limit
    for i in range(frames):
        for j in range(frames):
            assert plan.positions[i, j] == self_extended(i, j, window, group)


@pytest.mark.parametrize(("frames", "trained"), LENGTHS)
def test_position_interpolation_fills_the_trained_length(frames, trained):
    plan = baselines.position_interpolation(frames, trained)
    assert plain(plan)
    for i in range(frames):
        for j in range(frames):
            assert plan.positions[i, j] == pytest.approx((i - j) * trained / frames, abs=1e-12)


@pytest.mark.parametrize("frequencies", [WAN, TINY, HUNYUAN, TINY[:1]])
@pytest.mark.parametrize(("frames", "trained"), LENGTHS)
def test_ntk_raises_the_base(frames, trained, frequencies):
    plan, d = baselines.ntk(frames, trained), 2 * len(frequencies)
    found = plan.frequencies(frequencies)
    base = float(frequencies[1]) ** (-d / 2) if d > 2 else 1.0
    raised = base * (frames / trained) ** (d / (d - 2)) if d > 2 else 1.0
    for c in range(d // 2):
        assert float(found[c]) == pytest.approx(raised ** (-2 * c / d), rel=1e-9)


@pytest.mark.parametrize("frequencies", [WAN, TINY, HUNYUAN])
@pytest.mark.parametrize(("frames", "trained"), LENGTHS)
def test_yarn_interpolates_by_parts(frames, trained, frequencies):
    plan, s = baselines.yarn(frames, trained), frames / trained
    found = plan.frequencies(frequencies)
    for c, theta in enumerate(frequencies.tolist()):
        wavelength = 2 * math.pi / theta
        r = trained / wavelength
        gamma = 0.0 if r < 1 else 1.0 if r > 32 else (r - 1) / 31
        assert float(found[c]) == pytest.approx((1 - gamma) * theta / s + gamma * theta, rel=1e-12)
    assert plan.logit_scale == pytest.approx((0.1 * math.log(s) + 1) ** 2, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "frequencies", "trained", "component", "period"),
    [("CogVideoX", TINY, 13, 2, 20), ("HunyuanVideo", HUNYUAN, 33, 4, 50)],
)
def test_riflex_finds_the_published_intrinsic_frequencies(name, frequencies, trained, component, period):
    frames = 2 * trained
    found = baselines.riflex(frames, trained).frequencies(frequencies)
    assert (found != frequencies).nonzero().flatten().tolist() == [component - 1]
    assert round(2 * math.pi / float(frequencies[component - 1])) == period
    assert float(found[component - 1]) == pytest.approx(0.9 * 2 * math.pi / frames)


def test_riflex_accepts_the_observed_repetition():
    assert (baselines.riflex(81, 21, repeats_at=60).frequencies(TINY) != TINY).nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize(("frames", "changes"), [(62, False), (63, True)])
def test_riflex_leaves_videos_within_the_period_alone(frames, changes):
    found = baselines.riflex(frames, 21, repeats_at=60).frequencies(TINY)  # a period of 62.8 frames
    assert (found != TINY).any() == changes


@pytest.mark.parametrize(("frames", "trained"), LENGTHS)
def test_ultravico_decays_beyond_half_a_trained_length(frames, trained):
    plan = baselines.ultravico(frames, trained)
    assert torch.equal(plan.positions, relative_positions(frames))
    for i in range(frames):
        for j in range(frames):
            assert plan.decay[i, j] == (1 if abs(i - j) <= trained / 2 else 0.9)
            assert plan.visibility[i, j] == (NONE if i == 0 and j >= trained else DENSE)


def test_ultravico_of_wan_at_four_times_its_length():
    plan = baselines.ultravico(81, 21)
    assert plan.decay[40, [40, 30, 29, 50, 51]].tolist() == [1, 1, 0.9, 1, 0.9]
    assert plan.visibility[0, [0, 20, 21, 80]].tolist() == [DENSE, DENSE, NONE, NONE]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 25), st.integers(0, 1000))
def test_rescheduled_noise_repeats_the_frames_of_one_trained_length_before(frames, trained, seed):
    noise = torch.arange(float(frames)).expand(2, 3, 1, 1, frames).movedim(-1, 2)
    found = baselines.reschedule_noise(noise, trained, torch.Generator().manual_seed(seed))
    order = found[0, 0, :, 0, 0].long().tolist()
    assert found.shape == noise.shape
    assert order[:trained] == list(range(min(frames, trained)))
    stride = max(1, round(trained / 4))
    for start in range(trained, frames, stride):
        stop = min(start + stride, frames)
        before = order[start - trained : start - trained + stride]
        assert set(order[start:stop]) <= set(before)
        assert len(set(order[start:stop])) == stop - start  # each once


def test_rescheduled_noise_is_shuffled_and_leaves_its_input_alone():
    noise = torch.randn(1, 2, 81, 2, 2)
    copy = noise.clone()
    found = baselines.reschedule_noise(noise, 21, torch.Generator().manual_seed(0))
    assert torch.equal(noise, copy)
    assert not torch.equal(found[:, :, 21:42], found[:, :, :21])


@pytest.mark.parametrize("method", baselines.BASELINES, ids=lambda method: method.name)
def test_nothing_changes_up_to_the_trained_length_and_beyond_it_all_but_direct(method):
    profile = make_profile(trained_latent_frames=21)
    for frames in (1, 20, 21):
        assert method.plan(profile, 0, frames).is_identity
    for frames in (22, 41, 300):
        plan = method.plan(profile, 0, frames)
        assert plan.frames == frames
        assert plan.is_identity == (method.name == "direct")
        assert plan.same_as(method.plan(profile, 3, frames))


@pytest.mark.parametrize("name", [name for name, _, _ in registry().methods.things()])
def test_a_real_wan_patched_by_name_equals_the_oracle(small_wan, run, name):
    profile, (_, plan) = make_profile(), resolve_method(name)
    oracle = use_oracle_of(small_wan, lambda layer, frames: plan(profile, layer, frames), 3, 5)
    for frames in (4, 9, 16):
        expected = run(oracle, frames)
        with freeloc.patch(small_wan, profile, method=name, noise_prepared=True) as patch:
            found = run(small_wan, frames)
        assert (found - expected).abs().max() <= 2e-5
    assert {line.method for line in patch.report().layers} == {name}


def test_only_freenoise_changes_the_noise():
    assert [method.name for method in baselines.BASELINES if method.noise] == ["freenoise"]
    assert all(isinstance(method, Method) and method.source for method in baselines.BASELINES)
