"""Support for torch.compile, so that compiled code matches the patch, and the refusal of torch.export."""

import functools
import inspect
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from freeloc.errors import PatchError
from freeloc.interception.context import Read

F = TypeVar("F", bound=Callable[..., Any])


_SHAPES: tuple[tuple[tuple[int, ...], torch.dtype], ...] = (((6,), torch.int64), ((), torch.float64), ((), torch.int64))


class Traced(NamedTuple):
    """What a forward has read, as tensors. torch.compile guards numbers, and would compile each length separately."""

    numbers: Tensor
    """(6,) int64: latent frames, rows, columns, references before and after the video, and 1 if the call is refused."""
    positions_per_frame: Tensor
    thread: Tensor
    """Identifier of the thread that runs the compiled code; -1 if no forward was traced."""

    @classmethod
    def of(cls, read: Read) -> "Traced":
        """Make tensors from numbers, which are symbols in a trace."""
        assert read.grid is not None  # only models whose grid is read before attention are traced
        numbers = torch.tensor([*read.grid, read.first, read.last, int(bool(read.refused))], device="cpu")
        step = torch.tensor(read.positions_per_frame, dtype=torch.float64, device="cpu")
        return cls(numbers, step, torch.ops.freeloc.thread(numbers))

    def read(self, refused: str = "") -> Read:
        """The numbers, and with `refused` the reason if the call is refused."""
        frames, height, width, first, last, is_refused = self.numbers.tolist()
        step = float(self.positions_per_frame)
        return Read((frames, height, width), step, first, last, refused if is_refused else "")


NOTHING = Traced(*(torch.full(shape, -1, dtype=kind, device="cpu") for shape, kind in _SHAPES))
"""The value if no forward was traced; then the context has what was read. None would cause a recompilation."""


def outside_graphs(function: F) -> F:
    """Make torch.compile break its graph at a function: `torch.compiler.disable`, but without loading Dynamo."""

    reason = (
        "freeloc intercepts kernels other than PyTorch's own, and attention that is compiled without its module, "
        "between graphs: compile without fullgraph=True"
    )
    told: Any = {"reason": reason} if "reason" in inspect.signature(torch.compiler.disable).parameters else {}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return torch.compiler.disable(function, **told)(*args, **kwargs)

    call._torchdynamo_disable = True  # type: ignore[attr-defined]
    call._torchdynamo_disable_msg = reason  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]


def mark(model: nn.Module, modules: Iterable[nn.Module]) -> None:
    """Mark these modules as patched for torch.compile.

    torch.compile does not guard hooks, so code that was compiled before a patch would still run under it. But it guards
    that a module has no ``forward`` in its own attributes. So each module gets one, with the same function, while it is
    patched. Without the mark, code compiled before is valid again; with it, code compiled under an earlier patch.
    """
    for module in modules:
        if "forward" not in module.__dict__:
            module.__dict__["forward"] = module.forward
        elif has_compiled_parts(model):  # replaced already, for example by accelerate's hooks: there is no such guard
            torch._dynamo.reset()


def unmark(module: nn.Module) -> None:
    """Remove the mark. A ``forward`` that other code has set stays."""
    if "forward" in module.__dict__ and not has_own_forward(module):
        del module.__dict__["forward"]


def has_own_forward(module: nn.Module) -> bool:
    """Whether other code has replaced the forward of a module."""
    own = module.__dict__.get("forward")
    return own is not None and own != type(module).forward.__get__(module)


def has_compiled_parts(model: nn.Module) -> bool:
    """Whether a model or a part of it is compiled."""
    wrapper = getattr(sys.modules.get("torch._dynamo.eval_frame"), "OptimizedModule", ())
    return any(part._compiled_call_impl is not None or isinstance(part, wrapper) for part in model.modules())


def refuse_export(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse to export a patched model, since the export would contain the plans of one length.

    Raises:
        PatchError: if this model is being exported, also by torch.jit.trace, or compiled by a torch that is too old.
    """
    if not hasattr(torch.compiler, "is_exporting") and torch.compiler.is_dynamo_compiling():
        raise PatchError(
            "expected a torch that can compile a patched model, found one as old as 2.6: install a newer torch, or do "
            "not compile the model"
        )
    exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)()
    # Up to PyTorch 2.9, that is true in all that Dynamo traces. The flag behind it is not.
    exporting = getattr(torch.compiler, "_is_exporting_flag", exporting)
    traced = torch.compiler.is_dynamo_compiling() or any(
        type(value) is not Tensor for value in (*args, *kwargs.values()) if isinstance(value, Tensor)
    )
    if (exporting and traced) or torch._C._get_tracing_state():
        raise PatchError(
            "a patched model cannot be exported: its plans depend on the length of each video. Export the model "
            "without the patch (call remove() on it, or freeloc.unpatch(model)), or use torch.compile"
        )
