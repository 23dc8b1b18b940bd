"""Stand-ins for packages that a project imports and that its models do not need here: CUDA kernels, video files.

Every attribute of such a module is a class that does nothing, so that imports, decorators and annotations work.
"""

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Sequence


class _Nothing(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Nothing(name, (Nothing,), {})
        setattr(cls, name, made)
        return made


class Nothing(metaclass=_Nothing):
    """A class, decorator or function that does nothing."""

    def __new__(cls, *args, **kwargs):
        decorated = args[0] if len(args) == 1 and not kwargs and callable(args[0]) else None
        return decorated or object.__new__(cls)

    def __call__(self, *args, **kwargs):
        return args[0] if len(args) == 1 and callable(args[0]) else self

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing()


class _Module(types.ModuleType):
    __path__: Sequence[str] = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Nothing(name, (Nothing,), {})
        setattr(self, name, made)
        return made


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names):
        self.names = names

    def find_spec(self, name, path, target=None):
        if any(name == known or name.startswith(f"{known}.") for known in self.names):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return _Module(spec.name)

    def exec_module(self, module):
        pass


def stand_in(*names: str) -> None:
    """Make these packages importable, unless they are installed."""
    missing = [name for name in names if "." in name or importlib.util.find_spec(name) is None]
    sys.meta_path.append(_Finder(missing))
