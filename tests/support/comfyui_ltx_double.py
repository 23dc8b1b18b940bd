"""Doubles of LTX-Video, LTX-2 and Cosmos-Predict2 in ComfyUI: the same names, shapes and calls.

They keep what the adapters rely on: video and sound in one list; a kernel that is looked up in ComfyUI's own file; RoPE
over all heads, in seconds, in float32; rotary tables as a pair, or half-split over the whole head. Everything else is
minimal.
"""

import math

import torch
from comfyui_wan_double import Attention, angles, attention_in, latent, matrices, raster, turn, whole
from torch import nn


class CrossAttention(Attention):
    def __init__(self, context_dim=None):
        super().__init__(40, 2, context_dim)

    def forward(self, x, context=None, mask=None, pe=None, transformer_options=None):
        q, k, v = self.heads(x, context)
        if pe is not None:
            q, k = turn(q, *pe), turn(k, *pe)
        return self.to_out(attention_in("modules.attention", q, k, v, transformer_options, apart=False, mask=mask))


class LTXBlock(nn.Module):
    def __init__(self, sound=False):
        super().__init__()
        self.norm, self.attn1, self.attn2 = nn.LayerNorm(40), CrossAttention(), CrossAttention()
        for name in ("audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn") if sound else ():
            setattr(self, name, CrossAttention())

    def forward(self, x, context, pe, options):
        x = x + self.attn1(self.norm(x), pe=pe, transformer_options=options)
        return x + self.attn2(self.norm(x), context=context, transformer_options=options)


class LTXVModel(nn.Module):
    vae_scale_factors, positional_embedding_theta, positional_embedding_max_pos = (8, 32, 32), 1e4, (20, 2048, 2048)
    split_positional_embedding = "interleaved"
    sound = False

    def __init__(self):
        super().__init__()
        self.num_attention_heads, self.attention_head_dim, self.inner_dim = 2, 20, 40
        self.patchify_proj, self.proj_out, self.caption = nn.Linear(4, 40), nn.Linear(40, 4), nn.Linear(16, 40)
        self.transformer_blocks = nn.ModuleList(LTXBlock(self.sound) for _ in range(3))

    def freq_grid_generator(self, theta, axes, inner_dim, device):
        dtype = torch.float64 if self.sound else torch.float32
        return (theta ** torch.linspace(0, 1, inner_dim // (2 * axes), dtype=dtype) * math.pi / 2).float()

    def coordinates(self, grid, rate):
        """(tokens, 3) float32: seconds and pixels."""
        at = raster(*grid).float() * torch.tensor(self.vae_scale_factors)
        at[:, 0] *= 1 / rate
        return at

    def table(self, grid, rate):
        shares = self.coordinates(grid, rate) / torch.tensor(self.positional_embedding_max_pos)
        waves = self.freq_grid_generator(self.positional_embedding_theta, 3, self.inner_dim, "cpu")
        turned = (waves * (shares[..., None] * 2 - 1)).mT.flatten(1)
        turned = nn.functional.pad(turned, (20 - turned.shape[1], 0))
        return matrices(turned.unflatten(1, (2, 10)))[None], self.split_positional_embedding == "split"

    def forward(self, x, timestep, context, attention_mask=None, frame_rate=25, transformer_options=None,
                keyframe_idxs=None, **kwargs):  # fmt: skip
        video, *sound = x if isinstance(x, list) else [x]
        pe, text = self.table(video.shape[2:], frame_rate), self.caption(context)
        tokens = self.patchify_proj(video.flatten(2).mT)
        for block in self.transformer_blocks:
            tokens = block(tokens, text, pe, transformer_options)
        out = latent(self.proj_out(tokens), video.shape[2:], (1, 1, 1))
        return [out, *sound] if isinstance(x, list) else out


class LTXAVModel(LTXVModel):
    """Each place is in the middle of its token, and the first latent frame is one video frame."""

    split_positional_embedding = "split"
    sound = True

    def __init__(self):
        super().__init__()
        self.video_embeddings_connector = nn.ModuleList([CrossAttention()])
        self.audio_embeddings_connector = nn.ModuleList([CrossAttention()])

    def coordinates(self, grid, rate):
        places = []
        for late in (0, 1):
            at = (raster(*grid).float() + late) * torch.tensor(self.vae_scale_factors)
            at[:, 0] = (at[:, 0] - 7).clamp(min=0) * (1 / rate)
            places.append(at)
        return (places[0] + places[1]) / 2


class CosmosAttention(Attention):
    def forward(self, x, context=None, rope_emb=None, transformer_options=None):
        q, k, v = self.heads(x, context)
        if context is None:
            q, k = turn(q, rope_emb, half=True), turn(k, rope_emb, half=True)
        return self.to_out(attention_in("cosmos.predict2", q, k, v, transformer_options))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn, self.cross_attn = CosmosAttention(), CosmosAttention(context_dim=16)


class PositionEmbedder(nn.Module):
    t_ntk_factor, base_fps, enable_fps_modulation = 2.0 ** (8 / 6), 24, True


class PatchEmbed(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Conv3d(4, 48, kernel_size=(1, 2, 2), stride=(1, 2, 2))

    def forward(self, x):
        return self.proj(x).movedim(1, -1)


class MiniTrainDIT(nn.Module):
    def __init__(self):
        super().__init__()
        self.model_channels, self.num_heads, self.pos_embedder = 48, 2, PositionEmbedder()
        self.x_embedder, self.final_layer = PatchEmbed(), nn.Linear(48, 16)
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x, timesteps, context, fps=None, transformer_options=None):
        tokens = self.x_embedder(whole(x, (1, 2, 2)))
        grid, tokens = tokens.shape[1:4], tokens.flatten(1, 3)
        positions, base = raster(*grid), 10_000.0 * self.pos_embedder.t_ntk_factor
        in_time = angles(positions[:, :1] * (24 / fps if fps else 1.0), (8,), base)
        table = matrices(torch.cat([in_time, angles(positions[:, 1:], (8, 8))], dim=1))[None, :, None]
        for block in self.blocks:
            tokens = tokens + block.self_attn(tokens, None, rope_emb=table, transformer_options=transformer_options)
            tokens = tokens + block.cross_attn(tokens, context, transformer_options=transformer_options)
        return latent(self.final_layer(tokens), grid, (1, 2, 2))[..., : x.shape[3], : x.shape[4]]
