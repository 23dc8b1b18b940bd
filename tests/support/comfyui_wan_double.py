"""A double of ComfyUI's Wan models, and what the doubles of its other models share: the same names, shapes and calls.

It keeps what the adapters rely on: a kernel that each file knows by one name, whose tensors join heads and channels or
do not; rotary tables of 2 x 2 matrices; latents that are padded to whole patches; frames that a model puts before or
after those of the video. Sizes are those of comfyui_facts.py. Everything else is minimal.
"""

import sys

import einops
import torch
import torch.nn.functional as F
from torch import nn


def optimized_attention(q, k, v, heads, mask=None, attn_precision=None, skip_reshape=False, **others):
    """On (batch, tokens, heads * head_dim), or with `skip_reshape` on (batch, heads, tokens, head_dim)."""
    if not skip_reshape:
        q, k, v = (tensor.unflatten(2, (heads, -1)).transpose(1, 2) for tensor in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def attention_in(file, q, k, v, options, apart=True, **more):
    """Call the kernel by its name in a file, with q, k and v (batch, tokens, heads, head_dim)."""
    heads = q.shape[2]
    q, k, v = (tensor.transpose(1, 2) if apart else tensor.flatten(2) for tensor in (q, k, v))
    kernel = sys.modules[f"comfy.ldm.{file}"].optimized_attention
    return kernel(q, k, v, heads, skip_reshape=apart, transformer_options=options, **more)


def raster(frames, height, width):
    """Positions (tokens, 3) of a grid."""
    return torch.cartesian_prod(*[torch.arange(size).double() for size in (frames, height, width)])


def angles(positions, sizes, theta=10_000.0):
    """(tokens, pairs) of heads split for time, rows and columns."""
    parts = [theta ** -(torch.arange(0, size, 2).double() / size) for size in sizes]
    return torch.cat([positions[:, [axis]] * part for axis, part in enumerate(parts)], dim=1)


def matrices(angles):
    """(..., 2, 2)."""
    sin, cos = angles.sin(), angles.cos()
    return torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2)).float()


def turn(x, table, half=False):
    """Rotate x (batch, tokens, heads, head_dim), whose pairs are neighbours or half a head apart."""
    pairs = x.unflatten(-1, (2, -1)).mT if half else x.unflatten(-1, (-1, 2))
    turned = (table @ pairs[..., None]).squeeze(-1)
    return (turned.mT if half else turned).flatten(-2)


def whole(x, patch):
    """Latents padded to whole patches."""
    missing = [-size % side for size, side in zip(x.shape[2:], patch, strict=True)]
    return F.pad(x, [side for size in reversed(missing) for side in (0, size)], mode="circular")


def latent(tokens, grid, patch):
    """Tokens (batch, tokens, patch * channels) as a latent."""
    sizes = dict(zip("fhw", grid, strict=True)) | dict(zip("rpq", patch, strict=True))
    return einops.rearrange(tokens, "b (f h w) (r p q c) -> b c (f r) (h p) (w q)", **sizes)


class Attention(nn.Module):
    """Projections to heads."""

    def __init__(self, dim=48, heads=2, context_dim=None):
        super().__init__()
        self.num_heads, self.head_dim = heads, dim // heads
        self.to_q, self.to_out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.to_k, self.to_v = nn.Linear(context_dim or dim, dim), nn.Linear(context_dim or dim, dim)

    def heads(self, x, context=None):
        context = x if context is None else context
        projected = self.to_q(x), self.to_k(context), self.to_v(context)
        return [tensor.unflatten(2, (self.num_heads, -1)) for tensor in projected]


class WanSelfAttention(Attention):
    def forward(self, x, freqs, transformer_options=None):
        q, k, v = self.heads(x)
        q, k = turn(q, freqs), turn(k, freqs)
        return self.to_out(attention_in("wan.model", q, k, v, transformer_options, apart=False))


class WanT2VCrossAttention(WanSelfAttention):
    def forward(self, x, context, transformer_options=None):
        return self.to_out(attention_in("wan.model", *self.heads(x, context), transformer_options, apart=False))


class WanAttentionBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.self_attn, self.cross_attn = nn.LayerNorm(48), WanSelfAttention(), WanT2VCrossAttention()
        self.ffn = nn.Sequential(nn.Linear(48, 48), nn.GELU())

    def forward(self, x, freqs, context, transformer_options):
        x = x + self.self_attn(self.norm(x), freqs, transformer_options=transformer_options)
        x = x + self.cross_attn(self.norm(x), context, transformer_options=transformer_options)
        return x + self.ffn(self.norm(x))


class WanModel(nn.Module):
    def __init__(self, layers=3, ref_conv=False):
        super().__init__()
        self.num_heads = 2
        self.patch_embedding = nn.Conv3d(4, 48, kernel_size=(1, 2, 2), stride=(1, 2, 2))
        self.ref_conv = nn.Conv2d(4, 48, kernel_size=2, stride=2) if ref_conv else None
        self.text_embedding = nn.Linear(16, 48)
        self.blocks = nn.ModuleList(WanAttentionBlock() for _ in range(layers))
        self.head = nn.Linear(48, 16)

    def forward(self, x, timestep, context, clip_fea=None, time_dim_concat=None, transformer_options=None, **kwargs):
        video = whole(x, (1, 2, 2))
        if time_dim_concat is not None:
            video = torch.cat([video, time_dim_concat], dim=2)
        out = self.run(video, self.text_embedding(context), transformer_options or {}, **kwargs)
        return out[:, :, : x.shape[2], : x.shape[3], : x.shape[4]]

    def freqs(self, frames, grid, transformer_options):
        positions = raster(frames, *grid[1:])
        positions[:, 0] *= (transformer_options.get("rope_options") or {}).get("scale_t", 1.0)
        return matrices(angles(positions, (8, 8, 8)))[None, :, None]

    def in_front(self, reference_latent=None, **others):
        """Tokens (batch, tokens, channels) before those of the video, of one frame; or None."""
        has_one = self.ref_conv is not None and reference_latent is not None
        return self.ref_conv(reference_latent).flatten(2).mT if has_one else None

    def behind(self, **others):
        """Tokens of whole frames after those of the video."""

    def embed(self, video, **others):
        return self.patch_embedding(video)

    def run(self, video, context, transformer_options, **kwargs):
        tokens = self.embed(video, **kwargs)
        grid, tokens = tokens.shape[2:], tokens.flatten(2).mT
        before, after = self.in_front(**kwargs), self.behind(**kwargs)
        first = 0 if before is None else before.shape[1]
        x = torch.cat([part for part in (before, tokens, after) if part is not None], dim=1)
        freqs = self.freqs(x.shape[1] // (grid[1] * grid[2]), grid, transformer_options)
        x = self.through_blocks(x, freqs, context, transformer_options, **kwargs)
        return latent(self.head(x[:, first : first + tokens.shape[1]]), grid, (1, 2, 2))

    def through_blocks(self, x, freqs, context, transformer_options, **others):
        for block in self.blocks:
            x = block(x, freqs, context, transformer_options)
        return x


class CameraWanModel(WanModel):
    pass


class VaceWanModel(WanModel):
    def __init__(self):
        super().__init__(layers=4)
        self.vace_blocks = nn.ModuleList(WanAttentionBlock() for _ in range(2))
        self.vace_layers_mapping = {0: 0, 2: 1}

    def through_blocks(self, x, freqs, context, transformer_options, **others):
        hint = x
        for layer, block in enumerate(self.blocks):
            x = block(x, freqs, context, transformer_options)
            if layer in self.vace_layers_mapping:
                hint = self.vace_blocks[self.vace_layers_mapping[layer]](hint, freqs, context, transformer_options)
                x = x + hint
        return x


class AnimateWanModel(WanModel):
    pass


class WithInjector(nn.Module):
    def __init__(self):
        super().__init__()
        self.injector = nn.ModuleList([WanT2VCrossAttention()])


class WanModel_S2V(WanModel):  # noqa: N801 - ComfyUI's name
    def __init__(self):
        super().__init__()
        self.audio_injector = WithInjector()


class AudioCrossAttentionWrapper(nn.Module):
    def __init__(self):
        super().__init__()
        self.audio_cross_attn = WanT2VCrossAttention()


class HumoWanModel(WanModel):
    def __init__(self):
        super().__init__()
        for block in self.blocks:
            block.audio_cross_attn_wrapper = AudioCrossAttentionWrapper()

    def behind(self, reference_latent=None, **others):
        return None if reference_latent is None else self.patch_embedding(reference_latent).flatten(2).mT


class SCAILWanModel(WanModel):
    def embed(self, video, reference_latent=None, **others):
        both = video if reference_latent is None else torch.cat([reference_latent, video], dim=2)
        return self.patch_embedding(both)

    def run(self, video, context, transformer_options, reference_latent=None, **kwargs):
        out = super().run(video, context, transformer_options, reference_latent=reference_latent, **kwargs)
        return out if reference_latent is None else out[:, :, reference_latent.shape[2] :]


class SCAIL2WanModel(SCAILWanModel):
    pass


class WanDancerModel(WanModel):
    def __init__(self):
        super().__init__()
        self.music_injector = WithInjector()
