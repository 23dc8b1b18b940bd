"""Which channels of a head time turns, in which pairs and how fast, seen from queries and keys of equal frames."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from freeloc.errors import FreelocError

CONSERVED = 1e-2
"""By how much a pair's length may change from frame to frame, as a share of the longest: bfloat16 rounds so much."""


@dataclass(frozen=True)
class FoundRope:
    """What was observed of a rotation.

    Args:
        first: first channel of the block over which the pairing goes.
        channels: number of temporal channels, the leading pairs of that block.
        within: channels of the block.
        pairing: as in `TemporalRope`.
        frequencies: radians per latent frame, (heads, pairs), between -pi and pi: faster turns look like slower ones.
        theta: the base that explains the frequencies of all heads together with `step`, if there is one.
        step: turn of the first pair, in radians per latent frame.
        error: of the rotation so described, as a share of the largest value.
    """

    first: int
    channels: int
    within: int
    pairing: Literal["(pair two)", "(two pair)"]
    frequencies: Tensor
    theta: float | None
    step: float
    error: float


def find_rope(frames: Tensor) -> FoundRope | None:
    """The rotation between equal frames, or None where nothing turns or no pairing explains what changes.

    >>> from freeloc.attention.backends.sdpa import rotate
    >>> angles = torch.arange(5.0)[:, None, None] * 100 ** -(torch.arange(3) / 3)
    >>> x = torch.randn(2, 4, 1, 6, 16).expand(-1, -1, 5, -1, -1)  # (batch, heads, frames, tokens_per_frame, head_dim)
    >>> turned = rotate(x, torch.polar(torch.ones_like(angles), angles), span=(4, 10), pairing="(two pair)")
    >>> found = find_rope(turned)
    >>> found.first, found.channels, found.pairing, round(found.theta)
    (4, 6, '(two pair)', 100)

    Args:
        frames: queries or keys of frames with the same content, (batch, heads, frames, tokens_per_frame, head_dim), at
            least 4 frames. The first one is left out: it may stand at an uneven distance.

    Raises:
        FreelocError: if there are fewer frames.
    """
    if frames.shape[2] < 4:
        raise FreelocError(f"expected at least 4 latent frames, to see a rotation, found {frames.shape[2]}: give more")
    frames = frames[:, :, 1:].double()
    change = (frames[:, :, 1:] - frames[:, :, :1]).abs().amax(dim=(0, 1, 2, 3))
    turned = (change > 1e-4 * frames.abs().max()).nonzero().flatten().tolist()
    if not turned:
        return None
    found = [_described(frames, pairs, turned) for pairs in _pairings(frames, turned)]
    return min(found, key=lambda rope: (round(rope.error, 3), rope.channels), default=None)


def _pairings(frames: Tensor, turned: list[int]) -> list[Tensor]:
    """Ways (2, pairs) to pair the channels that turn, in which no pair changes its length."""
    head_dim, first = frames.shape[-1], turned[0]
    ways = [torch.arange(first - first % 2, head_dim - head_dim % 2).view(-1, 2).mT]
    halves = range(1, (head_dim - first) // 2 + 1)
    ways += [torch.stack([torch.arange(half), torch.arange(half, 2 * half)]) + first for half in halves]
    lengths = [_complex(frames, pairs).abs() for pairs in ways]
    largest = frames.abs().max()
    return [
        pairs
        for pairs, length in zip(ways, lengths, strict=True)
        if set(turned) <= set(pairs.flatten().tolist())
        and (length - length[:, :, :1]).abs().max() <= CONSERVED * largest
    ]


def _described(frames: Tensor, pairs: Tensor, turned: list[int]) -> FoundRope:
    """Speeds of these pairs, and how well they explain the frames."""
    count = 1 + max(index for index in range(pairs.shape[1]) if {*pairs[:, index].tolist()} & {*turned})
    values = _complex(frames, pairs)[..., :count]
    steps = (values[:, :, 1:] * values[:, :, :-1].conj()).sum(dim=(0, 2, 3))
    speeds = steps.angle()  # (heads, pairs)
    times = torch.arange(frames.shape[2], dtype=torch.float64)
    expected = values[:, :, :1] * torch.exp(1j * times[:, None, None] * speeds[:, None, None])
    error = float((values - expected).abs().max() / frames.abs().max())
    interleaved = bool(pairs[1, 0] == pairs[0, 0] + 1) and (pairs.shape[1] == 1 or bool(pairs[0, 1] == pairs[0, 0] + 2))
    theta, step = _base(speeds, error)
    return FoundRope(
        first=int(pairs[0, 0]),
        channels=2 * count,
        within=2 * count if interleaved else 2 * pairs.shape[1],
        pairing="(pair two)" if interleaved else "(two pair)",
        frequencies=speeds,
        theta=theta,
        step=step,
        error=error,
    )


def _base(speeds: Tensor, error: float) -> tuple[float | None, float]:
    """The base and the step for which step * base ** (-pair / pairs) are the speeds of every head, or None.

    As exactly as queries and keys let it be told, in which there is this error.
    """
    mean, pairs = speeds.mean(dim=0), speeds.shape[1]
    step = float(mean[0])
    if (speeds - mean).abs().max() > 3e-3 * step or (mean <= 0).any():
        return None, step
    if pairs == 1:
        return 10_000.0, step
    theta = float((mean[0] / mean[1]) ** pairs)
    expected = step * theta ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    fits = bool(((mean - expected).abs() <= 3e-3 * expected + max(1e-5, error / 50)).all())
    rounded = float(f"{theta:.3g}")
    return (rounded if abs(rounded - theta) < max(1e-5, error) * theta else theta) if fits else None, step


def _complex(frames: Tensor, pairs: Tensor) -> Tensor:
    """The pairs of (..., head_dim) as complex numbers."""
    return torch.complex(frames[..., pairs[0]], frames[..., pairs[1]])
