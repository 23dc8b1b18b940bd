"""The checks after the search: other clips, and sampled videos."""

from collections.abc import Callable
from typing import Any

import constructed
import pytest
import torch
from constructed import ADAPTER, BLIND, Constructed, clips, run_of
from torch import Tensor

import freeloc
from freeloc.probing import Objective, flow
from freeloc.probing.calls import Call
from freeloc.tuning import Candidate, Tuned
from freeloc.tuning.clock import Clock
from freeloc.tuning.held_out import HeldOut, beats
from freeloc.tuning.own_clips import clean_of
from freeloc.tuning.racing import Paired
from freeloc.tuning.samples import MEASURES, faults, measures_of
from freeloc.tuning.shipping import without_windows

SOME = [Candidate("none"), Candidate("vrpr"), Candidate("sliding-window")]


def moving(frames: int) -> Tensor:
    """A window that moves over a large textured picture, (frames, 24, 24, 3)."""
    picture = torch.rand(24, 24 + frames, 3, generator=torch.Generator().manual_seed(0))
    return torch.stack([picture[:, frame : frame + 24] for frame in range(frames)])


def sampler(model: Any, fault: Callable[[Tensor], Tensor], where: str) -> Callable[[Any, int], Tensor]:
    """A run whose videos move, unless they are sampled under a window (`where` "window") or under anything ("long")."""
    direct = Constructed()

    def run(prompt: Any, latent_frames: int) -> Tensor:
        found = run_of(model)(prompt, latent_frames)
        averages = found[:, BLIND] - run_of(direct)(prompt, latent_frames)[:, BLIND]
        windowed = bool(averages.abs().max() > 1e-3)  # layer 0 averages over all frames that it sees
        video = moving(2 * latent_frames)
        long = latent_frames > constructed.TRAINED
        return fault(video) if (windowed if where == "window" else long) else video

    return run


def frozen(video: Tensor) -> Tensor:
    return video[:1].expand_as(video)


def drifting(video: Tensor) -> Tensor:
    return video * torch.linspace(1.0, 0.2, len(video))[:, None, None, None]


def tune(run: Callable[[Any, int], Any], model: Any, **changes: Any) -> Tuned:
    given = {"clips": clips(), "run": run, "profile": constructed.PROFILE, "adapter": ADAPTER, "candidates": SOME}
    given |= {"alternatives": [], "levels": (0.4,), "times": (4,), "places": 0.0, "prompts": ("a",)}
    return freeloc.tune(model, **given | changes)


@pytest.mark.parametrize(("fault", "said"), [(frozen, "hardly moves, freezes"), (drifting, "drifts in colour")])
def test_a_loss_winner_that_freezes_or_drifts_is_not_shipped(fault: Callable[[Tensor], Tensor], said: str) -> None:
    model = Constructed()
    assert tune(run_of(model), model, videos=0).profile.layers == {"sliding-window": [0, 1, 2]}
    tuned = tune(sampler(model, fault, "window"), model, videos=1)
    assert "sliding-window" not in tuned.profile.layers
    assert "'sliding-window'" in str(tuned)
    assert said in str(tuned)
    assert "comes in its place" in str(tuned)
    measured = tuned.measurements.table("tune.videos")
    assert measured.axes["measures"] == list(MEASURES)
    assert {"short samples", "direct", "sliding-window"} <= set(measured.axes["settings"])
    assert set(tuned.strips) == set(measured.axes["settings"])
    assert "videos" in tuned.pictures()


def test_what_nothing_simpler_mends_stays() -> None:
    model = Constructed()
    tuned = tune(sampler(model, frozen, "long"), model, videos=1)
    assert tuned.profile.layers == {"sliding-window": [0, 1, 2]}
    assert "does so no less: 'sliding-window' stays" in str(tuned)


def test_good_videos_pass() -> None:
    model = Constructed()
    tuned = tune(sampler(model, lambda video: video, "long"), model, videos=1, alternatives=SOME)
    assert "are within all limits" in str(tuned)


def test_each_limit_finds_its_fault() -> None:
    short = torch.stack([measures_of(moving(20))] * 2)
    blurred = moving(40).mean(dim=2, keepdim=True).expand(40, 24, 24, 3)
    grey = 0.5 + 0.1 * (moving(40) - 0.5)
    wanted = {"is blurred": blurred, "is grey": grey, "hardly moves": frozen(moving(40)), "freezes": frozen(moving(40))}
    wanted |= {"drifts in colour": drifting(moving(40)), "moves too much": moving(120)[::3]}
    wanted |= dict.fromkeys(("is too sharp", "has too much contrast"), moving(40).round())
    for fault, video in wanted.items():
        assert fault in [limit.fault for limit in faults(torch.stack([measures_of(video)] * 2), short)], fault
    assert faults(torch.stack([measures_of(moving(40))] * 2), short) == []
    loops = short.clone()
    loops[:, MEASURES.index("loop strength")] += 0.3
    assert [limit.fault for limit in faults(loops, short)] == ["loops"]


def test_a_fault_within_the_noise_of_the_prompts_is_none() -> None:
    short = torch.ones(4, len(MEASURES))
    long = short.clone()
    long[:, MEASURES.index("drift")] = torch.tensor([0.5, 0.5, 0.5, 5.0])
    assert faults(long, short) == []
    long[:, MEASURES.index("drift")] = torch.tensor([4.0, 4.0, 4.0, 5.0])
    assert [limit.fault for limit in faults(long, short)] == ["drifts in colour"]
    long[:, MEASURES.index("drift")] = torch.nan  # where nothing can be measured
    assert faults(long, short) == []


def test_windows_are_taken_off_layer_by_layer() -> None:
    window, vrpr = Candidate("sliding-window"), Candidate("vrpr")
    found = without_windows(constructed.PROFILE, (vrpr, window, Candidate("tsa")), Candidate("clip"), frames=17)
    assert [one.name for one in found] == ["vrpr", "clip", "clip"]


def test_a_choice_must_win_on_other_clips_and_not_harm_whole_frames() -> None:
    def held_out(score: float, whole: float) -> HeldOut:
        pairs = [Paired(mean, 0.1, 12, 6, 10.0) for mean in (score, whole, score)]
        return HeldOut("x", (), *pairs)

    assert beats(held_out(-1.0, -1.0))
    assert beats(held_out(-1.0, 0.1))
    assert not beats(held_out(-1.0, 1.0))
    assert not beats(held_out(-0.05, -0.05))
    assert not beats(held_out(1.0, 0.0))


@pytest.mark.parametrize("objective", [flow(), flow(timesteps=1.0), flow(inverted=True)])
def test_the_clean_video_of_a_call(objective: Objective) -> None:
    clean, noise, level = torch.randn(1, 4, 3, 5, 5), torch.randn(1, 4, 3, 5, 5), 0.25
    noisy = torch.cat([objective.noisy(clean, noise, level), torch.randn(1, 2, 3, 5, 5)], dim=1)  # and a condition
    call = Call(Constructed(), {"timestep": torch.tensor([objective.timestep(level)])})
    found = clean_of(call, noisy, objective.target(clean, noise, level), objective, channels=1)
    assert torch.allclose(found, clean[0], atol=1e-5)


def test_without_clips_the_model_is_its_own_example() -> None:
    model = Constructed()

    def run(prompt: Any, latent_frames: int) -> Tensor:
        latents = torch.randn(1, 7, latent_frames, 2, 2, generator=torch.Generator().manual_seed(len(str(prompt))))
        for level in (1.0, 0.8, 0.6, 0.4, 0.2):
            latents = latents - 0.2 * model(latents, torch.full((1,), 1000 * level))
        return latents

    tuned = tune(run, model, clips=None, prompts=("a", "bb", "ccc", "dddd"), videos=0)
    assert "4 samples of the model itself" in tuned.profile.provenance.notes
    assert "A judge likes what made its examples" in str(tuned)
    with pytest.raises(freeloc.FreelocError, match="expected a run of 4 denoising steps or more"):
        tune(run_of(model), model, clips=None, prompts=("a", "bb", "ccc", "dddd"), videos=0)


class Slow:
    """A clock on which each look costs little, and each long video much."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_windows_are_not_shipped_unseen() -> None:
    model, now = Constructed(), Slow()
    plain = sampler(model, lambda video: video, "long")

    def run(prompt: Any, latent_frames: int) -> Tensor:
        video = plain(prompt, latent_frames)
        now.seconds += 2.0 if latent_frames == constructed.TRAINED else 0.01
        return video

    tuned = tune(run, model, videos=1, clock=Clock(0.25, now=now))
    assert tuned.profile.layers == {"vrpr": [0, 1, 2]}
    assert "Time ran out before videos of 'sliding-window' were sampled. Windows are not shipped unseen" in str(tuned)
    assert now.seconds < 15  # a long video is expected to take 12.5 s
