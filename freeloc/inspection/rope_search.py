"""Finds the temporal channels of RoPE, their pairing and their frequencies from queries and keys of equal frames."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from freeloc.errors import FreelocError

CONSERVED = 1e-2
"""How much a pair's length may change between frames, as a share of the largest: the rounding of bfloat16."""


@dataclass(frozen=True)
class FoundRope:
    """The temporal part of a rotary embedding, as found.

    Args:
        first: first channel of the block of paired channels.
        channels: number of temporal channels, the leading pairs of that block.
        within: channels of the block.
        pairing: as in `TemporalRope`.
        frequencies: radians per latent frame, (heads, pairs), between -pi and pi: faster rotations are aliased.
        theta: the base that, with `positions_per_frame`, explains the frequencies of all heads, if there is one.
        positions_per_frame: positions per latent frame; the rotation of the first pair, in radians per latent frame.
        error: largest error of the described rotation, as a share of the largest value.
    """

    first: int
    channels: int
    within: int
    pairing: Literal["(pair two)", "(two pair)"]
    frequencies: Tensor
    theta: float | None
    positions_per_frame: float
    error: float

    @property
    def by_head(self) -> Tensor:
        """Radians per latent frame, (pairs,), or (heads, pairs) where heads differ."""
        differ = (self.frequencies - self.frequencies[:1]).abs().max() > 1e-6
        return self.frequencies if differ else self.frequencies[0]


def find_rope(frames: Tensor) -> FoundRope | None:
    """The rotation between equal frames, or None where nothing rotates or no pairing explains the changes.

    >>> from freeloc.attention.rotation import rotate
    >>> angles = torch.arange(5.0)[:, None, None] * 100 ** -(torch.arange(3) / 3)
    >>> x = torch.randn(2, 4, 1, 6, 16).expand(-1, -1, 5, -1, -1)  # (batch, heads, frames, tokens_per_frame, head_dim)
    >>> rotated = rotate(x, torch.polar(torch.ones_like(angles), angles), span=(4, 10), pairing="(two pair)")
    >>> found = find_rope(rotated)
    >>> found.first, found.channels, found.pairing, round(found.theta)
    (4, 6, '(two pair)', 100)

    Args:
        frames: queries or keys of frames with the same content, (batch, heads, frames, tokens_per_frame, head_dim), at
            least 4 frames. The first one is not used, since its distance to the second may be different.

    Raises:
        FreelocError: if there are fewer frames.
    """
    if frames.shape[2] < 4:
        raise FreelocError(f"expected at least 4 latent frames, to find a rotation, found {frames.shape[2]}: give more")
    frames = frames[:, :, 1:].double()
    change = (frames[:, :, 1:] - frames[:, :, :1]).abs().amax(dim=(0, 1, 2, 3))
    rotated = (change > 1e-4 * frames.abs().max()).nonzero().flatten().tolist()
    if not rotated:
        return None
    found = [_described(frames, pairs, rotated) for pairs in _pairings(frames, rotated)]
    return min(found, key=lambda rope: (round(rope.error, 3), rope.channels), default=None)


def _pairings(frames: Tensor, rotated: list[int]) -> list[Tensor]:
    """Ways (2, pairs) to pair the rotated channels such that no pair changes its length."""
    head_dim, first = frames.shape[-1], rotated[0]
    ways = [torch.arange(first - first % 2, head_dim - head_dim % 2).view(-1, 2).mT]
    for start in sorted({0, first}):  # the first pairs of a block may be still
        halves = range(1, (head_dim - start) // 2 + 1)
        ways += [torch.stack([torch.arange(half), torch.arange(half, 2 * half)]) + start for half in halves]
    lengths = [_complex(frames, pairs).abs() for pairs in ways]
    largest = frames.abs().max()
    return [
        pairs
        for pairs, length in zip(ways, lengths, strict=True)
        if set(rotated) <= set(pairs.flatten().tolist())
        and (length - length[:, :, :1]).abs().max() <= CONSERVED * largest
    ]


def _described(frames: Tensor, pairs: Tensor, rotated: list[int]) -> FoundRope:
    """Frequencies of these pairs, and how well they explain the frames."""
    count = 1 + max(index for index in range(pairs.shape[1]) if {*pairs[:, index].tolist()} & {*rotated})
    values = _complex(frames, pairs)[..., :count]
    steps = (values[:, :, 1:] * values[:, :, :-1].conj()).sum(dim=(0, 2, 3))
    frequencies = steps.angle()  # (heads, pairs)
    times = torch.arange(frames.shape[2], dtype=torch.float64)
    expected = values[:, :, :1] * torch.exp(1j * times[:, None, None] * frequencies[:, None, None])
    error = float((values - expected).abs().max() / frames.abs().max())
    interleaved = bool(pairs[1, 0] == pairs[0, 0] + 1) and (pairs.shape[1] == 1 or bool(pairs[0, 1] == pairs[0, 0] + 2))
    theta, positions_per_frame = _base(frequencies, error)
    return FoundRope(
        first=int(pairs[0, 0]),
        channels=2 * count,
        within=2 * count if interleaved else 2 * pairs.shape[1],
        pairing="(pair two)" if interleaved else "(two pair)",
        frequencies=frequencies,
        theta=theta,
        positions_per_frame=positions_per_frame,
        error=error,
    )


def _base(frequencies: Tensor, error: float) -> tuple[float | None, float]:
    """The base with which all heads have the frequencies first * base ** (-pair / pairs), or None; and `first`.

    The tolerance follows from the error of the queries and keys.
    """
    mean, pairs = frequencies.mean(dim=0), frequencies.shape[1]
    first = float(mean[0])
    if (frequencies - mean).abs().max() > 3e-3 * first or (mean <= 0).any():
        return None, first
    if pairs == 1:
        return 10_000.0, first
    theta = float((mean[0] / mean[1]) ** pairs)
    expected = first * theta ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    fits = bool(((mean - expected).abs() <= 3e-3 * expected + max(1e-5, error / 50)).all())
    allowed = max(1e-5, error) * pairs * theta
    near = (number for digits in (1, 2, 3) if abs((number := float(f"{theta:.{digits}g}")) - theta) < allowed)
    return next(near, theta) if fits else None, first


def _complex(frames: Tensor, pairs: Tensor) -> Tensor:
    """The pairs of (..., head_dim) as complex numbers."""
    return torch.complex(frames[..., pairs[0]], frames[..., pairs[1]])
