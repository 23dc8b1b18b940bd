"""LayerHook: the hooks around one attention module, and the computation of its intercepted call."""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from freeloc.adapter.kernel import Kernel
from freeloc.adapter.site import AttentionSite
from freeloc.attention.backends import choose
from freeloc.attention.layer_plan import check_call
from freeloc.attention.layout import TokenLayout
from freeloc.attention.op import handle_of
from freeloc.errors import LayoutError
from freeloc.interception import checkpoints, compiled, compiled_layer, context, marked, parallel
from freeloc.interception.context import ForwardContext, Grid, HeldAttributes, Opened
from freeloc.interception.interceptors import interceptor_of
from freeloc.interception.kernel_call import KernelCall, arguments_of, as_output, of_sample, read_call
from freeloc.interception.missing import note_no_call, ran_outside
from freeloc.interception.module_call import CallReader, ModuleCall, Ready, Which
from freeloc.interception.patched import PatchedModel
from freeloc.interception.rotation import Rotation
from freeloc.interception.watch import LayerCall
from freeloc.plans.length import VideoLength
from freeloc.report import AGAIN, LayerReport


class LayerHook:
    """The hooks around one attention module."""

    def __init__(self, model: PatchedModel, site: int, layer: int, path: str, module: nn.Module) -> None:
        self.model = model
        self.module = module
        self._site = site
        self.report = LayerReport(layer, path, model.correction.method_of(layer))
        self.may_correct = self.report.method != "none" or model.correction.observer is not None
        self.is_first = False
        """Whether no layer before it may be corrected: in compiled code, it tells the report what was read."""
        self.compiled_calls: Counter[int] = Counter()
        """Calls in a model that is compiled as a whole, by number of latent frames."""
        self.held = HeldAttributes(self.site.while_running)
        self.reader = CallReader(model, self.site, module)
        self.traced = compiled_layer.TracedCalls(self)
        self.__setstate__({})

    def __getstate__(self) -> dict[str, Any]:
        made = ("handle", "_ready", "_checked", "_corrects")
        return {name: value for name, value in self.__dict__.items() if name not in made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.handle = handle_of(self)
        self._ready: dict[Which, Ready] = {}
        self._checked: dict[tuple[Any, ...], tuple[Any, Any]] = {}
        self._corrects: dict[VideoLength, bool] = {}

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
            self.model.has_called = True
            self.traced.begin(module, args, kwargs)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        frame = context.module_frame()
        forward = context.current(self.model) or self._again(frame)
        is_late = context.is_followed(module, self.before)
        seen = self.reader.see(forward, module, args, kwargs)
        forward.called[self] = seen.lengths
        is_due = self._corrects_any(seen)
        if not (is_due or is_late):
            return
        if is_due and dist.is_available() and dist.is_initialized():
            parallel.require_supported(self.model, module, args, kwargs)
        has_graph = torch.is_grad_enabled()

        def answer(kernels: Sequence[Kernel], given: Sequence[Any], named: Mapping[str, Any]) -> Any:
            nonlocal seen
            if is_late and (now := context.arguments(frame)) is not None:
                seen = self.reader.see(forward, module, *now)
                forward.called[self] = seen.lengths
                if not self._corrects_any(seen):
                    return NotImplemented
            if torch.is_grad_enabled() != has_graph:  # called inside an autograd function, with gradients of its own
                parallel.refuse_gradients(module, args, kwargs)
            return self._answer(seen, interceptor.calls - 1, frame, (kernels, given, named))

        interceptor = interceptor_of(self.reader.kernels, module, answer, frame)

        def finish() -> None:
            interceptor.leave()
            self.held.release(module, interceptor)

        forward.open.append(Opened(self, interceptor, finish))  # before any state that an interrupt could leave behind
        self.held.hold(module, interceptor)
        interceptor.enter()

    def _corrects_any(self, seen: ModuleCall) -> bool:
        """Whether the plan of any sample changes anything.

        Raises:
            LayoutError: if the call is refused, and longer than the trained length.
        """
        corrects = [self.is_due(length, seen.rotation) for length in seen.lengths]  # each, for `_after`
        if seen.refused and (any(corrects) or seen.is_longer):
            raise LayoutError(f"{self.report.path}: {seen.refused} (adapter '{self.model.adapter.name}')")
        return any(corrects)

    _before_outside = compiled.outside_graphs(_before)

    def _again(self, frame: FrameType) -> ForwardContext:
        """A context for a module that autograd runs again, with what its forward has read."""
        is_traced = False
        read = checkpoints.remembered(self.model)
        if read is None:
            read = self.model.read_alone()
        if read is None and self.model.traced.thread == threading.get_ident():
            # The model is compiled, and this part of it runs between graphs.
            read = self.model.with_references(self.model.traced.read(self.model.refused_in_trace), frame)
            self.model.has_called = is_traced = True
        if read is None:
            raise self.outside()
        if checkpoints.in_backward():
            self.report.notes[AGAIN] += 1
        forward = ForwardContext(self.model, frame, read, is_traced=is_traced)
        context.push(forward)
        return forward

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook, also called after an exception: end the interception, and check that a call was made."""
        if not torch.compiler.is_dynamo_compiling():
            self._after(module, kwargs, output)
        elif not self.model.is_traceable:
            self._after_outside(module, kwargs, output)
        else:
            self.traced.end()

    def _after(self, module: nn.Module, kwargs: dict[str, Any], output: Any) -> None:
        forward = context.current(self.model)
        interceptor = None if forward is None else forward.end(self)
        lengths = [] if forward is None or output is None else forward.called.get(self, [])
        if forward is not None and forward.frame is context.module_frame():
            context.close(forward)  # the context of a module that autograd ran again
        context.close_dead()
        for length in lengths:
            if not self._corrects[length]:
                self.report.note_untouched(length.video)
        if forward is not None and forward.is_traced:
            self.compiled_calls.update(length.video for length in lengths)
        if interceptor is not None and not interceptor.calls and output is not None:
            due = [length.video for length in lengths if self._corrects[length]]
            note_no_call(self.report, self.site, self.model.adapter.bypasses, module, kwargs, due)

    _after_outside = compiled.outside_graphs(_after)

    def is_due(self, length: VideoLength, rotation: Rotation) -> bool:
        """Whether this layer's plan at this length changes anything, or an observer wants its call."""
        known = self._corrects.get(length)
        if known is None:
            plan = self.model.plans_under(rotation).at(self.report.layer, length, rotation.positions_per_frame)
            known = self._corrects[length] = not plan.is_identity or self.model.correction.observer is not None
        return known

    def _answer(
        self,
        seen: ModuleCall,
        number: int,
        frame: FrameType,
        intercepted: tuple[Sequence[Kernel], Sequence[Any], Mapping[str, Any]],
    ) -> Any:
        """Compute the intercepted kernel call of the attention module."""
        grids = seen.grids
        try:
            call = read_call(*intercepted, self.site.text)
        except LayoutError as error:
            raise LayoutError(f"{self.report.path}: {error}") from None
        given = arguments_of(call.kernel, *intercepted[1:]) if self.model.correction.observer else {}
        text = seen.text[min(number, len(seen.text) - 1)]
        share = self.share_of(call, seen.share, grids[0])
        which = Which(grids[0], seen.lengths[0], text, seen.rotation, share)
        if number == 0 and self.model.correction.checked:
            self._check(which, seen, call, frame)
        if call.valid is None and all(grid == grids[0] for grid in grids):
            return as_output(call, self.attend(call, which, given))
        out = torch.zeros_like(call.query, memory_format=torch.contiguous_format)
        lengths = [call.query.shape[2]] * len(call.query) if call.valid is None else call.valid.tolist()
        for sample, tokens in enumerate(lengths):
            at = sample if len(grids) > 1 else 0
            # Padding after the valid tokens is text or nothing.
            valid_text = min(text, max(tokens - self.reader.video_tokens(grids[at]), 0)) if text else 0
            which = Which(grids[at], seen.lengths[at], valid_text, seen.rotation, share)
            out[sample : sample + 1, :, :tokens] = self.attend(of_sample(call, sample, tokens), which, given)
        return as_output(call, out)

    def share_of(self, call: KernelCall, tokens: parallel.Share | None, grid: Grid) -> parallel.Share | None:
        """Whose heads a call has, if several processes share the layer; `tokens`: whose tokens the module has."""
        if tokens is None and call.query.shape[1] == self.model.shape.heads:
            return None
        return parallel.head_share(self.model, self.module, call, tokens, self.reader.video_tokens(grid))

    def _check(self, which: Which, seen: ModuleCall, call: KernelCall, frame: FrameType) -> None:
        """Check the tokens that reach the kernel, in the first call of each size and processor.

        Raises:
            LayoutError: if they are not in the order, or not rotated, as the adapter describes.
        """
        own = getattr(self.module, "processor", None), self.module.__dict__.get("forward")
        size = *which[:3], which.share
        known = self._checked.get(size)
        if known is None or known[0] is not own[0] or known[1] is not own[1]:
            ready = self._ready.get(which) or self._make_ready(which)
            of_call, shares = (call, which, ready.layout), (seen.share, ready.gathered)
            running = frame, seen.arguments or context.arguments(frame)
            marked.check(self.model, self.reader, self.module, running, of_call, shares, self.report.path)
            self._checked[size] = own

    def answer_compiled(self, *arguments: Any) -> Tensor:
        """Compute the operator's call in a compiled model, or in a compiled part of a model."""
        return compiled_layer.answer_compiled(self, *arguments)

    def outside(self) -> LayoutError:
        """The error for a call of the module without one of the model."""
        return ran_outside(self.report.path, self.model.adapter, self.model.module, self.model.report.is_compiled)

    def attend(self, call: KernelCall, which: Which, given: Mapping[str, Any]) -> Tensor:
        """Attention over samples that have the same grid."""
        rotation = which.rotation
        ready = self._ready.get(which) if rotation.frequencies is None else None
        ready = ready or self._make_ready(which)
        if ready.gathered is not None:
            call = parallel.in_layout(call, ready.layout, ready.gathered)
        # The original repositories have rotated q and k in float32 with v in half precision.
        query, key, value = call.query.to(call.value.dtype), call.key.to(call.value.dtype), call.value
        observer, backends = self.model.correction.observer, self.model.correction.backends
        if observer is not None:
            seen = (*call[:3], ready.layout, call.mask, call.scale, self.model.rope, self.model.per_frame(rotation))
            answer = observer(LayerCall(self.report.layer, *seen, self.report.path, given))
            if answer is not None:
                return answer
        try:
            # The checks of Backend.compute, but inlined, since every layer runs them at every step.
            if not query.shape[2] == key.shape[2] == ready.layout.tokens:
                check_call(query, key, ready.plan.frames, ready.layout)
            backend = backends[0] if len(backends) == 1 and backends[0].can is None else None
            backend = backend or choose(backends, query, key, value, ready.plan, ready.layout, call.mask)
            out = backend.attend(query, key, value, ready.plan, ready.layout, call.mask, call.scale)
            like = query.shape, query.dtype, query.device
            if type(out) is not Tensor or (out.shape, out.dtype, out.device) != like:
                backend.check_output(out, query)
        except LayoutError as error:
            raise LayoutError(f"{self.report.path}: {error} (adapter '{self.model.adapter.name}')") from None
        if not ready.plan.is_identity:
            self.report.note_corrected(ready.frames, ready.plan.largest_position, ready.density, backend.name)
        elif which.share is not None:  # heads of other processes are corrected
            self.report.note_untouched(ready.frames)
        if ready.gathered is not None:
            out = parallel.as_gathered(out, ready.layout, ready.gathered)
        return out.to(call.query.dtype)

    def _make_ready(self, which: Which) -> Ready:
        """Prepare the plan and the layout of a call."""
        grid, length, text, rotation, share = which
        frames, height, width = grid if self.site.tokens == "f h w" else (grid[0], 1, 1)
        first, last = {"first": (text, 0), "last": (0, text), "none": (0, 0)}[self.site.text]
        plans, at = self.model.plans_under(rotation), (self.report.layer, length, rotation.positions_per_frame)
        plan = plans.at(*at)
        if share is not None:
            plan = parallel.plans_of(share, self.model, plans, plan, text).at(*at)
            self.report.share = share.label(self.model.shape.heads)
        layout = TokenLayout(frames, height, width, first, last)
        gathered = share if share is not None and share.gathers and text else None
        ready = Ready(plan, layout, plan.density(layout.tokens_per_frame), length.video, gathered)
        if rotation.frequencies is None:
            self._ready[which] = ready
        return ready
