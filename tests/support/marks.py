"""Which values of a parameter belong to the fast tests."""

from typing import Any

import pytest


def slow_unless(is_quick: bool, *values: Any, name: str | None = None) -> Any:
    """Values for one run of a test, which is slow unless `is_quick`; `name` is shown for it."""
    return pytest.param(*values, id=name, marks=() if is_quick else pytest.mark.slow)
