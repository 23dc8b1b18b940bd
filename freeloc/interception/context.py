"""All state of a running forward of a patched model: one `ForwardContext`, opened and closed by the model's hooks.

Contexts are in a stack per `contextvars` context, so threads, nested calls and generators each have their own. A
context is valid only while the call that opened it is running. PyTorch calls no hook after a KeyboardInterrupt, so an
invalid context may stay on the stack. It has no effect, and `close_dead` removes it.
"""

import contextvars
import importlib
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import nn

from freeloc.plans.length import VideoLength

Grid = tuple[int, int, int]
"""Latent frames, rows and columns of tokens."""

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a call."""


class Read(NamedTuple):
    """What was read from the arguments of a transformer's call."""

    grid: Grid | None
    """None if each attention module gets it as an argument."""
    positions_per_frame: float
    first: int = 0
    """Reference images before the frames of the video."""
    last: int = 0
    """And after them."""
    refused: str = ""
    """Why the call cannot be corrected beyond the trained length; empty if it can."""
    text_tokens: Mapping[str, int] = {}
    """Numbers of text tokens, by the name of an argument."""
    apart: int = 0
    """Reference images, among the latent frames of `grid`, that are not in the argument from which it was read."""


class Opened(NamedTuple):
    """A layer whose attention call is intercepted."""

    layer: object
    interceptor: Any
    finish: Callable[[], None]


@dataclass(eq=False)
class ForwardContext:
    """One running forward of a patched model.

    Args:
        owner: the patched model.
        frame: Python frame of the call. The context is valid until that call ends.
        read: what was read from the arguments of the call; None until the first attention module runs, where hooks of
            others may still change the arguments.
    """

    owner: object
    frame: FrameType
    read: Read | None = None
    thread: int = field(default_factory=threading.get_ident)
    open: list[Opened] = field(default_factory=list)
    """Active interceptions, the innermost last."""
    called: dict[object, list[VideoLength]] = field(default_factory=dict)
    """The layers whose attention modules were called, with the length of each sample."""
    by_function: bool = False
    """Whether a function calls the parts of the model (`Adapter.run_by`), and `frame` is that of its call."""
    is_traced: bool = False
    """Whether it is the context of one module alone, in a model that is compiled as a whole."""
    text: int = 0
    """Largest number of text tokens in a sequence."""
    rotation: tuple[Any, Any] | None = None
    """The argument with the last rotary tables that were read, and what they say about the video."""

    def end(self, layer: object) -> Any:
        """End the interception of a layer, if there is one, and return its interceptor."""
        if not self.open or self.open[-1].layer is not layer:
            return None
        opened = self.open[-1]
        opened.finish()  # before it is removed: after an interrupt here, it is done again
        self.open.pop()
        return opened.interceptor

    @property
    def is_running(self) -> bool:
        """Whether its call is running, in any thread."""
        return is_inside(self.frame) if self.thread == threading.get_ident() else is_executing(self.frame)


_stack: contextvars.ContextVar[tuple[ForwardContext, ...]] = contextvars.ContextVar("freeloc", default=())
# Global, since a hook cannot pass anything to the hooks that run later in the same forward.


def is_inside(frame: FrameType) -> bool:
    """Whether a call is running in this thread.

    No function here stores its own frame in a variable: that cycle would keep the tensors of all callers alive.
    """
    here: FrameType | None = sys._getframe(1)
    while here is not None and here is not frame:
        here = here.f_back
    return here is frame


def is_executing(frame: FrameType) -> bool:
    """Whether a call is running, in any thread. If it has ended, its local variables are dropped.

    Python refuses to clear a frame that executes. To walk the frames of another thread is not safe while it runs.
    """
    try:
        frame.clear()
    except RuntimeError:
        return True
    return False


def module_frame() -> FrameType:
    """The Python frame of the module call whose hook is running: the innermost one in PyTorch's file of modules."""
    here: FrameType | None = sys._getframe(1)
    while here is not None and here.f_code.co_filename != _MODULES:
        here = here.f_back
    assert here is not None  # hooks are called by modules
    return here


_MODULES = torch.nn.modules.module.__file__


def arguments(frame: FrameType) -> Arguments | None:
    """The arguments that a module's forward gets, in the frame of its call, where hooks may have replaced them."""
    values = frame.f_locals
    args, kwargs = values.get("args"), values.get("kwargs")
    return (args, kwargs) if isinstance(args, tuple) and isinstance(kwargs, dict) else None


def is_followed(module: nn.Module, hook: object) -> bool:
    """Whether pre-hooks of others run after this one, and may change the arguments. In the next call, none does."""
    hooks = module._forward_pre_hooks
    if next(reversed(hooks.values())) == hook:
        return False
    key = next(key for key, other in hooks.items() if other == hook)
    hooks[key] = hooks.pop(key)  # PyTorch iterates over a copy
    return True


def callers_value(frame: FrameType, places: str | tuple[str, ...]) -> Any:
    """The value of a local variable of the innermost function that called this frame and has it; None if none has.

    Args:
        frame: where the search starts.
        places: its name, or that of one of its attributes (``"state.count"``); or several of these.
    """
    wanted = [place.split(".") for place in ((places,) if isinstance(places, str) else places)]
    here: FrameType | None = frame
    while here is not None:
        for name, *attributes in wanted:
            if name in here.f_code.co_varnames or name in here.f_code.co_cellvars:
                found = here.f_locals.get(name)
                for attribute in attributes:
                    found = getattr(found, attribute, None)
                if found is not None or not attributes:  # a variable of a common name may be another one
                    return found
        here = here.f_back
    return None


def current(owner: object) -> ForwardContext | None:
    """The innermost running context of this model, or None."""
    for context in reversed(_stack.get()):
        if context.owner is owner and context.is_running:
            return context
    return None


def push(context: ForwardContext) -> None:
    """Make this context the current one of its model."""
    close_dead()
    _stack.set((*_stack.get(), context))


def close(context: ForwardContext) -> None:
    """Remove a context from the stack, and end all its interceptions."""
    while context.open:
        context.open[-1].finish()
        context.open.pop()
    _stack.set(tuple(other for other in _stack.get() if other is not context))


def close_dead() -> None:
    """Close the contexts that interrupted calls left in this thread."""
    while lock._is_owned():  # type: ignore[attr-defined]  # reason: of the class that threading.RLock makes
        lock.release()  # an interrupt between a block and its end left it locked, for all other threads
    for context in reversed(_stack.get()):
        if context.thread == threading.get_ident() and not context.is_running:
            close(context)


class _Attribute(NamedTuple):
    """An attribute of an object, and its original value."""

    owner: Any
    name: str
    is_own: bool
    before: Any

    def restore(self) -> None:
        """Restore the original value, or delete the attribute if it was inherited."""
        if self.is_own:
            setattr(self.owner, self.name, self.before)
        elif self.name in self.owner.__dict__:
            delattr(self.owner, self.name)


lock = threading.RLock()
"""Protects the state that threads share."""

_held: dict[tuple[int, str], tuple[_Attribute, list[object]]] = {}
# Global, since layers of several models may share the object. The last call that needs the value restores it.


class HeldAttributes:
    """Sets attributes of a module while it runs, for libraries that would otherwise choose another kernel.

    While a model is patched, the objects have these attributes themselves, including those inherited from a class:
    torch.compile up to 2.11 cannot delete an attribute that did not exist before.

    Args:
        values: import paths of values (``"module:name"``) by attribute path, as in `AttentionSite.while_running`.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = {path: _imported(value) for path, value in values.items()}
        self._made: list[_Attribute] = []

    def own(self, module: nn.Module) -> None:
        """Copy inherited attributes to the objects themselves, with the same values."""
        for now, _ in self._places(module):
            if not now.is_own:
                self._made.append(now)
                setattr(now.owner, now.name, now.before)

    def disown(self) -> None:
        """Delete the attributes that `own` has copied, unless they were changed."""
        for made in list(self._made):
            if vars(made.owner).get(made.name, made.before) is made.before:
                made.restore()
                self._made.remove(made)

    def hold(self, module: nn.Module, user: object) -> None:
        """Set the values, for all threads, until every user has released them."""
        with lock:
            for now, value in self._places(module):
                known, users = _held.setdefault((id(now.owner), now.name), (now, []))
                users.append(user)
                setattr(known.owner, known.name, value)

    def release(self, module: nn.Module, user: object) -> None:
        """Restore the original values, unless another call still needs the others."""
        with lock:
            for now, _ in self._places(module):
                known, users = _held.get((id(now.owner), now.name), (None, []))
                users[:] = [other for other in users if other is not user]
                if known is not None and not users:
                    known.restore()
                    del _held[id(now.owner), now.name]

    def hold_in_trace(self, module: nn.Module) -> list[_Attribute]:
        """Set the values in a trace of torch.compile, which has one thread. The caller restores what is returned."""
        before = self._places(module)
        for now, value in before:
            setattr(now.owner, now.name, value)
        return [now for now, _ in before]

    def _places(self, module: nn.Module) -> list[tuple[_Attribute, Any]]:
        found = []
        for path, value in self._values.items():
            parent, _, name = path.rpartition(".")
            owner = attrgetter(parent)(module) if parent else module
            found.append((_Attribute(owner, name, name in owner.__dict__, getattr(owner, name, None)), value))
        return found


def _imported(path: str) -> Any:
    module, _, names = path.partition(":")
    return attrgetter(names)(importlib.import_module(module))
