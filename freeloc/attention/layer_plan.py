"""The plans of a layer: one for all its heads, or groups of heads with a plan each."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from freeloc.adapter.rope import TemporalRope
from freeloc.adapter.spec import ModelShape
from freeloc.attention.devices import OnCpu
from freeloc.attention.layout import TokenLayout
from freeloc.attention.prepared import PreparedPlan
from freeloc.errors import LayoutError
from freeloc.plans.frame_plan import FramePlan
from freeloc.plans.length import VideoLength
from freeloc.plans.method import Plans


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
