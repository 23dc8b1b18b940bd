"""The engine: attention of one layer under a FramePlan, on queries and keys that the model has already rotated.

RoPE is a rotation, so R(p') x = R(p' - p) R(p) x. For query frame i, turning the temporal channels of every key frame
j by the angle of (i - j) - positions[i, j] gives each pair the position that the plan asks for; each query frame is
then one ordinary attention call over the keys that it may see. Every (query, key) pair counts exactly once.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from freeloc.adapter.rope import TemporalRope
from freeloc.attention.rotation import PlanTables, rotate
from freeloc.errors import LayoutError
from freeloc.plans.frame_plan import FramePlan, relative_positions

SMALLEST_CHUNK = 128
"""Query tokens that share one call in striped frames, at least. Smaller calls cost more than the keys they save."""


@dataclass(frozen=True)
class TokenLayout:
    """Order of the tokens in a sequence: text, then the video frame by frame in raster order, then text.

    >>> TokenLayout(frames=21, height=30, width=52).tokens_per_frame
    1560
    """

    frames: int
    height: int
    width: int
    text_first: int = 0
    text_last: int = 0

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of one latent frame."""
        return self.height * self.width

    @property
    def video(self) -> slice:
        """The video tokens."""
        return slice(self.text_first, self.text_first + self.frames * self.tokens_per_frame)

    @property
    def tokens(self) -> int:
        """Length of the whole sequence."""
        return self.text_first + self.frames * self.tokens_per_frame + self.text_last


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tables: PlanTables,
    layout: TokenLayout,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention under a plan: each query frame calls `scaled_dot_product_attention` over the keys that it sees.

    Frames that see the same share a call; where they see striped frames, each makes one for a chunk of its tokens at a
    time. Only a plan that decays logits computes them itself.

    >>> from freeloc.plans.vrpr import vrpr_plan
    >>> q, k, v = torch.randn(3, 1, 2, 8 * 6, 24)
    >>> tables = PlanTables(vrpr_plan(8, trained_frames=4), TemporalRope(channels=8), head_dim=24)
    >>> attend(q, k, v, tables, TokenLayout(frames=8, height=2, width=3)).shape
    torch.Size([1, 2, 48, 24])

    Args:
        query, key, value: (batch, heads, tokens, head_dim), already rotated by the model.
        tables: the plan, made ready.
        layout: what the tokens are.
        mask: the model's own, bool or additive, broadcastable to (batch, heads, tokens, tokens).
        scale: of the logits; by default head_dim ** -0.5.

    Returns:
        (batch, heads, tokens, head_dim), contiguous.

    Raises:
        LayoutError: if the tokens are not the layout's, or the plan is for another number of frames.
    """
    check_call(query, key, tables.plan, layout)
    if tables.plan.logit_scale != 1:
        scale = (query.shape[-1] ** -0.5 if scale is None else scale) * tables.plan.logit_scale
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    text = torch.ones(layout.tokens, dtype=torch.bool)
    text[layout.video] = False
    text_at = text.nonzero().flatten().to(query.device)
    if len(text_at):
        rows = None if mask is None else mask_rows(mask, text_at)
        text_query = query.index_select(2, text_at)
        out[:, :, text_at] = F.scaled_dot_product_attention(text_query, key, value, attn_mask=rows, scale=scale)
    call = _Call(query, key, value, tables, layout, text_at, mask, scale)
    for frames in tables.runs:
        _attend_frames(call, frames, out)
    return out


class _Call(NamedTuple):
    """The arguments of `attend`, and where the text is."""

    query: Tensor
    key: Tensor
    value: Tensor
    tables: PlanTables
    layout: TokenLayout
    text_at: Tensor
    mask: Tensor | None
    scale: float | None


class _View(NamedTuple):
    """What some query tokens of one frame see: the dense frames whole, of the others the tokens low..high; all text."""

    dense: int
    low: int
    high: int

    def of(self, frames: Tensor, text: Tensor) -> Tensor:
        """From (..., frames, tokens_per_frame, channels), dense frames first, and (..., text tokens, channels)."""
        whole = frames[..., : self.dense, :, :].flatten(-3, -2)
        striped = frames[..., self.dense :, self.low : self.high, :].flatten(-3, -2)
        parts = [part for part in (whole, striped, text) if part.shape[-2]]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)


def _attend_frames(call: _Call, frames: range, out: Tensor) -> None:
    """Write the output of query frames that see the same keys, where need be a chunk of their tokens at a time."""
    query, key, value, tables, layout, text_at, _, scale = call
    plan, n, frame = tables.plan, layout.tokens_per_frame, frames.start
    dense, striped = tables.dense[frame], tables.striped[frame]
    seen = torch.cat([dense, striped])
    keys, values = _frames(key, layout, seen), _frames(value, layout, seen)
    if tables.turned[frame]:
        keys = rotate(keys, tables.turns(frame, seen, key), tables.span, tables.rope.pairing)
    key_text, value_text = key.index_select(2, text_at), value.index_select(2, text_at)
    reach = plan.stripe_tokens(n)
    count = n * len(frames)
    chunk = max(reach, SMALLEST_CHUNK) if len(striped) else count if plan.decay is None else SMALLEST_CHUNK
    factor = None if plan.decay is None else _factor(plan.decay[frame, seen], query)[:, None, None].expand(-1, n, 1)
    for start in range(0, count, chunk):
        stop = min(start + chunk, count)
        view = _View(len(dense), max(0, start - reach + 1), min(n, stop + reach - 1))
        first = layout.video.start + frame * n
        rows = slice(first + start, first + stop)
        tensors = query[:, :, rows], view.of(keys, key_text), view.of(values, value_text)
        allowed = _allowed(call, view, seen, (start, stop), rows)
        if factor is None:
            out[:, :, rows] = F.scaled_dot_product_attention(*tensors, attn_mask=allowed, scale=scale)
        else:
            per_key = view.of(factor, torch.ones_like(text_at, dtype=factor.dtype)[:, None]).flatten()
            out[:, :, rows] = _attend_decayed(*tensors, per_key, allowed, scale)


def _allowed(call: _Call, view: _View, seen: Tensor, tokens: tuple[int, int], rows: slice) -> Tensor | None:
    """The mask of a view for the query tokens from, to of a frame: its stripes, and the model's own."""
    n, text_at, mask = call.layout.tokens_per_frame, call.text_at, call.mask
    allowed = None
    if len(seen) > view.dense:
        band = _band(*tokens, view.low, view.high, call.tables.plan.stripe_tokens(n), text_at.device)
        allowed = F.pad(band.repeat(1, len(seen) - view.dense), (view.dense * n, len(text_at)), value=True)
    if mask is not None:
        video_at = (call.layout.video.start + n * seen[:, None] + torch.arange(n)).to(text_at.device)
        columns = view.of(video_at[..., None], text_at[:, None]).flatten()
        allowed = _compose(mask_rows(mask, torch.arange(rows.start, rows.stop, device=mask.device)), columns, allowed)
    return allowed


def _attend_decayed(
    query: Tensor, key: Tensor, value: Tensor, factor: Tensor, allowed: Tensor | None, scale: float | None
) -> Tensor:
    """Attention in which the positive logits of each key are multiplied by its factor (keys,)."""
    logits = query.to(factor.dtype) @ key.to(factor.dtype).mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    logits = torch.where(logits > 0, logits * factor, logits)
    if allowed is not None:
        logits = logits.masked_fill(~allowed, float("-inf")) if allowed.dtype == torch.bool else logits + allowed
    return _softmax(logits).to(value.dtype) @ value


def _factor(decay: Tensor, like: Tensor) -> Tensor:
    """Factors on the device of `like`, in at least float32."""
    return decay.to(torch.promote_types(like.dtype, torch.float32)).to(like.device)


def _frames(tensor: Tensor, layout: TokenLayout, which: Tensor) -> Tensor:
    """The video tokens of these frames, (batch, heads, frames, tokens_per_frame, head_dim)."""
    video: Tensor = tensor[:, :, layout.video].unflatten(2, (layout.frames, layout.tokens_per_frame))
    return video if torch.equal(which, torch.arange(layout.frames)) else video.index_select(2, which.to(tensor.device))


def _band(start: int, stop: int, low: int, high: int, reach: int, device: torch.device) -> Tensor:
    """Which of the key tokens low..high of a frame the query tokens start..stop see in a striped pair."""
    query, key = torch.arange(start, stop, device=device), torch.arange(low, high, device=device)
    return (query[:, None] - key[None, :]).abs() < reach


def mask_rows(mask: Tensor, at: Tensor) -> Tensor:
    """The rows of a broadcastable mask for these query tokens."""
    return mask if mask.ndim < 2 or mask.shape[-2] == 1 else mask.index_select(-2, at)


def _compose(mask: Tensor, columns: Tensor, allowed: Tensor | None) -> Tensor:
    """The model's mask at these key tokens, and the plan's on top of it."""
    own = mask if mask.shape[-1] == 1 else mask.index_select(-1, columns)
    if allowed is None:
        return own.expand(*own.shape[:-1], len(columns))
    if own.dtype == torch.bool:
        return own & allowed
    return own.masked_fill(~allowed, float("-inf"))


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
    """What `attend` computes, from dense logits in float64: slow, obvious, for tests. Arguments as there and in
    `PlanTables`.
    """
    check_call(query, key, plan, layout)
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
        turned = rotate(video, torch.polar(torch.ones_like(angles), angles), span, rope.pairing).flatten(2, 3)
        start = layout.video.start + frame * layout.tokens_per_frame
        rows = slice(start, start + layout.tokens_per_frame)
        logits[:, :, rows, layout.video] = q[:, :, rows] @ turned.mT
    logits = logits * (query.shape[-1] ** -0.5 if scale is None else scale) * plan.logit_scale
    if plan.decay is not None:
        factor = torch.ones(layout.tokens, layout.tokens, dtype=torch.float64)
        per_token = plan.decay.repeat_interleave(layout.tokens_per_frame, dim=0)
        factor[layout.video, layout.video] = per_token.repeat_interleave(layout.tokens_per_frame, dim=1)
        logits = torch.where(logits > 0, logits * factor, logits)
    hidden = torch.zeros(layout.tokens, layout.tokens, dtype=torch.bool)
    hidden[layout.video, layout.video] = ~plan.token_mask(layout.tokens_per_frame)
    logits = logits.masked_fill(hidden, float("-inf"))
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
    out: Tensor = _softmax(logits) @ v
    return out.to(query.dtype)


def _softmax(logits: Tensor) -> Tensor:
    """Weights of the keys; none where a query may see no key, as in `scaled_dot_product_attention`."""
    blind = (logits == float("-inf")).all(dim=-1, keepdim=True)
    return logits.softmax(dim=-1).masked_fill(blind, 0)


def check_call(query: Tensor, key: Tensor, plan: FramePlan, layout: TokenLayout) -> None:
    """Refuse queries and keys, or a plan, that are not those of this layout."""
    if query.shape[-2] != layout.tokens or key.shape[-2] != layout.tokens:
        raise LayoutError(
            f"expected self-attention over {layout.tokens} tokens ({layout.frames} latent frames of {layout.height} x "
            f"{layout.width}, {layout.text_first + layout.text_last} of text), found {query.shape[-2]} queries and "
            f"{key.shape[-2]} keys"
        )
    if plan.frames != layout.frames:
        raise LayoutError(f"the plan is for {plan.frames} latent frames, the video has {layout.frames}")
