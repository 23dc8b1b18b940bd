"""Do the attention backends equal the reference implementation on this device, in each dtype?"""

from typing import Any

import torch
from attention_cases import CASES, TOLERANCE, Case, compare
from common import Budget, backend_names, options, say, write

from freeloc.errors import LayoutError

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check(case: Case, backend: str, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """One row of the results."""
    row: dict[str, Any] = {"case": case.name, "backend": backend, "dtype": str(dtype), "status": "equal"}
    try:
        found = compare(case, backend, dtype, device)
    except LayoutError as error:
        return row | {"status": "refused", "reason": str(error)}
    except Exception as error:  # whatever a kernel raises; the other cases are to be seen too
        return row | {"status": "ERROR", "reason": f"{type(error).__name__}: {error}"}
    row |= {"largest": found.largest, "relative": found.relative}
    return row if found.fits else row | {"status": "DIFFERS"}


def main() -> None:
    """Check all; exit with 1 if a backend differs or fails."""
    given = options("Compare the attention backends with the reference implementation.", budget=45).parse_args()
    budget, rows = Budget(given.budget), []
    for dtype in DTYPES:
        for case in CASES:
            rows += [check(case, name, dtype, given.device) for name in backend_names() if budget.left > 0]
        for name in backend_names():
            summarize([row for row in rows if (row["backend"], row["dtype"]) == (name, str(dtype))], name, dtype)
    write(given.out, "check", rows, given.device)
    bad = [row for row in rows if row["status"] in ("ERROR", "DIFFERS")]
    left = len(DTYPES) * len(CASES) * len(backend_names()) - len(rows)
    say(f"{len(rows)} calls checked on {given.device}, {len(bad)} bad, {left} left out for want of time")
    raise SystemExit(1 if bad or left or not rows else 0)


def summarize(rows: list[dict[str, Any]], backend: str, dtype: torch.dtype) -> None:
    """Print a backend's largest error in a dtype, and each call that went wrong."""
    done = [row for row in rows if "largest" in row]
    if done:
        worst = max(done, key=lambda row: row["largest"])
        say(
            f"{backend:10} {dtype!s:14} {len(done):3} calls, largest error {worst['largest']:.2e} "
            f"({worst['case']}), largest relative {max(row['relative'] for row in done):.2e}, "
            f"tolerance {TOLERANCE[dtype]:g}"
        )
    for row in rows:
        if row["status"] != "equal":
            numbers = f"{row['largest']:.2e}, relative {row['relative']:.2e}" if "largest" in row else row["reason"]
            say(f"  {row['status']}: {row['backend']}, {row['dtype']}, {row['case']}: {numbers}")


if __name__ == "__main__":
    main()
