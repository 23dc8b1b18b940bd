"""Backend ``sdpa``: PyTorch's own attention kernels, called once for each block of pairs. Runs on any device.

RoPE is a rotation, so R(p') x = R(p' - p) R(p) x. For query frame i, rotating the temporal channels of every key frame
j by the angle of (i - j) - positions[i, j] gives each pair its position under the plan. Every (query, key) pair counts
exactly once.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from freeloc.attention.backends.base import Backend
from freeloc.attention.backends.blocks import Call, attend_dense
from freeloc.attention.backends.gathered import attend_gathered
from freeloc.attention.backends.stripes import attend_striped
from freeloc.attention.layer_plan import LayerPlan
from freeloc.attention.layout import TokenLayout
from freeloc.attention.parts import additive, has_parts
from freeloc.attention.prepared import PreparedPlan


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: LayerPlan,
    layout: TokenLayout,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """See `freeloc.attention.attend`."""
    if len(plan.groups) == 1:
        return _attend_group(plan.groups[0].plan, query, key, value, layout, mask, scale)
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    per_head = mask is not None and mask.ndim > 3 and mask.shape[1] > 1
    for group in plan.groups:
        own = group.of(mask) if mask is not None and per_head else mask
        tensors = group.of(query), group.of(key), group.of(value)
        out[:, group.heads] = _attend_group(group.plan, *tensors, layout, own, scale)
    return out


def _attend_group(
    plan: PreparedPlan,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: TokenLayout,
    mask: Tensor | None,
    scale: float | None,
) -> Tensor:
    """Attention of heads that share a plan."""
    if plan.is_identity:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    factor = plan.scale_at(layout.tokens_per_frame)
    if factor != 1:
        scale = (query.shape[-1] ** -0.5 if scale is None else scale) * factor
    if mask is not None:
        mask = mask[(None,) * (4 - mask.ndim)]
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    for text in (slice(0, layout.video.start), slice(layout.video.stop, layout.tokens)):
        if text.stop > text.start:
            rows = mask if mask is None or mask.shape[-2] == 1 else mask[..., text, :]
            text_query = query[:, :, text]
            out[:, :, text] = F.scaled_dot_product_attention(text_query, key, value, attn_mask=rows, scale=scale)
    if _has_blocks(plan, (query, key, value), layout, mask):
        merges = plan.schedule(layout).parts > 1 or _has_parts(query)
        lse = query.new_empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32))
        mask = additive(mask, query.dtype) if mask is not None and (merges or plan.bias is not None) else mask
        call = Call(query, key, value, plan, layout, mask, scale, out, lse if merges else None)
        attend_striped(call, attend_dense(call))
    else:
        attend_gathered(query, key, value, plan, layout, mask, scale, out)
    return out


def _has_blocks(
    plan: PreparedPlan, tensors: tuple[Tensor, Tensor, Tensor], layout: TokenLayout, mask: Tensor | None
) -> bool:
    """Whether a call can be computed by blocks."""
    is_recorded = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if plan.plan.decay is not None or is_recorded or forward_ad._current_level >= 0:  # the last one in torch.func.jvp
        return False
    schedule, query = plan.schedule(layout), tensors[0]
    if any(schedule.striped) and mask is not None and mask.shape[-2] > 1:
        return False
    return schedule.parts == 1 or _has_parts(query)


def _has_parts(query: Tensor) -> bool:
    return has_parts(query.device.type, query.dtype, query.shape[-1])


BACKEND = Backend("sdpa", attend, priority=0, source="torch.nn.functional.scaled_dot_product_attention")
