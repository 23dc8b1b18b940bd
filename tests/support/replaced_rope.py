"""A replaced rope: rotary tables of any family, whose temporal pairs are rotated by a factor more or less.

The tables are changed where a model passes them to its attention, so that this needs no code of the model.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from dense import Facts
from torch import Tensor


def times_factor(facts: Facts, factor: float) -> Facts:
    """The facts of a model whose temporal frequencies are multiplied by a factor."""

    def times(frames: int) -> Tensor:
        """The tables keep their own rounding, and the distance of a first frame; only the rest is exact."""
        known = facts.times(frames)
        index = torch.arange(frames, dtype=torch.float64).view(-1, *[1] * (known.ndim - 1))
        return (known + (factor - 1) * index) / factor

    return replace(facts, temporal=facts.temporal * factor, times=times)


def hook(facts: Facts, factor: float, frames: int, per_frame: int) -> Callable[..., Any]:
    """A pre-hook of attention modules that changes their tables; `facts` are those without the factor."""
    angles = (factor - 1) * facts.temporal * torch.arange(frames).view(-1, *[1] * facts.temporal.ndim)
    angles = angles.view(frames, -1, angles.shape[-1]).repeat_interleave(per_frame, 0)  # (tokens, heads or 1, pairs)

    def change(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        places = [*enumerate(args), *kwargs.items()]
        new = {name: _changed(value, angles, facts, per_frame) for name, value in places if name in facts.rotary}
        return tuple(new.get(place, value) for place, value in enumerate(args)), kwargs | {
            name: value for name, value in new.items() if isinstance(name, str)
        }

    return change


def _changed(value: Any, angles: Tensor, facts: Facts, per_frame: int) -> Any:
    if isinstance(value, Mapping):
        return {name: _changed(table, angles, facts, per_frame) for name, table in value.items()}
    if isinstance(value, Tensor):
        return _of_matrices(value, angles) if not value.is_complex() else value * _unit(_like(value, angles))
    if isinstance(value[0], Tensor):
        return _of_pair(value, angles, facts)
    ((cos, sin), *rest), positions = value  # tables of each axis, which tokens look up by position
    rows = angles[::per_frame, 0, : cos.shape[-1] // 2].repeat(1, 2)
    rotated = torch.complex(cos, sin) * _unit(rows[: len(cos)])
    return ((rotated.real.to(cos.dtype), rotated.imag.to(cos.dtype)), *rest), positions


def _of_pair(tables: Any, angles: Tensor, facts: Facts) -> tuple[Tensor, Tensor]:
    """Cosines and sines: of each pair, of each channel, or of each channel of all heads."""
    cos, sin = tables
    if cos.shape[-1] != angles.shape[-1]:
        channels = torch.zeros(*angles.shape[:2], 2 * angles.shape[-1], dtype=torch.float64)
        channels[..., facts.pairs[0]] = channels[..., facts.pairs[1]] = angles
        angles = channels if cos.shape[-1] == channels.shape[-1] else channels.flatten(1)[:, None]
    rotated = torch.complex(cos.double(), sin.double()) * _unit(_like(cos, angles))
    return rotated.real.to(cos.dtype), rotated.imag.to(sin.dtype)


def _of_matrices(tables: Tensor, angles: Tensor) -> Tensor:
    wide = _like(tables[..., 0, 0], angles)
    rotation = torch.stack([wide.cos(), -wide.sin(), wide.sin(), wide.cos()], dim=-1).unflatten(-1, (2, 2))
    return (rotation @ tables.double()).to(tables.dtype)


def _like(table: Tensor, angles: Tensor) -> Tensor:
    """Angles (tokens, heads or 1, channels) in the order of a table's axes."""
    tokens, per_head = angles.shape[0], angles.shape[1] > 1
    if table.ndim == 2:
        return angles[:, 0]
    if table.ndim == 3:
        of_heads = table.shape[1] != tokens or (per_head and table.shape[0] == tokens)
        return angles if of_heads else angles[:, 0][None]
    heads_first = table.shape[1] != tokens or per_head
    return angles.transpose(0, 1)[None] if heads_first else angles[None]


def _unit(angles: Tensor) -> Tensor:
    return torch.polar(torch.ones_like(angles), angles)
