"""A setting of the bench: a profile or a method, perhaps with other noise, and how a model is patched with it."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

import freeloc
from freeloc.errors import FreelocError
from freeloc.plans.frame_plan import FramePlan
from freeloc.plans.method import Method, Plans
from freeloc.profile.files import with_choice
from freeloc.profile.planning import methods_used, noise_method, resolve_method
from freeloc.profile.policies import resolve_policy, resolved_with
from freeloc.profile.schema import PolicyPart, Profile

NOISE_OF = ", noise of "
"""Between the name of a setting and that of the method whose initial noise it starts from."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to generate long videos.

    A method whose settings have a field ``step`` makes another plan for each denoising step. Then the model is patched
    anew at each step, with the number of the step in that field.

    Attributes:
        name: the name in tables.
        profile: the profile, also where a method replaces its choice of layers.
        method: one method on every layer; None for the profile's choice.
        noise_of: a method whose initial noise is used with it.
    """

    name: str
    profile: Profile
    method: Method | None = None
    noise_of: Method | None = None

    def with_noise_of(self, method: Method) -> "Setting":
        """The same setting, from the initial noise of this method.

        Raises:
            FreelocError: if the method has no noise of its own.
        """
        if method.noise is None:
            raise FreelocError(
                f"expected a method with initial noise of its own, such as freenoise, found {method.name}"
            )
        return dataclasses.replace(self, name=f"{self.name}{NOISE_OF}{method.name}", noise_of=method)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of the plans of all layers at 2, 4 and 8 times the trained length, and the noise function's name."""
        content = hashlib.sha256()
        for step in (0, 1) if self.changes_by_step else (0,):
            one = self.at(step)
            _, plan_of = resolve_method(one.method)
            for times in (2, 4, 8):
                frames = times * (one.profile.model.trained_latent_frames - 1) + 1
                for layer in range(one.profile.model.layers):
                    for plan in _as_list(plan_of(one.profile, layer, frames)):
                        _add(content, plan)
        noise = self.noise
        return f"{content.hexdigest()[:16]} {_name(noise)}".strip()

    @property
    def noise(self) -> Method | None:
        """The method whose initial noise videos start from, if it is not plain noise.

        Raises:
            PatchError: if methods of different layers require different noise.
        """
        return noise_method(self.profile, self.method, self.noise_of or "auto")

    def prepared(self, initial: Tensor, frames_axis: int, seed: int) -> Tensor:
        """Initial noise as this setting requires it.

        Args:
            initial: plain noise, in the latents' layout, with a batch and channels.
            frames_axis: its axis of frames, 1 or 2.
            seed: of what the noise function draws.
        """
        method = self.noise
        if method is None or method.noise is None:
            return initial
        generator = torch.Generator().manual_seed(seed)
        trained = self.profile.model.trained_latent_frames
        return method.noise(initial.movedim(frames_axis, 2), trained, generator).movedim(2, frames_axis).contiguous()

    @property
    def changes_by_step(self) -> bool:
        """Whether plans differ from denoising step to step."""
        return any(_takes_step(method) for method in methods_used(self.method or self.profile))

    def at(self, step: int) -> "Setting":
        """This setting at one denoising step."""
        if not self.changes_by_step:
            return self
        if self.method:
            return dataclasses.replace(self, method=_method_at(self.method, step))
        policies = dict(self.profile.policies)
        for policy in self.profile.used_policies:
            method = resolve_policy(self.profile, policy).method
            if _takes_step(method):
                own = policies[policy].settings if policy in policies else {}
                policies[policy] = PolicyPart(method=method.name, settings={**own, "step": step})
        changed = with_choice(self.profile, self.profile.layers, self.profile.heads, self.name, policies=policies)
        return dataclasses.replace(self, profile=changed)

    @contextmanager
    def patched(self, model_or_pipeline: object) -> Iterator[Callable[[int], None]]:
        """Patch a model or pipeline while the block runs. Call what it yields after each denoising step."""
        patch = self._patch(model_or_pipeline, 0)

        def after_step(step: int) -> None:
            nonlocal patch
            if self.changes_by_step:
                patch.remove()
                patch = self._patch(model_or_pipeline, step + 1)

        try:
            yield after_step
        finally:
            patch.remove()

    def _patch(self, model_or_pipeline: object, step: int) -> freeloc.Patch:
        one = self.at(step)
        noise = one.noise_of or "auto"
        return freeloc.patch(model_or_pipeline, one.profile, method=one.method, noise=noise, noise_prepared=True)


def _name(noise: Method | None) -> str:
    return "" if noise is None else getattr(noise.noise, "__name__", noise.name)


def _takes_step(method: Method) -> bool:
    return method.settings is not None and "step" in method.settings.model_fields


def _method_at(method: Method, step: int) -> Method:
    """A method of one denoising step."""

    def plan(profile: Profile, layer: int, frames: int) -> Plans:
        settings = resolved_with(profile, method).settings
        return method.plan(profile, layer, frames, settings and settings.model_copy(update={"step": step}))

    return dataclasses.replace(method, plan=plan, settings=None, defaults=None, label=None)


def _as_list(plans: Plans) -> list[FramePlan]:
    return [plans] if isinstance(plans, FramePlan) else list(plans)


def _add(content: "hashlib._Hash", plan: FramePlan) -> None:
    """Add all fields of a plan that are given, whatever fields there are."""
    for field in dataclasses.fields(plan):
        value = getattr(plan, field.name)
        if isinstance(value, Tensor):
            content.update(field.name.encode() + value.contiguous().numpy().tobytes())
        elif value is not None:
            content.update(f"{field.name} {value!r}".encode())
