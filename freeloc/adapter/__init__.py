"""Describing a model in data: where it computes attention, how its tokens are ordered, how it encodes positions."""

from freeloc.adapter.beside import Beside
from freeloc.adapter.bypass import Bypasses
from freeloc.adapter.context_parallel import ContextParallel
from freeloc.adapter.example import Example
from freeloc.adapter.grid import References, TokenGrid
from freeloc.adapter.kernel import MATMUL, SDPA, Kernel
from freeloc.adapter.rope import TemporalRope
from freeloc.adapter.run_by import RunBy
from freeloc.adapter.site import AttentionSite
from freeloc.adapter.spec import Adapter, ModelShape, Refusal

__all__ = [
    "MATMUL",
    "SDPA",
    "Adapter",
    "AttentionSite",
    "Beside",
    "Bypasses",
    "ContextParallel",
    "Example",
    "Kernel",
    "ModelShape",
    "References",
    "Refusal",
    "RunBy",
    "TemporalRope",
    "TokenGrid",
]
