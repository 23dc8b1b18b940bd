"""Small video transformers, each with one thing that an inspection must see, and kernels that are not PyTorch's."""

import sys
import types
from dataclasses import dataclass, field

import einops
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freeloc.testing import Example, noise, random_model

HEADS, HEAD_DIM, TEXT = 2, 12, 5
WIDTH = HEADS * HEAD_DIM


def weighted(q, k, v, mask=None):
    """Attention over (batch, heads, tokens, head_dim), by einsum."""
    logits = torch.einsum("bhqd,bhkd->bhqk", q, k) * q.shape[-1] ** -0.5
    logits = logits if mask is None else logits.masked_fill(~mask, float("-inf"))
    return torch.einsum("bhqk,bhkd->bhqd", logits.softmax(dim=-1), v)


def joined(q, k, v, heads, mask=None, precision=None, skip_reshape=False, **options):
    """Heads and channels in one axis, unless `skip_reshape`; the output always."""
    if not skip_reshape:
        q, k, v = (einops.rearrange(tensor, "b l (h d) -> b h l d", h=heads) for tensor in (q, k, v))
    return einops.rearrange(weighted(q, k, v, mask), "b h l d -> b l (h d)")


def apart(q, k, v, dropout_p=0.0, causal=False):
    return weighted(*(tensor.transpose(1, 2) for tensor in (q, k, v))).transpose(1, 2)


def listed(qkv, k_lens=None, dtype=torch.bfloat16):
    """Gets a list, which it clears, and computes in bfloat16."""
    q, k, v = (tensor.transpose(1, 2).to(dtype) for tensor in qkv)
    qkv.clear()
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).float()


def masked(q, k, v, heads, keys):
    q, k, v = (einops.rearrange(tensor, "b l (h d) -> b h l d", h=heads) for tensor in (q, k, v))
    return einops.rearrange(weighted(q, k, v, keys[:, None, None]), "b h l d -> b l (h d)")


def kernel(q, k, v):
    return weighted(*(tensor.transpose(1, 2) for tensor in (q, k, v))).transpose(1, 2)


def held(q, k, v):
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bhqk,bkhd->bqhd", logits.softmax(dim=-1), v)


elsewhere = types.ModuleType("inspected_double_kernels")
elsewhere.kernel = kernel
sys.modules[elsewhere.__name__] = elsewhere


HELD = [held]
del held, kernel  # this file does not name them


class Attention(nn.Module):
    """Self-attention, whose kernel `how` names."""

    def __init__(self, how):
        super().__init__()
        self.how, self.num_heads, self.head_dim = how, HEADS, HEAD_DIM
        self.held = HELD[0]
        self.to_q, self.to_k, self.to_v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def kernel(self, q, k, v, keys):
        """From and to (batch, tokens, heads, head_dim)."""
        whole = [tensor.flatten(2) for tensor in (q, k, v)]
        if self.how == "joined":
            return joined(*whole, heads=HEADS, options={"block": 1})
        if self.how == "skip":
            return joined(*(tensor.transpose(1, 2) for tensor in (q, k, v)), HEADS, skip_reshape=True)
        if self.how == "masked":
            return masked(*whole, HEADS, keys)
        if self.how == "elsewhere":
            return elsewhere.kernel(q, k, v).flatten(2)
        if self.how == "listed":
            return listed([q, k, v]).flatten(2)
        if self.how == "held":
            return self.held(q, k, v).flatten(2)
        if self.how == "regrouped":
            order = torch.arange(q.shape[1] - TEXT).view(8, -1).flip(1).mT.flatten()
            order = torch.cat([order, torch.arange(q.shape[1] - TEXT, q.shape[1])])
            out = apart(*(tensor[:, order] for tensor in (q, k, v)))
            return out[:, order.argsort()].flatten(2)
        return apart(q, k, v).flatten(2)

    def forward(self, x, turns, keys=None):
        q, k, v = (layer(x).unflatten(2, (HEADS, HEAD_DIM)) for layer in (self.to_q, self.to_k, self.to_v))
        return self.kernel(turn(q, turns), turn(k, turns), v, keys)


def turn(x, turns):
    """Turn interleaved pairs of (batch, tokens, heads, head_dim) by (cos, sin) of each token and pair."""
    cos, sin = (table[:, None] for table in turns)
    left, right = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([left * cos - right * sin, left * sin + right * cos], dim=-1).flatten(-2)


class Inner(nn.Module):
    """Computes attention of queries, keys and values, without rotary tables."""

    def forward(self, q, k, v):
        return apart(q, k, v)


class Nested(Attention):
    """Leaves the kernel to a module of its own, which gets no tables."""

    def __init__(self):
        super().__init__("nested")
        self.inner = Inner()

    def kernel(self, q, k, v, keys):
        return self.inner(q, k, v).flatten(2)


class Block(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.norm, self.attn, self.ff = nn.LayerNorm(WIDTH), attention, nn.Linear(WIDTH, WIDTH)

    def forward(self, x, turns, keys):
        x = x + self.attn(self.norm(x), turns, keys)
        return x + self.ff(self.norm(x))


class Embed(nn.Module):
    """Patches of 2 x 2, of frames one by one."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Conv2d(3, WIDTH, 2, stride=2)

    def forward(self, text, frames):
        tokens = self.proj(frames.flatten(0, 1)).flatten(2).mT.unflatten(0, frames.shape[:2]).flatten(1, 2)
        return torch.cat([tokens, text], dim=1)


class InspectedDiT(nn.Module):
    """`video` is (batch, frames, channels, height, width), padded to patches of 2 x 2. Text comes last."""

    def __init__(self, make):
        super().__init__()
        self.num_heads = HEADS
        self.embed, self.text_embed = Embed(), nn.Linear(5, WIDTH)
        self.blocks = nn.ModuleList(Block(make()) for _ in range(2))
        self.out = nn.Linear(WIDTH, 12)

    def forward(self, video, text):
        rows, columns = (-size % 2 for size in video.shape[3:])
        padded = F.pad(video, (0, columns, 0, rows))
        sizes = padded.shape[1], padded.shape[3] // 2, padded.shape[4] // 2
        x = self.embed(self.text_embed(text), padded)
        turns, keys = tables(*sizes), torch.arange(x.shape[1]).expand(len(x), -1) < x.shape[1] - 1
        for block in self.blocks:
            x = block(x, turns, keys)
        return self.out(x)


def tables(frames, height, width):
    """(cos, sin) of each token and pair: two pairs each for time, rows and columns; text does not turn."""
    places = torch.meshgrid(*(torch.arange(size) for size in (frames, height, width)), indexing="ij")
    speeds = 10_000.0 ** (-torch.arange(2) / 2)
    angles = F.pad(torch.cat([place.flatten()[:, None] * speeds for place in places], dim=1), (0, 0, 0, TEXT))
    return angles.cos(), angles.sin()


@dataclass
class Stream:
    """Packed tokens, and the coordinates of each."""

    tokens: Tensor
    places: Tensor = field(default=None)


class PackedDiT(InspectedDiT):
    """Gets tokens, with the time, row and column of each, or nothing that says how many there are of each."""

    def __init__(self):
        super().__init__(lambda: Attention("apart"))
        self.tokens = nn.Linear(12, WIDTH)

    def forward(self, stream, text):
        x = torch.cat([self.tokens(stream.tokens), self.text_embed(text)], dim=1)
        frames = 8 if stream.places is None else int(stream.places[0, 0].max()) + 1
        turns = tables(frames, 2, stream.tokens.shape[1] // frames // 2)
        for block in self.blocks:
            x = block(x, turns, None)
        return self.out(x)


def inputs(frames, height, width, batch):
    return {"video": noise(batch, frames, 3, 2 * height, 2 * width), "text": noise(batch, TEXT, 5)}


def packed_inputs(frames, height, width, batch):
    places = torch.stack(
        torch.meshgrid(*(torch.arange(float(size)) for size in (frames, height, width)), indexing="ij")
    )
    stream = Stream(noise(batch, frames * height * width, 12), places.flatten(1)[None].expand(batch, -1, -1))
    return {"stream": stream, "text": noise(batch, TEXT, 5)}


def example(how, **changes):
    make = Nested if how == "nested" else lambda: Attention(how)
    return Example(
        "inspected", lambda: random_model(lambda: InspectedDiT(make)), inputs, **{"video": "video"} | changes
    )


PACKED = Example("inspected", lambda: random_model(PackedDiT), packed_inputs, video="stream.tokens", axes="b (f h w) c")
