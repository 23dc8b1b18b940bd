"""Training objectives of diffusion transformers, with which probing computes the loss on real videos."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import einops
import torch
from torch import Tensor

from freeloc.errors import ProbeError


@dataclass(frozen=True)
class Objective:
    """How clean latents and noise are mixed at a noise level (0 clean, 1 noise), and what the model predicts.

    Args:
        signal, noise: level -> share of the latents and of the noise in the model's input.
        target: (latents, noise, level) -> what the model should predict.
        timestep: level -> the timestep that is passed to the model.
    """

    signal: Callable[[float], float]
    noise: Callable[[float], float]
    target: Callable[[Tensor, Tensor, float], Tensor]
    timestep: Callable[[float], float]

    def noisy(self, latents: Tensor, noise: Tensor, level: float) -> Tensor:
        """The model's input."""
        return self.signal(level) * latents + self.noise(level) * noise

    def numbers(self, levels: Sequence[float]) -> list[list[float]]:
        """Numbers that identify the objective, per level: signal, noise, timestep, target of latents and of noise."""
        one, none = torch.ones(1, 1, 1, 1, 1), torch.zeros(1, 1, 1, 1, 1)
        return [
            [
                float(self.signal(level)),
                float(self.noise(level)),
                float(self.timestep(level)),
                *(float(self.target(*pair, level).sum()) for pair in ((one, none), (none, one))),
            ]
            for level in levels
        ]


def flow(timesteps: float = 1000.0, *, inverted: bool = False) -> Objective:
    """Rectified flow: noise - latents at (1 - level) latents + level noise (arXiv 2403.03206).

    >>> objective = flow()
    >>> float(objective.noisy(torch.tensor(4.0), torch.tensor(0.0), level=0.25)), objective.timestep(0.25)
    (3.0, 250.0)

    Args:
        timesteps: the timestep of pure noise: 1000 as in most of diffusers, 1 in Cosmos 2 and some original code.
        inverted: whether time runs from noise at 0 to clean latents at `timesteps`, and the model predicts
            latents - noise, as in Mochi.
    """
    return Objective(
        signal=lambda level: 1 - level,
        noise=lambda level: level,
        target=lambda latents, noise, level: latents - noise if inverted else noise - latents,
        timestep=lambda level: timesteps * (1 - level if inverted else level),
    )


def diffusion(alphas_cumprod: Tensor, prediction: str) -> Objective:
    """Variance-preserving diffusion: ``epsilon`` (arXiv 2006.11239) or ``v_prediction`` (arXiv 2202.00512).

    >>> objective = diffusion(torch.linspace(0.99, 0.01, 100), "epsilon")
    >>> objective.timestep(0.5), round(objective.signal(0.5) ** 2 + objective.noise(0.5) ** 2, 6)
    (50.0, 1.0)

    Args:
        alphas_cumprod: cumulative product of alphas of every timestep, (timesteps,).
        prediction: ``epsilon`` or ``v_prediction``.
    """
    if prediction not in ("epsilon", "v_prediction"):
        raise ProbeError(
            f"expected a model that predicts epsilon or v_prediction, found {prediction!r}: give objective=..."
        )
    last = len(alphas_cumprod) - 1

    def signal(level: float) -> float:
        return math.sqrt(alphas_cumprod[round(level * last)])

    def noise(level: float) -> float:
        return math.sqrt(1 - alphas_cumprod[round(level * last)])

    def target(latents: Tensor, noise_: Tensor, level: float) -> Tensor:
        return noise_ if prediction == "epsilon" else signal(level) * noise_ - noise(level) * latents

    return Objective(signal, noise, target, timestep=lambda level: float(round(level * last)))


def objective_of(model_or_pipeline: object) -> Objective:
    """The objective of a pipeline's scheduler; rectified flow for a transformer without a pipeline.

    Raises:
        ProbeError: if the scheduler is of another kind.
    """
    scheduler: Any = getattr(model_or_pipeline, "scheduler", None)
    if scheduler is None:
        return flow()
    config = getattr(scheduler, "config", {})
    prediction = str(config.get("prediction_type", ""))
    if "Flow" in type(scheduler).__name__ or prediction.startswith("flow"):
        return flow(float(config.get("num_train_timesteps", 1000)), inverted=bool(config.get("invert_sigmas")))
    if getattr(scheduler, "alphas_cumprod", None) is None:
        raise ProbeError(f"the objective of a model with {type(scheduler).__name__} is not known: give objective=...")
    return diffusion(scheduler.alphas_cumprod, prediction)


def encode(vae: Any, video: Tensor, axes: str = "c f h w") -> Tensor:
    """Latents of a real video, encoded by a diffusers VAE and scaled as its pipeline does.

    Args:
        vae: a VAE, such as ``pipe.vae``.
        video: (frames, height, width, 3) in 0..1. The VAE may require 4n + 1 frames, and sizes that its stride divides.
        axes: einops names of the axes of one sample of the transformer's input: ``"f c h w"`` for CogVideoX.

    Raises:
        ProbeError: if the configuration of the VAE has no scale of its latents, or one for each frame.
    """
    if video.ndim != 4 or video.shape[-1] != 3 or video.min() < 0 or video.max() > 1:
        raise ProbeError(f"expected a video (frames, height, width, 3) in 0..1, found {tuple(video.shape)}")
    weights = next(vae.parameters())
    pixels = (2 * video.movedim(-1, 0)[None] - 1).to(weights.device, weights.dtype)
    with torch.no_grad():
        latents: Tensor = vae.encode(pixels).latent_dist.mode()[0]
    config = vae.config
    mean, std = (_of_channels(vae, name) for name in ("latents_mean", "latents_std"))
    if mean is not None and std is not None:
        if not len(mean) == len(std) == len(latents):
            raise ProbeError(
                f"expected {type(vae).__name__} to have mean and deviation of each of {len(latents)} channels, found "
                f"{len(mean)} and {len(std)}: scale its latents as its pipeline does"
            )
        mean, std = (value.to(latents).view(-1, 1, 1, 1) for value in (mean, std))
        scaled = (latents - mean) / std * float(config.get("scaling_factor") or 1)
        return einops.rearrange(scaled, f"c f h w -> {axes}")
    if config.get("scaling_factor") is None:
        raise ProbeError(f"{type(vae).__name__} has no scale of its latents: scale them as its pipeline does")
    scaled = (latents - float(config.get("shift_factor") or 0)) * float(config["scaling_factor"])
    return einops.rearrange(scaled, f"c f h w -> {axes}")


def _of_channels(vae: Any, name: str) -> Tensor | None:
    """A value per channel of the latents, from the configuration of a VAE or from a buffer (LTX-Video)."""
    value = vae.config[name] if name in vae.config else getattr(vae, name, None)
    return None if value is None else torch.as_tensor(value).flatten()
