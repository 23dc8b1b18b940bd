"""How well one probe predicts another, on made-up clips with known results."""

import csv
import random
from pathlib import Path

import pytest
import torch

from freeloc.probing import Sensitivity
from freeloc.tiny import predictions, sizes
from freeloc.tiny.predictions import Effects, agreement, effects, in_videos, table
from freeloc.tiny.settings import LAYER_CHOICE, WITH_TSA, WITHOUT_VRPR, measured_losses

DOCS = Path(__file__).parents[2] / "docs"

POSITION = [0.3, 0.1, 0.8, 0.0, 0.5, 0.2, 0.9, 0.4]
CONTEXT = [-0.1, 0.2, 0.0, 0.3, -0.2, 0.1, 0.5, 0.4]


def made_up(noise: float = 0.0) -> list[dict[str, str]]:
    """Twelve clips in which each layer matters as above; a lower denoising loss is better."""
    draw = random.Random(0)
    settings = {"vrpr everywhere": 1.0}
    settings |= {WITHOUT_VRPR.format(layer): 1 - value for layer, value in enumerate(POSITION)}
    settings |= {WITH_TSA.format(layer): 1 + value for layer, value in enumerate(CONTEXT)}
    rows = []
    for setting, value in settings.items():
        for clip in range(12):
            row = {
                measure: str(sign * (value + draw.gauss(0, noise))) for measure, sign in predictions.MEASURES.items()
            }
            rows.append({"setting": setting, "clip": str(clip)} | row)
    return rows


def test_the_truth_is_what_a_layer_changes() -> None:
    for measure in predictions.MEASURES:
        found = effects(in_videos(made_up(), measure))
        assert found.position.tolist() == pytest.approx(POSITION)
        assert found.context.tolist() == pytest.approx(CONTEXT)


def test_a_probe_that_knows_the_order_agrees_and_noise_blurs_it() -> None:
    knows = Effects(torch.tensor(POSITION) ** 3, torch.tensor(CONTEXT) * 7)
    opposite = Effects(-knows.position, -knows.context)
    lines = table({"knows": knows, "opposite": opposite}, made_up()).splitlines()
    assert lines[0] == "| positions / context | land as prompted | sharpness | identity | denoising loss |"
    assert lines[2] == "| knows | +1.00 / +1.00 | +1.00 / +1.00 | +1.00 / +1.00 | +1.00 / +1.00 |"
    assert lines[3].count("-1.00 / -1.00") == 4
    assert lines[4].count("+1.00 / +1.00") == 4
    blurred = effects(in_videos(made_up(noise=1.0), "sharpness"))
    position, context = map(float, agreement(knows, blurred).split(" / "))
    assert 0 < position < 1
    assert context < 1


def test_the_settings_are_those_of_the_bench() -> None:
    names = sizes.single_layers().clips_at(4)
    assert {row["setting"] for row in made_up()} <= set(names)


def test_tables_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rows = made_up()
    with (tmp_path / "clips.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    monkeypatch.setattr("sys.argv", ["predictions", "--bench", str(tmp_path)])
    predictions.main()
    printed = capsys.readouterr().out.rstrip().splitlines()
    assert (
        "| one half of the clips and the other | +1.00 / +1.00 | +1.00 / +1.00 | +1.00 / +1.00 | +1.00 / +1.00 |"
        in (printed)
    )
    assert printed[-2].startswith("| none | +300.0 ± 0.0 | +100.0 ± 0.0 | +800.0 ± 0.0 |")


def test_the_tables_in_docs_match_the_shipped_measurements() -> None:
    found = Sensitivity.load(LAYER_CHOICE.with_suffix(".safetensors"))
    probes, losses = predictions.probed(found), measured_losses(found)
    rows = predictions.read_rows(DOCS / "probe-your-model" / "single-layers.csv")
    page = (DOCS / "probe-your-model" / "agreement.md").read_text(encoding="utf-8")
    assert predictions.choices(found) in page
    assert predictions.among(probes) in page
    assert f"`loss` on one half of the clips with the other: {agreement(*predictions.halves(losses))}" in page
    assert table(probes, rows) in page
    assert predictions.changes(in_videos(rows, "land as prompted")) in page
    assert predictions.changes(losses) in (DOCS / "long-video-bench.md").read_text(encoding="utf-8")
