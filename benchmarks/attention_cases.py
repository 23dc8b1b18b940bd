"""Calls of attention that every backend must answer as the reference implementation does, on any device."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from common import ROPE, plans
from torch import Tensor

from freeloc import FramePlan, attend_layer
from freeloc.adapter import TemporalRope
from freeloc.attention import Backend
from freeloc.plans.baselines import riflex, ultravico, yarn

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
"""Of an element of the output: the error allowed to it, plus as much again times its size."""


@dataclass(frozen=True, eq=False)
class Case:
    """One call.

    Args:
        name: what it is about.
        plan: of the layer, or one for each head.
        grid: latent frames, height and width, in tokens.
        mask: "", or "bool" or "float" with "keys" or "pairs".
        per_head: whether each head has frequencies of its own.
        strided: whether the tensors are views of (batch, tokens, heads, head_dim), as most models make them.
    """

    name: str
    plan: FramePlan | Sequence[FramePlan]
    grid: tuple[int, int, int]
    batch: int = 1
    heads: int = 2
    head_dim: int = 24
    text_first: int = 0
    text_last: int = 0
    mask: str = ""
    rope: TemporalRope = ROPE
    per_head: bool = False
    positions_per_frame: float = 1.0
    scale: float | None = None
    strided: bool = False

    @property
    def tokens(self) -> int:
        """Length of the sequence."""
        frames, height, width = self.grid
        return self.text_first + frames * height * width + self.text_last

    @functools.cached_property
    def frequencies(self) -> Tensor | None:
        """Those of each head, (heads, pairs), or None for the rope's own."""
        factors = torch.linspace(0.5, 1, self.heads, dtype=torch.float64)
        return factors[:, None] * self.rope.frequencies(self.head_dim) if self.per_head else None

    def tensors(self, dtype: torch.dtype) -> list[Tensor | None]:
        """Random query, key, value and mask, on the CPU, the same at each call."""
        generator = torch.Generator().manual_seed(0)
        shape = (3, self.batch, self.heads, self.tokens, self.head_dim)
        query, key, value = torch.randn(shape, generator=generator).to(dtype)
        return [query, key, value, self._mask(generator, dtype)]

    def _mask(self, generator: torch.Generator, dtype: torch.dtype) -> Tensor | None:
        """Every query keeps the first token of its own frame, or itself."""
        if not self.mask:
            return None
        kind, of = self.mask.split()
        _, height, width = self.grid
        shape = (self.batch, 1, 1, self.tokens) if of == "keys" else (1, self.heads, self.tokens, self.tokens)
        kept = torch.rand(shape, generator=generator) < 0.6
        if of == "keys":
            kept[..., self.text_first : self.tokens - self.text_last : height * width] = True
        else:
            kept |= torch.eye(self.tokens, dtype=torch.bool)
        if kind == "bool":
            return kept
        return torch.randn(shape, generator=generator).to(dtype).masked_fill(~kept, float("-inf"))

    def attend(self, backend: str | Backend, tensors: Sequence[Tensor | None], device: str) -> Tensor:
        """The output of a backend, on a device."""
        query, key, value, mask = (None if tensor is None else tensor.to(device) for tensor in tensors)
        assert query is not None
        assert key is not None
        assert value is not None
        if self.strided:
            query, key, value = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (query, key, value))
        return attend_layer(
            self.plan,
            0,
            query,
            key,
            value,
            grid=self.grid,
            rope=self.rope,
            text_first=self.text_first,
            text_last=self.text_last,
            frequencies=self.frequencies,
            positions_per_frame=self.positions_per_frame,
            mask=mask,
            scale=self.scale,
            backend=backend,
        )


class Comparison(NamedTuple):
    """How far an output is from the reference: of any element, and of all together.

    Args:
        largest: of the differences of elements.
        relative: norm of the difference over norm of the reference.
        fits: whether all elements are within `TOLERANCE`.
    """

    largest: float
    relative: float
    fits: bool


def compare(case: Case, backend: str | Backend, dtype: torch.dtype, device: str) -> Comparison:
    """The output of a backend in a dtype on a device, against the reference in float64 on the CPU."""
    wanted = expected(case, dtype)
    found = case.attend(backend, case.tensors(dtype), device).cpu().double()
    difference = (found - wanted).abs()
    fits = bool((difference <= TOLERANCE[dtype] * (1 + wanted.abs())).all())  # nan does not
    return Comparison(float(difference.max()), float(difference.norm() / wanted.norm()), fits)


@functools.cache
def expected(case: Case, dtype: torch.dtype) -> Tensor:
    """The reference's output for the inputs as they are in this dtype, float64."""
    exact = [
        None if tensor is None else tensor if tensor.dtype == torch.bool else tensor.double()
        for tensor in case.tensors(dtype)
    ]
    return case.attend("reference", exact, "cpu")


def _cases() -> list[Case]:
    short, long = plans(9, trained=4), plans(17, trained=5)
    mixed = short["VRPR+TSA"]
    cases = [Case(name, plan, (9, 4, 6)) for name, plan in short.items()]
    cases += [
        Case("no correction", FramePlan.identity(9), (9, 4, 6)),
        Case("several chunks in a striped frame", long["VRPR+TSA"], (17, 12, 15), head_dim=64),
        Case("Wan's heads of 128", long["VRPR+TSA"], (17, 3, 5), head_dim=128, strided=True),
        Case("changed frequencies", riflex(9, 4), (9, 4, 6)),
        Case("scaled logits", yarn(9, 4), (9, 4, 6)),
        Case("decayed logits", ultravico(9, 4), (9, 4, 6)),
        Case("heads differ", [short["VRPR"], short["TSA"], short["VRPR"]], (9, 4, 6), batch=2, heads=3),
        Case("text first", mixed, (9, 4, 6), text_first=7),
        Case("text last", mixed, (9, 4, 6), text_last=5, batch=2),
        Case("text on both sides", mixed, (9, 3, 7), text_first=3, text_last=2),
        Case("channels in halves", mixed, (9, 4, 6), rope=TemporalRope(channels=8, first=2, pairing="(two pair)")),
        Case("frequencies of each head", short["VRPR"], (9, 4, 6), per_head=True),
        Case("half a position per frame", mixed, (9, 4, 6), positions_per_frame=0.5),
        Case("a scale of its own", mixed, (9, 4, 6), scale=0.3),
    ]
    cases += [
        Case(f"mask: {mask}", mixed, (9, 3, 5), batch=2, text_last=4, mask=mask)
        for mask in ("bool keys", "bool pairs", "float keys", "float pairs")
    ]
    grids = [(9, 1, 1), (9, 1, 5), (9, 3, 7), (9, 13, 11)]
    return cases + [Case(f"grid {height} x {width}", mixed, (9, height, width)) for _, height, width in grids]


CASES = _cases()
"""All of them. One call each; seconds together on a CPU."""
