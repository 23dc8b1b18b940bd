"""What does a pair of tokens cost in a call of PyTorch's attention kernel on a CPU, by the numbers of queries and keys?

    python benchmarks/calls.py                     one thread, 2 heads of 128 channels, float32
    python benchmarks/calls.py --dtype bfloat16
    python benchmarks/calls.py --threads 2 --heads 4 --head-dim 48       as in the tiny model

`freeloc.attention.schedule` divides plans into calls by these costs. Medians of `--repeats` measurements, each of many
calls; the sizes come in turn, so that a change of the machine's speed meets all of them.
"""

import argparse
import statistics

import torch
from common import facts
from tables import table
from timing import milliseconds

from freeloc.attention.parts import attend_part

QUERIES = (35, 60, 120, 240, 480, 768, 1536)
KEYS = (60, 120, 240, 480, 1200, 4800)
PAIRS = 4_000_000
"""Least number of pairs in a measurement, for each head."""


def main() -> None:
    """Measure all sizes, and print a table."""
    parser = argparse.ArgumentParser(description="Time PyTorch's attention kernel by the numbers of queries and keys.")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    times: dict[tuple[int, int], list[float]] = {(queries, keys): [] for queries in QUERIES for keys in KEYS}
    for _ in range(given.repeats + 1):
        for (queries, keys), found in times.items():
            found.append(nanoseconds(queries, keys, given))
    medians = {size: f"{statistics.median(found[1:]):.1f}" for size, found in times.items()}
    cells = [[f"{queries:,}", *(medians[queries, keys] for keys in KEYS)] for queries in QUERIES]
    machine = ", ".join(facts("cpu").values())
    size = f"{given.heads} heads of {given.head_dim}, {given.dtype}, threads: {given.threads}"
    print(f"Nanoseconds for a pair, {size}, {machine}\n")
    print("\n".join(table(["queries", *(f"{keys:,} keys" for keys in KEYS)], cells)))


def nanoseconds(queries: int, keys: int, given: argparse.Namespace) -> float:
    """Time of one pair of tokens of one head."""
    dtype = getattr(torch, given.dtype)
    query, key, value = (
        torch.randn(1, given.heads, tokens, given.head_dim).to(dtype) for tokens in (queries, keys, keys)
    )
    calls = -(-PAIRS // (queries * keys))
    spent = milliseconds(lambda: [attend_part(query, key, value) for _ in range(calls)], "cpu")
    return 1e6 * spent / (calls * given.heads * queries * keys)


if __name__ == "__main__":
    main()
