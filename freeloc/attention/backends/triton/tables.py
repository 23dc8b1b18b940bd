"""The kernel's tables on a device, made once for each plan and number of tokens per frame."""

import weakref
from dataclasses import dataclass, replace
from typing import Any

import einops
import torch
from torch import Tensor

from freeloc.attention.backends.triton.segments import Segment, Segments, segments_of
from freeloc.attention.devices import OnCpu
from freeloc.attention.layer_plan import HeadGroup, LayerPlan
from freeloc.attention.prepared import PreparedPlan


@dataclass(frozen=True, eq=False)
class Tables:
    """What the kernel reads (see `kernel.attention_kernel`), and what it is compiled for."""

    heads: Tensor
    lists: Tensor
    segments: Tensor
    angles: Tensor
    pair_of: Tensor
    partners: Tensor
    pairs: int
    rotates: bool
    copies: bool
    decays: bool
    biases: bool

    def to(self, device: torch.device) -> "Tables":
        """The same on a device."""
        of_plan = {"heads": self.heads, "lists": self.lists, "segments": self.segments, "angles": self.angles}
        moved: dict[str, Any] = of_plan | {"pair_of": self.pair_of, "partners": self.partners}
        return replace(self, **{name: tensor.to(device) for name, tensor in moved.items()})


_tables: "weakref.WeakKeyDictionary[PreparedPlan | LayerPlan, dict[tuple[int, int, torch.device], Tables]]"
_tables = weakref.WeakKeyDictionary()
_segments: "weakref.WeakKeyDictionary[PreparedPlan, dict[int, Segments]]" = weakref.WeakKeyDictionary()
# Global, since layers share plans, and plans know no backend. They keep no plan alive.


def tables_of(plan: LayerPlan, tokens_per_frame: int, query: Tensor) -> Tables:
    """The tables for queries (batch, heads, tokens, head_dim), on their device."""
    owner = plan.groups[0].plan if plan.groups[0].heads is None else plan
    known = _tables.setdefault(owner, {})
    key = tokens_per_frame, query.shape[1], query.device
    if key not in known:
        with OnCpu(), torch.inference_mode(False):  # they are cached, and training may use them later
            made = _join(plan.groups, tokens_per_frame, query.shape[1], query.shape[-1])
        known[key] = made.to(query.device)
    return known[key]


def padded(head_dim: int) -> int:
    """The channels that the kernel computes with: a power of two, and at least 16."""
    return max(16, 1 << (head_dim - 1).bit_length())


def _segments_once(ready: PreparedPlan, tokens_per_frame: int) -> Segments:
    known = _segments.setdefault(ready, {})
    if tokens_per_frame not in known:
        known[tokens_per_frame] = segments_of(ready, tokens_per_frame)
    return known[tokens_per_frame]


def _join(groups: tuple[HeadGroup, ...], tokens_per_frame: int, heads: int, head_dim: int) -> Tables:
    """The tables of all groups one after the other, and for each head where its own begin."""
    of_heads, lists, segments, angles = torch.empty(heads, 6, dtype=torch.int32), [0], list[Segment](), list[Tensor]()
    for group in groups:
        found = _segments_once(group.plan, tokens_per_frame)
        rows = sum(map(len, angles))
        of_heads[group.heads or slice(None)] = _of_heads(group, found, heads, tokens_per_frame) + torch.tensor(
            [len(lists) - 1, rows, 0, 0, 0 if found.copy_angles is None else rows, 0], dtype=torch.int32
        )
        parts = (found.angles, found.copy_angles)
        angles += [part.flatten(0, -2) for part in parts if part is not None]  # a row for each head that has its own
        for own in found.of_queries:
            segments += own
            lists.append(len(segments))
    table = torch.tensor(
        [(*segment[:5], _bits(segment.factor), _bits(segment.bias)) for segment in segments], dtype=torch.int32
    )
    every = torch.cat(angles)
    pair_of, partners = _channels(groups[0].plan, head_dim)
    return Tables(
        heads=of_heads,
        lists=torch.tensor(lists, dtype=torch.int32),
        segments=table,
        angles=torch.stack([every.cos(), every.sin()], dim=-1).float(),
        pair_of=pair_of.int(),
        partners=partners,
        pairs=every.shape[-1],
        rotates=bool((table[:, 3] >= 0).any()),
        copies=bool((table[:, 4] > 0).any()),
        decays=any(segment.factor != 1 for segment in segments),
        biases=any(segment.bias != 0 for segment in segments),
    )


def _of_heads(group: HeadGroup, found: Segments, heads: int, tokens_per_frame: int) -> Tensor:
    """The rows of the heads of a group, as if its tables were the only ones, (heads, 6) int32."""
    ready, several = group.plan, group.plan.frequencies.ndim > 1
    count = heads if group.heads is None else len(group.heads)
    slot = torch.arange(count, dtype=torch.int32) * several  # heads with frequencies of their own have own rows
    copy = torch.full_like(slot, -1) if found.copy_angles is None else slot + found.angles.flatten(0, -2).shape[0]
    step = count if several else 1
    same = [step, ready.stripe_tokens(tokens_per_frame), _bits(ready.scale_at(tokens_per_frame))]
    step_reach_scale = torch.tensor(same, dtype=torch.int32).expand(count, 3).T
    return torch.stack([torch.zeros_like(slot), slot, *step_reach_scale[:2], copy, step_reach_scale[2]], dim=-1)


def _bits(number: float) -> int:
    """The bits of a float32, as an int32."""
    return int(torch.tensor(number, dtype=torch.float32).view(torch.int32))


def _channels(plan: PreparedPlan, head_dim: int) -> tuple[Tensor, Tensor]:
    """The pair of each channel or -1, and what a product with tokens must be with to swap the channels of each pair."""
    width = padded(head_dim)
    pair_of, partners = torch.full((width,), -1), torch.zeros(width, width, dtype=torch.int8)
    block = einops.rearrange(torch.arange(width)[slice(*plan.span)], f"{plan.pairing} -> two pair", two=2)
    x, y = block[:, : plan.frequencies.shape[-1]]
    pair_of[x] = pair_of[y] = torch.arange(len(x))
    partners[y, x], partners[x, y] = 1, -1  # R(-a) (x, y) = (x cos a + y sin a, y cos a - x sin a)
    return pair_of, partners
