"""Rotation: how far the model rotates each latent frame, read from the rotary tables of the running call.

An adapter describes the frequencies of a model. Users and other libraries change them: interpolation, RIFLEx, NTK, a
frame rate, new weights. So in every forward the tables that the model passes to its attention are compared with the
description. Where they differ, freeloc re-encodes from what the tables say, if they rotate frames evenly.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from freeloc.adapter.rope import TemporalRope
from freeloc.adapter.tables import temporal_rotations
from freeloc.plans.length import VideoLength

TOLERANCE = 2e-2
"""Largest difference of a unit complex number. Half precision rounds by up to 1e-2."""


class Rotation(NamedTuple):
    """How far the model rotates the temporal pairs."""

    positions_per_frame: float
    frequencies: Tensor | None = None
    """Radians per position, (pairs,) or (heads, pairs); None if they are as described."""
    refused: str = ""
    """Why this rotation cannot be re-encoded; empty if it can."""


class TableRows(NamedTuple):
    """Which rows of the tables belong to the video."""

    length: VideoLength
    tokens_per_frame: int
    text_first: int
    part: range
    """Tokens of the video that have rows, if there is one per token; a part of them under context parallelism."""
    others: int = 0
    """Other tokens that have rows: of text, or of padding."""

    @property
    def tokens(self) -> int:
        """Rows of the tables, if there is one per token."""
        return len(self.part) + self.others

    def frames(self, by_token: bool) -> Tensor:
        """Rows of the frames of the video but the first, (places in the frame, frames).

        The first is left out, since some models give it another distance; but not if there are only two.
        """
        left_out = int(self.length.video > 2)
        frames = torch.arange(self.length.first + left_out, self.length.first + self.length.video)
        if not by_token:
            return frames[None]
        places = torch.tensor(sorted({0, self.tokens_per_frame - 1}))
        at = frames * self.tokens_per_frame + places[:, None] - self.part.start
        return self.text_first + at[:, ((at >= 0) & (at < len(self.part))).all(dim=0)]


def read_rotation(
    tables: list[Tensor], rope: TemporalRope, head_dim: int, described: Tensor, step: float, rows: TableRows
) -> Rotation:
    """Compare rotary tables with the description, and read the frequencies from them where they differ.

    Args:
        tables: tensors of the rotary tables, see `freeloc.adapter.tables`.
        rope: the temporal RoPE with the model's own numbers.
        head_dim: channels per head.
        described: frequencies in radians per position, (pairs,) or (heads, pairs).
        step: described positions per latent frame.
        rows: the rows of the video.
    """
    steps = rotation_steps(tables, rope, head_dim, rows, described.ndim == 2)
    if isinstance(steps, str):
        return Rotation(step, None, steps)
    return Rotation(step) if steps is None else fit_rotation(steps, described, step, rows)


def rotation_steps(
    tables: list[Tensor], rope: TemporalRope, head_dim: int, rows: TableRows, per_head: bool
) -> Tensor | str | None:
    """How far each frame is rotated from the first, as unit complex numbers.

    Returns:
        (batch, places in the frame, frames, heads or 1, pairs); None if there are fewer than two frames to compare; or
        what is wrong with the tables.
    """
    by_token = rope.table_rows == "token"
    index = rows.frames(by_token)
    if index.shape[1] < 2:
        return None
    found = temporal_rotations(tables, rope, head_dim, index.flatten(), rows.tokens if by_token else -1, per_head)
    if found is None:
        shapes = ", ".join(str(tuple(table.shape)) for table in tables)
        return f"expected rotary tables of {rows.tokens} tokens, found shapes {shapes}"
    steps: Tensor = found.unflatten(1, index.shape)
    # Not Tensor.conj(): in an operator that compiled code calls, PyTorch 2.13 ignores that it is pending.
    return steps * torch.conj_physical(steps[:, :, :1])


def fit_rotation(
    steps: Tensor, described: Tensor, step: float, rows: TableRows, tolerance: float = TOLERANCE
) -> Rotation:
    """The rotation that explains what `rotation_steps` found within a tolerance: see `read_rotation`."""
    per_frame = described * step
    if _fits(steps, per_frame, tolerance):
        return Rotation(step)
    if rows.length.video == 2:
        return Rotation(step, None, "expected two latent frames as far apart as described, found another distance")
    first = steps[0, 0]
    factor = _common_factor(first, per_frame)
    if factor is not None and _fits(steps, per_frame * factor, tolerance):
        return Rotation(step * factor)
    own = _each_frequency(first)
    if bool((per_frame.abs() < math.pi).all()) and _fits(steps, own, tolerance):
        return Rotation(step, (own if len(own) > 1 else own[0]) / step)
    return Rotation(
        step,
        None,
        "expected rotary tables that rotate the latent frames evenly, found other angles: frames at times of their "
        "own, tokens in another order, or another grid than the adapter reads",
    )


def _fits(steps: Tensor, per_frame: Tensor, tolerance: float) -> bool:
    """Whether (batch, places, frames, heads or 1, pairs) rotate by these radians per frame, ([heads,] pairs)."""
    count = torch.arange(steps.shape[2], dtype=torch.float64)[:, None, None]
    angles = count * per_frame.view(-1, per_frame.shape[-1])  # (frames, heads or 1, pairs)
    rounding = 1e-6 * angles.abs()  # of angles in float32
    error = (steps - torch.polar(torch.ones_like(angles), angles)).abs()
    return bool((error <= tolerance + rounding).all())


def _each_frequency(steps: Tensor) -> Tensor:
    """Radians per frame, from -pi to pi, of each pair of (frames, heads, pairs), more exactly with each doubling."""
    found = torch.zeros(steps.shape[1:], dtype=torch.float64)
    count = 1
    while count < len(steps):
        found = found + (steps[count] * torch.exp(-1j * found * count)).angle() / count
        count *= 2
    last = len(steps) - 1
    return found + (steps[last] * torch.exp(-1j * found * last)).angle() / last


def _common_factor(steps: Tensor, per_frame: Tensor) -> float | None:
    """The one factor between described and real angles, from slow pairs to fast ones; None if there is none."""
    steps, described = torch.broadcast_tensors(steps, per_frame)
    described = described[0].flatten()
    real, last = steps.flatten(1), len(steps) - 1
    order = [pair for pair in described.abs().argsort().tolist() if described[pair] != 0]
    if not order:
        return None
    factor = float(_each_frequency(steps).flatten()[order[0]] / described[order[0]])
    for pair in order[1:]:
        angle = float(described[pair]) * last
        factor += float((real[last, pair] * torch.exp(torch.tensor(-1j * angle * factor))).angle()) / angle
    return factor if factor > 0 else None
