"""The only file that registers forward hooks and intercepts attention calls.

A hook on the transformer notes the token grid of the call. A pair of hooks around each attention module hands the module's
one attention call to the engine, unless the plan for that many frames is the identity: then nothing is touched.
"""

import importlib
import itertools
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from types import ModuleType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from freeloc.adapter import SDPA, Adapter, AttentionSite, Kernel
from freeloc.attention import PlanTables, TokenLayout, attend
from freeloc.errors import AdapterError, LayoutError
from freeloc.plan import FramePlan
from freeloc.report import LayerReport

Grid = tuple[int, int, int]
"""Latent frames, height and width in tokens."""

_layers: "weakref.WeakValueDictionary[int, LayerHook]" = weakref.WeakValueDictionary()
_handles = itertools.count()


class ModelHook:
    """One patched transformer: its plans, and the grid of the call that is running."""

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter,
        label: str,
        method_name: Callable[[int], str],
        plan: Callable[[int, int], FramePlan],
    ) -> None:
        self.adapter = adapter
        self.label = label
        self.method_name = method_name
        self.grids: tuple[Grid, ...] = ()
        self.head_dim = adapter.shape(model).head_dim
        self._plan = plan
        self._tables: dict[int, list[PlanTables]] = {}
        patch_size = adapter.patch_size(model) if adapter.grid.of == "transformer" else (1, 1, 1)
        names = adapter.grid.axes.split()
        # Plain numbers, read here: what follows is traced by torch.compile.
        self._axes = [(names.index(name), size) for name, size in zip("fhw", patch_size, strict=True) if name in names]
        sites = [(site, *place) for site in adapter.sites for place in site.modules(model)]
        self.layers = [LayerHook(self, site, layer, path) for site, layer, path, _ in sites]
        self._removers: list[RemovableHandle] = []
        if adapter.grid.of == "transformer":
            self._removers.append(model.register_forward_pre_hook(self.note_grid, with_kwargs=True))
        else:
            self._removers.append(model.register_forward_pre_hook(self.mark, with_kwargs=True))
        for hook, (_, _, _, module) in zip(self.layers, sites, strict=True):
            self._removers.append(module.register_forward_pre_hook(hook.before, with_kwargs=True))
            self._removers.append(module.register_forward_hook(hook.after, with_kwargs=True, always_call=True))
        _forget_compiled()

    def remove(self) -> None:
        """Take all hooks off. Idempotent."""
        for remover in self._removers:
            remover.remove()
        if self._removers:
            _forget_compiled()
        self._removers.clear()

    def mark(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Mark the model as patched; its attention modules read the grid themselves."""

    def note_grid(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the transformer."""
        value = self._argument(module, args, kwargs)
        shape = value.shape
        if len(shape) != len(self.adapter.grid.axes.split()):
            raise LayoutError(
                f"expected {self.adapter.grid.argument} with axes ({self.adapter.grid.axes}), found shape {tuple(shape)}"
            )
        frames, height, width = (shape[axis] // size for axis, size in self._axes)
        if frames < 1 or height < 1 or width < 1:
            raise LayoutError(
                f"expected at least 1 latent frame, row and column of tokens, found {frames} x {height} x {width}: "
                f"{self.adapter.grid.argument} has shape {tuple(shape)}"
            )
        self.grids = ((frames, height, width),)

    def read_sizes(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The same for a model that passes a table of sizes per sample to its attention modules."""
        sizes = self._argument(module, args, kwargs).tolist()
        if not sizes or any(len(size) != 3 or min(size) < 1 for size in sizes):
            raise LayoutError(f"expected {self.adapter.grid.argument} (latent frames, height, width) >= 1, found {sizes}")
        self.grids = tuple((int(f), int(h), int(w)) for f, h, w in sizes)

    def _argument(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        grid = self.adapter.grid
        if grid.argument in kwargs:
            return kwargs[grid.argument]
        if len(args) > grid.position:
            return args[grid.position]
        raise LayoutError(f"{type(module).__name__} was called without {grid.argument}, from which its grid is read")

    def tables(self, layer: int, frames: int) -> PlanTables:
        """The plan of a layer at a length. Layers with the same plan share its tables."""
        plan = self._plan(layer, frames)
        if plan.frames != frames:
            raise LayoutError(f"expected a plan for {frames} latent frames, the method made one for {plan.frames}")
        known = self._tables.setdefault(frames, [])
        for tables in known:
            same = torch.equal(tables.plan.positions, plan.positions) and tables.plan.stripe == plan.stripe
            if same and torch.equal(tables.plan.visibility, plan.visibility):
                return tables
        known.append(PlanTables(plan, self.adapter.rope, self.head_dim))
        return known[-1]


class LayerHook:
    """The hooks around one attention module."""

    def __init__(self, model: ModelHook, site: AttentionSite, layer: int, path: str) -> None:
        self.model = model
        self.site = site
        self.report = LayerReport(layer, path, model.method_name(layer))
        self._by_frames: dict[int, PlanTables] = {}
        self._takeover: _Takeover | None = None
        self._held: list[tuple[Any, str, bool, Any]] = []
        self._values = {attribute: _import(value) for attribute, value in site.while_running.items()}
        self._register()

    def _register(self) -> None:
        self.handle = next(_handles)
        _layers[self.handle] = self

    def __setstate__(self, state: dict[str, Any]) -> None:  # a deep copy of a patched model is patched on its own
        self.__dict__.update(state)
        self._register()

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook: take the attention call over, if the plan says so."""
        if self.model.adapter.grid.of == "attention":
            self.model.read_sizes(module, args, kwargs)
        if not self.model.grids:
            raise LayoutError(f"{self.report.path} ran, but not through its transformer's forward: the grid is unknown")
        for grid in self.model.grids:
            if not _is_untouched(self.handle, grid[0]):
                self._take(module)
                return

    def _take(self, module: nn.Module) -> None:
        for attribute, value in self._values.items():
            parent, _, name = attribute.rpartition(".")
            owner = attrgetter(parent)(module) if parent else module
            own = name in owner.__dict__
            self._held.append((owner, name, own, getattr(owner, name, None)))
            setattr(owner, name, value)
        takeover: _Takeover = (
            _FunctionTakeover(self)
            if self.site.kernel.function == SDPA.function
            else _NameTakeover(self, type(module).__module__)
        )
        takeover.enter()
        self._takeover = takeover

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook, called after an exception too: give the call back, and make sure that one was taken."""
        takeover, self._takeover = self._takeover, None
        while self._held:
            owner, name, own, value = self._held.pop()
            if own:
                setattr(owner, name, value)
            else:
                delattr(owner, name)
        if takeover is None:
            return
        takeover.leave()
        if takeover.calls == 0 and output is not None:
            raise LayoutError(
                f"{self.report.path} ({type(module).__name__}) made no call of {self.site.kernel.function}, so nothing "
                "could be corrected. Linear attention and kernels that cannot be seen are not supported"
            )

    def attention(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """What the attention module's kernel call computes while it is taken over."""
        kernel = self.site.kernel
        given = dict(zip(kernel.arguments, args, strict=False)) | dict(kwargs)
        for name, neutral in kernel.neutral.items():
            if given.get(name, neutral) != neutral:
                raise LayoutError(f"{self.report.path}: expected {name}={neutral} in its attention, found {given[name]}")
        query, key, value = given[kernel.query], given[kernel.key], given[kernel.value]
        if kernel.layout == "b l h d":
            query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        mask = given.get(kernel.mask) if kernel.mask else None
        scale = given.get(kernel.scale) if kernel.scale else None
        valid = given.get(kernel.valid_keys) if kernel.valid_keys else None
        if torch.compiler.is_compiling():
            sizes = [size for grid in self.model.grids for size in grid]
            out = torch.ops.freeloc.attention(query, key, value, mask, scale, self.handle, sizes)
        else:
            out = self.run(query, key, value, self.model.grids, mask, scale, valid)
        return out.transpose(1, 2) if kernel.layout == "b l h d" else out  # type: ignore[no-any-return]

    def run(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        grids: Sequence[Grid],
        mask: Tensor | None = None,
        scale: float | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """The engine on (batch, heads, tokens, head_dim), all samples at once where they have the same grid."""
        if len(set(grids)) == 1 and valid is None:
            return self._run(query, key, value, grids[0], mask, scale)
        out = torch.zeros_like(query, memory_format=torch.contiguous_format)
        lengths = [query.shape[2]] * len(query) if valid is None else valid.tolist()
        for sample, length in enumerate(lengths):
            grid = grids[sample if len(grids) > 1 else 0]
            tensors = (tensor[sample : sample + 1, :, :length] for tensor in (query, key, value))
            out[sample : sample + 1, :, :length] = self._run(*tensors, grid, mask, scale)
        return out

    def _run(
        self, query: Tensor, key: Tensor, value: Tensor, grid: Grid, mask: Tensor | None, scale: float | None
    ) -> Tensor:
        frames, height, width = grid
        text = query.shape[2] - frames * height * width
        first, last = {"first": (text, 0), "last": (0, text), "none": (0, 0)}[self.site.text]
        layout = TokenLayout(frames, height, width, max(first, 0), max(last, 0))
        tables = self.tables(frames)
        # The original repositories keep rotated q and k in float32 beside a half-precision v.
        turned = query.to(value.dtype), key.to(value.dtype)
        try:
            out = attend(*turned, value, tables, layout, mask, scale)
        except LayoutError as error:
            raise LayoutError(f"{self.report.path}: {error} (adapter '{self.model.adapter.name}')") from None
        report, plan = self.report, tables.plan
        report.calls[frames] += 1
        report.largest_before = max(report.largest_before, frames - 1)
        report.largest_after = max(report.largest_after, plan.largest_position)
        report.attended = plan.density(layout.tokens_per_frame)
        return out.to(query.dtype)

    def tables(self, frames: int) -> PlanTables:
        """This layer's plan for so many latent frames."""
        if frames not in self._by_frames:
            self._by_frames[frames] = self.model.tables(self.report.layer, frames)
        return self._by_frames[frames]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # reason: torch does not annotate it
def _is_untouched(handle: int, frames: int) -> bool:
    """Whether the model's own call is right for so many frames; noted in the report if it is. A constant to torch.compile."""
    layer = _layers[handle]
    if not layer.tables(frames).plan.is_identity:
        return False
    why = "which the profile leaves alone" if layer.report.method == "none" else "for which the plan changes nothing"
    layer.report.untouched[f"{frames} latent frames, {why}"] += 1
    return True


@torch.library.custom_op("freeloc::attention", mutates_args=())
def _compiled_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None, handle: int, sizes: list[int]
) -> Tensor:
    """The engine as one opaque operator, which is all that torch.compile sees of it."""
    grids = [(sizes[at], sizes[at + 1], sizes[at + 2]) for at in range(0, len(sizes), 3)]
    return _layers[handle].run(query, key, value, grids, mask, scale)


@_compiled_attention.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None, handle: int, sizes: list[int]
) -> Tensor:
    return torch.empty(query.shape, dtype=query.dtype, device=query.device)


class _Takeover(Protocol):
    """A way to see a module's attention call."""

    calls: int

    def enter(self) -> None: ...

    def leave(self) -> None: ...


class _FunctionTakeover(TorchFunctionMode):
    """Sees PyTorch's own attention function. Of this thread only."""

    def __init__(self, layer: LayerHook) -> None:
        super().__init__()
        self.layer = layer
        self.calls = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            self.calls += 1
            return self.layer.attention(args, kwargs or {})
        if func is Tensor.unflatten:  # Dynamo cannot trace this Python method while a mode is active
            return torch.unflatten(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def enter(self) -> None:
        self.__enter__()

    def leave(self) -> None:
        self.__exit__(None, None, None)


class _NameTakeover:
    """Sees a function by the name under which a model's file imported it, while a module of this thread runs."""

    def __init__(self, layer: LayerHook, module: str) -> None:
        self.layer = layer
        self.calls = 0
        self._swap = _Swap.of(importlib.import_module(module), layer.site.kernel)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        self.calls += 1
        return self.layer.attention(args, kwargs)

    def enter(self) -> None:
        self._swap.push(self)

    def leave(self) -> None:
        self._swap.pop()


class _Swap:
    """Replaces a name in a file's globals for as long as any thread needs it; other threads still get the original."""

    _all: "dict[tuple[str, str], _Swap]" = {}  # noqa: RUF012  # reason: one per name, or two would undo each other
    _lock = threading.Lock()

    def __init__(self, module: ModuleType, name: str) -> None:
        self._module, self._name = module, name
        self._users = 0
        self._local = threading.local()

    @classmethod
    def of(cls, module: ModuleType, kernel: Kernel) -> "_Swap":
        if not callable(getattr(module, kernel.function, None)):
            raise AdapterError(f"{module.__name__} has no function '{kernel.function}', which its adapter expects")
        with cls._lock:
            return cls._all.setdefault((module.__name__, kernel.function), cls(module, kernel.function))

    def push(self, takeover: _NameTakeover) -> None:
        with self._lock:
            if self._users == 0:
                self._original = getattr(self._module, self._name)
                setattr(self._module, self._name, self._route)
            self._users += 1
        self._local.stack = [*getattr(self._local, "stack", ()), takeover]

    def pop(self) -> None:
        self._local.stack.pop()
        with self._lock:
            self._users -= 1
            if self._users == 0:
                setattr(self._module, self._name, self._original)

    def _route(self, *args: Any, **kwargs: Any) -> Any:
        stack = getattr(self._local, "stack", None)
        return (stack[-1] if stack else self._original)(*args, **kwargs)


def model_hooks(model: nn.Module) -> Iterator[ModelHook]:
    """The hooks of patches that are on this very module."""
    for hook in model._forward_pre_hooks.values():
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, ModelHook):
            yield owner


def _import(path: str) -> Any:
    module, _, names = path.partition(":")
    return attrgetter(names)(importlib.import_module(module))


def _forget_compiled() -> None:
    """Make compiled models look again: torch.compile does not notice hooks that come or go."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
