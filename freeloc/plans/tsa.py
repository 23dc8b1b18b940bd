"""TSA: attention that gets sparser with distance: dense, then striped, then to the first frames only.

Source: FreeLOC, arXiv 2603.25209, tiered sparse attention. Two things differ from the published code: tiers are counted
in frames, not in tokens, and positions never leave the trained range (the published code keeps true positions up to 24
frames apart in a model trained on at most 20).
"""

from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from typing_extensions import Self

from freeloc.plans.frame_plan import DENSE, STRIPED, FramePlan, relative_positions

Frames = Annotated[int, Field(ge=0, le=10**9)]
"""A number of frames. The limit is far beyond any video, and far below what overflows in a tensor."""


class TsaSettings(BaseModel):
    """Three tiers of attention by distance between frames. Each number of frames is at most 10**9.

    >>> TsaSettings(dense_frames=8, striped_frames=24).stripe
    0.125

    Attributes:
        dense_frames: D1; up to this distance every token attends to every token.
        striped_frames: D2; up to this distance a token attends to tokens near its own position in the frame.
        stripe: half-width of the stripe, as a share of a frame's tokens.
        sink_frames: first frames of the video, to which every frame attends densely.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    dense_frames: Frames
    striped_frames: Frames
    stripe: float = Field(default=0.125, gt=0, le=1)
    sink_frames: Frames = 1

    @model_validator(mode="after")
    def _tiers_in_order(self) -> Self:
        if self.dense_frames > self.striped_frames:
            raise ValueError(f"dense_frames <= striped_frames, found {self.dense_frames} and {self.striped_frames}")
        return self


def derive_settings(trained_frames: int) -> TsaSettings:
    """Settings in proportion to the trained length: 8 and 24 frames, as published, for a model trained on 21.

    >>> derive_settings(trained_frames=21)
    TsaSettings(dense_frames=8, striped_frames=24, stripe=0.125, sink_frames=1)
    """
    limit = trained_frames - 1
    return TsaSettings(dense_frames=round(0.4 * limit), striped_frames=round(1.2 * limit))


def tsa_visibility(frames: int, trained_frames: int, settings: TsaSettings | None = None) -> Tensor:
    """Which frames attend to each other, (frames, frames) uint8: 0 none, 1 striped, 2 dense.

    Up to the trained length all pairs are dense.

    >>> tsa_visibility(6, 3, TsaSettings(dense_frames=1, striped_frames=2))[-1]
    tensor([2, 0, 0, 1, 2, 2], dtype=torch.uint8)

    Args:
        frames: latent frames of the video.
        trained_frames: latent frames of the clips that the model was trained on.
        settings: tiers; by default `derive_settings`.
    """
    distance = relative_positions(frames).abs()
    if frames <= trained_frames:
        return torch.full((frames, frames), DENSE, dtype=torch.uint8)
    settings = settings or derive_settings(trained_frames)
    visibility = torch.zeros(frames, frames, dtype=torch.uint8)
    visibility[distance <= settings.striped_frames] = STRIPED
    visibility[distance <= settings.dense_frames] = DENSE
    visibility[:, : settings.sink_frames] = DENSE
    return visibility


def tsa_plan(frames: int, trained_frames: int, settings: TsaSettings | None = None) -> FramePlan:
    """`tsa_visibility` at true positions, limited to the trained range.

    >>> tsa_plan(81, trained_frames=21).largest_position
    20.0
    """
    settings = settings or derive_settings(trained_frames)
    positions = relative_positions(frames)
    if frames > trained_frames:
        positions = positions.clamp(1 - trained_frames, trained_frames - 1)
    visibility = tsa_visibility(frames, trained_frames, settings)
    return FramePlan(positions, visibility, settings.stripe, positions_optional=True)
