"""A double of the original HunyuanVideo-1.5's transformer: the same names, shapes and calls, on the CPU.

It keeps what the adapter relies on: blocks that call a function of their file with pairs of video and text, of which
the video's queries and keys are rotated; and a mask of the text. Everything else is minimal.
"""

import sys
import types

import torch
import torch.nn.functional as F
from hunyuan_double import apply_rotary_emb, get_nd_rotary_pos_embed
from torch import nn

from freeloc.testing import Example, noise, random_model

FILE = "hyvideo.models.transformers.hunyuanvideo_1_5_transformer"


def parallel_attention(q, k, v, img_q_len, img_kv_len, attn_mode=None, text_mask=None, attn_param=None, block_idx=None):
    """Pairs of (batch, tokens, heads, head_dim) to (batch, all tokens, channels)."""
    q, k, v = (torch.cat(pair, dim=1).transpose(1, 2) for pair in (q, k, v))
    shown = F.pad(text_mask.bool(), (img_kv_len, 0), value=True)
    return F.scaled_dot_product_attention(q, k, v, shown[:, None, None]).transpose(1, 2).flatten(2)


def heads(x, count):
    return x.unflatten(2, (3, count, -1)).unbind(2)


class MMDoubleStreamBlock(nn.Module):
    def __init__(self, hidden_size, heads_num, attn_mode):
        super().__init__()
        self.heads_num, self.attn_mode = heads_num, attn_mode
        for stream in ("img", "txt"):
            setattr(self, f"{stream}_attn_qkv", nn.Linear(hidden_size, 3 * hidden_size))
            setattr(self, f"{stream}_attn_proj", nn.Linear(hidden_size, hidden_size))
        self.img_attn_q_norm = nn.RMSNorm(hidden_size // heads_num, eps=1e-6)
        self.img_attn_k_norm = nn.RMSNorm(hidden_size // heads_num, eps=1e-6)

    def forward(self, img, txt, freqs_cis=None, text_mask=None):
        file = sys.modules[FILE]
        img_q, img_k, img_v = heads(self.img_attn_qkv(F.layer_norm(img, img.shape[-1:])), self.heads_num)
        img_q, img_k = self.img_attn_q_norm(img_q), self.img_attn_k_norm(img_k)
        img_q, img_k = file.apply_rotary_emb(img_q, img_k, freqs_cis, head_first=False)
        txt_q, txt_k, txt_v = heads(self.txt_attn_qkv(F.layer_norm(txt, txt.shape[-1:])), self.heads_num)
        attn = file.parallel_attention(
            (img_q, txt_q), (img_k, txt_k), (img_v, txt_v), img_q_len=img_q.shape[1], img_kv_len=img_k.shape[1],
            text_mask=text_mask, attn_mode=self.attn_mode, attn_param={}, block_idx=0,
        )  # fmt: skip
        tokens = img.shape[1]
        return img + self.img_attn_proj(attn[:, :tokens]), txt + self.txt_attn_proj(attn[:, tokens:])


class MMSingleStreamBlock(nn.Module):
    def __init__(self, hidden_size, heads_num, attn_mode):
        super().__init__()
        self.heads_num, self.attn_mode = heads_num, attn_mode
        self.linear1, self.linear2 = nn.Linear(hidden_size, 3 * hidden_size), nn.Linear(hidden_size, hidden_size)

    def forward(self, x, txt_len, freqs_cis=None, text_mask=None):
        file = sys.modules[FILE]
        q, k, v = heads(self.linear1(F.layer_norm(x, x.shape[-1:])), self.heads_num)
        (img_q, txt_q), (img_k, txt_k), (img_v, txt_v) = (
            (tensor[:, :-txt_len], tensor[:, -txt_len:]) for tensor in (q, k, v)
        )
        img_q, img_k = file.apply_rotary_emb(img_q, img_k, freqs_cis, head_first=False)
        attn = file.parallel_attention(
            (img_q, txt_q), (img_k, txt_k), (img_v, txt_v), img_q_len=img_q.shape[1], img_kv_len=img_k.shape[1],
            text_mask=text_mask, attn_mode=self.attn_mode, attn_param={},
        )  # fmt: skip
        return x + self.linear2(attn)


class HunyuanVideo_1_5_DiffusionTransformer(nn.Module):  # noqa: N801  # reason: the original's name
    def __init__(self, hidden_size=48, heads_num=2, channels=4, text=16, attn_mode="torch"):
        super().__init__()
        self.patch_size, self.rope_dim_list, self.rope_theta = [1, 2, 2], [8, 8, 8], 256
        self.heads_num = heads_num
        self.img_in = nn.Conv3d(channels, hidden_size, kernel_size=(1, 2, 2), stride=(1, 2, 2))
        self.txt_in = nn.Linear(text, hidden_size)
        blocks = MMDoubleStreamBlock, MMSingleStreamBlock
        self.double_blocks, self.single_blocks = (
            nn.ModuleList(block(hidden_size, heads_num, attn_mode) for _ in range(2)) for block in blocks
        )
        self.final_layer = nn.Linear(hidden_size, channels * 4)

    def forward(self, hidden_states, text_states, encoder_attention_mask):
        img, txt = self.img_in(hidden_states), self.txt_in(text_states)
        freqs_cis = get_nd_rotary_pos_embed(self.rope_dim_list, img.shape[2:], theta=self.rope_theta)
        img = img.flatten(2).mT
        tokens = img.shape[1]
        for block in self.double_blocks:
            img, txt = block(img, txt, freqs_cis=freqs_cis, text_mask=encoder_attention_mask)
        x = torch.cat([img, txt], dim=1)
        for block in self.single_blocks:
            x = block(x, txt_len=txt.shape[1], freqs_cis=freqs_cis, text_mask=encoder_attention_mask)
        return (self.final_layer(x[:, :tokens]), None)


def install() -> list[str]:
    """Install the double under the names of the original's modules. Returns these names."""
    names = ["hyvideo", "hyvideo.models", "hyvideo.models.transformers", FILE]
    for name in names:
        sys.modules[name] = types.ModuleType(name)
    for cls in (MMDoubleStreamBlock, MMSingleStreamBlock, HunyuanVideo_1_5_DiffusionTransformer):
        cls.__module__ = FILE
        setattr(sys.modules[FILE], cls.__name__, cls)
    vars(sys.modules[FILE]).update(parallel_attention=parallel_attention, apply_rotary_emb=apply_rotary_emb)
    return names


def model(**changes):
    """A small one, whose attention is far from uniform."""
    install()
    return random_model(lambda: HunyuanVideo_1_5_DiffusionTransformer(**changes), sharpness=2)


def inputs(frames, height, width, batch):
    mask = torch.ones(batch, 5, dtype=torch.long)
    mask[-1, 3:] = 0
    return {
        "hidden_states": noise(batch, 4, frames, 2 * height, 2 * width),
        "text_states": noise(batch, 5, 16),
        "encoder_attention_mask": mask,
    }


EXAMPLES = [Example("hunyuan-video-1.5-original", model, inputs)]
