"""The attention call of a layer in a compiled model: one opaque operator, which chooses the plan when it runs."""

import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from freeloc.adapter.paths import argument_at
from freeloc.errors import LayoutError
from freeloc.interception import checkpoints, context, parallel
from freeloc.interception.compiled import Traced
from freeloc.interception.context import ForwardContext, Read
from freeloc.interception.interceptors import Interceptor, SdpaInterceptor
from freeloc.interception.kernel_call import KernelCall, as_output, read_call
from freeloc.interception.marked import is_foreign, name_of
from freeloc.interception.module_call import CallReader, Which
from freeloc.interception.patched import OF_MODEL, PatchedModel
from freeloc.report import AGAIN


class TracedCalls:
    """The interception of a layer's calls that torch.compile traces, one at a time."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        names = layer.report.path.split(".")
        self._parts = [layer.model.module.get_submodule(".".join(names[:end])) for end in range(len(names) + 1)]
        self._open: tuple[Interceptor, list[Any]] | None = None

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Intercept the attention call of the layer's module."""
        answer = _answer_in_trace(self._layer, args, kwargs)
        interceptor = SdpaInterceptor(
            lambda given, named: answer(interceptor.calls - 1, given, named),
            lambda: self._is_open(interceptor),
            is_traced=True,
        )
        self._open = interceptor, self._layer.held.hold_in_trace(module)
        interceptor.enter()

    def end(self) -> None:
        """End the interception, if there is one."""
        if self._open is not None:
            (interceptor, attributes), self._open = self._open, None
            interceptor.leave()
            for attribute in attributes:
                attribute.restore()

    def end_dead(self) -> None:
        """End the interception of an interrupted call. PyTorch calls no hook after a KeyboardInterrupt."""
        if not self._is_running():
            self.end()

    def _is_open(self, interceptor: Interceptor) -> bool:
        if self._open is None or self._open[0] is not interceptor:
            return False
        return torch.compiler.is_dynamo_compiling() or self._is_running()

    def _is_running(self) -> bool:
        """Whether the module, or one that it is a part of, runs in this thread, between graphs."""
        here: FrameType | None = sys._getframe(1)
        while here is not None:
            of = here.f_locals.get("self")
            if any(of is part for part in self._parts):
                return True
            here = here.f_back
        return False


def _answer_in_trace(
    layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[int, Sequence[Any], Mapping[str, Any]], Any]:
    """A function that answers the kernel calls, by number, of a call of the layer's module in a trace."""
    reader, model, site = layer.reader, layer.model, layer.site
    given = reader.given(args, kwargs)
    mask = argument_at(given, site.text_mask) if site.text_mask else None
    text = 0 if mask is not None else reader.text_tokens(model.in_trace, given, None)[0]
    tables = reader.tables(argument_at(given, model.tables) if model.tables else None)

    def answer(number: int, given: Sequence[Any], named: Mapping[str, Any]) -> Any:
        call = read_call(reader.kernels, given, named, site.text)
        of_sample = None if mask is None else mask[number]
        tensors = call.query, call.key, call.value, call.mask
        rest = layer.handle, *model.traced, tables, of_sample, text
        return as_output(call, torch.ops.freeloc.attention(*tensors, call.scale, *rest))

    return answer


def answer_compiled(
    layer: Any,
    call: tuple[Tensor, Tensor, Tensor, Tensor | None, float | None],
    traced: tuple[Tensor, Tensor, Tensor] | None,
    tables: list[Tensor],
    text_mask: Tensor | None,
    text: int,
) -> Tensor:
    """Compute the operator's call. See `freeloc.attention.op.Layer`."""
    model: PatchedModel = layer.model
    reader: CallReader = layer.reader
    query, key, value, mask, scale = call
    forward = context.current(model) if traced is None else None
    read = _read_running(layer, forward) if traced is None else _read_traced(layer, traced)
    assert read.grid is not None
    text = text if text_mask is None else int(text_mask.bool().sum())
    share = None
    if dist.is_available() and dist.is_initialized():
        share = parallel.sequence_share(model.adapter.context_parallel, layer.module, None, 0)
    if share is not None and not layer.site.text_tokens.startswith(OF_MODEL):
        text = text * share.degree  # the module has those of this process
    rotation = reader.rotation(read, tables, read.grid, text, share)
    length = model.length(read, read.grid, rotation)
    refused = read.refused or rotation.refused or _unchecked(layer)
    if (is_due := layer.is_due(length, rotation)) and refused:
        raise LayoutError(f"{layer.report.path}: {refused} (adapter '{model.adapter.name}')")
    kernel_call = KernelCall(query, key, value, mask, None, scale)
    which = Which(read.grid, length, text, rotation, layer.share_of(kernel_call, share, read.grid))
    out: Tensor = layer.attend(kernel_call, which, {})
    model.report.is_compiled = True
    if checkpoints.in_backward():  # the operator computes its gradients, or gradient checkpointing runs it again
        layer.report.notes[AGAIN] += 1
    elif forward is not None:
        forward.called[layer], forward.text = [length], max(forward.text, text)
        forward.rotation = object(), ([read.grid], [length], rotation)  # eager layers read their own tables
    elif traced is not None:
        layer.compiled_calls[length.video] += 1
        if layer.is_first:
            model.note_reading(read, length, rotation, text)
    if not is_due:
        layer.report.note_untouched(length.video)
    return out


def _unchecked(layer: Any) -> str:
    """Why a processor of another library cannot be compiled; empty if it was checked in an earlier run."""
    if not is_foreign(layer.module) or name_of(layer.module.processor) in layer.model.checked:
        return ""
    return (
        f"{name_of(layer.module.processor)} is of another library than the model, and compiled code cannot check in "
        "what order it hands tokens to its kernel: run the patched model once without torch.compile"
    )


def _read_traced(layer: Any, traced: tuple[Tensor, Tensor, Tensor]) -> Read:
    """What a forward has read that was traced as a whole."""
    model: PatchedModel = layer.model
    return model.with_references(Traced(*traced).read(model.refused_in_trace), sys._getframe(), layer.is_first)


def _read_running(layer: Any, forward: ForwardContext | None) -> Read:
    """What a running forward has read, of whose model only parts are compiled."""
    read = checkpoints.remembered(layer.model) if forward is None else layer.model.read_running(forward)
    if read is None or read.grid is None:
        raise layer.outside()
    return read
