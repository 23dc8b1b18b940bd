"""A double of musubi-tuner's Wan: the original's (`wan_double`), with what it changed.

Its kernel gets a list of queries, keys and values, which it clears, and rounds them to bfloat16; queries and keys are
rotated in place, by a table of all tokens for each sample.
"""

import sys
import types

import torch
import torch.nn.functional as F
import wan_double
from torch import nn

from freeloc.testing import Example, random_model

FILE = "musubi_tuner.wan.modules.model"


def flash_attention(
    qkv,
    q_lens=None,
    k_lens=None,
    dropout_p=0.0,
    softmax_scale=None,
    q_scale=None,
    causal=False,
    window_size=(-1, -1),
    deterministic=False,
    dtype=torch.bfloat16,
    version=None,
    attn_mode="torch",
    split_attn=False,
):
    q, k, v = qkv
    qkv.clear()
    heads_first = (tensor.transpose(1, 2).to(dtype) for tensor in (q, k, v))
    return F.scaled_dot_product_attention(*heads_first).transpose(1, 2).to(q.dtype)


def rope_apply_inplace_cached(x, grid_sizes, freqs_list):
    for sample, table in zip(x, freqs_list, strict=True):
        pairs = torch.view_as_complex(sample.double().unflatten(2, (-1, 2)))
        sample[:] = torch.view_as_real(pairs * table).flatten(2).to(x.dtype)


class WanSelfAttention(wan_double.WanSelfAttention):
    def forward(self, x, seq_lens, grid_sizes, freqs):
        file = sys.modules[FILE]
        q, k, v = self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x))
        file.rope_apply_inplace_cached(q, grid_sizes, freqs)
        file.rope_apply_inplace_cached(k, grid_sizes, freqs)
        kernel = file.flash_attention
        return self.o(kernel([q, k, v], k_lens=seq_lens, window_size=(-1, -1), attn_mode="torch").flatten(2))


class WanCrossAttention(WanSelfAttention):
    def forward(self, x, context, context_lens):
        q, k, v = self.heads(self.q(x)), self.heads(self.k(context)), self.heads(self.v(context))
        return self.o(sys.modules[FILE].flash_attention([q, k, v], k_lens=context_lens).flatten(2))


class WanModel(nn.Module):
    def __init__(self, dim=48, num_heads=2, num_layers=4, channels=4):
        super().__init__()
        self.num_heads = num_heads
        self.patch_embedding = nn.Conv3d(channels, dim, kernel_size=(1, 2, 2), stride=(1, 2, 2))
        self.blocks = nn.ModuleList(wan_double.WanAttentionBlock(dim, num_heads) for _ in range(num_layers))
        for block in self.blocks:
            block.self_attn, block.cross_attn = WanSelfAttention(dim, num_heads), WanCrossAttention(dim, num_heads)
        self.head = nn.Linear(dim, channels * 4)
        self.freqs = wan_double.WanModel.rotations(dim // num_heads)
        self.freqs_fhw = {}

    embed = wan_double.WanModel.embed

    def tables(self, grid, f_indices):
        pairs = self.freqs.shape[1]
        side = pairs // 3
        time, row, column = self.freqs.split([pairs - 2 * side, side, side], dim=1)
        frames, height, width = grid
        time = time[:frames] if f_indices is None else time[f_indices]
        parts = [time[:, None, None], row[None, :height, None], column[None, None, :width]]
        return torch.cat([part.expand(*grid, -1) for part in parts], dim=-1).reshape(frames * height * width, 1, pairs)

    def forward(self, x, seq_len, f_indices=None):
        x, seq_lens, grid_sizes = self.embed(x, seq_len)
        own = f_indices or [None] * len(x)
        tables = [self.tables(grid, indices) for grid, indices in zip(grid_sizes.tolist(), own, strict=True)]
        for block in self.blocks:
            x = block(x, seq_lens, grid_sizes, tables)
        return [self.head(video) for video in x]


def install() -> list[str]:
    """Install the double under the names of the original's modules. Returns these names."""
    names = ["musubi_tuner", "musubi_tuner.wan", "musubi_tuner.wan.modules", FILE]
    for name in names:
        sys.modules[name] = types.ModuleType(name)
    for thing in (WanSelfAttention, WanCrossAttention, WanModel, flash_attention, rope_apply_inplace_cached):
        thing.__module__ = FILE
        setattr(sys.modules[FILE], thing.__name__, thing)
    return names


def model():
    """A small one, whose attention is far from uniform."""
    install()
    return random_model(WanModel)


def inputs(frames, height, width, batch):
    """Without padding, which its kernels do not support."""
    given = wan_double.inputs(frames, height, width, batch)
    return given | {"seq_len": frames * height * width}


EXAMPLES = [Example("musubi-wan", model, inputs, video="x", axes="c f h w")]
