"""Windows of frames with first frames and anchors, and the pattern of LVSA."""

import math

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from freeloc.plans.baselines import sliding_window
from freeloc.plans.frame_plan import DENSE, NONE, FramePlan, relative_positions
from freeloc.plans.method import Method, ProfileLike
from freeloc.plans.tsa import Frames


def window_visibility(
    frames: int, window_frames: int, sink_frames: int = 0, anchor_every: int | None = None, anchor_offset: int = 0
) -> Tensor:
    """A window around each frame, the first frames, and every n-th frame, (frames, frames) uint8: 0 none, 2 dense.

    At both ends of the video the window moves inwards. Sources: local attention with global tokens, arXiv 2004.05150;
    first frames as attention sinks, arXiv 2309.17453.

    >>> window_visibility(6, window_frames=3, sink_frames=1)[-1].tolist()
    [2, 0, 0, 2, 2, 2]

    Args:
        frames: latent frames of the video.
        window_frames: frames that each frame attends to, itself included; at least 1.
        sink_frames: first frames, which every frame attends to.
        anchor_every: every frame also attends to one of so many frames; None for none.
        anchor_offset: the first of these.
    """
    visibility = sliding_window(frames, window_frames).visibility
    visibility[:, :sink_frames] = DENSE
    if anchor_every is not None:
        visibility[:, anchor_offset % anchor_every :: anchor_every] = DENSE
    return visibility


class LvsaSettings(BaseModel):
    """Settings of LVSA's pattern.

    >>> LvsaSettings(step=3).reach_frames
    3

    Attributes:
        reach_frames: frames on each side of a frame that its window has.
        first_frames: first frames, which every frame attends to.
        interval: distance of key frames; by default that of `lvsa_interval`.
        step: number of the denoising step; the key frames move on by a frame from step to step. A plan is that of one
            step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    reach_frames: Frames = 3
    first_frames: Frames = 1
    interval: int | None = Field(default=None, ge=1, le=10**9)
    step: Frames = 0


def lvsa_plan(frames: int, trained_frames: int, settings: LvsaSettings) -> FramePlan:
    """LVSA's pattern in one denoising step, at true positions, as published: a window, first frames, and key frames.

    The window has ``2 * reach_frames + 1`` frames beside those that are attended to anyway: it grows by a frame to the
    left, then to the right, and so on. Key frame number n is frame ``(step % interval + n * interval) % frames``. Up to
    the trained length all pairs are dense. Source: LVSA 1.2, arXiv 2605.31057 and its documentation.

    >>> lvsa_plan(12, 4, LvsaSettings(reach_frames=1, interval=4, step=1)).visibility[6].tolist()
    [2, 2, 0, 0, 2, 2, 2, 2, 0, 2, 0, 0]
    """
    if frames <= trained_frames:
        return FramePlan.identity(frames)
    interval = settings.interval or lvsa_interval(frames, trained_frames, settings.reach_frames, settings.first_frames)
    count = math.ceil(frames / interval)
    everywhere = set(range(min(settings.first_frames, frames)))
    everywhere |= {(settings.step % interval + number * interval) % frames for number in range(count)}
    visibility = torch.full((frames, frames), NONE, dtype=torch.uint8)
    visibility[:, sorted(everywhere)] = DENSE
    for frame in range(frames):
        window = _grown_window(frame, frames, settings.reach_frames, everywhere)
        visibility[frame, window.start : window.stop] = DENSE
    return FramePlan(relative_positions(frames), visibility)


def lvsa_interval(frames: int, trained_frames: int, reach_frames: int, first_frames: int) -> int:
    """LVSA's own distance of key frames: the largest with which a frame attends to the trained number of frames.

    Just beyond the trained length, where only 1 would do, a closed form keeps the pattern sparse.

    >>> lvsa_interval(81, trained_frames=21, reach_frames=3, first_frames=1)
    6
    """
    budget = max(first_frames + 1, trained_frames)
    wanted = max(first_frames, budget - (2 * reach_frames + 1))
    # The first frames and a grid of key frames that begins with frame 0.
    exact = next(
        interval
        for interval in range(frames, 0, -1)
        if interval == 1 or len(set(range(first_frames)) | set(range(0, frames, interval))) >= wanted
    )
    always = 2 * reach_frames + first_frames
    return max(exact, math.ceil(max(frames - always, budget - always) / max(budget - always, 1)))


def _grown_window(frame: int, frames: int, reach: int, everywhere: set[int]) -> range:
    """The window of a frame, grown until it has enough frames beside those that are attended to everywhere."""
    if reach == 0:
        return range(0)
    low = max(0, min(frame - reach, frames - 1 - 2 * reach))
    high = min(frames - 1, max(frame + reach, 2 * reach))
    missing = min(2 * reach + 1, frames - len(everywhere)) - sum(f not in everywhere for f in range(low, high + 1))
    left = True
    while missing > 0:
        if left and low > 0:
            low -= 1
            missing -= low not in everywhere
        elif not left and high < frames - 1:
            high += 1
            missing -= high not in everywhere
        left = not left
    return range(low, high + 1)


def _lvsa(profile: ProfileLike, layer: int, frames: int, settings: LvsaSettings) -> FramePlan:
    return lvsa_plan(frames, profile.model.trained_latent_frames, settings)


def _lvsa_label(settings: LvsaSettings) -> str:
    return f"window {2 * settings.reach_frames + 1} + first {settings.first_frames}, step {settings.step}"


LVSA = Method(
    "lvsa",
    _lvsa,
    "LVSA 1.2, arXiv 2605.31057; a patch is made for one denoising step: patch again for each, with its step",
    settings=LvsaSettings,
    colour="#d55e00",
    label=_lvsa_label,
)
