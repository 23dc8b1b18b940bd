"""A double of the original HunyuanVideo repository's transformer: the same names, shapes and calls, on the CPU.

It keeps what the adapter relies on: blocks that compute attention themselves, by a function that their file imports
by name; queries and keys rotated before that, video first and text last; and a batch that is one long sequence, in
which each sample's valid tokens are one segment and its padded text is another. Everything else is minimal.
"""

import itertools
import sys
import types

import torch
import torch.nn.functional as F
from torch import nn

from freeloc.testing import Example, noise

TEXT, TEXT_2 = 12, 8


def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k):
    """Plain attention within each segment of (all tokens, heads, head_dim)."""
    assert torch.equal(cu_seqlens_q, cu_seqlens_k)
    out = torch.empty_like(q)
    for segment in itertools.starmap(slice, itertools.pairwise(cu_seqlens_q.tolist())):
        logits = torch.einsum("qhd,khd->hqk", q[segment], k[segment]) * q.shape[-1] ** -0.5
        out[segment] = torch.einsum("hqk,khd->qhd", logits.softmax(dim=-1), v[segment])
    return out


def attention(
    q,
    k,
    v,
    mode="flash",
    drop_rate=0,
    attn_mask=None,
    causal=False,
    cu_seqlens_q=None,
    cu_seqlens_kv=None,
    max_seqlen_q=None,
    max_seqlen_kv=None,
    batch_size=1,
):
    """(batch, tokens, heads, head_dim) to (batch, tokens, channels), in one of three ways."""
    if mode == "flash":
        flat = (tensor.flatten(0, 1) for tensor in (q, k, v))
        out = flash_attn_varlen_func(*flat, cu_seqlens_q, cu_seqlens_kv, max_seqlen_q, max_seqlen_kv)
        return out.view(batch_size, max_seqlen_q, -1)
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    if mode == "torch":
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=drop_rate, is_causal=causal)
    elif mode == "vanilla":
        logits = q @ k.mT / q.shape[-1] ** 0.5
        if attn_mask is not None:
            logits = logits.masked_fill(~attn_mask, -torch.inf)
        out = logits.softmax(dim=-1) @ v
    else:
        raise NotImplementedError(mode)
    return out.transpose(1, 2).flatten(2)


def parallel_attention(hybrid_seq_parallel_attn, q, k, v, img_q_len, img_kv_len, cu_seqlens_q, cu_seqlens_kv):
    return hybrid_seq_parallel_attn(q, k, v).flatten(2)


def get_cu_seqlens(text_mask, img_len):
    tokens = img_len + text_mask.shape[1]
    starts = tokens * torch.arange(len(text_mask))
    ends = torch.stack([starts + img_len + text_mask.sum(dim=1), starts + tokens], dim=1)
    return F.pad(ends.flatten(), (1, 0)).int()


def get_nd_rotary_pos_embed(rope_dim_list, start, theta=10_000.0):
    """Tables of cosines and sines (tokens, head_dim)."""
    grid = torch.meshgrid(*(torch.arange(size).float() for size in start), indexing="ij")
    angles = [
        torch.outer(axis.flatten(), 1 / theta ** (torch.arange(0, channels, 2) / channels))
        for axis, channels in zip(grid, rope_dim_list, strict=True)
    ]
    angles = torch.cat(angles, dim=1).repeat_interleave(2, dim=1)
    return angles.cos(), angles.sin()


def apply_rotary_emb(xq, xk, freqs_cis, head_first=False):
    cos, sin = (table[:, None, :] for table in freqs_cis)
    quarter = [torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(3).float() for x in (xq, xk)]
    return tuple(
        (x.float() * cos + quarter_rotated * sin).type_as(x)
        for x, quarter_rotated in zip((xq, xk), quarter, strict=True)
    )


def place(block):
    """The file's globals, where names are looked up at each call."""
    return sys.modules[type(block).__module__]


class SingleTokenRefiner(nn.Module):
    """Attention among text tokens, by the same function imported into another file."""

    def __init__(self, in_channels, hidden_size, heads_num):
        super().__init__()
        self.heads_num = heads_num
        self.input_embedder = nn.Linear(in_channels, hidden_size)
        self.self_attn_qkv = nn.Linear(hidden_size, 3 * hidden_size)

    def forward(self, x, t, mask=None):
        x = self.input_embedder(x)
        q, k, v = self.self_attn_qkv(x).unflatten(2, (3, self.heads_num, -1)).unbind(2)
        return x + place(self).attention(q, k, v, mode="torch", attn_mask=mask[:, None, None, :].bool())


class MMDoubleStreamBlock(nn.Module):
    def __init__(self, hidden_size, heads_num):
        super().__init__()
        self.heads_num = heads_num
        head_dim = hidden_size // heads_num
        for stream in ("img", "txt"):
            setattr(self, f"{stream}_mod", nn.Linear(hidden_size, hidden_size))
            setattr(self, f"{stream}_attn_qkv", nn.Linear(hidden_size, 3 * hidden_size))
            setattr(self, f"{stream}_attn_q_norm", nn.RMSNorm(head_dim, eps=1e-6))
            setattr(self, f"{stream}_attn_k_norm", nn.RMSNorm(head_dim, eps=1e-6))
            setattr(self, f"{stream}_attn_proj", nn.Linear(hidden_size, hidden_size))
        self.hybrid_seq_parallel_attn = None

    def heads(self, stream, x, vec):
        part = self.get_submodule
        x = F.layer_norm(x, x.shape[-1:]) + part(f"{stream}_mod")(vec)[:, None]
        q, k, v = part(f"{stream}_attn_qkv")(x).unflatten(2, (3, self.heads_num, -1)).unbind(2)
        return part(f"{stream}_attn_q_norm")(q).to(v), part(f"{stream}_attn_k_norm")(k).to(v), v

    def forward(
        self,
        img,
        txt,
        vec,
        cu_seqlens_q=None,
        cu_seqlens_kv=None,
        max_seqlen_q=None,
        max_seqlen_kv=None,
        freqs_cis=None,
    ):
        img_q, img_k, img_v = self.heads("img", img, vec)
        txt_q, txt_k, txt_v = self.heads("txt", txt, vec)
        if freqs_cis is not None:
            img_q, img_k = place(self).apply_rotary_emb(img_q, img_k, freqs_cis, head_first=False)
        q = torch.cat((img_q, txt_q), dim=1)
        k = torch.cat((img_k, txt_k), dim=1)
        v = torch.cat((img_v, txt_v), dim=1)
        attn = attention_of(
            self, q, k, v, img.shape[1], (cu_seqlens_q, cu_seqlens_kv, max_seqlen_q, max_seqlen_kv, img_k.shape[0])
        )
        img_attn, txt_attn = attn[:, : img.shape[1]], attn[:, img.shape[1] :]
        return img + self.img_attn_proj(img_attn), txt + self.txt_attn_proj(txt_attn)


class MMSingleStreamBlock(nn.Module):
    def __init__(self, hidden_size, heads_num):
        super().__init__()
        self.heads_num = heads_num
        self.modulation = nn.Linear(hidden_size, hidden_size)
        self.linear1 = nn.Linear(hidden_size, 4 * hidden_size)
        self.linear2 = nn.Linear(2 * hidden_size, hidden_size)
        self.q_norm = nn.RMSNorm(hidden_size // heads_num, eps=1e-6)
        self.k_norm = nn.RMSNorm(hidden_size // heads_num, eps=1e-6)
        self.hybrid_seq_parallel_attn = None

    def forward(
        self,
        x,
        vec,
        txt_len,
        cu_seqlens_q=None,
        cu_seqlens_kv=None,
        max_seqlen_q=None,
        max_seqlen_kv=None,
        freqs_cis=None,
    ):
        x_mod = F.layer_norm(x, x.shape[-1:]) + self.modulation(vec)[:, None]
        qkv, mlp = self.linear1(x_mod).split([3 * x.shape[-1], x.shape[-1]], dim=-1)
        q, k, v = qkv.unflatten(2, (3, self.heads_num, -1)).unbind(2)
        q, k = self.q_norm(q).to(v), self.k_norm(k).to(v)
        if freqs_cis is not None:
            img_q, img_k = place(self).apply_rotary_emb(q[:, :-txt_len], k[:, :-txt_len], freqs_cis, head_first=False)
            q, k = torch.cat((img_q, q[:, -txt_len:]), dim=1), torch.cat((img_k, k[:, -txt_len:]), dim=1)
        attn = attention_of(
            self, q, k, v, x.shape[1] - txt_len, (cu_seqlens_q, cu_seqlens_kv, max_seqlen_q, max_seqlen_kv, len(x))
        )
        return x + self.linear2(torch.cat((attn, F.gelu(mlp)), dim=2))


def attention_of(block, q, k, v, img_len, lengths):
    """The attention of either block, called as in the original."""
    cu_seqlens_q, cu_seqlens_kv, max_seqlen_q, max_seqlen_kv, batch_size = lengths
    if block.hybrid_seq_parallel_attn:
        return place(block).parallel_attention(
            block.hybrid_seq_parallel_attn,
            q,
            k,
            v,
            img_q_len=img_len,
            img_kv_len=img_len,
            cu_seqlens_q=cu_seqlens_q,
            cu_seqlens_kv=cu_seqlens_kv,
        )
    return place(block).attention(
        q,
        k,
        v,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_kv=cu_seqlens_kv,
        max_seqlen_q=max_seqlen_q,
        max_seqlen_kv=max_seqlen_kv,
        batch_size=batch_size,
    )


class HYVideoDiffusionTransformer(nn.Module):
    def __init__(
        self,
        args,
        patch_size=(1, 2, 2),
        in_channels=4,
        hidden_size=48,
        heads_num=2,
        mm_double_blocks_depth=2,
        mm_single_blocks_depth=2,
        rope_dim_list=(8, 8, 8),
    ):
        super().__init__()
        self.patch_size, self.rope_dim_list = list(patch_size), list(rope_dim_list)
        self.hidden_size, self.heads_num = hidden_size, heads_num
        self.img_in = nn.Conv3d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size)
        self.txt_in = SingleTokenRefiner(args.text_states_dim, hidden_size, heads_num)
        self.time_in = nn.Linear(1, hidden_size)
        self.vector_in = nn.Linear(args.text_states_dim_2, hidden_size)
        self.double_blocks = nn.ModuleList(
            MMDoubleStreamBlock(hidden_size, heads_num) for _ in range(mm_double_blocks_depth)
        )
        self.single_blocks = nn.ModuleList(
            MMSingleStreamBlock(hidden_size, heads_num) for _ in range(mm_single_blocks_depth)
        )
        self.final_layer = nn.Linear(hidden_size, in_channels * 4)

    def forward(
        self,
        x,
        t,
        text_states=None,
        text_mask=None,
        text_states_2=None,
        freqs_cos=None,
        freqs_sin=None,
        guidance=None,
        return_dict=True,
    ):
        dtype = self.final_layer.weight.dtype
        vec = self.time_in(t[:, None].to(dtype) / 1000) + self.vector_in(text_states_2)
        img = self.img_in(x).flatten(2).mT
        txt = self.txt_in(text_states, t, text_mask)
        img_seq_len, txt_seq_len = img.shape[1], txt.shape[1]
        cu_seqlens = place(self).get_cu_seqlens(text_mask, img_seq_len)
        lengths = cu_seqlens, cu_seqlens, img_seq_len + txt_seq_len, img_seq_len + txt_seq_len
        freqs_cis = (freqs_cos, freqs_sin) if freqs_cos is not None else None
        for block in self.double_blocks:
            img, txt = block(img, txt, vec, *lengths, freqs_cis)
        x = torch.cat((img, txt), dim=1)
        for block in self.single_blocks:
            x = block(x, vec, txt_seq_len, *lengths, (freqs_cos, freqs_sin))
        img = self.final_layer(x[:, :img_seq_len])
        return {"x": img} if return_dict else img


def install() -> list[str]:
    """Install the double under the names of the original's modules. Returns these names."""
    blocks = (MMDoubleStreamBlock, MMSingleStreamBlock, HYVideoDiffusionTransformer)
    functions = (attention, parallel_attention, get_cu_seqlens)
    places = {
        "hyvideo": (),
        "hyvideo.modules": (),
        "hyvideo.modules.attenion": functions,
        "hyvideo.modules.posemb_layers": (apply_rotary_emb, get_nd_rotary_pos_embed),
        "hyvideo.modules.token_refiner": (SingleTokenRefiner, attention),
        "hyvideo.modules.models": (*blocks, *functions, apply_rotary_emb, SingleTokenRefiner),
    }
    for name in places:
        sys.modules[name] = types.ModuleType(name)
    for name, things in places.items():
        for thing in things:
            setattr(sys.modules[name], thing.__name__, thing)
    for cls in blocks:
        cls.__module__ = "hyvideo.modules.models"
    SingleTokenRefiner.__module__ = "hyvideo.modules.token_refiner"
    return list(places)


def model(**changes):
    """A small one, whose attention is far from uniform."""
    install()
    args = types.SimpleNamespace(text_states_dim=TEXT, text_states_dim_2=TEXT_2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = HYVideoDiffusionTransformer(args, **changes).eval().requires_grad_(False)
    for name, parameter in made.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            parameter.mul_(2)
    return made


def inputs(frames, height, width, batch, text=(5, 2)):
    """For a grid of tokens, with numbers of valid text tokens that the samples use in rotation."""
    cos, sin = get_nd_rotary_pos_embed((8, 8, 8), (frames, height, width), theta=256)
    valid = torch.tensor([text[sample % len(text)] for sample in range(batch)])
    return {
        "x": noise(batch, 4, frames, 2 * height, 2 * width),
        "t": torch.full((batch,), 500),
        "text_states": noise(batch, max(text), TEXT),
        "text_mask": (torch.arange(max(text)) < valid[:, None]).long(),
        "text_states_2": noise(batch, TEXT_2),
        "freqs_cos": cos,
        "freqs_sin": sin,
    }


EXAMPLES = [Example("hunyuan-video-original", model, inputs, video="x")]
