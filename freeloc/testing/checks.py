"""All checks, each after the checks that it depends on."""

from freeloc.testing import behaviour, description, reading
from freeloc.testing.requirements import Check

CHECKS: tuple[Check, ...] = tuple(
    function
    for module in (description, reading, behaviour)
    for name, function in vars(module).items()
    if name.startswith("check_") and function.__module__ == module.__name__
)
