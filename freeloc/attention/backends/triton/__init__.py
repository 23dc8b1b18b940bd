"""Backend ``triton``: one kernel for the whole call, for NVIDIA GPUs. Importing it imports no triton."""

from freeloc.attention.backends.triton.backend import BACKEND, attend, obstacle

__all__ = ["BACKEND", "attend", "obstacle"]
