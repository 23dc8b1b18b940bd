"""From what is connected and typed to the profile of a model, or a sentence that says what to do."""

from freeloc.discovery import transformers_of
from freeloc.errors import AdapterError, FreelocError, ProfileError
from freeloc.profile.matching import default_profile, fitting_profile, fitting_profiles, require_fit
from freeloc.profile.planning import noise_method
from freeloc.registry import registry

AS_PROFILE = "by layer"
"""The method that leaves each layer what its profile says."""

DEFAULT_METHOD = "balanced"
"""The method of a model that has no profile."""

FIRST = ("vrpr+tsa", "vrpr", "tsa")
"""freeloc's own methods, at the top of the list."""


def methods():
    """Names of the methods that work on any noise, freeloc's own first."""
    found = [name for name, _, method in registry().methods.things() if method.noise is None and name != "none"]
    return [*FIRST, *(name for name in found if name not in FIRST)]


def backends():
    """Names of the attention backends."""
    return [name for name, _, _ in registry().backends.things()]


def transformer_of(model):
    """The network of a MODEL that freeloc can correct.

    Raises:
        FreelocError: if it is none of a video model that freeloc knows.
    """
    network = model.get_model_object("diffusion_model")
    name = type(model.model).__name__
    if getattr(model.model.latent_format, "latent_dimensions", 3) < 3:
        raise FreelocError(
            f"freeloc makes videos longer, and this MODEL ({name}) makes no videos: connect a video model such as Wan, "
            "or remove the freeloc node"
        )
    try:
        transformers_of(network)
    except AdapterError as error:
        if not str(error).startswith("no adapter describes"):
            reason = str(error).partition(" cannot be corrected: ")[2] or error
            raise FreelocError(f"freeloc cannot correct this MODEL ({name}): {reason}") from error
        kind = f"{type(network).__module__}.{type(network).__qualname__}"
        raise FreelocError(
            f"freeloc does not know this MODEL ({name}, {kind}): remove the freeloc node, or update freeloc; its "
            "docs list the models that it knows under 'Supported models'"
        ) from error
    return network


def temporal_ratio(model):
    """How many video frames one latent frame stands for."""
    return max(1, int(getattr(model.model.latent_format, "temporal_downscale_ratio", 1)))


def latent_frames(model, video_frames):
    """The latent frames of a video of this many frames, as an empty latent of ComfyUI has it; None of 0 frames."""
    return (video_frames - 1) // temporal_ratio(model) + 1 if video_frames else None


def choose(transformer, profile, method, trained):
    """The profile for a network.

    Args:
        transformer: the network.
        profile: what is connected, or None.
        method: the chosen method, or `AS_PROFILE`.
        trained: its trained length in latent frames, or None if it was not given.

    Raises:
        FreelocError: if none fits, or two inputs contradict each other.
    """
    found = transformers_of(transformer)
    network, adapter = found[0]
    if profile is None:
        return _without_profile(network, adapter, method, trained)
    if trained not in (None, profile.model.trained_latent_frames):
        raise FreelocError(
            f"the profile says that {profile.model.name} was trained on {profile.model.trained_latent_frames} latent "
            f"frames, and trained_frames says {trained}: set trained_frames to 0, or disconnect the profile"
        )
    try:
        require_fit(profile, found)
    except ProfileError as error:
        shape, own = adapter.shape(network), profile.model
        fitting = [name for name, _ in fitting_profiles(shape, (adapter.name, adapter.family))]
        raise FreelocError(
            f"the connected profile is for {own.name} ({profile.adapter}, {own.layers} layers, {own.heads} heads of "
            f"{own.head_dim}), and this MODEL is another one ({adapter.family}, {shape.layers} layers, {shape.heads} "
            f"heads of {shape.head_dim}): choose a profile for it in 'freeloc: load profile' "
            f"({', '.join(fitting) or 'none is installed'}), or disconnect the profile and set trained_frames"
        ) from error
    return profile


def require_plain_noise(profile, method):
    """Require that a profile, or the method in its place, starts videos from any noise: other nodes make it.

    Raises:
        FreelocError: if it does not.
    """
    noise = noise_method(profile, None if method == AS_PROFILE else method)
    if noise is not None:
        raise FreelocError(
            f"this profile starts videos from the initial noise of '{noise.name}', which other nodes of ComfyUI make: "
            f"choose another profile, or a method other than '{AS_PROFILE}'"
        )


def _shared(network, adapter):
    """One profile for several that fit and say the same, under all their names: Wan 2.1 14B and Wan 2.2 A14B."""
    fitting = [found for _, found in fitting_profiles(adapter.shape(network), (adapter.name, adapter.family))]
    said = [found.model_dump(exclude={"model": {"name"}, "provenance": {"source", "notes"}}) for found in fitting]
    if len(fitting) < 2 or any(one != said[0] for one in said):
        return None
    names = " or ".join(found.model.name for found in fitting)
    return fitting[0].model_copy(update={"model": fitting[0].model.model_copy(update={"name": names})})


def _without_profile(network, adapter, method, trained):
    fitted = None
    try:
        fitted = _shared(network, adapter) or fitting_profile(network, adapter, any_layers=method != AS_PROFILE)
    except FreelocError as error:
        if trained is None:
            shape = adapter.shape(network)
            raise FreelocError(
                f"freeloc does not know on how long clips this MODEL ({type(network).__name__}, {shape.layers} layers, "
                f"{shape.heads} heads) was trained: set trained_frames, for example to 81, or connect a profile with "
                "'freeloc: load profile'"
            ) from error
    if fitted is not None and trained in (None, fitted.model.trained_latent_frames):
        return fitted
    policy = DEFAULT_METHOD if method == AS_PROFILE else method
    return default_profile(network, policy, trained, adapter=adapter)
