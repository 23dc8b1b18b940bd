"""Rotations of keys that put each pair of frames where a plan wants it, from cached float64 tables."""

from collections.abc import Callable

import einops
import torch
from torch import Tensor

from freeloc.adapter import TemporalRope
from freeloc.errors import FreelocError
from freeloc.plan import DENSE, NONE, STRIPED, FramePlan, relative_positions


class PlanTables:
    """A plan made ready for one head size: which frames each frame sees, and how their keys turn.

    Few distinct turns occur, so each is kept once, in complex128.
    """

    def __init__(self, plan: FramePlan, rope: TemporalRope, head_dim: int) -> None:
        self.plan = plan
        self.rope = rope
        self.span = rope.span(head_dim)
        angles, self._row = _turns(plan, rope.frequencies(head_dim))  # (turns, pairs), (frames, frames)
        self._turns = torch.polar(torch.ones_like(angles), angles)
        self.dense = [(row == DENSE).nonzero().flatten() for row in plan.visibility]
        self.striped = [(row == STRIPED).nonzero().flatten() for row in plan.visibility]
        self.turned = [bool((angles[row] != 0).any()) for row in self._row]
        self._on: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def turns(self, query_frame: int, key_frames: Tensor, like: Tensor) -> Tensor:
        """Unit complex numbers by which the keys of these frames turn, (frames, 1, pairs), on `like`'s device."""
        dtype = torch.promote_types(like.dtype, torch.complex64)
        on = self._on.get((like.device, dtype))
        if on is None:
            on = self._on[like.device, dtype] = self._turns.to(like.device, dtype)
        return on[self._row[query_frame, key_frames].to(like.device)][:, None]


def _turns(plan: FramePlan, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct angles (turns, pairs) by which keys turn, and which one each pair of frames gets, (frames, frames)."""
    true = relative_positions(plan.frames)
    hidden = plan.visibility == NONE
    if plan.frequencies is None:
        distinct, row = (true - plan.positions).masked_fill(hidden, 0).unique(return_inverse=True)
        return distinct[:, None] * frequencies, row
    pairs = torch.stack([true, plan.positions], dim=-1).masked_fill(hidden[..., None], 0)
    distinct, row = pairs.flatten(0, 1).unique(dim=0, return_inverse=True)
    angles = distinct[:, :1] * frequencies - distinct[:, 1:] * _changed(plan.frequencies, frequencies)
    return angles, row.view(plan.frames, plan.frames)


def _changed(change: Callable[[Tensor], Tensor], frequencies: Tensor) -> Tensor:
    """The frequencies that a plan asks for."""
    new = change(frequencies)
    if not isinstance(new, Tensor) or new.shape != frequencies.shape or not new.isfinite().all():
        raise FreelocError(
            f"expected the frequencies of the method's plan to be {len(frequencies)} finite numbers, found {new}"
        )
    return new


def rotate(frames: Tensor, turns: Tensor, span: tuple[int, int], pairing: str) -> Tensor:
    """Turn the temporal channels of (..., frames, tokens, head_dim) by unit complex numbers (frames, 1, pairs)."""
    temporal = frames[..., slice(*span)].to(turns.real.dtype)
    # A copy of its own: what complex numbers are viewed from must start at an even place in memory.
    pairs = einops.rearrange(temporal, f"... {pairing} -> ... pair two", two=2).clone(
        memory_format=torch.contiguous_format
    )
    turned = torch.view_as_real(torch.view_as_complex(pairs) * turns)
    out = frames.clone()
    out[..., slice(*span)] = einops.rearrange(turned, f"... pair two -> ... {pairing}")
    return out
