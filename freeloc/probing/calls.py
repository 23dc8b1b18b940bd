"""Tracks the denoising steps of a run by the calls of its transformers."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from freeloc.adapter.spec import Adapter
from freeloc.errors import ProbeError

TIMES = ("timestep", "timesteps", "t", "sigma")
"""Names of the argument with the timestep or noise level of the model's input."""

UNTIL = ("r_timestep", "timestep_r")
"""Names of the target time of a flow map (AnyFlow, MeanFlow). If both times are equal, it predicts velocity."""


@dataclass(frozen=True)
class Call:
    """A call of a transformer.

    Args:
        model: the transformer.
        arguments: the arguments of its forward, by name.
    """

    model: nn.Module
    arguments: dict[str, Any]

    def run(self, **changes: Any) -> Tensor:
        """Call it again, and return its output as one tensor."""
        with torch.no_grad():
            return first_tensor(self.model(**(self.arguments | changes)))


class Steps:
    """Counts denoising steps: consecutive calls with the same timestep are one step (guidance makes two calls)."""

    def __init__(self, first_calls: Sequence[int] = (), ends: bool = True) -> None:
        self.number = -1
        """Number of the current step."""
        self.is_first = False
        """Whether the current call is the first of its step."""
        self.calls: dict[int, Call] = {}
        """The first calls of the requested steps, by number of the step."""
        self._requested = frozenset(first_calls)
        self._ends = ends
        self._last: tuple[int, Any] | None = None

    @property
    def is_over(self) -> bool:
        """Whether the run may end early: all requested calls are known."""
        return self._ends and bool(self._requested) and self._requested <= self.calls.keys()

    def note(self, model: nn.Module, arguments: dict[str, Any]) -> None:
        """Record the start of a call."""
        given = next((arguments[name] for name in TIMES if arguments.get(name) is not None), None)
        now = (id(model), given.flatten().tolist() if isinstance(given, Tensor) else given)
        self.is_first = given is None or now != self._last
        self._last = now
        self.number += self.is_first
        if self.is_first and self.number in self._requested:
            self.calls[self.number] = Call(model, _copied(arguments))


class _Enough(BaseException):
    """Ends a run early. Not an Exception, so that no pipeline catches it."""


@contextmanager
def watched(
    found: Sequence[tuple[nn.Module, Adapter]], first_calls: Sequence[int] = (), ends: bool = True
) -> Iterator[Steps]:
    """Count the steps of a run inside the block, and keep the first calls of some; with `ends`, stop after these."""
    steps = Steps(first_calls, ends)
    with suppress(_Enough), ExitStack() as hooks:
        for model, _ in found:
            hooks.callback(model.register_forward_pre_hook(_noting(model, steps), with_kwargs=True).remove)
        yield steps


def _noting(model: nn.Module, steps: Steps) -> Callable[..., None]:
    names = [name for name in inspect.signature(type(model).forward).parameters if name != "self"]

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if steps.is_over:
            raise _Enough
        steps.note(module, dict(zip(names, args, strict=False)) | dict(kwargs))

    return note


def first_tensor(output: Any) -> Tensor:
    """The first tensor of a model's output. A list of samples of the same shape becomes one tensor."""
    if isinstance(output, Tensor):
        return output
    values = list(output.values()) if isinstance(output, Mapping) else output
    if isinstance(values, list | tuple) and values:
        tensors = [value for value in values if isinstance(value, Tensor)]
        if isinstance(output, list) and len(tensors) == len(values) and len({t.shape for t in tensors}) == 1:
            return torch.stack(tensors)
        return first_tensor(values[0])
    raise ProbeError(f"expected the transformer to return a tensor, found {type(output).__name__}")


def _copied(value: Any) -> Any:
    """A copy with tensors of its own: a scheduler may write into the originals."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {name: _copied(part) for name, part in value.items()}
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(_copied(part) for part in value)
    return value
