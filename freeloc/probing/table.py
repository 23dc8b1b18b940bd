"""Table: a tensor with named axes; and files of tensors."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from freeloc.errors import ProbeError
from freeloc.files import opened, replacing
from freeloc.untrusted import brief, printable

Label = str | int | float

LARGEST_FILE_HEADER = 40_000_000
"""Largest header of a file that is read, in bytes: 10 million characters of metadata, and names of tensors."""

MOST_TENSORS = 10_000
"""Largest number of tensors in a file that is read."""


@dataclass(frozen=True)
class Table:
    """A tensor with named axes, and labels along each axis.

    >>> table = Table(torch.tensor([[1.0, 2.0], [3.0, 5.0]]), {"layers": [0, 1], "steps": [0, 5]})
    >>> table.mean("steps").values.tolist(), table.at(layers=1).values.tolist()
    ([1.5, 4.0], [3.0, 5.0])

    Args:
        values: the tensor; NaN where nothing was measured.
        axes: labels by name of the axis, in the order of the tensor's axes.

    Raises:
        ProbeError: if the labels do not fit the tensor.
    """

    values: Tensor
    axes: dict[str, list[Label]]

    def __post_init__(self) -> None:
        sizes = tuple(len(labels) for labels in self.axes.values())
        if tuple(self.values.shape) != sizes:
            raise ProbeError(
                f"expected a tensor of shape {brief(sizes)} for the axes {brief(list(self.axes))}, "
                f"found {brief([*self.values.shape])}"
            )

    def labels(self, axis: str) -> list[Label]:
        """The labels of an axis.

        Raises:
            ProbeError: if there is no such axis, or it is empty.
        """
        if not self.axes.get(axis):
            raise ProbeError(f"expected labels on the axis '{axis}', found the axes {brief(list(self.axes))}")
        return self.axes[axis]

    def mean(self, *axes: str) -> "Table":
        """Mean over these axes, ignoring NaN."""
        kept = {name: labels for name, labels in self.axes.items() if name not in axes}
        over = [index for index, name in enumerate(self.axes) if name in axes]
        return Table(self.values.nanmean(dim=over) if over else self.values, kept)

    def over(self, *axes: str) -> "Table":
        """Mean over all other axes; the result has these axes in this order.

        Raises:
            ProbeError: if there is no such axis.
        """
        if missing := [name for name in axes if name not in self.axes]:
            raise ProbeError(f"expected the axes {list(axes)}, found no {missing[0]} among {list(self.axes)}")
        found = self.mean(*(name for name in self.axes if name not in axes))
        order = [list(found.axes).index(name) for name in axes]
        return Table(found.values.permute(order), {name: found.axes[name] for name in axes})

    def at(self, **places: Label) -> "Table":
        """The part of the table at these labels.

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
        """The table without the parts at these labels.

        Raises:
            ProbeError: if there is no such axis.
        """
        found = self
        for name, label in places.items():
            if name not in found.axes:
                raise ProbeError(f"expected an axis '{name}', found {list(found.axes)}")
            labels = found.axes[name]
            kept = [index for index, other in enumerate(labels) if other != label]
            values = found.values.index_select(list(found.axes).index(name), torch.tensor(kept, dtype=torch.long))
            found = Table(values, {**found.axes, name: [labels[index] for index in kept]})
        return found


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], largest: int) -> None:
    """Write a safetensors file of at most `largest` bytes, which `read_tensors` can read. The write is atomic.

    Raises:
        ProbeError: if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        own = {
            name: tensor.contiguous().clone() for name, tensor in tensors.items()
        }  # safetensors refuses tensors that share memory
        content = save(own, metadata)
        if len(content) > largest:
            raise ProbeError(f"cannot write {path}: expected at most {largest} bytes, found {len(content)}")
        with replacing(path) as part:
            part.write_bytes(content)  # save_file would make it readable by the owner only
    except ProbeError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise ProbeError(f"cannot write {path}: {error}") from error


def read_tensors(path: Path, largest: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file of at most `largest` bytes, and its metadata.

    Its sizes are checked before it is read.

    Raises:
        ProbeError: if it is not such a file.
    """
    where = f"cannot read the measurements {printable(str(path))}"
    try:
        with opened(path, largest) as file:
            header = int.from_bytes(file.read(8), "little")
        if header > LARGEST_FILE_HEADER:
            raise ProbeError(f"{where}: expected a header of at most {LARGEST_FILE_HEADER} bytes, found {header}")
        with safe_open(path, framework="pt") as content:
            names = content.keys()
            if len(names) > MOST_TENSORS:
                raise ProbeError(f"{where}: expected at most {MOST_TENSORS} tensors, found {len(names)}")
            return {name: content.get_tensor(name) for name in names}, content.metadata() or {}
    except ProbeError:
        raise
    except (OSError, RuntimeError, TypeError, ValueError, SafetensorError) as error:  # a header can claim anything
        raise ProbeError(f"{where}: {printable(str(error)[:300])}") from error
