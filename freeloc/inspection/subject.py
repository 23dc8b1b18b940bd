"""Subject: a model with its inputs, as an inspection runs it, and the values inside its arguments by their paths."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from torch import Tensor, nn

from freeloc.adapter.kernel import Kernel
from freeloc.adapter.paths import argument_at, with_argument
from freeloc.interception.watch import AttentionCall, observe

Run = Callable[[nn.Module, Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Subject:
    """A model, its inputs, and how it is run.

    Args:
        model: the model.
        inputs: arguments of its forward, or what `run` gets.
        kernels: functions other than PyTorch's that compute its attention.
        run: (model, inputs) -> anything, which runs the model; by default a call of it.
    """

    model: nn.Module
    inputs: Mapping[str, Any]
    kernels: Sequence[Kernel] = ()
    run: Run | None = None

    def calls(self, until: Callable[[AttentionCall], bool] | None = None) -> list[AttentionCall]:
        """The attention calls of a run."""
        found = observe(self.model, self.inputs, until, self.kernels, self.run)
        return without_inner(found, self.kernels)

    def output(self) -> Any:
        """What a run returns."""
        return self.model(**self.inputs) if self.run is None else self.run(self.model, self.inputs)

    def at(self, path: str) -> Any:
        """The input with this name, or an item or attribute of one."""
        return argument_at(self.inputs, path)

    def changed(self, path: str, value: Any) -> "Subject":
        """The same with another input."""
        return replace(self, inputs=with_argument(self.inputs, path, value))


def without_inner(calls: Sequence[AttentionCall], kernels: Sequence[Kernel]) -> list[AttentionCall]:
    """The calls without those of PyTorch's functions in modules whose calls of a named function are among them."""
    named = {kernel.function for kernel in kernels}
    paths = {call.path for call in calls if call.kernel in named}
    return [call for call in calls if call.kernel in named or call.path not in paths]


def inside(given: Mapping[str, Any], depth: int = 2) -> Iterator[tuple[str, Any]]:
    """(path, value) of arguments, then of items and attributes of those that are lists, mappings or dataclasses."""
    level: list[tuple[str, Any]] = list(given.items())
    for _ in range(depth + 1):
        yield from level
        level = [(f"{path}.{name}", part) for path, value in level for name, part in _parts(value)]


def _parts(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, list | tuple):
        return [(str(place), part) for place, part in enumerate(value)]
    if isinstance(value, Mapping):
        return [(name, part) for name, part in value.items() if isinstance(name, str) and "." not in name]
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name, None)) for field in fields(value)]
    return []


def tensors(given: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """(path, tensor) of the tensors inside arguments."""
    yield from ((path, value) for path, value in inside(given) if isinstance(value, Tensor))
