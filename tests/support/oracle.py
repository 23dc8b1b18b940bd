"""An oracle that shares no code with the engine: Wan's attention from un-rotated q and k and dense logits.

For every pair of frames it builds rotary tables at the positions of the plan and rotates q and k from scratch.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from freeloc import FramePlan


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate interleaved channel pairs of (..., head_dim) by angles (..., head_dim / 2)."""
    pairs = torch.view_as_complex(x.double().reshape(*x.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def _angles(positions: Tensor, channels: int) -> Tensor:
    frequencies = 1 / 10_000 ** (torch.arange(0, channels, 2, dtype=torch.float64) / channels)
    return positions[..., None] * frequencies


def wan_logits(q: Tensor, k: Tensor, plan: FramePlan, height: int, width: int) -> Tensor:
    """(batch, heads, tokens, tokens) logits of un-rotated (batch, tokens, heads, head_dim) q and k."""
    positions = plan.positions
    frames, n, dim = len(positions), height * width, q.shape[-1]
    side = 2 * (dim // 6)
    row = torch.arange(height, dtype=torch.float64)[:, None].expand(height, width).flatten()
    column = torch.arange(width, dtype=torch.float64)[None, :].expand(height, width).flatten()
    space = torch.cat([_angles(row, side), _angles(column, side)], dim=-1)  # (n, side)
    logits = torch.empty(q.shape[0], q.shape[2], frames * n, frames * n, dtype=torch.float64)
    still = torch.cat([torch.zeros(n, (dim - 2 * side) // 2, dtype=torch.float64), space], dim=-1)
    keys = _rotate(k.unflatten(1, (frames, n)).permute(0, 3, 1, 2, 4), still)  # (batch, heads, frames, n, dim)
    for i in range(frames):
        tokens = q[:, i * n : (i + 1) * n].transpose(1, 2)[:, :, None].expand(-1, -1, frames, -1, -1)
        temporal = _angles(positions[i], dim - 2 * side)
        if plan.frequencies is not None:
            ones = _angles(torch.ones(1, dtype=torch.float64), dim - 2 * side)[0]
            temporal = positions[i][:, None] * plan.frequencies(ones)
        temporal = temporal[:, None].expand(-1, n, -1)
        # The query is at positions[i, j] relative to key frame j, which is at 0.
        queries = _rotate(tokens, torch.cat([temporal, space.expand(frames, -1, -1)], dim=-1))
        block = queries @ keys.mT  # (batch, heads, frames, n, n)
        logits[:, :, i * n : (i + 1) * n] = block.transpose(2, 3).flatten(3)
    logits = logits * dim**-0.5 * plan.scale_at(n)
    if plan.decay is not None:
        for i in range(frames):
            for j in range(frames):
                block = logits[:, :, i * n : (i + 1) * n, j * n : (j + 1) * n]
                block += block.clamp(min=0) * (plan.decay[i, j] - 1)
    if plan.bias is not None:
        logits += plan.bias.repeat_interleave(n, dim=0).repeat_interleave(n, dim=1)
    return logits


class OracleProcessor:
    """A diffusers attention processor for Wan's self-attention."""

    def __init__(self, plan: Callable[[int], FramePlan], height: int, width: int) -> None:
        self.plan, self.height, self.width = plan, height, width

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, mask: Any = None, rope: Any = None
    ) -> Tensor:
        q, k, v = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(hidden_states)), attn.to_v(hidden_states)
        q, k, v = (tensor.unflatten(2, (attn.heads, -1)) for tensor in (q, k, v))
        n = self.height * self.width
        plan = self.plan(hidden_states.shape[1] // n)
        logits = wan_logits(q, k, plan, self.height, self.width)
        logits = logits.masked_fill(~plan.token_mask(n), float("-inf"))
        out = logits.softmax(dim=-1) @ v.transpose(1, 2).double()
        return attn.to_out[0](out.transpose(1, 2).flatten(2).to(hidden_states.dtype))


def use_oracle(transformer: Any, plan: Callable[[int, int], FramePlan], height: int, width: int) -> None:
    """Give every layer of a WanTransformer3DModel the oracle; `plan` is called with (layer, frames)."""
    for layer, block in enumerate(transformer.blocks):
        block.attn1.set_processor(OracleProcessor(lambda frames, layer=layer: plan(layer, frames), height, width))


def use_oracle_of(model: Any, plan: Callable[[int, int], FramePlan], height: int, width: int) -> Any:
    """A copy of a model that has the oracle."""
    copied = copy.deepcopy(model)
    use_oracle(copied, plan, height, width)
    return copied
