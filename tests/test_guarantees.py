"""docs/guarantees.md: what it names exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROWS = [row for row in (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8").splitlines() if "`test" in row]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_each_promise_names_tests_that_exist(row):
    named = re.findall(r"`((?:tests/|test_)[\w/.]*)`", row.split("|")[2])
    assert named
    folder = ROOT
    for path in named:
        found = ROOT / path if path.startswith("tests/") else folder / path
        assert found.exists(), path
        folder = found.parent
