"""A tuning in a folder: killed, it goes on; several processes share it; what a dead process claimed is taken over."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from freeloc.errors import ProbeError
from freeloc.tuning import work as work_module
from freeloc.tuning.clock import Clock
from freeloc.tuning.work import Task, Work

SCRIPT = """
import os, sys
sys.path[:0] = {folders!r}
import torch
torch.set_num_threads(1)
import freeloc
from constructed import ADAPTER, PROFILE, Constructed, clips, run_of
from freeloc.tuning import Candidate

model, some = Constructed(), [Candidate("none"), Candidate("vrpr"), Candidate("sliding-window")]
found = freeloc.tune(
    model, clips(), run_of(model), profile=PROFILE, adapter=ADAPTER, candidates=some, alternatives=some, times=(4,),
    levels=(0.4,), videos=0, folder=sys.argv[1],
)
print(found.profile.layers)
"""
FILES = ("profile.json", "profile.safetensors")


def write_script(folder: Path) -> None:
    tests = Path(__file__).parents[1]
    (folder / "script.py").write_text(SCRIPT.format(folders=[str(tests), str(tests / "support")]))


def command() -> list[str]:
    return [sys.executable, "script.py", "out"]


def start(folder: Path, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command(), cwd=folder, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def choice(folder: Path) -> Any:
    """What was found. Notes say how long it took, and the order of measurements does not matter."""
    profile = json.loads((folder / "out" / "profile.json").read_text())
    del profile["provenance"]["notes"], profile["evidence"]
    return profile


def tables(folder: Path) -> dict[str, list[float]]:
    from freeloc.probing import Sensitivity

    found = Sensitivity.load(folder / "out" / "profile.safetensors").tables
    return {name: table.values.nan_to_num(-1.0).flatten().tolist() for name, table in found.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script's results when nothing stops it."""
    folder = tmp_path_factory.mktemp("whole")
    write_script(folder)
    process = start(folder)
    _, problem = process.communicate()
    assert process.returncode == 0, problem
    return folder


def pieces(folder: Path) -> int:
    return len([*folder.rglob("loss/*/*.safetensors")])


@pytest.mark.slow
def test_killed_several_times_it_finds_the_same(whole: Path, tmp_path: Path) -> None:
    write_script(tmp_path)
    total, kills = pieces(whole), 0
    for share in (0.2, 0.5, 0.8):
        process = start(tmp_path)
        while process.poll() is None and pieces(tmp_path) < share * total:
            time.sleep(0.01)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert kills == 3
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("loss/*/*.safetensors")}
    process = start(tmp_path)
    _, problem = process.communicate()
    assert process.returncode == 0, problem
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert choice(tmp_path) == choice(whole)
    assert tables(tmp_path) == tables(whole)
    assert pieces(tmp_path) == total


@pytest.mark.slow
def test_two_processes_find_the_same_as_one(whole: Path, tmp_path: Path) -> None:
    write_script(tmp_path)
    both = [start(tmp_path, RANK=str(rank), WORLD_SIZE="2") for rank in (0, 1)]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert choice(tmp_path) == choice(whole)
    assert tables(tmp_path) == tables(whole)


def work_of(
    folder: Path, rank: int, made: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch, wait: float = 0.0
) -> Work:
    def measure(task: Task) -> dict[str, Tensor]:
        time.sleep(wait)
        made.append((rank, task.name))
        return {"value": torch.tensor(float(task.data["number"]))}

    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    return Work(folder, {"a": 1}, measure, Clock(1.0, folder if rank == 0 else None))


TASKS = [Task(f"loss/{number}", "loss", {"number": number}) for number in range(12)]


def test_each_task_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, str]] = []
    leader, follower = (work_of(tmp_path, rank, made, monkeypatch, wait=0.02) for rank in (0, 1))
    thread = threading.Thread(target=follower.follow)
    thread.start()
    assert leader.do(TASKS[:6])
    assert leader.do(TASKS)
    leader.finish()
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert sorted(name for _, name in made) == sorted(task.name for task in TASKS)
    assert {rank for rank, _ in made} == {0, 1}
    assert [float(leader.cell(task.name)["value"]) for task in TASKS] == list(range(12))


def test_a_task_of_a_dead_process_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_module, "PATIENCE", 0.3)
    made: list[tuple[int, str]] = []
    leader = work_of(tmp_path, 0, made, monkeypatch)
    claimed = leader._claim_path(leader._run, 1, TASKS[3])
    claimed.parent.mkdir(parents=True)
    claimed.touch()  # by a process that died at once
    assert leader.do(TASKS)
    assert made[-1] == (0, TASKS[3].name)


def test_a_follower_whose_leader_is_gone_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follower = work_of(tmp_path, 1, [], monkeypatch)
    parents = iter([1, 1, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents, 2))
    follower.follow()


def test_what_a_follower_returns_is_what_the_leader_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leader = work_of(tmp_path, 0, [], monkeypatch)
    leader.finish()
    work_of(tmp_path, 1, [], monkeypatch).follow()  # returns at once
    with pytest.raises(ProbeError, match=r"expected folder=... for a probe in 2 processes"):
        Work(None, {}, lambda task: {}, Clock(1.0))


def test_no_task_begins_that_would_end_too_late() -> None:
    seconds = [0.0]

    def measure(task: Task) -> dict[str, Tensor]:
        seconds[0] += 5.0
        return {"value": torch.zeros(())}

    work = Work(None, {}, measure, Clock(1.0, now=lambda: seconds[0]))
    assert not work.do(TASKS, share=0.5)
    assert seconds[0] == 30.0 - 5.0  # the next would end at 30, which is not before it
    assert [work.has(task.name) for task in TASKS] == [True] * 5 + [False] * 7
    assert not work.do(TASKS, share=0.5)
    assert work.do(TASKS[:5], share=0.1)  # what is known costs nothing


def test_the_clock_goes_on_after_an_interruption(tmp_path: Path) -> None:
    seconds = [0.0]
    first = Clock(1.0, tmp_path, now=lambda: seconds[0])
    seconds[0] = 20.0
    first.note("loss", 20.0)
    seconds[0] = 0.0
    second = Clock(1.0, tmp_path, now=lambda: seconds[0])
    assert second.spent() == 20.0
    assert second.left() == 40.0
    assert Clock(2.0, tmp_path, now=lambda: seconds[0]).left() == 100.0
