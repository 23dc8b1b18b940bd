"""A model whose weights are set by hand, so that the best policy of each of its three layers is known.

Each layer denoises channels of its own, by one attention over all frames. Layer 0 averages over the whole clip: its
attention does not depend on positions. Layer 1 averages over near frames, which alone are alike; far
frames do harm. Layer 2 averages over frames with the same code, near or far, but its
attention is not sharp enough.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freeloc import Profile
from freeloc.adapter import Adapter, AttentionSite, Kernel, TemporalRope, TokenGrid

TRAINED, CODES, THETA = 5, 4, 4.0
BLIND, LOCAL, CROWDED = 0, 1, 2
HEAD_DIM = 12

KERNEL = Kernel(function="kernel", layout="b h l d", arguments=("q", "k", "v"), query="q", key="k", value="v")
ADAPTER = Adapter(
    name="constructed",
    family="constructed",
    classes=("constructed.Constructed",),
    sites=(AttentionSite("layers.*", kernel=KERNEL),),
    grid=TokenGrid("video", axes="b c f h w", patch=(1, 1, 1)),
    rope=TemporalRope(channels=4, theta=THETA),
    heads="heads",
    head_dim="head_dim",
)


def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


class Layer(nn.Module):
    """Averages the tokens: over all, over near frames, or over those with the same code."""

    def __init__(self, kind: int) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, tokens: Tensor, frames: int) -> Tensor:
        batch, count, channels = tokens.shape
        query = torch.zeros(batch, 1, count, HEAD_DIM)
        if self.kind == LOCAL:
            query[..., 0:4:2] = 1.6
        if self.kind == CROWDED:
            query[..., 4 : 4 + CODES] = 2.6 * F.normalize(tokens[:, None, :, 3 : 3 + CODES], dim=-1)
        turned = turn(query, frames)
        value = F.pad(tokens, (0, HEAD_DIM - channels))[:, None]
        return kernel(turned, turned, value)[:, 0, :, :channels]


class Constructed(nn.Module):
    """Predicts noise - latents of a video (batch, 3 + codes, frames, height, width) at a timestep from 0 to 1000."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.head_dim = 1, HEAD_DIM
        self.layers = nn.ModuleList(Layer(kind) for kind in (BLIND, LOCAL, CROWDED))
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, video: Tensor, timestep: Tensor) -> Tensor:
        level = timestep.view(-1, 1, 1, 1, 1) / 1000
        noisy = video / (1 - level).clamp(min=0.01)
        tokens = noisy.flatten(2).mT
        clean = noisy.clone()
        for kind, layer in enumerate(self.layers):
            clean[:, kind] = layer(tokens, video.shape[2]).mT.view_as(noisy)[:, kind]
        return (video - clean) / level


def turn(query: Tensor, frames: int) -> Tensor:
    """Rotate pairs of the first four channels (batch, heads, tokens, channels) by the frame."""
    frame = torch.arange(frames).repeat_interleave(query.shape[2] // frames).double()
    angles = frame[:, None] * THETA ** (-torch.arange(2) / 2)
    cos, sin = angles.cos().float(), angles.sin().float()
    even, odd = query[..., 0:4:2], query[..., 1:4:2]
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
    return torch.cat([turned, query[..., 4:]], dim=-1)


def clips(count: int = 8, frames: int = 4 * (TRAINED - 1) + 1) -> Tensor:
    """Clips (count, 3 + codes, frames, 2, 2) that the three layers denoise."""
    generator = torch.Generator().manual_seed(1)
    steady = torch.randn(count, 1, 1, generator=generator).expand(-1, 1, frames)
    steps, walk = torch.randn(count, frames, generator=generator), [torch.zeros(count)]
    for frame in range(frames):
        walk.append(0.6 * walk[-1] + 0.8 * steps[:, frame])
    code = torch.arange(frames).remainder(CODES).expand(count, -1)  # alike are frames that are far apart
    of_code = torch.randn(count, CODES, generator=generator).gather(1, code)
    codes = 4 * F.one_hot(code, CODES).float().mT
    channels = torch.cat([steady, torch.stack(walk[1:], dim=-1)[:, None], of_code[:, None], codes], dim=1)
    return channels[..., None, None].expand(-1, -1, -1, 2, 2).contiguous()


def run_of(model: nn.Module) -> Any:
    """A run that only calls the model, at the time of noise."""

    def run(prompt: Any, latent_frames: int) -> Tensor:
        generator = torch.Generator().manual_seed(len(str(prompt)))
        noise = torch.randn(1, 3 + CODES, latent_frames, 2, 2, generator=generator)
        return model(noise, torch.full((1,), 1000.0))

    return run


PROFILE = Profile.model_validate(
    {
        "adapter": "constructed",
        "model": {
            "name": "constructed",
            "layers": 3,
            "heads": 1,
            "head_dim": HEAD_DIM,
            "trained_latent_frames": TRAINED,
        },
        "layers": {"vrpr": [BLIND, LOCAL, CROWDED]},
        "provenance": {"kind": "default", "source": "a test"},
    }
)
