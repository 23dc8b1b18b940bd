"""Corrected attention for engines with model code of their own, which hand over queries, keys and values."""

from freeloc.layer.attend import attend_layer
from freeloc.layer.model import ModelAttention

__all__ = ["ModelAttention", "attend_layer"]
