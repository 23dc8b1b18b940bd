"""The plans of a model's layers made ready for the engine: heads with the same plan together, tables shared."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from freeloc.adapter.rope import TemporalRope
from freeloc.adapter.spec import ModelShape
from freeloc.attention.engine import TokenLayout, attend, check_call
from freeloc.attention.rotation import PlanTables
from freeloc.errors import LayoutError
from freeloc.plans.frame_plan import FramePlan
from freeloc.plans.method import Plans


class HeadGroup(NamedTuple):
    """Heads of a layer that have the same plan.

    Args:
        heads: their numbers; None for all of the layer's.
        tables: the plan.
    """

    heads: list[int] | None
    tables: PlanTables

    def of(self, tensor: Tensor) -> Tensor:
        """These heads of (batch, heads, ...)."""
        return tensor if self.heads is None else tensor[:, self.heads]


class PreparedPlans:
    """The plans of one model, by layer and length.

    Args:
        plan: (layer, latent frames) -> `Plans`.
        shape: of the model.
        rope: None if the model has none.
        frequencies: in radians per position, (pairs,) or (heads, pairs).
    """

    def __init__(
        self, plan: Callable[[int, int], Plans], shape: ModelShape, rope: TemporalRope | None, frequencies: Tensor
    ) -> None:
        self._plan = plan
        self._shape = shape
        self._rope = rope
        self._frequencies = frequencies
        self._tables: dict[tuple[int, float, tuple[int, ...]], list[PlanTables]] = {}

    def groups(self, layer: int, frames: int, step: float) -> list[HeadGroup]:
        """The plans of a layer at a length, each with the heads that have it; `step` positions per latent frame.

        Raises:
            LayoutError: if they are none, or for another number of frames or of heads.
        """
        plans = self._plan(layer, frames)
        several = [plans] if isinstance(plans, FramePlan) else plans
        if not isinstance(several, Sequence) or not all(isinstance(plan, FramePlan) for plan in several):
            raise LayoutError(f"expected the method to make a FramePlan, or a list with one per head, found {plans!r}")
        alike = [(plans, None)] if isinstance(plans, FramePlan) else self._alike(plans)
        for plan, _ in alike:
            if plan.frames != frames:
                raise LayoutError(f"expected a plan for {frames} latent frames, the method made one for {plan.frames}")
        return [HeadGroup(heads, self._prepared(plan, heads, frames, step)) for plan, heads in alike]

    def _alike(self, plans: Sequence[FramePlan]) -> list[tuple[FramePlan, list[int] | None]]:
        """The distinct ones of one plan per head, with their heads."""
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

    def _prepared(self, plan: FramePlan, heads: list[int] | None, frames: int, step: float) -> PlanTables:
        """Tables of a plan. Layers and heads with the same plan share them, if they share frequencies."""
        own = heads is not None and self._frequencies.ndim > 1
        known = self._tables.setdefault((frames, step, tuple(heads or ()) if own else ()), [])
        for tables in known:
            if tables.asked.same_as(plan):
                return tables
        frequencies = self._frequencies[heads] if own else self._frequencies
        known.append(PlanTables(plan, self._rope, self._shape.head_dim, frequencies * step))
        return known[-1]


def attend_groups(
    groups: Sequence[HeadGroup],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: TokenLayout,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention of a layer whose heads may have different plans. Arguments, returns and errors as of `attend`."""
    if len(groups) == 1:
        return _attend(groups[0].tables, query, key, value, layout, mask, scale)
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    per_head = mask is not None and mask.ndim > 3 and mask.shape[1] > 1
    for group in groups:
        own = group.of(mask) if mask is not None and per_head else mask
        parts = group.of(query), group.of(key), group.of(value)
        out[:, group.heads] = _attend(group.tables, *parts, layout, own, scale)
    return out


def _attend(
    tables: PlanTables,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: TokenLayout,
    mask: Tensor | None,
    scale: float | None,
) -> Tensor:
    """The engine; where the plan changes nothing, one plain call."""
    if not tables.plan.is_identity:
        return attend(query, key, value, tables, layout, mask, scale)
    check_call(query, key, tables.plan, layout)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
