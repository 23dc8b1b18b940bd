"""How well cheap probes predict expensive ones, on the tiny model: ``python -m freeloc.tiny.predictions``.

The ground truth is in whole videos that `freeloc bench --layers` made: how much worse they are where one layer has no
VRPR (positions), and how much better where one layer has TSA too (context). What is printed are rank correlations over
layers: 1 for the same order, 0 for no relation.
"""

import argparse
import csv
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from freeloc.probing import Rule, Sensitivity, rank_correlation
from freeloc.profile.files import measurements_path
from freeloc.tiny.scores import mean_and_error
from freeloc.tiny.settings import WITH_TSA, WITHOUT_VRPR, measured_losses

MEASURES = {"land as prompted": 1, "sharpness": 1, "identity": 1, "denoising loss": -1}
"""What the ground truth is measured by, and whether more (1) or less (-1) of it is better."""


Losses = dict[str, Tensor]
"""By the policy that one layer has while the others have VRPR, (layers, clips): less is better."""

Rows = list[dict[str, str]]
"""Of ``clips.csv``: a clip of a setting each."""


class Effects(NamedTuple):
    """How much each layer matters, (layers,): positions, context. More is more."""

    position: Tensor
    context: Tensor


def in_videos(rows: Rows, measure: str) -> Losses:
    """The ground truth by one measure, negated where more of it is better."""
    found: dict[str, list[float]] = {}
    for row in sorted(rows, key=lambda row: int(row["clip"])):
        found.setdefault(row["setting"], []).append(-MEASURES[measure] * float(row[measure]))
    layers = range(sum(WITH_TSA.format(layer) in found for layer in range(len(found))))
    names: dict[str, str] = {"none": WITHOUT_VRPR, "vrpr": "vrpr everywhere", "vrpr+tsa": WITH_TSA}
    return {
        policy: torch.tensor([found[name.format(layer)] for layer in layers], dtype=torch.float64)
        for policy, name in names.items()
    }


def effects(losses: Losses, clips: slice = slice(None)) -> Effects:
    """The effects by these losses, means over clips."""
    none, vrpr, both = (losses[policy][:, clips].mean(dim=1) for policy in ("none", "vrpr", "vrpr+tsa"))
    return Effects(none - vrpr, vrpr - both)


def halves(losses: Losses) -> tuple[Effects, Effects]:
    """The effects on every other clip, and on the rest."""
    return effects(losses, slice(0, None, 2)), effects(losses, slice(1, None, 2))


def agreement(first: Effects, second: Effects) -> str:
    """Rank correlations of positions and of context.

    >>> one = Effects(torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 2, 3]))
    >>> agreement(one, Effects(torch.tensor([3.0, 5, 9]), torch.tensor([3.0, 2, 1])))
    '+1.00 / -1.00'
    """
    both = (rank_correlation(mine, its) for mine, its in zip(first, second, strict=True))
    return " / ".join(f"{value:+.2f}" for value in both)


def table(probes: dict[str, Effects], rows: Rows) -> str:
    """A Markdown table of each probe against the ground truth by each measure; last, of one half of the clips
    against the other."""
    truths = {measure: in_videos(rows, measure) for measure in MEASURES}
    lines = [["positions / context", *MEASURES]]
    for name, found in probes.items():
        lines.append([name, *(agreement(found, effects(truth)) for truth in truths.values())])
    lines.append(["one half of the clips, the other", *(agreement(*halves(truth)) for truth in truths.values())])
    return _markdown(lines)


def among(probes: dict[str, Effects]) -> str:
    """Each probe beside each later one, a Markdown table."""
    names = list(probes)
    lines = [["positions / context", *names[1:]]]
    for index, one in enumerate(names[:-1]):
        found = [agreement(probes[one], probes[other]) for other in names[index + 1 :]]
        lines.append([one, *[""] * index, *found])
    return _markdown(lines)


def _markdown(lines: list[list[str]]) -> str:
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def read_rows(path: Path) -> Rows:
    """The rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _depths(found: Sensitivity) -> dict[str, tuple[str, str | None]]:
    """Every depth with its scorer, by a name of both; a depth with several scorers once for each."""
    named: dict[str, tuple[str, str | None]] = {}
    for depth in found.depths:
        tables = [table for table in found.tables_of(depth).values() if "scorers" in table.axes]
        scorers = [str(name) for name in tables[0].axes["scorers"]] if tables else []
        by_scorer: dict[str, tuple[str, str | None]] = {f"{depth} by {name}": (depth, name) for name in scorers}
        named |= by_scorer or {depth: (depth, None)}
    return named


def probed(found: Sensitivity) -> dict[str, Effects]:
    """The effects by every depth."""
    summaries = {name: found.summary(depth, scorer=scorer) for name, (depth, scorer) in _depths(found).items()}
    return {name: Effects(summary.position, summary.context) for name, summary in summaries.items()}


def choices(found: Sensitivity) -> str:
    """What every depth would give each layer by the usual rule, a Markdown table."""
    lines = [["layer", *(str(layer) for layer in range(found.facts.profile.model.layers))]]
    for name, (depth, scorer) in _depths(found).items():
        lines.append([name, *(policies[0] for policies in found.choose(depth, Rule(scorer=scorer)))])
    return _markdown(lines)


def changes(losses: Losses) -> str:
    """By how many thousandths it gets worse if one layer alone has something else than VRPR, a Markdown table."""
    vrpr = losses["vrpr"]
    lines = [["layer", *(str(layer) for layer in range(len(vrpr)))]]
    for policy, value in losses.items():
        if policy != "vrpr":
            found = [mean_and_error((1000 * row).tolist()) for row in value - vrpr]
            lines.append([policy, *(f"{mean:+.1f} ± {error:.1f}" for mean, error in found)])
    return _markdown(lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    shipped = measurements_path("tiny-wan")
    parser.add_argument("measurements", type=Path, nargs="?", default=shipped, help="by default tiny-wan's")
    parser.add_argument("--bench", type=Path, help="folder that freeloc bench --layers wrote to")
    arguments = parser.parse_args()
    found = Sensitivity.load(arguments.measurements)
    probes = probed(found)
    print(f"{choices(found)}\n\n{among(probes)}")
    if "loss.value" in found.tables:
        losses = measured_losses(found)
        print(f"\nloss, one half of the clips with the other: {agreement(*halves(losses))}\n\n{changes(losses)}")
    if arguments.bench:
        rows = read_rows(arguments.bench / "clips.csv")
        print(f"\n{table(probes, rows)}")
        for measure in MEASURES:
            print(f"\n{measure}\n\n{changes(in_videos(rows, measure))}")


if __name__ == "__main__":
    main()
