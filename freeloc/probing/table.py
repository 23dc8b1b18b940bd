"""Tensors whose axes have names, and the files that hold tensors."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from freeloc.errors import ProbeError

Label = str | int | float


@dataclass(frozen=True)
class Table:
    """A tensor whose axes have names, and whose places along them have labels.

    >>> table = Table(torch.tensor([[1.0, 2.0], [3.0, 5.0]]), {"layers": [0, 1], "steps": [0, 5]})
    >>> table.mean("steps").values.tolist(), table.at(layers=1).values.tolist()
    ([1.5, 4.0], [3.0, 5.0])

    Args:
        values: NaN where nothing was measured.
        axes: labels by name, in the order of the tensor's axes.

    Raises:
        ProbeError: if the labels do not fit the tensor.
    """

    values: Tensor
    axes: dict[str, list[Label]]

    def __post_init__(self) -> None:
        sizes = tuple(len(labels) for labels in self.axes.values())
        if tuple(self.values.shape) != sizes:
            raise ProbeError(
                f"expected a tensor of shape {sizes} for the axes {list(self.axes)}, found {[*self.values.shape]}"
            )

    def mean(self, *axes: str) -> "Table":
        """Mean over axes, leaving out what was not measured."""
        kept = {name: labels for name, labels in self.axes.items() if name not in axes}
        over = [index for index, name in enumerate(self.axes) if name in axes]
        return Table(self.values.nanmean(dim=over) if over else self.values, kept)

    def over(self, *axes: str) -> "Table":
        """Mean over all axes but these, in this order."""
        found = self.mean(*(name for name in self.axes if name not in axes))
        order = [list(found.axes).index(name) for name in axes]
        return Table(found.values.permute(order), {name: found.axes[name] for name in axes})

    def at(self, **places: Label) -> "Table":
        """The part at these labels.

        Raises:
            ProbeError: if there is no such axis or label.
        """
        found = self
        for name, label in places.items():
            if label not in found.axes.get(name, []):
                raise ProbeError(f"expected one of {found.axes.get(name)} on the axis '{name}', found {label!r}")
            index = list(found.axes).index(name)
            values = found.values.select(index, found.axes[name].index(label))
            found = Table(values, {other: labels for other, labels in found.axes.items() if other != name})
        return found

    def without(self, **places: Label) -> "Table":
        """All but what is at these labels."""
        found = self
        for name, label in places.items():
            labels = found.axes[name]
            kept = [index for index, other in enumerate(labels) if other != label]
            values = found.values.index_select(list(found.axes).index(name), torch.tensor(kept, dtype=torch.long))
            found = Table(values, {**found.axes, name: [labels[index] for index in kept]})
        return found


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all.

    Raises:
        ProbeError: if it cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, part, metadata)
        part.replace(path)
    except (OSError, SafetensorError) as error:
        raise ProbeError(f"cannot write {path}: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, and its metadata.

    Raises:
        ProbeError: if it is none.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ProbeError(f"cannot read the measurements {path}: {error}") from error
