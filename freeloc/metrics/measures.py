"""Measures of long videos that need no downloaded weights.

A video is a tensor (frames, height, width, 3) with values 0..1. `MEASURES` lists the measures of one video. A still
video has the best consistency, so use the measures together: look at sharpness, motion, freezing, looping and drift,
and compare each with its value for real videos.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from freeloc.errors import FreelocError
from freeloc.metrics.motion import MOST_TEXTURED, between, inner, motion_field, textured_pairs, working_size

BRIGHTNESS = torch.tensor([0.299, 0.587, 0.114])
"""Weights of red, green and blue in brightness (ITU-R BT.601)."""


def sharpness(video: Tensor) -> float:
    """Mean of abs(d2/dx2) + abs(d2/dy2) of brightness. It falls when detail is lost, and rises with noise.

    Source: the modified Laplacian of Nayar and Nakagawa (1994), measure LAP2 of Pertuz et al. (2013).

    >>> sharpness(torch.full((2, 8, 8, 3), 0.5))
    0.0
    """
    return float(sharpness_of_frames(brightness(checked(video))).mean())


def sharpness_of_frames(grey: Tensor) -> Tensor:
    """`sharpness` of each frame, (frames,), from brightness (frames, height, width)."""
    twice = 2 * grey[:, 1:-1, 1:-1]
    across = (grey[:, 1:-1, 2:] + grey[:, 1:-1, :-2]).sub_(twice).abs_()
    down = (grey[:, 2:, 1:-1] + grey[:, :-2, 1:-1]).sub_(twice).abs_()
    return across.add_(down).mean(dim=(1, 2))


def contrast(video: Tensor) -> float:
    """Standard deviation of brightness within a frame, mean over frames (RMS contrast, Peli 1990).

    >>> contrast(torch.full((2, 8, 8, 3), 0.5))
    0.0
    """
    return float(contrast_of_frames(brightness(checked(video))).mean())


def contrast_of_frames(grey: Tensor) -> Tensor:
    """`contrast` of each frame, (frames,), from brightness (frames, height, width)."""
    return grey.flatten(1).std(dim=1, unbiased=False)


def dynamic_degree(video: Tensor) -> float:
    """Mean length of the largest 5 % of motions between neighbouring frames, in percent of the frame's shorter side.

    Source: VBench's dynamic degree (arXiv 2311.17982) before its threshold, with `motion_field` in place of RAFT.
    Frames are reduced to 64 pixels along the shorter side. Motion of more than 6 of these per frame is not found.

    >>> dynamic_degree(torch.rand(1, 16, 16, 3).expand(4, -1, -1, -1))
    0.0
    >>> dynamic_degree(torch.full((4, 16, 16, 3), 0.5))
    nan

    Returns:
        The mean over pairs of frames with texture (`freeloc.metrics.motion.textured_pairs`); NaN if none has any: in
        plain frames no motion can be seen, and noise looks like a lot of it.
    """
    small = working_size(checked(video, frames=2))
    field = motion_field(small)[textured_pairs(small)]
    length = inner(field).square().sum(dim=-1).sqrt().flatten(1)  # (pairs, pixels)
    largest = length.topk(max(1, round(MOST_TEXTURED * length.shape[1])), dim=1).values
    return 100 * float(largest.mean()) / min(small.shape[1:3])


def motion_smoothness(video: Tensor) -> float:
    """1 - mean absolute difference of each inner frame from its neighbours' prediction (`between`). Falls with jerks.

    Source: VBench's motion smoothness (arXiv 2311.17982), with block matching in place of AMT.

    >>> motion_smoothness(torch.rand(1, 16, 16, 3).expand(4, -1, -1, -1))
    1.0
    >>> motion_smoothness(torch.full((4, 16, 16, 3), 0.5))
    nan

    Returns:
        The mean over frames that have texture, as their neighbours have (`freeloc.metrics.motion.textured_pairs`); NaN
        if there is none.
    """
    small = working_size(checked(video, frames=3))
    pairs = textured_pairs(small)
    difference = (between(small) - small[1:-1]).abs().mean(dim=(1, 2, 3))
    return 1 - float(difference[pairs[1:] & pairs[:-1]].mean())


def flicker(video: Tensor) -> float:
    """Mean absolute second difference in time of a frame's mean colour. Rises when light flickers.

    It stays near 0 for steady change and for motion inside the frame. It follows the temporal flickering of VBench
    (arXiv 2311.17982), which uses first differences of pixels and therefore also counts motion.

    >>> round(flicker(torch.tensor([0.0, 1, 0, 1]).view(4, 1, 1, 1).expand(4, 8, 8, 3)), 3)
    2.0
    """
    return flicker_of_colours(checked(video, frames=3).mean(dim=(1, 2)))


def flicker_of_colours(colour: Tensor) -> float:
    """`flicker`, from the mean colours of the frames, (frames, channels)."""
    return float((colour[2:] - 2 * colour[1:-1] + colour[:-2]).abs().mean())


FROZEN = 0.002
"""Mean absolute difference of neighbouring frames, of values 0..1, below which they are frozen."""


def frozen_share(video: Tensor, threshold: float = FROZEN) -> float:
    """Share of neighbouring frames whose mean absolute difference, of values 0..1, is below `threshold`.

    Source: ffmpeg's freezedetect.

    >>> frozen_share(torch.rand(1, 8, 8, 3).expand(4, -1, -1, -1))
    1.0
    """
    video = checked(video, frames=2)
    return float(((video[1:] - video[:-1]).abs().mean(dim=(1, 2, 3)) < threshold).float().mean())


def distance_by_lag(video: Tensor) -> Tensor:
    """Mean absolute difference of two frames by their distance in frames, (frames,): a video's self-similarity.

    >>> frame = torch.zeros(1, 4, 4, 3)
    >>> distance_by_lag(torch.cat([frame, frame + 1, frame, frame + 1])).tolist()
    [0.0, 1.0, 0.0, 1.0]
    """
    small = working_size(checked(video))
    return torch.stack([(small[lag:] - small[: len(small) - lag]).abs().mean() for lag in range(len(small))])


def loop_strength(video: Tensor) -> float:
    """How closely frames return to earlier content: 0 never, 1 exactly.

    The largest fall of `distance_by_lag` below its maximum over shorter lags, as a share of that maximum. Lags are at
    most half the video. A still video does not loop.

    >>> frame = torch.zeros(1, 4, 4, 3)
    >>> loop_strength(torch.cat([frame, frame + 1, frame, frame + 1]))
    1.0
    """
    distance = distance_by_lag(checked(video, frames=3))[: len(video) // 2 + 1]
    highest = distance.cummax(dim=0).values
    return float(((highest - distance) / highest.clamp(min=1e-3)).max())


def drift_curve(video: Tensor, bins: int = 8) -> Tensor:
    """How much colours change, by distance in frames, (frames,): 0 not at all, 1 no colour in common.

    Mean total variation distance between the colour histograms (each channel in `bins` bins) of two frames.

    >>> drift_curve(torch.full((3, 4, 4, 3), 0.5)).tolist()
    [0.0, 0.0, 0.0]
    """
    histogram = _histograms(checked(video), bins)
    apart = [
        (histogram[lag:] - histogram[: len(video) - lag]).abs().sum(dim=-1).mean() / 2 for lag in range(len(video))
    ]
    return torch.stack(apart)


def drift(video: Tensor, bins: int = 8) -> float:
    """Total variation distance of the colours of the first and the last quarter of a video (see `drift_curve`).

    >>> dark, light = torch.zeros(4, 4, 4, 3), torch.ones(4, 4, 4, 3)
    >>> drift(torch.cat([dark, dark])), drift(torch.cat([dark, light]))
    (0.0, 1.0)
    """
    histogram = _histograms(checked(video, frames=2), bins)
    quarter = max(1, len(video) // 4)
    return float((histogram[:quarter].mean(dim=0) - histogram[-quarter:].mean(dim=0)).abs().sum(dim=-1).mean() / 2)


def pairs_with_texture(video: Tensor) -> tuple[int, int]:
    """How many pairs of neighbouring frames have enough texture for the measures of motion, and how many there are.

    >>> pairs_with_texture(torch.cat([torch.full((2, 16, 16, 3), 0.5), torch.rand(3, 16, 16, 3)]))
    (2, 4)
    """
    pairs = textured_pairs(working_size(checked(video, frames=2)))
    return int(pairs.sum()), len(pairs)


OF_MOTION = ("dynamic degree", "motion smoothness")
"""Measures that are NaN where no frames have texture."""

MEASURES: dict[str, Callable[[Tensor], float]] = {
    "sharpness": sharpness,
    "contrast": contrast,
    "dynamic degree": dynamic_degree,
    "motion smoothness": motion_smoothness,
    "flicker": flicker,
    "frozen share": frozen_share,
    "loop strength": loop_strength,
    "drift": drift,
}
"""The measures of one video."""


def colour_spread(videos: Sequence[Tensor]) -> float:
    """Standard deviation over videos of their mean colour, mean over channels. Falls when all have the same colours.

    >>> colour_spread([torch.zeros(2, 4, 4, 3), torch.zeros(3, 4, 4, 3)])
    0.0
    """
    colours = torch.stack([checked(video).mean(dim=(0, 1, 2)) for video in videos])
    return float(colours.std(dim=0, unbiased=False).mean())


def denoising_loss(
    predict: Callable[[Tensor, Tensor], Tensor],
    latents: Tensor,
    sigmas: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 0.95),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Rectified-flow loss on real clips, (sigmas, clips): low if a model handles clips of this length well.

    Mean over all values of (prediction - (noise - latents)) ** 2 at (1 - sigma) latents + sigma noise (arXiv
    2403.03206). It needs no sampling, so it is the cheapest measure. With the same generator seed, two models or
    patches get the same noise, and can be compared clip by clip.

    >>> clean = torch.zeros(2, 4, 3, 8, 8)
    >>> denoising_loss(lambda noisy, sigma: noisy / sigma.view(-1, 1, 1, 1, 1), clean).max() < 1e-9
    tensor(True)

    Args:
        predict: (noisy latents, sigma of shape (clips,)) -> velocity of the latents' shape.
        latents: real clips, (clips, channels, frames, height, width).
        sigmas: noise levels, 0 clean to 1 noise.
        generator: random generator of the noise, on the CPU.
    """
    losses = []
    for sigma in sigmas:
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        level = torch.full((len(latents),), sigma).to(latents)
        found = predict(torch.lerp(latents, noise, sigma), level)
        losses.append((found - (noise - latents)).square().flatten(1).mean(dim=1))
    return torch.stack(losses)


def checked(video: Tensor, frames: int = 1) -> Tensor:
    """Check a video, and return it as float32 on the CPU.

    Raises:
        FreelocError: if it is not (frames, height, width, 3) with values 0..1, or has too few frames.
    """
    if video.ndim != 4 or video.shape[-1] != 3:
        raise FreelocError(f"expected a video (frames, height, width, 3), found shape {tuple(video.shape)}")
    if len(video) < frames or min(video.shape[1:3]) < 3:
        raise FreelocError(
            f"expected a video of at least {frames} frames of 3 x 3 pixels, found shape {tuple(video.shape)}"
        )
    if not video.is_floating_point() or not (video.min() >= 0 and video.max() <= 1):
        raise FreelocError(
            f"expected floats from 0 to 1, found {video.dtype} from {video.min()} to {video.max()}; divide bytes by 255"
        )
    return video.detach().cpu().float()


def brightness(video: Tensor) -> Tensor:
    """Brightness of each pixel, (frames, height, width)."""
    return video @ BRIGHTNESS


def _histograms(video: Tensor, bins: int) -> Tensor:
    """Share of pixels in each bin, (frames, channels, bins)."""
    video = working_size(video)
    index = (video * bins).long().clamp(max=bins - 1)  # (frames, height, width, channels)
    return torch.stack([(index == number).float().mean(dim=(1, 2)) for number in range(bins)], dim=-1)
