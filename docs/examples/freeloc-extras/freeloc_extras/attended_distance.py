"""Depth ``attended-distance``: how far away, in latent frames, the frames are that each layer attends to.

One run, in which nothing is corrected. A layer that attends far meets positions that were never trained: it gets VRPR.
"""

from dataclasses import dataclass

import torch

from freeloc.errors import ProbeError
from freeloc.pictures import sensitivity_map
from freeloc.plans import FramePlan
from freeloc.probing import USUAL, Depth, Summary, Table, samples_of

TABLE = "attended-distance.latent frames"


@dataclass(frozen=True)
class AttendedDistance(Depth):
    """Measures the mean distance at which each head attends, in one run of the model for each prompt.

    Args:
        queries: video tokens whose attention is computed, evenly over the video.
    """

    name = "attended-distance"

    queries: int = 64

    def settings(self, subject):
        """What the numbers depend on beside model and run."""
        if not subject.has_rope:
            raise ProbeError(
                "depth attended-distance chooses the layers that get VRPR: expected a model with RoPE, found none"
            )
        return {"queries": self.queries}

    def measure(self, subject):
        """The table ``attended-distance.latent frames`` (layers, heads, prompts)."""
        pieces = [f"{self.name}/{prompt}" for prompt in range(len(subject.prompt_labels))]
        found = subject.measure(pieces, lambda piece: self.of_prompt(subject, piece), self.name)
        values = torch.stack([found[piece]["distance"] for piece in pieces], dim=-1)
        axes = {"layers": [*range(subject.shape.layers)], "heads": [*range(subject.shape.heads)]}
        return {TABLE: Table(values, axes | {"prompts": subject.prompt_labels})}

    def of_prompt(self, subject, piece):
        """One run: the mean over all its attention calls, NaN for a layer that made none."""
        calls = [[] for _ in range(subject.shape.layers)]
        with subject.under(
            lambda layer, frames: FramePlan.identity(frames),
            lambda call: calls[call.layer].append(attended_distance(call, self.queries)),
        ):
            subject.generate(int(piece.rpartition("/")[2]))
        nothing = torch.full((1, subject.shape.heads), torch.nan, dtype=torch.float64)
        return {"distance": torch.stack([torch.stack(own or [*nothing]).mean(dim=0) for own in calls])}

    def summarize(self, measured, heads=False, rule=USUAL):
        """The distance says how a layer depends on positions; nothing is said about context."""
        distance = samples_of(measured.table(TABLE), heads)
        return Summary.of_samples(position=distance, context=torch.full_like(distance, torch.nan))

    def picture(self, measured):
        """The distance over layers and heads."""
        return sensitivity_map(measured, TABLE)


def attended_distance(call, queries):
    """Mean distance in latent frames at which each head attends, (heads,) float64."""
    layout, scale = call.layout, call.query.shape[-1] ** -0.5 if call.scale is None else call.scale
    at = torch.linspace(layout.video.start, layout.video.stop - 1, queries).round().long()
    logits = call.query[:, :, at].double() @ call.key.double().mT * scale
    if call.mask is not None:
        rows = call.mask if call.mask.shape[-2] == 1 else call.mask[..., at, :]
        logits = logits.masked_fill(~rows, -torch.inf) if rows.dtype == torch.bool else logits + rows
    weights = logits[..., layout.video].softmax(dim=-1)  # among the video's keys
    frame = torch.arange(layout.frames, dtype=torch.float64).repeat_interleave(layout.tokens_per_frame)
    distance = (frame[at - layout.video.start, None] - frame).abs().to(weights.device)
    return (weights * distance).sum(dim=-1).mean(dim=(0, 2)).cpu()
