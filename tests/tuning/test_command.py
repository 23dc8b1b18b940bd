"""``freeloc tune`` on a file of one's own, in one process and in two, and what it refuses."""

import json
from pathlib import Path

import pytest

import freeloc
from freeloc.cli import main

FILE = """
import sys
sys.path[:0] = {folders!r}
from constructed import ADAPTER, PROFILE, Constructed, clips, run_of
from freeloc.tuning import Candidate


def tuning():
    model, some = Constructed(), [Candidate("none"), Candidate("vrpr")]
    return {{
        "model_or_pipeline": model, "clips": clips(), "run": run_of(model), "profile": PROFILE, "adapter": ADAPTER,
        "candidates": some, "alternatives": [], "levels": (0.4,), "videos": 0,
    }}


other = tuning
nothing = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tests = Path(__file__).parents[1]
    path = tmp_path / "mine.py"
    path.write_text(FILE.format(folders=[str(tests), str(tests / "support")]))
    return path


def test_from_a_file_to_a_profile(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    ask = ["tune", str(file), "--folder", str(out), "--times", "4", "--also", "sliding-window", "--minutes", "5"]
    assert main(ask) == 0
    printed = capsys.readouterr().out
    assert "# Tuned: constructed" in printed
    assert f"written: {out / 'report.md'}" in printed
    profile = freeloc.load_profile(out / "profile.json")
    assert profile.provenance.kind == "probed"
    assert profile.layers.keys() <= {"none", "vrpr", "sliding-window"}
    before = {path: path.stat().st_mtime_ns for path in out.rglob("loss/*/*.safetensors")}
    assert main([*ask[:1], f"{file}:other", *ask[2:]]) == 0  # all is known
    assert {path: path.stat().st_mtime_ns for path in out.rglob("loss/*/*.safetensors")} == before


@pytest.mark.slow
def test_two_processes_share_the_work(file: Path, tmp_path: Path) -> None:
    ask = ["tune", str(file), "--minutes", "5", "--times", "4"]
    assert main([*ask, "--folder", str(tmp_path / "one")]) == 0
    assert main([*ask, "--folder", str(tmp_path / "two"), "--workers", "2"]) == 0
    one, two = (json.loads((tmp_path / name / "profile.json").read_text()) for name in ("one", "two"))
    assert one["layers"] == two["layers"]
    assert "2 processes" in (tmp_path / "two" / "report.md").read_text()
    assert main([*ask, "--folder", str(tmp_path / "two"), "--workers", "2"]) == 0  # again, when all is done


@pytest.mark.parametrize(
    ("subject", "words"),
    [
        ("nowhere.py", "cannot read nowhere.py: FileNotFoundError"),
        ("{file}:nothing", "expected tiny-wan or tiny-film, path/to/file.py with a function tuning()"),
        ("{file}:absent", "expected tiny-wan or tiny-film, path/to/file.py with a function tuning()"),
        ("tiny", "expected tiny-wan or tiny-film, path/to/file.py with a function tuning()"),
        ("nowhere:thing", "cannot read nowhere:thing: ModuleNotFoundError"),
    ],
)
def test_refusals(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], subject: str, words: str) -> None:
    assert main(["tune", subject.format(file=file), "--folder", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_budget_that_is_no_number(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["tune", str(file), "--minutes", "0"])
    assert "expected a number above 0, found 0" in capsys.readouterr().err


def test_depth_tune_is_for_reading_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["depths"]) == 0
    assert "tune" in capsys.readouterr().out
    from freeloc.tuning.depth import Tune

    with pytest.raises(freeloc.FreelocError, match="run freeloc tune"):
        Tune().measure(None)  # type: ignore[arg-type]  # reason: it is refused before it is used
