"""Baselines, as plans: what other methods do to positions and windows beyond the trained length.

All of them are pure functions, and treat all layers alike. The methods in `BASELINES` change nothing at or below the
trained length.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from freeloc.plans.frame_plan import DENSE, NONE, FramePlan, relative_positions
from freeloc.plans.method import Method


def sliding_window(frames: int, trained_frames: int) -> FramePlan:
    """Each frame attends to the `trained_frames` frames around it; at both ends of the video the window moves inwards.

    So every frame attends to as many frames, at the same distances, as in training (local attention: arXiv 2004.05150).

    >>> sliding_window(7, trained_frames=3).visibility[:2].tolist()
    [[2, 2, 2, 0, 0, 0, 0], [2, 2, 2, 0, 0, 0, 0]]
    """
    start = (torch.arange(frames) - (trained_frames - 1) // 2).clamp(0, max(frames - trained_frames, 0))
    key = torch.arange(frames)
    inside = (key >= start[:, None]) & (key < start[:, None] + trained_frames)
    return FramePlan(relative_positions(frames), torch.where(inside, DENSE, NONE).to(torch.uint8))


def clip(frames: int, trained_frames: int) -> FramePlan:
    """Distances beyond the trained range are clipped to the largest trained one (Shaw et al., arXiv 1803.02155).

    >>> clip(5, trained_frames=3).positions[-1].tolist()
    [2.0, 2.0, 2.0, 1.0, 0.0]
    """
    limit = trained_frames - 1
    return _all_visible(relative_positions(frames).clamp(-limit, limit))


def self_extend(frames: int, trained_frames: int) -> FramePlan:
    """Exact positions within a window of half the trained range, floored to groups beyond it (arXiv 2401.01325).

    The group is the smallest with which the farthest pair stays inside the trained range.

    >>> self_extend(9, trained_frames=5).positions[-1].tolist()
    [4.0, 4.0, 4.0, 3.0, 3.0, 3.0, 2.0, 1.0, 0.0]
    """
    limit = trained_frames - 1
    window, farthest, group = limit // 2, frames - 1, 1
    while farthest // group + window - window // group > limit:
        group += 1
    true, index = relative_positions(frames), torch.arange(frames)
    steps = (index[:, None] // group - index[None, :] // group).double()
    grouped = steps + true.sign() * (window - window // group)
    return _all_visible(torch.where(true.abs() < window, true, grouped))


def position_interpolation(frames: int, trained_frames: int) -> FramePlan:
    """All positions squeezed into the trained length: p -> p T / F (arXiv 2306.15595).

    >>> position_interpolation(8, trained_frames=4).positions[-1, 0].item()
    3.5
    """
    return _all_visible(relative_positions(frames) * min(1.0, trained_frames / frames))


@dataclass(frozen=True)
class NtkFrequencies:
    """A larger RoPE base: frequency f_c -> f_c s ** (-2c / (d - 2)) for channel pair c of d channels.

    The highest frequency stays, the lowest is interpolated (by s). Source: NTK-aware scaled RoPE, described in arXiv
    2309.00071.
    """

    factor: float

    def __call__(self, frequencies: Tensor) -> Tensor:
        """(pairs,) to (pairs,)."""
        pairs = len(frequencies)
        return frequencies * self.factor ** (-torch.arange(pairs, dtype=frequencies.dtype) / max(pairs - 1, 1))


@dataclass(frozen=True)
class YarnFrequencies:
    """NTK by parts: frequencies with fewer than `slow` rotations in training are interpolated, above `fast` kept.

    Source: arXiv 2309.00071; `slow` and `fast` are its alpha and beta for LLaMA. The clips of video models are so short
    (the fastest frequency makes 3.3 rotations in 21 frames) that nearly all frequencies are interpolated.
    """

    factor: float
    trained_frames: int
    slow: float = 1.0
    fast: float = 32.0

    def __call__(self, frequencies: Tensor) -> Tensor:
        """(pairs,) to (pairs,)."""
        rotations = self.trained_frames * frequencies / (2 * math.pi)
        kept = ((rotations - self.slow) / (self.fast - self.slow)).clamp(0, 1)
        return (1 - kept) * frequencies / self.factor + kept * frequencies


@dataclass(frozen=True)
class RiflexFrequencies:
    """Lowers the intrinsic frequency, whose period makes videos repeat, to 0.9 rotations over the whole video.

    It is the frequency whose period is closest to `repeats_at` latent frames. For a video within that period nothing
    changes. Source: RIFLEx, arXiv 2502.15894; the 0.9 is from its code.
    """

    frames: int
    repeats_at: float

    def __call__(self, frequencies: Tensor) -> Tensor:
        """(pairs,) to (pairs,)."""
        periods = 2 * math.pi / frequencies
        intrinsic = (periods - self.repeats_at).abs().argmin()
        slowed = frequencies.clone()
        if self.frames > periods[intrinsic]:
            slowed[intrinsic] = 0.9 * 2 * math.pi / self.frames
        return slowed


def ntk(frames: int, trained_frames: int) -> FramePlan:
    """See `NtkFrequencies`."""
    return _with_frequencies(frames, NtkFrequencies(frames / trained_frames))


def yarn(frames: int, trained_frames: int) -> FramePlan:
    """`YarnFrequencies` and a lower temperature: logits times (0.1 ln s + 1) ** 2 (arXiv 2309.00071)."""
    factor = frames / trained_frames
    return _with_frequencies(frames, YarnFrequencies(factor, trained_frames), (0.1 * math.log(factor) + 1) ** 2)


def riflex(frames: int, trained_frames: int, repeats_at: float | None = None) -> FramePlan:
    """See `RiflexFrequencies`.

    Args:
        frames: latent frames of the video.
        trained_frames: latent frames of the clips that the model was trained on.
        repeats_at: the latent frame at which long videos begin to repeat. The default, 1.5 trained lengths,
            gives the published frequencies of CogVideoX (period 20, trained on 13 frames) and HunyuanVideo (period 50,
            trained on 33); for other models it is a guess.
    """
    return _with_frequencies(
        frames, RiflexFrequencies(frames, 1.5 * trained_frames if repeats_at is None else repeats_at)
    )


def ultravico(frames: int, trained_frames: int, factor: float = 0.9) -> FramePlan:
    """Positive logits of pairs more than half a trained length apart are multiplied by `factor` (arXiv 2511.20123).

    The factor 0.9 is the published one for Wan. As in the published code, the first frame attends to one trained length
    only. Distances are in frames; the published code counts tokens. The second factor, for models whose videos repeat,
    is not included.

    >>> ultravico(9, trained_frames=5).decay[0].tolist()
    [1.0, 1.0, 1.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9]
    """
    true = relative_positions(frames)
    beyond = true.abs() > trained_frames / 2
    visibility = FramePlan.identity(frames).visibility
    visibility[0, trained_frames:] = NONE
    return FramePlan(true, visibility, decay=torch.ones_like(true).masked_fill(beyond, factor))


def reschedule_noise(noise: Tensor, trained_frames: int, generator: torch.Generator | None = None) -> Tensor:
    """FreeNoise's initial noise: beyond the trained length, shuffled repeats of its own first frames.

    Each quarter of a trained length repeats the frames one trained length earlier, in shuffled order, so that distant
    windows share their noise. Source: arXiv 2310.15169.

    >>> noise = torch.randn(1, 4, 12, 2, 2)
    >>> again = reschedule_noise(noise, trained_frames=8)
    >>> torch.equal(again[:, :, :8], noise[:, :, :8]), torch.equal(again[:, :, 8:10].sum(2), noise[:, :, :2].sum(2))
    (True, True)

    Args:
        noise: (batch, channels, frames, height, width).
        trained_frames: latent frames of the clips that the model was trained on.
        generator: random generator of the order, on the CPU.
    """
    frames, stride = noise.shape[2], max(1, round(trained_frames / 4))
    index = list(range(min(trained_frames, frames)))
    while len(index) < frames:
        first = len(index) - trained_frames
        index += [index[first + k] for k in torch.randperm(min(stride, trained_frames), generator=generator).tolist()]
    return noise[:, :, index[:frames]]


def _all_visible(positions: Tensor) -> FramePlan:
    return FramePlan(positions, FramePlan.identity(len(positions)).visibility)


def _with_frequencies(frames: int, change: Callable[[Tensor], Tensor], logit_scale: float = 1.0) -> FramePlan:
    whole = FramePlan.identity(frames)
    return FramePlan(whole.positions, whole.visibility, frequencies=change, logit_scale=logit_scale)


@dataclass(frozen=True)
class _BeyondTraining:
    """A plan for any layer: the identity up to the trained length, `make` (frames, trained frames) beyond it."""

    make: Callable[[int, int], FramePlan]

    def __call__(self, profile: Any, layer: int, frames: int) -> FramePlan:
        trained = profile.model.trained_latent_frames
        return FramePlan.identity(frames) if frames <= trained else self.make(frames, trained)


_FREENOISE = "arXiv 2310.15169, one window per frame; requires its own noise: freeloc.plans.baselines.reschedule_noise"

BASELINES = [
    Method("direct", _BeyondTraining(lambda frames, trained: FramePlan.identity(frames)), "the model as it is"),
    Method("sliding-window", _BeyondTraining(sliding_window), "local attention, arXiv 2004.05150"),
    Method("clip", _BeyondTraining(clip), "arXiv 1803.02155"),
    Method("self-extend", _BeyondTraining(self_extend), "arXiv 2401.01325"),
    Method("pi", _BeyondTraining(position_interpolation), "position interpolation, arXiv 2306.15595"),
    Method("ntk", _BeyondTraining(ntk), "NTK-aware, in arXiv 2309.00071"),
    Method("yarn", _BeyondTraining(yarn), "arXiv 2309.00071"),
    Method("riflex", _BeyondTraining(riflex), "RIFLEx, arXiv 2502.15894"),
    Method("ultravico", _BeyondTraining(ultravico), "UltraViCo, arXiv 2511.20123"),
    Method("freenoise", _BeyondTraining(sliding_window), _FREENOISE, reschedule_noise),
]
"""All baselines. FreeNoise fuses overlapping windows; here each frame has one window, and `reschedule_noise`."""
