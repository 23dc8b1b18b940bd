"""Prepared plans: the rotations of keys, and the calls that execute a plan."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from freeloc.adapter.rope import TemporalRope
from freeloc.attention.devices import OnCpu
from freeloc.attention.placed import PlacedBlocks, by_frame, place, unit
from freeloc.attention.schedule import make_schedule
from freeloc.errors import FreelocError, PatchError
from freeloc.plans.frame_plan import DENSE, NONE, STRIPED, FramePlan, relative_positions


class PreparedPlan:
    """A plan prepared for one head size: the visible frames of each query frame, and the rotations of their keys.

    There are few distinct rotations, so the angles of each are stored once, in float64. Backends read `plan`
    (`FramePlan.visibility`, `stripe_tokens`, `scale_at`, `decay`, `bias`), and call `freeloc.attention.rotate_keys`
    for positions.

    >>> from freeloc.plans.vrpr import vrpr_plan
    >>> ready = PreparedPlan(vrpr_plan(8, trained_frames=4), TemporalRope(channels=8), head_dim=24)
    >>> ready.rotations(query_frame=7, key_frames=torch.tensor([0, 2, 4]), like=torch.ones(1)).shape
    torch.Size([3, 1, 4])

    Args:
        plan: the plan to prepare.
        rope: which channels the temporal RoPE rotates; None for a model without rotary embedding.
        head_dim: channels per head.
        frequencies: frequencies in radians per latent frame, (pairs,) or (heads, pairs); by default those of `rope`.

    Raises:
        PatchError: if the plan changes positions of a model without rotary embedding.
    """

    def __init__(
        self, plan: FramePlan, rope: TemporalRope | None, head_dim: int, frequencies: Tensor | None = None
    ) -> None:
        self.asked = plan
        if rope is None:
            plan, rope = _without_moves(plan), TemporalRope(channels=2)
        self.plan = plan
        self.frames = plan.frames
        self.is_identity = plan.is_identity
        self.rope = rope
        self.pairing = rope.pairing
        self.span = rope.span(head_dim)
        self.frequencies = rope.frequencies(head_dim) if frequencies is None else frequencies
        self._angles, self._row = _angles(plan, self.frequencies)  # (rotations, ..., pairs), (frames, frames)
        zero = (self._angles == 0).flatten(1).all(dim=1)
        self.moved = ~zero[self._row]
        """Which pairs of frames have a rotation, (frames, frames) bool."""
        self.rotated = (self.moved & (plan.visibility != NONE)).any(dim=1).tolist()
        """For each query frame, whether any visible key rotates."""
        self.bias = _visible_bias(plan)
        """What is added to the logits of visible pairs, (frames, frames) float64; None if nothing is."""
        self.runs = self._find_runs()
        """Ranges of consecutive query frames with the same visible keys and rotations: one call can compute a range."""
        self._stripes: dict[int, int] = {}
        self._scales: dict[int, float] = {}
        self._blocks: dict[tuple[int, torch.device, torch.dtype], PlacedBlocks] = {}
        self._on: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}
        self._bias_on: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def _find_runs(self) -> list[range]:
        plan, runs = self.plan, [range(1)]
        tables = [plan.visibility, self._row, *([] if self.bias is None else [self.bias])]
        alone = plan.decay is not None or bool((plan.visibility == STRIPED).any())
        for frame in range(1, plan.frames):
            same = not alone and all(torch.equal(table[frame], table[frame - 1]) for table in tables)
            runs[-1:] = [range(runs[-1].start, frame + 1)] if same else [runs[-1], range(frame, frame + 1)]
        return runs

    def stripe_tokens(self, tokens_per_frame: int) -> int:
        """Half-width of a stripe in tokens: see `FramePlan.stripe_tokens`."""
        if tokens_per_frame not in self._stripes:
            self._stripes[tokens_per_frame] = self.plan.stripe_tokens(tokens_per_frame)
        return self._stripes[tokens_per_frame]

    def scale_at(self, tokens_per_frame: int) -> float:
        """Factor on all logits: see `FramePlan.scale_at`."""
        if tokens_per_frame not in self._scales:
            self._scales[tokens_per_frame] = self.plan.scale_at(tokens_per_frame)
        return self._scales[tokens_per_frame]

    def bias_on(self, like: Tensor) -> Tensor:
        """What is added to the logits of each pair of frames, (frames, frames), in dtype and on device of `like`.

        Only for a plan with a bias.
        """
        if self.bias is None:
            raise RuntimeError("this plan has no bias")
        at = like.device, like.dtype
        if at not in self._bias_on:
            self._bias_on[at] = self.bias.to(like.dtype).to(like.device)
        return self._bias_on[at]

    def blocks(self, tokens_per_frame: int, like: Tensor) -> PlacedBlocks:
        """The blocks of dense and of striped pairs, with their rotations in dtype and on device of `like`.

        They are found once for each number of tokens per frame, and placed once for each dtype and device.
        """
        dtype = torch.promote_types(like.dtype, torch.complex64)
        at = tokens_per_frame, like.device, dtype
        if at not in self._blocks:
            with OnCpu(), torch.inference_mode(False):
                frames = torch.arange(self.frames, dtype=self.frequencies.dtype)
                bare = -frames.view(-1, *[1] * self.frequencies.ndim) * self.frequencies
                dense, striped = (
                    [place(block, self._angles, self._row, bare, like.device, dtype, self.bias) for block in blocks]
                    for blocks in make_schedule(self.plan, tokens_per_frame, self.bias)
                )
                self._blocks[at] = PlacedBlocks(dense, striped, by_frame(unit(bare)).to(like.device, dtype))
        return self._blocks[at]

    def rotations(self, query_frame: int, key_frames: Tensor | slice, like: Tensor) -> Tensor:
        """Rotations of the keys of these frames, as unit complex numbers ([heads,] frames, 1, pairs).

        Args:
            query_frame: index of the query's latent frame.
            key_frames: indices of the keys' latent frames, (frames,) int64, or a slice of them.
            like: a tensor with the device and dtype of the keys.
        """
        dtype = torch.promote_types(like.dtype, torch.complex64)
        on = self._on.get((like.device, dtype))
        if on is None:
            tables = unit(self._angles).to(like.device, dtype), self._row.to(like.device)
            on = self._on[like.device, dtype] = tables
        rotations, row = on
        at = key_frames.to(like.device) if isinstance(key_frames, Tensor) else key_frames
        return by_frame(rotations[row[query_frame, at]])

    def of_runs(self, like: Tensor) -> list[tuple[range, Tensor, Tensor | None]]:
        """Each run with its visible frames, dense ones first, and the `rotations` of their keys, if there are any."""
        found = []
        for run in self.runs:
            seen = torch.cat(
                [(self.plan.visibility[run.start] == kind).nonzero().flatten() for kind in (DENSE, STRIPED)]
            )
            found.append((run, seen, self.rotations(run.start, seen, like) if self.rotated[run.start] else None))
        return found


def _without_moves(plan: FramePlan) -> FramePlan:
    """The plan without changes of positions, for a model without rotary embedding."""
    if plan.positions_optional:
        plan = replace(plan, positions=relative_positions(plan.frames))
    if plan.frequencies is not None or _moves(plan).any():
        raise PatchError(
            "this model has no rotary embedding over time: its temporal positions are added to the tokens, "
            'where they cannot be re-encoded. Use a method that leaves positions alone, such as method="tsa"'
        )
    return plan


def _visible_bias(plan: FramePlan) -> Tensor | None:
    """The bias of visible pairs, and 0 for others; None if it is 0 everywhere."""
    if plan.bias is None:
        return None
    bias = plan.bias.masked_fill(plan.visibility == NONE, 0)
    return bias if bias.any() else None


def _moves(plan: FramePlan) -> Tensor:
    """Change of the relative position of each visible pair, (frames, frames), in latent frames."""
    return (relative_positions(plan.frames) - plan.positions).masked_fill(plan.visibility == NONE, 0)


def _angles(plan: FramePlan, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rotation angles (rotations, ..., pairs), and the index of the angle of each pair of frames."""
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
    """The frequencies of a plan that changes them."""
    new = change(frequencies)
    if not isinstance(new, Tensor) or new.shape != frequencies.shape or not new.isfinite().all():
        raise FreelocError(
            f"expected the frequencies of the method's plan to be {len(frequencies)} finite numbers, found {new}"
        )
    return new
