"""Plugins: adapters, profiles, methods, scorers and depths, ours and anybody's, by the entry-point group ``freeloc``.

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
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import pluggy

from freeloc.adapter.example import Example
from freeloc.adapter.spec import Adapter, Refusal
from freeloc.errors import FreelocError, RegistryError
from freeloc.markers import GROUP, hookspec
from freeloc.metrics.scorers import Scorer
from freeloc.plans.method import Method

T = TypeVar("T")


@runtime_checkable
class Depth(Protocol):
    """What is asked of a `freeloc.probing.Depth` here, in a file that probing imports: an object, or its class."""

    name: str
    measure: Any
    summarize: Any


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
    def freeloc_scorers(self) -> Iterable[Scorer]:  # type: ignore[empty-body]  # reason: a specification
        """Return scorers, which judge the videos of a probe."""

    @hookspec
    def freeloc_depths(self) -> Iterable[Depth]:  # type: ignore[empty-body]  # reason: a specification
        """Return depths, ways to probe a model: `freeloc.probing.Depth` objects, or classes without arguments."""


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
        self.examples: Shelf[Example] = Shelf("example")
        self.profiles: Shelf[Path] = Shelf("profile")
        self.methods: Shelf[Method] = Shelf("method")
        self.scorers: Shelf[Scorer] = Shelf("scorer")
        self.depths: Shelf[Depth] = Shelf("depth")
        self.failures: list[Failure] = []
        manager = pluggy.PluginManager(GROUP)
        manager.add_hookspecs(Hooks)
        for point in entry_points:
            distribution = point.dist.name if point.dist else "an unknown distribution"
            try:
                self._load(manager, point, distribution)
            except (Exception, SystemExit) as error:  # any plugin may fail in any way; the others must go on
                self.failures.append(
                    Failure(point.name, distribution, " ".join(f"{type(error).__name__}: {error}".split()))
                )

    def _load(self, manager: pluggy.PluginManager, point: metadata.EntryPoint, distribution: str) -> None:
        plugin: Any = point.load()
        name = f"{distribution}:{point.name}"
        manager.register(plugin, name=name)
        hooks = manager.subset_hook_caller
        others = [other for other in manager.get_plugins() if other is not plugin]
        adapters: list[Adapter | Refusal] = _checked(
            "freeloc_adapters", (Adapter, Refusal), hooks("freeloc_adapters", others)()
        )
        examples = _checked("freeloc_examples", (Example,), hooks("freeloc_examples", others)())
        profiles = _checked("freeloc_profiles", (Path,), hooks("freeloc_profiles", others)())
        methods = _checked("freeloc_methods", (Method,), hooks("freeloc_methods", others)())
        scorers = _checked("freeloc_scorers", (Scorer,), hooks("freeloc_scorers", others)())
        depths: list[Depth] = _checked("freeloc_depths", (Depth,), hooks("freeloc_depths", others)())
        if not (adapters or examples or profiles or methods or scorers or depths):
            raise FreelocError(
                "it brings no adapter, example, profile, method, scorer or depth: does a function freeloc_adapters, "
                "freeloc_examples, freeloc_profiles, freeloc_methods, freeloc_scorers or freeloc_depths, marked "
                "@freeloc.hookimpl, return a list of them?"
            )
        for adapter in adapters:
            self.adapters.add(adapter.name, distribution, adapter)
        for example in examples:
            self.examples.add(example.label, distribution, example)
        for path in profiles:
            self.profiles.add(path.name.removesuffix(".json"), distribution, path)
        for method in methods:
            self.methods.add(method.name, distribution, method)
        for scorer in scorers:
            self.scorers.add(scorer.name, distribution, scorer)
        for depth in depths:
            self.depths.add(depth.name, distribution, depth)


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
