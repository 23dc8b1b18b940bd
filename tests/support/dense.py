"""An oracle for any model that shares no code with the engine: dense logits from queries and keys before rotation.

Each attention module runs twice. In the first run its rotary tables rotate nothing, so the queries and keys that reach
the kernel are not rotated; from these the oracle computes attention under the plan. In the second run the kernel gives
that result. The positions of each family are written a second time in families/, from its paper or code.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from freeloc import FramePlan


@dataclass(frozen=True)
class Facts:
    """What the oracle knows about a family.

    Args:
        paths: the attention modules over video tokens.
        pairs: the two channels of every rotated pair of a head, (2, pairs).
        temporal: radians per latent frame of every pair, (pairs,) or (heads, pairs), 0 where time does not rotate it.
        spatial: (height, width) -> radians of every pair for each token of a frame, (tokens_per_frame, pairs) or
            (heads, tokens_per_frame, pairs).
        text: where the text tokens are: "first" or "last".
        layers: the layer of each path; by default 0, 1, 2, ...
        times: the position of each frame, in latent frames; by default 0, 1, 2, ...
        rotary: names of arguments of the attention module that hold the rotary tables, or their numbers if positional;
            none if the model has no rotary embedding.
        still: changes such a table into one that rotates nothing, by default of (cos, sin); or such a change for each
            name of an argument.
        tokens: "f" where each place of the frame is a sequence of its own.
        spacing: distance between frames in the example, as a multiple of that in training.
        references: reference images before the video in the example.
        tolerance: largest difference between the model's outputs, larger where the model itself rounds.
    """

    paths: Callable[[nn.Module], Sequence[str]]
    pairs: Tensor
    temporal: Tensor
    spatial: Callable[[int, int], Tensor]
    text: str = "last"
    layers: Sequence[int] | None = None
    times: Callable[[int], Tensor] = lambda frames: torch.arange(frames, dtype=torch.float64)
    rotary: Sequence[str | int] = ("image_rotary_emb",)
    still: Callable[[Any], Any] | Mapping[str | int, Callable[[Any], Any]] = lambda table: (
        torch.ones_like(table[0]),
        torch.zeros_like(table[1]),
    )
    tokens: str = "f h w"
    spacing: float = 1.0
    references: int = 0
    tolerance: float = 2e-5

    @classmethod
    def without_rope(cls, paths: Callable[[nn.Module], Sequence[str]], **changes: Any) -> "Facts":
        """Of a model without rotary embedding."""
        none = torch.zeros(0, dtype=torch.float64)
        pairs = torch.zeros(2, 0, dtype=torch.long)
        return cls(paths, pairs, none, lambda height, width: none.expand(height * width, 0), rotary=(), **changes)


def blocks(*paths: str) -> Callable[[nn.Module], list[str]]:
    """Paths with ``*`` for the index, one list after another."""

    def names(model: nn.Module) -> list[str]:
        found = []
        for path in paths:
            before, after = path.split("*")
            found += [f"{before}{index}{after}" for index in range(len(model.get_submodule(before[:-1])))]
        return found

    return names


def interleaved(head_dim: int) -> Tensor:
    """Pairs (0, 1), (2, 3) ..."""
    return torch.arange(head_dim).view(-1, 2).mT


def half_split(head_dim: int, blocks: Sequence[int] = ()) -> Tensor:
    """Pairs (i, i + n / 2) of each block of n channels; by default of the whole head."""
    found, first = [], 0
    for size in blocks or (head_dim,):
        left = torch.arange(first, first + size // 2)
        found.append(torch.stack([left, left + size // 2]))
        first += size
    return torch.cat(found, dim=1)


def frequencies(channels: int, theta: float) -> Tensor:
    """theta ** (-2 i / channels)."""
    return 1 / theta ** (torch.arange(0, channels, 2, dtype=torch.float64) / channels)


def axis_by_axis(time: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Callable[[int, int], Tensor]]:
    """`temporal` and `spatial` of a head whose pairs are those of time, then of rows, then of columns."""

    def spatial(height: int, width: int) -> Tensor:
        rows = torch.arange(height, dtype=torch.float64).repeat_interleave(width)[:, None] * row
        columns = torch.arange(width, dtype=torch.float64).repeat(height)[:, None] * column
        return torch.cat([torch.zeros(height * width, len(time), dtype=torch.float64), rows, columns], dim=1)

    return torch.cat([time, torch.zeros(len(row) + len(column), dtype=torch.float64)]), spatial


def _parts(x: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Rotated pairs of (..., head_dim) as complex numbers (..., pairs), and the channels that are not rotated."""
    rest = torch.ones(x.shape[-1], dtype=torch.bool)
    rest[pairs.flatten()] = False
    return torch.complex(x[..., pairs[0]], x[..., pairs[1]]), x[..., rest]


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, plan: FramePlan, height: int, width: int, facts: Facts, mask: Any, scale: Any
) -> Tensor:
    """(batch, heads, tokens, head_dim) from un-rotated q and k."""
    frames, n = plan.frames, height * width
    text = q.shape[2] - frames * n
    first = text if facts.text == "first" else 0
    video = slice(first, first + frames * n)
    q, k = q.double(), k.double()
    logits = q @ k.mT
    (q_pairs, q_rest), (k_pairs, k_rest) = _parts(q, facts.pairs), _parts(k, facts.pairs)
    spatial, temporal, times = facts.spatial(height, width), facts.temporal[..., None, :], facts.times(frames)
    texts = [token for token in range(q.shape[2]) if not video.start <= token < video.stop]
    for i in range(frames):
        rows = slice(first + i * n, first + (i + 1) * n)
        here = q_pairs[:, :, rows] * torch.exp(1j * (spatial + temporal * times[i]))
        there = k_pairs[:, :, rows] * torch.exp(1j * (spatial + temporal * times[i]))
        logits[:, :, rows, texts] = _dot(here, k_pairs[:, :, texts]) + q_rest[:, :, rows] @ k_rest[:, :, texts].mT
        logits[:, :, texts, rows] = _dot(q_pairs[:, :, texts], there) + q_rest[:, :, texts] @ k_rest[:, :, rows].mT
        for j in range(frames):
            columns = slice(first + j * n, first + (j + 1) * n)
            apart = times[i] - times[j] - ((i - j) - plan.positions[i, j])
            here = q_pairs[:, :, rows] * torch.exp(1j * (spatial + temporal * apart))
            there = k_pairs[:, :, columns] * torch.exp(1j * spatial)
            logits[:, :, rows, columns] = _dot(here, there) + q_rest[:, :, rows] @ k_rest[:, :, columns].mT
    logits = logits * (q.shape[-1] ** -0.5 if scale is None else scale) * _factor(plan, n)
    if plan.bias is not None:
        logits[:, :, video, video] += plan.bias.repeat_interleave(n, 0).repeat_interleave(n, 1)
    seen = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool)
    seen[video, video] = plan.token_mask(n)
    logits = logits.masked_fill(~seen, float("-inf"))
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
    weights = logits.softmax(dim=-1).nan_to_num(0)  # rows of padding have no keys, and give zeros
    return (weights @ v.double()).to(v.dtype)


def _factor(plan: FramePlan, tokens_per_frame: int) -> float:
    """The plan's factor on all logits, those of text too."""
    return plan.logit_scale(tokens_per_frame) if callable(plan.logit_scale) else plan.logit_scale


def _dot(query: Tensor, key: Tensor) -> Tensor:
    return (query @ key.conj().mT).real


@contextlib.contextmanager
def oracle(
    model: nn.Module, facts: Facts, plan: Callable[[int, int], FramePlan], frames: int, height: int, width: int
) -> Iterator[None]:
    """Inside the block, every attention module over video tokens computes attention under `plan` (layer, frames)."""
    height, width = (height, width) if facts.tokens == "f h w" else (1, 1)
    with contextlib.ExitStack() as stack:
        for index, path in enumerate(facts.paths(model)):
            module, layer = model.get_submodule(path), facts.layers[index] if facts.layers else index
            forward = _twice(module.forward, facts, plan(layer, frames), height, width)
            stack.enter_context(mock.patch.object(module, "forward", forward))
        yield


def _twice(forward: Callable[..., Any], facts: Facts, plan: FramePlan, height: int, width: int) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        calls: list[tuple[Tensor, ...]] = []

        def note(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **others: Any) -> Tensor:
            calls.append((query, key, value))
            return torch.zeros_like(query)

        def answer(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, **others: Any) -> Tensor:
            still = calls.pop(0)
            assert torch.equal(still[2], value)
            scale = others.get("scale")
            return dense_attention(*still, plan, height, width, facts, attn_mask, scale)

        args = tuple(list(value) if isinstance(value, list) else value for value in args)  # the module may clear them

        def quiet(place: str | int, value: Any) -> Any:
            if place in facts.rotary:
                return (facts.still if callable(facts.still) else facts.still[place])(value)
            if isinstance(value, list):
                return list(value)
            return value.clone() if isinstance(value, Tensor) else value  # the module may change it in place

        found = any(place in facts.rotary for place in [*range(len(args)), *kwargs])
        assert found or not facts.rotary, "no rotary table was passed"
        with mock.patch("torch.nn.functional.scaled_dot_product_attention", note):
            named = {name: quiet(name, value) for name, value in kwargs.items()}
            forward(*[quiet(place, value) for place, value in enumerate(args)], **named)
        with mock.patch("torch.nn.functional.scaled_dot_product_attention", answer):
            return forward(*args, **kwargs)

    return run
