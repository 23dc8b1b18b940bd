"""The node ``freeloc: measure``."""

import math

import torch

from freeloc.errors import FreelocError
from freeloc.metrics import MEASURES
from freeloc.metrics.scorers import DEFECTS
from freeloc.pictures import drift_chart

LEAST = 3
"""Fewest frames that every measure works on."""

MEANING = {
    "sharpness": "low: blurred, high: noisy",
    "contrast": "low: faded",
    "dynamic degree": "low: little motion",
    "motion smoothness": "low: jerks",
    "flicker": "high: flickering light",
    "frozen share": "high: stands still",
    "loop strength": "high: repeats itself",
    "drift": "high: colours drift",
}
"""What each measure shows."""


class Measure:
    """Measures of a long video, as a table and a chart."""

    CATEGORY = "freeloc"
    DESCRIPTION = (
        "Measures a video, without downloading anything: sharpness, motion, flicker, freezing, looping, drift of "
        "colours. Connect a second video to compare, such as the same prompt and seed without freeloc. Never read one "
        "measure alone: a video that stands still never flickers."
    )
    FUNCTION = "measure"
    RETURN_TYPES = ("STRING", "IMAGE")
    RETURN_NAMES = ("table", "chart")
    OUTPUT_TOOLTIPS = ("The measures as text.", "How far colours are apart, by distance in frames.")

    @classmethod
    def INPUT_TYPES(cls):
        """The inputs: one video or two."""
        return {
            "required": {"images": ("IMAGE", {"tooltip": "The frames of a video."})},
            "optional": {"compare_with": ("IMAGE", {"tooltip": "The frames of another video, to compare."})},
        }

    def measure(self, images, compare_with=None):
        """The table and the chart."""
        videos = {"images": video_of("images", images)}
        if compare_with is not None:
            videos["compare_with"] = video_of("compare_with", compare_with)
        return table(videos), pixels(drift_chart({name: [video] for name, video in videos.items()}))


def video_of(name, images):
    """A batch of images as a video (frames, height, width, 3) in 0..1: what a file of it would hold."""
    if images.ndim != 4 or len(images) < LEAST:
        raise FreelocError(
            f"freeloc: measure: expected {name} to be the frames of a video, at least {LEAST}, found "
            f"{len(images)} of them: connect the IMAGE output of the VAE decoder, not a single picture"
        )
    video = images[..., :3].float()
    return (video if video.shape[-1] == 3 else video.expand(*video.shape[:3], 3)).clamp(0, 1)


def table(videos):
    """The measures, one line each."""
    found = {name: [measure(video) for measure in MEASURES.values()] for name, video in videos.items()}
    width = max(12, *(len(name) for name in found))
    lines = [f"{'measure':18}{''.join(f'{name:>{width + 2}}' for name in found)}  meaning"]
    for index, name in enumerate(MEASURES):
        values = "".join(f"{shown(values[index]):>{width + 2}}" for values in found.values())
        lines.append(f"{name:18}{values}  {MEANING.get(name, 'a defect' if name in DEFECTS else '')}".rstrip())
    sizes = (f"{name}: {len(video)} frames of {video.shape[2]} x {video.shape[1]}" for name, video in videos.items())
    return "\n".join([*lines, *sizes])


def shown(value):
    """A number; in words where motion is not measured."""
    return "no texture" if math.isnan(value) else f"{value:.4f}"


def pixels(figure):
    """A figure as a batch of one image, (1, height, width, 3) in 0..1."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = canvas.get_width_height()
    raw = torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8).view(height, width, 4)
    return raw[None, :, :, :3].float() / 255
