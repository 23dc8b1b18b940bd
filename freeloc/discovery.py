"""Finds the transformers of a model or pipeline, and the adapter that describes each."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import nn

from freeloc.adapter.spec import Adapter, Refusal
from freeloc.errors import AdapterError, RegistryError
from freeloc.registry import registry


def adapters() -> list[Adapter]:
    """All usable adapters, by name."""
    return [thing for _, _, thing in registry().adapters.things() if isinstance(thing, Adapter)]


def find_adapter(model: object) -> Adapter:
    """The adapter that describes a model, found from the qualified name of its class or its nearest described base.

    It searches inside wrappers. If a pipeline has several transformers, the first one counts.

    Raises:
        AdapterError: if no adapter describes the model (the message lists the classes that were searched), or if the
            model cannot be corrected (the message says why).
        RegistryError: if two plugins provide the adapter.
    """
    return transformers_of(model)[0][1]


def _adapter_of(model: nn.Module) -> Adapter:
    """The adapter of a model that at least one describes."""
    found = [
        ((nearest[0], nearest[1].startswith("*")), name, nearest[1])
        for name, owners in registry().adapters.owners.items()
        for _, adapter in owners
        if (nearest := adapter.nearest(model)) is not None
    ]
    best = min(order for order, *_ in found)  # the nearest class, and a whole name before the end of one
    names = {name: path for order, name, path in sorted(found) if order == best}
    if len(names) > 1:
        ends = ", ".join(dict.fromkeys(names.values()))
        by_end = f", by the ends {ends} of the name of its class {_name(type(model))}" if best[1] else ""
        raise RegistryError(
            f"{type(model).__name__} is described by the adapters {[*names]}{by_end}: pass adapter= to choose one"
        )
    thing = registry().adapters.get(next(iter(names)))
    if isinstance(thing, Refusal):
        raise AdapterError(f"{type(model).__name__} cannot be corrected: {thing.reason}")
    return thing


def transformers_of(
    model: object, adapter: Adapter | None = None, leave: Sequence[str] = ()
) -> list[tuple[nn.Module, Adapter]]:
    """Every transformer that an adapter describes: the model, a module inside wrappers, or components of a pipeline.

    Networks that run beside another transformer come last. Their adapters have the numbers of its layers.

    Args:
        model: a transformer or a pipeline.
        adapter: the only adapter to look for; by default all.
        leave: paths of components and modules in which nothing is looked for.

    Raises:
        AdapterError: if `adapter` is not an adapter, if there is no such transformer (the message lists the classes
            that were searched), or if one cannot be corrected (the message says why).
    """
    if not isinstance(adapter, Adapter | None):
        raise AdapterError(f"expected adapter to be an Adapter, or left out to find it, found {adapter!r}")
    if isinstance(leave, str) or not all(isinstance(name, str) for name in leave):
        raise AdapterError(f"expected leave_uncorrected to be a list of names, found {leave!r}")
    parts = components(model)
    known = [adapter] if adapter else [thing for owners in registry().adapters.owners.values() for _, thing in owners]
    found: dict[int, nn.Module] = {}
    claimed: dict[type, bool] = {}  # a model has thousands of modules, but few classes
    for each in modules_of(parts):
        kind = type(each.module)
        if kind not in claimed:
            claimed[kind] = any(candidate.claims(each.module) is not None for candidate in known)
        if claimed[kind] and not covers(leave, each.whole):
            found[id(each.module)] = each.module
    if not found and adapter:
        raise AdapterError(
            f"the adapter '{adapter.name}' is for {'exactly ' if adapter.exact else ''}{', '.join(adapter.classes)}. "
            f"Looked at: {_looked_at(model, parts.values())}"
        )
    if not found:
        raise AdapterError(_unknown(model, parts.values()))
    return _bound([(module, adapter or _adapter_of(module)) for module in found.values()])


def _bound(found: list[tuple[nn.Module, Adapter]]) -> list[tuple[nn.Module, Adapter]]:
    """The same, with layer numbers for the networks that run beside another of these transformers."""
    first = [(module, known) for module, known in found if known.beside is None]
    second = []
    for module, known in found:
        if known.beside is not None:
            besides = [transformer for transformer in first if transformer[1].name == known.beside.adapter]
            if first and not besides:
                raise AdapterError(
                    f"expected {type(module).__name__} beside a transformer of the adapter '{known.beside.adapter}', "
                    f"found {', '.join(each.name for _, each in first)}: patch these components one by one"
                )
            second.append((module, known.bound(module, *besides[0]) if besides else known))
    return first + second


def components(model: object) -> dict[str, nn.Module]:
    """The modules of a pipeline by name, those in lists too; or a model itself, by an empty name."""
    if isinstance(model, nn.Module):
        return {"": model}
    named = getattr(model, "components", None)
    found: dict[str, object] = {}
    for name, value in (named if isinstance(named, dict) else getattr(model, "__dict__", {})).items():
        several = value if isinstance(value, list | tuple) else ()
        found |= {name: value} | {f"{name}.{index}": item for index, item in enumerate(several)}
    return {name: value for name, value in found.items() if isinstance(value, nn.Module)}


class Place(NamedTuple):
    """A module of a pipeline or model.

    Args:
        component: name of the component that it is in; empty in a model.
        path: its path in there, without the names that wrappers add, such as ``_orig_mod``.
        module: the module.
    """

    component: str
    path: str
    module: nn.Module

    @property
    def whole(self) -> str:
        """Its path in the pipeline or model."""
        return ".".join(name for name in (self.component, self.path) if name)


def modules_of(parts: Mapping[str, nn.Module]) -> Iterator[Place]:
    """Every module of these components, which `components` returns, each once."""
    seen: set[nn.Module] = set()
    for component, part in parts.items():
        for path, module in part.named_modules(seen):
            yield Place(component, ".".join(name for name in path.split(".") if not name.startswith("_")), module)


def covers(patterns: Iterable[str], path: str) -> bool:
    """Whether one of these paths, with ``*`` for any one name, is that of a module or of one that it is in.

    >>> covers(["blocks.*.attn2"], "blocks.0.attn2.to_q"), covers(["blocks.*.attn2"], "blocks.0.attn1")
    (True, False)
    """
    names = path.split(".")
    return any(
        len(wanted) <= len(names) and all(want in ("*", name) for want, name in zip(wanted, names, strict=False))
        for wanted in (pattern.split(".") for pattern in patterns)
    )


def _looked_at(model: object, parts: Iterable[object]) -> str:
    names = sorted({_name(type(part)) for part in parts})
    return ", ".join(names) or f"no torch module in {_name(type(model))}"


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _unknown(model: object, parts: Iterable[object]) -> str:
    failed = "".join(f"; {failure}" for failure in registry().failures)
    return (
        f"no adapter describes this model. Looked at: {_looked_at(model, parts)}. Installed adapters: "
        f"{len(adapters())}, which 'freeloc adapters' lists{failed}. "
        "An adapter is one short file, and 'freeloc inspect' writes a first one: see docs/write-an-adapter.md"
    )
