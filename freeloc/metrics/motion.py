"""Motion between frames by exhaustive block matching. It needs no weights, and is exact for whole pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor

RADIUS = 6
"""Largest displacement that the search includes along an axis, in pixels of the working size."""

WORKING_HEIGHT = 64
"""Largest size of a frame's shorter side in the search, in pixels. Larger frames are reduced."""

NOISE = 0.5 / 255
"""Half a level of 8 bits: a longer displacement must match better by more than that."""


TEXTURE = 4.5 / 255
"""Least texture of a frame whose motion is measured: see `texture`.

Block matching finds much motion in noise on a plain frame, from a deviation of 2 / 255 on. Measured, in 255ths: plain
grey rounded to 8 bits with dither has a texture of 0.5; with noise of a deviation of 3 it has 3.3; with noise of 5 in
H.264 it has 2.7 (crf 23) and 4.3 (crf 10). Frames of a photograph have 52 to 61, and 5.2 at a tenth of their contrast;
those of the synthetic dataset 56 to 69, and 5.7.
"""

IN_CACHE = 131_072
"""Numbers that are compared at a time, so that they stay in a processor's cache."""

MOST_TEXTURED = 0.05
"""Share of a frame that must have that texture: as much as `freeloc.metrics.dynamic_degree` looks at."""


def displacements(radius: int = RADIUS) -> Tensor:
    """All displacements (x, y) that are tried, nearest first, ((2 radius + 1) ** 2, 2).

    >>> displacements(1)[:3].tolist()
    [[0, 0], [-1, 0], [0, -1]]
    """
    steps = torch.arange(-radius, radius + 1)
    every = torch.cartesian_prod(steps, steps)
    return every[every.square().sum(dim=1).argsort(stable=True)]


def motion_field(video: Tensor, radius: int = RADIUS, block: int = 7) -> Tensor:
    """Displacement of each pixel to the next frame, (frames - 1, height, width, 2): x and y in pixels.

    It is the displacement with the smallest mean absolute difference of colours over a block. Displacements are tried
    from short to long. A longer one must be better by more than `NOISE`, so that noise on plain areas does not count as
    motion. A change of light may be counted as motion.

    >>> frame = torch.rand(1, 16, 20, 3)
    >>> video = torch.cat([frame, frame.roll(2, dims=2)])  # the whole picture moves right by 2 pixels
    >>> motion_field(video)[0, 8, 10].tolist()
    [2.0, 0.0]

    Args:
        video: (frames, height, width, channels). Reduce large frames first, with `working_size`.
        radius: largest displacement along an axis, in pixels.
        block: side of a block, in pixels, odd.
    """
    before, after = video[:-1].movedim(-1, 1), video[1:].movedim(-1, 1)
    return _best(before, after, displacements(radius), block)


def texture(video: Tensor, block: int = 7) -> Tensor:
    """How much structure frames have in which motion can be seen, (frames,), in values of 0..1.

    It is the standard deviation of colours within a block, root mean square over channels, that the most textured 5 %
    of a frame reach.

    >>> texture(torch.full((2, 16, 20, 3), 0.5)).tolist(), bool((texture(torch.rand(2, 16, 20, 3)) > TEXTURE).all())
    ([0.0, 0.0], True)

    Args:
        video: (frames, height, width, channels), of the working size: see `working_size`.
        block: side of a block, in pixels.
    """
    frames = video.movedim(-1, 1).double()
    centred = frames - frames.mean(dim=(2, 3), keepdim=True)  # or rounding would look like texture
    side = min(block, *frames.shape[2:])
    squares, sums = (_window_sums(_window_sums(x, side, 2), side, 3) for x in (centred.square(), centred))
    variance = squares / side**2 - (sums / side**2).square()
    deviation: Tensor = variance.mean(dim=1).clamp(min=0).sqrt().flatten(1)  # (frames, blocks)
    most = max(1, round(MOST_TEXTURED * deviation.shape[1]))
    return deviation.topk(most, dim=1).values[:, -1]


def textured_pairs(video: Tensor) -> Tensor:
    """Which pairs of neighbouring frames have a texture of at least `TEXTURE`, both of them, (frames - 1,) bool.

    >>> plain, full = torch.full((2, 16, 20, 3), 0.5), torch.rand(2, 16, 20, 3)
    >>> textured_pairs(torch.cat([plain, full])).tolist()
    [False, False, True]

    Args:
        video: (frames, height, width, channels), of the working size: see `working_size`.
    """
    has_texture = texture(video) >= TEXTURE
    return has_texture[1:] & has_texture[:-1]


def inner(field: Tensor, margin: int = RADIUS) -> Tensor:
    """A motion field (frames, height, width, 2) without its border, where pixels leave the frame.

    >>> inner(torch.zeros(1, 48, 64, 2)).shape, inner(torch.zeros(1, 8, 8, 2)).shape
    (torch.Size([1, 36, 52, 2]), torch.Size([1, 4, 4, 2]))
    """
    top, left = (min(margin, side // 4) for side in field.shape[1:3])
    return field[:, top : field.shape[1] - top, left : field.shape[2] - left]


def between(video: Tensor, radius: int = RADIUS, block: int = 7) -> Tensor:
    """Prediction of each inner frame from its two neighbours, (frames - 2, height, width, channels).

    A pixel is assumed to move from -d to +d, with the d for which both neighbours agree best. The prediction is the
    mean of both. The inner frame itself is not used.

    >>> frame = torch.rand(1, 16, 20, 3)
    >>> video = torch.cat([frame.roll(offset, dims=2) for offset in (0, 1, 2)])
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

    With `both_sides`, the displacement is that of a frame in between: from -d to +d.
    """
    few = max(1, IN_CACHE // before[0].numel())
    parts = zip(before.split(few), after.split(few), strict=True)
    best = [_best_of_few(start, end, tried.tolist(), block, both_sides) for start, end in parts]
    return tried[torch.cat(best)].to(before.dtype)


def _best_of_few(before: Tensor, after: Tensor, tried: list[list[int]], block: int, both_sides: bool) -> Tensor:
    """The index of the displacement, (frames, height, width)."""
    height, width = before.shape[2:]
    radius = max(abs(step) for displacement in tried for step in displacement)
    wide = [F.pad(frames, (radius,) * 4, mode="replicate") for frames in (before, after)]
    noise = NOISE * before.shape[1] * _block_sums(torch.ones(1, height, width), block)  # blocks end at the border
    least = torch.full((len(before), height, width), torch.inf)
    best = torch.zeros(len(before), height, width, dtype=torch.int16)
    for index, (x, y) in enumerate(tried):
        start = _shifted(wide[0], -x, -y, radius) if both_sides else before
        difference = (start - _shifted(wide[1], x, y, radius)).abs_()
        cost = _block_sums(_sum_of_channels(difference), block)
        better = cost < least - noise
        least, best = torch.where(better, cost, least), best.masked_fill_(better, index)
    return best.long()


def _sum_of_channels(values: Tensor) -> Tensor:
    """values.sum(dim=1), faster for few channels."""
    first, *others = values.unbind(dim=1)
    for channel in others:
        first = first.add_(channel)
    return first


def _shifted(wide: Tensor, x: int, y: int, radius: int) -> Tensor:
    """Frames whose pixel p is the original's pixel p + (x, y), of frames with `radius` more pixels at each side."""
    height, width = wide.shape[2] - 2 * radius, wide.shape[3] - 2 * radius
    return wide[:, :, radius + y : radius + y + height, radius + x : radius + x + width]


def _block_sums(values: Tensor, block: int) -> Tensor:
    """Sums of (frames, height, width) over the block around each pixel, as far as it is inside the frame."""
    sums = F.pad(values, (block // 2,) * 4)
    for axis in (1, 2):
        sums = _window_sums(sums, block, axis)
    return sums


def _window_sums(values: Tensor, size: int, axis: int) -> Tensor:
    """Sums over `size` neighbours along an axis, from sums over 1, 2, 4 and so on neighbours."""
    count = values.shape[axis] - size + 1
    total, start, power, sums = None, 0, 1, values
    while power <= size:
        if size & power:
            part = sums.narrow(axis, start, count)
            total, start = part if total is None else total + part, start + power
        if 2 * power <= size:
            sums = sums.narrow(axis, 0, sums.shape[axis] - power) + sums.narrow(axis, power, sums.shape[axis] - power)
        power *= 2
    assert total is not None
    return total


def _look_up(frames: Tensor, field: Tensor) -> Tensor:
    """Frames (frames, channels, height, width) whose pixel p is the original's p + field (frames, height, width, 2)."""
    count, channels, height, width = frames.shape
    columns = (torch.arange(width) + field[..., 0].long()).clamp(0, width - 1)
    rows = (torch.arange(height)[:, None] + field[..., 1].long()).clamp(0, height - 1)
    index = (rows * width + columns).flatten(1)[:, None].expand(-1, channels, -1)
    return frames.flatten(2).gather(2, index).view(count, channels, height, width)
