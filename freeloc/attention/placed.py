"""Blocks of a schedule on a device, with the rotations of their queries and keys."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from freeloc.attention.schedule import Block

NO_ANGLE = 1e-12
"""Largest angle in radians that leaves every number as it is."""


class PlacedBlock(NamedTuple):
    """A `freeloc.attention.schedule.Block` on a device.

    Args:
        queries: which query frames.
        keys: which key frames, of all queries together.
        width: how many of them each query frame of a band has; None if it is no band, and all queries have all.
        is_first: whether these queries have no pair in the blocks before.
        query_rotations: unit complex numbers ([heads,] query frames, 1, pairs); None if no query is rotated.
        key_rotations: ([heads,] key frames, 1, pairs); None if no key is rotated.
        bias: what the plan adds to all its logits; None if that is not the same for all its pairs.
    """

    queries: tuple[slice, ...]
    keys: slice
    width: int | None = None
    is_first: bool = True
    query_rotations: Tensor | None = None
    key_rotations: Tensor | None = None
    bias: float | None = 0.0

    @property
    def query_frames(self) -> list[int]:
        """Indices of the query frames."""
        return [frame for at in self.queries for frame in range(at.start, at.stop, at.step or 1)]

    def part(self, start: int, stop: int) -> "PlacedBlock":
        """The part of it for some of its query frames, by their number in the block."""
        own = self._replace(
            queries=slices(self.query_frames[start:stop]),
            query_rotations=_of(self.query_rotations, start, stop),
        )
        if self.width is None:
            return own
        stop += self.width - 1
        keys = slice(self.keys.start + start, self.keys.start + stop)
        return own._replace(keys=keys, key_rotations=_of(self.key_rotations, start, stop))


def place(
    block: Block, angles: Tensor, row: Tensor, device: torch.device, dtype: torch.dtype, bias: Tensor | None = None
) -> PlacedBlock:
    """A block with its rotations: of keys as its first query frame needs them, of query frames by what is missing then.

    >>> angles, row = torch.tensor([[0.0], [0.5], [1.0]]), torch.tensor([[0, 1], [1, 2]])
    >>> placed = place(Block((0, 1), range(0, 2)), angles, row, torch.device("cpu"), torch.complex64)
    >>> placed.key_rotations.angle().flatten().tolist(), placed.query_rotations.angle().flatten().tolist()
    ([0.0, 0.5], [-0.0, -0.5])

    Args:
        block: the block.
        angles: (rotations, [heads,] pairs), angles in radians by which keys are rotated.
        row: (frames, frames), which of them each pair of frames has.
        device, dtype: of the rotations.
        bias: (frames, frames), what is added to the logits of each pair; by default nothing.
    """
    queries, first, keys = torch.tensor(block.queries), block.queries[0], block.keys
    of_keys = angles[row[first, keys.start : keys.stop]]
    if block.is_band:
        # Over a band, the angle rises evenly: so it goes on for the keys that the first query does not have.
        step = of_keys[1] - of_keys[0] if len(keys) > 1 else torch.zeros_like(of_keys[0])
        steps = torch.arange(len(keys) + len(queries) - 1, dtype=step.dtype).view(-1, *[1] * step.ndim)
        of_keys = of_keys[0] + step * steps
        of_queries = angles[row[queries, keys.start + queries - first]] - of_keys[: len(queries)]
    else:
        of_queries = angles[row[queries, keys.start]] - of_keys[0]
    return PlacedBlock(
        slices(block.queries),
        slice(keys.start, keys.start + len(of_keys)),
        len(keys) if block.is_band else None,
        block.is_first,
        _rotations(-of_queries, device, dtype),
        _rotations(of_keys, device, dtype),
        0.0 if bias is None else _common(bias, block),
    )


def _common(bias: Tensor, block: Block) -> float | None:
    """The bias of all pairs of a block, if it is the same."""
    queries, keys = torch.tensor(block.queries)[:, None], torch.tensor(block.keys)
    of_pairs = bias[queries, keys + (queries - block.queries[0] if block.is_band else 0)]
    return float(of_pairs[0, 0]) if bool((of_pairs == of_pairs[0, 0]).all()) else None


def slices(frames: Sequence[int]) -> tuple[slice, ...]:
    """Rising indices as slices.

    >>> slices((1, 9, 17, 40, 41))
    (slice(1, 18, 8), slice(40, 42, 1))
    """
    found: list[range] = []
    for frame in frames:
        last = found[-1] if found else range(0)
        if len(last) == 1:
            found[-1] = range(last.start, frame + 1, frame - last.start)
        elif last and frame == last[-1] + last.step:
            found[-1] = range(last.start, frame + 1, last.step)
        else:
            found.append(range(frame, frame + 1))
    return tuple(slice(of.start, of.stop, of.step) for of in found)


def by_frame(rotations: Tensor) -> Tensor:
    """([heads,] frames, 1, pairs), of (frames, [heads,] pairs)."""
    return rotations.movedim(0, -2)[..., None, :]


def unit(angles: Tensor) -> Tensor:
    """Unit complex numbers of these angles, complex128."""
    return torch.polar(torch.ones_like(angles), angles)


def _rotations(angles: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    """Rotations by these angles, None if they leave everything as it is."""
    return by_frame(unit(angles).to(device, dtype)) if angles.abs().max() > NO_ANGLE else None


def _of(rotations: Tensor | None, start: int, stop: int) -> Tensor | None:
    """Those of some frames."""
    return None if rotations is None else rotations[..., start:stop, :, :]
