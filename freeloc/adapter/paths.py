"""Attribute paths, with which an adapter refers to values of a model."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from freeloc.errors import AdapterError


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
