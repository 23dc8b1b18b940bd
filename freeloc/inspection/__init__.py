"""Inspection of a model without an adapter, and a first draft of its adapter."""

from freeloc.inspection.inspector import Inspection, inspect

__all__ = ["Inspection", "inspect"]
