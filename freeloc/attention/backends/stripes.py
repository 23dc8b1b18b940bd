"""Striped pairs: each query token sees the key tokens near its own place in a frame.

One chunk of a frame's tokens at a time, over the keys near it, its window. A mask hides the corners of a window.
"""

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from freeloc.attention.backends.frames import Frames

CHUNKS = (16, 24)
"""Query tokens of a chunk: at least the first number, and the second one for stripes that are as wide. Smaller chunks
cost more than the keys that they save: measured."""

MOST_QUERIES, MOST_KEYS = 1024, 1024
"""Largest number of query tokens and of keys of a call: its bias has that size."""


class Chunks(NamedTuple):
    """How the tokens of a frame are divided into chunks of query tokens, each with a window of key tokens.

    Args:
        tokens: query tokens of a chunk; the last one may have fewer.
        window: key tokens of each window.
        starts: first key token of each window.
    """

    tokens: int
    window: int
    starts: tuple[int, ...]


@functools.lru_cache(maxsize=64)
def chunks_of(tokens_per_frame: int, reach: int) -> Chunks:
    """The chunks of a frame for a stripe of this half-width in tokens.

    >>> chunks_of(tokens_per_frame=60, reach=8)
    Chunks(tokens=20, window=34, starts=(0, 13, 26))
    """
    smallest, good = CHUNKS
    wanted = max(smallest, min(reach, good), reach // 2)
    size = -(-tokens_per_frame // max(1, tokens_per_frame // wanted))
    count = -(-tokens_per_frame // size)
    window = min(tokens_per_frame, size + 2 * (reach - 1))
    last = tokens_per_frame - window
    return Chunks(size, window, tuple(min(max(0, chunk * size - reach + 1), last) for chunk in range(count)))


def chunks(frames: Frames, reach: int) -> Iterator[Frames]:
    """Each chunk of the queries of every frame, with its window of the keys.

    Args:
        frames: all queries and keys.
        reach: half-width of the stripe in tokens.
    """
    n, mask = frames.query.shape[2], frames.mask
    found = chunks_of(n, reach)
    band = _band(n, reach, frames.query.device, frames.query.dtype)
    for number, first in enumerate(found.starts):
        tokens = slice(number * found.tokens, min((number + 1) * found.tokens, n))
        window = slice(first, first + found.window)
        own = None if mask is None else (mask if mask.shape[2] == 1 else mask[:, :, tokens])[..., window]
        yield replace(
            frames,
            query=frames.query[:, :, tokens],
            key=frames.key[:, :, window],
            value=frames.value[:, :, window],
            sums=frames.sums.of_tokens(tokens),
            mask=own,
            of_tokens=band[number, : tokens.stop - tokens.start],
            most_queries=MOST_QUERIES,
            most_keys=MOST_KEYS,
        )


@functools.lru_cache(maxsize=8)
def _band(tokens_per_frame: int, reach: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """0 for the pairs of a stripe and -inf for others: (chunks, tokens, window)."""
    chunks = chunks_of(tokens_per_frame, reach)
    with torch.inference_mode(False), _disable_current_modes():  # it is kept for calls without these modes
        query = torch.arange(len(chunks.starts) * chunks.tokens, device=device).view(-1, chunks.tokens, 1)
        key = torch.tensor(chunks.starts, device=device)[:, None, None] + torch.arange(chunks.window, device=device)
        of_frame = query < tokens_per_frame  # the others are cut off later
        hidden = ((query - key).abs() >= reach) & of_frame
        return torch.zeros(hidden.shape, device=device, dtype=dtype).masked_fill_(hidden, float("-inf"))
