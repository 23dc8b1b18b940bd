"""Finds where else than in the video's shape a call has its token grid: in tables, and where the video is padded."""

from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor

from freeloc.adapter.grid import TokenGrid
from freeloc.adapter.reader import Signature, of_coordinates
from freeloc.inspection.subject import Subject, tensors

Size = tuple[int, int, int]


def packed_source(inputs: Mapping[str, Any], count: int) -> tuple[TokenGrid, Size] | None:
    """The argument with the coordinates of each of so many tokens, and their grid; None if there is none."""
    for path, value in tensors(inputs):
        shape = tuple(value.shape)
        if len(shape) in (3, 4) and shape[1:3] == (3, count) and shape[3:] in ((), (1,), (2,)):
            size = of_coordinates(value, path)
            if not size.refused:
                return TokenGrid(path, patch=(1, 1, 1), coordinates=path), size.grid
        if len(shape) == 3 and shape[1:] == (count, 3):
            frames, height, width = (int(largest) + 1 for largest in value.amax(dim=(0, 1)))
            if frames * height * width == count:
                return TokenGrid(path, axes="sample token (f h w)", patch=(1, 1, 1)), (frames, height, width)
    return None


def table_of_samples(given: Mapping[str, Any], tokens: Size) -> TokenGrid | None:
    """The argument of an attention module that has a row (latent frames, rows, columns) for each sample."""
    for path, value in tensors(given):
        is_table = not value.is_floating_point() and value.ndim == 2 and value.shape[1] == 3
        if is_table and all(tuple(row) == tokens for row in value.tolist()):
            return TokenGrid(path, axes="sample (f h w)", of="attention")
    return None


class _Shape(NamedTuple):
    """The shape of a tensor that a submodule got or returned."""

    path: str
    argument: str
    shape: tuple[int, ...]


def shapes_until(subject: Subject, path: str) -> list[_Shape]:
    """What the submodules got and returned before the attention module at this path was called."""
    found: list[_Shape] = []
    is_over = False

    def enter(*anything: Any) -> None:
        nonlocal is_over
        is_over = True

    def note(name: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            given = {} if is_over else {"output": output} | Signature(module).given(args, kwargs)
            found.extend(
                _Shape(name, argument, tuple(value.shape)) for argument, value in given.items() if _is_video(value)
            )

        return hook

    removers = [subject.model.get_submodule(path).register_forward_pre_hook(enter)]
    try:
        for name, module in subject.model.named_modules():
            if name:
                removers.append(module.register_forward_hook(note(name), with_kwargs=True))
        with torch.no_grad():
            subject.output()
    finally:
        for remover in removers:
            remover.remove()
    return found


def _is_video(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim in (4, 5, 6)


def padding_source(subject: Subject, video: str, grid: Any, path: str, is_padded: bool) -> TokenGrid | None:
    """The submodule whose call has the token grid, also where the model pads the video; None if there is none.

    Args:
        subject: the model.
        video: path of the input that holds the video.
        grid: the grid of the inputs as they are, and the axes and patches of the video.
        path: path of the first attention module over the grid.
        is_padded: whether rows and columns are padded to whole patches.
    """
    patch = grid.patch
    found, runs = [], [(shapes_until(run, path), size) for run, size in _runs(subject, video, grid, is_padded)]
    for shape in runs[0][0]:
        others = [([other.shape for other in seen if other[:2] == shape[:2]], size) for seen, size in runs]
        if any(len(shapes) != 1 for shapes, _ in others):  # called more than once, or not at all
            continue
        for of_patch in dict.fromkeys([(1, 1, 1)] if shape.argument == "output" else [(1, 1, 1), patch]):
            places = [
                place
                for place in combinations(range(1, len(shape.shape)), 3)
                if all(_fits(shapes[0], place, size, of_patch) for shapes, size in others)
            ]
            if len(places) == 1:
                names = _names(len(shape.shape), places[0])
                found.append(TokenGrid(shape.argument, axes=names, patch=of_patch, of=shape.path))
    return min(found, key=lambda grid: (grid.argument != "output", grid.of.count(".")), default=None)


def _runs(subject: Subject, video: str, grid: Any, is_padded: bool) -> Iterator[tuple[Subject, Size]]:
    """The model with its own video, with one that is padded to as many tokens, and with one that is a row smaller."""
    yield subject, grid.tokens
    frames, height, width = grid.tokens
    fewer = (grid.patch[1], (frames, height - 1, width))
    for rows, size in ((1, grid.tokens), fewer) if is_padded else (fewer,):
        smaller = cropped_video(subject, video, grid.axes, grid.patch, rows) if height > 1 else None
        if smaller is not None:
            yield smaller, size


def _fits(shape: tuple[int, ...], place: tuple[int, ...], size: Size, patch: Size) -> bool:
    return tuple(shape[axis] for axis in place) == tuple(a * b for a, b in zip(size, patch, strict=True))


def _names(ndim: int, place: tuple[int, ...]) -> str:
    names = ["b", *["c"] * (ndim - 1)]
    for axis, letter in zip(place, "fhw", strict=True):
        names[axis] = letter
    return " ".join(names)


def cropped_video(subject: Subject, video: str, axes: str, patch: Size, rows: int = 1) -> Subject | None:
    """The subject with a smaller video; None if it does not run with it.

    Args:
        subject: the model.
        video: path of the input that holds the video.
        axes: names of its axes.
        patch: size of a patch. Axes whose patch is 1 stay as they are.
        rows: by how much it is lower. If that is less than a patch, it is as much narrower.
    """
    whole, names = subject.at(video), axes.split()
    changed: Tensor = whole
    for letter, size in (("h", patch[1]), ("w", patch[2])):
        if letter in names and (size > 1 if rows < patch[1] else letter == "h"):
            axis = names.index(letter)
            changed = changed.narrow(axis, 0, whole.shape[axis] - rows)
    if changed is whole:
        return None
    found = subject.changed(video, changed)
    try:
        with torch.no_grad():
            found.output()
    except Exception:  # a model may refuse such a size in any way
        return None
    return found
