"""The conformance suite: what must be true of an adapter, checked on a small random model. A whole test of one::

from freeloc.testing import conformance
from my_package.examples import EXAMPLE

@conformance(EXAMPLE)
def test_my_adapter(check):
    check()
"""

from freeloc.adapter.example import Example, noise, random_model
from freeloc.testing.checks import CHECKS
from freeloc.testing.requirements import ConformanceError
from freeloc.testing.suite import Result, Suite, conformance, examples, run_checks

__all__ = [
    "CHECKS",
    "ConformanceError",
    "Example",
    "Result",
    "Suite",
    "conformance",
    "examples",
    "noise",
    "random_model",
    "run_checks",
]
