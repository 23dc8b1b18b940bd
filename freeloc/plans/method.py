"""Method: a named way to make the plan of a layer, which a profile, ``freeloc.patch`` and plugins refer to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from freeloc.plans.frame_plan import FramePlan

Plans = FramePlan | Sequence[FramePlan]
"""What a layer gets: one plan, or one for each of its heads."""

PlanFunction = Callable[[Any, int, int], Plans]
"""(profile, layer, latent frames) -> plan of the layer, or one plan per head."""


@dataclass(frozen=True)
class Method:
    """A named way to make plans. Plugins bring more of them.

    >>> method = Method("direct", lambda profile, layer, frames: FramePlan.identity(frames))

    Args:
        name: for ``freeloc.patch(model, method=name)``.
        plan: (profile, layer, latent frames) -> plan, or one per head; what it needs to know of the model is in
            ``profile.model``.
        source: publication, or what it does in a few words.
        noise: what the method does to the initial noise, (noise of shape (batch, channels, frames, height, width),
            trained latent frames, generator) -> noise. Sampling code applies it: a patch cannot.
    """

    name: str
    plan: PlanFunction
    source: str = ""
    noise: Callable[[Tensor, int, torch.Generator], Tensor] | None = None
