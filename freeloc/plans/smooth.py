"""Smooth compression of distances: exact when near, then a curve that ends at the largest trained distance.

The idea of exact near and interpolated far positions is that of Self-Extend (arXiv 2401.01325) and position
interpolation (arXiv 2306.15595); the curves are freeloc's own.
"""

import math
from typing import Literal

from torch import Tensor

from freeloc.plans.frame_plan import relative_positions

Curve = Literal["linear", "logarithmic"]
"""``"linear"``: all far distances are compressed alike. ``"logarithmic"``: the farther, the more; it leaves the exact
part at the same slope."""


def smooth_positions(
    frames: int, trained_frames: int, near_frames: int | None = None, curve: Curve = "logarithmic"
) -> Tensor:
    """Re-encoded relative positions, (frames, frames) float64, with fractions, never beyond ``trained_frames - 1``.

    With distance a = abs(i - j), near n, largest trained distance c and largest distance m of the video:
    a up to n; beyond it, linear n + (a - n) (c - n) / (m - n), or logarithmic n + s log(1 + (a - n) / s) with the s for
    which the farthest pair is at c; then the sign of i - j.

    >>> smooth_positions(9, trained_frames=5, near_frames=2, curve="linear")[-1].round(decimals=2)
    tensor([4.0000, 3.6700, 3.3300, 3.0000, 2.6700, 2.3300, 2.0000, 1.0000, 0.0000],
           dtype=torch.float64)

    Args:
        frames: latent frames of the video.
        trained_frames: latent frames of the clips that the model was trained on.
        near_frames: up to this distance positions are exact; by default half the largest trained distance, and never
            more than that.
        curve: see `Curve`.
    """
    true, limit, farthest = relative_positions(frames), trained_frames - 1, frames - 1
    if farthest <= limit:
        return true
    near = limit // 2 if near_frames is None else min(near_frames, limit)
    beyond = (true.abs() - near).clamp(min=0)
    if near == limit:
        return true.clamp(-limit, limit)
    if curve == "linear":
        beyond = beyond * (limit - near) / (farthest - near)
    else:
        scale = _scale(farthest - near, limit - near)
        beyond = scale * (beyond / scale).log1p()
    return true.sign() * (true.abs().clamp(max=near) + beyond).clamp(max=limit)


def _scale(largest: float, wanted: float) -> float:
    """The s with s log(1 + largest / s) = wanted, where 0 < wanted < largest: the left side grows with s."""
    low, high = 0.0, wanted
    while high * math.log1p(largest / high) < wanted:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        if middle * math.log1p(largest / middle) < wanted:
            low = middle
        else:
            high = middle
    return high
