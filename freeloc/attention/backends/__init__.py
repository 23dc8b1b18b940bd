"""Attention backends: kernels that execute plans. ``triton``, ``sdpa`` and ``reference`` are built in."""

from freeloc.attention.backends import reference, sdpa, triton
from freeloc.attention.backends.base import Backend, choose
from freeloc.markers import hookimpl

__all__ = ["Backend", "choose", "freeloc_backends", "reference", "sdpa", "triton"]


@hookimpl
def freeloc_backends() -> list[Backend]:
    """The built-in backends."""
    return [triton.BACKEND, sdpa.BACKEND, reference.BACKEND]
