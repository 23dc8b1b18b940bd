"""Stand-ins for packages that need a GPU, so that the real source of an engine can be imported on a CPU."""

import importlib.abc
import importlib.machinery
import sys
from types import ModuleType


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every module of some packages. They have the names that are given, and a new empty class for any other.

    Args:
        packages: names of the packages.
        names: for each module, what it has.
    """

    def __init__(self, *packages: str, names: dict[str, dict[str, object]]) -> None:
        self.packages, self.names = packages, names

    def find_spec(self, name, path=None, target=None):
        """A module of these packages."""
        ours = any(name == package or name.startswith(f"{package}.") for package in self.packages)
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if ours else None

    def create_module(self, spec):
        """The empty one."""
        module = _StandIn(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module):
        """With its names."""
        module.__dict__.update(self.names.get(module.__name__, {}))

    def install(self) -> None:
        """For the rest of this process."""
        sys.meta_path.insert(0, self)


class _StandIn(ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        made = _made(name, self.__name__)
        setattr(self, name, made)
        return made


class _AnyClass(type):
    """Whatever is looked up on such a class is one, too."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _made(name, cls.__module__)


def _made(name: str, module: str) -> type:
    """A class that takes any arguments."""
    return _AnyClass(name, (), {"__module__": module, "__init__": lambda self, *args, **kwargs: None})


def bare_package(name: str, path: str) -> None:
    """A package whose modules can be imported without its own ``__init__``, which would import everything."""
    module = ModuleType(name)
    module.__path__ = [path]
    sys.modules[name] = module
