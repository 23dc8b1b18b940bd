"""What can be seen to go wrong in a video of the tiny world.

All take videos (clips, 3, frames, height, width) in 0..1 and a prompt for each.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from freeloc.tiny.world import COLOURS, PANS

LAND = 12
"""Rows at the bottom of a frame that hold all of the land: hills, valleys and poles."""

REACH = 6
"""Largest motion of the land that is looked for, in pixels per frame."""


def sharpness(videos: Tensor, prompts: list[str]) -> float:
    """Mean absolute Laplacian of brightness: falls when detail is lost.

    >>> sharpness(torch.zeros(1, 3, 2, 20, 28), ["red ring fast"])
    0.0
    """
    grey = videos.mean(dim=1).flatten(0, 1)[:, None]
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])
    return float(F.conv2d(grey, kernel[None, None]).abs().mean())


def pan_accuracy(videos: Tensor, prompts: list[str]) -> float:
    """Share of frame pairs in which the land moves as prompted, to the nearest pixel: falls when a video freezes.

    >>> from freeloc.tiny.world import clips
    >>> prompts = ["red ring fast", "blue disc slow"] * 8
    >>> pan_accuracy(clips(prompts, 30, torch.Generator().manual_seed(0)), prompts) > 0.9
    True
    """
    land = videos[:, :, :, -LAND:]
    steps = list(range(-REACH, REACH + 1))
    width = land.shape[-1] - 2 * REACH
    before, after = land[:, :, :-1, :, REACH : REACH + width], land[:, :, 1:]
    # A camera that goes east by s pixels shows at column x what was at column x + s before.
    # Large differences count as one size: a shape in front of the land must not decide.
    errors = [
        (after[..., REACH - step : REACH - step + width] - before).abs().clamp(max=0.05).mean(dim=(1, 3, 4))
        for step in steps
    ]  # one (clips, frames - 1) per step
    found = torch.tensor(steps)[torch.stack(errors).argmin(dim=0)]
    wanted = torch.tensor([PANS[prompt.split()[2]] for prompt in prompts])
    return float((found == wanted[:, None]).float().mean())


def shape_visible(videos: Tensor, prompts: list[str]) -> float:
    """Share of frames with at least 12 pixels of about the shape's colour: falls when the shape fades or turns.

    >>> shape_visible(torch.zeros(1, 3, 2, 20, 28), ["red ring fast"])
    0.0
    """
    ink = torch.tensor([COLOURS[prompt.split()[0]] for prompt in prompts])
    distance = (videos - ink[:, :, None, None, None]).abs().amax(dim=1)  # (clips, frames, height, width)
    return float(((distance < 0.2).sum(dim=(2, 3)) >= 12).float().mean())


MEASURES: dict[str, Callable[[Tensor, list[str]], float]] = {
    "sharpness": sharpness,
    "land moves as prompted": pan_accuracy,
    "shape in its colour": shape_visible,
}
"""All of them; compare each with its value for true clips."""
