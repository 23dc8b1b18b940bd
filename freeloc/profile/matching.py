"""Finding the profile that fits a model, and making a default one where none does."""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from freeloc.adapter.spec import Adapter, ModelShape
from freeloc.discovery import transformers_of
from freeloc.errors import AdapterError, ProfileError
from freeloc.profile.files import load_profile, validated
from freeloc.profile.schema import POLICIES, Policy, Profile, version_for
from freeloc.registry import registry

KINDS = ("published", "probed", "default")
"""The kinds of provenance, the preferred one first."""

NOT_MEASURED = "freeloc.default_profile(model, trained_latent_frames=...) makes one that is not measured."


def require_fit(profile: Profile, found: Sequence[tuple[nn.Module, Adapter]]) -> None:
    """Require that a profile was made for these transformers, with their adapters.

    Raises:
        ProfileError: if it was not. The message has the numbers of both, and the installed profiles that fit.
    """
    for transformer, adapter in found:
        shape, names = adapter.shape(transformer), (adapter.name, adapter.family)
        if adapter.layer_numbers:  # of another of these transformers, which must fit itself
            shape = replace(shape, layers=profile.model.layers)
        require_shape(profile, shape, names)


def require_shape(profile: Profile, shape: ModelShape, adapter_names: tuple[str, ...]) -> None:
    """Require that a profile was made for models of this shape, with one of these adapters or families.

    Raises:
        ProfileError: if it was not.
    """
    wrong = [
        f"{getattr(profile.model, name)} {name}, found {getattr(shape, name)}"
        for name in ("layers", "heads", "head_dim")
        if getattr(profile.model, name) != getattr(shape, name)
    ]
    if profile.adapter not in adapter_names:
        wrong.insert(0, f"the adapter '{profile.adapter}', found '{adapter_names[0]}'")
    if wrong:
        fitting = ", ".join(name for name, _ in fitting_profiles(shape, adapter_names)) or "none"
        raise ProfileError(
            f"the profile for {profile.model.name} does not fit this model: expected {'; '.join(wrong)}. "
            f"Installed profiles that fit: {fitting}. {NOT_MEASURED}"
        )


def fitting_profiles(shape: ModelShape, adapter_names: tuple[str, ...]) -> list[tuple[str, Profile]]:
    """Installed profiles for models of this shape."""
    found = []
    for name, _, path in registry().profiles.things():
        try:
            profile = load_profile(path)
        except ProfileError:  # reported when the user loads it or lists profiles
            continue
        same = (profile.model.layers, profile.model.heads, profile.model.head_dim)
        if profile.adapter in adapter_names and same == (shape.layers, shape.heads, shape.head_dim):
            found.append((name, profile))
    return found


def fitting_profile(transformer: nn.Module, adapter: Adapter, any_layers: bool = False) -> Profile:
    """The installed profile that is used for a model when the user gives none.

    Published profiles are preferred to probed ones, and these to default ones. So installing one more profile for a
    model does not change its results, unless the new one is of a better kind.

    With `any_layers`, which is for a method that replaces the choice of layers, there may be several profiles of the
    best kind if they have the same settings. Then a default profile with these settings is used.

    Raises:
        ProfileError: if no profile fits, if several of the best kind fit, or if those that fit have different trained
            lengths.
        AdapterError: with `any_layers`, if none fits.
    """
    shape, names = adapter.shape(transformer), (adapter.name, adapter.family)
    fitting = fitting_profiles(shape, names)
    if not fitting and any_layers:
        return default_profile(transformer, adapter=adapter)  # which says that the trained length is not known
    best = [profile for _, profile in _best(fitting)]
    if any_layers and len(best) > 1 and len(_lengths(fitting)) == 1:
        first = best[0]
        if all((profile.vrpr, profile.tsa) == (first.vrpr, first.tsa) for profile in best):
            settings = {"vrpr": first.vrpr, "tsa": first.tsa}
            return default_profile(transformer, adapter=adapter).model_copy(update=settings)
    return fitting_profile_of(shape, names, type(transformer).__name__)


def fitting_profile_of(shape: ModelShape, adapter_names: tuple[str, ...], model: str = "model") -> Profile:
    """The installed profile that is used for a model of this shape when the user gives none: see `fitting_profile`.

    Raises:
        ProfileError: if no profile fits, if several of the best kind fit, or if those that fit have different trained
            lengths.
    """
    fitting = fitting_profiles(shape, adapter_names)
    best = _best(fitting)
    lengths = _lengths(fitting)
    if len(lengths) == len(best) == 1:
        return best[0][1]
    found = "none installed fits"
    if len(lengths) > 1:
        each = (f"{name} ({profile.model.trained_latent_frames})" for name, profile in fitting)
        found = f"the installed ones that fit differ in the trained length: {', '.join(each)}"
    elif best:
        found = f"several installed ones fit: {', '.join(name for name, _ in best)}"
    raise ProfileError(f"expected profile=... for this {model}: {found}. {NOT_MEASURED}")


def _best(fitting: Sequence[tuple[str, Profile]]) -> list[tuple[str, Profile]]:
    """Those of the preferred kind."""
    kind = min((profile.provenance.kind for _, profile in fitting), key=KINDS.index, default=None)
    return [(name, profile) for name, profile in fitting if profile.provenance.kind == kind]


def _lengths(fitting: Sequence[tuple[str, Profile]]) -> set[int]:
    return {profile.model.trained_latent_frames for _, profile in fitting}


def default_profile(
    model: object,
    policy: Policy = "balanced",
    trained_latent_frames: int | None = None,
    *,
    adapter: Adapter | None = None,
) -> Profile:
    """A profile with the same policy on every layer, for any model that an adapter describes. It is not measured.

    Args:
        model: a transformer or a pipeline.
        policy: ``none``, ``vrpr``, ``tsa``, ``vrpr+tsa``, or any other registered method (``freeloc methods``). By
            default ``balanced``, which was never worse than VRPR alone on the models that were measured
            (docs/long-video-bench.md). It attends to all tokens, so it takes longer than ``vrpr+tsa``.
        trained_latent_frames: length of the model's training clips in latent frames; by default taken from the
            installed profiles for models of this shape.
        adapter: describes the model; by default found from its class.

    Raises:
        AdapterError: if no adapter describes the model, or its trained length is not known.
        ProfileError: if the policy does not exist, or the length is not a positive number.
    """
    if not isinstance(policy, str) or policy not in (*POLICIES, *registry().methods.owners):
        raise ProfileError(
            f"expected policy to be one of {', '.join(POLICIES)}, found {policy!r}; or any method (freeloc methods)"
        )
    transformer, adapter = transformers_of(model, adapter)[0]
    shape = adapter.shape(transformer)
    if trained_latent_frames is None:
        lengths = {
            profile.model.trained_latent_frames
            for _, profile in fitting_profiles(shape, (adapter.name, adapter.family))
        }
        if len(lengths) != 1:
            raise AdapterError(
                f"the trained length of this {type(transformer).__name__} ({shape.layers} layers, {shape.heads} heads) "
                "is not known: make a profile with freeloc.default_profile(model, trained_latent_frames=...), the "
                "latent frames of its training clips (21 for 81 video frames at 4 per latent frame)"
            )
        trained_latent_frames = lengths.pop()
    facts = {
        "name": type(transformer).__name__,
        "layers": shape.layers,
        "heads": shape.heads,
        "head_dim": shape.head_dim,
        "trained_latent_frames": trained_latent_frames,
    }
    content = {
        "schema_version": version_for([], [policy], {}),
        "adapter": adapter.family,
        "model": facts,
        "layers": {policy: list(range(shape.layers))},
        "provenance": {"kind": "default", "source": "freeloc.default_profile", "notes": "Not measured on this model."},
    }
    return validated(content, "default_profile")
