"""FreeLOC's own methods, which profiles refer to by name: none, VRPR, TSA, and both.

They are registered here together with the baselines, in the way that any plugin registers its own.
"""

from typing import Protocol

from pydantic import BaseModel, ConfigDict

from freeloc.markers import hookimpl
from freeloc.plans.baselines import BASELINES
from freeloc.plans.combined import BALANCED, COMBINED
from freeloc.plans.frame_plan import FramePlan
from freeloc.plans.method import Method, ProfileLike
from freeloc.plans.tsa import TsaSettings, derive_settings, tsa_plan, tsa_visibility
from freeloc.plans.vrpr import VrprPart, vrpr_plan, vrpr_positions
from freeloc.plans.windows import LVSA

SOURCE = "FreeLOC, arXiv 2603.25209"


class BothSettings(BaseModel):
    """Settings of VRPR and TSA on the same layer.

    >>> from freeloc import load_profile
    >>> _both_of(load_profile("wan2.1")).tsa
    TsaSettings(dense_frames=8, striped_frames=24, stripe=0.125, sink_frames=1)

    Attributes:
        vrpr: how positions are re-encoded.
        tsa: which frames attend to each other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    vrpr: VrprPart
    tsa: TsaSettings


class OwnProfileLike(ProfileLike, Protocol):
    """What the methods of this module read from a profile: the settings for policies that have none of their own."""

    @property
    def vrpr(self) -> VrprPart:
        """How positions are re-encoded."""

    @property
    def tsa(self) -> TsaSettings | None:
        """Which frames attend to each other; None means that they are derived from the trained length."""


def _vrpr_of(profile: OwnProfileLike) -> VrprPart:
    return profile.vrpr


def _tsa_of(profile: OwnProfileLike) -> TsaSettings:
    return profile.tsa or derive_settings(profile.model.trained_latent_frames)


def _both_of(profile: OwnProfileLike) -> BothSettings:
    return BothSettings(vrpr=_vrpr_of(profile), tsa=_tsa_of(profile))


def _none(profile: ProfileLike, layer: int, frames: int) -> FramePlan:
    return FramePlan.identity(frames)


def _vrpr(profile: ProfileLike, layer: int, frames: int, settings: VrprPart) -> FramePlan:
    trained = profile.model.trained_latent_frames
    return vrpr_plan(frames, trained, settings.lengths.get(str(frames)), settings.flooring)


def _tsa(profile: ProfileLike, layer: int, frames: int, settings: TsaSettings) -> FramePlan:
    return tsa_plan(frames, profile.model.trained_latent_frames, settings)


def _both(profile: ProfileLike, layer: int, frames: int, settings: BothSettings) -> FramePlan:
    trained, vrpr = profile.model.trained_latent_frames, settings.vrpr
    positions = vrpr_positions(frames, trained, vrpr.lengths.get(str(frames)), vrpr.flooring)
    return FramePlan(positions, tsa_visibility(frames, trained, settings.tsa), settings.tsa.stripe)


POLICIES = [
    Method("none", _none, "the unchanged layer", colour="#bbbbbb"),
    Method("vrpr", _vrpr, SOURCE, settings=VrprPart, defaults=_vrpr_of, colour="#0072b2"),
    Method("tsa", _tsa, SOURCE, settings=TsaSettings, defaults=_tsa_of, colour="#e69f00"),
    Method("vrpr+tsa", _both, SOURCE, settings=BothSettings, defaults=_both_of, colour="#009e73"),
]
"""The colours are distinct for colour-blind readers and in print, after Okabe and Ito."""


@hookimpl
def freeloc_methods() -> list[Method]:
    """FreeLOC's own methods, their combinations with others, and the baselines."""
    return [*POLICIES, BALANCED, COMBINED, *BASELINES, LVSA]
