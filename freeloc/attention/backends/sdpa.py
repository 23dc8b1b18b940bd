"""Backend ``sdpa``: PyTorch's own attention kernels, called once for each block of pairs. Runs on any device.

RoPE is a rotation, so R(p') x = R(p' - p) R(p) x. Rotating the temporal channels of queries and keys by what their
positions differ under the plan gives each pair its position. Every (query, key) pair counts exactly once.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from freeloc.attention.backends.base import Backend
from freeloc.attention.backends.blocks import attend_blocks
from freeloc.attention.backends.frames import by_frame, video_and_text
from freeloc.attention.backends.gathered import attend_gathered
from freeloc.attention.backends.stripes import chunks
from freeloc.attention.layer_plan import LayerPlan
from freeloc.attention.layout import TokenLayout
from freeloc.attention.parts import has_parts
from freeloc.attention.placed import PlacedBlock
from freeloc.attention.prepared import PreparedPlan
from freeloc.attention.sums import Sums


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
    if _has_blocks(plan, query, key, value):
        out = _attend_blocks(query, key, value, plan, layout, mask, scale)
    else:
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        attend_gathered(query, key, value, plan, layout, mask, scale, out)
    for text in layout.texts:
        rows = mask if mask is None or mask.shape[-2] == 1 else mask[..., text, :]
        out[:, :, text] = F.scaled_dot_product_attention(query[:, :, text], key, value, attn_mask=rows, scale=scale)
    return out


def _has_blocks(plan: PreparedPlan, query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether a call can be computed by blocks."""
    is_recorded = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    if plan.plan.decay is not None or is_recorded or forward_ad._current_level >= 0:  # the last one in torch.func.jvp
        return False
    return has_parts(query.device.type, query.dtype, query.shape[-1])


def _attend_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: PreparedPlan,
    layout: TokenLayout,
    mask: Tensor | None,
    scale: float | None,
) -> Tensor:
    """Attention of the video tokens, (batch, heads, tokens, head_dim); what stands for text is not set."""
    masks = [None] * len(query) if mask is None else mask.expand(len(query), -1, -1, -1)
    each = [
        _attend_one(tensors, plan, layout, own, scale) for *tensors, own in zip(query, key, value, masks, strict=True)
    ]
    return each[0][None] if len(each) == 1 else torch.stack(each)


def _attend_one(
    tensors: Sequence[Tensor], plan: PreparedPlan, layout: TokenLayout, mask: Tensor | None, scale: float | None
) -> Tensor:
    """The same for one element of the batch, (heads, tokens, head_dim)."""
    query = tensors[0]
    if query.dtype.itemsize >= 4:
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        _add_blocks(tensors, plan, layout, mask, scale, by_frame(out, layout))
        return out
    video = query.new_empty(by_frame(query, layout).shape, dtype=torch.float32)
    _add_blocks(tensors, plan, layout, mask, scale, video)
    out = torch.empty_like(query, memory_format=torch.contiguous_format)  # only now: the rest has left the memory
    by_frame(out, layout).copy_(video)
    return out


def _add_blocks(
    tensors: Sequence[Tensor],
    plan: PreparedPlan,
    layout: TokenLayout,
    mask: Tensor | None,
    scale: float | None,
    out: Tensor,
) -> None:
    """Write the attention of the video tokens to `out`, (heads, frames, tokens per frame, head_dim)."""
    blocks = plan.blocks(layout.tokens_per_frame, tensors[0])
    video, texts = video_and_text(tensors, plan, layout, mask, scale, Sums(out))
    for number, text in enumerate(texts):
        attend_blocks(text, [PlacedBlock((slice(0, layout.frames),), slice(0, 1))], is_first=number == 0)
    attend_blocks(video, blocks.dense, is_first=not texts)
    if blocks.striped:
        for chunk in chunks(video, plan.stripe_tokens(layout.tokens_per_frame)):
            attend_blocks(chunk, blocks.striped, is_first=not texts)


BACKEND = Backend("sdpa", attend, priority=0, source="torch.nn.functional.scaled_dot_product_attention")
