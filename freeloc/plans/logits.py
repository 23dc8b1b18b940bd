"""Changes of logits for more frames than in training: balance of shared positions, slope by distance, and scale."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from freeloc.plans.frame_plan import DENSE, NONE, STRIPED, relative_positions


def visible_share(visibility: Tensor, stripe: float) -> Tensor:
    """Share of a key frame's tokens that a token of the query frame attends to, (frames, frames) float64.

    1 for dense pairs; for striped ones ``stripe * (2 - stripe)``, the share for frames of many tokens.

    >>> visible_share(torch.tensor([[2, 1, 0]]), stripe=0.5)
    tensor([[1.0000, 0.7500, 0.0000]], dtype=torch.float64)
    """
    striped = stripe * (2 - stripe)
    return torch.tensor([0.0, striped, 1.0], dtype=torch.float64)[visibility.long()]


def multiplicity(positions: Tensor, visibility: Tensor, stripe: float) -> Tensor:
    """How many visible frames share the position of each pair, (frames, frames) float64, at least 1.

    Each query frame counts on its own. Two positions count as shared if they differ by less than half a frame, so
    fractions have a number too. A striped frame counts with its `visible_share`. Pairs that are not attended have 1.

    >>> positions = torch.tensor([[0.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    >>> multiplicity(positions, torch.tensor([[2, 2, 2, 0]]), stripe=0.5).tolist()
    [[1.0, 2.0, 2.0, 1.0]]
    """
    hidden = visibility == NONE
    seen, order = positions.masked_fill(hidden, math.inf).sort(dim=1)
    low = torch.searchsorted(seen, positions - 0.5, right=True)
    high = torch.searchsorted(seen, positions + 0.5)

    def count(kind: int) -> Tensor:
        """The number of visible frames of a kind at each position: whole numbers, so equal ones are equal bits."""
        up_to = (visibility == kind).gather(1, order).long().cumsum(dim=1)
        up_to = torch.cat([torch.zeros_like(up_to[:, :1]), up_to], dim=1)
        return up_to.gather(1, high) - up_to.gather(1, low)

    shared = count(DENSE) + stripe * (2 - stripe) * count(STRIPED).double()
    return shared.clamp(min=1).masked_fill(hidden, 1)


def balance_bias(positions: Tensor, visibility: Tensor, stripe: float, balance: float) -> Tensor:
    """``-balance * log(multiplicity)``, (frames, frames): with 1, frames that share a position weigh as much as one.

    In training each position has one frame. Where several frames share one, each of them has its weight, and the
    position has too much. Source: freeloc.

    >>> positions = torch.tensor([[0.0, 1.0, 1.0]], dtype=torch.float64)
    >>> balance_bias(positions, torch.tensor([[2, 2, 2]]), 0.125, balance=1.0).exp().round(decimals=3)
    tensor([[1.0000, 0.5000, 0.5000]], dtype=torch.float64)

    Args:
        positions: (frames, frames) float64.
        visibility: (frames, frames) uint8.
        stripe: see `FramePlan`.
        balance: 0 changes nothing.
    """
    return -balance * multiplicity(positions, visibility, stripe).log()


def slope_bias(frames: int, per_frame: float, near_frames: int) -> Tensor:
    """``-per_frame * max(0, distance - near_frames)``, (frames, frames) float64, with the true distance.

    Source: ALiBi, arXiv 2108.12409, whose slope begins at distance 0 and differs from head to head.

    >>> slope_bias(4, per_frame=0.5, near_frames=1)[0].tolist()
    [-0.0, -0.0, -0.5, -1.0]
    """
    return -per_frame * (relative_positions(frames).abs() - near_frames).clamp(min=0)


@dataclass(frozen=True)
class LogarithmOfKeys:
    """Factor on all logits: ``factor * (1 + strength * (log n / log n0 - 1))``, for n keys and n0 in training.

    Entropy of attention grows with the logarithm of the number of keys; a factor in proportion to it keeps it (arXiv
    2202.12172). Strength 1 is that rule, 0.5 is about the square root that arXiv 2306.08645 takes for images. n counts
    video tokens. With no more keys than in training, `factor` alone is left: attention that is not spread needs no
    repair.

    >>> rule = LogarithmOfKeys(visible_frames=81, trained_frames=21, strength=1.0)
    >>> round(rule(tokens_per_frame=1560), 3)
    1.13

    Args:
        visible_frames: frames that a query attends to. What is seen in part, or with less weight, counts less.
        trained_frames: latent frames of the clips that the model was trained on.
        strength: 0 for `factor` alone.
        factor: another factor.
    """

    visible_frames: float
    trained_frames: int
    strength: float
    factor: float = 1.0

    def __call__(self, tokens_per_frame: int) -> float:
        """The factor at so many tokens per frame."""
        now, before = self.visible_frames * tokens_per_frame, self.trained_frames * tokens_per_frame
        if now <= before or before <= 1:
            return self.factor
        return self.factor * (1 + self.strength * (math.log(now) / math.log(before) - 1))
