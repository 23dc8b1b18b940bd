"""The engine: attention of one layer under a FramePlan, on queries and keys that the model has already rotated.

RoPE is a rotation, so R(p') x = R(p' - p) R(p) x. For query frame i, turning the temporal channels of every key frame
j by the angle of (i - j) - positions[i, j] gives each pair the position that the plan asks for; each query frame is
then one ordinary attention call over the keys that it may see. Every (query, key) pair counts exactly once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import einops
import torch
import torch.nn.functional as F
from torch import Tensor

from freeloc.adapter import TemporalRope
from freeloc.errors import LayoutError
from freeloc.plan import DENSE, NONE, STRIPED, FramePlan, relative_positions

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


class PlanTables:
    """A plan made ready for one head size: which frames each frame sees, and by which angles their keys turn.

    Few distinct turns occur, so cosine and sine are kept once per distinct turn, in float64.
    """

    def __init__(self, plan: FramePlan, rope: TemporalRope, head_dim: int) -> None:
        self.plan = plan
        self.rope = rope
        self.span = rope.span(head_dim)
        turns = relative_positions(plan.frames) - plan.positions
        turns[plan.visibility == NONE] = 0
        distinct, self._row = turns.unique(return_inverse=True)  # (turns,), (frames, frames)
        angles = distinct[:, None] * rope.frequencies(head_dim)
        self._cos, self._sin = angles.cos(), angles.sin()  # (turns, pairs)
        self.dense = [(row == DENSE).nonzero().flatten() for row in plan.visibility]
        self.striped = [(row == STRIPED).nonzero().flatten() for row in plan.visibility]
        self.turned = [bool((row != 0).any()) for row in turns]
        self._on: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def angles(self, query_frame: int, key_frames: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine for the keys of these frames, (frames, 1, pairs), in at least float32 on `like`'s device."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        on = self._on.get((like.device, dtype))
        if on is None:
            on = self._cos.to(like.device, dtype), self._sin.to(like.device, dtype)
            self._on[like.device, dtype] = on
        rows = self._row[query_frame, key_frames].to(like.device)
        return on[0][rows][:, None], on[1][rows][:, None]


def rotate(frames: Tensor, cos: Tensor, sin: Tensor, span: tuple[int, int], pairing: str) -> Tensor:
    """Turn the temporal channels of (..., frames, tokens, head_dim) by the angles (frames, 1, pairs)."""
    first, stop = span
    temporal = frames[..., first:stop].to(cos.dtype)
    x, y = einops.rearrange(temporal, f"... {pairing} -> two ... pair", two=2)
    turned = einops.rearrange([x * cos - y * sin, x * sin + y * cos], f"two ... pair -> ... {pairing}")
    return torch.cat([frames[..., :first], turned.to(frames.dtype), frames[..., stop:]], dim=-1)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tables: PlanTables,
    layout: TokenLayout,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention under a plan: one `scaled_dot_product_attention` per query frame, over the keys that it sees.

    >>> from freeloc.vrpr import vrpr_plan
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
    _check(query, key, tables.plan, layout)
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    text = torch.ones(layout.tokens, dtype=torch.bool)
    text[layout.video] = False
    text_at = text.nonzero().flatten().to(query.device)
    if len(text_at):
        rows = None if mask is None else _rows(mask, text_at)
        text_query = query.index_select(2, text_at)
        out[:, :, text_at] = F.scaled_dot_product_attention(text_query, key, value, attn_mask=rows, scale=scale)
    for frame in range(layout.frames):
        _attend_frame(frame, out, (query, key, value), tables, layout, text_at, mask, scale)
    return out


def _attend_frame(
    frame: int,
    out: Tensor,
    tensors: Sequence[Tensor],
    tables: PlanTables,
    layout: TokenLayout,
    text_at: Tensor,
    mask: Tensor | None,
    scale: float | None,
) -> None:
    """Write the output of one query frame. Where it sees striped frames, a chunk of its tokens at a time."""
    query, key, value = tensors
    n = layout.tokens_per_frame
    dense, striped = tables.dense[frame], tables.striped[frame]
    seen = torch.cat([dense, striped])
    key_frames, value_frames = (_frames(tensor, layout, seen) for tensor in (key, value))
    if tables.turned[frame]:
        key_frames = rotate(key_frames, *tables.angles(frame, seen, key), tables.span, tables.rope.pairing)
    reach = tables.plan.stripe_tokens(n)
    chunk = max(reach, SMALLEST_CHUNK) if len(striped) else n
    for start in range(0, n, chunk):
        stop = min(start + chunk, n)
        # A striped frame is seen by these query tokens from `low` to `high` at most.
        low, high = max(0, start - reach + 1), min(n, stop + reach - 1)

        def visible(frames: Tensor, whole: Tensor, low: int = low, high: int = high) -> Tensor:
            video = (frames[:, :, : len(dense)].flatten(2, 3), frames[:, :, len(dense) :, low:high].flatten(2, 3))
            parts = [part for part in (*video, whole.index_select(2, text_at)) if part.shape[2]]
            return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

        at = layout.video.start + frame * n
        rows = slice(at + start, at + stop)
        allowed = None
        if len(striped):
            band = _band(start, stop, low, high, reach, query.device).repeat(1, len(striped))
            allowed = F.pad(band, (len(dense) * n, len(text_at)), value=True)
        if mask is not None:
            frame_starts = layout.video.start + n * seen[:, None]
            tokens = (frame_starts + torch.arange(n)).to(query.device)
            columns = torch.cat([tokens[: len(dense)].flatten(), tokens[len(dense) :, low:high].flatten(), text_at])
            allowed = _compose(_rows(mask, torch.arange(rows.start, rows.stop, device=mask.device)), columns, allowed)
        out[:, :, rows] = F.scaled_dot_product_attention(
            query[:, :, rows], visible(key_frames, key), visible(value_frames, value), attn_mask=allowed, scale=scale
        )


def _frames(tensor: Tensor, layout: TokenLayout, which: Tensor) -> Tensor:
    """The video tokens of these frames, (batch, heads, frames, tokens_per_frame, head_dim)."""
    video: Tensor = tensor[:, :, layout.video].unflatten(2, (layout.frames, layout.tokens_per_frame))
    return video if torch.equal(which, torch.arange(layout.frames)) else video.index_select(2, which.to(tensor.device))


def _band(start: int, stop: int, low: int, high: int, reach: int, device: torch.device) -> Tensor:
    """Which of the key tokens low..high of a frame the query tokens start..stop see in a striped pair."""
    query, key = torch.arange(start, stop, device=device), torch.arange(low, high, device=device)
    return (query[:, None] - key[None, :]).abs() < reach


def _rows(mask: Tensor, at: Tensor) -> Tensor:
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
) -> Tensor:
    """What `attend` computes, from dense logits in float64: slow, obvious, for tests. Arguments as there."""
    _check(query, key, plan, layout)
    q, k, v = (tensor.double() for tensor in (query, key, value))
    logits: Tensor = q @ k.mT
    video = k[:, :, layout.video].unflatten(2, (layout.frames, layout.tokens_per_frame))
    span, frequencies = rope.span(query.shape[-1]), rope.frequencies(query.shape[-1])
    true = relative_positions(plan.frames)
    for frame in range(layout.frames):
        angles = (true[frame] - plan.positions[frame])[:, None, None] * frequencies
        turned = rotate(video, angles.cos(), angles.sin(), span, rope.pairing).flatten(2, 3)
        start = layout.video.start + frame * layout.tokens_per_frame
        rows = slice(start, start + layout.tokens_per_frame)
        logits[:, :, rows, layout.video] = q[:, :, rows] @ turned.mT
    logits = logits * (query.shape[-1] ** -0.5 if scale is None else scale)
    hidden = torch.zeros(layout.tokens, layout.tokens, dtype=torch.bool)
    hidden[layout.video, layout.video] = ~plan.token_mask(layout.tokens_per_frame)
    logits = logits.masked_fill(hidden, float("-inf"))
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
    out: Tensor = logits.softmax(dim=-1) @ v
    return out.to(query.dtype)


def _check(query: Tensor, key: Tensor, plan: FramePlan, layout: TokenLayout) -> None:
    if query.shape[-2] != layout.tokens or key.shape[-2] != layout.tokens:
        raise LayoutError(
            f"expected self-attention over {layout.tokens} tokens ({layout.frames} latent frames of {layout.height} x "
            f"{layout.width}, {layout.text_first + layout.text_last} of text), found {query.shape[-2]} queries and "
            f"{key.shape[-2]} keys"
        )
    if plan.frames != layout.frames:
        raise LayoutError(f"the plan is for {plan.frames} latent frames, the video has {layout.frames}")
