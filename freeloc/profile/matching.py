"""Which profile fits a model, and what to use where none does."""

from torch import nn

from freeloc.adapter.spec import Adapter, ModelShape
from freeloc.discovery import transformers_of
from freeloc.errors import AdapterError, ProfileError
from freeloc.profile.files import load_profile, validated
from freeloc.profile.schema import POLICIES, Policy, Profile, version_for
from freeloc.registry import registry

KINDS = ("published", "probed", "default")
"""Of provenance, the best first."""

NOT_MEASURED = "freeloc.default_profile(model, trained_latent_frames=...) makes one that is not measured."


def require_fit(profile: Profile, shape: ModelShape, adapter_names: tuple[str, ...]) -> None:
    """Refuse a model that a profile was not made for.

    Raises:
        ProfileError: with both numbers, and the installed profiles that would fit.
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
        except ProfileError:  # reported to whoever asks for it, or for the list
            continue
        same = (profile.model.layers, profile.model.heads, profile.model.head_dim)
        if profile.adapter in adapter_names and same == (shape.layers, shape.heads, shape.head_dim):
            found.append((name, profile))
    return found


def fitting_profile(transformer: nn.Module, adapter: Adapter, any_layers: bool = False) -> Profile:
    """What is used where no profile is given: of the installed ones that fit the model, the one of the best kind.

    A published one comes before probed ones, these before default ones: so one more profile for a model does not
    change what its users have, unless it is of a better kind.

    With `any_layers`, for when a method replaces the choice of layers, several of the best kind will do if they agree
    on the methods' settings: their settings in a default profile.

    Raises:
        ProfileError: if none fits, several of the best kind do, or those that fit differ in the trained length.
        AdapterError: with `any_layers`, if none fits.
    """
    fitting = fitting_profiles(adapter.shape(transformer), (adapter.name, adapter.family))
    if not fitting and any_layers:
        return default_profile(transformer, adapter=adapter)  # which says that the trained length is not known
    best_kind = min((profile.provenance.kind for _, profile in fitting), key=KINDS.index, default=None)
    best = [(name, profile) for name, profile in fitting if profile.provenance.kind == best_kind]
    lengths = {profile.model.trained_latent_frames for _, profile in fitting}
    if len(lengths) == 1:
        first = best[0][1]
        if len(best) == 1:
            return first
        if any_layers and all((profile.vrpr, profile.tsa) == (first.vrpr, first.tsa) for _, profile in best):
            settings = {"vrpr": first.vrpr, "tsa": first.tsa}
            return default_profile(transformer, adapter=adapter).model_copy(update=settings)
    found = "none installed fits"
    if len(lengths) > 1:
        each = (f"{name} ({profile.model.trained_latent_frames})" for name, profile in fitting)
        found = f"the installed ones that fit differ in the trained length: {', '.join(each)}"
    elif best:
        found = f"several installed ones fit: {', '.join(name for name, _ in best)}"
    raise ProfileError(f"expected profile=... for this {type(transformer).__name__}: {found}. {NOT_MEASURED}")


def default_profile(
    model: object,
    policy: Policy = "vrpr+tsa",
    trained_latent_frames: int | None = None,
    *,
    adapter: Adapter | None = None,
) -> Profile:
    """The same policy on every layer of any model that an adapter describes. Not measured, and says so.

    Args:
        model: a transformer or a pipeline.
        policy: ``none``, ``vrpr``, ``tsa``, ``vrpr+tsa``, or any other registered method (``freeloc methods``).
        trained_latent_frames: length of the model's training clips in latent frames; by default taken from the
            installed profiles for models of this shape.
        adapter: describes the model; by default found from its class.

    Raises:
        AdapterError: if no adapter describes the model, or its trained length is not known.
        ProfileError: if the policy or the length makes no sense.
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
