"""Backend ``reference``: the formulas with dense logits in float64. All other backends are tested against it."""

import einops
import torch
from torch import Tensor

from freeloc.adapter.rope import TemporalRope
from freeloc.attention.backends.base import Backend
from freeloc.attention.devices import OnCpu
from freeloc.attention.layer_plan import LayerPlan, check_call
from freeloc.attention.layout import TokenLayout
from freeloc.plans.frame_plan import FramePlan, relative_positions


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
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    for group in plan.groups:
        tensors = group.of(query), group.of(key), group.of(value)
        own = group.of(mask) if mask is not None and mask.ndim > 3 and mask.shape[1] > 1 else mask
        ready = group.plan
        with OnCpu():
            found = attend_reference(*tensors, ready.plan, ready.rope, layout, own, scale, ready.frequencies)
        out[:, slice(None) if group.heads is None else group.heads] = found
    return out


def attend_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: FramePlan,
    rope: TemporalRope,
    layout: TokenLayout,
    mask: Tensor | None = None,
    scale: float | None = None,
    frequencies: Tensor | None = None,
) -> Tensor:
    """Attention of heads that share a plan, from dense logits in float64. Memory grows with the square of the tokens.

    Args:
        query, key, value, layout, mask, scale: see `freeloc.attention.attend`.
        plan, rope, frequencies: see `freeloc.attention.PreparedPlan`.
    """
    check_call(query, key, plan.frames, layout)
    q, k, v = (tensor.double() for tensor in (query, key, value))
    logits: Tensor = q @ k.mT
    video = k[:, :, layout.video].unflatten(2, (layout.frames, layout.tokens_per_frame))
    span = rope.span(query.shape[-1])
    frequencies = rope.frequencies(query.shape[-1]) if frequencies is None else frequencies
    wanted = plan.frequencies(frequencies) if plan.frequencies else frequencies
    true = relative_positions(plan.frames)
    for frame in range(layout.frames):
        per_frame = true[frame, :, None, None], plan.positions[frame, :, None, None]  # (frames, 1, 1)
        angles = per_frame[0] * frequencies[..., None, None, :] - per_frame[1] * wanted[..., None, None, :]
        rotated = _rotated(video, angles.to(query.device), span, rope.pairing).flatten(2, 3)
        start = layout.video.start + frame * layout.tokens_per_frame
        rows = slice(start, start + layout.tokens_per_frame)
        logits[:, :, rows, layout.video] = q[:, :, rows] @ rotated.mT
    logits = logits * (query.shape[-1] ** -0.5 if scale is None else scale) * plan.scale_at(layout.tokens_per_frame)
    if plan.decay is not None:
        logits = torch.where(logits > 0, logits * _of_tokens(plan.decay, layout, 1.0, query), logits)
    if plan.bias is not None:
        logits = logits + _of_tokens(plan.bias, layout, 0.0, query)
    hidden = torch.zeros(layout.tokens, layout.tokens, dtype=torch.bool, device=query.device)
    hidden[layout.video, layout.video] = ~plan.token_mask(layout.tokens_per_frame).to(query.device)
    logits = logits.masked_fill(hidden, float("-inf"))
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
    out: Tensor = softmax(logits) @ v
    return out.to(query.dtype)


def _of_tokens(table: Tensor, layout: TokenLayout, of_text: float, like: Tensor) -> Tensor:
    """A table of pairs of frames as one of pairs of tokens, (tokens, tokens) float64 on the device of `like`."""
    found = torch.full((layout.tokens, layout.tokens), of_text, dtype=torch.float64, device=like.device)
    per_token = table.to(like.device).repeat_interleave(layout.tokens_per_frame, dim=0)
    found[layout.video, layout.video] = per_token.repeat_interleave(layout.tokens_per_frame, dim=1)
    return found


def _rotated(video: Tensor, angles: Tensor, span: tuple[int, int], pairing: str) -> Tensor:
    """Rotate the first pairs of a block of channels of (..., frames, tokens, head_dim) by angles (..., 1, pairs)."""
    block = einops.rearrange(video[..., slice(*span)], f"... {pairing} -> two ... pair", two=2)
    own = angles.shape[-1]
    x, y = block[..., :own]
    new = torch.stack([x * angles.cos() - y * angles.sin(), x * angles.sin() + y * angles.cos()])
    block = torch.cat([new, block[..., own:]], dim=-1)
    out = video.clone()
    out[..., slice(*span)] = einops.rearrange(block, f"two ... pair -> ... {pairing}")
    return out


def softmax(logits: Tensor) -> Tensor:
    """Weights of the keys; 0 for a query without visible keys, as in `scaled_dot_product_attention`."""
    blind = (logits == float("-inf")).all(dim=-1, keepdim=True)
    return logits.softmax(dim=-1).masked_fill(blind, 0)


BACKEND = Backend("reference", attend, source="dense logits in float64, for tests")
