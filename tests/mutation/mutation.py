"""Mutation: a small way to break one line of freeloc, and the fast tests that are expected to notice it."""

from pathlib import Path
from typing import NamedTuple


class Mutation(NamedTuple):
    """One changed line.

    Args:
        path: the file, from the root of the repository.
        what: what is wrong then, in a few words. No two mutations have the same.
        old, new: what is replaced, and by what. The old text must occur exactly once in the file.
        tests: the tests that are expected to notice it, below ``tests``, with spaces in between.
        survives: why no test can notice it; empty if one does.
    """

    path: str
    what: str
    old: str
    new: str
    tests: str
    survives: str = ""

    def applied_to(self, text: str) -> str:
        """The text of the file with the mutation.

        Raises:
            ValueError: if the old text does not occur exactly once, or more than one line would change.
        """
        count = text.count(self.old)
        if count != 1:
            raise ValueError(
                f"expected once in {self.path}: {self.old!r}, found it {count} times. Write the mutation "
                f"'{self.what}' anew for the code as it is now"
            )
        if "\n" in self.old + self.new or self.old == self.new:
            raise ValueError(f"expected the mutation '{self.what}' to change one line, found {self.old!r} {self.new!r}")
        return text.replace(self.old, self.new)

    @property
    def paths_of_tests(self) -> list[str]:
        """The tests, from the root of the repository."""
        return [f"tests/{test}" for test in self.tests.split()]


def read(root: Path, mutation: Mutation) -> str:
    """The text of the file of a mutation."""
    return (root / mutation.path).read_text(encoding="utf-8")
