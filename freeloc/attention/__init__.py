"""Attention of one layer under a plan: exact, on queries and keys that the model has already rotated."""

from freeloc.attention.api import attend, rotate_keys
from freeloc.attention.backends import Backend, reference, sdpa, triton
from freeloc.attention.backends.reference import attend_reference
from freeloc.attention.layer_plan import HeadGroup, LayerPlan, LayerPlans
from freeloc.attention.layout import TokenLayout
from freeloc.attention.prepared import PreparedPlan

__all__ = [
    "Backend",
    "HeadGroup",
    "LayerPlan",
    "LayerPlans",
    "PreparedPlan",
    "TokenLayout",
    "attend",
    "attend_reference",
    "reference",
    "rotate_keys",
    "sdpa",
    "triton",
]
