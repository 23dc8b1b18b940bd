"""`patch` corrects a model for long videos, and `unpatch` undoes it."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn

from freeloc.adapter.spec import Adapter
from freeloc.attention.backends import Backend
from freeloc.attention.devices import leave_cpu
from freeloc.discovery import components, transformers_of
from freeloc.errors import FreelocError, PatchError
from freeloc.interception import context
from freeloc.interception.hooks import ModelHook
from freeloc.interception.noise import InitialNoise, axes_of, by_hand
from freeloc.interception.patched import Correction
from freeloc.interception.pipeline_noise import NAME, PreparedLatents, put_on, take_off_latents
from freeloc.interception.registration import patched_models, take_off
from freeloc.plans.length import VideoLength
from freeloc.plans.method import Method, PlanFunction, Plans
from freeloc.profile.files import load_profile
from freeloc.profile.matching import fitting_profile, require_fit
from freeloc.profile.planning import noise_method, plans_of_call, require_settings, resolve_method
from freeloc.profile.schema import Profile
from freeloc.registry import registry
from freeloc.report import NoiseReport, Report
from freeloc.uncorrected import require_all_described


class Patch:
    """A correction that stays on a model until `remove`, or until the end of its ``with`` block."""

    def __init__(
        self,
        hooks: list[ModelHook],
        profile: Profile,
        left: Sequence[str] = (),
        noise: NoiseReport | None = None,
        latents: PreparedLatents | None = None,
    ) -> None:
        self.profile = profile
        self._hooks = hooks
        self._left = list(left)
        self._noise = noise
        self._latents = latents

    def remove(self) -> None:
        """Leave the model as it was before `patch`. Idempotent."""
        if self._latents is not None:
            self._latents.take_off()
        for hook in self._hooks:
            hook.remove()

    def report(self) -> Report:
        """What ran so far: per layer the method, calls, frames, positions, density, backend and uncorrected calls."""
        label = f"{self.profile.model.name}, {self.profile.provenance.kind}"
        return Report(label, [hook.report() for hook in self._hooks], self._left, copy.deepcopy(self._noise))

    def __enter__(self) -> "Patch":
        if any(hook.is_removed for hook in self._hooks):
            raise PatchError("this patch was removed already and corrects nothing: patch the model again")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def patch(
    model_or_pipeline: object,
    profile: str | Path | Profile | None = None,
    *,
    adapter: Adapter | None = None,
    method: str | Method | PlanFunction | None = None,
    backend: str | Backend = "auto",
    noise: str | Method | None = "auto",
    noise_prepared: bool = False,
    reference_frames: int | tuple[int, int] | None = None,
    leave_uncorrected: Sequence[str] = (),
) -> Patch:
    """Correct the attention of a video diffusion transformer for videos longer than it was trained on.

    >>> import freeloc
    >>> from freeloc.tiny.model import load_transformer
    >>> transformer = load_transformer()
    >>> with freeloc.patch(transformer, profile="tiny-wan") as patch:
    ...     pass  # generate here
    >>> print(patch.report().corrected_calls)
    0

    Args:
        model_or_pipeline: a transformer, also compiled or wrapped, or a pipeline, in which every transformer is
            patched.
        profile: name of a profile (``freeloc profiles``), path of a JSON file, or a `Profile`; by default the
            installed profile that fits the model: a published one if there is one, else a probed, else a default one.
        adapter: describes the model; by default found from its class.
        method: instead of the profile's choice, one method on every layer: a name (``freeloc methods`` lists them:
            ``vrpr``, ``tsa``, ``vrpr+tsa``, ``sliding-window``, ``riflex`` ...), a `Method`, or a function
            (profile, layer, latent frames) -> `FramePlan`, or one per head.
        backend: the kernel that computes corrected attention: a name (``freeloc backends`` lists them) or a `Backend`.
            ``"auto"`` chooses, among the backends that support a call, the one with the highest priority.
        reference_frames: how many latent frames of each call are reference images: before the video, or a pair (before,
            after). They are not counted in its length. By default what the adapter or the pipeline says.
        noise: from which initial noise videos beyond the trained length start. ``"auto"``: that of the method or the
            profile, if it has noise of its own (FreeNoise), else that of the pipeline. Or a method with noise of its
            own, to start any other method or profile from it; or None, to ignore `Profile.noise`. The patch prepares
            the noise in ``prepare_latents`` of a pipeline, also that of `latents` that the pipeline is given.
        noise_prepared: True if the caller prepares that noise: then the patch does not.
        leave_uncorrected: what is left as it is, and named in the report: components of a pipeline, such as
            ``["controlnet"]``, paths of modules, with ``*`` for any one name; or arguments of the transformer that hold
            the output of a network elsewhere. By default attention that may be over the video, and that no adapter
            describes, is refused.

    Returns:
        A `Patch`: a context manager with ``remove()`` and ``report()``.

    Raises:
        ProfileError: if the profile is missing, malformed, or for another model.
        AdapterError: if no adapter describes the model, or without a profile its trained length is not known; or if
            more modules may attend over the video than those that are described.
        RegistryError: if no method or backend has that name.
        PatchError: if the model is patched already, or does not support what the profile or method asks for; or if
            noise of a method's own is to be prepared, and it is no pipeline with ``prepare_latents``.
    """
    resolve_method(method)
    backends, references = backends_named(backend), _references(reference_frames)
    found = transformers_of(model_or_pipeline, adapter, leave_uncorrected)
    left = require_all_described(model_or_pipeline, found, leave_uncorrected)
    loaded = load_profile(profile) if profile is not None else fitting_profile(*found[0], any_layers=method is not None)
    require_fit(loaded, found)
    require_settings(method, loaded)
    initial = noise_method(loaded, method, "auto" if noise_prepared and noise is None else noise)
    prepared = None
    if initial is not None and not noise_prepared:
        prepared = _prepared_by_patch(model_or_pipeline, initial, loaded, found[0][1])
    chosen = _Chosen(loaded, method)
    correction = Correction(
        loaded.model.name,
        chosen.method_of,
        chosen.plan,
        backends,
        trained_frames=loaded.model.trained_latent_frames,
        references=references,
        allowed=left.arguments,
        noise=prepared,
    )
    told = NoiseReport(initial.name, loaded.model.trained_latent_frames, by_caller=True) if initial else None
    hooks = hooks_for(found, correction)
    try:
        for hook in hooks:
            hook.install()
        for hook in hooks:
            hook.require_executable(2 * loaded.model.trained_latent_frames)
        latents = put_on(model_or_pipeline, prepared, hooks[0].model)
        return Patch(hooks, loaded, left.names, prepared.report if prepared else told, latents)
    except BaseException:
        if prepared is not None:
            prepared.is_removed = True
            take_off_latents(model_or_pipeline, prepared)
        for hook in hooks:
            hook.remove()
        raise


def _prepared_by_patch(model: object, method: Method, profile: Profile, adapter: Adapter) -> InitialNoise:
    """The noise that a patch is to prepare.

    Raises:
        PatchError: if the model is no pipeline in which it can.
    """
    trained, axes = profile.model.trained_latent_frames, axes_of(adapter)
    if not callable(getattr(model, NAME, None)):
        optional = ", or noise=None to start from plain noise" if profile.noise == method.name else ""
        raise PatchError(
            f"the initial noise of '{method.name}' is prepared in {NAME} of a pipeline: expected such a pipeline, or "
            f"noise_prepared=True{optional}, found {type(model).__name__}, which has no {NAME}. "
            f"{by_hand(method, trained, axes)}"
        )
    return InitialNoise(method, trained, axes)


def hooks_for(found: Sequence[tuple[nn.Module, Adapter]], correction: Correction) -> list[ModelHook]:
    """Hooks for these transformers. The caller installs them, and removes all of them if that fails.

    Raises:
        PatchError: if one is patched already, or an interrupted patch has left hooks on it.
    """
    for transformer, _ in found:
        for module in transformer.modules():
            for model in patched_models(module):
                raise PatchError(
                    f"this {type(transformer).__name__} is patched already, with the profile for "
                    f"{model.correction.label}; undo that first: call remove() on its Patch, leave its with block, or "
                    "call freeloc.unpatch(model)"
                )
    seconds = frozenset(known.beside.argument for _, known in found if known.beside)
    correction = replace(correction, allowed=correction.allowed | seconds)
    return [ModelHook(transformer, known, correction) for transformer, known in found]


def unpatch(model_or_pipeline: object) -> None:
    """Remove every patch from a model or pipeline, including hooks that interrupted calls left behind. Idempotent."""
    context.close_dead()
    leave_cpu()
    take_off_latents(model_or_pipeline)
    for part in components(model_or_pipeline).values():
        for module in part.modules():
            for model in list(patched_models(module)):
                if model.correction.noise is not None:
                    model.correction.noise.is_removed = True
                take_off(module, model)


def backends_named(backend: str | Backend) -> list[Backend]:
    """The backends that ``backend=`` stands for, the preferred one first.

    Raises:
        RegistryError: if none has that name.
    """
    if isinstance(backend, Backend):
        return [backend]
    if not isinstance(backend, str):
        raise FreelocError(f"expected backend to be a name or a freeloc.attention.Backend, found {backend!r}")
    known = registry().backends
    if backend != "auto":
        return [known.get(backend, way_out='; or leave it at "auto"')]
    automatic = [(found.priority, found) for _, _, found in known.things() if found.priority is not None]
    return [found for _, found in sorted(automatic, key=lambda pair: -pair[0])]


def _references(told: object) -> tuple[int, int] | None:
    """References before and after the video, from the argument of `patch`."""
    pair = (told, 0) if isinstance(told, int) and not isinstance(told, bool) else told
    if pair is None or (
        isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(count, int) and count >= 0 for count in pair)
    ):
        return pair
    raise FreelocError(f"expected reference_frames to be a number >= 0, or a pair (before, after), found {told!r}")


class _Chosen:
    """The chosen methods: the profile's own, or one for all layers. Registered methods are pickled by name."""

    def __init__(self, profile: Profile, method: str | Method | PlanFunction | None) -> None:
        self._profile = profile
        self._method = method
        self._name, self._function = resolve_method(method)

    def method_of(self, layer: int) -> str:
        return self._name or ", ".join(dict.fromkeys(self._profile.head_policies(layer)))

    def plan(self, layer: int, length: VideoLength) -> Plans:
        return plans_of_call(self._profile, layer, length, self._function)

    def __reduce__(self) -> Any:
        known = registry().methods.owners.get(self._name or "", [])
        registered = any(method is self._method for _, method in known)
        return _Chosen, (self._profile, self._name if registered else self._method)
