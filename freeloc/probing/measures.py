"""Measures of one attention call: how a layer depends on positions and on context. They need no L x L matrix.

Source of the measures: FreeLOC, arXiv 2603.25209. The difference of logits is exact, but needs no logits: since
||Q M^T||^2 = <Q^T Q, M^T M>, two Gram matrices of head_dim x head_dim give it for every shift. What depends on the
softmax is computed for a sample of query tokens from every frame, or for all, in blocks.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from freeloc.attention.backends.gathered import mask_rows
from freeloc.attention.layout import TokenLayout
from freeloc.attention.rotation import rotate
from freeloc.interception.watch import LayerCall

LARGEST_BLOCK = 2**23
"""Largest number of logits in memory at a time."""

SMALLEST = torch.finfo(torch.float64).tiny
"""Replaces 0 in a denominator."""


def logits_difference(call: LayerCall, shifts: Sequence[int]) -> Tensor:
    """||logits with shifted keys - logits|| / ||logits|| over all pairs of video tokens, (heads, shifts) float64.

    >>> from freeloc.adapter import TemporalRope
    >>> rope, layout = TemporalRope(channels=8), TokenLayout(frames=6, height=2, width=3)
    >>> q, k, v = torch.randn(3, 1, 2, 36, 24)  # (batch, heads, tokens, head_dim)
    >>> call = LayerCall(0, q, k, v, layout, mask=None, scale=None, rope=rope, frequencies=rope.frequencies(24))
    >>> logits_difference(call, (-20, 20)).shape
    torch.Size([2, 2])

    Args:
        call: an attention call, with the queries and keys that the model has rotated.
        shifts: shifts of the keys, in latent frames.

    Returns:
        0 everywhere for a model without RoPE, since its logits do not depend on positions.
    """
    rope = call.rope
    heads, head_dim = call.query.shape[1], call.query.shape[-1]
    frequencies = call.frequencies.expand(heads, -1)
    video = call.layout.video
    found = torch.zeros(heads, len(shifts), dtype=torch.float64)
    if rope is None:
        return found
    for head in range(heads):
        query, key = (_exact(tensor[:, head, video]) for tensor in (call.query, call.key))
        gram_query, gram_key = (query.mT @ query).double().cpu(), (key.mT @ key).double().cpu()  # (batch, dim, dim)
        whole = (gram_query * gram_key).sum().clamp(min=SMALLEST)
        for index, shift in enumerate(shifts):
            angles = shift * frequencies[head]
            eye = torch.eye(head_dim, dtype=torch.float64)[None]  # one frame of head_dim tokens
            rotated = rotate(eye, torch.polar(torch.ones_like(angles), angles), rope.span(head_dim), rope.pairing)[0]
            move = rotated - torch.eye(head_dim, dtype=torch.float64)
            found[head, index] = ((gram_query * (move.mT @ gram_key @ move)).sum().clamp(min=0) / whole).sqrt()
    return found


class Context(NamedTuple):
    """How a layer's attention is spread: means over query tokens, (heads,) float64, and their standard errors.

    Attributes:
        entropy: entropy of the attention, in nats.
        windowed: entropy of the attention limited to a window.
        change: ||windowed - entropy|| / ||entropy|| over query tokens.
        beyond: share of the attention to video tokens that goes to tokens beyond the trained range.
        distance: mean distance of the attended video tokens, in latent frames.
        errors: standard errors by name.
    """

    entropy: Tensor
    windowed: Tensor
    change: Tensor
    beyond: Tensor
    distance: Tensor
    errors: dict[str, Tensor]


def context(call: LayerCall, window: Tensor, trained_frames: int, rows: int | None = 256, seed: int = 0) -> Context:
    """Measure the `Context` of the video's query tokens, for a random sample of them or for all.

    >>> q, k, v = torch.randn(3, 1, 2, 36, 24)  # (batch, heads, tokens, head_dim)
    >>> layout = TokenLayout(frames=6, height=2, width=3)
    >>> call = LayerCall(0, q, k, v, layout, mask=None, scale=None, rope=None, frequencies=torch.zeros(1))
    >>> window = torch.ones(6, 6).tril(1).triu(-1) > 0
    >>> found = context(call, window, trained_frames=3, rows=None)
    >>> bool((found.windowed < found.entropy).all()), found.errors["entropy"].tolist()
    (True, [0.0, 0.0])

    Args:
        call: an attention call, with the queries and keys that the model has rotated.
        window: (frames, frames) bool; the key frames in the window of each query frame. Text is always included.
        trained_frames: latent frames of the clips that the model was trained on.
        rows: number of query tokens to sample, equally many from every frame; None for all.
        seed: random seed of the sample.
    """
    layout = call.layout
    sample = _sample(layout, rows, seed)
    frame = torch.arange(layout.frames)
    distance = (frame[:, None] - frame).abs().double()
    found = []
    for head in range(call.query.shape[1]):
        blocks = []
        for tokens, logits in _blocks(call, sample, head):
            of = tokens // layout.tokens_per_frame  # (rows,) query frames
            blocks.append(_of_rows(logits, layout, window[of], distance[of], trained_frames).cpu())
        found.append(torch.cat(blocks, dim=1).flatten(0, 1))
    excluded = 1 - len(sample) / (layout.frames * layout.tokens_per_frame)
    return _summarised(torch.stack(found), math.sqrt(excluded))


def _of_rows(logits: Tensor, layout: TokenLayout, window: Tensor, distance: Tensor, trained_frames: int) -> Tensor:
    """Entropy, windowed entropy, share beyond and mean distance, (batch, rows, 4), of logits (batch, rows, tokens)."""
    weights = logits.softmax(dim=-1)
    video = weights[..., layout.video].unflatten(-1, (layout.frames, -1)).sum(dim=-1).double()  # (batch, rows, frames)
    video = video / video.sum(dim=-1, keepdim=True)
    distance = distance.to(video.device)
    hidden = torch.zeros(logits.shape[-2:], dtype=torch.bool, device=logits.device)
    hidden[:, layout.video] = ~window.to(logits.device).repeat_interleave(layout.tokens_per_frame, dim=1)
    near = logits.masked_fill(hidden, float("-inf"))
    columns = (
        _entropy(logits, weights),
        _entropy(near, near.softmax(dim=-1)),
        (video * (distance >= trained_frames)).sum(dim=-1),
        (video * distance).sum(dim=-1),
    )
    return torch.stack([column.double() for column in columns], dim=-1)


def _entropy(logits: Tensor, weights: Tensor) -> Tensor:
    """Entropy of softmax(logits): logsumexp - mean logit."""
    mean = (weights * logits.masked_fill(weights == 0, 0)).sum(dim=-1)
    entropy: Tensor = logits.logsumexp(dim=-1) - mean
    return entropy


def _summarised(values: Tensor, correction: float) -> Context:
    """Means over samples (heads, samples, 4), and their errors times `correction`, 0 if all tokens were sampled."""
    entropy, windowed = values[..., 0], values[..., 1]
    size = entropy.square().mean(dim=-1).clamp(min=SMALLEST)
    change = ((windowed - entropy).square().mean(dim=-1) / size).sqrt()
    # The error of a ratio of means, to first order; then of its square root.
    spread = (windowed - entropy).square() - change.square()[:, None] * entropy.square()
    count = values.shape[1]
    error = spread.std(dim=-1) / math.sqrt(count) / size / (2 * change).clamp(min=1e-12)
    means = values.mean(dim=1)
    errors = values.std(dim=1) / math.sqrt(count) * correction
    kinds = dict(zip(("entropy", "windowed", "beyond", "distance"), errors.unbind(dim=-1), strict=True))
    return Context(means[:, 0], means[:, 1], change, means[:, 2], means[:, 3], kinds | {"change": error * correction})


def _sample(layout: TokenLayout, rows: int | None, seed: int) -> Tensor:
    """Indices of random video tokens, equally many from every frame; of all tokens for None."""
    every = torch.arange(layout.frames * layout.tokens_per_frame).view(layout.frames, -1)
    if rows is None:
        return every.flatten()
    each = min(-(-rows // layout.frames), layout.tokens_per_frame)
    order = torch.rand(every.shape, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    return every.gather(1, order[:, :each]).flatten()


def _blocks(call: LayerCall, sample: Tensor, head: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of video tokens with their logits to all tokens in one head, (batch, rows, tokens)."""
    query, key = call.query[:, head], _exact(call.key[:, head])
    scale = query.shape[-1] ** -0.5 if call.scale is None else call.scale
    mask = call.mask
    if mask is not None:
        mask = mask[(None,) * (4 - mask.ndim)]
        mask = mask[:, head if mask.shape[1] > 1 else 0]  # (batch or 1, queries or 1, tokens or 1)
    for tokens in sample.split(max(1, LARGEST_BLOCK // (len(key) * key.shape[1]))):
        at = (tokens + call.layout.video.start).to(query.device)
        logits = _exact(query[:, at]) @ key.mT * scale
        if mask is not None:
            own = mask_rows(mask, at)
            logits = logits.masked_fill(~own, float("-inf")) if own.dtype == torch.bool else logits + own
        yield tokens, logits


def _exact(tensor: Tensor) -> Tensor:
    """The tensor in at least float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
