"""The differences between two profiles, as lines of text."""

from collections.abc import Iterator
from typing import Any

from freeloc.errors import ProfileError
from freeloc.profile.schema import Profile
from freeloc.untrusted import printable

CHOICE = ("layers", "heads")
"""The fields that choose policies. They are compared layer by layer, regardless of their order in the file."""


MOST_COMPARED = 1000
"""Largest number of layers, and of heads of a layer. Two small untrusted files could have a hundred million."""


def differences(first: Profile, second: Profile) -> list[str]:
    """One line for each field that differs, and for each change of policy, with its layers or heads.

    >>> import freeloc
    >>> wan = freeloc.load_profile("wan2.1")
    >>> differences(wan, wan)
    []
    >>> print(*differences(wan, freeloc.load_profile("wan2.1-14b"))[2:4], sep="\\n")
    model.layers: 30 -> 40
    model.heads: 12 -> 40

    Raises:
        ProfileError: if a model has more than `MOST_COMPARED` layers, or heads of a layer.
    """
    for model in (first.model, second.model):
        for name, count in (("layers", model.layers), ("heads", model.heads)):
            if count > MOST_COMPARED:
                raise ProfileError(f"expected at most {MOST_COMPARED} {name} to compare, found {count}")
    one, other = (_fields(profile.model_dump(mode="json", exclude=set(CHOICE))) for profile in (first, second))
    lines = []
    for name in dict.fromkeys([*one, *other]):
        before, after = one.get(name, "nothing"), other.get(name, "nothing")
        if before != after:
            lines.append(f"{name}: {printable(str(before), None)} -> {printable(str(after), None)}")
    return [*lines, *_layers(first, second), *_heads(first, second)]


def _fields(content: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Values of nested fields by their path, with dots."""
    found: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict) and value:
            found |= _fields(value, f"{above}{name}.")
        elif value is not None and value != {}:
            found[above + name] = value
    return found


def _layers(first: Profile, second: Profile) -> Iterator[str]:
    changes: dict[str, list[int]] = {}
    for layer in range(min(first.model.layers, second.model.layers)):
        if first.policy(layer) != second.policy(layer):
            changes.setdefault(f"{first.policy(layer)} -> {second.policy(layer)}", []).append(layer)
    for change, layers in changes.items():
        yield f"layers {_numbers(layers)}: {change}"


def _heads(first: Profile, second: Profile) -> Iterator[str]:
    """Changes of layers in which heads have policies of their own."""
    for layer in range(min(first.model.layers, second.model.layers)):
        if {str(layer)}.isdisjoint({*first.heads, *second.heads}):
            continue
        changes: dict[str, list[int]] = {}
        both = zip(first.head_policies(layer), second.head_policies(layer), strict=False)
        for head, (before, after) in enumerate(both):
            if before != after:
                changes.setdefault(f"{before} -> {after}", []).append(head)
        for change, heads in changes.items():
            yield f"layer {layer}, heads {_numbers(heads)}: {change}"


def _numbers(numbers: list[int]) -> str:
    return " ".join(map(str, numbers))
