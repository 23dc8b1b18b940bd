"""Attention by gathered keys: for each query frame, calls of attention over a copy of the keys that it sees.

It is slower than `freeloc.attention.backends.blocks`, and does what that does not: gradients, decay of logits, and
devices whose attention kernels give no log-sum-exp.

For query frame i, rotating the temporal channels of every key frame j by the angle of (i - j) - positions[i, j] gives
each pair its position under the plan. Each query frame is then one ordinary attention call over its visible keys.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from freeloc.attention.backends.reference import softmax
from freeloc.attention.layout import TokenLayout
from freeloc.attention.parts import additive
from freeloc.attention.prepared import PreparedPlan
from freeloc.attention.rotation import rotate
from freeloc.plans.frame_plan import DENSE, STRIPED

SMALLEST_CHUNK = 128
"""Smallest number of query tokens per call in striped frames. Smaller calls cost more than the keys they save."""


def attend_gathered(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: PreparedPlan,
    layout: TokenLayout,
    mask: Tensor | None,
    scale: float | None,
    out: Tensor,
) -> None:
    """Write the attention of all video tokens to `out`.

    Frames with the same visible keys share a call. A frame with striped pairs needs a call for each chunk of its
    tokens. Only for a plan with decay, logits are computed here.
    """
    reach, text_at = plan.stripe_tokens(layout.tokens_per_frame), layout.text_at.to(query.device)
    call = _Call(query, key, value, plan, layout, text_at, reach, mask, scale)
    for frames, seen, rotations in plan.of_runs(key):
        _attend_frames(call, frames, seen, rotations, out)


class _Call(NamedTuple):
    """The arguments of `attend_gathered`, and the indices of the text tokens."""

    query: Tensor
    key: Tensor
    value: Tensor
    prepared: PreparedPlan
    layout: TokenLayout
    text_at: Tensor
    reach: int
    """Half-width of a stripe in tokens."""
    mask: Tensor | None
    scale: float | None


class _View(NamedTuple):
    """The visible keys of some query tokens: dense frames whole, tokens low..high of striped frames, and all text."""

    dense: int
    low: int
    high: int

    def of(self, frames: Tensor, text: Tensor) -> Tensor:
        """Select them from (..., frames, tokens_per_frame, channels), dense first, and (..., text tokens, channels)."""
        whole = frames[..., : self.dense, :, :].flatten(-3, -2)
        striped = frames[..., self.dense :, self.low : self.high, :].flatten(-3, -2)
        parts = [part for part in (whole, striped, text) if part.shape[-2]]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)


def _attend_frames(call: _Call, frames: range, seen: Tensor, rotations: Tensor | None, out: Tensor) -> None:
    """Write the output of query frames with the same visible keys, in chunks of their tokens if necessary."""
    query, key, value, prepared, layout, text_at, reach, _, scale = call
    plan, n, frame = prepared.plan, layout.tokens_per_frame, frames.start
    visibility = plan.visibility[frame]
    dense, striped = ((visibility == kind).nonzero().flatten() for kind in (DENSE, STRIPED))
    keys, values = _frames(key, layout, seen), _frames(value, layout, seen)
    if rotations is not None:
        keys = rotate(keys, rotations, prepared.span, prepared.pairing)
    key_text, value_text = key.index_select(2, text_at), value.index_select(2, text_at)
    count = n * len(frames)
    chunk = max(reach, SMALLEST_CHUNK) if len(striped) else count if plan.decay is None else SMALLEST_CHUNK
    factor = None if plan.decay is None else _factor(plan.decay[frame, seen], query)[:, None, None].expand(-1, n, 1)
    like = query if factor is None else factor
    bias = None
    if prepared.bias is not None:
        bias = prepared.bias_on(like)[frame, seen.to(like.device)][:, None, None].expand(-1, n, 1)
    for start in range(0, count, chunk):
        stop = min(start + chunk, count)
        view = _View(len(dense), max(0, start - reach + 1), min(n, stop + reach - 1))
        first = layout.video.start + frame * n
        rows = slice(first + start, first + stop)
        tensors = query[:, :, rows], view.of(keys, key_text), view.of(values, value_text)
        allowed = _allowed(call, view, seen, (start, stop), rows)
        if bias is not None:
            of_keys = view.of(bias, torch.zeros_like(text_at, dtype=bias.dtype)[:, None]).flatten()
            allowed = _with_bias(allowed, of_keys, (stop - start, len(of_keys)))
        if factor is None:
            out[:, :, rows] = F.scaled_dot_product_attention(*tensors, attn_mask=allowed, scale=scale)
        else:
            per_key = view.of(factor, torch.ones_like(text_at, dtype=factor.dtype)[:, None]).flatten()
            out[:, :, rows] = _attend_decayed(*tensors, per_key, allowed, scale)


def _allowed(call: _Call, view: _View, seen: Tensor, tokens: tuple[int, int], rows: slice) -> Tensor | None:
    """The mask of a view for the query tokens (start, stop) of a frame: its stripes, and the model's mask."""
    n, text_at, mask = call.layout.tokens_per_frame, call.text_at, call.mask
    allowed = None
    if len(seen) > view.dense:
        band = _band(*tokens, view.low, view.high, call.reach, text_at.device)
        allowed = F.pad(band.repeat(1, len(seen) - view.dense), (view.dense * n, len(text_at)), value=True)
    if mask is not None:
        video_at = (call.layout.video.start + n * seen[:, None] + torch.arange(n, device="cpu")).to(text_at.device)
        columns = view.of(video_at[..., None], text_at[:, None]).flatten()
        allowed = _compose(mask_rows(mask, torch.arange(rows.start, rows.stop, device=mask.device)), columns, allowed)
    return allowed


def _with_bias(allowed: Tensor | None, bias: Tensor, shape: tuple[int, int]) -> Tensor:
    """A mask and what the plan adds to the logits of each key, (keys,), as one additive mask (..., queries, keys)."""
    return bias.expand(shape) if allowed is None else additive(allowed, bias.dtype) + bias


def _attend_decayed(
    query: Tensor, key: Tensor, value: Tensor, factor: Tensor, allowed: Tensor | None, scale: float | None
) -> Tensor:
    """Attention in which the positive logits of each key are multiplied by its factor (keys,)."""
    logits = query.to(factor.dtype) @ key.to(factor.dtype).mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    logits = torch.where(logits > 0, logits * factor, logits)
    if allowed is not None:
        logits = logits.masked_fill(~allowed, float("-inf")) if allowed.dtype == torch.bool else logits + allowed
    return softmax(logits).to(value.dtype) @ value


def _factor(decay: Tensor, like: Tensor) -> Tensor:
    """Move the factors to the device of `like`, in at least float32."""
    return decay.to(torch.promote_types(like.dtype, torch.float32)).to(like.device)


def _frames(tensor: Tensor, layout: TokenLayout, which: Tensor) -> Tensor:
    """The video tokens of these frames, (batch, heads, frames, tokens_per_frame, head_dim)."""
    video: Tensor = tensor[:, :, layout.video].unflatten(2, (layout.frames, layout.tokens_per_frame))
    whole = len(which) == layout.frames and bool((which.diff() == 1).all())
    return video if whole else video.index_select(2, which.to(tensor.device))


def _band(start: int, stop: int, low: int, high: int, reach: int, device: torch.device) -> Tensor:
    """Which key tokens low..high are visible to the query tokens start..stop in a striped pair of frames, bool."""
    query, key = torch.arange(start, stop, device=device), torch.arange(low, high, device=device)
    return (query[:, None] - key[None, :]).abs() < reach


def mask_rows(mask: Tensor, at: Tensor) -> Tensor:
    """The rows of a broadcastable mask for these query tokens."""
    return mask if mask.ndim < 2 or mask.shape[-2] == 1 else mask.index_select(-2, at)


def _compose(mask: Tensor, columns: Tensor, allowed: Tensor | None) -> Tensor:
    """The model's mask for these key tokens, combined with the plan's."""
    own = mask if mask.shape[-1] == 1 else mask.index_select(-1, columns)
    if allowed is None:
        return own.expand(*own.shape[:-1], len(columns))
    if own.dtype == torch.bool:
        return own & allowed
    return own.masked_fill(~allowed, float("-inf"))
