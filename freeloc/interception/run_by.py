"""Finds the running call of a function that calls the parts of a transformer, in place of the transformer's forward."""

import inspect
import sys
from types import FrameType
from typing import Any

from torch import nn

from freeloc.adapter.run_by import RunBy
from freeloc.errors import AdapterError


def frame_of(described: RunBy, within: FrameType | None) -> FrameType | None:
    """The frame of the innermost running call of the function, in this thread.

    Args:
        described: the function.
        within: frame of a call that is running too. It is returned if it is inside that of the function.
    """
    here: FrameType | None = sys._getframe(1)
    while here is not None and here is not within:
        # By its names, not by its code, since other code may have replaced the function by its own of that name.
        if here.f_code.co_name == described.name and here.f_globals.get("__name__") == described.file:
            return here
        here = here.f_back
    return here


def arguments(frame: FrameType) -> dict[str, Any]:
    """The arguments of the call with this frame, by name, as they are now; without those left at their default."""
    names, _, others, values = inspect.getargvalues(frame)
    function = frame.f_globals.get(frame.f_code.co_name)
    parameters = inspect.signature(function).parameters if callable(function) else {}
    left = {known.name for known in parameters.values() if values.get(known.name, ...) is known.default}
    given = {name: values[name] for name in names if name in values and name not in left}
    return given | (values.get(others, {}) if others else {})


def submodule_of(model: nn.Module, path: str, what: str) -> nn.Module:
    """The submodule at a path where the adapter expects something.

    Raises:
        AdapterError: if there is none.
    """
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        name = type(model).__name__
        raise AdapterError(f"{name} has no '{path}', where its adapter expects {what}: {error}") from error
