"""Helpers that all checks use."""

from collections.abc import Callable

from torch import Tensor

from freeloc.testing.cases import Case

Check = Callable[[Case], None]
NEEDS: dict[str, tuple[str, ...]] = {}
"""Names of the checks that a check depends on, by its name."""


class ConformanceError(AssertionError):
    """An adapter or backend does not meet a requirement: which field, what was expected, and what was found."""


def require(holds: object, problem: str) -> None:
    """Raise a ConformanceError unless the condition holds."""
    if not holds:
        raise ConformanceError(problem)


def needs(*checks: Check) -> Callable[[Check], Check]:
    """Declare the checks that a check depends on."""

    def note(check: Check) -> Check:
        NEEDS[check.__name__] = tuple(needed.__name__ for needed in checks)
        return check

    return note


def error_of(found: Tensor, expected: Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1e-12))
