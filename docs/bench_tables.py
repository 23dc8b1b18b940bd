"""Writes the tables of docs/long-video-bench.md from the rows of a bench: python docs/bench_tables.py

For each model, docs/long-video-bench holds what `freeloc bench --full` wrote: clips.csv and summary.csv, and losses.csv
of `freeloc bench --losses`. Those of tiny-film are in the folder tiny-film. A model without rows has no tables.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from freeloc.tiny import losses, wins
from freeloc.tiny.results import COMPARED, table
from freeloc.tiny.sizes import TRUE

PAGE = Path(__file__).parent / "long-video-bench.md"
ROWS = Path(__file__).parent / "long-video-bench"
FOLDERS = {"tiny-wan": ROWS, "tiny-film": ROWS / "tiny-film"}
START, END = "<!-- written by docs/bench_tables.py: {} -->\n", "<!-- end of what docs/bench_tables.py wrote: {} -->\n"

OTHERS = ("direct", "layer-wise", "tuned")
"""Settings that all others are compared with on the page."""

HEAD_CLIPS = 24
"""Number of first clips with a choice for each head."""


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV file, numbers as numbers, without empty places; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: _value(name, text) for name, text in row.items() if text} for row in csv.DictReader(file)]


def _value(name: str, text: str) -> str | int | float:
    if name in ("setting", "measure", "prompt"):
        return text
    return int(text) if name in ("times", "clip", "clips") else float(text)


def sections(model: str) -> Iterator[str]:
    """The tables of a model, with headings; longest videos last."""
    folder = FOLDERS[model]
    rows, lines, lost = (read(folder / f"{name}.csv") for name in ("clips", "summary", "losses"))
    for times in sorted({row["times"] for row in rows}):
        yield f"### {model}, {times}x\n\n{table(lines, times, f'{times}x')}\n"
        found = wins.gains(rows, times, COMPARED)
        if found:
            yield f"Which setting is best, and which are as good:\n\n{wins.standings_table(rows, times, COMPARED)}\n"
        for other in OTHERS:
            if any(each.other == other for each in found):
                yield f"Wins and losses against {other}:\n\n{wins.gains_table(found, other)}\n"
    if lost:
        title = f"{model}: loss - {losses.BASELINE}, x 1e-4"
        yield f"### {model}, denoising loss\n\n{losses.table(lost, title)}\n"


def heads() -> str:
    """The table of the choice for each head, on its clips."""
    rows = [row for row in read(ROWS / "clips.csv") + read(ROWS / "head-wise.csv") if row["times"] == 4]
    wanted = (TRUE, "layer-wise", "head-wise")
    some = [row for row in rows if row["clip"] < HEAD_CLIPS and row["setting"] in wanted]
    return wins.gains_table(wins.gains(some, 4, COMPARED), "layer-wise") + "\n"


def filled(page: str) -> str:
    """The page with all its tables written again."""
    parts = {model: "\n".join(sections(model)) for model in FOLDERS} | {"heads": heads()}
    for name, tables in parts.items():
        start, end = START.format(name), END.format(name)
        before, rest = page.split(start)
        after = rest.split(end)[1]
        blank = "\n" if tables else ""
        page = f"{before}{start}{blank}{tables}{blank}{end}{after}"
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
