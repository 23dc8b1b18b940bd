"""LayerHook: the hooks around one attention module, and the computation of its intercepted call."""

import threading
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from freeloc.adapter.spec import AttentionSite
from freeloc.attention.backends import choose
from freeloc.attention.layout import TokenLayout
from freeloc.attention.op import handle_of
from freeloc.attention.prepared import LayerPlan, check_call
from freeloc.errors import LayoutError
from freeloc.interception import compiled, context
from freeloc.interception.context import ForwardContext, Grid, HeldAttributes, Opened, Read
from freeloc.interception.interceptors import Interceptor, SdpaInterceptor, interceptor_of
from freeloc.interception.kernel_call import KernelCall, as_output, of_sample, read_call
from freeloc.interception.patched import PatchedModel
from freeloc.interception.watch import LayerCall
from freeloc.report import LayerReport


class _Ready(NamedTuple):
    """The plan and layout of a call, which depend only on its sizes."""

    plan: LayerPlan
    layout: TokenLayout
    density: float


class LayerHook:
    """The hooks around one attention module."""

    def __init__(self, model: PatchedModel, site: int, layer: int, path: str, module: nn.Module) -> None:
        self.model = model
        self.module = module
        self._site = site
        self.report = LayerReport(layer, path, model.correction.method_of(layer))
        self.may_correct = self.report.method != "none" or model.correction.observer is not None
        self.in_trace: tuple[Interceptor, list[Any]] | None = None
        self.held = HeldAttributes(self.site.while_running)
        self.__setstate__({})

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("handle", "_ready", "_corrects")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.handle = handle_of(self)
        self._ready: dict[tuple[int, Grid, float], _Ready] = {}
        self._corrects: dict[int, bool] = {}

    @property
    def site(self) -> AttentionSite:
        """The site in the adapter."""
        return self.model.adapter.sites[self._site]

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook: intercept the attention call, if the plan changes anything."""
        if not torch.compiler.is_dynamo_compiling():
            self._before(module, args, kwargs)
        elif not self.model.is_traceable:
            self._before_outside(module, args, kwargs)
        elif self.may_correct:
            interceptor = SdpaInterceptor(self._answer_in_trace, None)
            self.in_trace = interceptor, self.held.hold_in_trace(module)
            interceptor.enter()

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        frame = context.module_frame()
        forward = context.current(self.model) or self._again(frame)
        grids, step = self._grids(forward.read, module, args, kwargs), forward.read.positions_per_frame
        corrects = [self._needs_correction(grid[0]) for grid in grids]  # for all grids, since the report counts each
        if not any(corrects):
            return
        interceptor = interceptor_of(
            self.site.kernel, module, lambda given, named: self._answer(grids, step, given, named), frame
        )

        def finish() -> None:
            interceptor.leave()
            self.held.release(module, interceptor)

        forward.open.append(Opened(self, interceptor, finish))  # before any state that an interrupt could leave behind
        self.held.hold(module, interceptor)
        interceptor.enter()

    _before_outside = compiled.outside_graphs(_before)

    def _again(self, frame: FrameType) -> ForwardContext:
        """A context for a module that autograd runs again, with what its forward has read."""
        by_itself = self.model.adapter.grid.of == "attention"  # then each attention module gets the grid
        read = Read(None, 1.0) if by_itself else context.remembered(self.model)
        if read is None and self.model.traced.thread == threading.get_ident():
            read = self.model.traced.read()  # the model is compiled, and this part of it runs between graphs
        if read is None:
            raise self._outside()
        forward = ForwardContext(self.model, read, frame)
        context.push(forward)
        return forward

    def _grids(self, read: Read, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Grid]:
        """One grid for the batch, or one for each sample."""
        if read.grid is not None:
            return [read.grid]
        reader = self.model.reader
        return [tuple(grid) for grid in reader.of_samples(module, reader.given(args, kwargs)).tolist()]

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook, also called after an exception: end the interception, and check that a call was made."""
        if not torch.compiler.is_dynamo_compiling():
            self._after(module, kwargs, output)
        elif not self.model.is_traceable:
            self._after_outside(module, kwargs, output)
        elif self.in_trace is not None:
            (interceptor, attributes), self.in_trace = self.in_trace, None
            interceptor.leave()
            for attribute in attributes:
                attribute.restore()

    def _after(self, module: nn.Module, kwargs: dict[str, Any], output: Any) -> None:
        forward = context.current(self.model)
        interceptor = None if forward is None else forward.end(self)
        if forward is not None and forward.frame is context.module_frame():
            context.close(forward)  # the context of a module that autograd ran again
        context.close_dead()
        if interceptor is None or interceptor.calls or output is None:
            return
        if not (self.site.idle and kwargs.get(self.site.idle)):
            raise LayoutError(
                f"{self.report.path} ({type(module).__name__}) made no call of {self.site.kernel.function}, so nothing "
                "could be corrected. Linear attention, attention that is answered from a cache, and kernels or "
                "replacements of that function that cannot be seen are not supported"
            )

    _after_outside = compiled.outside_graphs(_after)

    def _needs_correction(self, frames: int) -> bool:
        """Whether this layer's plan at this length changes anything; if not, the report counts the call."""
        known = self._corrects.get(frames)
        if known is None:  # this does not depend on the positions per latent frame
            changes = not self.model.plans.at(self.report.layer, frames).is_identity
            known = self._corrects[frames] = changes or self.model.correction.observer is not None
        if not known:
            self.report.note_untouched(frames)
        return known

    def _answer(self, grids: list[Grid], step: float, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        """Compute the intercepted kernel call of the attention module."""
        kernel = self.site.kernel
        try:
            call = read_call(kernel, args, kwargs)
        except LayoutError as error:
            raise LayoutError(f"{self.report.path}: {error}") from None
        given = dict(zip(kernel.arguments, args, strict=False)) | dict(kwargs) if self.model.correction.observer else {}
        if call.valid is None and all(grid == grids[0] for grid in grids):
            return as_output(kernel, self._attend(call, grids[0], step, given))
        out = torch.zeros_like(call.query, memory_format=torch.contiguous_format)
        lengths = [call.query.shape[2]] * len(call.query) if call.valid is None else call.valid.tolist()
        for sample, tokens in enumerate(lengths):
            grid = grids[sample if len(grids) > 1 else 0]
            out[sample : sample + 1, :, :tokens] = self._attend(of_sample(call, sample, tokens), grid, step, given)
        return as_output(kernel, out)

    def _answer_in_trace(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        """The same in a trace of torch.compile: one opaque call, which chooses the plan by length when it runs."""
        call = read_call(self.site.kernel, args, kwargs)
        out = torch.ops.freeloc.attention(*call[:4], call.scale, self.handle, *self.model.traced)
        return as_output(self.site.kernel, out)

    def answer_compiled(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float | None,
        read: tuple[Grid, float] | None,
    ) -> Tensor:
        """Compute the operator's call in a compiled model, or in a compiled part of a model."""
        grid, step = read or self._read_in(context.current(self.model))
        self._needs_correction(grid[0])
        return self._attend(KernelCall(query, key, value, mask, None, scale), grid, step, {})

    def _read_in(self, forward: ForwardContext | None) -> tuple[Grid, float]:
        """What a running forward has read."""
        read = context.remembered(self.model) if forward is None else forward.read
        if read is None or read.grid is None:
            raise self._outside()
        return read.grid, read.positions_per_frame

    def _outside(self) -> LayoutError:
        return LayoutError(
            f"{self.report.path} ran outside a call of {type(self.model.module).__name__}: freeloc reads the token "
            "grid when the model itself is called. Call model(...), not model.forward(...) or its blocks alone"
        )

    def _attend(self, call: KernelCall, grid: Grid, step: float, given: Mapping[str, Any]) -> Tensor:
        """Attention over samples that have the same grid."""
        which = call.query.shape[2], grid, step
        ready = self._ready.get(which) or self._make_ready(*which)
        # The original repositories have rotated q and k in float32 with v in half precision.
        query, key, value = call.query.to(call.value.dtype), call.key.to(call.value.dtype), call.value
        observer, backends = self.model.correction.observer, self.model.correction.backends
        if observer is not None:
            rotation = self.model.rope, self.model.frequencies * step
            seen = (*call[:3], ready.layout, call.mask, call.scale, *rotation, self.report.path, given)
            answer = observer(LayerCall(self.report.layer, *seen))
            if answer is not None:
                return answer
        try:
            backend = backends[0] if len(backends) == 1 and backends[0].can is None else None
            backend = backend or choose(backends, query, key, value, ready.plan, ready.layout, call.mask)
            # The checks of Backend.compute, but inlined, since every layer runs them at every step.
            if not query.shape[2] == key.shape[2] == ready.layout.tokens:
                check_call(query, key, ready.plan.frames, ready.layout)
            out = backend.attend(query, key, value, ready.plan, ready.layout, call.mask, call.scale)
            like = query.shape, query.dtype, query.device
            if type(out) is not Tensor or (out.shape, out.dtype, out.device) != like:
                backend.check_output(out, query)
        except LayoutError as error:
            raise LayoutError(f"{self.report.path}: {error} (adapter '{self.model.adapter.name}')") from None
        if not ready.plan.is_identity:
            self.report.note_corrected(grid[0], ready.plan.largest_position, ready.density, backend.name)
        return out.to(call.query.dtype)

    def _make_ready(self, tokens: int, grid: Grid, step: float) -> _Ready:
        """Prepare the plan and the layout for a number of tokens: those beyond the grid are text."""
        frames, height, width = grid if self.site.tokens == "f h w" else (grid[0], 1, 1)
        text = max(tokens - frames * height * width, 0)
        first, last = {"first": (text, 0), "last": (0, text), "none": (0, 0)}[self.site.text]
        plan = self.model.plans.at(self.report.layer, frames, step)
        layout = TokenLayout(frames, height, width, first, last)
        ready = self._ready[tokens, grid, step] = _Ready(plan, layout, plan.density(layout.tokens_per_frame))
        return ready
