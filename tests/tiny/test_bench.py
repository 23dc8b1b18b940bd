"""The bench: what it samples, how it resumes, and its arithmetic."""

import csv
import importlib
import json
import math
import re
import statistics
from pathlib import Path

import pytest
import torch
from marks import slow_unless
from PIL import Image

import freeloc
from freeloc.cli import main
from freeloc.plans.baselines import reschedule_noise, sliding_window
from freeloc.plans.method import Method
from freeloc.profile.schema import PolicyPart
from freeloc.registry import registry
from freeloc.tiny import bench, losses, models, probes, scores, setting, settings, sizes
from freeloc.tiny.model import TRAINED_FRAMES, load_pipeline, noise, sample
from freeloc.tiny.results import bench as run_bench
from freeloc.tiny.results import table, tables

DOCS = Path(__file__).parents[2] / "docs"
NAMES = ("freenoise", "vrpr everywhere")
PARTS = (sizes.ALONE._replace(clips=4), sizes.Part(2, 4, NAMES, "2x"))
SIZE = sizes.Size(PARTS, steps=1, guidance=1.0, loss_clips=4)
ALONE = (sizes.Part(1, 4, ("direct",)),)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder with a finished bench, made in two parts, and the tables that it printed after each."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "LEVELS", (0.7,))  # one is enough here, and five times as fast
        first = run_bench(folder, SIZE, parts=["short"])
        return folder, first, run_bench(folder, SIZE)


def test_a_part_prints_and_writes_what_is_there(done):
    _, first, whole = done
    assert "| 1x " in first
    assert "| 2x " not in first
    assert first.split("\n\n")[0] in whole


def cell_of(folder, setting, times=2):
    return bench.Cell(folder, times, setting, 0)


def test_every_documented_file_is_written(done):
    folder, _, tables = done
    for name in (
        "identity",
        "land-as-prompted",
        "sharpness",
        "drift",
        "frame-distance",
        "denoising-loss",
        "2x-drift-curve",
        "2x-trade-off",
    ):
        with Image.open(folder / f"{name}.png") as figure:
            assert figure.width > 500
    with Image.open(folder / "2x.gif") as gif:
        assert gif.n_frames == 41
    assert len(list(folder.glob("2x-[01]-*.png"))) == 2
    for name in (*NAMES, sizes.TRUE):
        assert f"| {name} " in tables
    with (folder / "clips.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * (2 + 3)  # at the trained length only reference clips and the unpatched model
    with (folder / "summary.csv").open(newline="") as file:
        lines = {(line["times"], line["setting"], line["measure"]): line for line in csv.DictReader(file)}
    of_noise = [float(row["sharpness"]) for row in rows if (row["times"], row["setting"]) == ("2", "freenoise")]
    assert float(lines["2", "freenoise", "sharpness"]["mean"]) == pytest.approx(statistics.mean(of_noise))


@pytest.mark.parametrize("name", [slow_unless(name == "freenoise", name) for name in NAMES])
def test_every_method_starts_from_the_same_noise(done, name):
    cell = cell_of(done[0], name)
    initial = noise(range(bench.FIRST_SEED, bench.FIRST_SEED + 4), 41)
    if name == "freenoise":
        initial = reschedule_noise(initial, TRAINED_FRAMES, torch.Generator().manual_seed(bench.FIRST_SEED))
    method = {"freenoise": "sliding-window", "vrpr everywhere": "vrpr"}[name]
    pipeline = load_pipeline()
    with freeloc.patch(pipeline, "tiny-wan", method=method):
        expected = sample(pipeline, cell.prompts, initial, steps=1, guidance=1.0)
    assert (cell.video() - expected).abs().max() < 0.01  # kept as bytes


def test_settings_differ(done):
    videos = [cell_of(done[0], name).video() for name in NAMES]
    assert all((videos[0] - other).abs().max() > 0.02 for other in videos[1:])


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_bench_resumes(done, workers):
    folder = done[0]
    rows = bench.run(folder, SIZE)
    lost, kept = cell_of(folder, "vrpr everywhere").path, cell_of(folder, sizes.TRUE).path
    before, stamp = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    lost.with_suffix(".json").unlink()
    kept.with_suffix(".json").unlink()  # measured again, not sampled
    older = cell_of(folder, "direct", times=1).path.with_suffix(".json")
    older.write_text('{"measured by": "an older freeloc", "rows": []}')
    assert bench.run(folder, SIZE, workers=workers) == rows
    assert lost.read_bytes() == before
    assert kept.stat().st_mtime_ns == stamp
    assert not list(folder.rglob("*.part"))


def test_results_of_other_settings_are_not_mixed(done):
    folder = done[0]
    with pytest.raises(freeloc.FreelocError, match="holds a bench with other steps: give another folder, or remove"):
        bench.run(folder, sizes.Size(ALONE, steps=2, guidance=1.0))


def test_a_changed_setting_is_noticed(done):
    folder = done[0]
    path = folder / "bench.json"
    text = path.read_text()
    content = json.loads(text)
    content["plans"]["freenoise"] = "another"
    path.write_text(json.dumps(content))
    try:
        with pytest.raises(freeloc.FreelocError, match="holds a bench with other plans of 'freenoise': "):
            bench.run(folder, SIZE)
    finally:
        path.write_text(text)


def test_clips_have_different_prompts_and_the_bench_never_uses_those_of_the_choice(tmp_path):
    prompts = [prompt for first in range(0, 60, 4) for prompt in bench.Cell(tmp_path, 1, "direct", first).prompts]
    assert len(set(prompts)) == 60
    wan = models.TinyWan
    assert bench.FIRST_SEED + wan.most_clips <= wan.FIRST["tune"]
    assert wan.FIRST["tune"] + wan.most_clips <= probes.SEED


def test_the_full_bench_has_every_setting_and_the_most_clips_of_those_that_matter_most():
    size = sizes.full()
    assert size.lengths == [1, 2, 4, 8]
    known = set(settings.all_settings())
    claimed = {*sizes.FIRST, *sizes.SECOND, *sizes.UNIFORM}
    assert {size.clips_at(4)[name] for name in claimed} == {48}
    assert {*sizes.NOISY, *sizes.OTHERS} <= known
    assert set(size.clips_at(4)) <= known | {sizes.TRUE}
    assert {size.clips_at(4)[name] for name in ("random layers 1", "wrong layers", "clip")} == {16}
    assert {size.clips_at(8)[name] for name in sizes.FIRST} == {24}
    assert {"direct", "layer-wise", "lvsa"} < set(size.clips_at(2))
    assert set(size.clips_at(1)) == {sizes.TRUE, "direct"}
    assert set(sizes.quick().clips_at(4)) == {sizes.TRUE, *sizes.SOME}


def test_a_model_with_few_true_clips_has_no_more_of_any_setting():
    size = sizes.full("tiny-film")
    assert {*size.clips_at(4).values()} == {16}
    assert (size.steps, size.guidance, size.model) == (12, 1.0, "tiny-film")
    assert {setting.profile.model.layers for setting in size.settings.values()} == {6}


def test_a_full_bench_is_run_in_parts(tmp_path):
    size = sizes.full()
    names = list(dict.fromkeys(part.part for part in size.parts))
    assert names == ["4x", "8x", "4x-more", "4x-others", "short"]
    several = [set(bench.cells(tmp_path, size.only([name]))) for name in names]
    assert set().union(*several) == set(bench.cells(tmp_path, size))
    assert {cell.times for cell in several[1]} == {8}
    with pytest.raises(
        freeloc.FreelocError, match="expected one of the parts 4x, 8x, 4x-more, 4x-others, short, found '2x'"
    ):
        size.only(["2x"])
    assert main(["bench", "--full", "--part", "9x", "--output", str(tmp_path / "new")]) != 0
    assert not (tmp_path / "new").exists()


def test_every_cell_is_made_once_and_missing_settings_are_left_out(tmp_path):
    size = sizes.Size((sizes.Part(2, 8, ("direct", "no such")), sizes.Part(2, 4, ("direct", "tsa everywhere"))))
    assert [(cell.setting, cell.first) for cell in bench.cells(tmp_path, size)] == [
        (sizes.TRUE, 0),
        ("direct", 0),
        (sizes.TRUE, 4),
        ("direct", 4),
        ("tsa everywhere", 0),
    ]
    assert size.clips_at(2) == {sizes.TRUE: 8, "direct": 8, "tsa everywhere": 4}


def test_methods_and_profiles_of_plugins_are_compared_too(tmp_path):
    mine = tmp_path / "mine.json"
    MIXED.save(mine)
    size = SIZE.with_others(["ultravico", str(mine)])
    assert size.clips_at(1) == SIZE.clips_at(1)
    assert size.clips_at(2) == SIZE.clips_at(2) | {"ultravico": 4, "mine": 4}
    assert size.settings["mine"].fingerprint == setting.Setting("", MIXED).fingerprint
    MIXED.save(tmp_path / "layer-wise.json")
    with pytest.raises(freeloc.FreelocError, match="two settings have the name 'layer-wise': rename the file"):
        bench.cells(tmp_path, SIZE.with_others([str(tmp_path / "layer-wise.json")]))
    with pytest.raises(freeloc.FreelocError, match="no method is named 'riflx'; did you mean riflex"):
        SIZE.with_others(["riflx"])
    with pytest.raises(freeloc.FreelocError, match="a profile of tiny-wan, 8 layers of 4 heads, found 30 of 12"):
        SIZE.with_others(["wan2.1"])


def test_only_the_settings_that_were_asked_for():
    size = SIZE.with_only(["ultravico", "vrpr"])
    assert size.clips_at(1) == {sizes.TRUE: 4, "direct": 4}
    assert size.clips_at(2) == {sizes.TRUE: 4, "ultravico": 4, "vrpr everywhere": 4}
    assert SIZE.with_only([]) == SIZE


@pytest.mark.slow
def test_a_profile_with_another_method_for_each_layer_starts_from_the_noise_that_it_requires(tmp_path):
    policies = {"wide": PolicyPart(method="tsa", settings={"dense_frames": 12})}
    several = settings.with_layers(MIXED.model_copy(update={"policies": policies}), ["freenoise", "wide"] * 4)
    several.save(tmp_path / "several.json")
    size = SIZE.with_others([str(tmp_path / "several.json")])
    one = size.settings["several"]
    assert one.profile == several
    assert one.noise.noise is reschedule_noise
    assert one.fingerprint.endswith(" reschedule_noise")
    cell = cell_of(tmp_path, "several")
    initial = noise(range(bench.FIRST_SEED, bench.FIRST_SEED + 4), 41)
    initial = reschedule_noise(initial, TRAINED_FRAMES, torch.Generator().manual_seed(bench.FIRST_SEED))
    pipeline = load_pipeline()
    with freeloc.patch(pipeline, several, noise_prepared=True) as patch:
        expected = sample(pipeline, cell.prompts, initial, steps=1, guidance=1.0)
    assert patch.report().corrected_calls == 8
    assert {line.method for line in patch.report().layers} == {"freenoise", "wide"}
    assert torch.equal(bench._make(cell, size), expected)


def test_two_methods_that_each_require_noise_of_their_own_are_refused(monkeypatch):
    other = Method("other", sliding_window, noise=lambda latents, trained, generator: latents)
    monkeypatch.setitem(registry().methods.owners, "other", [("a package", other)])
    both = setting.Setting("both", settings.with_layers(MIXED, ["freenoise", "other"] * 4))
    with pytest.raises(freeloc.FreelocError, match="expected one method with initial noise of its own, found f"):
        _ = both.noise


def test_one_layer_at_a_time():
    names = set(sizes.single_layers().clips_at(4)) - {sizes.TRUE}
    assert len(names) == 1 + 2 * 8
    assert "vrpr everywhere" in names
    found = settings.single_layer_settings()
    assert settings.policies_of(found["VRPR on all but layer 2"].profile) == ["vrpr"] * 2 + ["none"] + ["vrpr"] * 5
    assert settings.policies_of(found["VRPR, and TSA on layer 7"].profile) == ["vrpr"] * 7 + ["vrpr+tsa"]
    full, layers = sizes.full(), sizes.single_layers()
    assert (full.steps, full.guidance) == (layers.steps, layers.guidance)  # they share a folder
    assert layers.loss_clips >= 8  # predictions need the loss


def test_settings_with_the_same_plans_are_sampled_once(monkeypatch):
    every = settings.all_settings().values()
    assert len({each.fingerprint for each in every}) == len(every)
    monkeypatch.setattr(settings, "load_profile", lambda name: MIXED)
    names = set(settings.all_settings())
    assert {"tuned", "random layers 1", "random layers 2", "random layers 3"} <= names
    assert "layer-wise" not in names  # the same plans as tuned here
    monkeypatch.setattr(settings, "load_profile", lambda name: settings.with_layers(MIXED, ["vrpr"] * 8))
    assert "vrpr everywhere" in settings.all_settings()
    assert not {"tuned", "layer-wise", "random layers 1"} & set(settings.all_settings())


def test_a_fingerprint_is_of_the_plans_not_of_the_name():
    one = setting.Setting("a", MIXED)
    assert one.fingerprint == setting.Setting("b", MIXED).fingerprint
    assert one.fingerprint != setting.Setting("a", settings.shuffled(MIXED, 1)).fingerprint
    direct = registry().methods.get("direct")
    assert setting.Setting("a", MIXED, direct).fingerprint == setting.Setting("a", FIRST, direct).fingerprint


MIXED = settings.with_layers(freeloc.load_profile("tiny-wan"), ["vrpr"] * 4 + ["vrpr+tsa"] * 3 + ["none"])


FIRST = settings.with_layers(MIXED, ["vrpr"] * 8)


def counts(profile):
    return {policy: len(layers) for policy, layers in profile.layers.items() if layers}


@pytest.mark.parametrize("seed", range(4))
def test_random_choices_have_as_many_layers_of_each_kind(seed):
    assert counts(settings.shuffled(MIXED, seed)) == counts(MIXED)
    assert settings.shuffled(MIXED, seed) == settings.shuffled(MIXED, seed)


def test_random_choices_differ():
    assert len({json.dumps(settings.shuffled(MIXED, seed).layers) for seed in range(6)}) > 3


def test_the_wrong_choice_has_as_many_layers_of_each_kind_in_the_worst_places():
    losses = {
        "none": [0, 9, 0, 0, 0, 0, 0, 0],
        "vrpr+tsa": [5, 9, 0, 7, 0, 0, 6, 8],
        "vrpr": [0, 0, 0, 0, 0, 0, 0, 8.0],
    }
    bad = settings.wrong(MIXED, {policy: torch.tensor(values)[:, None] for policy, values in losses.items()})
    assert counts(bad) == counts(MIXED)
    assert bad.layers["none"] == [1]
    assert bad.layers["vrpr+tsa"] == [0, 3, 6]


def rows_of(setting, values, times=4):
    return [{"times": times, "setting": setting, "clip": i, "prompt": "", "m": value} for i, value in enumerate(values)]


def test_the_summary_is_mean_standard_error_and_paired_difference():
    without_texture = rows_of("direct", [1, 2, math.nan]) + rows_of("x", [2, math.nan, 9])
    found = {line["setting"]: line for line in scores.summary(without_texture)}
    assert (found["direct"]["mean"], found["direct"]["clips"], found["x"]["mean"]) == (1.5, 2, 5.5)
    assert found["x"]["difference"] == 1  # of the one clip that both have
    lines = {line["setting"]: line for line in scores.summary(rows_of("direct", [1, 2, 6]) + rows_of("x", [2, 4, 6]))}
    assert lines["direct"]["mean"] == 3
    assert lines["direct"]["error"] == pytest.approx(statistics.stdev([1, 2, 6]) / 3**0.5)
    assert lines["x"]["difference"] == 1
    assert lines["x"]["difference error"] == pytest.approx(statistics.stdev([1, 2, 0]) / 3**0.5)
    assert "difference" not in lines["direct"]


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = [3.0, 1.0, 4.0, 1.0, 5.0]
    mean, error = scores.jackknife(
        lambda parts: float(torch.stack(list(parts)).mean()), [torch.tensor(value) for value in values]
    )
    assert mean == pytest.approx(statistics.mean(values))
    assert error == pytest.approx(statistics.stdev(values) / 5**0.5)


def test_the_table_shows_the_length_that_was_asked_for():
    lines = [
        {"times": times, "setting": "direct", "measure": "identity", "clips": 4, "mean": times / 8, "error": 0.01}
        for times in (2, 4)
    ]
    assert table(lines, 4, "4x").splitlines() == [
        "| 4x     | clips | identity   |",
        "| ------ | ----- | ---------- |",
        "| direct | 4     | 0.5 ± 0.01 |",
    ]


def test_wins_and_losses_are_in_the_tables_after_the_means():
    rows = [
        {"times": 4, "setting": name, "clip": clip, "prompt": "", "identity": value + clip}
        for name, value in ((sizes.TRUE, 9.0), ("direct", 1.0), ("layer-wise", 3.0))
        for clip in range(2)
    ]
    means, standings, to_direct, to_choice = tables(rows, scores.summary(rows), [4])
    assert [line.split()[1] for line in means.splitlines()[2:]] == ["true", "direct", "layer-wise"]
    assert standings.splitlines()[2].split("|")[1:3] == [" identity ", " layer-wise "]
    assert "| 4x, closer to true clips than direct | clips | identity   |" in to_direct
    assert "| layer-wise                           | 2     | +2 ± 0 win |" in to_direct
    assert "| direct                                   | 2     | -2 ± 0 loss |" in to_choice


@pytest.fixture
def bench_tables(monkeypatch):
    """The script of docs that writes the tables."""
    monkeypatch.syspath_prepend(DOCS)
    return importlib.import_module("bench_tables")


def test_the_tables_in_docs_are_those_of_the_rows_beside_them(bench_tables):
    page = bench_tables.PAGE.read_text(encoding="utf-8")
    assert bench_tables.filled(page) == page
    assert page.count("| true clips ") == len([1, 2, 4, 8]) + 1  # and beside the paper's
    assert page.count("closer to true clips than direct") == 3  # at all lengths but 1x
    rows, lines = (bench_tables.read(bench_tables.ROWS / name) for name in ("clips.csv", "summary.csv"))
    means = {(line["setting"], line["measure"]): line["mean"] for line in lines if line["times"] == 4}
    for name in ("direct", "layer-wise", "vrpr everywhere"):
        ours = " | ".join(f"{means[name, measure]:.3f}" for measure in ("drift", "land as prompted", "sharpness"))
        assert re.search(rf"^\| {re.escape(name)} \|.* \| {re.escape(ours)} \|$", page, flags=re.MULTILINE)
    assert len({row["clip"] for row in rows if (row["times"], row["setting"]) == (4, "layer-wise")}) == 48
    assert {line["mean"] for line in scores.summary(rows)} <= {line["mean"] for line in lines}


def test_a_model_has_its_tables_as_soon_as_it_has_rows(bench_tables, tmp_path, monkeypatch):
    monkeypatch.setitem(bench_tables.FOLDERS, "tiny-film", tmp_path)
    assert list(bench_tables.sections("tiny-film")) == []
    measured = [
        {"times": 4, "setting": name, "clip": clip, "prompt": "", "drift": value + clip}
        for name, value in ((sizes.TRUE, 9.0), ("direct", 1.0), ("tuned", 3.0))
        for clip in range(2)
    ]
    lost = [{key: row[key] for key in ("times", "setting", "clip")} for row in measured[2:]]
    lost = [
        row | {"setting": "vrpr everywhere", losses.WHOLE: 0.1 * row["clip"], losses.MOVING: 0.2} for row in lost[:2]
    ]
    for name, rows in (("clips", measured), ("summary", scores.summary(measured)), ("losses", lost)):
        scores.write_csv(tmp_path / f"{name}.csv", rows)
    means, standings, to_direct, to_tuned, loss = bench_tables.sections("tiny-film")
    assert means.startswith("### tiny-film, 4x\n\n| 4x ")
    assert "| drift | tuned | " in re.sub(" +", " ", standings)
    assert "| tuned | 2 | +2 ± 0 win |" in re.sub(" +", " ", to_direct)
    assert "closer to true clips than tuned" in to_tuned
    assert "| vrpr everywhere | 500 / 2000 |" in re.sub(" +", " ", loss)
    empty = "".join(
        bench_tables.START.format(n) + bench_tables.END.format(n) for n in ("tiny-wan", "tiny-film", "heads")
    )
    page = bench_tables.filled(empty)
    assert means in page
    assert bench_tables.filled(page) == page


def test_the_docs_on_heads_match_the_rows_beside_them(bench_tables):
    rows = [row for name in ("clips", "head-wise") for row in bench_tables.read(bench_tables.ROWS / f"{name}.csv")]
    both = [row for row in rows if row["times"] == 4 and row["setting"] in ("layer-wise", "head-wise")]
    lines = scores.summary([row for row in both if row["clip"] < 24])
    page = bench_tables.PAGE.read_text(encoding="utf-8").partition("## Heads instead of layers")[2]
    moving = [f"{line['mean']:.3f}" for line in lines if line["measure"] == "land as prompted"]
    assert f"({moving[1]}\nof frame pairs against {moving[0]})" in page
    chosen = freeloc.load_profile(settings.HEAD_CHOICE)
    assert sum(len(heads) for of_layer in chosen.heads.values() for heads in of_layer.values()) == 7
    assert "7 of the 32" in page.replace("\n", " ")


def test_one_value_has_no_standard_error():
    mean, error = scores.mean_and_error([2.0])
    assert (mean, math.isnan(error)) == (2, True)


@pytest.mark.slow
def test_the_command_requires_only_a_folder(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(losses, "LEVELS", (0.7,))
    monkeypatch.setattr(sizes, "quick", lambda model: sizes.Size(ALONE, steps=1, guidance=1.0))
    assert main(["bench", "--output", str(tmp_path / "out")]) == 0
    assert "| direct " in capsys.readouterr().out
    assert (tmp_path / "out" / "summary.csv").exists()
