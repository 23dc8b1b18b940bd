"""Blocks of a schedule on a device, with the rotations of their queries and keys."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from freeloc.attention.schedule import Block

NO_ANGLE = 1e-12
"""Largest angle in radians that leaves every number as it is."""

SAME_ANGLE = 1e-9
"""Largest difference in radians of angles that are the same."""


@dataclass(frozen=True, eq=False)
class PlacedBlock:
    """A `freeloc.attention.schedule.Block` on a device.

    Args:
        queries: which query frames, of the first copy.
        keys: which key frames, of all copies together.
        copies: number of copies.
        step: how many frames later each copy is.
        is_first: whether these queries have no pair in the blocks before.
        query_rotations: unit complex numbers (copies, heads or 1, query frames, 1, pairs); None if none is rotated.
        key_rotations: ([heads,] key frames, 1, pairs); None if no key is rotated.
        is_bare: whether the rotations of the keys are those that take their temporal RoPE away.
        constant: what the plan adds to all logits.
        bias: what it adds to those of each pair instead, (query frames or 1, key frames) of one copy; None for nothing.
    """

    queries: tuple[slice, ...]
    keys: slice
    copies: int = 1
    step: int = 1
    is_first: bool = True
    query_rotations: Tensor | None = None
    key_rotations: Tensor | None = None
    is_bare: bool = False
    constant: float = 0.0
    bias: Tensor | None = None
    _parts: dict[int, list["PlacedBlock"]] = field(default_factory=dict, init=False, repr=False)

    @functools.cached_property
    def places(self) -> list[slice]:
        """Where the frames of each slice of `queries` are among those of one copy."""
        counts = [len(range(at.start, at.stop, at.step or 1)) for at in self.queries]
        return [slice(*pair) for pair in itertools.pairwise(itertools.accumulate(counts, initial=0))]

    @functools.cached_property
    def count(self) -> int:
        """Query frames of one copy."""
        return len(self._frames)

    @functools.cached_property
    def _frames(self) -> list[int]:
        return [frame for at in self.queries for frame in range(at.start, at.stop, at.step or 1)]

    @functools.cached_property
    def width(self) -> int:
        """Key frames of one copy."""
        return int(self.keys.stop - self.keys.start) - (self.copies - 1) * self.step

    def parts(self, number: int) -> list["PlacedBlock"]:
        """It in so many parts: of some of its copies each, or of some of its query frames if it has no copies."""
        if number not in self._parts:
            whole = self.count if self.copies == 1 else self.copies
            bounds = [whole * part // number for part in range(number + 1)]
            part = self._queries if self.copies == 1 else self._copies
            self._parts[number] = [part(slice(*pair)) for pair in itertools.pairwise(bounds)]
        return self._parts[number]

    def _queries(self, part: slice) -> "PlacedBlock":
        rotations = None if self.query_rotations is None else self.query_rotations[:, :, part]
        return replace(self, queries=slices(self._frames[part]), query_rotations=rotations)

    def _copies(self, part: slice) -> "PlacedBlock":
        moved = part.start * self.step
        keys = slice(moved, (part.stop - 1) * self.step + self.width)
        return replace(
            self,
            queries=tuple(slice(at.start + moved, at.stop + moved, at.step) for at in self.queries),
            keys=slice(self.keys.start + keys.start, self.keys.start + keys.stop),
            copies=part.stop - part.start,
            query_rotations=None if self.query_rotations is None else self.query_rotations[part],
            key_rotations=None if self.key_rotations is None else self.key_rotations[..., keys, :, :],
        )


class PlacedBlocks(NamedTuple):
    """The blocks of a plan.

    Args:
        dense, striped: those of densely visible and of striped pairs.
        bare: rotations that take the temporal RoPE of keys away, ([heads,] frames, 1, pairs).
    """

    dense: list[PlacedBlock]
    striped: list[PlacedBlock]
    bare: Tensor


def place(
    block: Block,
    angles: Tensor,
    row: Tensor,
    bare: Tensor,
    device: torch.device,
    dtype: torch.dtype,
    bias: Tensor | None = None,
) -> PlacedBlock:
    """A block with its rotations: of keys as its first query frame needs them, of query frames by what is missing then.

    >>> angles, row = torch.tensor([[0.0], [0.5], [1.0]]), torch.tensor([[0, 1], [1, 2]])
    >>> bare = torch.tensor([[0.0], [-0.1]])
    >>> placed = place(Block((0, 1), range(0, 2)), angles, row, bare, torch.device("cpu"), torch.complex64)
    >>> placed.key_rotations.angle().flatten().tolist(), placed.query_rotations.angle().flatten().tolist()
    ([0.0, 0.5], [-0.0, -0.5])

    Args:
        block: the block.
        angles: (rotations, [heads,] pairs), angles in radians by which keys are rotated.
        row: (frames, frames), which of them each pair of frames has.
        bare: (frames, [heads,] pairs), angles that take the temporal RoPE of keys away.
        device, dtype: of the rotations.
        bias: (frames, frames), what is added to the logits of each pair; by default nothing.
    """
    of_keys = _key_angles(block, angles, row)
    keys = slice(block.keys.start, block.keys.start + len(of_keys))
    apart = (of_keys - of_keys[0]) - (bare[keys] - bare[keys.start])
    is_bare = not (_is_zero(of_keys) or _is_zero(bare[keys])) and bool(apart.abs().max() <= SAME_ANGLE)
    of_keys = bare[keys] if is_bare else of_keys
    moved = torch.arange(0, block.copies * block.step, block.step)
    queries = moved[:, None] + torch.tensor(block.queries)
    of_queries = angles[row[queries, keys.start + moved[:, None]]] - of_keys[moved][:, None]
    own = None if bias is None else bias[list(block.queries), block.keys.start : block.keys.stop]
    return PlacedBlock(
        slices(block.queries),
        keys,
        block.copies,
        block.step,
        block.is_first,
        None if _is_zero(of_queries) else _of_queries(unit(-of_queries)).to(device, dtype),
        None if _is_zero(of_keys) else by_frame(unit(of_keys)).to(device, dtype),
        is_bare,
        *(() if own is None else _common(own, device)),
    )


def _key_angles(block: Block, angles: Tensor, row: Tensor) -> Tensor:
    """Angles of the keys of all copies, (key frames, [heads,] pairs), as the first query frame of each needs them."""
    of_keys = angles[row[block.queries[0], block.keys.start : block.keys.stop]]
    width, step = block.keys.stop - block.keys.start, block.step
    # They rise evenly from each frame to that `step` later: so they go on after the first copy.
    rise = of_keys[step] - of_keys[0] if width > step else torch.zeros_like(of_keys[0])
    keys = torch.arange(width + step * (block.copies - 1))
    times = ((keys - width) // step + 1).clamp(min=0)
    return of_keys[(keys - times * step).clamp(min=0)] + times.view(-1, *[1] * rise.ndim) * rise


def _common(bias: Tensor, device: torch.device) -> tuple[float, Tensor | None]:
    """The bias of pairs (query frames, key frames) as one number, or as a row, or as rows."""
    if bool((bias == bias[0, 0]).all()):
        return float(bias[0, 0]), None
    return 0.0, (bias[:1] if bool((bias == bias[:1]).all()) else bias).to(device)


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


def _of_queries(rotations: Tensor) -> Tensor:
    """(copies, heads or 1, frames, 1, pairs), of (copies, frames, [heads,] pairs)."""
    rotations = rotations if rotations.ndim == 4 else rotations[:, :, None]
    return rotations.movedim(1, 2)[:, :, :, None]


def _is_zero(angles: Tensor) -> bool:
    """Whether they leave everything as it is."""
    return bool(angles.abs().max() <= NO_ANGLE)
