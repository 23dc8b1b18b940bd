"""Depths by name, built-in and from plugins."""

import contextlib
import re
from collections.abc import Iterable

from freeloc.errors import ProbeError, RegistryError
from freeloc.probing.depths.base import Depth
from freeloc.registry import registry

NAME = re.compile(r"[a-z0-9-]+")
"""Valid names of depths, which the tables of a file are named after."""


def find_depth(depth: str | Depth) -> Depth:
    """A registered depth with its default settings, or the given `Depth`.

    >>> find_depth("local").name
    'local'

    Raises:
        ProbeError: if no depth has that name (the message suggests similar names), or it is not a valid depth.
    """
    found: object = depth
    if isinstance(depth, str):
        try:
            found = registry().depths.get(depth, way_out="; or give a freeloc.probing.Depth object")
            found = found() if isinstance(found, type) else found
        except RegistryError as error:
            raise ProbeError(str(error)) from None
        except TypeError as error:
            raise ProbeError(f"depth '{depth}' cannot be made without arguments ({error}): give it defaults") from error
    if not isinstance(found, Depth) or not NAME.fullmatch(found.name):
        raise ProbeError(
            "expected a depth to be a freeloc.probing.Depth, with a name of lower-case letters, digits and hyphens, "
            f"found {found!r}"
        )
    return found


def installed_depths(names: Iterable[str]) -> list[Depth]:
    """The installed depths of these names, the one with the highest rank first."""
    found = []
    for name in names:
        with contextlib.suppress(ProbeError):  # a file may come from a machine with other plugins
            found.append(find_depth(name))
    return sorted(found, key=lambda depth: -depth.rank)
