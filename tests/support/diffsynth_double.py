"""A double of DiffSynth-Studio's Wan: the same names, shapes and calls, on the CPU.

It keeps what the adapters rely on: a transformer whose forward nobody calls; a function that calls its parts, from the
patch embedding to the head, and itself for each sliding window; a kernel whose tensors join heads and channels; rotary
tables of complex numbers; and a second network for hints, which is called as a module. Everything else is minimal.
"""

import math
import sys
import types

import torch
import torch.nn.functional as F
from torch import nn

from freeloc.testing import Example, noise, random_model

FILES = {
    "dit": "diffsynth.models.wan_video_dit",
    "vace": "diffsynth.models.wan_video_vace",
    "pipeline": "diffsynth.pipelines.wan_video",
}


def flash_attention(q, k, v, num_heads, compatibility_mode=False):
    q, k, v = (tensor.unflatten(2, (num_heads, -1)).transpose(1, 2) for tensor in (q, k, v))
    logits = q @ k.mT * q.shape[-1] ** -0.5
    return (logits.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)


def rope_apply(x, freqs, num_heads):
    pairs = torch.view_as_complex(x.double().unflatten(2, (num_heads, -1)).unflatten(3, (-1, 2)))
    return torch.view_as_real(pairs * freqs).flatten(2).to(x.dtype)


def precompute_freqs_cis(dim, end=1024, theta=10_000.0):
    angles = torch.outer(torch.arange(end), theta ** -(torch.arange(0, dim, 2).double() / dim))
    return torch.polar(torch.ones_like(angles), angles)


class AttentionModule(nn.Module):
    def __init__(self, num_heads):
        super().__init__()
        self.num_heads = num_heads

    def forward(self, q, k, v):
        return sys.modules[FILES["dit"]].flash_attention(q=q, k=k, v=v, num_heads=self.num_heads)


class SelfAttention(nn.Module):
    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.attn = AttentionModule(num_heads)

    def forward(self, x, freqs):
        rotate = sys.modules[FILES["dit"]].rope_apply
        q, k = (rotate(project(x), freqs, self.num_heads) for project in (self.q, self.k))
        return self.o(self.attn(q, k, self.v(x)))


class CrossAttention(SelfAttention):
    def forward(self, x, y):
        return self.o(self.attn(self.q(x), self.k(y), self.v(y)))


class DiTBlock(nn.Module):
    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim)
        self.self_attn, self.cross_attn = SelfAttention(dim, num_heads), CrossAttention(dim, num_heads)
        self.ffn = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, x, context, t_mod, freqs):
        x = x + self.self_attn(self.norm(x) + t_mod, freqs)
        x = x + self.cross_attn(self.norm(x), context)
        return x + self.ffn(self.norm(x))


class WanModel(nn.Module):
    def __init__(self, dim=48, num_heads=2, num_layers=4, in_dim=4, out_dim=4, text_dim=16):
        super().__init__()
        self.patch_embedding = nn.Conv3d(in_dim, dim, kernel_size=(1, 2, 2), stride=(1, 2, 2))
        self.text_embedding, self.time_embedding = nn.Linear(text_dim, dim), nn.Linear(1, dim)
        self.blocks = nn.ModuleList(DiTBlock(dim, num_heads) for _ in range(num_layers))
        self.head = nn.Linear(dim, out_dim * 4)
        side = dim // num_heads // 3
        sizes = (dim // num_heads - 2 * side, side, side)
        self.freqs = tuple(precompute_freqs_cis(size) for size in sizes)  # no buffers

    def patchify(self, x):
        return self.patch_embedding(x)

    def forward(self, x):
        x, (_f, _h, _w) = self.patchify(x)  # the original fails here, too
        raise NotImplementedError(x)


class VaceWanAttentionBlock(DiTBlock):
    def forward(self, c, x, context, t_mod, freqs):
        return super().forward(c + x, context, t_mod, freqs)


class VaceWanModel(nn.Module):
    def __init__(self, vace_layers=(0, 2), vace_in_dim=4, dim=48, num_heads=2):
        super().__init__()
        self.vace_layers = vace_layers
        self.vace_layers_mapping = {layer: number for number, layer in enumerate(vace_layers)}
        self.vace_blocks = nn.ModuleList(VaceWanAttentionBlock(dim, num_heads) for _ in vace_layers)
        self.vace_patch_embedding = nn.Conv3d(vace_in_dim, dim, kernel_size=(1, 2, 2), stride=(1, 2, 2))

    def forward(self, x, vace_context, context, t_mod, freqs):
        c = torch.cat([self.vace_patch_embedding(u[None]).flatten(2).mT for u in vace_context])
        hints = []
        for block in self.vace_blocks:
            c = block(c, x, context, t_mod, freqs)
            hints.append(c)
        return hints


class TeaCache:
    """Runs the blocks in every second call."""

    calls = 0
    residual = None

    def check(self, dit, x, t_mod):
        self.calls += 1
        return self.calls % 2 == 0

    def update(self, x):
        return x + self.residual


def model_fn_wan_video(
    dit,
    vace=None,
    vap=None,
    latents=None,
    timestep=None,
    context=None,
    reference_latents=None,
    vace_context=None,
    tea_cache=None,
    use_unified_sequence_parallel=False,
    pose_latents=None,
    sliding_window_size=None,
    sliding_window_stride=None,
    **kwargs,
):
    if sliding_window_size is not None and sliding_window_stride is not None:
        value, weight = torch.zeros_like(latents), torch.zeros(latents.shape[2])
        for start in range(0, latents.shape[2], sliding_window_stride):
            if start and start - sliding_window_stride + sliding_window_size >= latents.shape[2]:
                continue
            part = slice(start, start + sliding_window_size)
            value[:, :, part] += model_fn_wan_video(
                dit, latents=latents[:, :, part], timestep=timestep, context=context
            )
            weight[part] += 1
        return value / weight[:, None, None]
    t_mod = dit.time_embedding(timestep[:, None] / 1000)[:, None]
    context = dit.text_embedding(context)
    x = dit.patchify(latents)
    if pose_latents is not None:
        x = torch.cat([x[:, :, :1], x[:, :, 1:] + pose_latents], dim=2)
    f, h, w = x.shape[2:]
    x = x.flatten(2).mT
    if reference_latents is not None:
        x = torch.cat([x[:, : h * w], x], dim=1)
        f += 1
    freqs = torch.cat(
        [
            dit.freqs[0][:f].view(f, 1, 1, -1).expand(f, h, w, -1),
            dit.freqs[1][:h].view(1, h, 1, -1).expand(f, h, w, -1),
            dit.freqs[2][:w].view(1, 1, w, -1).expand(f, h, w, -1),
        ],
        dim=-1,
    ).reshape(f * h * w, 1, -1)
    hints = vace(x, vace_context, context, t_mod, freqs) if vace_context is not None else []
    before = x
    if tea_cache is not None and tea_cache.check(dit, x, t_mod):
        x = tea_cache.update(x)
    else:
        for number, block in enumerate(dit.blocks):
            x = block(x, context, t_mod, freqs)
            if vace_context is not None and number in vace.vace_layers_mapping:
                x = x + hints[vace.vace_layers_mapping[number]]
        if tea_cache is not None:
            tea_cache.residual = x - before
    x = dit.head(x)[:, -latents.shape[2] * h * w :]
    return F.pixel_shuffle(x.mT.unflatten(2, (-1, h, w)).movedim(2, 1), 2).movedim(1, 2)


def install() -> list[str]:
    """Install the double under the names of the original's modules. Returns these names."""
    places = {
        "diffsynth": (),
        "diffsynth.models": (),
        "diffsynth.pipelines": (),
        FILES["dit"]: (AttentionModule, SelfAttention, CrossAttention, DiTBlock, WanModel, flash_attention, rope_apply),
        FILES["vace"]: (VaceWanAttentionBlock, VaceWanModel),
        FILES["pipeline"]: (TeaCache,),
    }
    for name, things in places.items():
        module = sys.modules[name] = types.ModuleType(name)
        for thing in things:
            thing.__module__ = name
            setattr(module, thing.__name__, thing)
    pipeline = sys.modules[FILES["pipeline"]]
    # Its frames have the globals of the file in which it is defined, as those of the original have.
    function = types.FunctionType(
        model_fn_wan_video.__code__, vars(pipeline), None, model_fn_wan_video.__defaults__, None
    )
    vars(pipeline).update(model_fn_wan_video=function, torch=torch, F=F)
    return list(places)


def model():
    """A small one, whose attention is far from uniform."""
    install()
    return random_model(WanModel)


def inputs(frames, height, width, batch):
    """Arguments of the function, for a grid of tokens."""
    latents = noise(batch, 4, frames, 2 * height, 2 * width)
    return {"latents": latents, "timestep": torch.full((batch,), 500.0), "context": noise(batch, 5, 16)}


def run(model, given):
    """Run a transformer as the pipeline does."""
    return sys.modules[FILES["pipeline"]].model_fn_wan_video(model, **given)


def vace():
    """A small network for hints."""
    install()
    return random_model(VaceWanModel)


def vace_inputs(frames, height, width, batch):
    """Its own arguments."""
    sizes = frames, height, width
    tables = [precompute_freqs_cis(8)[:size] for size in sizes]
    axes = [table.view(*(-1 if axis == own else 1 for axis in range(3)), 4) for own, table in enumerate(tables)]
    return {
        "x": torch.zeros(batch, math.prod(sizes), 48),
        "vace_context": list(noise(batch, 4, frames, 2 * height, 2 * width)),
        "context": noise(batch, 5, 48),
        "t_mod": torch.zeros(batch, 1, 48),
        "freqs": torch.cat([axis.expand(*sizes, 4) for axis in axes], dim=-1).reshape(-1, 1, 12),
    }


EXAMPLES = [
    Example("diffsynth-wan", model, inputs, video="latents", run=run),
    Example("diffsynth-wan-vace", vace, vace_inputs, video="vace_context", axes="c f h w"),
]
