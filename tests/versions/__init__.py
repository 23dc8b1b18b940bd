"""The tests with other versions of the libraries: ``python -m tests.versions``."""
