"""The denoising loss of one clip at one noise level: a call of the transformer, repeated with the noisy clip."""

import math
from typing import Any

import torch
from torch import Tensor

from freeloc.adapter.spec import Adapter
from freeloc.errors import ProbeError
from freeloc.probing.calls import TIMES, UNTIL, Call
from freeloc.probing.denoising import Objective


def denoising_loss(
    call: Call, adapter: Adapter, objective: Objective, clean: Tensor, level: float, seed: int, argument: str | None
) -> float:
    """Mean squared error of the model's prediction, mean over the batch that the run calls the model with.

    Args:
        call: how the run calls the transformer.
        adapter: says where the video is among the call's arguments.
        objective: what the model predicts.
        clean: latents of one clip, with a batch of 1.
        level: of noise, 0 clean to 1 noise.
        seed: of the noise.
        argument: that holds the video; by default as the adapter says.

    Raises:
        ProbeError: if the clip is not of the shape that the run calls the model with, or the loss is not a number.
    """
    grid = adapter.grid
    name = argument or (grid.argument if isinstance(grid.argument, str) else "hidden_states")
    axes = grid.axes.split()
    channels = axes.index("c") if "c" in axes else 1
    clean = clean.float()
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    video = _in_place_of(call.arguments.get(name), objective.noisy(clean, noise, level), channels, name)
    given = {key: value for key in (*TIMES, *UNTIL) if (value := call.arguments.get(key)) is not None}
    times = {key: _filled(value, objective.timestep(level)) for key, value in given.items()}
    found = call.run(**({name: video} | times)).float().cpu()
    target = objective.target(clean, noise, level)
    # A model may predict its variance too, in channels of its own.
    found = found.narrow(channels, 0, min(target.shape[channels], found.shape[channels]))
    if found.shape[1:] != target.shape[1:]:
        raise ProbeError(f"expected the model to return {tuple(target.shape[1:])}, found {tuple(found.shape[1:])}")
    return float((found - target).square().mean())


def require_noise(call: Call, objective: Objective) -> None:
    """Refuse a run whose first call has a time of another scale or direction than the objective's.

    Raises:
        ProbeError: if it has.
    """
    clean, noise = objective.timestep(0.0), objective.timestep(1.0)
    for name in TIMES:
        if call.arguments.get(name) is None:
            continue
        told = torch.as_tensor(call.arguments[name], dtype=torch.float64).flatten()
        nearest = float(told[(told - noise).abs().argmin()])
        if abs(nearest - noise) > 0.9 * abs(clean - noise):
            raise ProbeError(
                f"expected the run to begin with noise, at a {name} near {noise:g}, found {nearest:g}: if the model "
                "counts time in another way, give Loss(objective=...), such as freeloc.probing.flow(timesteps=1)"
            )


def require_finite(loss: float, level: float, clip: int) -> None:
    """Refuse a loss that is not a number.

    Raises:
        ProbeError: if it is not.
    """
    if not math.isfinite(loss):
        raise ProbeError(f"expected the model to return numbers, found {loss} at noise level {level}, clip {clip}")


def _in_place_of(given: Any, noisy: Tensor, channels: int, name: str) -> Any:
    """A sample (1, ...) as often as the model was given one, with the channels beside the video's that were given."""
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
    """Another timestep in the form that was given."""
    return torch.full_like(value, timestep) if isinstance(value, Tensor) else type(value)(timestep)
