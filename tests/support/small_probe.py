"""What the tests probe: runs of a small random Wan over a few denoising steps, and clips."""

from collections.abc import Callable
from typing import Any

import torch
from conftest import make_profile, wan_inputs
from torch import Tensor

from freeloc.probing import ProbeFacts, Sensitivity, Table

PROFILE = make_profile({"vrpr": [0, 1, 2, 3]})


def run_of(model: Any, frames: int = 9, steps: int = 3) -> Callable[..., Tensor]:
    def run(prompt: str = "a") -> Tensor:
        latents = torch.randn(1, 4, frames, 6, 10, generator=torch.Generator().manual_seed(len(prompt)))
        for step in range(steps):
            inputs = wan_inputs(frames, batch=1) | {"timestep": torch.tensor([900.0 - 100 * step])}
            out = model(**inputs | {"hidden_states": latents})[0]
            model(**inputs | {"hidden_states": latents})  # as guidance does
            latents = latents - 0.3 * out
        return latents

    return run


def clips(frames: int = 9, count: int = 2, channels: int = 4) -> Tensor:
    return torch.randn(count, channels, frames, 6, 10, generator=torch.Generator().manual_seed(0))


def made_up(**tables: Table) -> Sensitivity:
    """Measurements with these tables: an underscore stands for the dot of a name."""
    facts = ProbeFacts(
        profile=PROFILE, fingerprint="f" * 64, latent_frames=[9], prompts=["a"], seed=0, settings={}, versions={},
        command="a test",
    )  # fmt: skip
    return Sensitivity({name.replace("_", "."): table for name, table in tables.items()}, facts)
