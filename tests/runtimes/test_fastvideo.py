"""FastVideo's own Wan with its SDPA backend: in one process, and in two that exchange tokens for heads.

tests/runtimes/fastvideo.sh installs it. Packages without use here are stood in for; nothing of the model is.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import fastvideo_source as source
import pytest
import torch
from conftest import make_profile
from fastvideo_source import inputs, run
from oracle import wan_logits
from original_wan import TOLERANCE, difference

import freeloc
from freeloc.testing import Example, run_checks

pytestmark = [pytest.mark.runtimes, pytest.mark.filterwarnings("ignore")]
if importlib.util.find_spec("fastvideo") is None:
    pytest.skip("pip install --no-deps fastvideo==0.2.1, or tests/runtimes/fastvideo.sh", allow_module_level=True)

SIZE = 2, 3


@pytest.fixture(scope="module", autouse=True)
def _loaded():
    source.load()


def expected(model, profile, given, monkeypatch):
    """Dense logits: queries and keys are not rotated, since its tables of positions say 0 everywhere."""
    import fastvideo.attention.layer as layer_file

    layers, running = {id(block.attn1.attn_impl): layer for layer, block in enumerate(model.blocks)}, []
    impl = type(model.blocks[0].attn1.attn_impl)

    def forward(self, query, key, value, metadata):
        if id(self) not in layers:
            return own(self, query, key, value, metadata)
        running.append(layers[id(self)])
        plan = freeloc.frame_plan(profile, layers[id(self)], query.shape[1] // (SIZE[0] * SIZE[1]))
        logits = wan_logits(query, key, plan, *SIZE).masked_fill(~plan.token_mask(SIZE[0] * SIZE[1]), float("-inf"))
        return (logits.softmax(dim=-1) @ value.transpose(1, 2).double()).transpose(1, 2).to(query.dtype)

    own = impl.forward
    with monkeypatch.context() as patch:
        patch.setattr(impl, "forward", forward)
        patch.setattr(layer_file, "_apply_rotary_emb", lambda tensor, *tables, **options: tensor)
        found = run(model, given)
    assert running == [0, 1, 2, 3]
    return found


def test_conformance():
    results = run_checks(Example("fastvideo-wan", source.model, inputs, run=run))
    assert [f"{result.check}: {result.problem or result.blocked}" for result in results if not result.met] == []


@pytest.mark.parametrize("policy", ["vrpr", "tsa", "vrpr+tsa", "mixed"])
def test_equals_the_oracle(policy, monkeypatch, record_property):
    model, given = source.model(), inputs(12, *SIZE)
    profile = make_profile(None if policy == "mixed" else {policy: [0, 1, 2, 3]})
    assert freeloc.discovery.find_adapter(model).name == "fastvideo-wan"
    before, oracle = run(model, given), expected(model, profile, given, monkeypatch)
    with freeloc.patch(model, profile):
        found = run(model, given)
        short = run(model, inputs(4, *SIZE))
    record_property("difference", difference(found, oracle))
    assert difference(found, oracle) <= TOLERANCE
    assert difference(before, oracle) > 1e-3
    assert torch.equal(short, run(model, inputs(4, *SIZE)))
    assert torch.equal(run(model, given), before)


@pytest.fixture(scope="module")
def measured():
    """What two processes found."""
    model = source.model()
    one = {}
    for name, given in {"even": inputs(12, 2, 3), "uneven": inputs(9, 3, 5), "batch": inputs(12, 2, 3, 2)}.items():
        before = run(model, given)
        with freeloc.patch(model, make_profile()):
            one[name] = before, run(model, given), given
    with tempfile.TemporaryDirectory() as folder:
        torch.save(one, Path(folder) / "one.pt")
        here = Path(__file__).parent
        paths = [str(here), str(here.parent), str(here.parent / "support"), os.environ.get("PYTHONPATH", "")]
        own = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_PORT": "29714"}
        command = [sys.executable, str(here / "fastvideo_processes.py"), folder]
        processes = [subprocess.Popen(command, env=os.environ | own | {"RANK": str(rank)}) for rank in range(2)]
        assert [process.wait(300) for process in processes] == [0, 0]
        return json.loads((Path(folder) / "found.json").read_text())


@pytest.mark.parametrize("case", ["even", "uneven", "batch"])
def test_two_processes_compute_what_one_does(measured, case):
    assert measured[case]["alone"] <= TOLERANCE
    assert measured[case]["difference"] <= TOLERANCE
    assert measured[case]["correction"] > 1e-2
    assert "this process computes some of 2 heads" in measured["report"]


def test_two_processes_at_the_trained_length(measured):
    assert measured["short"] == 0
