"""Do the attention backends equal the reference implementation on this device, in each dtype?"""

from typing import Any

import torch
from common import backend_names, options, say, write
from timing import Budget

from freeloc.registry import registry
from freeloc.testing import run_backend_checks
from freeloc.testing.backends import DTYPES, TOLERANCE
from freeloc.testing.suite import Result


def check(backend: str, dtype: torch.dtype, device: str) -> list[dict[str, Any]]:
    """A row of the results for each call."""
    results = run_backend_checks(registry().backends.get(backend), device, [dtype])
    return [{"case": result.check, "backend": backend, "dtype": str(dtype)} | outcome(result) for result in results]


def outcome(result: Result) -> dict[str, str]:
    """Whether a call is equal, refused or wrong, and why."""
    if result.problem:
        return {"status": "WRONG", "reason": result.problem}
    return {"status": "refused", "reason": result.expected} if result.expected else {"status": "equal"}


def main() -> None:
    """Check all; exit with 1 if a backend is wrong in a call."""
    given = options("Compare the attention backends with the reference implementation.", budget=65).parse_args()
    budget, rows = Budget(given.budget), []
    runs = [(backend, dtype) for dtype in DTYPES for backend in backend_names()]
    left = 0
    for backend, dtype in runs:
        if budget.left <= 0:
            left += 1
            continue
        rows += (found := check(backend, dtype, given.device))
        summarize(found, backend, dtype)
    write(given.out, "check", rows, given.device)
    bad = sum(row["status"] == "WRONG" for row in rows)
    say(f"{len(rows)} calls checked on {given.device}, {bad} wrong; {left} of {len(runs)} runs left out: no time")
    raise SystemExit(1 if bad or left or not rows else 0)


def summarize(rows: list[dict[str, Any]], backend: str, dtype: torch.dtype) -> None:
    """Print how many calls a backend computes right in a dtype, and each other call."""
    equal = sum(row["status"] == "equal" for row in rows)
    say(f"{backend:10} {dtype!s:14} {equal} of {len(rows)} calls equal the reference within {TOLERANCE[dtype]:g}")
    reasons = {row.get("reason") for row in rows}
    if all(row["status"] == "refused" for row in rows) and len(reasons) == 1:
        say(f"  all refused: {reasons.pop()}")
        return
    for row in rows:
        if row["status"] != "equal":
            say(f"  {row['status']}: {row['case']}: {row['reason']}")


if __name__ == "__main__":
    main()
