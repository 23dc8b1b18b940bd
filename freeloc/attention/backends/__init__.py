"""Attention backends: kernels that execute plans. ``reference`` and ``sdpa`` are built in; plugins register others."""

from freeloc.attention.backends import reference, sdpa
from freeloc.attention.backends.base import Backend, choose
from freeloc.markers import hookimpl

__all__ = ["Backend", "choose", "freeloc_backends", "reference", "sdpa"]


@hookimpl
def freeloc_backends() -> list[Backend]:
    """The built-in backends."""
    return [sdpa.BACKEND, reference.BACKEND]
