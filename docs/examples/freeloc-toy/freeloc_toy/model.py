"""A video transformer that stands for yours.

Text comes first, time has the second third of each head in a half-split RoPE, and the attention kernel is its own.
"""

import torch
import torch.nn.functional as F
from torch import nn

HEADS, HEAD_DIM, THETA = 2, 12, 100.0


def kernel(q, k, v, bias=None, sharpness=None):
    """Attention on (batch, tokens, heads, head_dim)."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=sharpness).transpose(1, 2)


class ToyAttention(nn.Module):
    """Self-attention."""

    def __init__(self, sharpness):
        super().__init__()
        self.sharpness = sharpness
        self.mode = "quick"
        self.q, self.k, self.v, self.out = (nn.Linear(HEADS * HEAD_DIM, HEADS * HEAD_DIM) for _ in range(4))

    def forward(self, x, turns, bias):
        """`x` is (batch, tokens, channels), `turns` the angles of its pairs, `bias` which keys are seen."""
        q, k, v = (layer(x).unflatten(2, (HEADS, HEAD_DIM)) for layer in (self.q, self.k, self.v))
        out = kernel(turn(q, turns), turn(k, turns), v, bias=bias, sharpness=self.sharpness)
        return self.out(out.flatten(2))


class ToyBlock(nn.Module):
    """Attention, then one layer for each token."""

    def __init__(self, sharpness):
        super().__init__()
        self.attention = ToyAttention(sharpness)
        self.norm = nn.LayerNorm(HEADS * HEAD_DIM)
        self.mlp = nn.Linear(HEADS * HEAD_DIM, HEADS * HEAD_DIM)

    def forward(self, x, turns, bias):
        """As in attention."""
        x = x + self.attention(self.norm(x), turns, bias)
        return x + self.mlp(x)


class ToyDiT(nn.Module):
    """`video` is (batch, frames, channels, height, width), in patches of 2 x 2."""

    def __init__(self, layers=2, sharpness=None, absolute=False):
        super().__init__()
        self.heads, self.head_dim, self.absolute = HEADS, HEAD_DIM, absolute
        self.embed = nn.Conv2d(3, HEADS * HEAD_DIM, 2, stride=2)
        self.text_embed = nn.Linear(5, HEADS * HEAD_DIM)
        self.text_attention = ToyAttention(None)
        self.blocks = nn.ModuleList(ToyBlock(sharpness) for _ in range(layers))
        self.out = nn.Linear(HEADS * HEAD_DIM, 3)

    def forward(self, video, text, text_lengths):
        """Text beyond its length is padding, and not seen."""
        frames, rows, columns = video.shape[1], video.shape[3] // 2, video.shape[4] // 2
        x = self.embed(video.flatten(0, 1)).unflatten(0, video.shape[:2]).permute(0, 1, 3, 4, 2).flatten(1, 3)
        if self.absolute:
            places = torch.sin(torch.arange(frames)[:, None] * torch.linspace(0.1, 1, x.shape[-1]))
            x = x + places.repeat_interleave(rows * columns, dim=0)
        text = self.text_embed(text)
        still = torch.zeros(text.shape[1], HEAD_DIM // 2)
        text = text + self.text_attention(text, still, None)
        turns = torch.cat([still, angles(frames, rows, columns)])
        tokens = torch.arange(len(turns))
        seen = (tokens < text_lengths[:, None]) | (tokens >= text.shape[1])
        x = torch.cat([text, x], dim=1)
        for block in self.blocks:
            x = block(x, turns, seen[:, None, None])
        return self.out(x[:, text.shape[1] :])


def angles(frames, rows, columns):
    """Radians of the pairs (rows, time, columns) of each token: two pairs each."""
    speed = THETA ** (-torch.arange(2) / 2)
    time, row, column = torch.meshgrid(*(torch.arange(size) for size in (frames, rows, columns)), indexing="ij")
    return torch.cat([place.flatten()[:, None] * speed for place in (row, time, column)], dim=1)


def turn(x, turns):
    """Turn half-split pairs of each third of a head."""
    thirds = x.unflatten(-1, (3, 2, 2))  # (batch, tokens, heads, third, half, pair)
    cos, sin = turns.cos().unflatten(-1, (3, 2))[:, None], turns.sin().unflatten(-1, (3, 2))[:, None]
    left, right = thirds.unbind(-2)
    return torch.stack([left * cos - right * sin, left * sin + right * cos], dim=-2).flatten(-3)
