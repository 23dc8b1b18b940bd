"""A default device for plans, which are on the CPU regardless of the caller's default device."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._device import _device_constructors


class OnCpu(TorchFunctionMode):
    """As ``with torch.device("cpu")``, which torch 2.6 cannot enter if the caller has set a default device.

    A class of its own, so that `leave_cpu` recognizes it.

    >>> import torch
    >>> with torch.device("meta"), OnCpu():
    ...     torch.ones(3).device
    device(type='cpu')
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func in _device_constructors() and given.get("device") is None:
            given["device"] = "cpu"
        return func(*args, **given)


def leave_cpu() -> None:
    """Exit the `OnCpu` blocks that an interrupt left open in this thread, between a block and its end."""
    for mode in reversed(_get_current_function_mode_stack()):
        if isinstance(mode, OnCpu):
            mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
