"""Reads from a model's rotary tables by how much its temporal RoPE rotates the tokens."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from freeloc.adapter.rope import TemporalRope
from freeloc.errors import LayoutError


def tables_in(rope: TemporalRope, argument: Any) -> list[Tensor]:
    """The tensors of the rotary tables in the argument of an attention module; empty if there are none."""
    return _tensors(argument if rope.tables_from is None or argument is None else rope.tables_from(argument))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = list(value.values()) if isinstance(value, Mapping) else value
    return [tensor for part in parts for tensor in _tensors(part)] if isinstance(parts, (list, tuple)) else []


def temporal_rotations(
    tables: list[Tensor], rope: TemporalRope, head_dim: int, rows: Tensor, tokens: int, per_head: bool = False
) -> Tensor | None:
    """How the temporal pairs of some tokens are rotated, as unit complex numbers.

    >>> rope, angles = TemporalRope(channels=4), torch.arange(6.0)[:, None] * torch.tensor([1.0, 0.1])
    >>> temporal_rotations([angles.cos(), angles.sin()], rope, 4, torch.tensor([0, 5]), 6).angle()[0, :, 0, 1]
    tensor([0.0000, 0.5000], dtype=torch.float64)

    Args:
        tables: cosines and sines, complex numbers, 2 x 2 matrices or angles; of each channel, or of each pair.
        rope: the temporal RoPE with the model's own numbers.
        head_dim: channels per head.
        rows: indices of the tokens, in the tables.
        tokens: number of rows of the tables; -1 if it is any.
        per_head: whether heads have frequencies of their own. It tells the axes apart where two have as many entries:
            tables of several heads are (batch, heads, tokens, channels) or (tokens, heads, channels), all others
            (batch, tokens, heads, channels) or (batch, tokens, channels).

    Returns:
        (batch or 1, rows, heads or 1, pairs) complex128 on the CPU; None if the tables have other numbers of rows.
    """
    parts = _parts(tables)
    heads_axis = per_head and parts[0].shape[-1] <= head_dim  # else the channels of all heads may be in a row
    real = [_rows(table, rows, tokens, heads_axis) for table in parts]
    if any(part is None for part in real):
        return None
    cos, sin = (_pairs(part, rope, head_dim) for part in real if part is not None)
    return torch.complex(cos, sin)


def _parts(tables: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Cosines and sines."""
    first = tables[0]
    if first.is_complex():
        return first.real, first.imag
    if len(tables) == 1 and first.shape[-2:] == (2, 2):
        return first[..., 0, 0], first[..., 1, 0]
    if len(tables) == 1:
        return first.cos(), first.sin()
    return first, tables[1]


def _rows(table: Tensor, rows: Tensor, tokens: int, heads_axis: bool) -> Tensor | None:
    """Some rows of a table, (batch or 1, rows, heads or 1, channels) float64 on the CPU."""
    sizes = table.shape[:-1]
    if tokens < 0 and len(sizes) == 1:
        tokens = sizes[0]
    if len(sizes) == 3 and (sizes[1] != tokens or (heads_axis and sizes[2] == tokens)):
        table = table.transpose(1, 2)  # (batch, heads, tokens, channels)
    elif len(sizes) == 2:  # (batch, tokens, channels) or (tokens, heads, channels)
        of_heads = sizes[1] != tokens or (heads_axis and sizes[0] == tokens)
        table = table[None] if of_heads else table[:, :, None]
    elif len(sizes) == 1:
        table = table[None, :, None]
    if table.ndim != 4 or table.shape[1] != tokens or int(rows.max()) >= tokens:
        return None
    return table.detach().index_select(1, rows.to(table.device)).to("cpu", torch.float64)


def _pairs(rows: Tensor, rope: TemporalRope, head_dim: int) -> Tensor:
    """The entries of the temporal pairs, (..., heads or 1, pairs)."""
    start, stop = rope.span(head_dim)
    pairs, channels = rope.pairs(head_dim), rows.shape[-1]
    if channels > head_dim and rows.shape[-2] == 1:  # the channels of all heads
        size = head_dim if channels % head_dim == 0 else head_dim // 2
        rows, channels = rows.squeeze(-2).unflatten(-1, (-1, size)), size
    if channels == head_dim:
        block = rows[..., start:stop]
    elif channels == stop - start:
        block = rows
    elif channels == head_dim // 2:
        return rows[..., start // 2 : start // 2 + pairs]
    else:
        raise LayoutError(
            f"expected rotary tables with {head_dim} channels or {head_dim // 2} pairs, found {channels} columns"
        )
    return block[..., ::2][..., :pairs] if rope.pairing == "(pair two)" else block[..., :pairs]
