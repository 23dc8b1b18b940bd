"""The plan of a call whose frames are further apart than in training, or that has reference images, written apart.

It follows docs/concepts/checks.md, pair by pair, and shares no code with freeloc/plans/length.py.
"""

import math
from dataclasses import replace

import torch

import freeloc
from freeloc import FramePlan


def plan_of_call(profile, layer, frames, spacing=1.0, first=0, last=0):
    """The plan of a layer for `frames` latent frames, `first` and `last` of which are reference images."""
    trained, video = profile.model.trained_latent_frames, frames - first - last
    reach = (trained - 1) / spacing  # in frames of this video
    is_long = (video - 1) * spacing > trained - 1 + 1e-3
    same = min(math.ceil(round(reach, 3)) + 1, video - 1) if is_long else math.floor(round(reach, 3)) + 1
    model = profile.model.model_copy(update={"trained_latent_frames": same})
    plan = freeloc.frame_plan(profile.model_copy(update={"model": model}), layer, video)
    if plan.is_identity:
        return FramePlan.identity(frames)
    inner = plan.positions
    if spacing != 1 and reach < inner.abs()[plan.visibility > 0].max() <= same - 1:
        inner = inner.clamp(-reach, reach)
    positions = torch.zeros(frames, frames, dtype=torch.float64)
    visibility = torch.full((frames, frames), 2, dtype=torch.uint8)
    for i in range(frames):
        for j in range(frames):
            sides = [0 if at < first else 1 if at < first + video else 2 for at in (i, j)]
            if sides == [1, 1]:
                positions[i, j] = inner[i - first, j - first]
                visibility[i, j] = plan.visibility[i - first, j - first]
            elif sides[0] == sides[1]:
                positions[i, j] = i - j
            else:  # the video would end `reach` frames after its start, as in training
                most = reach + {(0, 1): first - min(i, j), (1, 2): max(i, j) - first - video + 1}.get(
                    tuple(sorted(sides)), first - min(i, j) + max(i, j) - first - video + 1
                )
                positions[i, j] = math.copysign(min(abs(i - j), most), i - j)
    bias = None if plan.bias is None else torch.nn.functional.pad(plan.bias, (first, last, first, last))
    return replace(plan, positions=positions, visibility=visibility, bias=bias)
