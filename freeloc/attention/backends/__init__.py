"""Kernels that execute plans. ``reference`` and ``sdpa`` come with freeloc; plugins bring others."""

from freeloc.attention.backends import reference, sdpa
from freeloc.attention.backends.base import Backend, choose
from freeloc.markers import hookimpl

__all__ = ["Backend", "choose", "freeloc_backends", "reference", "sdpa"]


@hookimpl
def freeloc_backends() -> list[Backend]:
    """Those that come with freeloc."""
    return [sdpa.BACKEND, reference.BACKEND]
