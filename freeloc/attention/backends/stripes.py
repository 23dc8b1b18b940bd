"""Striped pairs: each query token sees the key tokens near its own place in a frame.

A few chunks of a frame's tokens at a time. The keys and values near a chunk, its window, are copied once, for all
frames; then those of a range of frames are a range of memory. A mask hides the corners of a window.
"""

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from freeloc.attention.backends.blocks import Call
from freeloc.attention.parts import Part, attend_part
from freeloc.attention.rotation import RotatedKeys

SMALLEST_CHUNK = 16
"""Smallest number of query tokens of a chunk. A smaller one costs more than the keys it saves."""

WINDOWS = 0.5
"""Largest size of the windows that are in memory together, as a share of the keys and values; at least one chunk's."""


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
    count = max(1, tokens_per_frame // max(reach, SMALLEST_CHUNK))
    size = -(-tokens_per_frame // count)
    count = -(-tokens_per_frame // size)
    window = min(tokens_per_frame, size + 2 * (reach - 1))
    last = tokens_per_frame - window
    return Chunks(size, window, tuple(min(max(0, chunk * size - reach + 1), last) for chunk in range(count)))


def attend_striped(call: Call, done: set[int]) -> None:
    """Add the attention of the video tokens to their striped keys; `done` are the query frames written before.

    A mask must be one of keys: (batch or 1, heads or 1, 1, tokens or 1).
    """
    if not any(call.plan.schedule(call.layout).striped):
        return
    n = call.layout.tokens_per_frame
    chunks = chunks_of(n, call.plan.stripe_tokens(n))
    together = max(1, int(WINDOWS * n / chunks.window))
    for first in range(0, len(chunks.starts), together):
        _Striped(call, chunks, range(first, min(first + together, len(chunks.starts)))).attend(done)


class _Striped:
    """The striped attention of some chunks of every query frame."""

    def __init__(self, call: Call, chunks: Chunks, own: range) -> None:
        self.call = call
        self.size, self.count = chunks.tokens, len(own)
        n, self.schedule = call.layout.tokens_per_frame, call.plan.schedule(call.layout)
        self.first, self.stop = own.start * self.size, min(own.stop * self.size, n)
        starts = chunks.starts[own.start : own.stop]
        self.keys, self.values = (
            torch.stack([_windows(call, tensor, start, chunks.window) for start in starts], dim=2)
            for tensor in (call.key, call.value)
        )  # (batch, heads, chunks, frames, window, head_dim)
        by_frame = self.keys.transpose(1, 2)  # rotations may depend on heads
        self.rotated = RotatedKeys(call.plan, by_frame, self.schedule.stale_striped)
        self.bias = self._band(chunks, own)
        self.mask = self._mask(starts, chunks.window)

    def attend(self, done: set[int]) -> None:
        """Add it, frame by frame."""
        call, n = self.call, self.call.layout.tokens_per_frame
        for frame, row in enumerate(self.schedule.striped):
            if row:
                self.rotated.turn_to(frame)
                start = call.layout.video.start + frame * n
                rows = slice(start + self.first, start + self.stop)
                query = F.pad(call.query[:, :, rows], (0, 0, 0, self.size * self.count - self.stop + self.first))
                query = query.unflatten(2, (self.count, self.size)).flatten(0, 1)
                call.add(rows, [self._part(query, frame, frames) for frames in row], is_first=frame not in done)

    def _part(self, query: Tensor, frame: int, frames: range) -> Part:
        """Attention of a frame's queries (batch * heads, chunks, tokens, head_dim) over the windows of some frames."""
        at = slice(frames.start, frames.stop)
        key, value = (windows[:, :, :, at].flatten(3, 4).flatten(0, 1) for windows in (self.keys, self.values))
        bias = self.bias[..., : key.shape[2]]
        if self.mask is not None:
            bias = bias + self.mask[:, :, at].flatten(2)[:, :, None]
        if self.call.plan.bias is not None:
            of_frames = self.call.plan.bias_of(frame, at, query)
            bias = bias + of_frames.repeat_interleave(key.shape[2] // len(frames))
        part = attend_part(query, key, value, bias, self.call.scale, hides_all=self.mask is not None)
        shape = self.call.query.shape[:2]
        tokens = slice(0, self.stop - self.first)
        out, lse = (tensor.flatten(1, 2).unflatten(0, shape)[:, :, tokens] for tensor in part)
        return Part(out, lse)

    def _band(self, chunks: Chunks, own: range) -> Tensor:
        """What hides the corners of the windows, for the longest range of frames: (1, chunks, tokens, keys)."""
        call, n = self.call, self.call.layout.tokens_per_frame
        longest = max(len(frames) for row in self.schedule.striped for frames in row)
        bias = _band(n, call.plan.stripe_tokens(n), call.query.device, call.query.dtype)[own.start : own.stop]
        return bias[:, :, None].expand(-1, -1, longest, -1).flatten(2)[None]

    def _mask(self, starts: tuple[int, ...], window: int) -> Tensor | None:
        """The mask of the keys in the windows, (batch * heads, chunks, frames, window)."""
        call = self.call
        if call.mask is None:
            return None
        mask = call.mask.expand(*call.query.shape[:2], 1, call.layout.tokens)[:, :, 0]
        return torch.stack([_windows(call, mask, start, window) for start in starts], dim=2).flatten(0, 1)


def _windows(call: Call, tensor: Tensor, start: int, window: int) -> Tensor:
    """The tokens of a window in each frame: (batch, heads, frames, window, ...) of (batch, heads, tokens, ...)."""
    layout = call.layout
    frames: Tensor = tensor[:, :, layout.video].unflatten(2, (layout.frames, layout.tokens_per_frame))
    return frames[:, :, :, start : start + window]


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
