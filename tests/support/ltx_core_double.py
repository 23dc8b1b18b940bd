"""A double of ltx-core's LTX-2 with video alone: the same names, shapes and calls, on the CPU.

It keeps what the adapter relies on: one argument that holds the video and its positions in seconds; an attention module
that holds its kernel, an object, in an attribute, and another for calls with a mask; tensors that join heads and
channels; and rotation of all channels before they are split into heads. Everything else is minimal.
"""

import enum
import math
import sys
import types
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freeloc.testing import Example, noise, random_model

FILE = "ltx_core.model.transformer.model"


class LTXRopeType(enum.Enum):
    INTERLEAVED = "interleaved"
    SPLIT = "split"


@dataclass(frozen=True)
class Modality:
    latent: Tensor
    positions: Tensor
    """(batch, 3, tokens, start and end)."""
    attention_mask: Tensor | None = None


class PytorchAttention:
    def __call__(self, q, k, v, heads, mask=None):
        q, k, v = (tensor.unflatten(2, (heads, -1)).transpose(1, 2) for tensor in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)


def rotated(x, cos, sin):
    return x * cos + torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(2) * sin


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.dim_head = heads, dim // heads
        self.attention_function = self.masked_attention_function = PytorchAttention()
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(dim, dim) for _ in range(4))
        self.q_norm, self.k_norm = nn.RMSNorm(dim), nn.RMSNorm(dim)

    def forward(self, x, context=None, mask=None, pe=None, all_perturbed=False):
        v = self.to_v(x)
        if all_perturbed:
            return self.to_out(v)
        q, k = rotated(self.q_norm(self.to_q(x)), *pe), rotated(self.k_norm(self.to_k(x)), *pe)
        if mask is None:
            return self.to_out(self.attention_function(q, k, v, self.heads))
        return self.to_out(self.masked_attention_function(q, k, v, self.heads, mask))


class BasicAVTransformerBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.attn1 = Attention(dim, heads)
        self.ff = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, x, pe, mask, all_perturbed):
        x = x + self.attn1(F.layer_norm(x, x.shape[-1:]), pe=pe, mask=mask, all_perturbed=all_perturbed)
        return x + self.ff(F.layer_norm(x, x.shape[-1:]))


class LTXModel(nn.Module):
    def __init__(self, dim=40, heads=2, num_layers=4, channels=4):
        super().__init__()
        self.num_attention_heads, self.inner_dim = heads, dim
        self.positional_embedding_theta, self.positional_embedding_max_pos = 10_000.0, [20, 2048, 2048]
        self.double_precision_rope, self.rope_type = True, LTXRopeType.INTERLEAVED
        self.patchify_proj, self.proj_out = nn.Linear(channels, dim), nn.Linear(dim, channels)
        self.transformer_blocks = nn.ModuleList(BasicAVTransformerBlock(dim, heads) for _ in range(num_layers))

    def tables(self, positions):
        shares = positions.mean(dim=-1) / torch.tensor(self.positional_embedding_max_pos)[:, None]
        exponents = torch.linspace(0, 1, self.inner_dim // 6, dtype=torch.float64)
        waves = (self.positional_embedding_theta**exponents * (math.pi / 2)).float()
        angles = ((shares.mT[..., None, :] * 2 - 1) * waves[:, None]).flatten(2)  # axes alternate
        angles = F.pad(angles, (self.inner_dim // 2 - angles.shape[2], 0)).repeat_interleave(2, dim=2)
        return angles.cos(), angles.sin()

    def forward(self, video, perturbed=False):
        x, pe = self.patchify_proj(video.latent), self.tables(video.positions)
        for block in self.transformer_blocks:
            x = block(x, pe, video.attention_mask, perturbed)
        return (self.proj_out(x), None)


def install() -> list[str]:
    """Install the double under the names of the original's modules. Returns these names."""
    names = ["ltx_core", "ltx_core.model", "ltx_core.model.transformer", FILE]
    for name in names:
        sys.modules[name] = types.ModuleType(name)
    for cls in (Attention, BasicAVTransformerBlock, LTXModel):
        cls.__module__ = FILE
        setattr(sys.modules[FILE], cls.__name__, cls)
    return names


def model():
    """A small one, whose attention is far from uniform."""
    install()
    return random_model(LTXModel)


def positions(frames, height, width, rate=24):
    """Start and end of each patch, in seconds and pixels: video frame 0, then 1 to 8, 9 to 16 ..."""
    starts, ends = (((torch.arange(frames) + late) * 8.0 - 7).clamp(min=0) / rate for late in (0, 1))
    rows, columns = (torch.stack([torch.arange(size), torch.arange(size) + 1.0], -1) * 32 for size in (height, width))
    axes = torch.stack([starts, ends], -1)[:, None, None], rows[None, :, None], columns[None, None]
    return torch.stack([axis.expand(frames, height, width, 2) for axis in axes]).flatten(1, 3)


def inputs(frames, height, width, batch):
    places = positions(frames, height, width).expand(batch, -1, -1, -1)
    return {"video": Modality(noise(batch, frames * height * width, 4), places)}


EXAMPLES = [Example("ltx-core", model, inputs, video="video.latent", axes="b (f h w) c")]
