"""Runs the checks, for pytest and for the command line."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from freeloc.adapter.example import Example
from freeloc.adapter.spec import Adapter
from freeloc.errors import AdapterError
from freeloc.registry import registry
from freeloc.testing.cases import Case
from freeloc.testing.checks import CHECKS
from freeloc.testing.requirements import NEEDS, Check, ConformanceError


@dataclass(frozen=True)
class Result:
    """The result of a check.

    Args:
        example: label of the example.
        check: name of the check.
        problem: what is wrong; empty if nothing is.
        blocked: the failed check that this one depends on; empty if there is none.
        expected: the reason for an expected failure; empty if none is expected.
    """

    example: str
    check: str
    problem: str = ""
    blocked: str = ""
    expected: str = ""

    @property
    def passed(self) -> bool:
        """Whether the requirement is met, or fails or is blocked as expected."""
        return bool(self.problem or self.blocked) == bool(self.expected)

    @property
    def met(self) -> bool:
        """Whether the requirement is met."""
        return not self.problem and not self.blocked


class Suite:
    """The checks of one example. Each runs once, on a new model."""

    def __init__(self, example: Example, adapter: Adapter | None = None) -> None:
        """Create the suite, by default with the installed adapter that the example names."""
        self.example = example
        self._adapter = adapter
        self._results: dict[str, Result] = {}

    @property
    def adapter(self) -> Adapter:
        """The adapter that is checked.

        Raises:
            AdapterError: if the example names a refusal.
        """
        adapter = self._adapter or registry().adapters.get(self.example.adapter)
        if not isinstance(adapter, Adapter):
            raise AdapterError(f"'{self.example.adapter}' is refused, so there is nothing to check: {adapter.reason}")
        return adapter

    def result(self, check: Check) -> Result:
        """The result of a check. The checks that it depends on run first."""
        name = check.__name__
        if name not in self._results:
            self._results[name] = self._run(check, name)
        return self._results[name]

    def _run(self, check: Check, name: str) -> Result:
        for needed in CHECKS:
            if needed.__name__ in NEEDS.get(name, ()):
                before = self.result(needed)
                if not before.met and not (before.problem and before.expected):
                    by = before.blocked or needed.__name__
                    return Result(self.example.label, name, blocked=by, expected=before.expected)
        expected = self.example.expected_failures.get(name, "")
        try:
            check(Case(self.example, self.adapter))
        except ConformanceError as error:
            return Result(self.example.label, name, problem=str(error), expected=expected)
        except Exception as error:  # a wrong description may cause any error; it is the result
            return Result(self.example.label, name, problem=f"{type(error).__name__}: {error}", expected=expected)
        return Result(self.example.label, name, expected=expected)


def run_checks(example: Example, adapter: Adapter | None = None) -> list[Result]:
    """Run every check on one example.

    >>> all(result.passed for result in run_checks(examples("wan")[0]))
    True

    Args:
        example: the example to check.
        adapter: the adapter to check; by default the installed one that the example names.
    """
    suite = Suite(example, adapter)
    return [suite.result(check) for check in CHECKS]


def examples(adapter: str | None = None) -> list[Example]:
    """The installed examples, of one adapter or of all."""
    return [example for _, _, example in registry().examples.things() if adapter in (None, example.adapter)]


def conformance(*examples: Example) -> Callable[[Any], Any]:
    """Decorator of a pytest test with one argument ``check``, which the test calls: one test per example and check."""
    import pytest

    def bind(suite: Suite, check: Check) -> Callable[[], None]:
        def call() -> None:
            result = suite.result(check)
            if result.blocked:
                pytest.skip(f"cannot be checked while {result.blocked} fails")
            if result.problem and result.expected:
                pytest.xfail(f"{result.expected}: {result.problem}")
            if result.expected:
                raise ConformanceError(f"expected to fail ({result.expected}), but passes: remove the expected failure")
            if result.problem:
                raise ConformanceError(result.problem)

        return call

    suites = [Suite(example) for example in examples]
    calls = [
        pytest.param(bind(suite, check), id=f"{suite.example.label}-{check.__name__}")
        for suite in suites
        for check in CHECKS
    ]
    return pytest.mark.parametrize("check", calls)
