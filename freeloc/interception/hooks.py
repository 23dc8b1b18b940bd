"""What the forward hooks of a patch do.

The hooks of a transformer open and close the context of each forward, with the token grid from its input. The hooks of
each attention module pass the module's attention call to a backend. If the plan for that many latent frames is the
identity, nothing is intercepted, and the model's own kernel runs.
"""

import copy
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from freeloc.adapter.run_by import RunBy
from freeloc.adapter.spec import Adapter
from freeloc.attention.devices import leave_cpu
from freeloc.interception import checkpoints, compiled, context, run_by
from freeloc.interception.context import ForwardContext, Read
from freeloc.interception.interceptors import leave_dead
from freeloc.interception.layers import LayerHook
from freeloc.interception.missing import bypass_around, note_skipped
from freeloc.interception.patched import Correction, PatchedModel
from freeloc.interception.registration import patched_models, put_on, take_off
from freeloc.interception.rotation import Rotation
from freeloc.interception.run_by import submodule_of
from freeloc.plans.length import VideoLength
from freeloc.report import AGAIN, NO_CALL, TransformerReport


class ModelHook:
    """The hooks of one patched transformer."""

    def __init__(self, module: nn.Module, adapter: Adapter, correction: Correction) -> None:
        self.model = PatchedModel(module, adapter, correction)
        self.is_removed = False
        self.layers = [
            LayerHook(self.model, adapter.sites.index(site), layer, path, attention)
            for site, layer, path, attention in self.model.places
        ]
        self._grid_modules = [self.model.shows_grid] if adapter.grid.submodule else []
        last = adapter.run_by.last if adapter.run_by else ""
        self._last_modules = [submodule_of(module, last, "the end of a forward pass")] if last else []
        self._parts = [*self._grid_modules, *self._last_modules]
        due = [layer for layer in self.layers if layer.may_correct]
        self.may_correct = bool(due)
        for layer in due[:1]:
            layer.is_first = True
        self._due: dict[VideoLength, frozenset[LayerHook]] = {}

    def install(self) -> None:
        """Register all hooks. `remove` and `take_off` remove them, also after an interrupt in this function."""
        module = self.model.module
        for layer in self.layers:
            put_on(layer.module, layer.before, layer.after)
            layer.held.own(layer.module)
        for submodule in self._grid_modules:
            put_on(submodule, None, self.note_grid)
        for submodule in self._last_modules:
            put_on(submodule, None, self.end_function)
        put_on(module, self.open_forward, self.close_forward)
        compiled.mark(module, [*self._parts, *(layer.module for layer in self.layers)])

    def remove(self) -> None:
        """Remove all hooks, and clean up after interrupted forwards in this thread. Idempotent.

        While the model is running, the hooks that close its forwards stay until it has finished.
        """
        self.is_removed = True
        context.close_dead()
        leave_cpu()
        for layer in self.layers:
            layer.traced.end_dead()
        leave_dead()
        for module in (self.model.module, *self._parts, *(layer.module for layer in self.layers)):
            take_off(module, self.model)

    def require_executable(self, frames: int) -> None:
        """Prepare plans of this length, to raise an error before a run if the model's RoPE does not support them."""
        if self.model.rope is None or self.model.frequencies.ndim > 1:
            for layer in self.layers:
                self.model.plans.at(layer.report.layer, VideoLength(frames))

    def open_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the transformer."""
        if not torch.compiler.is_dynamo_compiling():
            self._open_forward(module, args, kwargs)
        elif self.model.is_traceable:
            compiled.refuse_export(args, kwargs)
            self.model.has_called = False
            self.model.trace(self.model.read(args, kwargs))
        else:
            self._open_outside(module, args, kwargs)

    def _open_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        model = self.model
        context.close_dead()
        if torch.compiler.is_compiling() or torch._C._get_tracing_state():  # the former in any thread
            compiled.refuse_export(args, kwargs)
        forward = ForwardContext(model, context.module_frame())
        if not context.is_followed(module, self.open_forward):
            forward.read = model.with_references(model.read(args, kwargs), forward.frame)
        self._run(forward)

    def _run(self, forward: ForwardContext) -> None:
        with context.lock:
            self.model.report.failed += self._ended
            self.model.running = [*(other for other in self.model.running if other.is_running), forward]
        context.push(forward)

    @property
    def _ended(self) -> int:
        """How many calls of the function in `Adapter.run_by` have ended early. Nothing tells when they do."""
        return sum(forward.by_function and not forward.is_running for forward in self.model.running)

    _open_outside = compiled.outside_graphs(_open_forward)

    def close_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook of the transformer, called after an exception too."""
        if not torch.compiler.is_dynamo_compiling():
            self._close_forward(output)
        elif self.model.is_traceable:
            if output is not None and not self.model.has_called and self.may_correct:
                self._close_without_calls()
            self.model.traced = compiled.NOTHING
        else:
            self._close_outside(output)

    def note_grid(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook of the submodule whose call has the token grid."""
        if torch.compiler.is_dynamo_compiling():
            if self.model.is_traceable:
                self.model.trace(self.model.read_submodule(self.model.in_trace, args, kwargs, output))
            else:
                self._note_outside(args, kwargs, output)
        else:
            self._note_grid(args, kwargs, output)

    def _note_grid(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if output is None:  # it ended in an exception
            return
        forward = context.current(self.model)
        if self.model.adapter.run_by is not None:
            forward = self._in_function(self.model.adapter.run_by, forward)
        if forward is not None:
            read = self.model.read_running(forward)
            forward.read, forward.rotation = self.model.read_submodule(read, args, kwargs, output), None

    _note_outside = compiled.outside_graphs(_note_grid)

    def _in_function(self, described: RunBy, forward: ForwardContext | None) -> ForwardContext | None:
        """The context of a call of the function that calls the parts of the transformer, opened if it is new."""
        frame = run_by.frame_of(described, forward.frame if forward else None)
        if self.is_removed:  # in an earlier call, which ended in an error
            self.remove()
        if frame is None or self.is_removed or (forward is not None and forward.frame is frame):
            return forward
        read = self.model.read((), run_by.arguments(frame))
        opened = ForwardContext(self.model, frame, self.model.with_references(read, frame), by_function=True)
        self._run(opened)
        return opened

    def end_function(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook of the submodule that such a function calls last."""
        if torch.compiler.is_dynamo_compiling():
            self._end_outside(output)
        else:
            self._end_function(output)

    def _end_function(self, output: Any) -> None:
        forward = context.current(self.model)
        if forward is not None and forward.by_function:
            self._close(forward, True, output)

    _end_outside = compiled.outside_graphs(_end_function)

    def _close_forward(self, output: Any) -> None:
        forward, here = context.current(self.model), context.module_frame()
        self._close(forward, forward is not None and forward.frame is here, output)

    def _close(self, forward: ForwardContext | None, ended: bool, output: Any) -> None:
        model = self.model
        if forward is not None and ended:
            if torch.is_grad_enabled():
                checkpoints.remember(model, forward.read, output)
                attention = [layer.module for layer in self.layers]
                checkpoints.refuse_after(lambda: model not in patched_models(model.module), attention, output)
            context.close(forward)
        context.close_dead()
        with context.lock:
            model.running = [other for other in model.running if other is not forward and other.is_running]
        if self.is_removed:
            self.remove()
        elif torch._C._current_autograd_node() is not None:  # `checkpoints.in_backward`, without a call
            model.report.notes[AGAIN] += 1
        elif output is None:  # the contexts of calls that ended in an error are closed by `close_dead`
            model.report.failed += 1
        elif forward is not None and ended:
            self._count(forward)

    _close_outside = compiled.outside_graphs(_close_forward)

    def _count(self, forward: ForwardContext) -> None:
        """Count a forward that has ended, and the layers that were due for correction in it and were not called."""
        _, seen, rotation = forward.rotation[1] if forward.rotation else (None, [], None)
        lengths = {*seen} or {length for found in forward.called.values() for length in found}
        if rotation is None:
            read = self.model.read_running(forward)
            rotation = Rotation(read.positions_per_frame)
            lengths = lengths or self._lengths_of(read, rotation)
        self._count_lengths(lengths, rotation, forward.called)
        if forward.read is not None:
            for length in lengths:
                self.model.note_reading(forward.read, length, rotation, forward.text)

    def _lengths_of(self, read: Read, rotation: Rotation) -> set[VideoLength]:
        """The length of a forward in which no layer was called; none if it is not known."""
        return {self.model.length(read, read.grid, rotation)} if read.grid else set()

    def _count_lengths(
        self, lengths: Collection[VideoLength], rotation: Rotation, called: Mapping[object, Any]
    ) -> None:
        report = self.model.report
        if not lengths:
            report.notes[NO_CALL] += 1
        for length in lengths:
            due = self._due.get(length)
            if due is None:
                due = frozenset(layer for layer in self.layers if layer.is_due(length, rotation))
                self._due[length] = due
            report.forwards[length.video] += 1
            report.due[length.video] += bool(due)
            if missing := due.difference(called):
                reports = [layer.report for layer in missing]
                note_skipped(reports, len(due), length.video, self.model.adapter.bypasses, self.model.module)

    @compiled.outside_graphs
    def _close_without_calls(self) -> None:
        """Close a traced forward in which no layer was called that may be corrected."""
        model = self.model
        read = model.with_references(model.traced.read(model.refused_in_trace), context.module_frame())
        rotation = Rotation(read.positions_per_frame)
        self._count_lengths(self._lengths_of(read, rotation), rotation, {})

    def report(self) -> TransformerReport:
        """What has happened so far, as a copy."""
        report = copy.deepcopy(self.model.report)
        report.failed += self._ended
        report.layers = [copy.deepcopy(layer.report) for layer in self.layers]
        for frames in set().union(*(layer.compiled_calls for layer in self.layers)):
            forwards = max(layer.compiled_calls[frames] for layer in self.layers)
            is_due = any(layer.report.calls[frames] for layer in self.layers)
            report.forwards[frames] += forwards
            report.due[frames] += forwards * is_due
            for layer, copied in zip(self.layers, report.layers, strict=True):
                if layer.may_correct and is_due and layer.compiled_calls[frames] < forwards:
                    bypass = bypass_around(copied.path, self.model.adapter.bypasses, self.model.module)
                    copied.skipped[frames, bypass.name if bypass else ""] += forwards - layer.compiled_calls[frames]
        return report
