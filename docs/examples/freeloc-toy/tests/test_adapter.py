from freeloc_toy.examples import EXAMPLE

from freeloc.testing import conformance


@conformance(EXAMPLE)
def test_adapter(check):
    check()
