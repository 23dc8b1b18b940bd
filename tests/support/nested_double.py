"""A ToyDiT whose arguments are inside others: the video in a list, the text in a mapping, the tokens in a dataclass."""

from dataclasses import dataclass, replace

import torch
from freeloc_toy.adapter import TOY
from freeloc_toy.examples import inputs as toy_inputs
from freeloc_toy.model import ToyAttention, ToyBlock, ToyDiT
from torch import Tensor

from freeloc.adapter import SDPA, TokenGrid
from freeloc.testing import Example, random_model


@dataclass(frozen=True)
class Stream:
    """What a block of `NestedDiT` gets."""

    x: Tensor
    turns: Tensor


class NestedAttention(ToyAttention):
    def forward(self, streams, bias):
        return super().forward(streams["video"].x, streams["video"].turns, bias)


class NestedBlock(ToyBlock):
    def __init__(self):
        super().__init__(None)
        self.attention = NestedAttention(None)

    def forward(self, x, turns, bias):
        x = x + self.attention({"video": Stream(self.norm(x), turns)}, bias)
        return x + self.mlp(x)


class NestedDiT(ToyDiT):
    """`x` is [video, audio] or [video]; `prompt` has the text and its lengths. The audio is only added up."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(NestedBlock() for _ in range(2))

    def forward(self, x, prompt, options=None):
        audio = x[1].mean() if len(x) > 1 else 0
        return super().forward(x[0], prompt["text"], prompt["lengths"]) + audio


ADAPTER = replace(
    TOY,
    name="nested",
    classes=("nested_double.NestedDiT",),
    sites=(
        replace(
            TOY.sites[0],
            kernel=SDPA,
            hidden_states="streams.video.x",
            text_tokens="transformer.prompt.text",
            joint=True,
        ),
    ),
    grid=TokenGrid("x.0", axes="b f c h w", patch=(1, 2, 2), refused={"x.2": "a third stream", "options.guide": "why"}),
    rope=replace(TOY.rope, tables="streams.video.turns"),
    other_attention=None,
)


def inputs(frames, height, width, batch):
    toy = toy_inputs(frames, height, width, batch)
    prompt = {"text": toy["text"], "lengths": toy["text_lengths"]}
    return {"x": [toy["video"], torch.ones(batch, 3, 4)], "prompt": prompt, "options": {}}


EXAMPLE = Example("nested", lambda: random_model(NestedDiT), inputs, name="nested", video="x.0")
