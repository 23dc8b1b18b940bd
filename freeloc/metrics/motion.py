"""Motion between frames by exhaustive block matching: no weights, exact for whole pixels, at any size of frame."""

import torch
import torch.nn.functional as F
from torch import Tensor

RADIUS = 6
"""Largest displacement that is looked for along an axis, in pixels of the working size."""

WORKING_HEIGHT = 64
"""Frames are reduced to at most so many pixels along their shorter side before motion is looked for."""

NOISE = 0.5 / 255
"""Half a step of 8 bits: a longer displacement must match better by more than that."""


def displacements(radius: int = RADIUS) -> Tensor:
    """All displacements (x, y) that are tried, nearest first, ((2 radius + 1) ** 2, 2).

    >>> displacements(1)[:3].tolist()
    [[0, 0], [-1, 0], [0, -1]]
    """
    steps = torch.arange(-radius, radius + 1)
    every = torch.cartesian_prod(steps, steps)
    return every[every.square().sum(dim=1).argsort(stable=True)]


def motion_field(video: Tensor, radius: int = RADIUS, block: int = 7) -> Tensor:
    """Where each pixel of a frame went in the next one, (frames - 1, height, width, 2): x and y in pixels.

    The displacement whose block of neighbours differs least in mean absolute colour. From short to long, one replaces
    the best so far only where it is better by more than `NOISE`, so that noise on plain areas is no motion. A change of
    light can be taken for one.

    >>> frame = torch.rand(1, 16, 20, 3)
    >>> video = torch.cat([frame, frame.roll(2, dims=2)])  # the whole picture goes right by 2 pixels
    >>> motion_field(video)[0, 8, 10].tolist()
    [2.0, 0.0]

    Args:
        video: (frames, height, width, channels); large frames are best made small before: see `working_size`.
        radius: largest displacement along an axis, in pixels.
        block: side of a block, in pixels, odd.
    """
    before, after = video[:-1].movedim(-1, 1), video[1:].movedim(-1, 1)
    return _best(before, after, displacements(radius), block)


def inner(field: Tensor, margin: int = RADIUS) -> Tensor:
    """A motion field (frames, height, width, 2) without its border, from which pixels leave the frame unseen.

    >>> inner(torch.zeros(1, 48, 64, 2)).shape, inner(torch.zeros(1, 8, 8, 2)).shape
    (torch.Size([1, 36, 52, 2]), torch.Size([1, 4, 4, 2]))
    """
    top, left = (min(margin, side // 4) for side in field.shape[1:3])
    return field[:, top : field.shape[1] - top, left : field.shape[2] - left]


def between(video: Tensor, radius: int = RADIUS, block: int = 7) -> Tensor:
    """Each inner frame as its two neighbours predict it, (frames - 2, height, width, channels).

    A pixel is taken to have come from -d and to go on to +d, with the d for which both neighbours agree best; what it
    looks like in between is their mean there. The frame itself is not looked at.

    >>> frame = torch.rand(1, 16, 20, 3)
    >>> video = torch.cat([frame.roll(step, dims=2) for step in (0, 1, 2)])
    >>> torch.allclose(between(video)[0, 4:-4, 4:-4], video[1, 4:-4, 4:-4])
    True
    """
    before, after = video[:-2].movedim(-1, 1), video[2:].movedim(-1, 1)
    field = _best(before, after, displacements(radius), block, both_sides=True)
    mean = (_look_up(before, -field) + _look_up(after, field)) / 2
    return mean.movedim(1, -1)


def working_size(video: Tensor) -> Tensor:
    """A video (frames, height, width, channels) reduced to the working size, if it is larger.

    >>> working_size(torch.rand(2, 480, 832, 3)).shape
    torch.Size([2, 64, 111, 3])
    """
    shorter = min(video.shape[1:3])
    if shorter <= WORKING_HEIGHT:
        return video
    factor = shorter / WORKING_HEIGHT
    size = [round(side / factor) for side in video.shape[1:3]]
    return F.interpolate(video.movedim(-1, 1), size=size, mode="area").movedim(1, -1)


def _best(before: Tensor, after: Tensor, tried: Tensor, block: int, both_sides: bool = False) -> Tensor:
    """The displacement of least block difference, (frames, height, width, 2), for frames (frames, channels, ...).

    With `both_sides`, seen from a frame in between: there from -d, and on to +d.
    """
    count, _, height, width = before.shape
    least = torch.full((count, height, width), torch.inf)
    best = torch.zeros(count, height, width, dtype=torch.long)
    for index, (x, y) in enumerate(tried.tolist()):
        start = _shifted(before, -x, -y) if both_sides else before
        difference = (start - _shifted(after, x, y)).abs().mean(dim=1, keepdim=True)
        cost = F.avg_pool2d(difference, block, stride=1, padding=block // 2, count_include_pad=False)[:, 0]
        better = cost < least - NOISE
        least, best = torch.where(better, cost, least), torch.where(better, index, best)
    return tried[best].to(before.dtype)


def _shifted(frames: Tensor, x: int, y: int) -> Tensor:
    """Frames whose pixel p shows what was at p + (x, y); beyond the border, what is at the border."""
    height, width = frames.shape[-2:]
    rows = (torch.arange(height) + y).clamp(0, height - 1)
    columns = (torch.arange(width) + x).clamp(0, width - 1)
    return frames[..., rows, :][..., columns]


def _look_up(frames: Tensor, field: Tensor) -> Tensor:
    """Frames (frames, channels, height, width) whose pixel p shows what was at p + field (frames, height, width, 2)."""
    count, channels, height, width = frames.shape
    columns = (torch.arange(width) + field[..., 0].long()).clamp(0, width - 1)
    rows = (torch.arange(height)[:, None] + field[..., 1].long()).clamp(0, height - 1)
    index = (rows * width + columns).flatten(1)[:, None].expand(-1, channels, -1)
    return frames.flatten(2).gather(2, index).view(count, channels, height, width)
