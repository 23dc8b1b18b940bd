"""The only file that registers forward hooks.

A hook on the transformer notes the token grid of the call and which layers have something to correct. A pair of hooks
around each attention module hands the module's one attention call to the engine; where the plan for that many frames is
the identity, nothing is touched.
"""

import itertools
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from freeloc.adapter.grid import GridReader
from freeloc.adapter.spec import Adapter, AttentionSite
from freeloc.attention.engine import TokenLayout
from freeloc.attention.prepared import HeadGroup, PreparedPlans, attend_groups
from freeloc.errors import LayoutError
from freeloc.interception.context import Call, Noted, Open
from freeloc.interception.interceptors import HeldAttributes, Takeover, takeover_of
from freeloc.interception.kernel_call import Observer, SeenAttention, as_output, read_call
from freeloc.plans.method import Plans
from freeloc.report import LayerReport

_layers: "weakref.WeakValueDictionary[int, LayerHook]" = weakref.WeakValueDictionary()
_handles = itertools.count()


class ModelHook:
    """One patched transformer: its plans, and what the call that is running says."""

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter,
        label: str,
        method_name: Callable[[int], str],
        plan: Callable[[int, int], Plans],
        observer: Observer | None = None,
    ) -> None:
        self.adapter = adapter
        self.label = label
        self.method_name = method_name
        self.observer = observer
        """Told of every attention call; then even layers with nothing to correct are taken over."""
        self.call = Noted[Call]()
        self.open = Open()
        shape = adapter.shape(model)
        self.rope = adapter.rope_of(model)
        nothing = torch.zeros(1, dtype=torch.float64)
        self.frequencies = self.rope.frequencies_of(model, shape.head_dim) if self.rope else nothing
        self.plans = PreparedPlans(plan, shape, self.rope, self.frequencies)
        places = list(adapter.places(model))
        reads = adapter.grid.of == "transformer"
        self.reader = GridReader(adapter, model, model if reads else places[0][3])
        self.layers = [LayerHook(self, site, layer, path) for site, layer, path, _ in places]
        note = self.note_grid if reads else self.forget_grid
        self._remover = model.register_forward_pre_hook(note, with_kwargs=True)
        first_id = RemovableHandle.next_id
        for layer, (_, _, _, module) in zip(self.layers, places, strict=True):
            RemovableHandle.next_id = first_id  # torch.compile guards ids: with equal ones, equal layers share a graph
            layer.hook(module)
        self._installed = True
        _forget_compiled()

    def remove(self) -> None:
        """Take all hooks off, and give back what this thread has taken over. Idempotent."""
        self.close()
        if self._installed:
            self._installed = False
            self._remover.remove()
            for layer in self.layers:
                layer.remove()
            _forget_compiled()

    def close(self) -> None:
        """Give back what an interrupted forward in this thread has left: no hook runs after a KeyboardInterrupt."""
        while self.open.calls:
            layer, takeover = self.open.calls.pop()
            layer.close(takeover)

    def note_grid(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of a transformer whose input shows the grid."""
        self.close()
        given = self.reader.given(args, kwargs)
        frames, height, width = self.reader.of_model(module, given)
        length = len(range(frames))  # torch.compile may have made `frames` a symbol; a length is a number
        for layer, corrects in zip(self.layers, _corrected_layers(self.layers[0].handle, length), strict=True):
            layer.corrects.note(corrects)
        step = self.rope.step(module, given) if self.rope is not None and self.rope.step is not None else 1.0
        self.call.note(Call(torch.tensor([[frames, height, width]]), torch.tensor(step, dtype=torch.float64)))

    def forget_grid(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of a transformer that passes a table of sizes per sample to its attention modules."""
        self.close()
        self.call.note(None)

    def require_executable(self, frames: int) -> None:
        """Refuse, before anything runs, plans for so many latent frames that the model's RoPE cannot execute."""
        if self.rope is None or self.frequencies.ndim > 1:
            for layer in self.layers:
                layer.groups(frames, 1.0)


class LayerHook:
    """The hooks around one attention module."""

    def __init__(self, model: ModelHook, site: AttentionSite, layer: int, path: str) -> None:
        self.model = model
        self.site = site
        self.report = LayerReport(layer, path, model.method_name(layer))
        self.corrects = Noted[bool]()
        """Whether the call that is running is to be corrected."""
        self._by_frames: dict[tuple[int, float], list[HeadGroup]] = {}
        self._held = HeldAttributes(site.while_running)
        self._removers: list[RemovableHandle] = []
        self._removed = False
        self._register()

    def _register(self) -> None:
        self.handle = next(_handles)
        self.ticket = torch.tensor(self.handle)
        _layers[self.handle] = self

    def __setstate__(self, state: dict[str, Any]) -> None:  # a deep copy of a patched model is patched on its own
        self.__dict__.update(state)
        self._register()

    def hook(self, module: nn.Module) -> None:
        """Register both."""
        self._removers = [
            module.register_forward_pre_hook(self.before, with_kwargs=True),
            module.register_forward_hook(self.after, with_kwargs=True, always_call=True),
        ]

    def remove(self) -> None:
        """Take both off; what another thread has taken over is given back first, by `after`."""
        self._removed = True
        self._removers[0].remove()
        if not self._held.users:
            self._removers[1].remove()

    def close(self, takeover: Takeover) -> None:
        """The end of a call."""
        takeover.leave()
        self._held.release()
        if self._removed:
            self.remove()

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook: take the attention call over, if the plan says so."""
        if not self._corrects(module, args, kwargs):
            return
        takeover = takeover_of(self.site.kernel, module, self.attention)
        self._held.hold(module)
        takeover.enter()
        self.model.open.calls.append((self, takeover))

    def _corrects(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether there is something to correct in this call."""
        if self.model.adapter.grid.of == "attention":
            reader = self.model.reader
            grids = reader.of_samples(module, reader.given(args, kwargs))
            self.model.call.note(Call(grids, torch.ones((), dtype=torch.float64)))
            return True in [self.needs_correction(int(frames)) for frames, _, _ in grids.tolist()]
        if self.corrects.value is None:
            raise LayoutError(f"{self.report.path} ran, but not through its transformer's forward: the grid is unknown")
        return self.corrects.value

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook, called after an exception too: give the call back, and make sure that one was taken."""
        opened = self.model.open.calls
        if not opened or opened[-1][0] is not self:
            return
        takeover = opened.pop()[1]
        self.close(takeover)
        if takeover.calls == 0 and output is not None and not (self.site.idle and kwargs.get(self.site.idle)):
            raise LayoutError(
                f"{self.report.path} ({type(module).__name__}) made no call of {self.site.kernel.function}, so nothing "
                "could be corrected. Linear attention, attention that is answered from a cache, and kernels or "
                "replacements of that function that cannot be seen are not supported"
            )

    def attention(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        """What the attention module's kernel call computes while it is taken over."""
        try:
            given = read_call(self.site.kernel, args, kwargs)
        except LayoutError as error:
            raise LayoutError(f"{self.report.path}: {error}") from None
        call = self.model.call.value
        assert call is not None  # `before` has seen to it
        run: Any = torch.ops.freeloc.attention if torch.compiler.is_compiling() else _attention
        return as_output(self.site.kernel, run(*given, self.ticket, *call))

    def run(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        grid: list[int],
        mask: Tensor | None,
        scale: float | None,
        step: float,
    ) -> Tensor:
        """The engine on (batch, heads, tokens, head_dim) of samples that have the same grid."""
        layout = self.layout(query.shape[2], grid)
        if self.model.observer is not None:
            turning = self.model.rope, self.model.frequencies * step
            self.model.observer(SeenAttention(self.report.layer, query, key, value, layout, mask, scale, *turning))
        groups = self.groups(layout.frames, step)
        # The original repositories keep rotated q and k in float32 beside a half-precision v.
        turned = query.to(value.dtype), key.to(value.dtype)
        try:
            out = attend_groups(groups, *turned, value, layout, mask, scale)
        except LayoutError as error:
            raise LayoutError(f"{self.report.path}: {error} (adapter '{self.model.adapter.name}')") from None
        self._note(groups, layout)
        return out.to(query.dtype)

    def _note(self, groups: list[HeadGroup], layout: TokenLayout) -> None:
        """Count the call, if it was corrected: of a batch, a short sample may have been left alone."""
        plans = [(len(group.heads or [0]), group.tables.plan) for group in groups]
        if all(plan.is_identity for _, plan in plans):
            return
        density = sum(heads * plan.density(layout.tokens_per_frame) for heads, plan in plans)
        largest = max(plan.largest_position for _, plan in plans)
        self.report.note_corrected(layout.frames, largest, density / sum(heads for heads, _ in plans))

    def layout(self, tokens: int, grid: Sequence[int]) -> TokenLayout:
        """What the tokens of a sequence are: those beyond the grid are text."""
        frames, height, width = grid if self.site.tokens == "f h w" else (grid[0], 1, 1)
        text = max(tokens - frames * height * width, 0)
        first, last = {"first": (text, 0), "last": (0, text), "none": (0, 0)}[self.site.text]
        return TokenLayout(frames, height, width, first, last)

    def groups(self, frames: int, step: float) -> list[HeadGroup]:
        """This layer's plans for so many latent frames."""
        if (frames, step) not in self._by_frames:
            self._by_frames[frames, step] = self.model.plans.groups(self.report.layer, frames, step)
        return self._by_frames[frames, step]

    def needs_correction(self, frames: int) -> bool:
        """Whether this layer's plan for so many latent frames changes anything; noted in the report if not."""
        groups = self.groups(frames, 1.0)  # a plan that changes nothing does so at any step
        if self.model.observer is not None or not all(group.tables.plan.is_identity for group in groups):
            return True
        why = "which the profile leaves alone" if self.report.method == "none" else "for which the plan changes nothing"
        self.report.untouched[f"{frames} latent frames, {why}"] += 1
        return False


def _corrected_layers(first: int, frames: int) -> tuple[bool, ...]:
    """Which layers of the model with this first layer have something to correct. A constant to torch.compile."""
    return tuple(layer.needs_correction(frames) for layer in _layers[first].model.layers)


# What torch.compiler.assume_constant_result sets; calling that would load all of torch.compile with freeloc.
_corrected_layers._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    valid: Tensor | None,
    scale: float | None,
    ticket: Tensor,
    grids: Tensor,
    step: Tensor,
) -> Tensor:
    """The layer with this ticket on (batch, heads, tokens, head_dim), all samples at once where they have one grid."""
    layer, sizes = _layers[int(ticket)], grids.tolist()
    if valid is None and all(grid == sizes[0] for grid in sizes):
        return layer.run(query, key, value, sizes[0], mask, scale, float(step))
    out = torch.zeros_like(query, memory_format=torch.contiguous_format)
    lengths = [query.shape[2]] * len(query) if valid is None else valid.tolist()
    for sample, length in enumerate(lengths):
        grid = sizes[sample if len(sizes) > 1 else 0]
        q, k, v = (tensor[sample : sample + 1, :, :length] for tensor in (query, key, value))
        own = None if mask is None else _of_sample(mask, sample, length)
        out[sample : sample + 1, :, :length] = layer.run(q, k, v, grid, own, scale, float(step))
    return out


def _of_sample(mask: Tensor, sample: int, length: int) -> Tensor:
    """The part of a mask, of whichever axes it has, that is about one sample's first tokens."""
    if mask.ndim == 4 and mask.shape[0] > 1:
        mask = mask[sample : sample + 1]
    return mask[..., :length] if mask.ndim < 2 or mask.shape[-2] == 1 else mask[..., :length, :length]


# All that torch.compile sees of the engine is one opaque call.
_opaque = torch.library.custom_op("freeloc::attention", _attention, mutates_args=())
_opaque.register_fake(lambda query, *rest: torch.empty(query.shape, dtype=query.dtype, device=query.device))


def model_hooks(model: nn.Module) -> Iterator[ModelHook]:
    """The hooks of patches that are on this very module."""
    for hook in model._forward_pre_hooks.values():
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, ModelHook):
            yield owner


def _forget_compiled() -> None:
    """Make compiled models look again: torch.compile does not notice hooks that come or go."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
