"""Describing a model in data: where it computes attention, how its tokens are ordered, how it encodes positions."""

from freeloc.adapter.example import Example
from freeloc.adapter.rope import TemporalRope
from freeloc.adapter.spec import MATMUL, SDPA, Adapter, AttentionSite, Kernel, ModelShape, Refusal, TokenGrid

__all__ = [
    "MATMUL",
    "SDPA",
    "Adapter",
    "AttentionSite",
    "Example",
    "Kernel",
    "ModelShape",
    "Refusal",
    "TemporalRope",
    "TokenGrid",
]
