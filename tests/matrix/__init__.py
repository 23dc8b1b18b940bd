"""The matrix: freeloc together with other libraries, in both orders, on small real models: ``python -m tests.matrix``."""
