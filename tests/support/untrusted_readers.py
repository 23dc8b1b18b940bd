"""Each reader of untrusted input: what it makes of some bytes, and valid examples to start from.

A reader returns "read", or the kind of its refusal. It asserts that a refusal is one clear message.
"""

import contextlib
import importlib.util
import io
import json
import re
import sys
from importlib import metadata
from pathlib import Path

import torch
from conftest import make_profile
from safetensors.torch import save

import freeloc
from freeloc.cli import main
from freeloc.metrics.video import read_video, write_video
from freeloc.probing.cells import Cells
from freeloc.probing.facts import Header, ProbeFacts
from freeloc.probing.sensitivity import Sensitivity
from freeloc.registry import Registry
from freeloc.tuning.clock import Clock
from freeloc.tuning.work import Work
from freeloc.untrusted import printable

LONGEST = 2500
"""The most characters that a message may have."""

MOST_PIXELS = 1_000_000
"""Largest video that is read here."""

PACK = Path(__file__).parents[2] / "docs" / "examples" / "comfyui-freeloc"


def kind_of(message, path=""):
    """A refusal without what differs between inputs of one kind."""
    assert len(message) < LONGEST, message[:200]
    assert all(line.isprintable() for line in message.split("\n")), message
    text = message.replace(str(path), "FILE") if path else message
    text = re.sub(r"(with another|plugin) .*(?=: give| of some could)", r"\1 ...", text)
    text = re.sub(r"'[^']*('|$)|\"[^\"]*(\"|$)", "'...'", text.partition(", found ")[0].partition("did you mean")[0])
    return re.sub(r"0x[0-9a-f]+|\d+", "N", text)[:90]


def refused(call, path=""):
    """ "read", or the kind of the refusal."""
    try:
        call()
    except freeloc.FreelocError as error:
        return kind_of(str(error), path)
    return "read"


def command(*words, path):
    """A command of freeloc: "read", or the kind of its refusal. What it prints must be printable."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([*words, str(path)])
    assert all(line.isprintable() for line in out.getvalue().split("\n")), out.getvalue()
    return "read" if status == 0 else kind_of(err.getvalue().rstrip("\n"), path)


def profile(data, folder):
    path = folder / "bad.json"
    path.write_bytes(data)
    return command("profiles", "show", path=path)


def measurements(data, folder):
    path = folder / "bad.safetensors"
    path.write_bytes(data)
    return refused(lambda: str(Sensitivity.load(path)), path)


def settings(data, folder):
    (folder / "probe.json").write_bytes(data)
    return refused(lambda: Cells(folder, {"seed": 0}), folder)


def clock(data, folder):
    """What a tuning has spent."""
    (folder / "clock.json").write_bytes(data)
    return refused(lambda: Clock(1.0, folder), folder)


def tasks(data, folder):
    """The tasks of a tuning, for its other processes."""
    work = Work(folder / "tuning", {"seed": 0}, lambda task: {}, Clock(1.0))
    (folder / "tuning" / "round.json").write_bytes(data)
    return refused(work._posted, folder)


def gif(data, folder):
    path = folder / "bad.gif"
    path.write_bytes(data)
    return refused(lambda: read_video(path, MOST_PIXELS), path)


def video(data, folder):
    path = folder / "bad.mp4"
    path.write_bytes(data)
    return refused(lambda: read_video(path, MOST_PIXELS), path)


def plugin(data, folder):
    """The metadata of a package: its entry points. What they name is never there to be imported."""
    info = folder / "some-1.dist-info"
    info.mkdir(exist_ok=True)
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: some\nVersion: 1\n")
    info.joinpath("entry_points.txt").write_bytes(re.sub(rb"=[^\n]*", b"=no.such.module", data))
    try:
        points = list(metadata.Distribution.at(info).entry_points)
    except Exception as error:  # Python's own reader: freeloc.registry turns this into one message
        return f"Python: {type(error).__name__}"
    failures = [str(failure) for failure in Registry(points).failures]
    assert len(failures) == len(points)
    return kind_of(failures[0][:LONGEST]) if failures else "read"


def pack():
    """The node pack for ComfyUI, imported from its folder."""
    if "untrusted_pack" not in sys.modules:
        spec = importlib.util.spec_from_file_location("untrusted_pack", PACK / "__init__.py")
        sys.modules["untrusted_pack"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        importlib.import_module("untrusted_pack.long_video")
    return sys.modules["untrusted_pack.loading"], sys.modules["untrusted_pack.long_video"]


def workflow(data, folder):
    """Values of the nodes for ComfyUI: a JSON list of six."""
    try:
        given = json.loads(data)
    except (ValueError, RecursionError):
        return "no JSON"  # ComfyUI refuses it
    chosen, repository, *values = [*(given if isinstance(given, list) else [given]), *[None] * 6][:6]
    loading, long_video = pack()
    if words := loading.problem(chosen, repository):
        return kind_of(words)
    return refused(lambda: long_video.require_values(*values))


def name(data, folder):
    """The name of a profile, other than a repository's, which would need a network."""
    text = data.decode("utf-8", "surrogateescape")
    if freeloc.profile.hub.is_repository(text) or text.startswith("-"):
        return "repository or option"
    return refused(lambda: freeloc.load_profile(text), printable(f"'{text}'"))


READERS = {
    read.__name__: read for read in (profile, measurements, settings, clock, tasks, gif, video, plugin, workflow, name)
}


def seeds():
    """Valid inputs by reader."""
    full = make_profile(
        heads={"1": {"none": [0]}},
        vrpr={"lengths": {"9": {"near_frames": 2, "mid_frames": 3, "mid_group": 2, "far_group": 8}}},
        tsa={"dense_frames": 1, "striped_frames": 3, "stripe": 0.25},
    )
    facts = ProbeFacts(
        profile=full,
        fingerprint="f" * 64,
        latent_frames=[9],
        prompts=["a"],
        seed=0,
        settings={},
        versions={},
        command="a test",
    )
    axes = {"local.change": {"layers": [0, 1, 2, 3], "heads": [0, 1], "steps": [0], "prompts": ["a"]}}
    header = Header(schema_version=1, facts=facts, axes=axes).model_dump_json()
    return {
        "profile": json.dumps(full.model_dump(exclude_none=True, exclude={"policies"})).encode(),
        "measurements": save({"local.change": torch.zeros(4, 2, 1, 1)}, {"freeloc": header}),
        "settings": b'{"seed": 0}',
        "clock": b'{"seconds": 1.5}',
        "tasks": b'{"run": "7-7", "number": 1, "tasks": [["a/1", "loss", {"n": [1]}]], "until": 9.5, "done": false}',
        "gif": _gif(),
        "video": _mp4(),
        "plugin": b"[freeloc]\nmine = my_package\nother = my_package:module\n",
        "workflow": b'["wan2.1", "", "by layer", 81, -1, "auto"]',
        "name": b"wan2.1",
    }


def _gif():
    from PIL import Image

    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("black", "red")]
    file = io.BytesIO()
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:])
    return file.getvalue()


def _mp4():
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write_video(Path(folder) / "a.mp4", torch.full((3, 16, 16, 3), 0.5))
        return (Path(folder) / "a.mp4").read_bytes()
