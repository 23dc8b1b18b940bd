"""An error at any line of probe and tune: the model is as before, the files are whole, and the next run goes on."""

import functools
import json

import constructed
import pytest
import torch
from conftest import make_wan
from constructed import Constructed, clips
from injection import ERRORS, every, inject, points_of, state_of
from small_probe import PROFILE, run_of

import freeloc
from freeloc.probing import Local, Output
from freeloc.probing.cells import LARGEST_CELL
from freeloc.probing.table import read_tensors
from freeloc.tuning import Candidate

PROBE = ("probing", "files.py", "patching.py", "interception/hooks.py")
TUNE = (*PROBE, "tuning")
REMOVAL = ("under", "remove", "take_off")
"""Functions that take hooks off. After an error in these, `unpatch` does it."""

DEPTHS = {"local": Local(), "output": Output(shifts=(3,), steps=(0,))}
EACH = pytest.mark.parametrize(
    "kind", ["interrupt", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("error", "no memory"))]
)


def probe(model, depth, folder=None):
    return freeloc.probe(model, run_of(model, steps=1), DEPTHS[depth], prompts=["a"], profile=PROFILE, folder=folder)


def tune(model, folder=None):
    some = [Candidate("none"), Candidate("vrpr")]
    return freeloc.tune(
        model, clips(4), constructed.run_of(model), profile=constructed.PROFILE, adapter=constructed.ADAPTER,
        candidates=some, alternatives=[], times=(2,), levels=(0.4,), videos=0, places=0.0, folder=folder,
    )  # fmt: skip


def check_whole(folder):
    """Whatever file is there can be read. What an interrupt may leave beside them has another ending."""
    for path in folder.rglob("*.*"):
        if path.suffix == ".safetensors":
            read_tensors(path, LARGEST_CELL)
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        else:
            assert path.suffix in (".md", ".png", ".part"), path


def check_each(model, run, points, kind, folder, same):
    """For each point: the error comes out, the model is as before, and a second run finds what an unbroken one does."""
    before, plain = state_of(model), run(folder / "plain")
    for number, point in enumerate(points):
        where = folder / str(number)
        inject(point, ERRORS[kind](), functools.partial(run, where))
        if kind == "interrupt" or point.function in REMOVAL:  # PyTorch calls no hook after an interrupt
            freeloc.unpatch(model)
        assert state_of(model) == before
        check_whole(where)
        assert same(run(where), plain)
        assert state_of(model) == before


def same_tables(one, other):
    assert one.tables.keys() == other.tables.keys()
    return all(torch.equal(one.table(name).values, other.table(name).values) for name in one.tables)


@every(151, 61)
@pytest.mark.parametrize("depth", list(DEPTHS))
@EACH
def test_while_probing(tmp_path, depth, kind, every):
    model = make_wan()
    probe(model, depth)  # the first one in a process also asks plugins for depths
    points = points_of(lambda: probe(model, depth, tmp_path / "first"), *PROBE, distinct=True)
    assert len(points) > 300
    check_each(model, lambda folder: probe(model, depth, folder), points[::every], kind, tmp_path, same_tables)


@every(401, 211)
@EACH
def test_while_tuning(tmp_path, kind, every):
    model = Constructed()
    tune(model)  # as above
    points = points_of(lambda: tune(model, tmp_path / "first"), *TUNE, distinct=True)
    assert len(points) > 800

    def same(one, other):
        return one.profile.layers == other.profile.layers and same_tables(one.measurements, other.measurements)

    check_each(model, lambda folder: tune(model, folder), points[::every], kind, tmp_path, same)
