"""The small attention calls on which backends are checked: every kind of plan, grid, text and mask."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from freeloc.adapter.rope import TemporalRope
from freeloc.adapter.spec import ModelShape
from freeloc.attention.layer_plan import LayerPlan, LayerPlans
from freeloc.attention.layout import TokenLayout
from freeloc.plans.baselines import riflex, ultravico, yarn
from freeloc.plans.frame_plan import FramePlan
from freeloc.plans.length import VideoLength
from freeloc.plans.tsa import TsaSettings, tsa_plan
from freeloc.plans.vrpr import vrpr_plan, vrpr_positions

FRAMES, TRAINED = 9, 4
VRPR = vrpr_plan(FRAMES, TRAINED)
TSA = tsa_plan(FRAMES, TRAINED, TsaSettings(dense_frames=2, striped_frames=5, stripe=0.25))
BOTH = FramePlan(vrpr_positions(FRAMES, TRAINED), TSA.visibility, TSA.stripe)

BIAS = 2 * torch.arange(FRAMES**2, dtype=torch.float64).view(FRAMES, FRAMES).sin()
"""Another one for each pair of frames, -2 to 2."""

ROPE = TemporalRope(channels=8)

Mask = Literal["", "bool keys", "bool pairs", "float keys", "float pairs", "nothing left"]


@dataclass(frozen=True)
class ByTokens:
    """A factor on all logits that depends on the tokens of a frame.

    >>> ByTokens()(tokens_per_frame=15)
    1.5
    """

    def __call__(self, tokens_per_frame: int) -> float:
        """The factor."""
        return 1 + tokens_per_frame / 30


@dataclass(frozen=True, eq=False)
class BackendCase:
    """One attention call.

    Args:
        name: what the call tests.
        plan: the plan of the layer, or one for each head.
        height, width: size of the grid, in tokens.
        text_first, text_last: number of text tokens before and after the video.
        mask: bool or additive, of keys or of pairs; or a mask that hides every key of some queries.
        per_head: whether each head has frequencies of its own.
        scale: scale of the logits.
        exchanged: two axes of queries, keys and values whose order in memory is exchanged: (1, 2) as in most models.
    """

    name: str
    plan: FramePlan | Sequence[FramePlan]
    height: int = 3
    width: int = 5
    batch: int = 2
    heads: int = 2
    head_dim: int = 24
    text_first: int = 0
    text_last: int = 0
    mask: Mask = ""
    rope: TemporalRope = ROPE
    per_head: bool = False
    scale: float | None = None
    exchanged: tuple[int, int] | None = None

    @property
    def layout(self) -> TokenLayout:
        """The order of the tokens."""
        return TokenLayout(FRAMES, self.height, self.width, self.text_first, self.text_last)

    def prepared(self) -> LayerPlan:
        """The prepared plan."""
        frequencies = self.rope.frequencies(self.head_dim)
        if self.per_head:
            frequencies = frequencies * torch.linspace(0.5, 1, self.heads, dtype=torch.float64)[:, None]
        shape = ModelShape(1, self.heads, self.head_dim)
        return LayerPlans(lambda layer, frames: self.plan, shape, self.rope, frequencies).at(0, VideoLength(FRAMES))

    def tensors(self, dtype: torch.dtype) -> list[Tensor | None]:
        """Random query, key, value and mask, on the CPU, the same at each call."""
        generator = torch.Generator().manual_seed(0)
        shape = (3, self.batch, self.heads, self.layout.tokens, self.head_dim)
        query, key, value = torch.randn(shape, generator=generator).to(dtype)
        if self.exchanged:
            query, key, value = (
                t.transpose(*self.exchanged).contiguous().transpose(*self.exchanged) for t in (query, key, value)
            )
        return [query, key, value, self._mask(generator, dtype)]

    def _mask(self, generator: torch.Generator, dtype: torch.dtype) -> Tensor | None:
        """The mask. Except with "nothing left", every query keeps the first token of each frame, or itself."""
        if not self.mask:
            return None
        tokens, video = self.layout.tokens, self.layout.video
        if self.mask == "nothing left":
            kept = torch.ones(1, 1, 1, tokens, dtype=torch.bool)
            kept[..., : -self.layout.tokens_per_frame] = False
            return kept
        kind, of = self.mask.split()
        shape = (self.batch, 1, 1, tokens) if of == "keys" else (1, self.heads, tokens, tokens)
        kept = torch.rand(shape, generator=generator) < 0.6
        if of == "keys":
            kept[..., video.start : video.stop : self.layout.tokens_per_frame] = True
        else:
            kept |= torch.eye(tokens, dtype=torch.bool)
        if kind == "bool":
            return kept
        return torch.randn(shape, generator=generator).to(dtype).masked_fill(~kept, float("-inf"))


def _cases() -> list[BackendCase]:
    window = replace(TSA, visibility=TSA.visibility.clamp(max=1) * 2)  # striped pairs become dense
    mixed = BackendCase("VRPR and TSA", BOTH)
    cases = [
        BackendCase("no correction", FramePlan.identity(FRAMES)),
        BackendCase("VRPR", VRPR),
        BackendCase("hidden frames", window),
        BackendCase("TSA", TSA),
        mixed,
        BackendCase("changed frequencies", riflex(FRAMES, TRAINED)),
        BackendCase("scaled logits", yarn(FRAMES, TRAINED)),
        BackendCase("logits scaled by tokens per frame", replace(VRPR, logit_scale=ByTokens())),
        BackendCase("decayed logits", ultravico(FRAMES, TRAINED)),
        BackendCase("biased logits", replace(VRPR, bias=BIAS)),
        BackendCase("bias of hidden frames", replace(window, bias=BIAS)),
        BackendCase("bias of striped frames", replace(BOTH, bias=BIAS), text_first=3, text_last=2),
        BackendCase("bias and decay", replace(ultravico(FRAMES, TRAINED), bias=BIAS)),
        BackendCase("bias of some heads", [VRPR, replace(VRPR, bias=BIAS), replace(TSA, bias=BIAS)], heads=3),
        BackendCase("negative scale and bias", replace(BOTH, bias=BIAS), scale=-0.3),
        BackendCase("plans of each head", [VRPR, TSA, VRPR], heads=3),
        BackendCase("frequencies of each head", VRPR, per_head=True),
        BackendCase("plans and frequencies of each head", [BOTH, VRPR], per_head=True),
        replace(mixed, name="text first", text_first=7),
        replace(mixed, name="text last", text_last=5),
        replace(mixed, name="text on both sides", text_first=3, text_last=2),
        replace(mixed, name="channels in halves", rope=TemporalRope(channels=8, first=2, pairing="(two pair)")),
        replace(mixed, name="a scale of its own", scale=0.3),
        replace(mixed, name="heads of 128", head_dim=128),
        replace(mixed, name="tensors that are not contiguous", exchanged=(1, 2)),
        replace(mixed, name="channels that are not adjacent", exchanged=(2, 3)),
        BackendCase("channels that are not adjacent, without rotations", TSA, exchanged=(2, 3)),
    ]
    grids = [(1, 1), (1, 5), (3, 7), (13, 11)]
    cases += [
        replace(mixed, name=f"grid {height} x {width}", height=height, width=width, batch=1) for height, width in grids
    ]
    masks: list[Mask] = ["bool keys", "bool pairs", "float keys", "float pairs"]
    cases += [replace(mixed, name=f"mask of {mask}", mask=mask, text_last=4) for mask in masks]
    biased = BackendCase("bias", replace(BOTH, bias=BIAS), text_last=4)
    cases += [replace(biased, name=f"bias and mask of {mask}", mask=mask) for mask in masks]
    return [*cases, BackendCase("mask that leaves nothing to attend to", window, mask="nothing left")]


CASES = _cases()
"""All cases. They run in a second or two on a CPU."""
