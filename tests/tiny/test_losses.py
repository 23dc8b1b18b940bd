"""The denoising loss on true long clips under each setting: what is measured, how it resumes, and its table."""

import csv
import json
import math

import pytest
import torch
from tiny_bench import ROTATING
from tiny_bench import untrained as untrained  # a fixture

import freeloc
from freeloc.cli import main
from freeloc.probing.depths.denoising_loss import noise_seed
from freeloc.probing.places import motion_weight
from freeloc.tiny import losses, models
from freeloc.tiny.losses import MOVING, WHOLE, LossCell, measured, saved, table
from freeloc.tiny.setting import Setting
from freeloc.tiny.settings import loss_settings, setting_of
from freeloc.tiny.synthetic import prompt_embeds


@pytest.fixture
def one_level(monkeypatch):
    monkeypatch.setattr(losses, "LEVELS", (0.7,))


def noise_of(clean, clip, level):
    return torch.randn(clean.shape, generator=torch.Generator().manual_seed(noise_seed(0, clip, level)))


@pytest.mark.slow
def test_the_loss_is_that_of_rectified_flow_on_a_true_clip(tmp_path, monkeypatch):
    monkeypatch.setattr(losses, "LEVELS", (0.5, 0.85))
    model = models.model_named("tiny-wan")
    clean, whole, moving = model.latents([3], 41), [], []
    with torch.no_grad(), freeloc.patch(model.transformer, "tiny-wan", method="vrpr"):
        for level in losses.LEVELS:
            noise = noise_of(clean, 3, level)
            mixed = torch.lerp(clean, noise, level)
            found = model.transformer(mixed, torch.tensor([1000 * level]), prompt_embeds(model.prompts([3])))[0]
            error = (found - (noise - clean))[0] ** 2
            whole.append(float(error.mean()))
            moving.append(float((error * motion_weight(clean[0])).mean()))
    found = measured(LossCell(tmp_path, 2, setting_of("vrpr"), 3))
    assert found[WHOLE] == pytest.approx(sum(whole) / 2, rel=1e-4)
    assert found[MOVING] == pytest.approx(sum(moving) / 2, rel=1e-4)
    assert found[MOVING] > 1.2 * found[WHOLE]


def test_the_loss_of_the_film_is_that_of_v_prediction(tmp_path, untrained, one_level):
    clean = untrained.latents([2], 25)
    noise, scheduler = noise_of(clean, 2, 0.7), untrained.pipeline.scheduler
    time = torch.tensor([round(0.7 * 999)])
    mixed, target = scheduler.add_noise(clean, noise, time), scheduler.get_velocity(clean, noise, time)
    with freeloc.patch(untrained.transformer, "tiny-film", method="clip"):
        error = (untrained.predict(mixed, float(time), [""]) - target)[0] ** 2
    found = measured(LossCell(tmp_path, 2, setting_of("clip", "tiny-film"), 2, "tiny-film"))
    assert found[WHOLE] == pytest.approx(float(error.mean()), rel=1e-4)
    assert found[MOVING] == pytest.approx(float((error * motion_weight(clean[0], "f c h w")).mean()), rel=1e-4)


def test_a_plan_that_changes_by_step_is_that_of_its_step_at_each_level(tmp_path, untrained, monkeypatch):
    setting = Setting("rotating", untrained.profile, ROTATING)
    monkeypatch.setattr(losses, "LEVELS", (0.3, 0.7))
    both = measured(LossCell(tmp_path, 2, setting, 0, "tiny-film"))
    monkeypatch.setattr(losses, "LEVELS", (0.3,))
    first = measured(LossCell(tmp_path, 2, setting.at(0), 0, "tiny-film"))
    monkeypatch.setattr(losses, "LEVELS", (0.7,))
    second = measured(LossCell(tmp_path, 2, setting.at(1), 0, "tiny-film"))
    assert both[WHOLE] == pytest.approx((first[WHOLE] + second[WHOLE]) / 2, rel=1e-6)


def test_losses_are_saved_and_measured_again_if_the_plans_changed(tmp_path, untrained, one_level):
    cell = LossCell(tmp_path, 2, setting_of("clip", "tiny-film"), 0, "tiny-film")
    found = saved(cell)
    content = json.loads(cell.path.read_text())
    cell.path.write_text(json.dumps(content | {"losses": {WHOLE: 1.0, MOVING: 2.0}}))
    assert saved(cell) == {WHOLE: 1.0, MOVING: 2.0}  # read, not measured
    renamed = Setting("clip", cell.setting.profile, setting_of("sliding-window", "tiny-film").method)
    again = saved(LossCell(tmp_path, 2, renamed, 0, "tiny-film"))
    assert again[WHOLE] != found[WHOLE]
    assert again[WHOLE] < 1.5 * found[WHOLE]
    assert saved(cell) == found
    assert not list(tmp_path.rglob("*.part"))


def rows_of(setting, whole, moving, times):
    return [
        {"times": times, "setting": setting, "clip": clip, WHOLE: first, MOVING: second}
        for clip, (first, second) in enumerate(zip(whole, moving, strict=True))
    ]


def test_the_table_has_paired_differences_in_units_of_a_ten_thousandth():
    rows = [
        *rows_of("vrpr everywhere", [0.1, 0.2], [0.3, 0.4], 2),
        *rows_of("direct", [0.101, 0.203], [0.35, 0.47], 2),
        *rows_of("vrpr everywhere", [0.1, 0.3], [0.3, 0.5], 4),
        *rows_of("direct", [0.1, 0.3], [0.3, 0.5], 4),
    ]
    assert table(rows, "tiny-wan").splitlines() == [
        "| tiny-wan        | 2x, 2 clips           | 4x, 2 clips             |",
        "| --------------- | --------------------- | ----------------------- |",
        "| vrpr everywhere | 1500 / 3500           | 2000 / 4000             |",
        "| direct          | +20 ± 10 / +600 ± 100 | +0.0 ± 0.0 / +0.0 ± 0.0 |",
    ]
    one = rows_of("vrpr everywhere", [0.1], [0.3], 4) + rows_of("direct", [0.2], [0.4], 4)
    assert math.isnan(float(table(one, "").split("±")[1].split("/")[0]))


def test_the_settings_are_those_that_were_asked_for_or_all_with_different_plans():
    assert [each.name for each in loss_settings(["clip", "direct"], ["yarn"], "tiny-wan")] == [
        "vrpr everywhere",
        "clip",
        "direct",
        "yarn",
    ]
    every = [each.name for each in loss_settings([], [], "tiny-wan")]
    assert every[0] == "vrpr everywhere"
    assert {"layer-wise", "sliding-window"} < set(every)
    assert "freenoise" not in every  # its loss is that of the sliding window


def test_the_command_writes_rows_and_resumes(tmp_path, untrained, one_level, capsys):
    command = ["bench", "clip", "--losses", "--model", "tiny-film", "--times", "2", "3", "--clips", "2"]
    assert main([*command, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "| tiny-film: loss - vrpr everywhere, x 1e-4 | 2x, 2 clips " in printed
    assert printed.count("| clip ") == 1
    with (tmp_path / "losses.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["times"], row["clip"], row["setting"]) for row in rows] == [
        (times, clip, setting) for times in "23" for clip in "01" for setting in ("vrpr everywhere", "clip")
    ]
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert len(stamps) == 8
    assert main([*command, "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out == printed
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")} == stamps


def test_more_clips_than_there_are_is_an_error(tmp_path, capsys):
    command = ["bench", "--losses", "--model", "tiny-film", "--clips", "17", "--output", str(tmp_path)]
    assert main(command) == 2
    assert "expected at most 16 clips of tiny-film, found 17" in capsys.readouterr().err
