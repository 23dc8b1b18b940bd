"""The denoising loss of one clip at one noise level: a recorded call of the transformer, repeated with the clip."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from freeloc.adapter.paths import argument_at, with_argument
from freeloc.adapter.spec import Adapter
from freeloc.errors import ProbeError
from freeloc.probing.calls import TIMES, UNTIL, Call
from freeloc.probing.denoising import Objective
from freeloc.probing.places import argument_of, axes_of


def denoising_loss(
    call: Call, adapter: Adapter, objective: Objective, clean: Tensor, level: float, seed: int, argument: str | None
) -> float:
    """Mean squared error of the model's prediction, mean over the batch of the recorded call: see `squared_error`."""
    return float(squared_error(call, adapter, objective, clean, level, seed, argument).mean())


def squared_error(
    call: Call,
    adapter: Adapter,
    objective: Objective,
    clean: Tensor,
    level: float,
    seed: int,
    argument: str | None = None,
    axes: str | None = None,
) -> Tensor:
    """Squared error of the model's prediction at each place of one clip, mean over the batch of the recorded call.

    Its mean is the denoising loss. `freeloc.probing.places.motion_weight` weighs its places.

    Args:
        call: a recorded call of the transformer.
        adapter: the model's adapter, which says which argument holds the video.
        objective: what the model predicts.
        clean: latents of one clip, with a batch of 1.
        level: noise level, 0 clean to 1 noise.
        seed: random seed of the noise: see `noise_seed`.
        argument: name of the argument that holds the video; by default as the adapter says.
        axes: einops names of the clip's axes without the batch; by default as the adapter says.

    Returns:
        float32 on the CPU, of the clip's shape without the batch.

    Raises:
        ProbeError: if the clip has another shape than the call's video, or the output has another shape than the clip.
    """
    name = argument or argument_of(adapter)
    clean = clean.float()
    channels = axes_of(call, adapter, clean[0], axes).channels
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    video = _in_place_of(argument_at(call.arguments, name), objective.noisy(clean, noise, level), channels, name)
    given = {key: value for key in (*TIMES, *UNTIL) if (value := call.arguments.get(key)) is not None}
    times = {key: _filled(value, objective.timestep(level)) for key, value in given.items()}
    root = name.partition(".")[0]
    whole = with_argument(call.arguments, name, video)[root]
    found = call.run(**({root: whole} | times)).float().cpu()
    target = objective.target(clean, noise, level)
    # A model may also predict the variance, in additional channels.
    found = found.narrow(channels, 0, min(target.shape[channels], found.shape[channels]))
    if found.shape[1:] != target.shape[1:]:
        raise ProbeError(f"expected the model to return {tuple(target.shape[1:])}, found {tuple(found.shape[1:])}")
    return (found - target).square().mean(dim=0)


def noise_seed(seed: int, clip: int, level: float) -> int:
    """Random seed of the noise on a clip at a level: the same for every setting, so that losses can be paired.

    >>> noise_seed(0, clip=1, level=0.5)
    1000503

    Args:
        seed: random seed of the probe.
        clip: number of the clip.
        level: noise level, 0 clean to 1 noise.
    """
    return seed + 1_000_003 * clip + round(1000 * level)


def require_noise(call: Call, objective: Objective) -> None:
    """Require that the timestep of a run's first call has the scale and direction of the objective.

    Raises:
        ProbeError: if it does not.
    """
    clean, noise = objective.timestep(0.0), objective.timestep(1.0)
    for name in TIMES:
        if call.arguments.get(name) is None:
            continue
        times = torch.as_tensor(call.arguments[name], dtype=torch.float64).flatten()
        nearest = float(times[(times - noise).abs().argmin()])
        if abs(nearest - noise) > 0.9 * abs(clean - noise):
            raise ProbeError(
                f"expected the run to begin with noise, at a {name} near {noise:g}, found {nearest:g}: if the model "
                "uses another scale of time, give Loss(objective=...), such as freeloc.probing.flow(timesteps=1)"
            )


def require_different(clips: Sequence[Tensor] | Tensor) -> None:
    """Require clips of finite numbers, each once: the same clip twice makes standard errors too small.

    Raises:
        ProbeError: if they are not.
    """
    for number, clip in enumerate(clips):
        if not clip.isfinite().all():
            raise ProbeError(f"expected latents of finite numbers, found others in clip {number}")
        for other in range(number):
            if clips[other].shape == clip.shape and torch.equal(clips[other], clip):
                raise ProbeError(
                    f"expected each clip once, found clips {other} and {number} to be the same: standard errors "
                    "would be too small"
                )


def require_finite(loss: float, level: float, clip: int) -> None:
    """Require that a loss is a finite number.

    Raises:
        ProbeError: if it is not.
    """
    if not math.isfinite(loss):
        raise ProbeError(f"expected the model to return numbers, found {loss} at noise level {level}, clip {clip}")


def _in_place_of(given: Any, noisy: Tensor, channels: int, name: str) -> Any:
    """The noisy sample (1, ...) in the form of the given argument: repeated over its batch, with its extra channels."""
    if isinstance(given, list):  # one tensor per sample
        return [_in_place_of(sample[None], noisy, channels, name)[0] for sample in given]
    if not isinstance(given, Tensor):
        raise ProbeError(
            f"expected the run to call the transformer with the noisy video as {name}, found {type(given).__name__}: "
            "give Loss(argument=...)"
        )
    mine, its = list(noisy.shape[1:]), list(given.shape[1:])
    beside = (its[channels - 1] - mine[channels - 1]) if len(mine) == len(its) else -1
    mine[channels - 1 : channels] = its[channels - 1 : channels]
    if beside < 0 or mine != its:
        raise ProbeError(f"expected clips of shape {its}, as the run calls the model with, found {[*noisy.shape[1:]]}")
    video = noisy.to(given).expand(len(given), *noisy.shape[1:])
    return torch.cat([video, given.narrow(channels, noisy.shape[channels], beside)], dim=channels) if beside else video


def _filled(value: Any, timestep: float) -> Any:
    """A timestep in the form of the given value."""
    return torch.full_like(value, timestep) if isinstance(value, Tensor) else type(value)(timestep)
