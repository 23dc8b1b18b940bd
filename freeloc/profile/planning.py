"""The methods by name, and from a profile to the plan of one layer at one length. Pure: no model is needed."""

from functools import partial

from freeloc.errors import FreelocError
from freeloc.markers import hookimpl
from freeloc.plans.baselines import BASELINES
from freeloc.plans.frame_plan import FramePlan
from freeloc.plans.method import Method, PlanFunction, Plans
from freeloc.plans.tsa import derive_settings, tsa_plan, tsa_visibility
from freeloc.plans.vrpr import vrpr_positions
from freeloc.profile.schema import POLICIES, Policy, Profile
from freeloc.registry import registry


def frame_plan(profile: Profile, layer: int, frames: int, head: int | None = None) -> FramePlan:
    """The plan that a profile gives a layer for a video of so many latent frames.

    >>> from freeloc import load_profile
    >>> plan = frame_plan(load_profile("wan2.1"), layer=0, frames=81)
    >>> plan.largest_position, round(plan.density(tokens_per_frame=1560), 2)
    (20.0, 0.28)

    Args:
        profile: see `Profile`.
        layer: 0 to ``profile.model.layers - 1``.
        frames: latent frames of the video, at least 1.
        head: one of the layer's heads; by default the layer's own plan, which most profiles give to all its heads.

    Raises:
        FreelocError: if there is no such layer or head.
    """
    if head is None:
        return policy_plan(profile, profile.policy(layer), frames)
    if head not in range(profile.model.heads):
        raise FreelocError(f"expected a head from 0 to {profile.model.heads - 1}, found {head}")
    return policy_plan(profile, profile.head_policies(layer)[head], frames)


def layer_plans(profile: Profile, layer: int, frames: int) -> Plans:
    """`frame_plan` of a layer; one for each head where the profile tells them apart."""
    policies = profile.head_policies(layer)
    plans = {policy: policy_plan(profile, policy, frames) for policy in set(policies)}
    return [plans[policy] for policy in policies] if len(plans) > 1 else plans[policies[0]]


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


def _everywhere(policy: Policy, profile: Profile, layer: int, frames: int) -> FramePlan:
    return policy_plan(profile, policy, frames)


@hookimpl
def freeloc_methods() -> list[Method]:
    """Each policy on every layer, and the methods to compare with."""
    source = "FreeLOC, arXiv 2603.25209, the same on every layer"
    policies = [Method(policy, partial(_everywhere, policy), source) for policy in POLICIES if policy != "none"]
    return [*policies, *BASELINES]


def resolve_method(method: str | Method | PlanFunction | None) -> tuple[str | None, PlanFunction]:
    """What `patch` was told to do, and its name: the profile's own choice (None), a method, or any such function.

    Raises:
        RegistryError: if no method has that name (near names are suggested).
    """
    if method is None:
        return None, layer_plans
    if isinstance(method, str):
        method = registry().methods.get(method, way_out="; or give a function (profile, layer, frames) -> FramePlan")
    if isinstance(method, Method):
        return method.name, method.plan
    if callable(method):
        return getattr(method, "__name__", type(method).__name__), method
    raise FreelocError(f"expected method to be a name, a Method or a function, found {method!r}")
