"""Rotations of keys that put each pair of frames where a plan wants it, from cached float64 tables."""

from collections.abc import Callable
from dataclasses import replace

import einops
import torch
from torch import Tensor

from freeloc.adapter.rope import TemporalRope
from freeloc.errors import FreelocError, PatchError
from freeloc.plans.frame_plan import DENSE, NONE, STRIPED, FramePlan, relative_positions


class PlanTables:
    """A plan made ready for one head size: which frames each frame sees, and how their keys turn.

    Few distinct turns occur, so each is kept once, in complex128.

    Args:
        plan: what is asked for.
        rope: where the temporal pairs stand; None for a model that has no rotary embedding.
        head_dim: channels per head.
        frequencies: in radians per latent frame, (pairs,) or (heads, pairs), if they are not the rope's own.

    Raises:
        PatchError: if the plan moves frames of a model that has no rotary embedding.
    """

    def __init__(
        self, plan: FramePlan, rope: TemporalRope | None, head_dim: int, frequencies: Tensor | None = None
    ) -> None:
        self.asked = plan
        if rope is None:
            plan, rope = _without_moves(plan), TemporalRope(channels=2)
        self.plan = plan
        self.rope = rope
        self.span = rope.span(head_dim)
        frequencies = rope.frequencies(head_dim) if frequencies is None else frequencies
        angles, self._row = _turns(plan, frequencies)  # (turns, ..., pairs), (frames, frames)
        self._turns = torch.polar(torch.ones_like(angles), angles)
        self.dense = [(row == DENSE).nonzero().flatten() for row in plan.visibility]
        self.striped = [(row == STRIPED).nonzero().flatten() for row in plan.visibility]
        self.turned = [bool((angles[row] != 0).any()) for row in self._row]
        self.runs = self._find_runs()
        """Frames one after the other that see the same keys in the same way: one call may serve them all."""
        self._on: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def _find_runs(self) -> list[range]:
        plan, runs = self.plan, [range(1)]
        alone = plan.decay is not None or bool((plan.visibility == STRIPED).any())
        for frame in range(1, plan.frames):
            same = not alone and all(torch.equal(t[frame], t[frame - 1]) for t in (plan.visibility, self._row))
            runs[-1:] = [range(runs[-1].start, frame + 1)] if same else [runs[-1], range(frame, frame + 1)]
        return runs

    def turns(self, query_frame: int, key_frames: Tensor, like: Tensor) -> Tensor:
        """Unit complex numbers by which the keys of these frames turn, ([heads,] frames, 1, pairs)."""
        dtype = torch.promote_types(like.dtype, torch.complex64)
        on = self._on.get((like.device, dtype))
        if on is None:
            on = self._on[like.device, dtype] = self._turns.to(like.device, dtype)
        turns = on[self._row[query_frame, key_frames].to(like.device)]
        return turns.movedim(0, -2)[..., None, :]


def _without_moves(plan: FramePlan) -> FramePlan:
    """The same for a model that has no rotary embedding, if there is such a plan."""
    if plan.positions_optional:
        plan = replace(plan, positions=relative_positions(plan.frames))
    if plan.frequencies is not None or _moves(plan).any():
        raise PatchError(
            "this model has no rotary embedding over time: its temporal positions are added to the tokens, "
            'where they cannot be re-encoded. Use a method that leaves positions alone, such as method="tsa"'
        )
    return plan


def _moves(plan: FramePlan) -> Tensor:
    """By how many latent frames each visible pair moves, (frames, frames)."""
    return (relative_positions(plan.frames) - plan.positions).masked_fill(plan.visibility == NONE, 0)


def _turns(plan: FramePlan, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct angles (turns, ..., pairs) by which keys turn, and which one each pair of frames gets."""
    if plan.frequencies is None:
        distinct, row = _moves(plan).unique(return_inverse=True)
        return distinct.view(-1, *[1] * frequencies.ndim) * frequencies, row
    if frequencies.ndim > 1:
        raise PatchError(
            "this method changes the frequencies of RoPE by a rule for one set of them, and each head of this model "
            "has its own: choose another method"
        )
    pairs = torch.stack([relative_positions(plan.frames), plan.positions], dim=-1)
    pairs = pairs.masked_fill((plan.visibility == NONE)[..., None], 0)
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
    """Turn the first pairs of a block of channels of (..., frames, tokens, head_dim) by unit complex numbers.

    `turns` broadcasts with (..., frames, tokens, pairs).
    """
    pattern = f"... {pairing} -> ... pair two"
    block = einops.rearrange(frames[..., slice(*span)], pattern, two=2)[..., : turns.shape[-1], :]
    # A copy of its own: what complex numbers are viewed from must start at an even place in memory.
    pairs = block.to(turns.real.dtype).clone(memory_format=torch.contiguous_format)
    out = frames.clone()
    view = einops.rearrange(out[..., slice(*span)], pattern, two=2)
    view[..., : turns.shape[-1], :] = torch.view_as_real(torch.view_as_complex(pairs) * turns)
    return out
