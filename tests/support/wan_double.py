"""A double of the original Wan repository's models: the same names, shapes and calls, on the CPU.

It keeps what the adapters rely on: a list of videos of different sizes, padded to one length; a table of sizes
handed to each attention module; rotation in complex128 that leaves padding alone and returns float32; and a kernel
found by its name in the file's globals. Everything else is minimal.
"""

import math
import sys
import types

import torch
import torch.distributed as dist
from torch import nn

from freeloc.testing import Example, noise, random_model


def flash_attention(q, k, v, q_lens=None, k_lens=None, window_size=(-1, -1)):
    """Plain attention on (batch, tokens, heads, head_dim) that leaves out keys beyond each sample's length."""
    logits = torch.einsum("bqhd,bkhd->bhqk", q.to(v.dtype), k.to(v.dtype)) * q.shape[-1] ** -0.5
    if k_lens is not None:
        padding = torch.arange(k.shape[1]) >= k_lens[:, None]
        logits = logits.masked_fill(padding[:, None, None, :], -math.inf)
    return torch.einsum("bhqk,bkhd->bqhd", logits.softmax(dim=-1), v).to(q.dtype)


def rope_apply(x, grid_sizes, freqs):
    pairs = x.shape[3] // 2
    side = pairs // 3
    time, row, column = freqs.split([pairs - 2 * side, side, side], dim=1)
    samples = []
    for sample, (frames, height, width) in zip(x, grid_sizes.tolist(), strict=True):
        grid = frames, height, width
        rotation = torch.cat(
            [
                time[:frames, None, None].expand(*grid, -1),
                row[None, :height, None].expand(*grid, -1),
                column[None, None, :width].expand(*grid, -1),
            ],
            dim=-1,
        )
        length = math.prod(grid)
        video = torch.view_as_complex(sample[:length].double().unflatten(2, (pairs, 2)).contiguous())
        rotated = torch.view_as_real(video * rotation.reshape(length, 1, pairs)).flatten(2)
        samples.append(torch.cat([rotated, sample[length:].double()]))
    return torch.stack(samples).float()


def kernel_of(module):
    """The kernel, looked up in the file's globals at each call. FSDP makes classes of its own, in its own file."""
    files = (sys.modules[base.__module__] for base in type(module).__mro__)
    return next(file for file in files if hasattr(file, "flash_attention")).flash_attention


class WanSelfAttention(nn.Module):
    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))

    def heads(self, x):
        return x.unflatten(2, (self.num_heads, self.head_dim))

    def forward(self, x, seq_lens, grid_sizes, freqs):
        q, k, v = self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x))
        x = kernel_of(self)(
            q=rope_apply(q, grid_sizes, freqs), k=rope_apply(k, grid_sizes, freqs), v=v, k_lens=seq_lens,
            window_size=(-1, -1),
        )  # fmt: skip
        return self.o(x.flatten(2).to(v.dtype))


class WanT2VCrossAttention(WanSelfAttention):
    def forward(self, x, context, context_lens):
        q, k, v = self.heads(self.q(x)), self.heads(self.k(context)), self.heads(self.v(context))
        return self.o(kernel_of(self)(q, k, v, k_lens=context_lens).flatten(2))


class WanAttentionBlock(nn.Module):
    def __init__(self, dim, num_heads):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.self_attn = WanSelfAttention(dim, num_heads)
        self.cross_attn = WanT2VCrossAttention(dim, num_heads)
        self.text = nn.Parameter(torch.randn(1, 5, dim))  # stands for the prompt
        self.ffn = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, x, seq_lens, grid_sizes, freqs):
        x = x + self.self_attn(self.norm(x), seq_lens, grid_sizes, freqs)
        x = x + self.cross_attn(self.norm(x), self.text.expand(len(x), -1, -1), None)
        return x + self.ffn(self.norm(x))


class WanModel(nn.Module):
    def __init__(self, dim=48, num_heads=2, num_layers=4, channels=4):
        super().__init__()
        self.num_heads = num_heads
        self.patch_embedding = nn.Conv3d(channels, dim, kernel_size=(1, 2, 2), stride=(1, 2, 2))
        self.blocks = nn.ModuleList(WanAttentionBlock(dim, num_heads) for _ in range(num_layers))
        self.head = nn.Linear(dim, channels * 4)
        self.freqs = self.rotations(dim // num_heads)  # no buffer

    @staticmethod
    def rotations(head_dim):
        side = head_dim // 2 // 3
        tables = []
        for pairs in (head_dim // 2 - 2 * side, side, side):
            angles = torch.outer(torch.arange(1024.0).double(), 10_000 ** -(torch.arange(pairs).double() / pairs))
            tables.append(torch.polar(torch.ones_like(angles), angles))
        return torch.cat(tables, dim=1)

    def embed(self, x, seq_len):
        tokens = [self.patch_embedding(video[None]) for video in x]
        grid_sizes = torch.tensor([token.shape[2:] for token in tokens])
        tokens = [token.flatten(2).mT for token in tokens]
        seq_lens = torch.tensor([token.shape[1] for token in tokens])
        padded = [nn.functional.pad(token, (0, 0, 0, seq_len - token.shape[1])) for token in tokens]
        return torch.cat(padded), seq_lens, grid_sizes

    def forward(self, x, seq_len):
        x, seq_lens, grid_sizes = self.embed(x, seq_len)
        for block in self.blocks:
            x = block(x, seq_lens, grid_sizes, self.freqs)
        return [self.head(video[:length]) for video, length in zip(x, seq_lens, strict=True)]


class VaceWanModel(WanModel):
    def __init__(self, vace_layers=(0, 2), **sizes):
        super().__init__(**sizes)
        self.vace_layers = list(vace_layers)
        dim = self.head.in_features
        self.vace_blocks = nn.ModuleList(WanAttentionBlock(dim, self.num_heads) for _ in vace_layers)

    def forward(self, x, seq_len):
        x, seq_lens, grid_sizes = self.embed(x, seq_len)
        hint, hints = x, []
        for block in self.vace_blocks:
            hint = block(hint, seq_lens, grid_sizes, self.freqs)
            hints.append(hint)
        for index, block in enumerate(self.blocks):
            x = block(x, seq_lens, grid_sizes, self.freqs)
            if index in self.vace_layers:
                x = x + hints[self.vace_layers.index(index)]
        return [self.head(video[:length]) for video, length in zip(x, seq_lens, strict=True)]


class WanAnimateSelfAttention(WanSelfAttention):
    """In a file that imports the kernel by name."""


class WanAnimateModel(WanModel):
    """The first latent frame is a picture, to which no pose is added."""

    def __init__(self, **sizes):
        super().__init__(**sizes)
        dim = self.head.in_features
        self.pose_patch_embedding = nn.Conv3d(4, dim, kernel_size=(1, 2, 2), stride=(1, 2, 2))
        for block in self.blocks:
            block.self_attn = WanAnimateSelfAttention(dim, self.num_heads)

    def forward(self, x, seq_len, pose_latents):
        poses = [self.pose_patch_embedding(pose[None]).flatten(2).mT for pose in pose_latents]
        x, seq_lens, grid_sizes = self.embed(x, seq_len)
        for video, pose, length in zip(x, poses, seq_lens, strict=True):
            video[length - pose.shape[1] : length] += pose[0]
        for block in self.blocks:
            x = block(x, seq_lens, grid_sizes, self.freqs)
        return [self.head(video[:length]) for video, length in zip(x, seq_lens, strict=True)]


def gathered(x, dim):
    """The parts of all processes, one after another. The original's collectives, which need NCCL, move the same."""
    parts = [torch.empty_like(x.contiguous()) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts, dim=dim)


def part(x, dim):
    return x.chunk(dist.get_world_size(), dim=dim)[dist.get_rank()].contiguous()


def distributed_attention(q, k, v, seq_lens, window_size=(-1, -1)):
    """Tokens of this process to heads of this process, and back."""
    q, k, v = (part(gathered(tensor, 1), 2) for tensor in (q, k, v))
    kernel = sys.modules["wan.distributed.ulysses"].flash_attention
    return part(gathered(kernel(q, k, v, k_lens=seq_lens, window_size=window_size), 2), 1)


def sp_attn_forward(self, x, seq_lens, grid_sizes, freqs):
    q, k, v = self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x))
    q, k = (part(rope_apply(gathered(tensor, 1), grid_sizes, freqs), 1) for tensor in (q, k))
    return self.o(distributed_attention(q, k, v, seq_lens).flatten(2).to(v.dtype))


def sp_dit_forward(self, x, seq_len):
    x, seq_lens, grid_sizes = self.embed(x, seq_len + seq_len % dist.get_world_size())
    x = part(x, 1)
    for block in self.blocks:
        x = block(x, seq_lens, grid_sizes, self.freqs)
    return [self.head(video[:length]) for video, length in zip(gathered(x, 1), seq_lens, strict=True)]


def spread(model):
    """Share a model among all processes, as the original's programs do."""
    for block in model.blocks:
        block.self_attn.forward = types.MethodType(sp_attn_forward, block.self_attn)
    model.forward = types.MethodType(sp_dit_forward, model)
    return model


def install() -> list[str]:
    """Install the double under the names of the original's modules. Returns these names."""
    places = {
        "wan": (),
        "wan.modules": (),
        "wan.modules.model": (WanSelfAttention, WanT2VCrossAttention, WanAttentionBlock, WanModel),
        "wan.modules.vace_model": (VaceWanModel,),
        "wan.modules.animate": (),
        "wan.modules.animate.model_animate": (WanAnimateSelfAttention, WanAnimateModel),
        "wan.distributed": (),
        "wan.distributed.ulysses": (),
    }
    for name, classes in places.items():
        module = sys.modules[name] = types.ModuleType(name)
        for cls in classes:
            cls.__module__ = name
            setattr(module, cls.__name__, cls)
    for name in ("wan.modules.model", "wan.modules.animate.model_animate", "wan.distributed.ulysses"):
        sys.modules[name].flash_attention = flash_attention
    return list(places)


def model(cls=None):
    """A small one, whose attention is far from uniform."""
    install()
    return random_model(cls or WanModel)


def inputs(frames, height, width, batch):
    """For a grid of tokens, and some padding."""
    videos = [noise(4, frames, 2 * height, 2 * width) + sample for sample in range(batch)]
    return {"x": videos, "seq_len": frames * height * width + 5}


def animate_inputs(frames, height, width, batch):
    """The same, with a pose of every frame but the first."""
    poses = [noise(4, 1, 2 * height, 2 * width).expand(-1, frames - 1, -1, -1)] * batch
    return inputs(frames, height, width, batch) | {"pose_latents": poses}


EXAMPLES = [
    Example("wan-original", model, inputs, video="x", axes="c f h w"),
    Example("wan-original-vace", lambda: model(VaceWanModel), inputs, video="x", axes="c f h w"),
    Example("wan-original-animate", lambda: model(WanAnimateModel), animate_inputs, video="x", axes="c f h w"),
]
