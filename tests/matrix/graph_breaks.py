"""torch.compile with breaks in its graph.

Breaks are caused by hooks of the user, and by torch.compiler.disable, at each place around attention.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .cell import EXACT, LONG, LONGER, ORDERS, Apply, Case, Cell, Exact, Refused, applied, worst
from .compilation import attention_of, blocks_of


def breaks(*given: Any) -> None:
    torch._dynamo.graph_break()


def prints(*given: Any) -> None:
    print(end="")


def before(name: str, hook: Callable[..., None] = breaks) -> Callable[[nn.Module], None]:
    """A forward pre-hook on a part of the attention module, or, without a name, on itself."""
    return lambda attention: attention.get_submodule(name).register_forward_pre_hook(hook) and None


def after(attention: nn.Module) -> None:
    attention.register_forward_hook(breaks)


def forward_disabled(name: str) -> Callable[[nn.Module], None]:
    def apply(attention: nn.Module) -> None:
        part = attention.get_submodule(name)
        part.forward = torch.compiler.disable(part.forward)  # type: ignore[method-assign]

    return apply


def processor_disabled(attention: Any) -> None:
    kind = type(attention.processor)
    attention.processor.__class__ = type(kind.__name__, (kind,), {"__call__": torch.compiler.disable(kind.__call__)})


DISABLED = "torch.compiler.disable on the processor"
PLACES = {
    "a pre-hook on to_q that breaks the graph": before("to_q"),
    "a pre-hook on to_out that breaks the graph": before("to_out.0"),
    "a pre-hook on norm_q that breaks the graph": before("norm_q"),
    "a pre-hook on the attention that breaks the graph": before(""),
    "a hook on the attention that breaks the graph": after,
    "a hook on to_v that prints": before("to_v", prints),
    "torch.compiler.disable on attn.forward": forward_disabled(""),
    "torch.compiler.disable on to_q.forward": forward_disabled("to_q"),
    DISABLED: processor_disabled,
}
NOT_CHECKED = Refused("LayoutError: .*is of another library than the model, and compiled code cannot check")
"""The processor is of another class then."""
IN_BOTH_ORDERS = ("a pre-hook on to_q that breaks the graph",)


def with_break(place: Callable[[nn.Module], None], by_blocks: bool) -> Apply:
    def apply(model: Any) -> None:
        for block in blocks_of(model):
            place(attention_of(block)[1])
        for module in blocks_of(model) if by_blocks else [model]:
            module.compile(backend="eager")

    return apply


def eager_first(by_blocks: bool) -> Any:
    """What was refused is checked in an eager run."""

    def body(case: Case) -> Exact:
        for block in blocks_of(case.model):
            processor_disabled(attention_of(block)[1])
        with case.patch():
            found = [case.exact(case.run())]
            for module in blocks_of(case.model) if by_blocks else [case.model]:
                module.compile(backend="eager")
            found += [case.exact(case.run(frames=frames), frames) for frames in (LONG, LONGER)]
        return worst(found)

    return body


CELLS = [
    applied(
        f"{name}; {'block' if by_blocks else 'model'}.compile()",
        with_break(place, by_blocks),
        families=("wan", "hunyuan-video") if name in IN_BOTH_ORDERS else ("wan",),
        orders=ORDERS if name in IN_BOTH_ORDERS else ORDERS[1:],
        lengths=(LONG, LONGER),
        expects=NOT_CHECKED if place is processor_disabled else EXACT,
        quick=("wan",) if name.endswith("attn.forward") and by_blocks else (),
    )
    for name, place in PLACES.items()
    for by_blocks in (False, True)
] + [
    Cell(
        f"torch.compiler.disable on the processor; an eager run, then {name}.compile()",
        eager_first(by_blocks),
        ("wan",),
    )
    for name, by_blocks in {"model": False, "block": True}.items()
]
