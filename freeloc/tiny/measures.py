"""Measures of one video of the synthetic dataset.

Their arguments are a video (3, frames, height, width) in 0..1 and its prompt. Compare each with its value for true
clips.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from freeloc.metrics import measures as metrics
from freeloc.tiny.judge import labels, load_judge
from freeloc.tiny.synthetic import PANS

LAND = 12
"""Rows at the bottom of a frame that hold the land: hills, valleys and nearly all of the poles."""

REACH = 6
"""Largest motion of the land that the search includes, in pixels per frame."""

_judge = functools.cache(load_judge)


def identity(video: Tensor, prompt: str) -> float:
    """Share of frames in which a classifier finds the prompted shape in the prompted colour.

    >>> from freeloc.tiny.synthetic import clips
    >>> video = clips(["red ring fast"], 21, torch.Generator().manual_seed(0))[0]
    >>> identity(video, "red ring fast"), identity(video, "red disc fast")
    (1.0, 0.0)
    """
    colour, shape = (logits.argmax(dim=1) for logits in _judge()(video.transpose(0, 1)))
    expected_colour, expected_shape = labels([prompt])
    return float(((colour == expected_colour) & (shape == expected_shape)).float().mean())


def land_motion(video: Tensor) -> Tensor:
    """How far the camera moves along the land between frames, (frames - 1,), in whole pixels.

    It is the shift for which the land of two frames differs least.
    """
    land = video[:, :, -LAND:]
    width = land.shape[-1] - 2 * REACH
    before, after = land[:, :-1, :, REACH : REACH + width], land[:, 1:]
    shifts = list(range(-REACH, REACH + 1))
    # When the camera moves east by s pixels, column x shows what was at column x + s.
    # Differences are clamped, so that a shape in front of the land does not decide.
    errors = [
        (after[..., REACH - shift : REACH - shift + width] - before).abs().clamp(max=0.05).mean(dim=(0, 2, 3))
        for shift in shifts
    ]  # one (frames - 1,) per shift
    return torch.tensor(shifts)[torch.stack(errors).argmin(dim=0)]


def pan_accuracy(video: Tensor, prompt: str) -> float:
    """Share of frame pairs in which the land moves as prompted, to the nearest pixel. It falls when a video freezes.

    >>> from freeloc.tiny.synthetic import clips
    >>> pan_accuracy(clips(["red ring slow"], 30, torch.Generator().manual_seed(0))[0], "red ring slow") > 0.9
    True
    """
    return float((land_motion(video) == PANS[prompt.split()[2]]).float().mean())


def without_prompt(measure: Callable[[Tensor], float]) -> Callable[[Tensor, str], float]:
    """A measure of `freeloc.metrics` as one of a video (3, frames, height, width) and a prompt."""
    return lambda video, prompt: measure(video.movedim(0, -1))


MEASURES: dict[str, Callable[[Tensor, str], float]] = {
    "identity": identity,
    "land as prompted": pan_accuracy,
    **{name: without_prompt(measure) for name, measure in metrics.MEASURES.items()},
}
"""The two measures of this dataset, and the general ones of `freeloc.metrics`."""
