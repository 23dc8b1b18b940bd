"""VideoLength: how long a video is, and the plan of such a video from a method that knows frames only."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from freeloc.plans.frame_plan import DENSE, FramePlan, relative_positions
from freeloc.plans.method import Plans


@dataclass(frozen=True)
class VideoLength:
    """The latent frames of a call, on the axis of frames.

    >>> VideoLength(81).is_within(21), VideoLength(22, first=1).is_within(21)
    (False, True)
    >>> VideoLength(12, spacing=2.0).is_within(21)
    False

    Args:
        frames: latent frames, with references.
        first, last: reference images before and after the frames of the video.
        spacing: distance between neighbouring frames, as a multiple of that in training.
    """

    frames: int
    first: int = 0
    last: int = 0
    spacing: float = 1.0

    @property
    def video(self) -> int:
        """Latent frames of the video, without references."""
        return self.frames - self.first - self.last

    def is_within(self, trained_frames: int) -> bool:
        """Whether the video is at most as long as the clips that the model was trained on."""
        return (self.video - 1) * self.spacing <= trained_frames - 1 + 1e-3

    def trained_frames(self, trained_frames: int) -> int:
        """The trained length in frames that are as far apart as in this video.

        Rounded down if the video is within it. Otherwise rounded up, but less than the frames of the video.
        """
        spans = (trained_frames - 1) / self.spacing
        if self.is_within(trained_frames):
            return math.floor(spans + 1e-3) + 1
        return min(math.ceil(spans - 1e-3) + 1, self.video - 1)


def plan_of_length(plan: FramePlan, length: VideoLength, trained_frames: int) -> FramePlan:
    """The plan of a call, from a method's plan for the frames of the video and `VideoLength.trained_frames`.

    A plan that changes nothing stays so. Positions within the method's range are limited to the trained one, which may
    be a fraction of a frame less. Every frame attends to every reference, and every reference to every frame, at their
    own distance, or at the largest distance in training if theirs is larger.

    >>> from freeloc.plans.vrpr import vrpr_plan
    >>> plan_of_length(vrpr_plan(6, 4), VideoLength(7, first=1), trained_frames=4).positions[-1]
    tensor([4., 2., 2., 2., 2., 1., 0.], dtype=torch.float64)
    """
    if plan.is_identity:
        return FramePlan.identity(length.frames)
    limit = (trained_frames - 1) / length.spacing
    if length.spacing != 1 and limit < plan.largest_position <= length.trained_frames(trained_frames) - 1:
        plan = replace(plan, positions=plan.positions.clamp(-limit, limit))
    return plan if length.frames == length.video else _with_references(plan, length, limit)


def plans_of_length(plans: Plans, length: VideoLength, trained_frames: int) -> Plans:
    """`plan_of_length` of one plan, or of the plan of each head."""
    if length.spacing == 1 and length.frames == length.video:
        return plans
    if isinstance(plans, FramePlan):
        return plan_of_length(plans, length, trained_frames)
    return [plan_of_length(plan, length, trained_frames) for plan in plans]


def _with_references(plan: FramePlan, length: VideoLength, limit: float) -> FramePlan:
    """The plan of a video with references, from that of the frames of the video."""
    inside = slice(length.first, length.frames - length.last)
    positions = _reference_positions(length, limit)
    visibility = torch.full_like(positions, DENSE, dtype=torch.uint8)
    positions[inside, inside], visibility[inside, inside] = plan.positions, plan.visibility
    decay = None if plan.decay is None else torch.ones_like(positions)
    if decay is not None and plan.decay is not None:
        decay[inside, inside] = plan.decay
    bias = None if plan.bias is None else torch.zeros_like(positions)
    if bias is not None and plan.bias is not None:
        bias[inside, inside] = plan.bias
    return replace(plan, positions=positions, visibility=visibility, decay=decay, bias=bias)


def _reference_positions(length: VideoLength, limit: float) -> Tensor:
    """Relative positions with references, limited to the largest distance from each in training."""
    true = relative_positions(length.frames)
    index = torch.arange(length.frames, dtype=torch.float64)
    end = length.first + length.video
    largest = torch.full_like(true, math.inf)
    for reference in range(length.first):
        largest[length.first :, reference] = limit + length.first - reference
    for reference in range(end, length.frames):
        largest[length.first : end, reference] = limit + 1 + reference - end
    for reference in range(length.first):  # references on both sides, as far apart as in training
        largest[end:, reference] = limit + 1 + index[end:] - end + length.first - reference
    largest = torch.minimum(largest, largest.mT)
    return true.clamp(-largest, largest)
