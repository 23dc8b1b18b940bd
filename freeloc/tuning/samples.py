"""Measures of sampled videos, and the limits within which a profile is shipped."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from freeloc.metrics.measures import MEASURES as ALL

STRIP_FRAMES, STRIP_HEIGHT = 8, 72
"""Frames of a strip, and their height in pixels."""


@dataclass(frozen=True)
class Limit:
    """What a measure of long videos may be, given that of short samples: ``factor * short + plus``.

    Args:
        measure: name of the measure.
        factor, plus: the limit.
        most: whether the limit is the largest value allowed; else it is the smallest.
        fault: what a video outside the limit does.
    """

    measure: str
    factor: float
    plus: float
    most: bool
    fault: str

    def of(self, *videos: Tensor) -> list[Tensor]:
        """The values of the measure, (prompts,), of each of these (prompts, measures)."""
        return [values[:, MEASURES.index(self.measure)] for values in videos]

    def excess(self, long: Tensor, short: Tensor) -> tuple[float, float]:
        """How far long videos (prompts,) are outside the limit, mean and standard error; negative if inside.

        Videos without the measure, such as motion where nothing has texture, do not count.
        """
        outside = (long - (self.factor * short + self.plus)) * (1 if self.most else -1)
        known = outside[outside.isfinite()]
        error = float(known.std() / len(known) ** 0.5) if len(known) > 1 else 0.0
        return float(known.mean()) if len(known) else 0.0, error


LIMITS = (
    Limit("sharpness", 0.7, 0.0, False, "is blurred"),
    Limit("sharpness", 1.4, 0.0, True, "is too sharp"),
    Limit("contrast", 0.7, 0.0, False, "is grey"),
    Limit("contrast", 1.4, 0.0, True, "has too much contrast"),
    Limit("dynamic degree", 0.5, 0.0, False, "hardly moves"),
    Limit("dynamic degree", 2.0, 0.0, True, "moves too much"),
    Limit("frozen share", 1.0, 0.1, True, "freezes"),
    Limit("loop strength", 1.0, 0.2, True, "loops"),
    Limit("drift", 1.5, 0.02, True, "drifts in colour"),
)
"""The limits, compared with uncorrected samples of the trained length.

In true clips of the tiny model's world, 21 to 161 frames long, sharpness, contrast and motion differ by at most 11 %
from those of 21 frames, drift falls, and loop strength rises from 0.10 to 0.23 (docs/chance.py). So the limits leave
true videos room, and what is outside is a fault of the correction, or of the model.
"""

MEASURES = tuple(dict.fromkeys(limit.measure for limit in LIMITS))
"""The measures, in the order of a cell."""


def measures_of(video: Tensor) -> Tensor:
    """All `MEASURES` of a video (frames, height, width, 3), (measures,) float64.

    >>> measures_of(torch.rand(5, 16, 16, 3)).shape
    torch.Size([6])
    """
    return torch.tensor([ALL[name](video) for name in MEASURES], dtype=torch.float64)


def faults(long: Tensor, short: Tensor) -> list[Limit]:
    """The limits that long videos break by more than one standard error.

    >>> short = torch.tensor([[1.0, 1.0, 10.0, 0.0, 0.1, 0.1]] * 3)
    >>> frozen = short * torch.tensor([1, 1, 0.1, 1, 1, 1])
    >>> [limit.fault for limit in faults(frozen, short)]
    ['hardly moves']

    Args:
        long, short: (prompts, measures), of long videos and of samples of the trained length with the same prompts.
    """
    found = []
    for limit in LIMITS:
        mean, error = limit.excess(*limit.of(long, short))
        if mean > error:
            found.append(limit)
    return found


def nearer(first: Tensor, second: Tensor, short: Tensor, limit: Limit) -> bool:
    """Whether the first videos are less outside a limit than the second."""
    return limit.excess(*limit.of(first, short))[0] < limit.excess(*limit.of(second, short))[0]


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
