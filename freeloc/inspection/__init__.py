"""From a model that nobody has described to the first draft of its adapter."""

from freeloc.inspection.inspector import Inspection, inspect

__all__ = ["Inspection", "inspect"]
