"""Plans are data on the CPU, whatever the default device is where they are made."""

from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext


class OnCpu(DeviceContext):
    """``with torch.device("cpu")``, and to be told from those of others.

    >>> import torch
    >>> with torch.device("meta"), OnCpu():
    ...     torch.ones(3).device
    device(type='cpu')
    """

    def __init__(self) -> None:
        super().__init__("cpu")


def leave_cpu() -> None:
    """Leave what an interrupt has left open in this thread: Python may be interrupted between a block and its end."""
    for mode in reversed(_get_current_function_mode_stack()):
        if isinstance(mode, OnCpu):
            mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
