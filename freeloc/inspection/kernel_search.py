"""Finds the functions that compute a model's attention, whatever their names: by what they are given and return."""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import CodeType, FrameType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from freeloc.adapter.kernel import Kernel
from freeloc.inspection.kernel_fit import described_kernel
from freeloc.inspection.subject import Subject
from freeloc.interception.watch import RunningModules

TORCH = str(torch.__path__[0])


@dataclass(frozen=True)
class FoundKernel:
    """A function that computed attention in a module.

    Args:
        path: path of the module.
        name: how the code that calls it refers to it.
        kernel: its description; None if nothing but a person can describe it.
        inner: functions that it calls and that compute the same.
    """

    path: str
    name: str
    kernel: Kernel | None
    inner: tuple["FoundKernel", ...] = ()


@dataclass
class _Call:
    """A running call that may compute attention."""

    path: str
    name: str
    function: str
    signature: inspect.Signature | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    chains: list[list[FoundKernel]] = field(default_factory=list)
    """The functions found in it; each chain has the outermost first."""


def find_kernels(
    model: nn.Module, inputs: Mapping[str, Any], run: Callable[[nn.Module, Mapping[str, Any]], Any] | None = None
) -> list[FoundKernel]:
    """Run a model once, and find the functions that compute attention in each module, in order.

    Every Python function that gets at least three tensors is compared with attention over them, in each layout. Where
    one calls another, the outermost counts that a file holds by its name, so that it can be intercepted there.

    Args:
        model: any module.
        inputs: arguments of its forward.
        run: (model, inputs) -> anything, which runs the model; by default a call of it.
    """
    search = _Search(model)
    before = sys.getprofile()
    with torch.no_grad(), search.modules:
        sys.setprofile(search.profile)
        try:
            model(**inputs) if run is None else run(model, inputs)
        finally:
            sys.setprofile(before)
    return [_outermost(chain) for chain in search.found]


def reachable(kernels: Sequence[FoundKernel], subject: Subject) -> list[FoundKernel]:
    """The same functions by the files in which their calls can be intercepted; without a kernel where there is none.

    A function may be looked up in another file than that of the code that calls it.
    """
    found = list(kernels)
    for function in dict.fromkeys(known.kernel.function for known in kernels if known.kernel is not None):
        own = [place for place, known in enumerate(kernels) if known.kernel and known.kernel.function == function]
        waiting = set(own)
        for name in _names_of(function):
            forms = [replace(known.kernel, function=name) for place in own if (known := kernels[place]).kernel]
            seen = {call.path for call in replace(subject, kernels=forms).calls() if call.kernel == name}
            for place in [place for place in waiting if kernels[place].path in seen]:
                found[place] = replace(kernels[place], kernel=forms[own.index(place)])
                waiting.discard(place)
            if not waiting:
                break
        for place in waiting:
            inner = kernels[place].inner
            # Where no file names the function when it is called, one that it calls may be.
            found[place] = reachable([_outermost(inner)], subject)[0] if inner else replace(kernels[place], kernel=None)
    return found


def _files() -> list[tuple[str, ModuleType]]:
    """The loaded files by name; without the names that stand for None, whose import is blocked."""
    return [(name, loaded) for name, loaded in sys.modules.items() if isinstance(loaded, ModuleType)]


def _names_of(function: str) -> list[str]:
    """The names ``"module:name"`` under which loaded files have a function, the given one first."""
    file, _, name = function.partition(":")
    held = vars(sys.modules[file])[name]
    others = (other for other, loaded in _files() if vars(loaded).get(name) is held)
    return list(dict.fromkeys([function, *(f"{other}:{name}" for other in others)]))


def _outermost(chain: Sequence[FoundKernel]) -> FoundKernel:
    at = next((place for place, found in enumerate(chain) if found.kernel is not None), len(chain) - 1)
    return replace(chain[at], inner=tuple(chain[at + 1 :]))


class _Search:
    """Follows the calls of one run."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = RunningModules(model, {})
        self.found: list[list[FoundKernel]] = []
        self._calls: dict[int, _Call] = {}
        self._open: list[int] = []

    def profile(self, frame: FrameType, event: str, value: Any) -> None:
        """See `sys.setprofile`."""
        if event == "call":
            if (call := self._call(frame)) is not None:
                self._calls[id(frame)] = call
                self._open.append(id(frame))
        elif event == "return" and id(frame) in self._calls:
            sys.setprofile(None)  # what compares it is not part of the run
            self._end(self._calls.pop(id(frame)), value)
            self._open.remove(id(frame))
            sys.setprofile(self.profile)

    def _end(self, call: _Call, value: Any) -> None:
        given, defaults = _bound(call)
        kernel = described_kernel(given, defaults, value, call.function) if isinstance(value, Tensor) else None
        chains = call.chains
        if kernel is not None:
            own = FoundKernel(call.path, call.name, kernel if call.function else None)
            chains = [[own, *(inner for chain in chains for inner in chain)]]
        outer = [key for key in self._open if key in self._calls]
        (self._calls[outer[-1]].chains if outer else self.found).extend(chains)

    def _call(self, frame: FrameType) -> _Call | None:
        caller, code = frame.f_back, frame.f_code
        if caller is None or caller.f_code.co_filename.startswith(TORCH) or code.co_name == "<module>":
            return None
        args, kwargs = _given(frame)
        tensors = sum(1 for value in (*args, *kwargs.values()) for part in _parts(value) if part.ndim in (3, 4))
        if tensors < 3:
            return None
        running = self.modules.innermost
        name, function, signature, is_method = _holder(caller, frame, running.module)
        copied = tuple(_kept(value) for value in args[is_method:])
        return _Call(running.path, name, function, signature, copied, {key: _kept(kwargs[key]) for key in kwargs})


def _kept(value: Any) -> Any:
    """A value that stays as it is when the function changes it in place, or clears a list."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    return [_kept(part) for part in value] if isinstance(value, list) else value


def _parts(value: Any) -> Iterator[Tensor]:
    for part in value if isinstance(value, list | tuple) else (value,):
        if isinstance(part, Tensor) and part.is_floating_point():
            yield part


def _given(frame: FrameType) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword arguments of a call that has begun."""
    code, values = frame.f_code, frame.f_locals
    names = code.co_varnames
    args = tuple(values[name] for name in names[: code.co_argcount] if name in values)
    count = code.co_argcount + code.co_kwonlyargcount
    kwargs = {name: values[name] for name in names[code.co_argcount : count] if name in values}
    if code.co_flags & inspect.CO_VARARGS:
        args, count = (*args, *values.get(names[count], ())), count + 1
    if code.co_flags & inspect.CO_VARKEYWORDS:
        kwargs |= values.get(names[count], {})
    return args, kwargs


def _holder(caller: FrameType, frame: FrameType, module: nn.Module) -> tuple[str, str, inspect.Signature | None, bool]:
    """(name, `Kernel.function` or "", signature, whether it is a method) of a running function, by the code that calls
    it."""
    home = caller.f_globals.get("__name__", "")
    is_home = vars(sys.modules[home]) is caller.f_globals if home in sys.modules else False
    for name in caller.f_code.co_names:
        held = caller.f_globals.get(name)
        if held is not None and _runs(held, frame):
            at = f"{home}:{name}" if is_home else ""
            return f"{home}.{name}", at, _signature(held), not isinstance(held, FunctionType)
    names = set(caller.f_code.co_names)
    called = [held for name in names if isinstance(held := caller.f_globals.get(name), ModuleType)]
    called += [loaded for file, loaded in _files() if file.rpartition(".")[2] in names]
    for loaded in called:  # package.module.name(...)
        for name in names & vars(loaded).keys():
            if _runs(vars(loaded)[name], frame) and sys.modules.get(loaded.__name__) is loaded:
                file = loaded.__name__
                return f"{file}.{name}", f"{file}:{name}", _signature(vars(loaded)[name]), False
    for base in type(module).__mro__:  # the file of its class holds it, however it was looked up there
        held_by = vars(sys.modules.get(base.__module__, torch))
        for name, held in list(held_by.items()) if base is not nn.Module and base is not object else ():
            if isinstance(held, FunctionType) and _runs(held, frame):
                return f"{base.__module__}.{name}", f"{base.__module__}:{name}", _signature(held), False
    owner = caller.f_locals.get("self", module)
    for name in caller.f_code.co_names:
        held = vars(owner).get(name) if hasattr(owner, "__dict__") else None
        if held is not None and _runs(held, frame):
            return f"{type(owner).__name__}.{name}", "", _signature(held), not isinstance(held, FunctionType)
    return frame.f_code.co_qualname if hasattr(frame.f_code, "co_qualname") else frame.f_code.co_name, "", None, False


def _runs(held: Any, frame: FrameType) -> bool:
    """Whether a frame is that of a call of this function or object."""
    function = held.__func__ if isinstance(held, MethodType) else held
    if not isinstance(function, FunctionType):
        function = vars(type(held)).get("__call__")
    code: CodeType | None = getattr(function, "__code__", None)
    if code is not frame.f_code:
        return False
    cells = getattr(function, "__closure__", None) or ()  # wrappers of several functions have the same code
    return all(
        frame.f_locals.get(name, cell.cell_contents) is cell.cell_contents
        for name, cell in zip(frame.f_code.co_freevars, cells, strict=True)
    )


def _signature(held: Any) -> inspect.Signature | None:
    try:
        return inspect.signature(held)
    except (TypeError, ValueError):
        return None


def _bound(call: _Call) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of a call by name, in the order of the signature and with defaults; and the defaults."""
    if call.signature is None:
        return {f"argument_{place}": value for place, value in enumerate(call.args)} | call.kwargs, {}
    parameters = call.signature.parameters
    try:
        bound = call.signature.bind(*call.args, **call.kwargs)
    except TypeError:
        return dict(call.kwargs), {}
    bound.apply_defaults()
    found: dict[str, Any] = {}
    for name, parameter in parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            found |= bound.arguments[name]
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            found[name] = bound.arguments[name]
    return found, {name: known.default for name, known in parameters.items() if known.default is not known.empty}
