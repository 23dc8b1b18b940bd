"""Finds attention that may be over the video and that a patch would not correct: it is refused, or named in the report.

A second network, such as a ControlNet, attends over the same video as the transformer beside which it runs. So may
blocks that a class adds to the described class from which it derives. Both have attention modules of the same class.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import nn

from freeloc.adapter.spec import Adapter
from freeloc.discovery import Place, adapters, components, covers, modules_of
from freeloc.errors import AdapterError

Found = Sequence[tuple[nn.Module, Adapter]]
"""The transformers that are patched, as `freeloc.discovery.transformers_of` returns them."""


class Left(NamedTuple):
    """What a patch leaves uncorrected because the caller said so.

    Args:
        names: each component, module or argument, with its class.
        arguments: arguments of the transformers with the output of second networks that are corrected, or are left.
    """

    names: list[str]
    arguments: frozenset[str]


def require_all_described(model: object, found: Found, leave: Sequence[str]) -> Left:
    """Require that every module that may attend over the video is patched, or is to be left uncorrected.

    Args:
        model: a transformer or a pipeline.
        found: its transformers that are patched.
        leave: paths of components and modules, and arguments of transformers, that are to be left.

    Raises:
        AdapterError: if there are other such modules, or `leave` names nothing, or a module that is patched.
    """
    places = list(modules_of(components(model)))
    others = [(name, place) for name, place in undescribed(places, found) if not covers(leave, place.whole)]
    if others:
        counts = Counter((_pattern(place.whole), type(place.module).__name__) for _, place in others)
        listed = ", ".join(f"{path} ({count} of {cls})" for (path, cls), count in counts.items())
        models = " and ".join(dict.fromkeys(type(module).__name__ for module, _ in found))
        raise AdapterError(
            f"expected an adapter to describe all modules like those that attend over the video of {models}, found "
            f"also {listed}. Their attention would stay uncorrected. Describe them in an adapter, as sites or as "
            "other_attention (see docs/write-an-adapter.md); or leave them as they are, and the report will say so: "
            f"leave_uncorrected={list(dict.fromkeys(name for name, _ in others))}"
        )
    arguments = _arguments(places, found)
    names = [_left(name, places, found, arguments) for name in leave]
    return Left(names, frozenset(name for name, is_present in arguments.items() if is_present or name in leave))


def undescribed(places: Sequence[Place], found: Found) -> Iterator[tuple[str, Place]]:
    """(name to leave, place) of every module that may attend over the video and is not patched.

    In a transformer these are the modules of the classes of its sites, but for `Adapter.other_attention`. In other
    components they must also have the name of a site, since a library may use one class for many purposes.
    """
    sites = {id(part) for module, known in found for *_, site in known.places(module) for part in site.modules()}
    classes = [(_classes(module, known), known.other_attention or ()) for module, known in found]
    roots: dict[int, tuple[int, str]] = {}  # by module: which of the transformers it is in, and the path of that one
    for number, (transformer, _) in enumerate(found):
        root = next(place.whole for place in places if place.module is transformer)
        roots |= {id(part): (number, root) for part in transformer.modules()}
    for place in places:
        if id(place.module) in sites:
            continue
        if id(place.module) in roots:
            number, root = roots[id(place.module)]
            own, apart = classes[number]
            path = place.whole[len(root) :].lstrip(".")
            if isinstance(place.module, tuple(own)) and not covers(apart, path):
                yield _pattern(place.whole), place
        elif any(_is_alike(place, own) and not covers(apart, place.path) for own, apart in classes):
            yield place.component or _pattern(place.whole), place


def _is_alike(place: Place, classes: Mapping[type, set[str]]) -> bool:
    """Whether a module has the class and the last name of a site."""
    name = _pattern(place.path).rpartition(".")[2]
    return any(isinstance(place.module, cls) and name in names for cls, names in classes.items())


def _classes(transformer: nn.Module, known: Adapter) -> Mapping[type, set[str]]:
    """The classes of the attention modules over the video, and the last names of their paths.

    A class from another package than the transformer's is a wrapper, or is used for more than attention: it is passed
    over for what it wraps, or for a base.
    """
    packages = {cls.__module__.partition(".")[0] for cls in type(transformer).__mro__} - {"torch", "builtins"}
    found: dict[type, set[str]] = defaultdict(set)
    for *_, path, site in known.places(transformer):
        wrapped: nn.Module | None = site
        while wrapped is not None:
            own = (cls for cls in type(wrapped).__mro__ if cls.__module__.partition(".")[0] in packages)
            if cls := next(own, None):
                found[cls].add(_pattern(path).rpartition(".")[2])
                break
            wrapped = next((part for name, part in wrapped.named_children() if name.startswith("_")), None)
    return found


def _arguments(places: Sequence[Place], found: Found) -> dict[str, bool]:
    """The arguments of the transformers with the output of a second network, and whether that network is here."""
    names = {known.name for _, known in found}
    seconds = [known for known in adapters() if known.beside and known.beside.adapter in names]
    return {
        known.beside.argument: any(known.claims(place.module) is not None for place in places)
        for known in seconds
        if known.beside and known.beside.argument
    }


def _left(name: str, places: Sequence[Place], found: Found, arguments: Mapping[str, bool]) -> str:
    """What a name in `leave` stands for, with its class."""
    if name in arguments:
        return f"{name} (an argument)"
    inside = [place for place in places if covers([name], place.whole)]
    depths = [place.whole.count(".") for place in inside]
    outermost = [place for place, depth in zip(inside, depths, strict=True) if depth == min(depths)]
    if not inside:
        known = ", ".join(dict.fromkeys([*(place.whole.partition(".")[0] for place in places), *arguments]))
        raise AdapterError(
            f"expected leave_uncorrected to name components or modules, found {name!r}, which is none. There are "
            f"{known.strip(', ')}; modules below these are named as in 'transformer.blocks.*.attention'"
        )
    patched = {id(site) for module, known in found for *_, site in known.places(module)}
    if any(id(place.module) in patched for place in inside):
        raise AdapterError(
            f"expected leave_uncorrected to name modules that no adapter describes, found {name!r}, in which layers "
            "are described. Use a profile that has the policy 'none' for these layers"
        )
    return f"{name} ({', '.join(sorted({type(place.module).__name__ for place in outermost}))})"


def _pattern(path: str) -> str:
    """A path with ``*`` for its numbers."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", path)
