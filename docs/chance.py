"""Prints what the pages about probing and tuning say of chance and of limits: python docs/chance.py

How often noise alone gives a layer something, how often a race drops its best arm, and the measures of true clips by
length. It takes minutes.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from freeloc.probing.depths.lowest_loss import Losses
from freeloc.probing.rule import Rule
from freeloc.probing.statistics import mean_and_error
from freeloc.tiny.models import model_named
from freeloc.tuning.racing import Unit, race
from freeloc.tuning.samples import MEASURES, measures_of

LAYERS, POLICIES = 8, ("vrpr", "none", "tsa", "vrpr+tsa")


def chosen_by_chance(clips: int, probes: int, generator: torch.Generator) -> tuple[float, float]:
    """Shares of probes without any true effect in which a layer gets something: beyond 3 errors, and by the rule."""
    plain = by_rule = 0
    for _ in range(probes):
        whole, moving = (
            {policy: 1 + 0.01 * torch.randn(LAYERS, clips, generator=generator) for policy in POLICIES}
            for _ in range(2)
        )
        falls = [mean_and_error(whole["vrpr"] - whole[policy]) for policy in POLICIES[1:]]
        plain += any(bool((mean > 3 * error).any()) for mean, error in falls)
        by_rule += set(Losses("vrpr", whole, moving).lowest(Rule())) != {"vrpr"}
    return plain / probes, by_rule / probes


def dropped(means: Sequence[float], races: int, generator: torch.Generator, clips: int = 12) -> float:
    """Share of races in which the first arm, whose mean is lowest, is stopped; each clip differs by 1 from the next."""
    units, lost = [Unit(clip, 9, 0.5) for clip in range(clips)], 0
    for _ in range(races):
        shared = torch.randn(clips, generator=generator)
        known: list[dict[Unit, float]] = [{} for _ in means]

        def measure(
            tasks: Sequence[tuple[int, Unit]], known: list[dict[Unit, float]] = known, shared: Tensor = shared
        ) -> bool:
            for arm, unit in tasks:
                own = float(torch.randn((), generator=generator)) / math.sqrt(2)  # so that differences deviate by 1
                known[arm][unit] = 10 + means[arm] + float(shared[unit.clip]) + own
            return True

        lost += 0 not in race(range(len(means)), units, known.__getitem__, measure)
    return lost / races


def of_true_clips(latent_frames: int, clips: int = 10) -> Tensor:
    """The measures of true clips of the tiny Wan's dataset, (measures,)."""
    videos = model_named("tiny-wan").true_clips(range(clips), latent_frames, part="tune").movedim(1, -1)
    return torch.stack([measures_of(video) for video in videos]).mean(dim=0)


if __name__ == "__main__":
    generator = torch.Generator().manual_seed(0)
    for clips in (2, 4, 8, 16):
        plain, by_rule = chosen_by_chance(clips, 1000, generator)
        print(f"a probe on {clips:2} clips gives a layer something by chance: {plain:.0%}, by the rule {by_rule:.1%}")
    print(f"one of two equal arms is dropped: {dropped([0, 0], 1000, generator):.1%} of races")
    best = dropped([0, *[0.5] * 15], 500, generator)
    print(f"the best of 16, better by half a deviation of one clip's difference: {best:.1%}")
    for frames in (21, 41, 81, 161):
        found = zip(MEASURES, of_true_clips(frames).tolist(), strict=True)
        print(f"true clips of {frames:3} frames: " + ", ".join(f"{name} {value:.3g}" for name, value in found))
