"""Reads the token grid of a call from its arguments, as an adapter describes them."""

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from freeloc.adapter.grid import References, TokenGrid
from freeloc.adapter.paths import argument_at, read_path
from freeloc.adapter.spec import Adapter
from freeloc.errors import AdapterError, LayoutError

BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Signature:
    """The parameters of a module's forward."""

    def __init__(self, module: nn.Module) -> None:
        module = getattr(module, "_orig_mod", module)  # of a module that is compiled by itself
        is_bound = type(module).forward is nn.Module.forward
        forward = module.forward if is_bound else type(module).forward
        parameters = list(inspect.signature(forward).parameters.values())[0 if is_bound else 1 :]
        self.names = [parameter.name for parameter in parameters if parameter.kind in BY_PLACE]
        self.defaults = {known.name: known.default for known in parameters if known.default is not known.empty}

    def given(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call, by name, including defaults."""
        by_place = dict(zip(self.names, args))  # noqa: B905  # reason: docs/architecture.md, torch.compile
        return {**self.defaults, **by_place, **kwargs}


def count_of(value: Any) -> int:
    """A number of tokens or images: the number itself, the second axis of a tensor, the length of a list, or 1 image.

    >>> count_of(7), count_of([object(), object()]), count_of(object()), count_of(None)
    (7, 2, 1, 0)
    """
    if value is None:
        return 0
    if isinstance(value, Tensor) and value.ndim > 1:
        return int(value.shape[1])
    if isinstance(value, (list, tuple)):
        return len(value)
    return int(value) if hasattr(value, "__int__") else 1


class Size(NamedTuple):
    """The token grid of a call."""

    grid: tuple[int, int, int]
    """Latent frames, rows and columns of tokens."""
    refused: str = ""
    """Why the call cannot be corrected; empty if it can. Then the grid only says how many frames there are."""


class GridReader:
    """Reads the grid from the forward of one module: the model itself, its attention modules, or a submodule."""

    def __init__(self, adapter: Adapter, model: nn.Module, shows: nn.Module) -> None:
        self._grid = adapter.grid
        self._model = model
        self._largest = 0
        self._arguments = adapter.grid.arguments
        self._patch = (1, 1, 1) if adapter.grid.of == "attention" else adapter.patch_size(model)
        self.given = Signature(shows).given
        self._defaults = Signature(model).defaults

    def __getstate__(self) -> dict[str, Any]:
        """Without the grid, which may hold functions: `of_grid` sets it again."""
        return {name: value for name, value in vars(self).items() if name != "_grid"}

    def of_grid(self, grid: TokenGrid) -> None:
        """Set the grid of a copy."""
        self._grid = grid

    def of_model(self, module: nn.Module, given: Mapping[str, Any]) -> Size:
        """The grid of a call of the transformer or of a submodule.

        Raises:
            LayoutError: if it cannot be read, or if a number is below 1.
        """
        name = self._grid.coordinates
        coordinates = argument_at(given, name, is_optional=True) if name else None
        if isinstance(coordinates, Tensor):
            return of_coordinates(coordinates, self._grid.coordinates)
        frames, height, width = self._before_patches(module, given)
        frames, height, width = -(-frames // self._patch[0]), height // self._patch[1], width // self._patch[2]
        if frames < 1 or height < 1 or width < 1:
            raise LayoutError(
                f"expected at least 1 latent frame, row and column of tokens, found {frames} x {height} x {width} in "
                f"{' and '.join(self._arguments)} of {type(module).__name__}"
            )
        self._require_positions(frames, given)
        return Size((frames, height, width))

    def _require_positions(self, frames: int, given: Mapping[str, Any]) -> None:
        """Require that the model has positions for so many latent frames."""
        if self._grid.largest_frames is None or torch.compiler.is_dynamo_compiling():
            return
        where, setting = self._grid.largest_frames
        if isinstance(where, str) and frames <= self._largest:
            return
        try:
            largest = read_path(self._model, where) if isinstance(where, str) else where(self._model, given)
        except (AdapterError, AttributeError, LookupError, TypeError):
            return  # another library has replaced the module that holds the positions
        self._largest = int(largest)
        if frames > self._largest:
            raise LayoutError(
                f"expected at most {self._largest} latent frames, since {type(self._model).__name__} has positions for "
                f"no more, found {frames}. Generate fewer, or give the model a larger {setting}"
            )

    def refusal(self, module: nn.Module, given: Mapping[str, Any], allowed: Collection[str] = ()) -> str:
        """Why a call of the transformer cannot be corrected: an argument that the adapter refuses; empty if none is."""
        for name, why in self._grid.refused.items():
            value = None if name in allowed else argument_at(given, name, is_optional=True)
            if value is not None and value is not argument_at(self._defaults, name, is_optional=True):
                return f"{type(module).__name__} cannot be corrected when called with {name}: {why}"
        return ""

    def of_samples(self, module: nn.Module, given: Mapping[str, Any]) -> Tensor:
        """The table (samples, 3) of latent frames, rows and columns in a call of an attention module.

        Raises:
            LayoutError: if the argument is missing, or is not such a table.
        """
        table: Tensor = self._argument(module, given, self._arguments[0])
        sizes = table.tolist()
        if not sizes or any(len(size) != 3 or min(size) < 1 for size in sizes):
            name = self._grid.argument
            raise LayoutError(f"expected {name} (latent frames, height, width) >= 1, found {sizes}")
        self._require_positions(max(size[0] for size in sizes), given)
        return table

    def _before_patches(self, module: nn.Module, given: Mapping[str, Any]) -> tuple[int, int, int]:
        values = [self._argument(module, given, name) for name in self._arguments]
        if len(values) == 3:
            return int(values[0]), int(values[1]), int(values[2])
        if not isinstance(values[0], Tensor):
            found = type(values[0]).__name__
            raise LayoutError(f"expected {self._grid.argument} with axes ({self._grid.axes}), found a {found}")
        if self._grid.axes == "sample token (f h w)":
            frames, height, width = (int(largest) + 1 for largest in values[0].amax(dim=(0, 1)))
            return frames, height, width
        shape, axes = values[0].shape, self._grid.axes.split()
        if len(shape) != len(axes):
            raise LayoutError(
                f"expected {self._grid.argument} with axes ({self._grid.axes}), found shape {tuple(shape)}"
            )
        return shape[axes.index("f")], shape[axes.index("h")], shape[axes.index("w")]

    def _argument(self, module: nn.Module, given: Mapping[str, Any], name: str) -> Any:
        found = given[name] if name in given else argument_at(given, name)
        if found is None:
            raise LayoutError(f"{type(module).__name__} was called without {name}, from which its grid is read")
        return found


def of_coordinates(coordinates: Tensor, name: str) -> Size:
    """The grid of tokens whose coordinates (batch, 3, tokens[, start and end]) are in time, height and width.

    >>> time, row, column = torch.meshgrid(torch.arange(4.0) / 3, torch.arange(2.0), torch.arange(3.0), indexing="ij")
    >>> of_coordinates(torch.stack([time, row, column]).flatten(1)[None], "coordinates").grid
    (4, 2, 3)

    If the tokens are not such a grid, frame by frame in raster order, the result has a refusal.
    """
    starts = (coordinates[..., 0] if coordinates.ndim == 4 else coordinates).detach().cpu()
    time, tokens = starts[0, 0], starts.shape[2]
    frames = len(time.unique())
    per_frame = tokens // frames
    if tokens == frames * per_frame and torch.equal(starts, starts[:1].expand_as(starts)):
        table = starts[0].unflatten(1, (frames, per_frame))
        same_time = bool((table[0] == table[0, :, :1]).all()) and bool((table[0, 1:, 0] > table[0, :-1, 0]).all())
        height = len(table[1, 0].unique())
        raster = torch.stack(torch.meshgrid(table[1, 0].unique(), table[2, 0].unique(), indexing="ij")).flatten(1)
        same_place = raster.shape[1] == per_frame and torch.equal(
            table[1:], raster[:, None].expand(2, frames, per_frame)
        )
        if same_time and same_place:
            return Size((frames, height, per_frame // height))
    return Size(
        (frames, 1, per_frame),
        f"{name} is not a grid of latent frames, rows and columns in raster order: it has other tokens too, such as "
        "keyframes or other conditions. Generate without them, or at most the trained length",
    )


def times_apart(coordinates: Tensor) -> float:
    """Mean time between latent frames in such coordinates, after the second, since the first may have another distance.

    >>> times_apart(torch.tensor([[[0.0, 0.0, 0.25, 0.25, 0.75, 0.75, 1.25, 1.25]] * 3]))
    0.5
    """
    times = (coordinates[:, 0, :, 0] if coordinates.ndim == 4 else coordinates[:, 0]).double().unique()
    return float(times[-1] - times[min(1, len(times) - 2)]) / max(len(times) - 2, 1) if len(times) > 1 else 0.0


def references_of(kinds: Sequence[References], model: nn.Module, given: Mapping[str, Any]) -> tuple[int, int, int]:
    """References before the video, after it, and how many of all these the grid's argument does not hold.

    Those whose number only the caller knows count as none.
    """
    first, last, apart = 0, 0, 0
    for known in kinds:
        if known.frames is None or (known.present and not _has(model, known.present)):
            continue
        count = known.frames(given) if callable(known.frames) else known.frames
        first += count * (known.place == "first")
        last += count * (known.place == "last")
        apart += count * known.apart
    return first, last, apart


def _has(model: nn.Module, path: str) -> bool:
    found = read_path(model, path)
    return isinstance(found, nn.Module) or bool(found)
