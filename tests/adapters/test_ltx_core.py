"""The adapter of ltx-core's LTX-2, on a double of it, end to end against dense logits."""

import sys
from dataclasses import replace

import dense
import ltx_core_double
import pytest
import torch
from conftest import make_profile
from families import ltx

import freeloc
from freeloc.errors import LayoutError

SIZE = 2, 3
FACTS = ltx.facts(dense.interleaved(20), ltx.middles, 0.5, torch.float64, ("pe",), 24, 24)


@pytest.fixture(autouse=True)
def double():
    names = ltx_core_double.install()
    yield
    for name in names:
        del sys.modules[name]


def profile_of(policy):
    profile = make_profile({policy: [0, 1, 2, 3]}, adapter="ltx-2")
    return profile.model_copy(update={"model": profile.model.model_copy(update={"head_dim": 20})})


def run(model, frames, perturbed=False, **changes):
    video = replace(ltx_core_double.inputs(frames, *SIZE, 2)["video"], **changes)
    with torch.no_grad():
        return model(video, perturbed)[0]


@pytest.mark.parametrize("policy", ["vrpr", "tsa", "vrpr+tsa"])
def test_equals_the_oracle(policy):
    model, profile = ltx_core_double.model(), profile_of(policy)
    assert freeloc.discovery.find_adapter(model).name == "ltx-core"
    before = run(model, 12)
    with dense.oracle(model, FACTS, lambda layer, frames: freeloc.frame_plan(profile, layer, 12), 12, *SIZE):
        oracle = run(model, 12)
    with freeloc.patch(model, profile):
        found, short = run(model, 12), run(model, 4)
    assert (found - oracle).abs().max() <= 2e-5
    assert (found - before).abs().max() > 1e-3
    assert torch.equal(short, run(model, 4))
    assert torch.equal(run(model, 12), before)


def test_the_frame_rate_counts():
    """At half the rate, frames are twice as far apart, so that the trained 4 of them are too long already."""
    places = ltx_core_double.positions(4, *SIZE, rate=12).expand(2, -1, -1, -1)
    with freeloc.patch(model := ltx_core_double.model(), profile_of("vrpr")) as patch:
        run(model, 4, positions=places)
    assert patch.report().corrected_calls == 4
    assert "latent frames are 2 times as far apart as in training" in str(patch.report())


def test_perturbed_layers_have_nothing_to_correct():
    with freeloc.patch(model := ltx_core_double.model(), profile_of("vrpr")) as patch:
        run(model, 12, perturbed=True)
    assert patch.report().corrected_calls == 0
    assert "which computed no attention (all_perturbed)" in str(patch.report())


def test_what_is_refused():
    places = ltx_core_double.positions(12, *SIZE).expand(2, -1, -1, -1)
    added = torch.cat([places[:, :, :-6], places[:, :, :6]], dim=2)
    model = ltx_core_double.model()
    with freeloc.patch(model, profile_of("vrpr")):
        with pytest.raises(LayoutError, match=r"is not a grid of latent frames, rows and columns"):
            run(model, 12, positions=added)
        with pytest.raises(LayoutError, match=r"made no call of \.attention_function"):
            run(model, 12, attention_mask=torch.ones(2, 1, 72, 72, dtype=torch.bool))
