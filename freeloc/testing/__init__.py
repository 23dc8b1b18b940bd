"""The conformance suite: checks of an adapter on a small random model, and of an attention backend.

A complete test of an adapter::

    from freeloc.testing import conformance
    from my_package.examples import EXAMPLE

    @conformance(EXAMPLE)
    def test_my_adapter(check):
        check()

and of a backend: ``check_backend(MY_BACKEND)``.
"""

from freeloc.adapter.example import Example, noise, random_model
from freeloc.testing.backends import check_backend, run_backend_checks
from freeloc.testing.checks import CHECKS
from freeloc.testing.requirements import ConformanceError
from freeloc.testing.suite import Result, Suite, conformance, examples, run_checks

__all__ = [
    "CHECKS",
    "ConformanceError",
    "Example",
    "Result",
    "Suite",
    "check_backend",
    "conformance",
    "examples",
    "noise",
    "random_model",
    "run_backend_checks",
    "run_checks",
]
