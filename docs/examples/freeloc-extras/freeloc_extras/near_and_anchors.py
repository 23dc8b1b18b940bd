"""Method ``near-and-anchors``: each frame attends to the frames near it, and to every n-th frame of the video."""

from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field

from freeloc.plans import DENSE, NONE, FramePlan, Method, relative_positions


class NearAndAnchors(BaseModel):
    """Settings that a profile may give.

    Attributes:
        near_frames: up to this distance, in latent frames, frames attend to each other.
        every: one of so many latent frames is an anchor, to which all frames attend. The first frame is one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    near_frames: Annotated[int, Field(ge=0)]
    every: Annotated[int, Field(ge=1)] = 8


def plan(profile, layer, frames, settings):
    """Positions beyond the trained range count as its end."""
    trained = profile.model.trained_latent_frames
    if frames <= trained:
        return FramePlan.identity(frames)
    true = relative_positions(frames)
    attended = (true.abs() <= settings.near_frames) | (torch.arange(frames) % settings.every == 0)
    visibility = torch.where(attended, DENSE, NONE).to(torch.uint8)
    return FramePlan(true.clamp(1 - trained, trained - 1), visibility, positions_optional=True)


METHOD = Method(
    "near-and-anchors",
    plan,
    source="a window and every n-th frame, as in BigBird (arXiv 2007.14062)",
    settings=NearAndAnchors,
    defaults=lambda profile: NearAndAnchors(near_frames=profile.model.trained_latent_frames // 2),
    colour="#8a5a00",
)
