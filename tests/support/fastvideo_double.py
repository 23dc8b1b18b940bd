"""A double of FastVideo's Wan: the same names, shapes and calls, on the CPU.

It keeps what the adapter relies on: an attention module that gets queries, keys and values with heads apart, before
they are rotated, and in several processes only those of its tokens, padded; which exchanges them for heads, cuts the
padding off, rotates, and calls PyTorch's attention. Everything else is minimal.
"""

import sys
import types

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from wan_double import gathered, part

from freeloc.testing import Example, noise, random_model

FILE = "fastvideo.models.dits.wanvideo"


def rotated(x, cos, sin):
    quarter = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(3)
    return x * cos[:, None] + quarter * sin[:, None]


class DistributedAttention(nn.Module):
    def __init__(self, num_heads, head_size):
        super().__init__()
        self.num_heads, self.head_size = num_heads, head_size
        self.is_shared = False

    def forward(self, q, k, v, original_seq_len=None, freqs_cis=None):
        if self.is_shared:
            q, k, v = (part(gathered(tensor, 1), 2) for tensor in (q, k, v))
        padding = q.shape[1] - original_seq_len
        q, k, v = (tensor[:, :original_seq_len] for tensor in (q, k, v))
        q, k = rotated(q, *freqs_cis), rotated(k, *freqs_cis)
        out = F.scaled_dot_product_attention(*(tensor.transpose(1, 2) for tensor in (q, k, v))).transpose(1, 2)
        out = F.pad(out, (0, 0, 0, 0, 0, padding))
        return part(gathered(out, 2), 1) if self.is_shared else out


class WanTransformerBlock(nn.Module):
    def __init__(self, dim, num_heads):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(dim, dim) for _ in range(4))
        self.attn1 = DistributedAttention(num_heads, dim // num_heads)
        self.ffn = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, x, freqs_cis, length):
        heads = self.attn1.num_heads, self.attn1.head_size
        q, k, v = (project(self.norm(x)).unflatten(2, heads) for project in (self.to_q, self.to_k, self.to_v))
        x = x + self.to_out(self.attn1(q, k, v, original_seq_len=length, freqs_cis=freqs_cis).flatten(2))
        return x + self.ffn(self.norm(x))


class WanTransformer3DModel(nn.Module):
    def __init__(self, dim=48, num_heads=2, num_layers=4, channels=4):
        super().__init__()
        self.num_attention_heads, self.patch_size = num_heads, (1, 2, 2)
        self.patch_embedding = nn.Conv3d(channels, dim, kernel_size=(1, 2, 2), stride=(1, 2, 2))
        self.blocks = nn.ModuleList(WanTransformerBlock(dim, num_heads) for _ in range(num_layers))
        self.head = nn.Linear(dim, channels * 4)
        self.is_shared = False

    def tables(self, grid):
        """Cosines and sines of all tokens, (tokens, head_dim)."""
        side = 2 * (self.blocks[0].attn1.head_size // 6)
        channels = self.blocks[0].attn1.head_size - 2 * side, side, side
        places = torch.meshgrid(*(torch.arange(size).double() for size in grid), indexing="ij")
        angles = [
            torch.outer(place.flatten(), 10_000 ** -(torch.arange(0, count, 2).double() / count))
            for place, count in zip(places, channels, strict=True)
        ]
        angles = torch.cat(angles, dim=1).repeat_interleave(2, dim=1)
        return angles.cos().float(), angles.sin().float()

    def forward(self, hidden_states):
        x = self.patch_embedding(hidden_states)
        tables, x = self.tables(x.shape[2:]), x.flatten(2).mT
        length = x.shape[1]
        if self.is_shared:
            x = part(F.pad(x, (0, 0, 0, -length % dist.get_world_size())), 1)
        for block in self.blocks:
            x = block(x, tables, length)
        x = gathered(x, 1)[:, :length] if self.is_shared else x
        return self.head(x)


def share(model):
    """Share a model among all processes."""
    for module in (model, *(block.attn1 for block in model.blocks)):
        module.is_shared = True
    return model


def install() -> list[str]:
    """Install the double under the names of the original's modules. Returns these names."""
    names = ["fastvideo", "fastvideo.models", "fastvideo.models.dits", FILE]
    for name in names:
        sys.modules[name] = types.ModuleType(name)
    for cls in (DistributedAttention, WanTransformerBlock, WanTransformer3DModel):
        cls.__module__ = FILE
        setattr(sys.modules[FILE], cls.__name__, cls)
    return names


def model():
    """A small one, whose attention is far from uniform."""
    install()
    return random_model(WanTransformer3DModel)


def inputs(frames, height, width, batch):
    return {"hidden_states": noise(batch, 4, frames, 2 * height, 2 * width)}


EXAMPLES = [Example("fastvideo-wan", model, inputs)]
