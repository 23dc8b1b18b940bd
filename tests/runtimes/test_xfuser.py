"""xDiT's own Wan and its USP attention under Ulysses, in two processes on the CPU: see tests/runtimes/xfuser.sh."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.runtimes
if importlib.util.find_spec("xfuser") is None or importlib.util.find_spec("yunchang") is None:
    pytest.skip(
        "pip install --no-deps xfuser==0.7.0 yunchang==0.6.4, or tests/runtimes/xfuser.sh", allow_module_level=True
    )

HERE = Path(__file__).parent


@pytest.fixture(scope="module", params=[0, 1])
def found(request, measured):
    """What one of the processes found."""
    return measured[request.param]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    paths = [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-W", "ignore", str(HERE / "xfuser_processes.py"), str(folder)]
    said = [folder / f"{rank}.txt" for rank in range(2)]
    processes = []
    for rank, path in enumerate(said):
        with path.open("w") as output:
            own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(subprocess.Popen(command, env=own, stdout=output, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(300) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0, 0], "\n".join(path.read_text() for path in said)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("method", ["vrpr+tsa", "tsa", "vrpr"])
def test_ulysses_gives_what_one_process_gives(found, method):
    case = found[method]
    assert case["alone"] < 1e-5
    assert case["correction"] > 1e-2
    assert case["difference"] < 1e-5
    assert "this process computes some of 4 heads" in case["report"]


def test_a_short_video_is_left_alone(found):
    assert found["short"]["correction"] == 0
    assert found["short"]["is_unchanged"]
    assert not found["vrpr"]["is_unchanged"]
    assert found["short"]["difference"] < 1e-5


def test_what_cannot_be_known_is_refused(found):
    assert "freeloc cannot find out which heads they are" in found["heads"]["error"]
    assert (
        "expected self-attention over 105 tokens (7 latent frames of 3 x 5, 0 of text), found 106"
        in found["odd"]["error"]
    )


def test_without_a_patch_xfuser_attends_to_its_padding(found):
    assert found["odd"]["alone"] > 1e-3
