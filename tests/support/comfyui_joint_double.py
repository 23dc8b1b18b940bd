"""Doubles of HunyuanVideo, CogVideoX, Mochi and Kandinsky 5 in ComfyUI: the same names, shapes and calls.

They keep what the adapters rely on: blocks that are themselves the attention modules, and change their input in place;
a kernel in another file; text before or after the video, whose number a block gets in different ways; rotary tables
with rows for the text, too. Everything else is minimal.
"""

import math

import torch
from comfyui_wan_double import Attention, angles, attention_in, latent, matrices, raster, turn, whole
from torch import nn


class Norm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.query_norm = nn.RMSNorm(size)


class DoubleStreamBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_heads = 2
        self.img_attn, self.txt_attn = Attention(), Attention()

    def forward(self, img, txt, pe, attn_mask=None, transformer_options=None):
        parts = zip(self.txt_attn.heads(txt), self.img_attn.heads(img), strict=True)
        q, k, v = (torch.cat(pair, dim=1) for pair in parts)
        out = attention_in("flux.math", turn(q, pe), turn(k, pe), v, transformer_options, mask=attn_mask)
        img += self.img_attn.to_out(out[:, txt.shape[1] :])
        txt += self.txt_attn.to_out(out[:, : txt.shape[1]])
        return img, txt


class SingleStreamBlock(Attention):
    def forward(self, x, pe, attn_mask=None, transformer_options=None):
        q, k, v = self.heads(x)
        x += self.to_out(attention_in("flux.math", turn(q, pe), turn(k, pe), v, transformer_options, mask=attn_mask))
        return x


class Patches(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Conv3d(4, 48, kernel_size=(1, 2, 2), stride=(1, 2, 2))


class Dim(nn.Module):
    """Stands for ComfyUI's EmbedND."""

    def __init__(self, axes_dim):
        super().__init__()
        self.dim, self.axes_dim = sum(axes_dim), axes_dim


class Parameters:
    axes_dim, theta = (8, 8, 8), 256


class HunyuanVideo(nn.Module):
    def __init__(self, double=2, single=2):
        super().__init__()
        self.params, self.num_heads, self.pe_embedder = Parameters, 2, Dim((8, 8, 8))
        self.img_in, self.txt_in, self.byt5_in = Patches(), nn.Linear(16, 48), nn.Linear(1472, 48)
        self.double_blocks = nn.ModuleList(DoubleStreamBlock() for _ in range(double))
        self.single_blocks = nn.ModuleList(SingleStreamBlock() for _ in range(single))
        self.final_layer = nn.Linear(48, 16)

    def forward(self, x, timestep, context, txt_byt5=None, ref_latent=None, transformer_options=None, **kwargs):
        img = self.img_in.proj(x)
        grid, img, txt = img.shape[2:], img.flatten(2).mT, self.txt_in(context)
        if txt_byt5 is not None:
            txt = torch.cat([self.byt5_in(txt_byt5), txt], dim=1)
        positions = torch.cat([torch.zeros(txt.shape[1], 3), raster(*grid)])
        pe, first = matrices(angles(positions, (8, 8, 8), 256.0))[None, :, None], txt.shape[1]
        for block in self.double_blocks:
            img, txt = block(img, txt, pe=pe, transformer_options=transformer_options)
        both = torch.cat([txt, img], dim=1)
        options = {"img_slice": [first, both.shape[1]]}
        for block in self.single_blocks:
            both = block(both, pe=pe, transformer_options=options)
        return latent(self.final_layer(both[:, first:]), grid, (1, 2, 2))


class CogVideoXBlock(Attention):
    def forward(self, hidden_states, encoder_hidden_states, image_rotary_emb=None, transformer_options=None):
        first = encoder_hidden_states.shape[1]
        q, k, v = self.heads(torch.cat([encoder_hidden_states, hidden_states], dim=1))
        if image_rotary_emb is not None:
            cos, sin = (table[:, None, ::2] for table in image_rotary_emb)  # each channel of a pair has the same
            table = torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2))
            q, k = (torch.cat([x[:, :first], turn(x[:, first:], table)], dim=1) for x in (q, k))
        out = self.to_out(attention_in("cogvideo.model", q, k, v, transformer_options, apart=False))
        return hidden_states + out[:, first:], encoder_hidden_states + out[:, :first]


class CogVideoXPatchEmbed(nn.Module):
    def __init__(self, patch, dim):
        super().__init__()
        self.patch, self.text_proj = patch, nn.Linear(16, dim)
        self.proj = nn.Conv3d(4, dim, kernel_size=patch, stride=patch)

    def forward(self, text_embeds, image_embeds):
        tokens = self.proj(image_embeds.transpose(1, 2)).flatten(2).mT
        return torch.cat([self.text_proj(text_embeds), tokens], dim=1)


class CogVideoXTransformer3DModel(nn.Module):
    def __init__(self, time=None, factor=1.875, rotary=True, head_dim=32):
        super().__init__()
        self.patch_size, self.patch_size_t, self.factor = 2, time, factor
        self.num_attention_heads, self.attention_head_dim = 2, head_dim
        self.use_rotary_positional_embeddings = rotary
        self.patch_embed = CogVideoXPatchEmbed((time or 1, 2, 2), 2 * head_dim)
        self.blocks = nn.ModuleList(CogVideoXBlock(2 * head_dim) for _ in range(3))
        self.proj_out = nn.Linear(2 * head_dim, 16 * (time or 1))

    def forward(self, x, timestep, context, ofs=None, transformer_options=None):
        patch = self.patch_size_t or 1, 2, 2
        padded = whole(x, patch)
        grid = [size // side for size, side in zip(padded.shape[2:], patch, strict=True)]
        both, first, rotary = self.patch_embed(context, padded.transpose(1, 2)), context.shape[1], None
        if self.use_rotary_positional_embeddings:
            positions = raster(*grid) * torch.tensor([1.0, self.factor, self.factor])
            of_channels = angles(positions, (8, 12, 12)).repeat_interleave(2, dim=1)
            rotary = of_channels.cos().float(), of_channels.sin().float()
        text, video = both[:, :first], both[:, first:]
        for block in self.blocks:
            video, text = block(
                hidden_states=video, encoder_hidden_states=text, image_rotary_emb=rotary,
                transformer_options=transformer_options,
            )  # fmt: skip
        out = latent(self.proj_out(video), grid, patch)
        return out[:, :, : x.shape[2], : x.shape[3], : x.shape[4]]


class AsymmetricAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.video, self.text = Attention(), Attention()

    def forward(self, x, y, crop_y, transformer_options=None, **rotary):
        cos, sin = rotary["rope_cos"], rotary["rope_sin"]
        table = torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2))
        q, k, v = self.video.heads(x)
        both = [
            torch.cat([video, text[:, :crop_y]], dim=1)
            for video, text in zip((turn(q, table), turn(k, table), v), self.text.heads(y), strict=True)
        ]
        out = attention_in("genmo.joint_model.asymm_models_joint", *both, transformer_options)
        return self.video.to_out(out[:, : x.shape[1]]), self.text.to_out(out[:, x.shape[1] :])


class MochiBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = AsymmetricAttention()


class AsymmDiTJoint(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_size, self.num_heads, self.head_dim = 2, 2, 24
        self.x_embedder, self.t5_yproj = Patches(), nn.Linear(16, 48)
        pairs = torch.arange(12.0)
        self.pos_frequencies = nn.Parameter(torch.stack([pairs, pairs + 3])[None] * torch.tensor([[[0.05]]] * 3))
        self.blocks = nn.ModuleList(MochiBlock() for _ in range(3))
        self.final_layer = nn.Linear(48, 16)

    def forward(self, x, timestep, context, attention_mask, num_tokens=256, transformer_options=None, **kwargs):
        tokens = self.x_embedder.proj(x)
        grid, tokens, text = tokens.shape[2:], tokens.flatten(2).mT, self.t5_yproj(context)
        at, token = raster(*grid), 192 / math.sqrt(grid[1] * grid[2])
        for axis in (1, 2):
            at[:, axis] = (at[:, axis] + 0.5 - grid[axis] / 2) * token
        turned = torch.einsum("nd,dhf->nhf", at, self.pos_frequencies.double())
        cos, sin = turned.cos().float(), turned.sin().float()
        for block in self.blocks:
            out, of_text = block.attn(
                tokens, text, crop_y=num_tokens, transformer_options=transformer_options, rope_cos=cos, rope_sin=sin
            )
            tokens, text = tokens + out, torch.cat([text[:, :num_tokens] + of_text, text[:, num_tokens:]], dim=1)
        return latent(self.final_layer(tokens), grid, (1, 2, 2))


class SelfAttention(Attention):
    def forward(self, x, freqs, transformer_options=None):
        q, k, v = self.heads(x)
        return self.to_out(attention_in("kandinsky5.model", turn(q, freqs), turn(k, freqs), v, transformer_options))


class CrossAttention(SelfAttention):
    def forward(self, x, context, transformer_options=None):
        return self.to_out(attention_in("kandinsky5.model", *self.heads(x, context), transformer_options))


class KandinskyBlock(nn.Module):
    def __init__(self, cross=True):
        super().__init__()
        self.self_attention = SelfAttention()
        self.cross_attention = CrossAttention() if cross else None

    def forward(self, x, context, freqs, transformer_options):
        x = x + self.self_attention(x, freqs, transformer_options=transformer_options)
        return x if context is None else x + self.cross_attention(x, context, transformer_options=transformer_options)


class VisualEmbeddings(Patches):
    def forward(self, x):
        return self.proj(x).movedim(1, -1)


class Kandinsky5(nn.Module):
    def __init__(self):
        super().__init__()
        self.rope_scale_factor, self.rope_embedder_3d = (1.0, 2.0, 2.0), Dim((8, 8, 8))
        self.visual_embeddings, self.text_embeddings = VisualEmbeddings(), nn.Linear(16, 48)
        self.text_transformer_blocks = nn.ModuleList([KandinskyBlock(cross=False)])
        self.visual_transformer_blocks = nn.ModuleList(KandinskyBlock() for _ in range(3))
        self.out_layer = nn.Linear(48, 16)

    def forward(self, x, timestep, context, y, transformer_options=None):
        tokens, text = self.visual_embeddings(whole(x, (1, 2, 2))), self.text_embeddings(context)
        grid, tokens = tokens.shape[1:4], tokens.flatten(1, 3)
        scale = ((transformer_options or {}).get("rope_options") or {}).get("scale_t", 1.0)
        positions = raster(*grid) * torch.tensor([scale, 0.5, 0.5])
        freqs = matrices(angles(positions, (8, 8, 8)))[None, :, None]
        of_text = matrices(angles(raster(1, 1, text.shape[1]), (8, 8, 8)))[None, :, None]
        for block in self.text_transformer_blocks:
            text = block(text, None, of_text, transformer_options)
        for block in self.visual_transformer_blocks:
            tokens = block(tokens, text, freqs, transformer_options)
        return latent(self.out_layer(tokens), grid, (1, 2, 2))  # with the padding, as ComfyUI does
