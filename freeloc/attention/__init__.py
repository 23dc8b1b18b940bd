"""Attention of one layer under a plan: exact, on queries and keys that the model has already rotated."""
