"""How well cheap probes predict dear ones, on the tiny model: ``python -m freeloc.tiny.predictions``.

The truth is in whole videos that `freeloc bench --layers` made: how much worse they are where VRPR leaves one layer out
(positions), and how much better where one layer has TSA too (context). Rank correlations over layers: 1 the same order,
0 nothing to do with each other.
"""

import argparse
import csv
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from freeloc.probing import Sensitivity
from freeloc.probing.choice import rank_correlation
from freeloc.profile_files import measurements_path
from freeloc.tiny.scores import mean_and_error
from freeloc.tiny.settings import WITH_TSA, WITHOUT_VRPR, measured_losses

MEASURES = {"land as prompted": 1, "sharpness": 1, "identity": 1, "denoising loss": -1}
"""What the truth is measured by, and whether more (1) or less (-1) of it is better."""


class Effects(NamedTuple):
    """How much each layer matters, (layers,): positions, context. More is more."""

    position: Tensor
    context: Tensor


Rows = list[dict[str, str]]
"""Of ``clips.csv``: a clip of a setting each."""


def effects(rows: Rows, measure: str, counts: Callable[[int], bool] = lambda clip: True) -> Effects:
    """The truth by one measure, mean over the clips that count."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if counts(int(row["clip"])):
            found.setdefault(row["setting"], []).append(MEASURES[measure] * float(row[measure]))
    mean = {setting: sum(values) / len(values) for setting, values in found.items()}
    layers = range(sum(WITH_TSA.format(layer) in mean for layer in range(len(mean))))
    base = mean["vrpr everywhere"]
    without = [base - mean[WITHOUT_VRPR.format(layer)] for layer in layers]
    with_tsa = [mean[WITH_TSA.format(layer)] - base for layer in layers]
    return Effects(torch.tensor(without, dtype=torch.float64), torch.tensor(with_tsa, dtype=torch.float64))


def agreement(first: Effects, second: Effects) -> str:
    """Rank correlations of positions and of context.

    >>> one = Effects(torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 2, 3]))
    >>> agreement(one, Effects(torch.tensor([3.0, 5, 9]), torch.tensor([3.0, 2, 1])))
    '+1.00 / -1.00'
    """
    both = (rank_correlation(mine, its) for mine, its in zip(first, second, strict=True))
    return " / ".join(f"{value:+.2f}" for value in both)


def table(probes: dict[str, Effects], rows: Rows) -> str:
    """Each probe beside the truth by each measure, a Markdown table; last, one half of the clips beside the other."""
    truths = {measure: effects(rows, measure) for measure in MEASURES}
    lines = [["positions / context", *MEASURES]]
    lines += [[name, *(agreement(found, truth) for truth in truths.values())] for name, found in probes.items()]
    even = {measure: effects(rows, measure, lambda clip: clip % 2 == 0) for measure in MEASURES}
    odd = {measure: effects(rows, measure, lambda clip: clip % 2 == 1) for measure in MEASURES}
    lines.append(["one half of the clips, the other", *(agreement(even[name], odd[name]) for name in MEASURES)])
    return _markdown(lines)


def among(probes: dict[str, Effects]) -> str:
    """Each pair of probes, a Markdown table."""
    pairs = itertools.combinations(probes, 2)
    lines = [[f"{one}, {other}", agreement(probes[one], probes[other])] for one, other in pairs]
    return _markdown([["positions / context", "rank correlation"], *lines])


def _markdown(lines: list[list[str]]) -> str:
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def read_rows(path: Path) -> Rows:
    """The rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def probed(measurements: Iterable[Sensitivity]) -> dict[str, Effects]:
    """Every depth of these measurements."""
    probes = {}
    for found in measurements:
        for depth in found.depths:
            summary = found.summary(depth)
            probes[depth] = Effects(summary.position, summary.context)
    return probes


def halves(found: Sensitivity) -> tuple[Effects, Effects]:
    """What ``loss`` says on every other clip, and on the rest."""
    losses = measured_losses(found)
    of_half = [{policy: value[:, first::2].mean(dim=1) for policy, value in losses.items()} for first in (0, 1)]
    even, odd = (Effects(loss["none"] - loss["vrpr"], loss["vrpr"] - loss["vrpr+tsa"]) for loss in of_half)
    return even, odd


def changes(found: Sensitivity) -> str:
    """By how many thousandths the loss changes if one layer alone has something else than VRPR, a Markdown table."""
    losses = measured_losses(found)
    vrpr = losses.pop("vrpr")
    lines = [["layer", *(str(layer) for layer in range(len(vrpr)))]]
    for policy, value in losses.items():
        found_here = [mean_and_error((1000 * row).tolist()) for row in value - vrpr]
        lines.append([policy, *(f"{mean:+.1f} ± {error:.1f}" for mean, error in found_here)])
    return _markdown(lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    shipped = measurements_path("tiny-wan")
    parser.add_argument("measurements", type=Path, nargs="*", default=[shipped], help="files; by default tiny-wan's")
    parser.add_argument("--bench", type=Path, help="folder that freeloc bench --layers wrote to")
    arguments = parser.parse_args()
    measurements = [Sensitivity.load(path) for path in arguments.measurements]
    probes = probed(measurements)
    print(among(probes))
    for found in measurements:
        if "loss" in found.depths:
            print(f"\nloss, one half of the clips with the other: {agreement(*halves(found))}\n\n{changes(found)}")
    if arguments.bench:
        print(f"\n{table(probes, read_rows(arguments.bench / 'clips.csv'))}")


if __name__ == "__main__":
    main()
