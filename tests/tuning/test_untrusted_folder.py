"""The folder of a tuning may be damaged, or from somebody else: what it holds is used, or refused in one line."""

import os
from pathlib import Path
from typing import Any

import pytest
from test_processes import TASKS, work_of

from freeloc.errors import ProbeError
from freeloc.tuning import Tuned, result, work
from freeloc.tuning.clock import LARGEST_FILE, Clock

GOOD = '{"run": "7-7", "number": 1, "tasks": [["loss/1", "loss", {"number": 1}]], "until": 0.0, "done": true}'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[", "Expecting value"),
        ("[" * 900, "Expecting value"),
        ("[3]", r'expected {"seconds": a number from 0}, found \[3\]'),
        ('{"seconds": "3"}', "found {'seconds': '3'}"),
        ('{"seconds": NaN}', "found {'seconds': nan}"),
        ('{"seconds": -1}', "found {'seconds': -1}"),
        ('{"seconds": ' + "9" * 400 + "}", "too large to convert to float"),
        ('{"seconds": 3}' + " " * LARGEST_FILE, "expected a file of at most 1000 bytes, found 1014 bytes"),
    ],
)
def test_a_damaged_clock_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "clock.json").write_text(text)
    with pytest.raises(ProbeError, match=rf"cannot read .*clock.json: .*{words}.*: remove it to count") as error:
        Clock(1.0, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[", "Invalid JSON"),
        ("3", "found 3"),
        (GOOD.replace("loss/1", "../up"), r"round.tasks.0.0: String should match pattern .*, found '\.\./up'"),
        (GOOD.replace("loss/1", "/up"), "round.tasks.0.0: String should match pattern .*, found '/up'"),
        (GOOD.replace("7-7", "../7"), r"round.run: String should match pattern .*, found '\.\./7'"),
        (GOOD.replace("0.0", '"soon"'), "round.until: Input should be a valid number, found 'soon'"),
        (GOOD.replace("done", "over"), "round.done: Field required"),
        (GOOD.replace('"loss", {', '{"a": 1}, {'), "round.tasks.0.1: Input should be a valid string"),
    ],
)
def test_tasks_that_freeloc_did_not_write_are_refused(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, str]] = []
    follower = work_of(tmp_path / "pieces", 1, made, monkeypatch)
    (tmp_path / "pieces" / "round.json").write_text(text)
    with pytest.raises(
        ProbeError, match=f"cannot read .*round.json: expected tasks that freeloc wrote: .*{words}"
    ) as e:
        follower.follow()
    assert "\n" not in str(e.value)
    assert made == []
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["pieces", "probe.json", "round.json"]


def test_tasks_are_read_as_they_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, str]] = []
    leader = work_of(tmp_path, 0, made, monkeypatch)
    assert leader.do(TASKS[:2])
    found: Any = work.Round.model_validate_json((tmp_path / "round.json").read_bytes())
    assert [work.Task(*listed) for listed in found.tasks] == TASKS[:2]
    (tmp_path / "round.json").write_text(GOOD)
    work_of(tmp_path, 1, made, monkeypatch).follow()  # ends, since it says that all is done


def test_huge_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follower = work_of(tmp_path, 1, [], monkeypatch)
    for path, size in ((tmp_path / "round.json", work.LARGEST_ROUND), (tmp_path / "report.md", result.LARGEST_REPORT)):
        path.touch()
        os.truncate(path, size + 1)
    with pytest.raises(ProbeError, match=r"round\.json: expected a file of at most 100000000 bytes, found 100000001"):
        follower.follow()
    for name, read in (("load_profile", lambda path: None), ("Sensitivity.load", lambda path: None)):
        monkeypatch.setattr(f"freeloc.tuning.result.{name}", read)
    with pytest.raises(ProbeError, match=r"report\.md: expected a file of at most 10000000 bytes, found 10000001"):
        Tuned.load(tmp_path)
