"""Plugins: adapters, profiles, methods, backends and scorers, all through the entry-point group ``freeloc``.

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
from typing import Any, Generic, TypeVar

import pluggy

from freeloc.adapter.example import Example
from freeloc.adapter.spec import Adapter, Refusal
from freeloc.attention.backends import Backend
from freeloc.errors import FreelocError, RegistryError
from freeloc.markers import GROUP, hookspec
from freeloc.metrics.scorers import Scorer
from freeloc.plans.method import Method

T = TypeVar("T")


class Hooks:
    """All that a plugin can add."""

    @hookspec
    def freeloc_adapters(self) -> Iterable[Adapter | Refusal]:  # type: ignore[empty-body]  # reason: a specification
        """Return adapters, and refusals of models that cannot be corrected."""

    @hookspec
    def freeloc_examples(self) -> Iterable[Example]:  # type: ignore[empty-body]  # reason: a specification
        """Return small models that adapters describe, for the conformance suite."""

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


HOOKS = tuple(name for name in vars(Hooks) if name.startswith("freeloc_"))
"""Names of all hooks."""

LAZY = ("freeloc_examples",)
"""Hooks that are called when somebody asks for what they bring, since they import what a patch does not need."""


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
    """Things by name, each with the distribution that brought it. A name that two bring is refused to both."""

    kind: str
    owners: dict[str, list[tuple[str, T]]] = field(default_factory=dict)

    def add(self, name: str, distribution: str, thing: T) -> None:
        """Keep a thing under its name."""
        self.owners.setdefault(name, []).append((distribution, thing))

    def get(self, name: str, way_out: str = "") -> T:
        """The thing of this name.

        Raises:
            RegistryError: if there is none (near names are suggested), or two.
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
        """Say who brings the same name."""
        both = " and ".join(distribution for distribution, _ in self.owners[name])
        return f"{self.kind} '{name}' is registered by {both}: uninstall one of them, or rename it"

    def conflicts(self) -> list[str]:
        """One sentence per refused name."""
        return [self.conflict(name) for name, found in self.owners.items() if len(found) > 1]

    def things(self) -> list[tuple[str, str, T]]:
        """(name, distribution, thing) of every name that one distribution brings, sorted."""
        return sorted((name, *found[0]) for name, found in self.owners.items() if len(found) == 1)


class Registry:
    """What the installed plugins bring. Built once, at the first look-up; nothing is loaded before."""

    def __init__(self, entry_points: Iterable[metadata.EntryPoint]) -> None:
        self.adapters: Shelf[Adapter | Refusal] = Shelf("adapter")
        self.profiles: Shelf[Path] = Shelf("profile")
        self.methods: Shelf[Method] = Shelf("method")
        self.backends: Shelf[Backend] = Shelf("backend")
        self.scorers: Shelf[Scorer] = Shelf("scorer")
        self.failures: list[Failure] = []
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(Hooks)
        self._plugins: list[tuple[str, str, object]] = []
        for point in entry_points:
            distribution = point.dist.name if point.dist else "an unknown distribution"
            try:
                self._load(point, distribution)
            except (Exception, SystemExit) as error:  # any plugin may fail in any way; the others must go on
                self._fail(point.name, distribution, error)

    def _load(self, point: metadata.EntryPoint, distribution: str) -> None:
        plugin: Any = point.load()
        self._manager.register(plugin, name=f"{distribution}:{point.name}")
        _check_hook_names(plugin)
        adapters: list[Adapter | Refusal] = self._bring(plugin, "freeloc_adapters", (Adapter, Refusal))
        profiles = self._bring(plugin, "freeloc_profiles", (Path,))
        methods = self._bring(plugin, "freeloc_methods", (Method,))
        backends = self._bring(plugin, "freeloc_backends", (Backend,))
        scorers = self._bring(plugin, "freeloc_scorers", (Scorer,))
        lazy = any(hook for name in LAZY for hook in _callers(self._manager, name, plugin))
        if not (adapters or profiles or methods or backends or scorers or lazy):
            raise FreelocError(
                f"it brings nothing: does a function {', '.join(HOOKS[:-1])} or {HOOKS[-1]}, marked @freeloc.hookimpl, "
                "return a list of them?"
            )
        for adapter in adapters:
            self.adapters.add(adapter.name, distribution, adapter)
        for path in profiles:
            self.profiles.add(path.name.removesuffix(".json"), distribution, path)
        for method in methods:
            self.methods.add(method.name, distribution, method)
        for backend in backends:
            self.backends.add(backend.name, distribution, backend)
        for scorer in scorers:
            self.scorers.add(scorer.name, distribution, scorer)
        self._plugins.append((point.name, distribution, plugin))

    @functools.cached_property
    def examples(self) -> Shelf[Example]:
        """Small models for the conformance suite; asked for when it runs, as they import test code."""
        return self._shelf("example", "freeloc_examples", (Example,), lambda example: example.label)

    def _shelf(self, kind: str, hook: str, kinds: tuple[type[T], ...], name: Callable[[T], str]) -> Shelf[T]:
        """What all plugins bring by a hook of `LAZY`."""
        shelf: Shelf[T] = Shelf(kind)
        for point, distribution, plugin in self._plugins:
            try:
                for thing in self._bring(plugin, hook, kinds):
                    shelf.add(name(thing), distribution, thing)
            except (Exception, SystemExit) as error:  # noqa: PERF203  # reason: as above
                self._fail(point, distribution, error)
        return shelf

    def _bring(self, plugin: object, hook: str, kinds: tuple[type[T], ...]) -> list[T]:
        """What one plugin returns from a hook."""
        return _checked(hook, kinds, [caller() for caller in _callers(self._manager, hook, plugin)])

    def _fail(self, point: str, distribution: str, error: BaseException) -> None:
        self.failures.append(Failure(point, distribution, " ".join(f"{type(error).__name__}: {error}".split())))


def _callers(manager: pluggy.PluginManager, hook: str, plugin: object) -> list[Callable[[], Any]]:
    """The implementations of a hook in one plugin."""
    caller: pluggy.HookCaller = getattr(manager.hook, hook)
    return [found.function for found in caller.get_hookimpls() if found.plugin is plugin]


def _check_hook_names(plugin: object) -> None:
    """Refuse a plugin with a marked function that is no hook, such as a misspelled one.

    Raises:
        RegistryError: names the function, and the hooks that may be meant.
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
    """All that a plugin's hook returned, or an error that says what it should have been."""
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
    """The registry of this process."""
    return Registry(metadata.entry_points(group=GROUP))
