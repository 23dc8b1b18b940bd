"""From a profile to the plan of one layer at one length. Pure: no model is needed."""

from collections.abc import Callable

from freeloc.errors import FreelocError
from freeloc.plan import FramePlan
from freeloc.profile import POLICIES, Policy, Profile
from freeloc.tsa import derive_settings, tsa_plan, tsa_visibility
from freeloc.vrpr import vrpr_positions

Method = Callable[[Profile, int, int], FramePlan]
"""(profile, layer, latent frames) -> plan."""


def frame_plan(profile: Profile, layer: int, frames: int) -> FramePlan:
    """The plan that a profile gives a layer for a video of so many latent frames.

    >>> from freeloc import load_profile
    >>> plan = frame_plan(load_profile("wan2.1"), layer=0, frames=81)
    >>> plan.largest_position, round(plan.density(tokens_per_frame=1560), 2)
    (20.0, 0.28)

    Args:
        profile: see `Profile`.
        layer: 0 to ``profile.model.layers - 1``.
        frames: latent frames of the video, at least 1.
    """
    return policy_plan(profile, profile.policy(layer), frames)


def policy_plan(profile: Profile, policy: Policy, frames: int) -> FramePlan:
    """The plan of a policy under a profile's settings. At or below the trained length it is the identity."""
    trained = profile.model.trained_latent_frames
    if policy == "none" or frames <= trained:
        return FramePlan.identity(frames)
    tsa = profile.tsa or derive_settings(trained)
    if policy == "tsa":
        return tsa_plan(frames, trained, tsa)
    positions = vrpr_positions(frames, trained, profile.vrpr.lengths.get(str(frames)), profile.vrpr.flooring)
    visibility = FramePlan.identity(frames).visibility if policy == "vrpr" else tsa_visibility(frames, trained, tsa)
    return FramePlan(positions, visibility, tsa.stripe)


def resolve_method(method: str | Method | None) -> Method:
    """What `patch` was told to do: the profile's own choice, one policy everywhere, or any function of this kind."""
    if method is None:
        return frame_plan
    if callable(method):
        return method
    for policy in POLICIES:
        if method == policy:
            return lambda profile, layer, frames: policy_plan(profile, policy, frames)
    raise FreelocError(f"expected method to be a function or one of {', '.join(POLICIES)}, found {method!r}")
