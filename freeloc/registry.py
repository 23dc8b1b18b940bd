"""Plugins: adapters, profiles, methods, backends, scorers and depths, by the entry-point group ``freeloc``.

A plugin is a module (or object) with one or more of the hooks below::

    # my_package/__init__.py                          # pyproject.toml
    import freeloc                                    [project.entry-points.freeloc]
                                                      my_models = "my_package"
    @freeloc.hookimpl
    def freeloc_adapters():
        return [freeloc.adapter.Adapter(name="my-model", ...)]
"""

import difflib
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import pluggy

from freeloc.adapter.example import Example
from freeloc.adapter.spec import Adapter, Refusal
from freeloc.attention.backends import Backend
from freeloc.errors import FreelocError, RegistryError
from freeloc.markers import GROUP, hookspec
from freeloc.metrics.scorers import Scorer
from freeloc.plans.method import Method
from freeloc.untrusted import brief, printable

T = TypeVar("T")


@runtime_checkable
class Depth(Protocol):
    """What the registry requires of a `freeloc.probing.Depth` object or class (probing imports this file)."""

    name: str
    measure: Any
    summarize: Any


class Hooks:
    """The hooks that a plugin can implement."""

    @hookspec
    def freeloc_adapters(self) -> Iterable[Adapter | Refusal]:  # type: ignore[empty-body]  # reason: a specification
        """Return adapters, and refusals of models that cannot be corrected."""

    @hookspec
    def freeloc_examples(self) -> Iterable[Example]:  # type: ignore[empty-body]  # reason: a specification
        """Return small random models that adapters describe, for the conformance suite."""

    @hookspec
    def freeloc_profiles(self) -> Iterable[Path]:  # type: ignore[empty-body]  # reason: a specification
        """Return paths of profile files; a profile's name is its file's name without ``.json``."""

    @hookspec
    def freeloc_methods(self) -> Iterable[Method]:  # type: ignore[empty-body]  # reason: a specification
        """Return methods."""

    @hookspec
    def freeloc_backends(self) -> Iterable[Backend]:  # type: ignore[empty-body]  # reason: a specification
        """Return attention backends, kernels that execute plans."""

    @hookspec
    def freeloc_scorers(self) -> Iterable[Scorer]:  # type: ignore[empty-body]  # reason: a specification
        """Return scorers, which judge the videos of a probe."""

    @hookspec
    def freeloc_depths(self) -> Iterable[Depth]:  # type: ignore[empty-body]  # reason: a specification
        """Return depths, ways to probe a model: `freeloc.probing.Depth` objects, or classes without arguments."""


HOOKS = tuple(name for name in vars(Hooks) if name.startswith("freeloc_"))
"""Names of all hooks."""

EAGER: dict[str, tuple[tuple[type[Any], ...], Callable[[Any], str]]] = {
    "adapters": ((Adapter, Refusal), lambda adapter: adapter.name),
    "profiles": ((Path,), lambda path: path.name.removesuffix(".json")),
    "methods": ((Method,), lambda method: method.name),
    "backends": ((Backend,), lambda backend: backend.name),
    "scorers": ((Scorer,), lambda scorer: scorer.name),
    "depths": ((Depth,), lambda depth: depth.name),
}
"""For hooks that are called when a plugin is loaded: the types of their objects, and how to read an object's name."""

LONGEST_NAME = 200
"""Largest length of the name of an object, in characters."""

LAZY = ("freeloc_examples",)
"""Hooks that are called only when their objects are needed: they import code that `freeloc.patch` does not need."""


@dataclass(frozen=True)
class Failure:
    """A plugin that could not be used, and why."""

    plugin: str
    distribution: str
    cause: str

    def __str__(self) -> str:
        return f"plugin '{self.plugin}' of {self.distribution} could not be loaded: {self.cause}"


@dataclass
class Shelf(Generic[T]):
    """Registered objects by name, each with its distribution. Looking up a name that two of them use is an error."""

    kind: str
    owners: dict[str, list[tuple[str, T]]] = field(default_factory=dict)

    def add(self, name: str, distribution: str, thing: T) -> None:
        """Register an object under its name."""
        self.owners.setdefault(name, []).append((distribution, thing))

    def get(self, name: str, way_out: str = "") -> T:
        """The object of this name.

        Raises:
            RegistryError: if there is none (the message suggests similar names), or two.
        """
        if name not in self.owners:
            near = difflib.get_close_matches(name, self.owners, n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            known = ", ".join(sorted(self.owners)) or "none"
            raise RegistryError(f"no {self.kind} is named '{name}'; {hint}known: {known}{way_out}")
        found = self.owners[name]
        if len(found) > 1:
            raise RegistryError(self.conflict(name))
        return found[0][1]

    def conflict(self, name: str) -> str:
        """The message that says which distributions use the same name."""
        both = " and ".join(distribution for distribution, _ in self.owners[name])
        return f"{self.kind} '{name}' is registered by {both}: uninstall one of them, or rename it"

    def conflicts(self) -> list[str]:
        """One sentence for each name that several distributions use."""
        return [self.conflict(name) for name, found in self.owners.items() if len(found) > 1]

    def things(self) -> list[tuple[str, str, T]]:
        """(name, distribution, object) of every name that exactly one distribution uses, sorted."""
        return sorted((name, *found[0]) for name, found in self.owners.items() if len(found) == 1)


class Registry:
    """What the installed plugins provide. It is built at the first look-up; nothing is loaded before."""

    def __init__(self, entry_points: Iterable[metadata.EntryPoint]) -> None:
        self.adapters: Shelf[Adapter | Refusal] = Shelf("adapter")
        self.profiles: Shelf[Path] = Shelf("profile")
        self.methods: Shelf[Method] = Shelf("method")
        self.backends: Shelf[Backend] = Shelf("backend")
        self.scorers: Shelf[Scorer] = Shelf("scorer")
        self.depths: Shelf[Depth] = Shelf("depth")
        self.failures: list[Failure] = []
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(Hooks)
        self._plugins: list[tuple[str, str, object]] = []
        for point in entry_points:
            distribution = _distribution(point)
            try:
                self._load(point, distribution)
            except (Exception, SystemExit) as error:  # any plugin may fail in any way; the others must still load
                self._fail(point.name, distribution, error)

    def _load(self, point: metadata.EntryPoint, distribution: str) -> None:
        plugin: Any = point.load()
        self._manager.register(plugin, name=f"{distribution}:{point.name}")
        _check_hook_names(plugin)
        provided = {
            name: [(_name(read(thing), name), thing) for thing in self._found(plugin, f"freeloc_{name}", kinds)]
            for name, (kinds, read) in EAGER.items()
        }
        if not any(provided.values()) and not any(self._hooks(plugin, name) for name in LAZY):
            raise FreelocError(
                f"it provides nothing: does a function {', '.join(HOOKS[:-1])} or {HOOKS[-1]}, "
                "marked @freeloc.hookimpl, return a list of them?"
            )
        for name, things in provided.items():
            for own, thing in things:
                getattr(self, name).add(own, distribution, thing)
        self._plugins.append((point.name, distribution, plugin))

    @functools.cached_property
    def examples(self) -> Shelf[Example]:
        """Small models for the conformance suite. They are loaded at first use, since they import test code."""
        shelf: Shelf[Example] = Shelf("example")
        for point, distribution, plugin in self._plugins:
            try:
                for example in self._found(plugin, "freeloc_examples", (Example,)):
                    shelf.add(_name(example.label, "examples"), distribution, example)
            except (Exception, SystemExit) as error:  # noqa: PERF203  # reason: as above
                self._fail(point, distribution, error)
        return shelf

    def _found(self, plugin: object, hook: str, kinds: tuple[type[T], ...]) -> list[T]:
        """The objects that a hook of one plugin returns."""
        return _checked(hook, kinds, [found() for found in self._hooks(plugin, hook)])

    def _hooks(self, plugin: object, hook: str) -> list[Callable[[], Any]]:
        """The implementations of a hook in one plugin."""
        caller: pluggy.HookCaller = getattr(self._manager.hook, hook)
        return [found.function for found in caller.get_hookimpls() if found.plugin is plugin]

    def _fail(self, point: str, distribution: str, error: BaseException) -> None:
        cause = printable(" ".join(f"{type(error).__name__}: {error}".split())[:1000], None)
        self.failures.append(Failure(printable(point), distribution, cause))


def _distribution(point: metadata.EntryPoint) -> str:
    """The name of the package that an entry point is from."""
    try:
        return printable(point.dist.name) if point.dist else "an unknown distribution"
    except Exception:  # its metadata may be damaged in any way
        return "a distribution without a name"


def _name(name: object, kind: str) -> str:
    """The name of a plugin's object, which lists and messages can show unchanged."""
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise FreelocError(
            f"expected names of {kind} of 1 to {LONGEST_NAME} characters that can be printed, found {brief(name)}"
        )
    return name


def _check_hook_names(plugin: object) -> None:
    """Refuse a plugin with a marked function that is not a hook, such as a misspelled one.

    Raises:
        RegistryError: if there is such a function. The message names it, and similar hooks.
    """
    for name in dir(plugin):
        if hasattr(getattr(plugin, name, None), f"{GROUP}_impl") and name not in HOOKS:
            near = difflib.get_close_matches(name, HOOKS, n=2)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise RegistryError(
                f"its function {name} is marked @freeloc.hookimpl, and no hook has that name; {hint}"
                f"hooks: {', '.join(HOOKS)}"
            )


def _checked(hook: str, kinds: tuple[type[T], ...], results: list[Any]) -> list[T]:
    """The objects that a plugin's hook returned, or an error that says what it should return."""
    things: list[T] = []
    expected = " or ".join(kind.__name__ for kind in kinds)
    for result in results:
        if not isinstance(result, Iterable) or isinstance(result, str):
            raise FreelocError(f"{hook} must return a list of {expected} objects, found {type(result).__name__}")
        for thing in result:
            if not isinstance(thing, kinds):
                raise FreelocError(f"{hook} must return {expected} objects, found {type(thing).__name__}")
            things.append(thing)
    return things


@functools.cache
def registry() -> Registry:
    """The registry of this process.

    Raises:
        RegistryError: if the metadata of an installed package is damaged, so that Python cannot read any of it.
    """
    try:
        points = metadata.entry_points(group=GROUP)
    except Exception as error:  # it may be damaged in any way
        cause = printable(f"{type(error).__name__}: {error}")
        raise RegistryError(
            f"Python cannot read the entry points of the installed packages ({cause}): 'pip check' may say which "
            "package is damaged: install it again"
        ) from error
    return Registry(points)
