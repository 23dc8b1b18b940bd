"""What every check is made of."""

from collections.abc import Callable

from torch import Tensor

from freeloc.testing.cases import Case

Check = Callable[[Case], None]
NEEDS: dict[str, tuple[str, ...]] = {}
"""By name of a check: those without which it says nothing."""


class ConformanceError(AssertionError):
    """A requirement that an adapter does not meet: which word, what was expected, what was found."""


def require(holds: object, problem: str) -> None:
    """Raise a ConformanceError unless something holds."""
    if not holds:
        raise ConformanceError(problem)


def needs(*checks: Check) -> Callable[[Check], Check]:
    """Says of a check what must hold before it can tell anything."""

    def note(check: Check) -> Check:
        NEEDS[check.__name__] = tuple(needed.__name__ for needed in checks)
        return check

    return note


def error_of(found: Tensor, expected: Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1e-12))
