"""How well cheap probes predict expensive ones, on the tiny model: ``python -m freeloc.tiny.predictions``.

The ground truth comes from whole videos of `freeloc bench --layers`: how much worse they are if one layer has no VRPR
(positions), and how much better if one layer also has TSA (context). The program prints rank correlations over layers:
1 for the same order, 0 for no relation.
"""

import argparse
import csv
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from freeloc.probing import Rule, Sensitivity, rank_correlation
from freeloc.tiny.scores import mean_and_error
from freeloc.tiny.settings import LAYER_CHOICE, WITH_TSA, WITHOUT_VRPR, measured_losses

MEASURES = {"land as prompted": 1, "sharpness": 1, "identity": 1, "denoising loss": -1}
"""The measures of the ground truth, with 1 if higher is better and -1 if lower is better."""


Losses = dict[str, Tensor]
"""Losses (layers, clips) by the policy of one layer while the others have VRPR. Lower is better."""

Rows = list[dict[str, str]]
"""Rows of ``clips.csv``, one for each clip of each setting."""


class Effects(NamedTuple):
    """How much each layer matters for positions and for context, (layers,). Larger matters more."""

    position: Tensor
    context: Tensor


def in_videos(rows: Rows, measure: str) -> Losses:
    """The ground truth by one measure, negated if higher is better."""
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
    """The effects according to these losses, as means over clips."""
    none, vrpr, both = (losses[policy][:, clips].mean(dim=1) for policy in ("none", "vrpr", "vrpr+tsa"))
    return Effects(none - vrpr, vrpr - both)


def halves(losses: Losses) -> tuple[Effects, Effects]:
    """The effects on the clips with even numbers, and on those with odd numbers."""
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
    """A Markdown table: the agreement of each probe with the ground truth by each measure.

    The last row is the agreement of one half of the clips with the other half.
    """
    truths = {measure: in_videos(rows, measure) for measure in MEASURES}
    lines = [["positions / context", *MEASURES]]
    for name, found in probes.items():
        lines.append([name, *(agreement(found, effects(truth)) for truth in truths.values())])
    lines.append(["one half of the clips and the other", *(agreement(*halves(truth)) for truth in truths.values())])
    return _markdown(lines)


def among(probes: dict[str, Effects]) -> str:
    """A Markdown table: the agreement of each pair of probes."""
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
    """(depth, scorer) by a name of both; a depth with several scorers has an entry for each."""
    named: dict[str, tuple[str, str | None]] = {}
    for depth in found.depths:
        tables = [table for table in found.tables_of(depth).values() if "scorers" in table.axes]
        scorers = [str(name) for name in tables[0].axes["scorers"]] if tables else []
        by_scorer: dict[str, tuple[str, str | None]] = {f"{depth} by {name}": (depth, name) for name in scorers}
        named |= by_scorer or {depth: (depth, None)}
    return named


def probed(found: Sensitivity) -> dict[str, Effects]:
    """The effects according to each depth."""
    summaries = {name: found.summary(depth, scorer=scorer) for name, (depth, scorer) in _depths(found).items()}
    return {name: Effects(summary.position, summary.context) for name, summary in summaries.items()}


def choices(found: Sensitivity) -> str:
    """A Markdown table: the policy that each depth chooses for each layer by the default rule.

    ``loss`` decides by whole frames where the loss on moving places was not measured, as in files of version 0.1.
    """
    loss = "both" if "loss.moving" in found.tables else "whole"
    lines = [["layer", *(str(layer) for layer in range(found.facts.profile.model.layers))]]
    for name, (depth, scorer) in _depths(found).items():
        lines.append([name, *(policies[0] for policies in found.choose(depth, Rule(scorer=scorer, loss=loss)))])
    return _markdown(lines)


def changes(losses: Losses) -> str:
    """A Markdown table: the change in thousandths if one layer has another policy than VRPR; positive is worse."""
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
    shipped = LAYER_CHOICE.with_suffix(".safetensors")
    parser.add_argument("measurements", type=Path, nargs="?", default=shipped, help="by default those that come along")
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
