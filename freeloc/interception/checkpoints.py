"""What forwards have read, noted in their autograd graphs, for gradient checkpointing, which runs modules again."""

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from freeloc.errors import PatchError
from freeloc.interception.context import Read

_KEY = "freeloc: what was read from the call"


def remember(owner: object, read: Read | None, output: Any) -> None:
    """Store what a forward has read in its autograd graph, for gradient checkpointing, which runs modules again.

    It is stored on every node of the graph, since modules may run again for any of them.
    """
    if read is None:
        return
    nodes = [tensor.grad_fn for tensor in _tensors(output) if tensor.grad_fn is not None]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        _notes(node)[id(owner)] = owner, read
        for inner, _ in node.next_functions:
            if inner is not None and inner not in seen and id(owner) not in _notes(inner):
                seen.add(inner)
                nodes.append(inner)


def refuse_after(is_removed: Callable[[], bool], attention: Collection[nn.Module], output: Any) -> None:
    """Make it an error if gradient checkpointing runs attention again once the patch is removed, without it.

    Whether it will is not known before. So at the start of such a backward pass, the modules get hooks until its end.
    """

    def watch(*gradients: Any) -> None:
        if is_removed():
            for module in attention:
                module.register_forward_pre_hook(refuse)
            # Not called if the pass ends in an error. Then the next forward of each module removes its hook.
            torch.autograd.Variable._execution_engine.queue_callback(forget)

    def refuse(module: nn.Module, args: Any) -> None:
        if in_backward():
            raise PatchError(
                f"gradient checkpointing runs {type(module).__name__} again, but the patch under which it ran is "
                "removed: call backward() inside the `with freeloc.patch(...)` block"
            )
        forget()

    def forget() -> None:
        for module in attention:
            hooks = module._forward_pre_hooks
            for key in [key for key, hook in hooks.items() if hook is refuse]:
                del hooks[key]

    for tensor in _tensors(output):
        if tensor.grad_fn is not None:
            tensor.grad_fn.register_prehook(watch)


def remembered(owner: object) -> Read | None:
    """What was read in the forward whose gradients autograd is computing in this thread, or None."""
    node = torch._C._current_autograd_node()  # there is no public function for it
    noted = None if node is None else _notes(node).get(id(owner))
    return None if noted is None or noted[0] is not owner else noted[1]


def in_backward() -> bool:
    """Whether autograd is computing gradients in this thread. Gradient checkpointing then runs modules again."""
    return torch._C._current_autograd_node() is not None


def _notes(node: Any) -> dict[int, tuple[object, Read]]:
    """The entries on a node of an autograd graph, by id of the patched model."""
    notes: dict[int, tuple[object, Read]] = node.metadata.setdefault(_KEY, {})
    return notes


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        yield from _tensors(list(output.values()))
    elif isinstance(output, list | tuple):
        for part in output:
            yield from _tensors(part)
