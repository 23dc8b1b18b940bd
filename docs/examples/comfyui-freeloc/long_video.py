"""The node ``freeloc: long video``."""

from freeloc.errors import FreelocError
from freeloc.untrusted import brief

from .choosing import (
    AS_PROFILE,
    backends,
    choose,
    latent_frames,
    methods,
    require_plain_noise,
    temporal_ratio,
    transformer_of,
)
from .sampling import Correction, correction_of

MOST_FRAMES = 100_000
"""Largest value of trained_frames, in video frames."""

MOST_REFERENCES = 1000
"""Largest value of reference_frames, in latent frames."""


def require_values(method, trained_frames, reference_frames, backend):
    """Require values that the inputs allow. ComfyUI checks what is typed, and not what comes from other nodes.

    Raises:
        FreelocError: if one is another.
    """
    for name, value, least, most in (
        ("trained_frames", trained_frames, 0, MOST_FRAMES),
        ("reference_frames", reference_frames, -1, MOST_REFERENCES),
    ):
        if type(value) is not int or not least <= value <= most:
            raise FreelocError(f"expected {name} to be a whole number from {least} to {most}, found {brief(value)}")
    for name, value, known in (
        ("method", method, [AS_PROFILE, *methods()]),
        ("backend", backend, ["auto", *backends()]),
    ):
        if value not in known:
            raise FreelocError(f"expected {name} to be one of {', '.join(known)}, found {brief(value)}")


class LongVideo:
    """Corrects a video model while samplers use it."""

    CATEGORY = "freeloc"
    DESCRIPTION = (
        "Lets a video model make longer videos than it was trained on, without training. Put it between the model and "
        "the sampler, and set the length of the empty latent to what you want. With Wan nothing has to "
        "be set. A video that is not longer than the training clips stays as it is, bit for bit."
    )
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The model for the sampler. For a report of what ran, connect it to 'freeloc: report' as well.",)
    SEARCH_ALIASES = ("long video", "length extrapolation", "RIFLEx", "VRPR", "TSA")

    @classmethod
    def INPUT_TYPES(cls):
        """The inputs: only the model is required."""
        return {
            "required": {"model": ("MODEL", {"tooltip": "A video model, such as Wan, with or without LoRAs."})},
            "optional": {
                "profile": (
                    "FREELOC_PROFILE",
                    {
                        "tooltip": "Which correction each layer gets, from 'freeloc: load profile'. Without one, the "
                        "installed profile that fits the model is used."
                    },
                ),
                "method": (
                    [AS_PROFILE, *methods()],
                    {
                        "default": AS_PROFILE,
                        "tooltip": "'by layer' gives each layer the correction that its profile says. Any other method "
                        "is used on every layer: vrpr and tsa are freeloc's own, the others are there to compare with.",
                    },
                ),
                "trained_frames": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": MOST_FRAMES,
                        "tooltip": "Length of the model's training clips in video frames, such as 81 for Wan. 0: as "
                        "the profile says. Set it for models that have no profile.",
                    },
                ),
                "reference_frames": (
                    "INT",
                    {
                        "default": -1,
                        "min": -1,
                        "max": MOST_REFERENCES,
                        "advanced": True,
                        "tooltip": "How many latent frames at the start of the latent are reference images and no part "
                        "of the video. -1: what the model says.",
                    },
                ),
                "backend": (
                    ["auto", *backends()],
                    {
                        "default": "auto",
                        "advanced": True,
                        "tooltip": "What computes the corrected attention. 'auto' takes the fastest that can.",
                    },
                ),
            },
        }

    def apply(self, model, profile=None, method=AS_PROFILE, trained_frames=0, reference_frames=-1, backend="auto"):
        """A clone of the model that is corrected while it is sampled.

        Raises:
            FreelocError: if this cannot work. The message says what to do. Nothing has been sampled by then.
        """
        require_values(method, trained_frames, reference_frames, backend)
        if correction_of(model) is not None:
            raise FreelocError(
                "this MODEL comes from a 'freeloc: long video' node already, and a model can be corrected once: remove "
                "or bypass one of the two nodes"
            )
        transformer = transformer_of(model)
        chosen = choose(transformer, profile, method, latent_frames(model, trained_frames))
        require_plain_noise(chosen, method)
        correction = Correction(
            chosen,
            None if method == AS_PROFILE else method,
            None if reference_frames < 0 else reference_frames,
            backend,
            frames_per_latent=temporal_ratio(model),
        )
        correction.check(transformer)
        model = model.clone()
        correction.add_to(model)
        return (model,)
