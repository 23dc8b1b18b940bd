"""Combined: positions, visibility, balance, slope and temperature, each chosen on its own; and one choice, balanced.

Parts that are left out change nothing, except positions: those are VRPR's, since true ones leave the trained range. At
or below the trained length nothing changes.
"""

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from freeloc.plans.combined_settings import (
    Attention,
    BalancedSettings,
    ClippedPositions,
    CombinedSettings,
    Positions,
    SmoothPositions,
    Temperature,
    Tiers,
    VrprPositions,
    Window,
    balanced_label,
    combined_label,
)
from freeloc.plans.frame_plan import FramePlan, relative_positions
from freeloc.plans.logits import LogarithmOfKeys, balance_bias, slope_bias, visible_share
from freeloc.plans.method import Method, ProfileLike
from freeloc.plans.smooth import smooth_positions
from freeloc.plans.tsa import TsaSettings, derive_settings, tsa_visibility
from freeloc.plans.vrpr import VrprPart, vrpr_positions
from freeloc.plans.windows import window_visibility


class CombinedProfileLike(ProfileLike, Protocol):
    """What these methods read from a profile: the settings of parts that have none of their own."""

    @property
    def vrpr(self) -> VrprPart:
        """How positions are re-encoded."""

    @property
    def tsa(self) -> TsaSettings | None:
        """Which frames attend to each other; None means that they are derived from the trained length."""


def combined_plan(
    frames: int,
    trained_frames: int,
    settings: CombinedSettings,
    vrpr: VrprPart | None = None,
    tsa: TsaSettings | None = None,
) -> FramePlan:
    """The plan of some parts, the identity up to the trained length.

    >>> plan = combined_plan(81, trained_frames=21, settings=CombinedSettings(balance=0.25))
    >>> plan.largest_position, round(float(plan.bias.min()), 3)
    (20.0, -0.52)

    Args:
        frames: latent frames of the video.
        trained_frames: latent frames of the clips that the model was trained on.
        settings: the parts.
        vrpr, tsa: settings of VRPR and TSA where a part has none; by default derived ones.
    """
    if frames <= trained_frames:
        return FramePlan.identity(frames)
    positions = _positions(frames, trained_frames, settings.positions, vrpr or VrprPart())
    tiers = _tiers(settings.attention, tsa or derive_settings(trained_frames))
    visibility = _visibility(frames, trained_frames, settings.attention, tiers)
    plan = FramePlan(
        positions,
        visibility,
        0.125 if tiers is None else tiers.stripe,
        positions_optional=settings.positions == ClippedPositions(),
    )
    bias = _bias(trained_frames, settings, plan)
    return replace(plan, bias=bias, logit_scale=_scale(trained_frames, settings.temperature, plan, bias))


def _positions(frames: int, trained_frames: int, part: Positions, vrpr: VrprPart) -> Tensor:
    limit = trained_frames - 1
    match part:
        case ClippedPositions(distance=distance):
            reach = limit if distance is None else min(distance, limit)
            return relative_positions(frames).clamp(-reach, reach)
        case SmoothPositions(near_frames=near, curve=curve):
            return smooth_positions(frames, trained_frames, near, curve)
        case VrprPositions(settings=own):
            chosen = own or vrpr
            return vrpr_positions(frames, trained_frames, chosen.lengths.get(str(frames)), chosen.flooring)
    return relative_positions(frames)


def _tiers(part: Attention, usual: TsaSettings) -> TsaSettings | None:
    if not isinstance(part, Tiers):
        return None
    return usual if part.settings is None else part.settings


def _visibility(frames: int, trained_frames: int, part: Attention, tiers: TsaSettings | None) -> Tensor:
    if tiers is not None:
        return tsa_visibility(frames, trained_frames, tiers)
    if isinstance(part, Window):
        window = trained_frames if part.frames is None else part.frames
        return window_visibility(frames, window, part.sink_frames, part.anchor_every, part.anchor_offset)
    return FramePlan.identity(frames).visibility


def _bias(trained_frames: int, settings: CombinedSettings, plan: FramePlan) -> Tensor | None:
    """What all parts add to the logits, or None if it is nothing."""
    bias = torch.zeros_like(plan.positions)
    if settings.balance:
        bias += balance_bias(plan.positions, plan.visibility, plan.stripe, settings.balance)
    if settings.slope is not None:
        near = trained_frames - 1 if settings.slope.near_frames is None else settings.slope.near_frames
        bias += slope_bias(plan.frames, settings.slope.per_frame, near)
    return bias if bias.any() else None


def _scale(trained_frames: int, part: Temperature, plan: FramePlan, bias: Tensor | None) -> float | LogarithmOfKeys:
    """The factor on all logits. The rule counts what a frame in the middle sees, each with the weight of its bias."""
    if not part.strength:
        return part.factor
    share = visible_share(plan.visibility, plan.stripe)
    weight = share if bias is None else share * bias.exp()
    return LogarithmOfKeys(float(weight[plan.frames // 2].sum()), trained_frames, part.strength, part.factor)


def _combined(profile: CombinedProfileLike, layer: int, frames: int, settings: CombinedSettings) -> FramePlan:
    return combined_plan(frames, profile.model.trained_latent_frames, settings, profile.vrpr, profile.tsa)


def _balanced(profile: ProfileLike, layer: int, frames: int, settings: BalancedSettings) -> FramePlan:
    parts = CombinedSettings(balance=settings.balance, temperature=Temperature(factor=settings.factor))
    return combined_plan(frames, profile.model.trained_latent_frames, parts, settings.vrpr)


def _balanced_of(profile: CombinedProfileLike) -> BalancedSettings:
    return BalancedSettings(vrpr=profile.vrpr)


COMBINED = Method(
    "combined",
    _combined,
    "freeloc; parts from arXiv 2603.25209, 1803.02155, 2004.05150, 2309.17453, 2108.12409, 2202.12172",
    settings=CombinedSettings,
    colour="#56b4e9",
    label=combined_label,
)
BALANCED = Method(
    "balanced",
    _balanced,
    "freeloc; VRPR, frames that share a position share its weight in part, slightly sharper attention",
    settings=BalancedSettings,
    defaults=_balanced_of,
    colour="#cc79a7",
    label=balanced_label,
)
