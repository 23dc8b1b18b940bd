"""Untrusted input of every kind is read, or refused in one message. tests/fuzz.py tries many more."""

import ast
import importlib
import os
import struct
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from conftest import make_profile
from hostile import damaged, mutated
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from untrusted_readers import MOST_PIXELS, READERS, pack, seeds

import freeloc
from freeloc.cli import main, profile_pictures
from freeloc.cli.common import from_here
from freeloc.errors import FreelocError, ProbeError, RegistryError
from freeloc.files import replacing
from freeloc.metrics import video as videos
from freeloc.metrics.video import read_video, write_video
from freeloc.probing import table
from freeloc.profile.hub import LARGEST_MEASUREMENTS
from freeloc.registry import Registry, registry
from freeloc.tiny.scores import write_csv

ROOT = Path(__file__).parent.parent
CORPUS = Path(__file__).parent / "corpus"
QUICK = settings(max_examples=60, deadline=None)
SEEDS = seeds()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("untrusted")


@pytest.mark.parametrize("name", READERS)
def test_the_corpus_is_read_or_refused(name, folder):
    assert name == "plugin" or READERS[name](SEEDS[name], folder) == "read"
    found = [READERS[name](path.read_bytes(), folder) for path in sorted((CORPUS / name).glob("*"))]
    assert set(found) - {"read"}


@QUICK
@given(data=damaged(SEEDS["gif"]))
def test_any_bytes_are_a_gif_or_refused(data, folder):
    READERS["gif"](data, folder)


@QUICK
@given(data=damaged(SEEDS["plugin"]))
def test_any_metadata_of_a_plugin_is_read_or_refused(data, folder):
    READERS["plugin"](data, folder)


@QUICK
@given(text=mutated(SEEDS["workflow"].decode()))
def test_any_values_of_a_workflow_are_used_or_refused(text, folder):
    READERS["workflow"](text.encode(), folder)


@QUICK
@given(data=mutated('{"seed": 0, "more": {"a": 1}}').map(str.encode) | damaged(SEEDS["settings"]))
def test_any_settings_of_a_probe_are_read_or_refused(data, folder):
    READERS["settings"](data, folder)


@QUICK
@given(text=st.text() | st.binary().map(lambda data: data.decode("utf-8", "surrogateescape")))
def test_any_name_of_a_profile_is_refused_or_known(text, folder):
    READERS["name"](text.encode("utf-8", "surrogateescape"), folder)


def one_line(capsys, status):
    """The message of a command that failed: one line."""
    err = capsys.readouterr().err
    assert status == 2
    assert err.startswith("freeloc: ")
    assert err.count("\n") == 1
    return err


def sparse(path, size):
    with path.open("wb") as file:
        os.truncate(file.fileno(), size)


def test_a_huge_file_beside_a_profile_is_not_read(tmp_path, capsys):
    make_profile(evidence={"sha256": "0" * 64, "rule": "a rule"}).save(tmp_path / "mine.json")
    sparse(tmp_path / "mine.safetensors", LARGEST_MEASUREMENTS + 1)
    words = one_line(capsys, main(["profiles", "show", str(tmp_path / "mine.json")]))
    assert "mine.safetensors: expected a file of at most 250000000 bytes, found 250000001 bytes" in words


def test_huge_measurements_are_not_read(tmp_path, monkeypatch):
    path = tmp_path / "large.safetensors"
    sparse(path, LARGEST_MEASUREMENTS + 1)
    with pytest.raises(ProbeError, match="expected a file of at most 250000000 bytes, found 250000001"):
        freeloc.probing.Sensitivity.load(path)
    path.write_bytes((50_000_000).to_bytes(8, "little"))
    with pytest.raises(ProbeError, match="expected a header of at most 40000000 bytes, found 50000000"):
        freeloc.probing.Sensitivity.load(path)
    table.write_tensors(path, {"a": torch.zeros(1), "b": torch.zeros(1)}, {}, 1000)
    monkeypatch.setattr(table, "MOST_TENSORS", 1)
    with pytest.raises(ProbeError, match="expected at most 1 tensors, found 2"):
        table.read_tensors(path, 1000)
    with pytest.raises(ProbeError, match=r"cannot write .*expected at most 100 bytes, found \d+"):
        table.write_tensors(path, {"a": torch.zeros(99)}, {}, 100)


@pytest.mark.parametrize("name", ["layers", "heads"])
def test_profiles_of_huge_models_are_not_compared_or_drawn(name, tmp_path, capsys):
    content = {"layers": {"vrpr": list(range(1001 if name == "layers" else 4))}}
    sizes = {"name": "a", "layers": 4, "heads": 2, "head_dim": 8, "trained_latent_frames": 3, name: 1001}
    path = tmp_path / "mine.json"
    make_profile(model=sizes, **content).save(path)
    assert f"expected at most 1000 {name} to compare, found 1001" in one_line(
        capsys, main(["profiles", "diff", "wan2.1", str(path)])
    )
    words = one_line(capsys, main(["profiles", "plot", str(path), "--output", str(tmp_path)]))
    assert f"expected at most 1000 {name} to draw, found 1001" in words


def test_many_pictures_are_not_drawn(tmp_path, monkeypatch, capsys):
    make_profile().save(tmp_path / "mine.json")
    monkeypatch.setattr(profile_pictures, "MOST_PICTURES", 1)
    words = one_line(capsys, main(["profiles", "plot", str(tmp_path / "mine.json"), "--output", str(tmp_path)]))
    assert "expected at most 1 pictures, of policies and of tables, found " in words
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json"]


def test_no_symbolic_link_is_followed_when_a_file_is_written(tmp_path, monkeypatch):
    other, link = tmp_path / "other", tmp_path / "mine.py"
    other.write_text("kept")
    link.symlink_to(other)
    with replacing(link) as part:
        part.write_text("new")
    assert (other.read_text(), link.read_text(), link.is_symlink()) == ("kept", "new", False)
    monkeypatch.setattr("freeloc.files.secrets.token_hex", lambda size: "known")
    (tmp_path / ".mine.py.known.part").symlink_to(other)
    with pytest.raises(FileExistsError), replacing(link):
        pass
    (tmp_path / "table.part").symlink_to(other)
    monkeypatch.undo()
    write_csv(tmp_path / "table.csv", [{"clip": 1}])
    assert (other.read_text(), (tmp_path / "table.csv").read_text()) == ("kept", "clip\n1\n")


def test_a_file_of_the_current_folder_takes_no_package_s_place(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("this.py").write_text("raise AssertionError")  # the name of a module of Python that nothing imports
    Path("only_here.py").write_text("VALUE = 3")
    Path("folder_here").mkdir()
    Path("folder_here", "inside.py").write_text("VALUE = 4")
    with from_here(), pytest.MonkeyPatch.context() as own:
        own.delitem(sys.modules, "this", raising=False)
        assert importlib.util.find_spec("this").origin != str(tmp_path / "this.py")
        assert importlib.import_module("only_here").VALUE == 3
        assert importlib.import_module("folder_here.inside").VALUE == 4
    for name in ("only_here", "folder_here", "folder_here.inside"):
        del sys.modules[name]
    assert capsys.readouterr().err == (
        f"freeloc: running the code of {tmp_path / 'only_here.py'}, in the current folder\n"
        f"freeloc: running the code of {tmp_path / 'folder_here'}, in the current folder\n"
    )
    with pytest.raises(ImportError):
        importlib.import_module("only_here")


def test_that_an_adapter_file_runs_is_said_before(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text("import sys\nprint('runs', file=sys.stderr)\nADAPTER = 3\n")
    assert main(["check-adapter", f"{path}:ADAPTER"]) == 2
    first, second, third = capsys.readouterr().err.splitlines()
    assert (first, second) == (f"freeloc: running the code of {path}", "runs")
    assert third == f"freeloc: expected {path}:ADAPTER to be an Adapter, found int"


def gif(tmp_path, width, height, second=False):
    """A small GIF that declares another size of all of it, or of its second frame."""
    data = bytearray(SEEDS["gif"])
    place = data.rindex(b"\x2c\0\0\0\0") + 5 if second else 6
    data[place : place + 4] = struct.pack("<HH", width, height)
    path = tmp_path / "declared.gif"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("side", [9000, 12_000, 65_535])
def test_pictures_that_declare_a_large_size_are_refused(side, second, tmp_path, capsys):
    words = one_line(capsys, main(["measure", str(gif(tmp_path, side, side, second))]))
    assert "declared.gif is too large: expected at most 5000 frames, 8192 pixels along a side and 500000000" in words
    assert words.endswith("cut the video, or make it smaller\n")


def test_frames_of_different_sizes_are_refused(tmp_path, capsys):
    assert "its frames have different sizes" in one_line(capsys, main(["measure", str(gif(tmp_path, 9, 12, True))]))


@pytest.mark.parametrize("size", [(8, 33), (33, 8), (1, 5)])
def test_very_narrow_frames_are_refused(size, tmp_path, capsys):
    Image.new("RGB", size).save(tmp_path / "a.gif")
    words = one_line(capsys, main(["measure", str(tmp_path / "a.gif")]))
    assert "expected frames of at most 4 times as many pixels along one side as along the other, found " in words
    Image.new("RGB", (8, 32)).save(tmp_path / "a.gif")
    assert read_video(tmp_path / "a.gif").shape == (1, 32, 8, 3)


def test_a_picture_of_another_format_is_no_gif(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.gif", "TIFF")
    assert "expected a GIF, as its name says" in one_line(capsys, main(["measure", str(tmp_path / "a.gif")]))


@pytest.fixture(scope="module")
def small(folder):
    """A real video of 5 frames."""
    path = folder / "real.mp4"
    write_video(path, torch.rand(5, 16, 16, 3))
    return path


def test_a_video_larger_than_allowed_is_refused(small, monkeypatch):
    with pytest.raises(
        FreelocError, match=r"real.mp4 is too large: .* 1000 pixels .*, found 5 frames or more of 16 x 16"
    ):
        read_video(small, most_pixels=1000)
    monkeypatch.setattr(videos, "MOST_FRAMES", 4)
    with pytest.raises(FreelocError, match=r"expected at most 4 frames, .* found 5 frames or more of 16 x 16"):
        read_video(small)


def test_frames_are_counted_whatever_the_file_says():
    limits = videos._Limits("a file", MOST_PIXELS)
    for _ in range(3906):
        limits.count(16, 16)
    with pytest.raises(FreelocError, match="found 3907 frames or more of 16 x 16"):
        limits.count(16, 16)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nreal.mp4\n#EXT-X-ENDLIST\n"),
        ("list.mp4", "ffconcat version 1.0\nfile real.mp4\n"),
    ],
)
def test_a_playlist_opens_no_other_file(name, text, small, capsys):
    path = small.with_name(name)
    path.write_text(text)
    words = one_line(capsys, main(["measure", str(path)]))
    assert "expected an MP4, MOV, MKV, WebM, AVI or MPEG file, or a GIF" in words


@pytest.mark.parametrize("name", ["12:30.mp4", "frame%d.mp4", "concat:real.mp4"])
def test_a_name_is_no_address_and_no_pattern(name, small):
    path = small.with_name(name)
    path.write_bytes(small.read_bytes())
    assert torch.equal(read_video(path), read_video(small))


def test_names_of_files_cannot_control_the_terminal(tmp_path, capsys):
    path = tmp_path / "\x1b[31mred.mp4"
    path.write_bytes(b"no video")
    assert "\x1b" not in one_line(capsys, main(["measure", str(path)]))


@pytest.mark.parametrize("name", ["", "\x1b[31m", "n" * 201, 3], ids=["empty", "escape", "long", "number"])
def test_names_of_a_plugin_s_objects_can_be_shown(name, monkeypatch):
    class Plugin:
        @freeloc.hookimpl
        def freeloc_scorers(self):
            return [freeloc.metrics.Scorer(name, lambda video, prompt: 0.0, source="a test")]

    monkeypatch.setattr(metadata.EntryPoint, "load", lambda self: Plugin())
    found = Registry([metadata.EntryPoint("mine", "no.module", "freeloc")])
    assert "expected names of scorers of 1 to 200 characters that can be printed" in str(found.failures[0])
    assert found.scorers.owners == {}


def test_damaged_metadata_of_packages_is_one_message(monkeypatch):
    def damaged(**_):
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    monkeypatch.setattr(metadata, "entry_points", damaged)
    with pytest.raises(RegistryError, match="Python cannot read the entry points of the installed packages"):
        registry.__wrapped__()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            ("by layer", 10**9, -1, "auto"),
            "expected trained_frames to be a whole number from 0 to 100000, found 1000000000",
        ),
        (("by layer", True, -1, "auto"), "expected trained_frames to be a whole number from 0 to 100000, found True"),
        (("by layer", 0, "2", "auto"), "expected reference_frames to be a whole number from -1 to 1000, found '2'"),
        (("../vrpr", 0, -1, "auto"), r"expected method to be one of by layer, .*, found '\.\./vrpr'"),
        (("by layer", 0, -1, []), r"expected backend to be one of auto, .*, found \[\]"),
    ],
)
def test_values_that_a_workflow_cannot_have_are_refused(values, words):
    with pytest.raises(FreelocError, match=words):
        pack()[1].require_values(*values)


def test_names_in_a_workflow_are_texts():
    assert "expected profile and repository to be texts" in pack()[0].problem(["wan2.1"], "")
    assert "expected profile and repository to be texts" in pack()[0].problem("wan2.1", 3)


def test_nothing_is_unpickled():
    """torch.load reads tensors only: weights_only is its default since torch 2.6, the oldest that is supported."""
    for path in [*ROOT.glob("freeloc/**/*.py"), *ROOT.glob("adapters/**/*.py"), *ROOT.glob("profiles/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not {"pickle", "marshal", "shelve", "dill", "cloudpickle", "yaml"} & set(names), path
            assert not (isinstance(node, ast.keyword) and node.arg in ("weights_only", "allow_pickle")), path
