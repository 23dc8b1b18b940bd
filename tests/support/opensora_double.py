"""Doubles of Open-Sora's transformers, 2.0 and 1.2: the same names, shapes and calls, on the CPU.

It keeps what the adapters rely on. In 2.0: `forward` set on the instance, blocks whose processors call `attention`,
which rotates text and video by a table for both and then calls `flash_attn_func` of its own file, and coordinates of
every token. In 1.2: alternating spatial and temporal blocks, whose attention is two products, or a kernel where it is
enabled and the sequences are longer than their number. Everything else is minimal.
"""

import sys
import types
from dataclasses import dataclass

import einops
import torch
import torch.nn.functional as F
from torch import nn

from freeloc.testing import Example, noise

TEXT, VECTOR = 12, 8


def place(name):
    """A file's globals, where names are looked up at each call."""
    return sys.modules[f"opensora.models.{name}"]


# 2.0: opensora/models/mmdit/math.py


def flash_attn_func(q, k, v):
    """Plain attention on (batch, tokens, heads, head_dim)."""
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bhqk,bkhd->bqhd", logits.softmax(dim=-1), v)


class LigerRopeFunction:
    """Rotates channels (i, i + head_dim / 2) of (batch, heads, tokens, head_dim)."""

    @staticmethod
    def apply(q, k, cos, sin):
        cos, sin = cos[:, None], sin[:, None]
        return tuple(
            (x * cos + torch.cat([-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]], dim=-1) * sin).type_as(x)
            for x in (q, k)
        )


def apply_rope(xq, xk, freqs_cis):
    """Rotates channels (2 i, 2 i + 1), by matrices."""
    pairs = ((x, x.float().unflatten(-1, (-1, 2))) for x in (xq, xk))
    return tuple(torch.einsum("bhlpij,bhlpj->bhlpi", freqs_cis, pair).flatten(-2).type_as(x) for x, pair in pairs)


def attention(q, k, v, pe):
    math = place("mmdit.math")
    if isinstance(pe, torch.Tensor):
        q, k = math.apply_rope(q, k, pe)
    else:
        q, k = math.LigerRopeFunction.apply(q, k, *pe)
    return math.flash_attn_func(*(tensor.transpose(1, 2) for tensor in (q, k, v))).flatten(2)


def angles_of(ids, axes_dim, theta, dtype):
    """Of every token and pair, (batch, tokens, pairs): those of time, then of rows, then of columns."""
    return torch.cat(
        [
            ids[..., axis, None] / theta ** (torch.arange(0, channels, 2, dtype=dtype) / channels)
            for axis, channels in enumerate(axes_dim)
        ],
        dim=-1,
    )


# 2.0: opensora/models/mmdit/layers.py


class EmbedND(nn.Module):
    def __init__(self, dim, theta, axes_dim):
        super().__init__()
        self.dim, self.theta, self.axes_dim = dim, theta, axes_dim

    def forward(self, ids):
        angles = angles_of(ids, self.axes_dim, self.theta, torch.float64)
        matrices = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], dim=-1)
        return matrices.unflatten(-1, (2, 2)).float()[:, None]


class LigerEmbedND(EmbedND):
    def forward(self, ids):
        angles = angles_of(ids, self.axes_dim, self.theta, torch.float32)
        return tuple(table.repeat(1, 1, 2) for table in (angles.cos(), angles.sin()))


class QKNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.query_norm, self.key_norm = nn.RMSNorm(dim, eps=1e-6), nn.RMSNorm(dim, eps=1e-6)

    def forward(self, q, k, v):
        return self.query_norm(q).to(v), self.key_norm(k).to(v)


class SelfAttention(nn.Module):
    """Holds the layers of one stream of a block. Its forward is never called."""

    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim) for _ in range(3))
        self.norm = QKNorm(dim // num_heads)
        self.proj = nn.Linear(dim, dim)

    def heads(self, x):
        """(batch, heads, tokens, head_dim) each."""
        q, k, v = (part(x).unflatten(2, (self.num_heads, -1)) for part in (self.q_proj, self.k_proj, self.v_proj))
        q, k = self.norm(q, k, v)
        return tuple(tensor.transpose(1, 2) for tensor in (q, k, v))


class DoubleStreamBlockProcessor:
    def __call__(self, attn, img, txt, vec, pe):
        streams = []
        for part, mod, x in ((attn.txt_attn, attn.txt_mod, txt), (attn.img_attn, attn.img_mod, img)):
            streams.append(part.heads(F.layer_norm(x, x.shape[-1:]) + mod(vec)[:, None]))
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(*streams, strict=True))
        attn1 = place("mmdit.layers").attention(q, k, v, pe=pe)
        txt_attn, img_attn = attn1[:, : txt.shape[1]], attn1[:, txt.shape[1] :]
        return img + attn.img_attn.proj(img_attn), txt + attn.txt_attn.proj(txt_attn)


class DoubleStreamBlock(nn.Module):
    def __init__(self, hidden_size, num_heads):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, hidden_size // num_heads
        self.img_mod, self.txt_mod = nn.Linear(hidden_size, hidden_size), nn.Linear(hidden_size, hidden_size)
        self.img_attn, self.txt_attn = SelfAttention(hidden_size, num_heads), SelfAttention(hidden_size, num_heads)
        self.processor = DoubleStreamBlockProcessor()

    def forward(self, img, txt, vec, pe, **kwargs):
        return self.processor(self, img, txt, vec, pe)


class SingleStreamBlockProcessor:
    def __call__(self, attn, x, vec, pe):
        x_mod = F.layer_norm(x, x.shape[-1:]) + attn.modulation(vec)[:, None]
        v, mlp = attn.v_mlp(x_mod).chunk(2, dim=-1)
        q, k, v = (
            tensor.unflatten(2, (attn.num_heads, -1)).transpose(1, 2)
            for tensor in (attn.q_proj(x_mod), attn.k_proj(x_mod), v)
        )
        q, k = attn.norm(q, k, v)
        attn_1 = place("mmdit.layers").attention(q, k, v, pe=pe)
        return x + attn.linear2(torch.cat((attn_1, F.gelu(mlp)), dim=2))


class SingleStreamBlock(nn.Module):
    def __init__(self, hidden_size, num_heads):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, hidden_size // num_heads
        self.q_proj, self.k_proj = nn.Linear(hidden_size, hidden_size), nn.Linear(hidden_size, hidden_size)
        self.v_mlp = nn.Linear(hidden_size, 2 * hidden_size)
        self.linear2 = nn.Linear(2 * hidden_size, hidden_size)
        self.norm = QKNorm(self.head_dim)
        self.modulation = nn.Linear(hidden_size, hidden_size)
        self.processor = SingleStreamBlockProcessor()

    def forward(self, x, vec, pe, **kwargs):
        return self.processor(self, x, vec, pe)


# 2.0: opensora/models/mmdit/model.py


@dataclass
class MMDiTConfig:
    in_channels: int = 16
    vec_in_dim: int = VECTOR
    context_in_dim: int = TEXT
    hidden_size: int = 48
    num_heads: int = 2
    depth: int = 2
    depth_single_blocks: int = 2
    axes_dim: tuple[int, ...] = (8, 8, 8)
    theta: int = 10_000
    use_liger_rope: bool = False


class MMDiTModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.hidden_size, self.num_heads = config.hidden_size, config.num_heads
        embedder = LigerEmbedND if config.use_liger_rope else EmbedND
        self.pe_embedder = embedder(config.hidden_size // config.num_heads, config.theta, config.axes_dim)
        self.img_in = nn.Linear(config.in_channels, config.hidden_size)
        self.time_in = nn.Linear(1, config.hidden_size)
        self.vector_in = nn.Linear(config.vec_in_dim, config.hidden_size)
        self.txt_in = nn.Linear(config.context_in_dim, config.hidden_size)
        sizes = config.hidden_size, config.num_heads
        self.double_blocks = nn.ModuleList(DoubleStreamBlock(*sizes) for _ in range(config.depth))
        self.single_blocks = nn.ModuleList(SingleStreamBlock(*sizes) for _ in range(config.depth_single_blocks))
        self.final_layer = nn.Linear(config.hidden_size, config.in_channels)
        self.forward = self.forward_ckpt

    def forward_ckpt(self, img, img_ids, txt, txt_ids, timesteps, y_vec, cond=None, guidance=None, **kwargs):
        img, txt = self.img_in(img), self.txt_in(txt)
        vec = self.time_in(timesteps[:, None]) + self.vector_in(y_vec)
        pe = self.pe_embedder(torch.cat((txt_ids, img_ids), dim=1))
        for block in self.double_blocks:
            img, txt = block(img, txt, vec, pe)
        img = torch.cat((txt, img), dim=1)
        for block in self.single_blocks:
            img = block(img, vec, pe)
        return self.final_layer(img[:, txt.shape[1] :])


# 1.2: rotary_embedding_torch, opensora/models/layers/blocks.py


class RotaryEmbedding(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.freqs = nn.Parameter(10_000 ** -(torch.arange(0, dim, 2) / dim))

    def rotate_queries_or_keys(self, t):
        """Rotates channels (2 i, 2 i + 1) of (batch, heads, tokens, head_dim) by the position of the token."""
        angles = torch.outer(torch.arange(t.shape[-2]).to(self.freqs), self.freqs)
        a, b = t[..., ::2], t[..., 1::2]
        return torch.stack([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], dim=-1).flatten(
            -2
        )


def flash_attn(q, k, v, softmax_scale):
    """Stands for the function that `Attention` imports from flash_attn."""
    return flash_attn_func(q, k, v)


class Attention(nn.Module):
    def __init__(self, dim, num_heads, enable_flash_attn=False, rope=None):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.scale = self.head_dim**-0.5
        self.enable_flash_attn = enable_flash_attn
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm, self.k_norm = nn.RMSNorm(self.head_dim, eps=1e-6), nn.RMSNorm(self.head_dim, eps=1e-6)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(dim, dim)
        self.rope = rope is not None
        self.rotary_emb = rope

    def heads(self, x):
        """(batch, heads, tokens, head_dim) each, not rotated."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.q_norm(q), self.k_norm(k), v

    def forward(self, x):
        q, k, v = self.heads(x)
        if self.rope:
            q, k = self.rotary_emb(q), self.rotary_emb(k)
        if self.enable_flash_attn and x.shape[1] > len(x):
            q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
            x = place("layers.blocks").flash_attn(q, k, v, softmax_scale=self.scale)
        else:
            q = q * self.scale
            attn = (q @ k.transpose(-2, -1)).float().softmax(dim=-1).to(q.dtype)
            x = (self.attn_drop(attn) @ v).transpose(1, 2)
        return self.proj(x.flatten(2))


# 1.2: opensora/models/stdit/stdit3.py


class STDiT3Block(nn.Module):
    def __init__(self, hidden_size, num_heads, rope=None, temporal=False, enable_flash_attn=False):
        super().__init__()
        self.temporal = temporal
        self.attn = Attention(hidden_size, num_heads, enable_flash_attn=enable_flash_attn, rope=rope)
        self.cross_attn = nn.Linear(hidden_size, hidden_size)
        self.scale_shift_table = nn.Parameter(torch.randn(2, hidden_size))

    def forward(self, x, y, t, mask=None, x_mask=None, t0=None, T=None, S=None):  # noqa: N803
        shift, gate = self.scale_shift_table
        one = "(B S) T C" if self.temporal else "(B T) S C"
        x_m = einops.rearrange(F.layer_norm(x, x.shape[-1:]) + shift + t[:, None], f"B (T S) C -> {one}", T=T, S=S)
        x_m = einops.rearrange(self.attn(x_m), f"{one} -> B (T S) C", T=T, S=S)
        return x + gate * x_m + self.cross_attn(y).mean(dim=1, keepdim=True)


class STDiT3(nn.Module):
    def __init__(self, hidden_size=48, num_heads=2, depth=4, in_channels=4, enable_flash_attn=False):
        super().__init__()
        self.hidden_size, self.num_heads, self.patch_size = hidden_size, num_heads, (1, 2, 2)
        self.rope = RotaryEmbedding(hidden_size // num_heads)
        self.x_embedder = nn.Conv3d(in_channels, hidden_size, kernel_size=self.patch_size, stride=self.patch_size)
        self.t_embedder, self.y_embedder = nn.Linear(1, hidden_size), nn.Linear(TEXT, hidden_size)
        sizes = {"hidden_size": hidden_size, "num_heads": num_heads, "enable_flash_attn": enable_flash_attn}
        rope = self.rope.rotate_queries_or_keys
        self.spatial_blocks = nn.ModuleList(STDiT3Block(**sizes) for _ in range(depth))
        self.temporal_blocks = nn.ModuleList(STDiT3Block(**sizes, rope=rope, temporal=True) for _ in range(depth))
        self.final_layer = nn.Linear(hidden_size, in_channels * 4)

    def forward(self, x, timestep, y, mask=None, x_mask=None, fps=None, height=None, width=None, **kwargs):
        x = F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))
        t, y = self.t_embedder(timestep[:, None] / 1000), self.y_embedder(y)
        x = self.x_embedder(x)
        T, S = x.shape[2], x.shape[3] * x.shape[4]  # noqa: N806
        x = x.flatten(2).mT
        for spatial_block, temporal_block in zip(self.spatial_blocks, self.temporal_blocks, strict=True):
            x = spatial_block(x, y, t, mask, x_mask, None, T, S)
            x = temporal_block(x, y, t, mask, x_mask, None, T, S)
        return self.final_layer(x)


def install() -> list[str]:
    """Install the doubles under the names of the originals' modules. Returns these names."""
    places = {
        "opensora": (),
        "opensora.models": (),
        "opensora.models.mmdit": (),
        "opensora.models.mmdit.math": (flash_attn_func, LigerRopeFunction, apply_rope, attention),
        "opensora.models.mmdit.layers": (
            *(EmbedND, LigerEmbedND, QKNorm, SelfAttention, DoubleStreamBlockProcessor, DoubleStreamBlock),
            *(SingleStreamBlockProcessor, SingleStreamBlock),
        ),
        "opensora.models.mmdit.model": (MMDiTConfig, MMDiTModel),
        "opensora.models.layers": (),
        "opensora.models.layers.blocks": (Attention, flash_attn),
        "opensora.models.stdit": (),
        "opensora.models.stdit.stdit3": (STDiT3Block, STDiT3),
    }
    for name, things in places.items():
        module = sys.modules[name] = types.ModuleType(name)
        for thing in things:
            setattr(module, thing.__name__, thing)
            if isinstance(thing, type):
                thing.__module__ = name
    place("mmdit.layers").attention = attention
    return list(places)


def made(make):
    """A small model, whose attention is far from uniform."""
    install()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith(("query_norm.weight", "key_norm.weight", "q_norm.weight", "k_norm.weight")):
            parameter.mul_(2)
    return model


def mmdit(use_liger_rope=True, **changes):
    return made(lambda: MMDiTModel(MMDiTConfig(use_liger_rope=use_liger_rope, **changes)))


def mmdit_inputs(frames, height, width, batch, text=5):
    """For a grid of tokens."""
    places = [torch.arange(size).float() for size in (frames, height, width)]
    img_ids = torch.stack(torch.meshgrid(*places, indexing="ij"), dim=-1).flatten(0, 2)
    return {
        "img": noise(batch, frames * height * width, 16),
        "img_ids": img_ids.repeat(batch, 1, 1),
        "txt": noise(batch, text, TEXT),
        "txt_ids": torch.zeros(batch, text, 3),
        "timesteps": torch.full((batch,), 0.5),
        "y_vec": noise(batch, VECTOR),
    }


def stdit(**changes):
    return made(lambda: STDiT3(**changes))


def stdit_inputs(frames, height, width, batch):
    """For a grid of tokens."""
    return {
        "x": noise(batch, 4, frames, 2 * height, 2 * width),
        "timestep": torch.full((batch,), 500.0),
        "y": noise(batch, 5, TEXT),
    }


PACKED = {"video": "img", "axes": "b (f h w) c"}
EXAMPLES = [
    Example("open-sora-2", mmdit, mmdit_inputs, **PACKED),
    Example("open-sora-2", lambda: mmdit(False), mmdit_inputs, name="open-sora-2-interleaved", **PACKED),
    Example("open-sora-1.2", stdit, stdit_inputs, video="x"),
]
