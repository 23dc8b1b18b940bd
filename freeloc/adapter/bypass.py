"""What an adapter says about hooks of other libraries that answer for a module, so that its attention does not run."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

from torch import nn

from freeloc.adapter.checks import require


class Bypass(NamedTuple):
    """A hook that may answer for a module."""

    name: str
    """The name of its class."""
    is_cache: bool
    """Whether its answer is one that the module gave before. If not, the attention is left out on purpose."""


@dataclass(frozen=True)
class Bypasses:
    """Hooks of a library that may answer for a module, so that the attention in it computes nothing.

    Without this description, a layer that is due for correction and computes nothing is an error.

    Args:
        hooks: attribute path, on a module, of the mapping that holds its hooks; it may be missing.
        caches: qualified names of the classes of hooks, ``"package.module.Class"``, that return what the module
            returned before. What it returned under a patch is corrected.
        skips: the same for hooks that leave out attention, or whole blocks: there is nothing to correct.
    """

    hooks: str
    caches: tuple[str, ...] = ()
    skips: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(isinstance(self.hooks, str), "Bypasses.hooks", "an attribute path", self.hooks)
        for name in ("caches", "skips"):
            paths = getattr(self, name)
            right = isinstance(paths, tuple) and all(isinstance(path, str) and "." in path for path in paths)
            require(right, f"Bypasses.{name}", "a tuple of qualified names, ('package.module.Class',)", paths)

    def found(self, modules: Iterable[nn.Module]) -> Bypass | None:
        """The first hook on these modules that is described here, or None. Hooks that skip come first."""
        names = [name for module in modules for hook in self._hooks(module) for name in _classes(hook)]
        for described, is_cache in ((self.skips, False), (self.caches, True)):
            for name in names:
                if name in described:
                    return Bypass(name.rpartition(".")[2], is_cache)
        return None

    def others(self, module: nn.Module) -> list[str]:
        """The classes of the hooks on a module that are not described here."""
        described = {*self.skips, *self.caches}
        return [type(hook).__name__ for hook in self._hooks(module) if described.isdisjoint(_classes(hook))]

    def _hooks(self, module: nn.Module) -> list[object]:
        try:
            hooks = attrgetter(self.hooks)(module)
        except AttributeError:
            return []
        return list(hooks.values()) if isinstance(hooks, Mapping) else []


def _classes(hook: object) -> list[str]:
    """The qualified names of a hook's class and its bases."""
    return [f"{base.__module__}.{base.__qualname__}" for base in type(hook).__mro__]
