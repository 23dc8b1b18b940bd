"""Clips for those who have none: long videos of the model itself, made by a correction that is known to be safe.

What is then measured is how well a policy predicts what that correction made. So it shows which layers are harmed,
and less which would do better: a judge likes what made its examples.
"""

import torch
from torch import Tensor

from freeloc.errors import ProbeError
from freeloc.probing.calls import TIMES, Call
from freeloc.probing.denoising import Objective

SAFE = "vrpr"
"""The method that makes the clips: it hides nothing, and leaves no position outside the trained range."""

FEWEST_STEPS = 4
"""Fewest denoising steps of a run whose last prediction is a video."""


def clean_of(call: Call, noisy: Tensor, output: Tensor, objective: Objective, channels: int) -> Tensor:
    """The clean latents that a model predicts in a call: of the last sample of its batch, float32 on the CPU.

    Args:
        call: a recorded call; its time says how noisy the video is.
        noisy: the video of the call, (batch, ...).
        output: what the model returned for it.
        objective: what the model predicts.
        channels: the axis of channels. The video may have more channels than the output, for conditions.
    """
    level = _level(call, objective)
    found, given = output[-1:].float().cpu(), noisy[-1:].float().cpu()
    shared = min(found.shape[channels], given.shape[channels])
    found, given = found.narrow(channels, 0, shared), given.narrow(channels, 0, shared)
    one, none = torch.ones(1), torch.zeros(1)
    of_clean, of_noise = (float(objective.target(*pair, level)) for pair in ((one, none), (none, one)))
    signal, noise = objective.signal(level), objective.noise(level)
    # noisy = signal x + noise e and output = of_clean x + of_noise e: two equations for the clean x.
    return (of_noise * given - noise * found)[0] / (of_noise * signal - noise * of_clean)


def _level(call: Call, objective: Objective) -> float:
    """The noise level of a call."""
    times = [call.arguments[name] for name in TIMES if call.arguments.get(name) is not None]
    if not times:
        raise ProbeError(
            f"expected the run to pass a time ({', '.join(TIMES)}) to the transformer, found none: give clips"
        )
    time = float(torch.as_tensor(times[0], dtype=torch.float64).flatten()[-1])
    levels = [step / 1000 for step in range(1001)]
    return min(levels, key=lambda level: abs(objective.timestep(level) - time))
