"""The node ``freeloc: long video``."""

from freeloc.errors import FreelocError

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
                        "max": 100_000,
                        "tooltip": "Length of the model's training clips in video frames, such as 81 for Wan. 0: as "
                        "the profile says. Set it for models that have no profile.",
                    },
                ),
                "reference_frames": (
                    "INT",
                    {
                        "default": -1,
                        "min": -1,
                        "max": 1000,
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
