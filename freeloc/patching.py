"""patch and unpatch: one line that makes a model go long, and its undoing."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from torch import nn

from freeloc.adapter.spec import Adapter
from freeloc.discovery import components, transformers_of
from freeloc.errors import PatchError
from freeloc.interception.hooks import ModelHook, model_hooks
from freeloc.interception.kernel_call import Observer
from freeloc.plans.method import Method, PlanFunction, Plans
from freeloc.profile.files import load_profile
from freeloc.profile.matching import fitting_profile, require_fit
from freeloc.profile.planning import require_noise, require_settings, resolve_method
from freeloc.profile.schema import Profile
from freeloc.report import Report


class Patch:
    """A correction that is on a model until `remove`, or until the end of its ``with`` block."""

    def __init__(self, hooks: list[ModelHook], profile: Profile) -> None:
        self.profile = profile
        self._hooks = hooks
        self._removed = False

    def remove(self) -> None:
        """Leave the model as it was before `patch`. Idempotent."""
        self._removed = True
        for hook in self._hooks:
            hook.remove()

    def report(self) -> Report:
        """What ran so far: per layer the method, calls, frames, positions and density; and what was not corrected."""
        label = f"{self.profile.model.name}, {self.profile.provenance.kind}"
        return Report(label, [[layer.report for layer in hook.layers] for hook in self._hooks])

    def __enter__(self) -> "Patch":
        if self._removed:
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
    noise_prepared: bool = False,
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
            installed profile that fits the model, a published one before probed and these before default ones.
        adapter: describes the model; by default found from its class.
        method: instead of the profile's choice, one method on every layer: a name (``freeloc methods`` lists them:
            ``vrpr``, ``tsa``, ``vrpr+tsa``, ``sliding-window``, ``riflex`` ...), a `Method`, or a function
            (profile, layer, latent frames) -> `FramePlan`, or one per head.
        noise_prepared: that the caller starts from the noise that the method requires (`Method.noise`: FreeNoise).

    Returns:
        A `Patch`: a context manager with ``remove()`` and ``report()``.

    Raises:
        ProfileError: if the profile is missing, malformed, or for another model.
        AdapterError: if no adapter describes the model, or without a profile its trained length is not known.
        RegistryError: if no method has that name.
        PatchError: if the model is patched already, or cannot do what the profile or method asks for, or a method
            requires noise of its own and `noise_prepared` is not given.
    """
    name, function = resolve_method(method)
    require_noise(method, noise_prepared)
    found = transformers_of(model_or_pipeline, adapter)
    loaded = load_profile(profile) if profile is not None else fitting_profile(*found[0], any_layers=method is not None)
    for transformer, known in found:
        require_fit(loaded, known.shape(transformer), (known.name, known.family))

    require_settings(method, loaded)
    if method is None:
        require_noise(loaded, noise_prepared)

    def method_name(layer: int) -> str:
        return name or ", ".join(dict.fromkeys(loaded.head_policies(layer)))

    def plan(layer: int, frames: int) -> Plans:
        return function(loaded, layer, frames)

    hooks = install(found, loaded.model.name, method_name, plan)
    try:
        for hook in hooks:
            hook.require_executable(2 * loaded.model.trained_latent_frames)
    except BaseException:
        for hook in hooks:
            hook.remove()
        raise
    return Patch(hooks, loaded)


def install(
    found: Sequence[tuple[nn.Module, Adapter]],
    label: str,
    method_name: Callable[[int], str],
    plan: Callable[[int, int], Plans],
    observer: Observer | None = None,
) -> list[ModelHook]:
    """Hooks on all of these transformers, or on none of them.

    Raises:
        PatchError: if one is patched already.
    """
    for transformer, _ in found:
        for hook in model_hooks(transformer):
            raise PatchError(
                f"this {type(transformer).__name__} is patched already, with the profile for {hook.label}; undo that "
                "first: call remove() on its Patch, leave its with block, or call freeloc.unpatch(model)"
            )
    hooks: list[ModelHook] = []
    try:
        for transformer, known in found:
            hooks.append(ModelHook(transformer, known, label, method_name, plan, observer))
    except BaseException:
        for hook in hooks:
            hook.remove()
        raise
    return hooks


def unpatch(model_or_pipeline: object) -> None:
    """Remove every patch from a model or from all models of a pipeline. Idempotent."""
    for part in components(model_or_pipeline):
        for module in part.modules():
            for hook in list(model_hooks(module)):
                hook.remove()
