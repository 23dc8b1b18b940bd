"""A default device for plans, which are on the CPU regardless of the caller's default device."""

from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext


class OnCpu(DeviceContext):
    """``with torch.device("cpu")``, as a class of its own, so that `leave_cpu` recognizes it.

    >>> import torch
    >>> with torch.device("meta"), OnCpu():
    ...     torch.ones(3).device
    device(type='cpu')
    """

    def __init__(self) -> None:
        super().__init__("cpu")


def leave_cpu() -> None:
    """Exit the `OnCpu` blocks that an interrupt left open in this thread, between a block and its end."""
    for mode in reversed(_get_current_function_mode_stack()):
        if isinstance(mode, OnCpu):
            mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
