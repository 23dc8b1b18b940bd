"""VRPR: re-encode untrained relative positions into the trained range, finely when near and coarsely when far.

Source: FreeLOC, arXiv 2603.25209, video-based relative position re-encoding.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from typing_extensions import Self

from freeloc.plans.frame_plan import DENSE, FramePlan, relative_positions

Flooring = Literal["distance", "position"]
"""``"distance"``: the paper's formula, floor((i - j) / group). ``"position"``: the published code's, floor(i / group) -
floor(j / group), which differs from it by at most 1 and is therefore not always monotone."""

MID_GROUP, FAR_GROUP = 2, 8
"""Published group sizes. The far group is doubled until the video fits."""

LARGEST = 10**9
"""Largest value of a setting: far beyond any video, and far below what overflows in a tensor."""


class VrprSettings(BaseModel):
    """Three tiers of distance between frames. Each number is at most 10**9.

    >>> VrprSettings(near_frames=10, mid_frames=14, mid_group=2, far_group=8).mid_frames
    14

    Attributes:
        near_frames: W1; up to this distance positions are exact.
        mid_frames: W2; up to this distance positions are floored to groups of `mid_group` frames, beyond it of
            `far_group` frames.
        mid_group: G1, in latent frames.
        far_group: G2, in latent frames.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    near_frames: Annotated[int, Field(le=LARGEST)]
    mid_frames: Annotated[int, Field(le=LARGEST)]
    mid_group: Annotated[int, Field(gt=0, le=LARGEST)]
    far_group: Annotated[int, Field(gt=0, le=LARGEST)]

    @model_validator(mode="after")
    def _tiers_in_order(self) -> Self:
        if not 0 <= self.near_frames <= self.mid_frames:
            raise ValueError(f"0 <= near_frames <= mid_frames, found {self.near_frames} and {self.mid_frames}")
        if self.mid_group > self.far_group:
            raise ValueError(f"mid_group <= far_group, found {self.mid_group} and {self.far_group}")
        return self


class VrprPart(BaseModel):
    """Settings of VRPR for any length.

    >>> VrprPart(lengths={"81": VrprSettings(near_frames=10, mid_frames=14, mid_group=2, far_group=8)}).flooring
    'distance'

    Attributes:
        flooring: ``"distance"`` as in the paper, ``"position"`` as in its published code.
        lengths: settings by number of latent frames; for every other length, those of `derive_settings`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    flooring: Flooring = "distance"
    lengths: dict[Annotated[str, Field(pattern=r"^[1-9][0-9]{0,5}$")], VrprSettings] = {}


def derive_settings(frames: int, trained_frames: int) -> VrprSettings:
    """Settings for lengths that the paper does not list.

    Let c = trained_frames - 1, the largest trained distance, and m = frames - 1, the largest distance in the video. The
    groups are the published 2 and 8. The mid tier is 0.8 c**2 / m frames wide (as published at 2x and 4x). The near
    window is the widest for which the farthest pair is still inside the trained range. If that window would be narrower
    than 0.4 c, the far group is doubled until it is not.

    >>> derive_settings(161, trained_frames=21)
    VrprSettings(near_frames=9, mid_frames=11, mid_group=2, far_group=16)

    Args:
        frames: latent frames of the video.
        trained_frames: latent frames of the clips that the model was trained on.
    """
    limit, farthest = trained_frames - 1, frames - 1
    if farthest <= limit:
        return VrprSettings(near_frames=limit, mid_frames=limit, mid_group=MID_GROUP, far_group=FAR_GROUP)
    mid_width = round(0.8 * limit**2 / farthest)
    far_group = FAR_GROUP
    while True:
        for near in range(limit, math.ceil(0.4 * limit) - 1, -1):
            settings = VrprSettings(
                near_frames=near, mid_frames=near + mid_width, mid_group=MID_GROUP, far_group=far_group
            )
            if _tiers(torch.tensor([farthest]), settings) <= limit:
                return settings
        far_group *= 2


def vrpr_positions(
    frames: int, trained_frames: int, settings: VrprSettings | None = None, flooring: Flooring = "distance"
) -> Tensor:
    """Re-encoded relative positions, (frames, frames) float64, never beyond ``trained_frames - 1``.

    With distance a = abs(i - j): near a; mid floor(a / G1) + W1 - floor(W1 / G1); far floor(a / G2) - floor(W2 / G2)
    continued from the end of the mid tier; then the sign of i - j.

    >>> vrpr_positions(9, trained_frames=5)[-1]
    tensor([4., 3., 3., 3., 3., 2., 2., 1., 0.], dtype=torch.float64)

    Args:
        frames: latent frames of the video.
        trained_frames: latent frames of the clips that the model was trained on.
        settings: tiers; by default `derive_settings`.
        flooring: see `Flooring`.
    """
    true = relative_positions(frames)
    if frames <= trained_frames:
        return true
    settings = settings or derive_settings(frames, trained_frames)
    index = torch.arange(frames) if flooring == "position" else None
    magnitude = _tiers(true.abs().long(), settings, index)
    return true.sign() * magnitude.clamp(max=trained_frames - 1)


def vrpr_plan(
    frames: int, trained_frames: int, settings: VrprSettings | None = None, flooring: Flooring = "distance"
) -> FramePlan:
    """`vrpr_positions` with every pair visible.

    >>> vrpr_plan(81, trained_frames=21).largest_position
    20.0
    """
    dense = torch.full((frames, frames), DENSE, dtype=torch.uint8)
    return FramePlan(vrpr_positions(frames, trained_frames, settings, flooring), dense)


def _tiers(distance: Tensor, settings: VrprSettings, index: Tensor | None = None) -> Tensor:
    """Re-encoded distances, before clamping. With `index`, each frame's own position is floored, not the distance."""
    near, mid = settings.near_frames, settings.mid_frames

    def groups_apart(group: int) -> Tensor:
        if index is None:
            return distance // group
        return (index[:, None] // group - index[None, :] // group).abs()

    mid_shift = near - near // settings.mid_group
    far_shift = mid // settings.mid_group + mid_shift - mid // settings.far_group
    in_mid, in_far = groups_apart(settings.mid_group) + mid_shift, groups_apart(settings.far_group) + far_shift
    return torch.where(distance <= near, distance, torch.where(distance <= mid, in_mid, in_far))
