"""Finds the order of the tokens, by changing the video along one axis at a time."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import permutations

import torch
from torch import Tensor

from freeloc.adapter.grid import TokenGrid
from freeloc.inspection.grid_sources import packed_source
from freeloc.inspection.subject import Subject
from freeloc.interception.watch import AttentionCall


@dataclass(frozen=True)
class FoundGrid:
    """How the tokens of an attention call are ordered.

    Args:
        argument: name of the argument that holds the video, or of the three that hold frames, rows and columns.
        axes: einops names of the video's axes; with ``(f h w)`` where its tokens are packed.
        tokens: latent frames, rows and columns of tokens; rows and columns are 1 where each position in the frame is a
            sequence.
        patch: size of a patch along each axis.
        text_first, text_last: number of tokens before and after the video tokens; they do not depend on the video.
        source: where the adapter reads the grid, if not from the argument that holds the video.
    """

    argument: str | tuple[str, str, str]
    axes: str
    tokens: tuple[int, int, int]
    patch: tuple[int, int, int]
    text_first: int
    text_last: int
    source: TokenGrid | None = None

    @property
    def source_label(self) -> str:
        """The module that has the argument of `source`."""
        return self.source.of if self.source is not None else ""


class GridSearch:
    """Changes a model's video, and compares the queries and keys of one of its modules."""

    def __init__(self, subject: Subject, video: str) -> None:
        self._subject = subject
        self._inputs = subject.inputs
        self._video = self.video = video
        last = video.rpartition(".")[2]
        self._sample = int(last) if last.isdigit() else -1
        """Which sample the video is, if each has one of its own."""
        self.problem = ""
        """Why tokens that come from the video are no grid; empty if they are one, or do not come from it."""

    def grid(self, path: str) -> FoundGrid | None:
        """The grid of the tokens in this module's first call; None if they are not the video's, or in another order."""
        before = self._call(path, lambda video: None)
        video: Tensor = self._subject.at(self._video)
        changed = self._changed(before, path, lambda video: _perturb(video, slice(None)))
        whole = changed.any(dim=0).nonzero().flatten()
        if not len(whole) or int(whole[-1]) - int(whole[0]) + 1 != len(whole):
            return None
        first, count = int(whole[0]), len(whole)
        text = first, before.query.shape[2] - first - count
        by_axis: dict[int, Tensor] = {}
        batch: int | None = None
        for axis, size in enumerate(video.shape):
            if size == 1:
                continue
            rows = self._changed(before, path, partial(_perturb_along, axis=axis))
            if batch is None and axis == 0 and int(rows.any(dim=1).sum()) * size <= len(rows):
                batch = axis
            elif not (tokens := rows.any(dim=0)[first : first + count]).all():
                by_axis[axis] = tokens.nonzero().flatten()
        return self._of_axes(by_axis, count, text, before)

    def _of_axes(
        self, changed: dict[int, Tensor], count: int, text: tuple[int, int], before: AttentionCall
    ) -> FoundGrid | None:
        shape = self._subject.at(self._video).shape
        ndim = len(shape)
        names = ["c" if self._sample >= 0 and ndim == 4 else "b", *["c"] * (ndim - 1)]
        if len(changed) == 1 and (axis := next(iter(changed))) is not None:
            packed = self._three_numbers(count)
            table = packed_source(self._inputs, count) if shape[axis] == count else None
            if packed is None and table is not None:
                names[axis] = "(f h w)"
                return FoundGrid(self._video, " ".join(names), table[1], (1, 1, 1), *text, source=table[0])
            if packed is None and before.query.shape[0] <= shape[0]:
                self.problem = (
                    f"which arguments hold the numbers of latent frames, rows and columns of the {count} tokens in "
                    f"{self._video}: found no three numbers, nor a table of coordinates"
                )
                return None
            if packed is not None and shape[axis] == count:
                names[axis] = "(f h w)"
                seen = [int(self._inputs[name]) for name in packed]
                return FoundGrid(packed, " ".join(names), (seen[0], seen[1], seen[2]), (1, 1, 1), *text)
            places = [other for other in range(1, ndim) if other != axis][-2:]
            letters = {axis: "f", **dict(zip(places, "hw", strict=False))}
            frames = count // len(changed[axis])
            patch = math.ceil(shape[axis] / frames)
            names = [letters.get(index, name) for index, name in enumerate(names)]
            return FoundGrid(self._video, " ".join(names), (frames, 1, 1), (patch, 1, 1), *text)
        for order in permutations(changed, 3) if len(changed) == 3 else ():
            sizes = [count // len(changed[axis]) for axis in order]
            if math.prod(sizes) == count and self._is_row_major([changed[axis] for axis in order], sizes):
                for axis, letter in zip(order, "fhw", strict=True):
                    names[axis] = letter
                patch = [math.ceil(shape[axis] / size) for axis, size in zip(order, sizes, strict=True)]
                tokens = sizes[0], sizes[1], sizes[2]
                return FoundGrid(self._video, " ".join(names), tokens, (patch[0], patch[1], patch[2]), *text)
            if math.prod(sizes) == count:
                self.problem = (
                    f"a kernel that gets tokens frame by frame, in raster order: {before.path} regroups those of "
                    f"{self._video} first, and freeloc cannot correct that"
                )
        return None

    @staticmethod
    def _is_row_major(changed: list[Tensor], sizes: list[int]) -> bool:
        """Whether these are the tokens of frame 0, row 0 and column 0, in the order of frames, rows, columns."""
        grid = torch.arange(math.prod(sizes)).view(*sizes)
        expected = grid[0], grid[:, 0], grid[:, :, 0]
        return all(torch.equal(found, part.flatten()) for found, part in zip(changed, expected, strict=True))

    def _three_numbers(self, product: int) -> tuple[str, str, str] | None:
        """Names of three whole numbers among the inputs whose product is the number of tokens, frames first."""
        numbers = [name for name, value in self._inputs.items() if type(value) is int and value > 0]
        for names in permutations(numbers, 3):
            if math.prod(self._inputs[name] for name in names) == product:
                return names
        return None

    def equal_frames(self, grid: FoundGrid, path: str) -> Tensor:
        """Queries and keys of frames with the same content, (2 x batch, heads, frames, tokens_per_frame, head_dim)."""
        axis, frames = grid.axes.replace("(f h w)", "f").split().index("f"), grid.tokens[0]

        def repeat(video: Tensor) -> None:
            moved = video.movedim(axis, 0)
            once = moved.shape[0] // frames if grid.axes.count("(") else grid.patch[0]
            for start in range(once, moved.shape[0], once):
                part = moved[start : start + once]
                part.copy_(moved[: len(part)])

        call = self._call(path, repeat)
        tokens = slice(grid.text_first, grid.text_first + math.prod(grid.tokens))
        samples = slice(None) if "b" in grid.axes.split() else slice(self._sample, self._sample + 1)
        both = torch.cat([call.query[samples], call.key[samples]])[:, :, tokens]
        by_frame: Tensor = both.unflatten(2, (frames, -1))
        return by_frame

    def _changed(self, before: AttentionCall, path: str, change: Callable[[Tensor], None]) -> Tensor:
        """Which tokens of which sequence depend on a change of the video, (batch, tokens) bool."""
        difference = (self._call(path, change).query - before.query).abs().amax(dim=(1, 3))
        return difference > 1e-4 * difference.max().clamp(min=1e-12)

    def _call(self, path: str, change: Callable[[Tensor], None]) -> AttentionCall:
        video = self._subject.at(self._video).clone()
        change(video)
        return self._subject.changed(self._video, video).calls(until=lambda call: call.path == path)[-1]


def _perturb_along(video: Tensor, axis: int) -> None:
    _perturb(video.movedim(axis, 0), slice(0, 1))


def _perturb(video: Tensor, where: slice) -> None:
    """Change a part of the video along its first axis, each number by another amount."""
    part = video[where]
    part += torch.linspace(1, 2, part.numel()).view(part.shape)
