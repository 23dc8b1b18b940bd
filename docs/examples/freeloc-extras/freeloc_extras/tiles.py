"""Backend ``tiles``: the keys of one latent frame after the other, with an online softmax in float32.

The weights of all keys never exist at once. This is how flash attention works (arXiv 2205.14135), in plain PyTorch.
"""

import torch

from freeloc.attention import Backend, rotate_keys
from freeloc.plans import NONE, STRIPED


def attend(query, key, value, plan, layout, mask, scale):
    """Attention of one layer: each group of heads has its own plan."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    for group in plan.groups:
        heads = slice(None) if group.heads is None else group.heads
        out[:, heads] = attend_group(group.of(query), group.of(key), group.of(value), group.plan, layout, scale)
    return out


def attend_group(query, key, value, ready, layout, scale):
    """Attention of heads that share a plan, of (batch, heads, tokens, head_dim)."""
    text, n = layout.text_at.to(query.device), layout.tokens_per_frame
    keys, values = (tensor[:, :, layout.video].unflatten(2, (layout.frames, n)) for tensor in (key, value))
    token = torch.arange(n, device=query.device)
    near = (token[:, None] - token).abs() < ready.plan.stripe_tokens(n)  # what a striped pair of frames attends to
    of_text = [(key[:, :, text], value[:, :, text], 0.0, None)] if len(text) else []
    scale = scale * ready.scale_at(n)
    bias = torch.zeros(layout.frames, layout.frames) if ready.bias is None else ready.bias
    out = torch.empty_like(query)
    for frame in range(layout.frames):
        tiles = list(of_text)
        for other in (ready.plan.visibility[frame] != NONE).nonzero().flatten().tolist():
            where = slice(other, other + 1)
            rotated = rotate_keys(ready, keys[:, :, where], frame, torch.tensor([other], device="cpu"))
            striped = ready.plan.visibility[frame, other] == STRIPED
            added = float(bias[frame, other])
            tiles.append((rotated[:, :, 0], values[:, :, other], added, near if striped else None))
        start = layout.video.start + frame * n
        out[:, :, start : start + n] = online_softmax(query[:, :, start : start + n], tiles, scale)
    if len(text):  # text attends to everything, as the model has it
        of_video = [(keys[:, :, frame], values[:, :, frame], 0.0, None) for frame in range(layout.frames)]
        everything = [*of_text, *of_video]
        out[:, :, text] = online_softmax(query[:, :, text], everything, scale)
    return out


def online_softmax(query, tiles, scale):
    """Attention over tiles (keys, values, bias of the logits, allowed pairs or None), none of which hides all keys."""
    largest = torch.full((*query.shape[:-1], 1), -torch.inf, device=query.device)
    total, weighted = torch.zeros_like(largest), torch.zeros_like(query, dtype=torch.float32)
    for keys, values, bias, allowed in tiles:
        logits = query.float() @ keys.float().mT * scale + bias
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -torch.inf)
        before, largest = largest, torch.maximum(largest, logits.amax(dim=-1, keepdim=True))
        weights, kept = (logits - largest).exp(), (before - largest).exp()
        total = total * kept + weights.sum(dim=-1, keepdim=True)
        weighted = weighted * kept + weights @ values.float()
    return (weighted / total).to(query.dtype)


def can(query, key, value, plan, layout, mask):
    """What is in the way of a call, or an empty text."""
    if mask is not None:
        return "supports no mask"
    if any(group.plan.plan.decay is not None for group in plan.groups):
        return "supports no decay of logits"
    if query.dtype == torch.float64:
        return "computes in float32, found float64 tensors"
    return ""


TILES = Backend("tiles", attend, can, source="an online softmax over latent frames, as flash attention's")
