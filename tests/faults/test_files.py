"""A full disk, a folder that is read-only, an error at any line of saving, a killed process: the old file is whole."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import make_profile, make_wan
from injection import ERRORS, Injection, points_of
from small_probe import made_up, run_of

import freeloc
from freeloc.errors import FreelocError
from freeloc.metrics.video import write_video
from freeloc.pictures.figures import empty_figure, write
from freeloc.probing import Local, Table
from freeloc.tuning.clock import Clock


def save_profile(path, version):
    make_profile(provenance={"kind": "default", "source": f"version {version} " * 10_000}).save(path)


def save_measurements(path, version):
    made_up(
        local_logits=Table(torch.full((200, 200), float(version)), {"layers": [*range(200)], "heads": [*range(200)]})
    ).save(path)


def save_picture(path, version):
    write(empty_figure(10.0, 10.0, f"version {version} " * 20), path)


def save_video(path, version):
    write_video(path, torch.rand(8, 160, 160, 3, generator=torch.Generator().manual_seed(version)))


SAVED = {
    "mine.json": save_profile,
    "mine.safetensors": save_measurements,
    "mine.png": save_picture,
    "mine.mp4": save_video,
}
EACH = pytest.mark.parametrize("name", list(SAVED))


@contextlib.contextmanager
def small_files():
    """No file of this process can have more than 100 bytes, as on a disk that is nearly full."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 512 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a disk is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    """Leave less than a page."""
    with contextlib.suppress(OSError), (folder / "filling").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def check_refused(path, save):
    """What cannot be written is an error of freeloc, and changes nothing."""
    before = path.read_bytes()
    beside = sorted(path.parent.iterdir())
    with pytest.raises(FreelocError, match=f"cannot write .*{path.name}"):
        save(path, 2)
    assert path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == beside


@EACH
def test_where_files_cannot_grow(tmp_path, name):
    SAVED[name](tmp_path / name, 1)
    with small_files():
        check_refused(tmp_path / name, SAVED[name])
    SAVED[name](tmp_path / name, 2)


@EACH
def test_on_a_full_disk(small_disk, name):
    SAVED[name](small_disk / name, 1)
    fill(small_disk)
    check_refused(small_disk / name, SAVED[name])
    (small_disk / "filling").unlink()
    SAVED[name](small_disk / name, 2)


def test_a_probe_on_a_full_disk_goes_on_when_there_is_room(small_disk):
    model = make_wan()

    def probe(folder):
        return freeloc.probe(
            model, run_of(model, steps=1), Local(), prompts=["a", "b"], folder=folder, profile=make_profile()
        )

    whole = probe(None)
    probe_of = small_disk / "probe"
    fill(small_disk)
    with pytest.raises(FreelocError, match=r"cannot (keep a probe in|write) .*No space left on device"):
        probe(probe_of)
    (small_disk / "filling").unlink()
    assert torch.equal(probe(probe_of).table("local.logits").values, whole.table("local.logits").values)


def test_the_clock_of_a_tuning_on_a_full_disk(small_disk):
    fill(small_disk)
    clock = Clock(1.0, small_disk)
    with pytest.raises(FreelocError, match=r"cannot write .*clock.json: No space left on device"):
        clock.note("a kind", 1.0)
    assert [path.name for path in small_disk.iterdir()] == ["filling"]
    (small_disk / "filling").unlink()
    clock.note("a kind", 1.0)
    assert Clock(1.0, small_disk).spent() >= 0


@pytest.mark.parametrize("kind", list(ERRORS))
@pytest.mark.parametrize("name", ["mine.json", "mine.safetensors"])
def test_an_error_at_any_line_of_saving(tmp_path, name, kind):
    path, save = tmp_path / name, SAVED[name]
    contents = []
    for version in (1, 2):
        save(path, version)
        contents.append(path.read_bytes())
    points = points_of(lambda: save(path, 1), distinct=True)
    assert len(points) > 15
    last = max(point.line for point in points if point.file.endswith("freeloc/files.py"))
    for number, point in enumerate(points):
        save(path, 1)
        error = ERRORS[kind]()
        with pytest.raises(ERRORS[kind]) as caught, Injection(point, error):
            save(path, 2)
        assert caught.value is error
        assert path.read_bytes() in contents, number
        beside = [found for found in tmp_path.iterdir() if found != path]
        if point.line != last or not point.file.endswith("freeloc/files.py"):  # where it would be taken away
            assert not beside
        for found in beside:
            found.unlink()


SCRIPT = """
import json, os, signal, sys
sys.path[:0] = {folders!r}
import torch
torch.set_num_threads(1)
from pathlib import Path
from injection import Injection, points_of
from test_files import SAVED


class Killed(Injection):
    def reached(self, place, function):
        if place == self._point[:2]:
            os.kill(os.getpid(), signal.SIGKILL)


def in_process(action):
    process = os.fork()
    if process == 0:
        try:
            action()
        except BaseException as error:
            print(json.dumps([type(error).__name__, str(error)]), flush=True)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def saved_until(point, path):
    with Killed(point, KeyboardInterrupt()):
        SAVED[path.name](path, 2)


def saved_by_nobody(path):
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    path.read_bytes()
    SAVED[path.name](path, 2)


folder = Path(sys.argv[1])
for name in ("mine.json", "mine.safetensors"):
    path, save, contents, found = folder / name, SAVED[name], [], []
    for version in (1, 2):
        save(path, version)
        contents.append(path.read_bytes())
    for point in points_of(lambda: save(path, 1), distinct=True):
        path.write_bytes(contents[0])
        assert in_process(lambda: saved_until(point, path)) == -signal.SIGKILL
        found.append(contents.index(path.read_bytes()))
    print(json.dumps(found), flush=True)
for name, save in SAVED.items():
    own = folder / ("only-" + name)
    own.mkdir()
    save(own / name, 1)
    before = (own / name).read_bytes()
    own.chmod(0o555)
    in_process(lambda: saved_by_nobody(own / name))
    assert (own / name).read_bytes() == before
    assert list(own.iterdir()) == [own / name]
    own.chmod(0o755)
"""


@pytest.fixture(scope="module")
def printed():
    """What happened in processes that were killed at each line of saving, and in folders that were read-only."""
    if not hasattr(os, "fork"):
        pytest.skip("forks processes")
    folders = [str(Path(__file__).parents[1]), str(Path(__file__).parent), *sys.path]
    with tempfile.TemporaryDirectory() as folder:  # not below pytest's, which others may not enter
        Path(folder).chmod(0o755)
        command = [sys.executable, "-c", SCRIPT.format(folders=folders), folder]
        ran = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("[")]


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1], ids=["profile", "measurements"])
def test_a_process_that_is_killed_at_any_line_of_saving(printed, number):
    found = printed[number]
    assert len(found) > 15
    assert {*found} == {0, 1}  # the old file, and the new one
    assert found == sorted(found)


@pytest.mark.slow
def test_a_folder_that_is_read_only(printed):
    assert len(printed) == 2 + len(SAVED)
    for (error, message), name in zip(printed[2:], SAVED, strict=True):
        assert error in ("ProfileError", "ProbeError", "FreelocError")
        assert "cannot write" in message
        assert name in message
        assert "Permission denied" in message
