"""Kernels that execute plans."""
