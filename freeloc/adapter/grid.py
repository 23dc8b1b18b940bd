"""Reads the token grid of a call from its arguments, as an adapter describes them."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from freeloc.adapter.spec import Adapter
from freeloc.errors import LayoutError

BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class GridReader:
    """Reads the grid from the forward of one module: the model itself, or one of its attention modules."""

    def __init__(self, adapter: Adapter, model: nn.Module, shows: nn.Module) -> None:
        self._grid = adapter.grid
        self._arguments = adapter.grid.arguments
        self._patch = adapter.patch_size(model) if adapter.grid.of == "transformer" else (1, 1, 1)
        is_bound = type(shows).forward is nn.Module.forward
        forward = shows.forward if is_bound else type(shows).forward
        parameters = list(inspect.signature(forward).parameters.values())[0 if is_bound else 1 :]
        self._names = [parameter.name for parameter in parameters if parameter.kind in BY_PLACE]
        self._defaults = {known.name: known.default for known in parameters if known.default is not known.empty}

    def given(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call of forward, by name, including defaults."""
        return self._defaults | dict(zip(self._names, args, strict=False)) | dict(kwargs)

    def of_model(self, module: nn.Module, given: Mapping[str, Any]) -> tuple[int, int, int]:
        """Latent frames, rows and columns of tokens in a call of the transformer.

        Raises:
            LayoutError: if they cannot be read, if one is below 1, or if an argument is given that the grid refuses.
        """
        for name, why in self._grid.refused.items():
            if given.get(name) is not None and given[name] is not self._defaults.get(name):
                raise LayoutError(f"{type(module).__name__} cannot be corrected when called with {name}: {why}")
        frames, height, width = self._before_patches(module, given)
        frames, height, width = -(-frames // self._patch[0]), height // self._patch[1], width // self._patch[2]
        if frames < 1 or height < 1 or width < 1:
            raise LayoutError(
                f"expected at least 1 latent frame, row and column of tokens, found {frames} x {height} x {width} in "
                f"{' and '.join(self._arguments)} of {type(module).__name__}"
            )
        return frames, height, width

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
        return table

    def _before_patches(self, module: nn.Module, given: Mapping[str, Any]) -> tuple[int, int, int]:
        values = [self._argument(module, given, name) for name in self._arguments]
        if len(values) == 3:
            return int(values[0]), int(values[1]), int(values[2])
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
        if given.get(name) is None:
            raise LayoutError(f"{type(module).__name__} was called without {name}, from which its grid is read")
        return given[name]
