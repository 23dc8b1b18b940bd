"""The results of a run as Markdown, from the files that the benchmarks wrote."""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
    return [*lines, ""]


def number(row: dict[str, Any], word: str, digits: int) -> str:
    """A cell; empty where the row has no such number."""
    return f"{row[word]:,.{digits}f}" if word in row else ""


def check_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """For each backend and dtype: how many calls are equal, refused and wrong."""
    cells = []
    for backend, dtype in dict.fromkeys((row["backend"], row["dtype"]) for row in rows):
        own = [row["status"] for row in rows if (row["backend"], row["dtype"]) == (backend, dtype)]
        counts = [str(own.count(status)) for status in ("equal", "refused", "WRONG")]
        cells.append([backend, dtype.removeprefix("torch."), *counts])
    heads = ["backend", "dtype", "equal", "refused", "wrong"]
    return ["### Backends against the reference implementation", "", *table(heads, cells)]


def attention_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One row for each plan and kernel; what did not run says why below the table."""
    cells = [
        [
            str(row["frames"]),
            row["plan"],
            row["backend"],
            number(row, "ms", 2),
            number(row, "ratio", 2),
            number(row, "share", 3),
            number(row, "ratio_over_share", 2),
            number(row, "peak_mib", 0),
            number(row, "repeats", 0),
        ]
        for row in rows
        if "ms" in row
    ]
    heads = ["latent frames", "plan", "kernel", "ms", "ratio to fastest dense", "share of pairs"]
    heads += ["ratio / share", "peak MiB", "repeats"]
    missing = [row for row in rows if "note" in row]
    notes = [f"- {row['frames']} frames, {row['plan']}, {row['backend']}: {row['note']}" for row in missing]
    per_frame = {row["tokens"] // row["frames"] for row in rows}
    title = f"### Attention of one layer, 12 heads of 128, {', '.join(map(str, sorted(per_frame)))} tokens per frame"
    return [title, "", *table(heads, cells), *notes, ""]


def model_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One row for each length, patched and not."""
    cells = [
        [
            str(row["frames"]),
            row["model"],
            row["backend"],
            number(row, "ms", 0),
            number(row, "ratio", 2),
            number(row, "peak_mib", 0),
            number(row, "repeats", 0),
        ]
        for row in rows
    ]
    heads = ["latent frames", "model", "backend", "ms", "ratio", "peak MiB beyond the weights", "repeats"]
    return ["### A forward of a Wan of the 1.3B size", "", *table(heads, cells)]


TABLES = {"check": check_table, "attention": attention_table, "model": model_table}


def main() -> None:
    """Print the tables of all results in a folder, and write them there as results.md."""
    parser = argparse.ArgumentParser(description="Print the results of a run as Markdown.")
    parser.add_argument("--out", type=Path, default=Path("runs/device"), help="folder of the results")
    folder = parser.parse_args().out
    lines: list[str] = []
    for name, lay_out in TABLES.items():
        path = folder / f"{name}.json"
        if not path.exists():
            lines += [f"({name}: no results)", ""]
            continue
        content = json.loads(path.read_text())
        if not any(line.startswith("Card") for line in lines):
            lines = [f"Card: {'; '.join(f'{word} {fact}' for word, fact in content['machine'].items())}", "", *lines]
        lines += lay_out(content["rows"])
    text = "\n".join(lines)
    (folder / "results.md").write_text(text)
    print(text, flush=True)


if __name__ == "__main__":
    main()
