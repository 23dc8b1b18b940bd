"""The node ``freeloc: report``."""

from freeloc.errors import FreelocError

from .sampling import correction_of


class Report:
    """Says what freeloc did in the sampling run that made a latent."""

    CATEGORY = "freeloc"
    DESCRIPTION = (
        "What freeloc did in a sampling run: per layer the method, the calls, the largest position before and after. "
        "Connect the MODEL of 'freeloc: long video' and the LATENT of the sampler that used it. Show the text with "
        "'Preview as Text'."
    )
    FUNCTION = "report"
    RETURN_TYPES = ("STRING", "LATENT")
    RETURN_NAMES = ("report", "latent")
    OUTPUT_TOOLTIPS = ("What ran, as text.", "The latent, unchanged.")
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        """The inputs."""
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The MODEL that the sampler used, from 'freeloc: long video'."}),
                "latent": ("LATENT", {"tooltip": "What the sampler made with it."}),
            }
        }

    def report(self, model, latent):
        """The report of the run that made the latent, or of the last one with a sentence that says so."""
        correction = correction_of(model)
        if correction is None:
            raise FreelocError("no 'freeloc: long video' node is before this MODEL: connect the MODEL output of one")
        text = text_for(correction, _tensor(latent["samples"]))
        return {"ui": {"text": (text,)}, "result": (text, latent)}


def text_for(correction, latent):
    """The text about the run that made a latent."""
    runs = list(correction.runs)
    if not runs:
        raise FreelocError(
            "no sampler has used this MODEL yet: connect the MODEL of 'freeloc: long video' to the sampler whose "
            "LATENT comes here"
        )
    for run in reversed(runs):
        if run.made(latent):
            return run.text
    return f"this LATENT did not come straight from a run of this MODEL; its last run:\n{runs[-1].text}"


def _tensor(samples):
    """A latent as the sampler returned it: of a video with sound, packed into one tensor."""
    if not getattr(samples, "is_nested", False):
        return samples
    from comfy.utils import pack_latents

    return pack_latents(samples.unbind())[0]
