"""From a profile to the plan of one layer at one length. These are pure functions: they need no model."""

from collections.abc import Sequence
from functools import partial

from freeloc.errors import FreelocError, PatchError
from freeloc.plans.frame_plan import FramePlan
from freeloc.plans.length import VideoLength, plan_of_length, plans_of_length
from freeloc.plans.method import Method, PlanFunction, Plans
from freeloc.profile.policies import noise_named, resolve_policy, resolved_with
from freeloc.profile.schema import Policy, Profile
from freeloc.registry import registry


def frame_plan(
    profile: Profile, layer: int, frames: int, head: int | None = None, reference_frames: tuple[int, int] = (0, 0)
) -> FramePlan:
    """The plan of a layer under a profile, for a video with a given number of latent frames.

    >>> from freeloc import load_profile
    >>> plan = frame_plan(load_profile("wan2.1"), layer=0, frames=81)
    >>> plan.largest_position, round(plan.density(tokens_per_frame=1560), 2)
    (20.0, 0.28)

    Args:
        profile: the profile.
        layer: 0 to ``profile.model.layers - 1``.
        frames: latent frames of the call, at least 1.
        head: index of a head; by default the plan of the layer, which most profiles use for all its heads.
        reference_frames: how many of the first and of the last latent frames are reference images.

    Raises:
        FreelocError: if there is no such layer or head, or there are no other frames than references.
    """
    if head is not None and head not in range(profile.model.heads):
        raise FreelocError(f"expected a head from 0 to {profile.model.heads - 1}, found {head}")
    policy = profile.policy(layer) if head is None else profile.head_policies(layer)[head]
    length = VideoLength(frames, *reference_frames)
    if length.video < 1:
        raise FreelocError(f"expected more latent frames than {sum(reference_frames)} references, found {frames}")
    plan = policy_plan(profile, policy, length.video, layer, head)
    return plan_of_length(plan, length, profile.model.trained_latent_frames)


def layer_plans(profile: Profile, layer: int, frames: int) -> Plans:
    """`frame_plan` of a layer; one for each head if the profile or a method treats them differently."""
    policies = profile.head_policies(layer)
    plans = {policy: policy_plans(profile, policy, frames, layer) for policy in dict.fromkeys(policies)}
    if len(plans) == 1:
        return plans[policies[0]]
    return [_of_head(plans[policy], head) for head, policy in enumerate(policies)]


def policy_plan(profile: Profile, policy: Policy, frames: int, layer: int = 0, head: int | None = None) -> FramePlan:
    """The plan of a policy under a profile's settings. At or below the trained length it is the identity.

    >>> from freeloc import load_profile
    >>> policy_plan(load_profile("wan2.1"), "sliding-window", frames=81).largest_position
    20.0

    Args:
        profile: the profile that has the definitions and settings.
        policy: a policy that the profile defines, or any registered method.
        frames: latent frames of the video.
        layer: for a method that treats layers differently.
        head: for a method that treats heads differently.

    Raises:
        ProfileError: if there is no such policy, or its method requires settings and has none.
        FreelocError: without a head, if the method gives heads different plans.
    """
    plans = policy_plans(profile, policy, frames, layer)
    if head is not None:
        return _of_head(plans, head)
    first = _of_head(plans, 0)
    if not isinstance(plans, FramePlan) and not all(plan.same_as(first) for plan in plans):
        raise FreelocError(
            f"the policy '{policy}' gives the heads of layer {layer} different plans: expected one of them, "
            f"head=0 to {profile.model.heads - 1}, found head=None"
        )
    return first


def policy_plans(profile: Profile, policy: Policy, frames: int, layer: int = 0) -> Plans:
    """The plans of a layer under a policy: one plan, or one per head. Up to the trained length it is the identity.

    Raises:
        ProfileError: if there is no such policy, or its method requires settings and has none.
        FreelocError: if the method returns something else.
    """
    resolved = resolve_policy(profile, policy)
    if frames <= profile.model.trained_latent_frames:
        return FramePlan.identity(frames)
    plans = resolved.plans(profile, layer, frames)
    _require_plans(plans, resolved.method.name, frames, profile.model.heads)
    return plans


def plans_of_call(profile: Profile, layer: int, length: VideoLength, plan: PlanFunction | None = None) -> Plans:
    """`layer_plans` for a call whose frames have any spacing, and with its reference images.

    Args:
        profile: the profile.
        layer: number of the layer.
        length: the latent frames of the call.
        plan: instead of `layer_plans`, a function (profile, layer, latent frames of the video) -> plans.
    """
    trained = profile.model.trained_latent_frames
    as_trained = profile if length.spacing == 1 else of_trained_length(profile, length.trained_frames(trained))
    return plans_of_length((plan or layer_plans)(as_trained, layer, length.video), length, trained)


def of_trained_length(profile: Profile, frames: int) -> Profile:
    """A profile with another trained length, for calls whose frames are further apart than in training, or nearer.

    Settings for single lengths do not apply to it.
    """
    model = profile.model.model_copy(update={"trained_latent_frames": frames})
    return profile.model_copy(update={"model": model, "vrpr": profile.vrpr.model_copy(update={"lengths": {}})})


def _require_plans(plans: object, method: str, frames: int, heads: int) -> None:
    """Require that a method returned one plan for this number of frames, or one per head."""
    expected = (
        f"expected the method '{method}' to return a FramePlan of {frames} latent frames, or {heads}, one per head"
    )
    if isinstance(plans, Sequence) and len(plans) != heads:
        raise FreelocError(f"{expected}, found {len(plans)}")
    for plan in plans if isinstance(plans, Sequence) else [plans]:
        if not isinstance(plan, FramePlan):
            raise FreelocError(f"{expected}, found {type(plan).__name__}")
        if plan.frames != frames:
            raise FreelocError(f"{expected}, found one of {plan.frames} latent frames")


def _of_head(plans: Plans, head: int) -> FramePlan:
    return plans if isinstance(plans, FramePlan) else plans[head]


def resolve_method(method: str | Method | PlanFunction | None) -> tuple[str | None, PlanFunction]:
    """The name and the plan function of the `method` argument of `patch`. The name is None for the profile's choice.

    Raises:
        RegistryError: if no method has that name (the message suggests similar names).
    """
    if method is None:
        return None, layer_plans
    if isinstance(method, str):
        method = registry().methods.get(method, way_out="; or give a function (profile, layer, frames) -> FramePlan")
    if isinstance(method, Method):
        return method.name, method.plan if method.settings is None else partial(_method_plans, method)
    if callable(method):
        return getattr(method, "__name__", type(method).__name__), method
    raise FreelocError(f"expected method to be a name, a Method or a function, found {method!r}")


def _method_plans(method: Method, profile: Profile, layer: int, frames: int) -> Plans:
    return resolved_with(profile, method).plans(profile, layer, frames)


def methods_used(method_or_profile: str | Method | PlanFunction | Profile | None) -> list[Method]:
    """The registered methods behind a method, or behind the layers and heads of a profile, each once.

    >>> from freeloc import load_profile
    >>> [method.name for method in methods_used(load_profile("wan2.1"))]
    ['vrpr', 'vrpr+tsa']
    """
    if isinstance(method_or_profile, Profile):
        profile = method_or_profile
        used = [resolve_policy(profile, policy).method for policy in profile.used_policies]
        return list({method.name: method for method in used}.values())
    if isinstance(method_or_profile, str):
        return [registry().methods.get(method_or_profile)]
    return [method_or_profile] if isinstance(method_or_profile, Method) else []


def require_settings(method: str | Method | PlanFunction | None, profile: Profile) -> None:
    """Require that the profile has all settings that the method, or without one each of its policies, requires.

    Raises:
        ProfileError: if it does not. The message says what is missing.
    """
    if method is None:
        methods_used(profile)
    else:
        for own in methods_used(method):
            resolved_with(profile, own)


def noise_method(
    profile: Profile, method: str | Method | PlanFunction | None = None, noise: str | Method | None = "auto"
) -> Method | None:
    """The method from whose initial noise long videos start; None if they start from that of the sampling code.

    >>> from freeloc import load_profile
    >>> noise_method(load_profile("wan2.1")), noise_method(load_profile("wan2.1"), "freenoise").name
    (None, 'freenoise')

    Args:
        profile: its `noise`, and that of the methods of its layers and heads, counts if there is no `method`.
        method: the method that replaces its choice.
        noise: ``"auto"``, or what replaces `Profile.noise`: a method with noise of its own, or None.

    Raises:
        ProfileError: if no method with noise of its own has this name.
        PatchError: if methods require different noise, or one requires noise and `noise` is None.
    """
    required = [own for own in methods_used(profile if method is None else method) if own.noise is not None]
    chosen = (profile.noise if method is None else None) if noise == "auto" else noise
    if chosen is not None:
        found = chosen if isinstance(chosen, Method) and chosen.noise is not None else None
        required.append(found or noise_named(chosen.name if isinstance(chosen, Method) else chosen))
    functions = list(dict.fromkeys(own.noise for own in required))
    if len(functions) > 1:
        names = " and ".join(dict.fromkeys(own.name for own in required))
        raise PatchError(f"expected one method with initial noise of its own, found {names}: one video has one noise")
    if required and noise is None:
        raise PatchError(
            f"the method '{required[0].name}' requires initial noise of its own, and is another method without it: "
            "expected noise='auto', found None. If your code prepares it, say noise_prepared=True"
        )
    return required[-1] if required else None
