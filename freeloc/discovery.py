"""Finds the transformers of a model or pipeline, and the adapter that describes each."""

from collections.abc import Iterable

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
        (distance, name)
        for name, owners in registry().adapters.owners.items()
        for _, adapter in owners
        if (distance := adapter.claims(model)) is not None
    ]
    nearest = min(distance for distance, _ in found)
    names = sorted({name for distance, name in found if distance == nearest})
    if len(names) > 1:
        raise RegistryError(f"{type(model).__name__} is described by the adapters {names}: pass adapter= to choose one")
    thing = registry().adapters.get(names[0])
    if isinstance(thing, Refusal):
        raise AdapterError(f"{type(model).__name__} cannot be corrected: {thing.reason}")
    return thing


def transformers_of(model: object, adapter: Adapter | None = None) -> list[tuple[nn.Module, Adapter]]:
    """Every transformer that an adapter describes: the model, a module inside wrappers, or components of a pipeline.

    Raises:
        AdapterError: if `adapter` is not an adapter, if there is no such transformer (the message lists the classes
            that were searched), or if one cannot be corrected (the message says why).
    """
    if not isinstance(adapter, Adapter | None):
        raise AdapterError(f"expected adapter to be an Adapter, or left out to find it, found {adapter!r}")
    parts = components(model)
    known = [adapter] if adapter else [thing for owners in registry().adapters.owners.values() for _, thing in owners]
    found: dict[int, nn.Module] = {}
    for part in parts:
        for module in part.modules():
            if any(candidate.claims(module) is not None for candidate in known):
                found[id(module)] = module
    if not found and adapter:
        raise AdapterError(
            f"the adapter '{adapter.name}' is for {', '.join(adapter.classes)}. Looked at: {_looked_at(model, parts)}"
        )
    if not found:
        raise AdapterError(_unknown(model, parts))
    return [(module, adapter or _adapter_of(module)) for module in found.values()]


def components(model: object) -> list[nn.Module]:
    """A model itself, or the modules of a pipeline."""
    if isinstance(model, nn.Module):
        return [model]
    named = getattr(model, "components", None)
    values = named.values() if isinstance(named, dict) else getattr(model, "__dict__", {}).values()
    return [value for value in values if isinstance(value, nn.Module)]


def _looked_at(model: object, parts: Iterable[object]) -> str:
    names = sorted({f"{type(part).__module__}.{type(part).__qualname__}" for part in parts})
    return ", ".join(names) or f"no torch module in {type(model).__module__}.{type(model).__qualname__}"


def _unknown(model: object, parts: Iterable[object]) -> str:
    known = ", ".join(adapter.name for adapter in adapters()) or "none"
    failed = "".join(f"; {failure}" for failure in registry().failures)
    return (
        f"no adapter describes this model. Looked at: {_looked_at(model, parts)}. Installed adapters: {known}{failed}. "
        "An adapter is one short file, and 'freeloc inspect' writes a first one: see docs/write-an-adapter.md"
    )
