"""Wins and losses by measure: on values with known differences, and against formulas."""

import random
import statistics

import pytest

from freeloc.tiny.losses import WHOLE
from freeloc.tiny.sizes import TRUE
from freeloc.tiny.wins import gain, gains, gains_table, standings, standings_table, tables, values_at


def rows_of(setting, values, measure="drift", times=4):
    return [
        {"times": times, "setting": setting, "clip": clip, "prompt": "", measure: value}
        for clip, value in enumerate(values)
    ]


def one(rows, setting, other, measure="drift"):
    return gain(values_at(rows, 4), 4, measure, setting, other)


def test_the_gain_is_how_much_closer_the_mean_is_from_either_side():
    rows = rows_of(TRUE, [2, 4]) + rows_of("low", [1, 2]) + rows_of("high", [3, 4]) + rows_of("far", [9, 9])
    assert one(rows, "high", "low").gain == pytest.approx(1.0)  # 3.5 and 1.5 around 3
    assert one(rows, "low", "high").gain == pytest.approx(-1.0)
    assert one(rows, "low", "far").gain == pytest.approx(4.5)


def test_on_one_side_of_the_true_value_the_error_is_that_of_the_paired_difference():
    draw = random.Random(0)
    base = [draw.gauss(0, 1) for _ in range(20)]
    better = [value + 0.2 + draw.gauss(0, 0.1) for value in base]
    rows = rows_of(TRUE, [9, 9]) + rows_of("a", better) + rows_of("b", base)
    found = one(rows, "a", "b")
    differences = [mine - its for mine, its in zip(better, base, strict=True)]
    assert found.gain == pytest.approx(statistics.mean(differences))
    assert found.error == pytest.approx(statistics.stdev(differences) / 20**0.5)
    assert found.verdict == "win"
    assert str(found) == f"{found.gain:+.2g} ± {found.error:.1g} win"


def test_only_clips_that_both_have_are_compared():
    rows = rows_of(TRUE, [0.0]) + rows_of("a", [1, 2]) + rows_of("b", [2, 4, 100])
    found = one(rows, "a", "b")
    assert (found.clips, found.gain) == (2, 1.5)
    assert one(rows_of(TRUE, [0.0]) + rows_of("a", [1]) + rows_of("b", [2, 3]), "a", "b") is None


def test_a_loss_is_better_if_lower_and_needs_no_true_clips():
    rows = rows_of("a", [0.1, 0.2], WHOLE) + rows_of("b", [0.2, 0.4], WHOLE)
    assert one(rows, "a", "b", WHOLE).gain == pytest.approx(0.15)
    assert one(rows_of("a", [1, 2]) + rows_of("b", [2, 3]), "a", "b") is None  # no true clips


RIVALS = [
    *rows_of(TRUE, [1.0] * 4),
    *rows_of("direct", [0.1, 0.2, 0.1, 0.2]),
    *rows_of("best", [0.9, 0.8, 0.9, 0.8]),
    *rows_of("as good", [0.9, 0.7, 0.9, 0.85]),
    *rows_of("behind", [0.8, 0.8, 0.8, 0.7]),
    *rows_of("few", [0.95, 0.9]),
]


def test_the_standings_have_the_best_and_who_is_as_good():
    ranked = standings(RIVALS, 4, ["drift", "no such"])
    assert list(ranked) == ["drift"]
    assert [each.setting for each in ranked["drift"]] == ["few", "best", "as good", "behind", "direct"]
    lines = standings_table(RIVALS, 4, ["drift"]).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        "drift",
        "best",
        "as good -0.013",
        "",
        "behind -0.075; direct -0.7",
        "few (2 clips) +0.075",
    ]


def test_tables_of_gains_have_a_row_per_setting_and_no_sum():
    found = gains(RIVALS, 4, ["drift"])
    assert {each.other for each in found} == {"direct"}  # the only one of the baselines
    lines = gains_table(found, "direct").splitlines()
    assert lines[0].split("|")[1].strip() == "4x, closer to true clips than direct"
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["best", "as good", "behind", "few"]
    assert "| best                                 | 4     | +0.7 ± 0.06 win" in lines[2]
    assert len(tables(RIVALS, 4, ["drift"])) == 2
    assert tables(rows_of("direct", [1, 2]), 4, ["drift"]) == []
