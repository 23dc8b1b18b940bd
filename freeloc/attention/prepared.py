"""Prepared plans: cached rotations of keys, runs of query frames, and groups of heads that share a plan."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from freeloc.adapter.rope import TemporalRope
from freeloc.adapter.spec import ModelShape
from freeloc.attention.devices import OnCpu
from freeloc.attention.layout import TokenLayout
from freeloc.errors import FreelocError, LayoutError, PatchError
from freeloc.plans.frame_plan import DENSE, NONE, STRIPED, FramePlan, relative_positions
from freeloc.plans.length import VideoLength
from freeloc.plans.method import Plans


class PreparedPlan:
    """A plan prepared for one head size: the visible frames of each query frame, and the rotations of their keys.

    There are few distinct rotations, so each is stored once, in complex128. Backends read `plan`
    (`FramePlan.visibility`, `stripe_tokens`, `logit_scale`, `decay`), and call `freeloc.attention.rotate_keys` for
    positions.

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
        angles, self._row = _angles(plan, self.frequencies)  # (rotations, ..., pairs), (frames, frames)
        self._rotations = torch.polar(torch.ones_like(angles), angles)
        self.dense = [(row == DENSE).nonzero().flatten() for row in plan.visibility]
        self.striped = [(row == STRIPED).nonzero().flatten() for row in plan.visibility]
        self.rotated = [bool((angles[row] != 0).any()) for row in self._row]
        """For each query frame, whether any visible key rotates."""
        self.runs = self._find_runs()
        """Ranges of consecutive query frames with the same visible keys and rotations: one call can compute a range."""
        self._stripes: dict[int, int] = {}
        self._on: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def _find_runs(self) -> list[range]:
        plan, runs = self.plan, [range(1)]
        alone = plan.decay is not None or bool((plan.visibility == STRIPED).any())
        for frame in range(1, plan.frames):
            same = not alone and all(torch.equal(t[frame], t[frame - 1]) for t in (plan.visibility, self._row))
            runs[-1:] = [range(runs[-1].start, frame + 1)] if same else [runs[-1], range(frame, frame + 1)]
        return runs

    def stripe_tokens(self, tokens_per_frame: int) -> int:
        """Half-width of a stripe in tokens: see `FramePlan.stripe_tokens`."""
        if tokens_per_frame not in self._stripes:
            self._stripes[tokens_per_frame] = self.plan.stripe_tokens(tokens_per_frame)
        return self._stripes[tokens_per_frame]

    def rotations(self, query_frame: int, key_frames: Tensor, like: Tensor) -> Tensor:
        """Rotations of the keys of these frames, as unit complex numbers ([heads,] frames, 1, pairs)."""
        dtype = torch.promote_types(like.dtype, torch.complex64)
        on = self._on.get((like.device, dtype))
        if on is None:
            on = self._on[like.device, dtype] = self._rotations.to(like.device, dtype)
        return on[self._row[query_frame, key_frames].to(like.device)].movedim(0, -2)[..., None, :]

    def of_runs(self, like: Tensor) -> list[tuple[range, Tensor, Tensor | None]]:
        """Each run with its visible frames, dense ones first, and the `rotations` of their keys, if there are any."""
        found = []
        for run in self.runs:
            seen = torch.cat([self.dense[run.start], self.striped[run.start]])
            rotated = self.rotated[run.start]
            found.append((run, seen, self.rotations(run.start, seen, like) if rotated else None))
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


@dataclass(frozen=True)
class HeadGroup:
    """Heads of a layer that have the same plan.

    Args:
        heads: indices of the heads; None for all heads of the layer.
        plan: their prepared plan.
    """

    heads: list[int] | None
    plan: PreparedPlan

    def of(self, tensor: Tensor) -> Tensor:
        """The part of a tensor (batch, heads, ...) for these heads."""
        return tensor if self.heads is None else tensor[:, self.heads]


class LayerPlan:
    """The prepared plans of a layer at one length: groups of heads that share a plan.

    >>> from freeloc.plans.vrpr import vrpr_plan
    >>> plan = LayerPlan.of(vrpr_plan(8, trained_frames=4), TemporalRope(channels=8), head_dim=24)
    >>> plan.frames, plan.is_identity, plan.largest_position, plan.density(tokens_per_frame=6)
    (8, False, 2.0, 1.0)
    """

    def __init__(self, groups: Sequence[HeadGroup]) -> None:
        self.groups = tuple(groups)
        self.frames = groups[0].plan.frames
        self.is_identity = all(group.plan.is_identity for group in groups)
        self.largest_position = max(group.plan.plan.largest_position for group in groups)

    @classmethod
    def of(
        cls, plan: FramePlan, rope: TemporalRope | None, head_dim: int, frequencies: Tensor | None = None
    ) -> "LayerPlan":
        """One plan for all heads, with the arguments of `PreparedPlan`."""
        return cls([HeadGroup(None, PreparedPlan(plan, rope, head_dim, frequencies))])

    def density(self, tokens_per_frame: int) -> float:
        """Share of all token pairs that are attended, 0..1: the mean over heads."""
        shares = [(len(group.heads or [0]), group.plan.plan.density(tokens_per_frame)) for group in self.groups]
        return sum(heads * share for heads, share in shares) / sum(heads for heads, _ in shares)


class LayerPlans:
    """The prepared plans of one model, by layer and length. Each is prepared once.

    Args:
        plan: (layer, length of the video) -> `Plans`.
        shape: layers, heads and head size of the model.
        rope: the model's temporal RoPE; None if it has none.
        frequencies: frequencies in radians per position, (pairs,) or (heads, pairs).
    """

    def __init__(
        self,
        plan: Callable[[int, VideoLength], Plans],
        shape: ModelShape,
        rope: TemporalRope | None,
        frequencies: Tensor,
    ) -> None:
        self._plan = plan
        self._shape = shape
        self._rope = rope
        self._frequencies = frequencies
        self._layers: dict[tuple[int, VideoLength, float], LayerPlan] = {}
        self._prepared: dict[tuple[int, float, tuple[int, ...]], list[PreparedPlan]] = {}
        self._parts: dict[range, LayerPlans] = {}

    def at(self, layer: int, length: VideoLength, positions_per_frame: float = 1.0) -> LayerPlan:
        """The plan of a layer for a video of this length.

        Raises:
            LayoutError: if the method returned no plan, or one for another number of frames or heads.
        """
        known = self._layers.get((layer, length, positions_per_frame))
        if known is None:
            with OnCpu(), torch.inference_mode(False):
                known = LayerPlan(self._groups(self._plan(layer, length), length.frames, positions_per_frame))
            self._layers[layer, length, positions_per_frame] = known
        return known

    def of_heads(self, heads: range) -> "LayerPlans":
        """The plans of some of the model's heads, for a process that computes only these."""
        if heads not in self._parts:
            shape = replace(self._shape, heads=len(heads))
            own = self._frequencies if self._frequencies.ndim == 1 else self._frequencies[list(heads)]
            self._parts[heads] = LayerPlans(functools.partial(self._of_heads, heads), shape, self._rope, own)
        return self._parts[heads]

    def _of_heads(self, heads: range, layer: int, length: VideoLength) -> Plans:
        plans = self._plan(layer, length)
        if isinstance(plans, FramePlan):
            return plans
        self._alike(plans)  # checks their number
        return [plans[head] for head in heads]

    def _groups(self, plans: Plans, frames: int, positions_per_frame: float) -> list[HeadGroup]:
        """Groups of heads with the same plan."""
        several = [plans] if isinstance(plans, FramePlan) else plans
        if not isinstance(several, Sequence) or not all(isinstance(plan, FramePlan) for plan in several):
            raise LayoutError(f"expected the method to make a FramePlan, or a list with one per head, found {plans!r}")
        alike = [(plans, None)] if isinstance(plans, FramePlan) else self._alike(plans)
        for plan, _ in alike:
            if plan.frames != frames:
                raise LayoutError(f"expected a plan for {frames} latent frames, the method made one for {plan.frames}")
        return [HeadGroup(heads, self._ready(plan, heads, frames, positions_per_frame)) for plan, heads in alike]

    def _alike(self, plans: Sequence[FramePlan]) -> list[tuple[FramePlan, list[int] | None]]:
        """The distinct plans among one plan per head, with their heads."""
        if len(plans) != self._shape.heads:
            raise LayoutError(f"expected a plan for each of {self._shape.heads} heads, the method made {len(plans)}")
        found: list[tuple[FramePlan, list[int]]] = []
        for head, plan in enumerate(plans):
            for other, heads in found:
                if other.same_as(plan):
                    heads.append(head)
                    break
            else:
                found.append((plan, [head]))
        return [(plan, heads if len(found) > 1 else None) for plan, heads in found]

    def _ready(self, plan: FramePlan, heads: list[int] | None, frames: int, positions_per_frame: float) -> PreparedPlan:
        """A prepared plan. Layers and heads with the same plan and frequencies share it."""
        own = heads is not None and self._frequencies.ndim > 1
        known = self._prepared.setdefault((frames, positions_per_frame, tuple(heads or ()) if own else ()), [])
        for prepared in known:
            if prepared.asked.same_as(plan):
                return prepared
        frequencies = self._frequencies[heads] if own else self._frequencies
        known.append(PreparedPlan(plan, self._rope, self._shape.head_dim, frequencies * positions_per_frame))
        return known[-1]


def check_call(query: Tensor, key: Tensor, frames: int, layout: TokenLayout) -> None:
    """Raise a `LayoutError` unless queries, keys and the plan's number of latent frames match the layout."""
    if query.shape[-2] != layout.tokens or key.shape[-2] != layout.tokens:
        raise LayoutError(
            f"expected self-attention over {layout.tokens} tokens ({layout.frames} latent frames of {layout.height} x "
            f"{layout.width}, {layout.text_first + layout.text_last} of text), found {query.shape[-2]} queries and "
            f"{key.shape[-2]} keys"
        )
    if frames != layout.frames:
        raise LayoutError(f"the plan is for {frames} latent frames, the video has {layout.frames}")
