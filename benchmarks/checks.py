"""What do the checks of every call cost? Patched forwards with and without them, alternating, on one thread.

    python benchmarks/checks.py

A small random Wan, 41 latent frames of 60 tokens, twice the trained length. CPU time of the process is measured. The
first call of a size also runs modules on marked tokens, so its extra time is printed too.
"""

import argparse
import statistics
from typing import Any

import torch
from models import small_wan
from timing import milliseconds

import freeloc


def seconds(model: Any, given: dict[str, Any]) -> float:
    """CPU seconds of one forward."""
    with torch.no_grad():
        return 1e-3 * milliseconds(lambda: model(**given), "cpu")


def main() -> None:
    """Print the share of the checks in a steady forward, and the time of the first."""
    parser = argparse.ArgumentParser(description="The cost of the checks of every call.")
    parser.add_argument("--repeats", type=int, default=41, help="forwards of each kind (default: 41)")
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    subject = small_wan()
    model, profile, given = subject.model(), subject.profile, subject.inputs(41)
    times: dict[bool, list[float]] = {True: [], False: []}
    firsts = []
    for number in range(repeats):
        with freeloc.patch(model, profile) as patch:
            correction = patch._hooks[0].model.correction
            correction.checked = False
            seconds(model, given)  # plans and memory are made ready
            correction.checked = True
            firsts.append(seconds(model, given))
            for checked in (False, True) if number % 2 else (True, False):
                correction.checked = checked
                times[checked].append(seconds(model, given))
    without, with_checks = statistics.median(times[False]), statistics.median(times[True])
    ratios = sorted(b / a for a, b in zip(times[False], times[True], strict=True))
    quarter = repeats // 4
    print(f"torch {torch.__version__}, one thread, {repeats} rounds, 41 latent frames x 60 tokens, 4 layers")
    print(f"without checks {without:.4f} s, with checks {with_checks:.4f} s: {with_checks / without - 1:+.2%}")
    print(
        f"per pair {statistics.median(ratios) - 1:+.2%}, half of them {ratios[quarter] - 1:+.2%} to "
        f"{ratios[-1 - quarter] - 1:+.2%}"
    )
    print(f"the first forward of a size: {statistics.median(firsts) / without - 1:+.2%}")


if __name__ == "__main__":
    main()
