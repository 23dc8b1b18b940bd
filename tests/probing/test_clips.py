"""Clips and objectives of depth ``loss``: what is measured of them, and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import make_wan, wan_inputs
from small_probe import PROFILE, clips, run_of

import freeloc
from freeloc.errors import ProbeError
from freeloc.probing import Loss, diffusion, flow
from freeloc.probing.denoising import objective_of


@pytest.fixture(scope="module")
def model() -> Any:
    return make_wan()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Loss(clips(count=1)), "expected at least 2 clips"),
        (lambda: Loss(clips(), levels=(0.0,)), "expected noise levels above 0"),
        (lambda: Loss(clips(), compared=(("vrpr", "vrpr"),)), "expected pairs of two of"),
        (lambda: Loss(clips(8)), r"expected clips of shape \[4, 9, 6, 10\], as the run calls the model with, found"),
        (lambda: Loss(clips(channels=5)), "expected clips of shape"),
        (
            lambda: Loss([*clips()[:, None]]),
            r"with the axes 'c f h w', found the shape \(1, 4, 9, 6, 10\): give each clip",
        ),
        (lambda: Loss([*clips(), clips()[1]]), "expected each clip once, found clips 1 and 2 to be the same"),
        (lambda: Loss([clips()[0], clips()[1] / 0]), "expected latents of finite numbers, found others in clip 1"),
        (
            lambda: Loss(clips(), argument="video"),
            "expected the run to call the transformer with the noisy video as video",
        ),
    ],
)
def test_clips_that_are_refused(model: Any, make: Callable[[], Loss], words: str) -> None:
    with pytest.raises(ProbeError, match=words):
        freeloc.probe(model, run_of(model), make(), profile=PROFILE)


def test_prompts_of_clips(model: Any) -> None:
    with pytest.raises(ProbeError, match="expected no prompt, one, or one for each of 2 clips, found 3"):
        freeloc.probe(model, run_of(model), Loss(clips()), profile=PROFILE, prompts=["a", "b", "c"])


def test_channels_beside_the_video_are_kept() -> None:
    """As in image-to-video, where the transformer is given latents and a condition."""
    model = make_wan(in_channels=6)

    def run() -> None:
        model(**wan_inputs(9, batch=1) | {"hidden_states": torch.full((1, 6, 9, 6, 10), 2.0)})

    depth = Loss(clips(), levels=(0.5,), compared=[("none", "vrpr")])
    found = freeloc.probe(model, run, depth, profile=PROFILE)
    clean = clips()[0][None]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(500))
    both = torch.cat([(clean + noise) / 2, torch.full((1, 2, 9, 6, 10), 2.0)], dim=1)
    expected = (model(**wan_inputs(9, batch=1) | {"hidden_states": both})[0] - (noise - clean)).square().mean()
    own = found.table("loss.value").at(rest="none", policies="none", layers=0, levels=0.5, clips="000").values
    assert float(own) == pytest.approx(float(expected), rel=1e-5)


def test_objectives() -> None:
    from diffusers import CogVideoXDDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    class Pipe:
        scheduler: Any = None

    pipe = Pipe()
    clean, noise = torch.randn(2, 4, 5)
    for scheduler in (
        None,
        FlowMatchEulerDiscreteScheduler(),
        UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    ):
        pipe.scheduler = scheduler
        found = objective_of(pipe)
        assert torch.allclose(found.noisy(clean, noise, 0.25), 0.75 * clean + 0.25 * noise)
        assert torch.equal(found.target(clean, noise, 0.25), noise - clean)
        assert found.timestep(0.25) == 250
    pipe.scheduler = CogVideoXDDIMScheduler(prediction_type="v_prediction")
    found = objective_of(pipe)
    step = torch.tensor([500])
    assert found.timestep(500 / 999) == 500
    assert torch.allclose(
        found.noisy(clean, noise, 500 / 999), pipe.scheduler.add_noise(clean[None], noise[None], step)[0]
    )
    assert torch.allclose(
        found.target(clean, noise, 500 / 999), pipe.scheduler.get_velocity(clean[None], noise[None], step)[0]
    )
    epsilon = diffusion(pipe.scheduler.alphas_cumprod, "epsilon")
    assert torch.equal(epsilon.target(clean, noise, 0.5), noise)
    assert flow(timesteps=1).timestep(0.25) == 0.25
    with pytest.raises(ProbeError, match="expected a model that predicts epsilon or v_prediction, found 'sample'"):
        diffusion(pipe.scheduler.alphas_cumprod, "sample")


@pytest.mark.parametrize("inverted", [False, True])
def test_the_objective_is_what_the_scheduler_steps_with(inverted: bool) -> None:
    """With the target for the model's output each step ends where the next level is; inverted as in Mochi."""
    from types import SimpleNamespace

    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=inverted)
    found = objective_of(SimpleNamespace(scheduler=scheduler))
    clean, noise = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(5)
    latents = noise
    for step, message in enumerate(scheduler.timesteps):
        level = 1 - float(message) / 1000 if inverted else float(message) / 1000
        assert found.timestep(level) == pytest.approx(float(message), abs=1e-3)
        assert torch.allclose(latents, found.noisy(clean, noise, level), atol=1e-5), step
        latents = scheduler.step(found.target(clean, noise, level), message, latents, return_dict=False)[0]
    assert torch.allclose(latents, clean, atol=1e-5)


@pytest.mark.parametrize(
    ("time", "words"),
    [
        (80 / 81, r"at a timestep near 1000, found 0\.98.*: if the model uses another scale of time, give Loss"),
        (0.0, r"at a timestep near 1000, found 0:"),
    ],
)
def test_a_run_that_counts_time_in_another_way_is_refused(model: Any, time: float, words: str) -> None:
    def run() -> None:
        model(**wan_inputs(9, batch=1) | {"timestep": torch.tensor([time])})

    few: dict[str, Any] = {"levels": (0.5,), "compared": (("none", "vrpr"),)}
    with pytest.raises(ProbeError, match=words):
        freeloc.probe(model, run, Loss(clips(), **few), profile=PROFILE)
    freeloc.probe(model, run, Loss(clips(), **few, objective=flow(timesteps=1)), profile=PROFILE)
