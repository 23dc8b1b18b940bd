"""A double of ComfyUI-WanVideoWrapper's Wan: that of the original (`wan_double`), with what it changed.

Its package has the name of its folder, as ComfyUI gives to custom nodes; rotary tables are an argument of the model;
its kernel has another name, and rounds queries, keys and values to bfloat16. Everything else is minimal.
"""

import sys
import types

import torch
import torch.nn.functional as F
import wan_double
from torch import nn

from freeloc.testing import Example, random_model

FOLDER = "/home/me/ComfyUI/custom_nodes/ComfyUI-WanVideoWrapper"
FILE = f"{FOLDER}.wanvideo.modules.model"


def attention(q, k, v, k_lens=None, window_size=(-1, -1), dtype=torch.bfloat16, attention_mode="sdpa"):
    """Its other arguments are left out."""
    heads_first = (tensor.transpose(1, 2).to(dtype) for tensor in (q, k, v))
    return F.scaled_dot_product_attention(*heads_first).transpose(1, 2)


class WanSelfAttention(wan_double.WanSelfAttention):
    def forward(self, x, seq_lens, grid_sizes, freqs):
        file = sys.modules[FILE]
        q, k = (file.rope_apply(self.heads(project(x)), grid_sizes, freqs) for project in (self.q, self.k))
        x = file.attention(q=q, k=k, v=self.heads(self.v(x)), k_lens=seq_lens, window_size=(-1, -1))
        return self.o(x.flatten(2).to(self.o.weight.dtype))  # in the nodes, autocast does it


class WanT2VCrossAttention(WanSelfAttention):
    def forward(self, x, context, context_lens):
        q, k, v = self.heads(self.q(x)), self.heads(self.k(context)), self.heads(self.v(context))
        x = sys.modules[FILE].attention(q, k, v, k_lens=context_lens, dtype=torch.float32)
        return self.o(x.flatten(2))


class WanModel(nn.Module):
    def __init__(self, dim=48, num_heads=2, num_layers=4, channels=4):
        super().__init__()
        self.num_heads = num_heads
        self.patch_embedding = nn.Conv3d(channels, dim, kernel_size=(1, 2, 2), stride=(1, 2, 2))
        self.blocks = nn.ModuleList(wan_double.WanAttentionBlock(dim, num_heads) for _ in range(num_layers))
        for block in self.blocks:
            block.self_attn, block.cross_attn = WanSelfAttention(dim, num_heads), WanT2VCrossAttention(dim, num_heads)
        self.head = nn.Linear(dim, channels * 4)

    embed = wan_double.WanModel.embed

    def forward(self, x, seq_len, freqs):
        x, seq_lens, grid_sizes = self.embed(x, seq_len)
        for block in self.blocks:
            x = block(x, seq_lens, grid_sizes, freqs)
        return [self.head(video) for video in x]


class LaterSelfAttention(WanSelfAttention):
    """Of later versions: it gets rotated queries and keys, and nothing of the grid."""

    def forward(self, q, k, v, seq_lens):
        return self.o(sys.modules[FILE].attention(q, k, v, k_lens=seq_lens).flatten(2).to(self.o.weight.dtype))

    def forward_radial(self, q, k, v):
        return self.o(v.flatten(2))


class LaterBlock(nn.Module):
    def __init__(self, dim, num_heads, radial):
        super().__init__()
        self.self_attn, self.radial = LaterSelfAttention(dim, num_heads), radial

    def forward(self, x, seq_lens, grid_sizes, freqs):
        file, own = sys.modules[FILE], self.self_attn
        q, k = (file.rope_apply(own.heads(project(x)), grid_sizes, freqs) for project in (own.q, own.k))
        v = own.heads(own.v(x))
        return x + (own.forward_radial(q, k, v) if self.radial else own(q, k, v, seq_lens))


def later(radial):
    """A model of later versions."""
    install()

    def build():
        made = WanModel()
        made.blocks = nn.ModuleList(LaterBlock(48, 2, radial) for _ in range(4))
        return made

    return random_model(build)


def install() -> list[str]:
    """Install the double under the names of the original's modules. Returns these names."""
    names = [FOLDER, f"{FOLDER}.wanvideo", f"{FOLDER}.wanvideo.modules", FILE]
    for name in names:
        sys.modules[name] = types.ModuleType(name)
    for cls in (WanSelfAttention, WanT2VCrossAttention, WanModel, LaterSelfAttention, LaterBlock):
        cls.__module__ = FILE
        setattr(sys.modules[FILE], cls.__name__, cls)
    vars(sys.modules[FILE]).update(attention=attention, rope_apply=wan_double.rope_apply)
    return names


def model():
    """A small one, whose attention is far from uniform."""
    install()
    return random_model(WanModel)


def inputs(frames, height, width, batch):
    """Without padding, which its kernel does not hide."""
    given = wan_double.inputs(frames, height, width, batch)
    return given | {"seq_len": frames * height * width, "freqs": wan_double.WanModel.rotations(24)}


EXPECTED = {
    "check_sizes_that_are_no_multiple_of_the_patch": "the caller gives the number of tokens, and its kernel attends to "
    "padding"
}
EXAMPLES = [
    Example("wan-video-wrapper", model, inputs, video="x", axes="c f h w", expected_failures=EXPECTED),
]
