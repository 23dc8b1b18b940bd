"""Measures of sampled videos, and what they must be for a profile to be shipped."""

import torch
import torch.nn.functional as F
from torch import Tensor

from freeloc.metrics.measures import MEASURES as ALL

MEASURES = ("sharpness", "contrast", "dynamic degree", "frozen share", "loop strength", "drift")
"""The measures that are compared with those of short samples, in the order of a cell."""

STRIP_FRAMES, STRIP_HEIGHT = 8, 72
"""Frames of a strip, and their height in pixels."""


def measures_of(video: Tensor) -> Tensor:
    """All `MEASURES` of a video (frames, height, width, 3), (measures,) float64.

    >>> measures_of(torch.rand(5, 16, 16, 3)).shape
    torch.Size([6])
    """
    return torch.tensor([ALL[name](video) for name in MEASURES], dtype=torch.float64)


def strip_of(video: Tensor) -> Tensor:
    """A few frames of a video side by side, (height, width, 3) uint8.

    >>> strip_of(torch.rand(33, 20, 28, 3)).shape
    torch.Size([20, 224, 3])
    """
    chosen = torch.linspace(0, len(video) - 1, STRIP_FRAMES).round().long()
    frames = video[chosen].movedim(-1, 1)
    if frames.shape[2] > STRIP_HEIGHT:
        size = STRIP_HEIGHT, max(1, round(frames.shape[3] * STRIP_HEIGHT / frames.shape[2]))
        frames = F.interpolate(frames, size, mode="bilinear", antialias=True)
    return (torch.cat([*frames.movedim(1, -1)], dim=1).clamp(0, 1) * 255).round().byte()
