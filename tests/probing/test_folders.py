"""A probe in a folder: it resumes, is shared by processes, and refuses pieces of another probe."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_wan, wan_inputs
from small_probe import PROFILE, clips, run_of
from torch import Tensor

import freeloc
from freeloc.errors import ProbeError
from freeloc.probing import Local, Loss, Output, Sensitivity, Video, flow


@pytest.fixture(scope="module")
def model() -> Any:
    return make_wan()


DEPTHS = {"local": Local(), "output": Output(shifts=(3,), steps=(0, 2)), "video": Video(["contrast"], shifts=(3,))}


@pytest.mark.parametrize("name", list(DEPTHS))
def test_a_stopped_probe_resumes(model: Any, tmp_path: Path, name: str) -> None:
    run, ran = run_of(model), []

    def video(prompt: str) -> Tensor:
        ran.append(prompt)
        if len(ran) == 2:
            raise KeyboardInterrupt
        return run(prompt)[0, :3].movedim(0, -1).sigmoid()

    ask = {"depth": DEPTHS[name], "prompts": ["a", "bb"], "profile": PROFILE}
    with pytest.raises(KeyboardInterrupt):
        freeloc.probe(model, video, **ask, folder=tmp_path)
    done = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert done
    found = freeloc.probe(model, video, **ask, folder=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    before = len(ran)
    again = freeloc.probe(model, video, **ask, folder=tmp_path)
    assert len(ran) == before  # all is on disk
    whole = freeloc.probe(model, video, **ask)
    for other in (again, whole):
        assert found.facts == other.facts
        for table in found.tables:
            assert torch.equal(found.table(table).values, other.table(table).values)


SCRIPT = """
import os, pathlib, sys, torch
sys.path[:0] = {folders!r}
pathlib.Path(sys.argv[1] + "-" + os.environ.get("RANK", "alone")).touch()
torch.set_num_threads(1)
import freeloc
from conftest import make_wan
from freeloc.probing import Output
from small_probe import PROFILE, run_of

model = make_wan()
depth = Output(shifts=(3, 6), steps=(0, 1, 2))
prompts = ["a", "bb", "ccc"]
found = freeloc.probe(
    model, run_of(model, frames=14), depth, prompts=prompts, profile=PROFILE, folder=sys.argv[1]
)
found.save(sys.argv[2])
"""


COMMAND = [sys.executable, "script.py", "pieces", "found.safetensors"]
"""Run in the script's folder: measurements record the command, which must be the same."""


def write_script(folder: Path) -> None:
    tests = Path(__file__).parents[1]
    (folder / "script.py").write_text(SCRIPT.format(folders=[str(tests), str(tests / "support")]))


def run_script(folder: Path) -> Path:
    subprocess.run(COMMAND, cwd=folder, check=True, capture_output=True)
    return folder / "found.safetensors"


def tensors_of(path: Path) -> dict[str, list[float]]:
    return {name: table.values.flatten().tolist() for name, table in Sensitivity.load(path).tables.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The measurements of the script when nothing stops it, and the seconds that it takes."""
    folder = tmp_path_factory.mktemp("whole")
    write_script(folder)
    started = time.monotonic()
    return run_script(folder), time.monotonic() - started


@pytest.mark.slow
@pytest.mark.parametrize("moments", [(0.75, 0.9), (0.7, 0.78, 0.86, 0.94)])
def test_killed_at_any_moment_it_gives_the_same_file(
    whole: tuple[Path, float], moments: tuple[float, ...], tmp_path: Path
) -> None:
    file, seconds = whole
    write_script(tmp_path)
    for moment in moments:
        process = subprocess.Popen(COMMAND, cwd=tmp_path, stderr=subprocess.PIPE)
        time.sleep(seconds * moment)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert run_script(tmp_path).read_bytes() == file.read_bytes()


@pytest.mark.slow
def test_two_processes_of_accelerate_give_the_same_numbers(whole: tuple[Path, float], tmp_path: Path) -> None:
    write_script(tmp_path)
    # With --cpu it would start several processes through mpirun only; no GPU is used.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "script.py"]
    found = subprocess.run(
        [*launch, "b", "shared.safetensors"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "b-0").exists()
    assert (tmp_path / "b-1").exists()
    assert tensors_of(tmp_path / "shared.safetensors") == tensors_of(whole[0])


def test_processes_share_the_work(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from freeloc.probing.cells import Cells

    def wait(seconds: float) -> None:
        raise RuntimeError("would wait for cell/0")

    monkeypatch.setattr(time, "sleep", wait)
    made: list[tuple[int, str]] = []
    names = [f"cell/{index}" for index in range(5)]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        cells = Cells(tmp_path, {})

        def make(name: str, rank: int = rank) -> dict[str, Tensor]:
            made.append((rank, name))
            return {"rank": torch.tensor(rank)}

        if rank:
            with pytest.raises(RuntimeError, match="would wait for cell/0"):
                cells.all(names, make, "cells")
        else:
            assert [int(cell["rank"]) for cell in cells.all(names, make, "cells").values()] == [0, 1, 0, 1, 0]
    shown = capsys.readouterr().err
    assert "cells, process 1 of 2" in shown
    assert "cells, process 2 of 2" in shown
    assert made == [(1, "cell/1"), (1, "cell/3"), (0, "cell/0"), (0, "cell/2"), (0, "cell/4")]
    with pytest.raises(ProbeError, match=r"expected folder=... for a probe in 2 processes"):
        Cells(None, {})


def test_a_folder_of_another_probe_is_refused(model: Any, tmp_path: Path) -> None:
    freeloc.probe(model, run_of(model), profile=PROFILE, folder=tmp_path)
    with pytest.raises(ProbeError, match="holds a probe with another local: give another folder"):
        freeloc.probe(model, run_of(model), Local(rows=7), profile=PROFILE, folder=tmp_path)
    with pytest.raises(ProbeError, match="holds a probe with another model, seed"):
        freeloc.probe(make_wan(seed=1), run_of(make_wan(seed=1)), profile=PROFILE, folder=tmp_path, seed=1)
    freeloc.probe(model, run_of(model), DEPTHS["output"], profile=PROFILE, folder=tmp_path)  # each depth for itself
    (tmp_path / "local" / "probe.json").write_text("{")
    with pytest.raises(ProbeError, match="cannot keep a probe in"):
        freeloc.probe(model, run_of(model), profile=PROFILE, folder=tmp_path)


def test_a_folder_records_everything_that_a_run_depends_on(model: Any, tmp_path: Path) -> None:
    ask: dict[str, Any] = {"profile": PROFILE, "prompts": ["a"], "folder": tmp_path}
    found = freeloc.probe(model, run_of(model), **ask, run_settings={"frames": 9, "size": (6, 10)})
    assert found.facts.settings["local"]["run"] == {"frames": 9, "size": [6, 10]}
    again = freeloc.probe(model, run_of(model), **ask, run_settings={"frames": 9, "size": (6, 10)})
    assert again.facts == found.facts
    with pytest.raises(ProbeError, match="holds a probe with another run: give another folder"):
        freeloc.probe(model, run_of(model, frames=14), **ask, run_settings={"frames": 14, "size": (6, 10)})
    with pytest.raises(ProbeError, match="expected run_settings of numbers, texts, lists and objects of these"):
        freeloc.probe(model, run_of(model), **ask, run_settings={"run": run_of})


@pytest.mark.parametrize("changed", [{"objective": flow(timesteps=1)}, {"argument": "hidden_states"}])
def test_another_objective_or_argument_is_another_loss(model: Any, tmp_path: Path, changed: dict[str, Any]) -> None:
    ask: dict[str, Any] = {"profile": PROFILE, "folder": tmp_path}
    few: dict[str, Any] = {"levels": (0.5,), "compared": (("none", "vrpr"),)}
    freeloc.probe(model, run_of(model), Loss(clips(), **few), **ask)
    with pytest.raises(ProbeError, match="holds a probe with another loss"):
        freeloc.probe(model, run_of(model), Loss(clips(), **few, **changed), **ask)
    freeloc.probe(model, run_of(model), Loss(clips(), **few, objective=flow()), **ask)  # which is the usual one


def test_pieces_of_another_length_are_refused(model: Any, tmp_path: Path) -> None:
    ask: dict[str, Any] = {"profile": PROFILE, "prompts": ["a", "bb"], "folder": tmp_path}
    freeloc.probe(model, run_of(model), **ask)
    (tmp_path / "local" / "local" / "001.safetensors").unlink()
    with pytest.raises(ProbeError, match=r"expected every run to be as long as the others, found 9 .* and then 14"):
        freeloc.probe(model, run_of(model, frames=14), **ask)


def test_an_unseeded_run_is_refused(model: Any, tmp_path: Path) -> None:
    def run() -> None:
        model(**wan_inputs(9, batch=1) | {"hidden_states": torch.randn(1, 4, 9, 6, 10)})

    depth = Output(shifts=(3,), steps=(0,))
    freeloc.probe(model, run, depth, profile=PROFILE, folder=tmp_path)
    for cell in tmp_path.rglob("0/*.safetensors"):
        cell.unlink()
    with pytest.raises(ProbeError, match=r"expected every run of a prompt to be the same.*seed the generator"):
        freeloc.probe(model, run, depth, profile=PROFILE, folder=tmp_path)
