"""Distances between sets of videos, by features of their frames."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from freeloc.metrics.measures import brightness, checked
from freeloc.metrics.motion import motion_field, textured_pairs, working_size


def frame_features(video: Tensor, cells: int = 4) -> Tensor:
    """Appearance of each frame, (frames, 5 cells ** 2): mean colour, contrast and edges per cell of a grid.

    >>> frame_features(torch.rand(3, 16, 20, 3)).shape
    torch.Size([3, 80])
    """
    video = checked(video)
    frames, grey = video.movedim(-1, 1), brightness(video)[:, None]
    mean = F.adaptive_avg_pool2d(grey, cells)
    spread = (F.adaptive_avg_pool2d(grey.square(), cells) - mean.square()).clamp(min=0).sqrt()
    across = F.pad((grey[..., 1:] - grey[..., :-1]).abs(), (0, 1))
    down = F.pad((grey[..., 1:, :] - grey[..., :-1, :]).abs(), (0, 0, 0, 1))
    parts = [F.adaptive_avg_pool2d(frames, cells), spread, F.adaptive_avg_pool2d(across + down, cells)]
    return torch.cat([part.flatten(1) for part in parts], dim=1)


def motion_features(video: Tensor, cells: int = 4) -> Tensor:
    """Motion of each frame, (pairs, 2 cells ** 2): mean motion per cell of a grid, in pixels of the working size.

    Pairs of neighbouring frames without texture are left out; a video with texture has frames - 1 pairs.

    >>> import torch
    >>> motion_features(torch.rand(3, 16, 20, 3)).shape
    torch.Size([2, 32])
    """
    small = working_size(checked(video, frames=2))
    field = motion_field(small)[textured_pairs(small)].movedim(-1, 1)
    return F.adaptive_avg_pool2d(field, cells).flatten(1)


def frechet_distance(features: Tensor, others: Tensor) -> float:
    """Distance of two sets of features (count, channels), as of two normal distributions (Dowson and Landau 1982; FID).

    |m - m'|**2 + tr(S + S' - 2 (S S') ** 0.5). It is biased upwards for small sets, so compare only sets of equal size.

    >>> features = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    >>> round(frechet_distance(features, features + 1), 4), abs(round(frechet_distance(features, features), 4))
    (4.0, 0.0)

    Returns:
        The distance; NaN if a set has fewer than two members, as motion has in videos without texture.
    """
    if min(len(features), len(others)) < 2:
        return math.nan
    means, covariances = zip(
        *((part.double().mean(dim=0), part.double().T.cov()) for part in (features, others)), strict=True
    )
    root = _root(covariances[0])
    cross = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp(min=0).sqrt().sum()
    traces = covariances[0].trace() + covariances[1].trace()
    return float((means[0] - means[1]).square().sum() + traces - 2 * cross)


def _root(covariance: Tensor) -> Tensor:
    """Square root of a symmetric positive matrix."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root
