"""Racing on made-up numbers: the best arm stays, hopeless ones stop early, ties go to the simpler one."""

import math
import random
from collections.abc import Sequence

import pytest

from freeloc.tuning.racing import NEGLIGIBLE, Rules, Unit, best, margin, paired, race
from freeloc.tuning.units import halves, lengths, order

UNITS = [Unit(clip, frames, 0.5) for frames in (9, 17) for clip in range(12)]


class Numbers:
    """Losses of arms: a mean for each, noise that all share in a unit, and noise of their own."""

    def __init__(self, means: dict[str, float], own: float, seed: int, most: int = 10**9) -> None:
        self.means, self.own, self.most = means, own, most
        self.random = random.Random(seed)
        self.shared = {unit: self.random.gauss(0, 5) for unit in UNITS}
        self.known: dict[str, dict[Unit, float]] = {name: {} for name in means}
        self.order: list[str] = []

    def scores(self, arm: str) -> dict[Unit, float]:
        return self.known[arm]

    def measure(self, tasks: Sequence[tuple[str, Unit]]) -> bool:
        for arm, unit in tasks:
            if self.most <= 0:
                return False
            self.most -= 1
            self.order.append(arm)
            self.known[arm][unit] = 10 + self.means[arm] + self.shared[unit] + self.random.gauss(0, self.own)
        return True

    def counts(self) -> dict[str, int]:
        return {name: len(found) for name, found in self.known.items()}


def test_what_all_arms_share_does_not_count() -> None:
    numbers = Numbers({"a": 0.0, "b": 0.1}, own=0.0, seed=0)
    numbers.measure([(arm, unit) for arm in "ab" for unit in UNITS])
    found = paired(numbers.scores("b"), numbers.scores("a"))
    assert found.mean == pytest.approx(0.1)
    assert found.error == pytest.approx(0, abs=1e-9)
    assert (found.clips, found.wins) == (12, 0)


def test_units_of_one_clip_are_one_sample() -> None:
    first = {Unit(0, 9, level): 1.0 for level in (0.1, 0.2, 0.3)} | {Unit(1, 9, 0.1): 3.0}
    found = paired(first, dict.fromkeys(first, 1.0))
    assert (found.mean, found.error, found.clips) == (1.0, 1.0, 2)
    alone = paired({Unit(0, 9, 0.1): 1.0}, {Unit(0, 9, 0.1): 2.0})
    assert alone.mean == -1
    assert math.isnan(alone.error)
    assert not alone.is_better(0.0)
    nothing = paired({}, {Unit(0, 9, 0.1): 2.0})
    assert nothing.clips == 0
    assert not any([nothing.is_worse(0.0, 0), nothing.is_better(0.0), nothing.is_nothing()])


def test_hopeless_arms_stop_after_the_fewest_clips() -> None:
    numbers = Numbers({"a": 0.0, "b": 0.0, "far": 9.0}, own=0.5, seed=1)
    assert "a" in race(list(numbers.means), UNITS, numbers.scores, numbers.measure)
    assert numbers.counts()["far"] == Rules().least
    assert numbers.counts()["a"] == len(UNITS)


@pytest.mark.parametrize("gap", [0.0, 0.5])
def test_the_best_arm_is_kept_in_nearly_all_races(gap: float) -> None:
    """With normal noise. An arm is dropped by chance in about 1 race of 100 (two equal arms) or fewer."""
    kept, races = 0, 400
    for seed in range(races):
        numbers = Numbers({"worse": gap, "best": 0.0}, own=1.0, seed=seed)
        kept += "best" in race(["worse", "best"], UNITS, numbers.scores, numbers.measure)
    assert kept / races >= 0.96
    if gap:
        assert kept / races >= 0.99


def test_few_clips_need_a_clearer_difference() -> None:
    assert margin(4, 3.0) > margin(6, 3.0) > margin(12, 3.0) > 3.0
    assert margin(2, 2.0) == margin(3, 2.0) == 4.0


def test_arms_that_are_the_same_end_with_the_first() -> None:
    numbers = Numbers({"simple": 0.0, "same": 0.0, "other": 1.0}, own=0.0, seed=0)
    assert race(list(numbers.means), UNITS, numbers.scores, numbers.measure)[0] == "simple"
    assert numbers.counts()["same"] < len(UNITS)
    almost = {unit: value * (1 - NEGLIGIBLE / 2) for unit, value in numbers.scores("simple").items()}
    numbers.known["same"] = almost
    assert best(["simple", "same"], numbers.scores) == "simple"
    numbers.known["same"] = {unit: value - 0.01 for unit, value in almost.items()}
    assert best(["simple", "same"], numbers.scores) == "same"


def test_against_a_reference_only_gains_go_on() -> None:
    means = {"base": 0.0, "gain": -1.0, "harm": 1.0, "same": 0.0}
    numbers = Numbers(means, own=0.0, seed=0)
    numbers.measure([("base", unit) for unit in UNITS])
    assert race(["gain", "harm", "same"], UNITS, numbers.scores, numbers.measure, "base") == ["gain"]
    counts = numbers.counts()
    assert counts["gain"] == counts["base"] == len(UNITS)
    assert counts["harm"] <= Rules().least
    assert counts["same"] <= Rules().least


def test_when_time_runs_out_the_promising_arms_are_known_best() -> None:
    means = {"base": 0.0} | {f"bad {index}": 1.0 for index in range(20)} | {"gain": -1.0}
    numbers = Numbers(means, own=0.1, seed=0)
    numbers.measure([("base", unit) for unit in UNITS])
    numbers.most = 21 + 5
    alive = race([name for name in means if name != "base"], UNITS, numbers.scores, numbers.measure, "base")
    assert "gain" in alive
    assert numbers.counts()["gain"] == 4
    assert sum(count for name, count in numbers.counts().items() if name != "base") == 26


def test_units_go_through_all_clips_before_they_come_back() -> None:
    found = order([3, 5, 8], [9, 17], [0.3, 0.5], seed=7)
    assert len(set(found)) == len(found) == 12
    for turn in range(4):
        part = found[3 * turn : 3 * turn + 3]
        assert [unit.clip for unit in part] == [3, 5, 8]
        assert len({(unit.frames, unit.level) for unit in part}) == 3
    assert order([3, 5, 8], [9, 17], [0.3, 0.5], seed=7) == found
    assert order([3, 5, 8], [9, 17], [0.3, 0.5], seed=8) != found


def test_halves_share_no_clip() -> None:
    first, second = halves(9, seed=3)
    assert sorted([*first, *second]) == list(range(9))
    assert (len(first), len(second)) == (5, 4)
    assert halves(9, seed=4) != (first, second)


def test_lengths_end_with_the_clips() -> None:
    assert lengths((2, 4, 8), trained_frames=21, clip_frames=81) == [41, 81]
    assert lengths((4,), trained_frames=21, clip_frames=30) == [30]
