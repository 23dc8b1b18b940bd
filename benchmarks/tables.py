"""The results of a run as Markdown, from the files that the benchmarks wrote.

    python benchmarks/tables.py --out runs/cpu --parts attention long forward overhead lvsa --into docs/performance.md

With ``--into``, they replace what stands between two comments of a page.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
    return [*lines, ""]


def number(row: Row, word: str, digits: int = 2) -> str:
    """A cell; empty where the row has no such number."""
    return f"{row[word]:,.{digits}f}" if word in row else ""


def times(row: Row) -> str:
    """Milliseconds, with three digits or more."""
    return number(row, "ms", 0 if row["ms"] >= 100 else 1 if row["ms"] >= 10 else 2)


def groups(rows: Sequence[Row], *words: str) -> Iterator[tuple[Row, list[Row]]]:
    """The rows in groups that have these numbers in common, in the order in which they come, with the first of each."""
    for key in dict.fromkeys(tuple(row[word] for word in words) for row in rows):
        own = [row for row in rows if tuple(row[word] for word in words) == key]
        yield own[0], own


def check_table(rows: Sequence[Row]) -> list[str]:
    """For each backend and dtype: how many calls are equal, refused and wrong."""
    cells = []
    for first, own in groups(rows, "backend", "dtype"):
        states = [row["status"] for row in own]
        counts = [str(states.count(status)) for status in ("equal", "refused", "WRONG")]
        cells.append([first["backend"], first["dtype"].removeprefix("torch."), *counts])
    heads = ["backend", "dtype", "equal", "refused", "wrong"]
    return ["### Backends against the reference implementation", "", *table(heads, cells)]


def attention_table(rows: Sequence[Row]) -> list[str]:
    """One table for each dtype and number of tokens, with a row for each plan and kernel."""
    lines = []
    for first, own in groups(rows, "dtype", "tokens_per_frame", "heads"):
        size = f"{first['heads']} heads of {first['head_dim']}, {first['tokens_per_frame']} tokens per frame"
        lines += [f"### Attention of one layer, {size}, {first['dtype']}", "", *plans_table(own)]
    return lines


def plans_table(rows: Sequence[Row]) -> list[str]:
    """The rows of one table, each beside the older checkout's; what did not run says why below."""
    old = {(row["frames"], row["plan"]): row for row in rows if row["side"] == "old" and "ms" in row}
    commit = next((row["backend"] for row in old.values()), "")
    cells = []
    for row in rows:
        if row["side"] == "this" and "ms" in row:
            before = old.get((row["frames"], row["plan"]))
            compared = (
                ["", ""] if before is None else [number(before, "ratio"), f"{before['ratio'] / row['ratio']:.2f}"]
            )
            shares = [number(row, "share", 3), number(row, "computed", 3), number(row, "ratio_over_share")]
            memory = [number(row, "peak_mib", 0 if row["peak_mib"] >= 10 else 1), number(row, "peak_over_kv")]
            what = [str(row["frames"]), row["plan"], row["backend"], times(row), number(row, "ratio")]
            cells.append([*what, *shares, *memory, *(compared if old else []), str(row["repeats"])])
    heads = ["latent frames", "plan", "kernel", "ms", "ratio to dense", "share of pairs", "computed", "ratio / share"]
    heads += ["peak MiB", "peak / (k and v)", *([f"ratio of {commit}", "times faster"] if old else []), "repeats"]
    notes = [
        f"- {row['frames']} frames, {row['plan']}, {row['backend']}: {row['note']}" for row in rows if "note" in row
    ]
    return [*table(heads, cells), *notes, *([""] if notes else [])]


def model_table(rows: Sequence[Row]) -> list[str]:
    """One row for each length, patched and not."""
    cells = []
    for row in rows:
        what = [str(row["frames"]), row["model"], row["backend"]]
        cells.append([*what, times(row), number(row, "ratio"), number(row, "peak_mib", 0), str(row["repeats"])])
    heads = ["latent frames", "model", "backend", "ms", "ratio", "peak MiB beyond the weights", "repeats"]
    return ["### A forward of a Wan of the 1.3B size", "", *table(heads, cells)]


def forward_table(rows: Sequence[Row]) -> list[str]:
    """One row for each model, length and method, new beside old."""
    cells = []
    for first, own in groups(rows, "model", "tokens_per_frame", "frames", "method"):
        sides = {row["side"]: row for row in own}
        new, old = sides["new"], sides.get("old")
        compared = ["", ""] if old is None else [number(old, "ratio"), number(new, "old_over_new")]
        size = [f"{first['model']}", str(first["tokens_per_frame"]), str(first["frames"]), first["method"]]
        cells.append([*size, times(new), number(new, "ratio"), *compared, str(new["repeats"])])
    heads = ["model", "tokens per frame", "latent frames", "patch", "ms", "ratio to unpatched", "ratio before"]
    return ["### Whole forwards, beside an older checkout", "", *table([*heads, "times faster", "repeats"], cells)]


def overhead_table(rows: Sequence[Row]) -> list[str]:
    """Where the time of a patched forward goes."""
    cells = []
    for row in rows:
        what = [row["model"], str(row["tokens_per_frame"]), str(row["frames"]), times(row), number(row, "ratio")]
        parts = [number(row, word, 1) for word in ("attention_ms", "rest_ms", "around_ms")]
        cells.append(
            [*what, *parts, f"{row['around_share']:.1%} ({row['low']:.1%} to {row['high']:.1%})", str(row["repeats"])]
        )
    heads = ["model", "tokens per frame", "latent frames", "patched, ms", "ratio to unpatched", "attention, ms"]
    heads += ["rest of the model, ms", "freeloc around attention, ms", "share of the forward (middle half)", "repeats"]
    return ["### Where the time of a patched forward goes", "", *table(heads, cells)]


def lvsa_table(rows: Sequence[Row]) -> list[str]:
    """One row for each length and side."""
    cells = []
    for row in rows:
        what = [str(row["tokens_per_frame"]), str(row["frames"]), row["side"], times(row), number(row, "ratio")]
        numbers = [number(row, "share", 3), number(row, "attention_ratio"), number(row, "ratio_over_share")]
        cells.append([*what, *numbers, str(row["repeats"])])
    heads = ["tokens per frame", "latent frames", "side", "forward, ms", "ratio of forwards", "share of pairs"]
    heads += ["ratio of self-attention", "ratio / share", "repeats"]
    return ["### Beside LVSA's SDPA path", "", *table(heads, cells)]


TABLES: dict[str, Callable[[Sequence[Row]], list[str]]] = {
    "check": check_table,
    "attention": attention_table,
    "long": attention_table,
    "model": model_table,
    "forward": forward_table,
    "overhead": overhead_table,
    "lvsa": lvsa_table,
}


def put_into(page: Path, text: str, mark: str = "cpu") -> None:
    """Replace what stands between two comments of a page."""
    before, start, rest = page.read_text().partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition(f"<!-- /{mark} -->\n")
    if not start or not end:
        raise SystemExit(f"expected the lines <!-- {mark} --> and <!-- /{mark} --> in {page}, found none")
    page.write_text(before + start + text + end + after)


def main() -> None:
    """Print the tables of all results in a folder, and write them there as results.md."""
    parser = argparse.ArgumentParser(description="Print the results of a run as Markdown.")
    parser.add_argument("--out", type=Path, default=Path("runs/device"), help="folder of the results")
    parser.add_argument("--parts", nargs="+", default=["check", "attention", "model"], choices=list(TABLES))
    parser.add_argument("--into", type=Path, help="page to write them into, between <!-- cpu --> and <!-- /cpu -->")
    given = parser.parse_args()
    lines: list[str] = []
    for name in given.parts:
        path = given.out / f"{name}.json"
        if not path.exists():
            lines += [] if given.into else [f"({name}: no results)", ""]
            continue
        content = json.loads(path.read_text())
        facts = f"Machine: {'; '.join(f'{word} {fact}' for word, fact in content['machine'].items())}"
        lines += ([] if facts in lines else [facts, ""]) + TABLES[name](content["rows"])
    text = "\n".join(lines)
    (given.out / "results.md").write_text(text)
    print(text, flush=True)
    if given.into:
        put_into(given.into, text)


if __name__ == "__main__":
    main()
