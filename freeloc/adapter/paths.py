"""Paths, with which an adapter refers to values of a model, and to items and attributes of the arguments of a call."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from freeloc.errors import AdapterError, LayoutError


def read_path(model: nn.Module, path: str) -> Any:
    """The value at a path of attributes, of sequence items by number, and of mapping items by name.

    Raises:
        AdapterError: if the model has no such value.
    """
    found: Any = model
    try:
        for name in path.split("."):
            if isinstance(found, Mapping) and name in found:
                found = found[name]
            else:
                item = name.isdigit() and not isinstance(found, nn.Module)
                found = found[int(name)] if item else getattr(found, name)
        return found
    except (AttributeError, IndexError, TypeError) as error:
        raise AdapterError(f"its adapter expects {type(model).__name__}.{path}: {error}") from error


def argument_at(given: Mapping[str, Any], name: str, is_optional: bool = False) -> Any:
    """An argument of a call, or an item or attribute of one: of a list or tuple, of a mapping, of another object.

    >>> argument_at({"x": ["video", "audio"], "text": "prompt"}, "x.1")
    'audio'

    torch.compile traces it, so an object may be of any class that it can trace, such as a dataclass.

    Args:
        given: the arguments, by name.
        name: name of an argument, with the numbers of items and the names of keys and attributes after dots.
        is_optional: whether a list may be shorter and a mapping may have no such key. Then the value is None. An
            object without such an attribute is an error in any case: the name must be a mistake.

    Returns:
        The value; None if the argument, or what should have the item or attribute, is None or was left out.

    Raises:
        LayoutError: if there is no such item or attribute.
    """
    root, *names = name.split(".")
    found, path = given.get(root), root
    for part in names:
        if found is None:
            return None
        if isinstance(found, (list, tuple)) and part.isdigit():
            value = found[int(part)] if int(part) < len(found) else _ABSENT
        elif isinstance(found, Mapping):
            value = found.get(part, _ABSENT)
        else:
            value = getattr(found, part, _ABSENT)
        if value is _ABSENT:
            if is_optional and isinstance(found, (list, tuple, Mapping)):
                return None
            raise LayoutError(_absent(name, path, found))
        found, path = value, f"{path}.{part}"
    return found


_ABSENT = object()


def _absent(name: str, path: str, found: Any) -> str:
    kind = f"a {type(found).__name__}"
    if isinstance(found, Mapping):
        kind += f" with {sorted(map(str, found))}"
    elif isinstance(found, list | tuple):
        kind += f" of {len(found)} items"
    return (
        f"expected the adapter's '{name}' among the arguments of the call, found {kind} as {path}: call the model with "
        "it, or name in the adapter what its arguments have"
    )


def with_argument(given: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    """The arguments of a call with another value where `argument_at` reads. The objects on the way are copied.

    >>> with_argument({"x": ["video", "audio"], "text": "prompt"}, "x.0", "other")
    {'x': ['other', 'audio'], 'text': 'prompt'}
    """
    root, *names = name.split(".")
    return {**given, root: _replaced(given.get(root), names, value)}


def _replaced(whole: Any, names: list[str], value: Any) -> Any:
    if not names:
        return value
    part = _replaced(argument_at({"": whole}, f".{names[0]}"), names[1:], value)
    if isinstance(whole, tuple) and names[0].isdigit():
        items = [*whole[: int(names[0])], part, *whole[int(names[0]) + 1 :]]
        make: Any = getattr(type(whole), "_make", tuple)  # of a named tuple
        return make(items)
    changed = copy.copy(whole)
    if isinstance(whole, list):
        changed[int(names[0])] = part
    elif isinstance(whole, Mapping):
        changed[names[0]] = part
    else:
        object.__setattr__(changed, names[0], part)  # also of a frozen dataclass
    return changed
