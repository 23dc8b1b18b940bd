"""All measures of a video that is read frame by frame, in memory that does not grow with the size of its frames."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from freeloc.errors import FreelocError
from freeloc.metrics import measures
from freeloc.metrics.motion import textured_pairs, working_size


class Measured(NamedTuple):
    """What was measured of one video."""

    values: dict[str, float]
    """By the names of `freeloc.metrics.MEASURES`."""
    textured: tuple[int, int]
    """See `freeloc.metrics.pairs_with_texture`."""
    small: Tensor
    """The video in its working size (`freeloc.metrics.motion.working_size`), (frames, height, width, 3) in 0..1."""


def measure(frames: Iterable[Tensor]) -> Measured:
    """All of `freeloc.metrics.MEASURES`, and the video in its working size, which alone is kept.

    >>> video = torch.rand(6, 16, 20, 3)
    >>> found = measure((255 * video).byte())
    >>> found.values.keys() == measures.MEASURES.keys(), found.textured
    (True, (5, 5))

    Args:
        frames: frames (height, width, 3) in bytes, for example from `freeloc.metrics.video.read_frames`.

    Raises:
        FreelocError: if there are fewer than 3 frames, or they have fewer than 3 x 3 pixels.
    """
    parts = list(_parts(frames))
    if len(parts) < 3:
        raise FreelocError(f"expected a video of at least 3 frames, found {len(parts)}")
    sharpness, contrast, colour, change, small = (torch.stack(values) for values in zip(*parts, strict=True))
    values = {
        "sharpness": float(sharpness.mean()),
        "contrast": float(contrast.mean()),
        "flicker": measures.flicker_of_colours(colour),
        "frozen share": float((change[1:] < measures.FROZEN).float().mean()),
    }
    ordered = {
        name: values[name] if name in values else function(small) for name, function in measures.MEASURES.items()
    }
    pairs = textured_pairs(small)
    return Measured(ordered, (int(pairs.sum()), len(pairs)), small)


def _parts(frames: Iterable[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Of each frame: sharpness, contrast, mean colour, mean change since the one before, and itself, smaller."""
    first = True
    before = torch.zeros(())
    for pixels in frames:
        if pixels.ndim != 3 or pixels.shape[-1] != 3 or min(pixels.shape[:2]) < 3 or pixels.dtype != torch.uint8:
            raise FreelocError(
                f"expected frames of at least 3 x 3 pixels, (height, width, 3) uint8, found {tuple(pixels.shape)} "
                f"{pixels.dtype}"
            )
        frame = pixels[None].float().div_(255)
        grey = measures.brightness(frame)
        change = torch.zeros(()) if first else (frame - before).abs_().mean()
        small = working_size(frame)[0].clamp_(0, 1)  # rounding may exceed 1
        colour = frame.mean(dim=(0, 1, 2))
        yield measures.sharpness_of_frames(grey)[0], measures.contrast_of_frames(grey)[0], colour, change, small
        first, before = False, frame
