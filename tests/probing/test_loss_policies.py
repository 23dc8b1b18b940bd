"""Depth ``loss`` among any policies: methods by name, and policies that the probed profile defines."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_profile, make_wan, wan_inputs
from torch import Tensor

import freeloc
from freeloc.errors import ProbeError, ProfileError
from freeloc.pictures import layer_chart
from freeloc.probing import Loss, Objective, Sensitivity, Table
from freeloc.probing.denoising import flow

FRAMES = 9
NARROW = {"method": "tsa", "settings": {"dense_frames": 1, "striped_frames": 1, "stripe": 1.0, "sink_frames": 0}}
PROFILE = make_profile({"vrpr": [0, 1, 2], "narrow": [3]}, policies={"narrow": NARROW}, schema_version=2)
BEST = {"vrpr": [0, 3], "sliding-window": [1], "narrow": [2]}


def clips(count: int = 8) -> Tensor:
    return torch.randn(count, 4, FRAMES, 6, 10, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> Any:
    return make_wan()


def run_of(model: Any) -> Any:
    return lambda: model(**wan_inputs(FRAMES, batch=1) | {"timestep": torch.tensor([1000.0])})


def predicts(model: Any, profile: freeloc.Profile) -> Objective:
    """The objective whose target is the model's output under a profile: no other profile has a lower loss."""
    usual, reference = flow(), copy.deepcopy(model)
    freeloc.patch(reference, profile)

    def target(latents: Tensor, noise: Tensor, level: float) -> Tensor:
        if latents.numel() == 1:  # asked what tells the objective from others
            return noise
        given = {"hidden_states": usual.noisy(latents, noise, level), "timestep": torch.tensor([1000 * level])}
        found: Tensor = reference(**wan_inputs(FRAMES, batch=1) | given)[0]
        return found

    return Objective(usual.signal, usual.noise, target, usual.timestep)


@pytest.fixture(scope="module")
def found(model: Any) -> Sensitivity:
    objective = predicts(model, PROFILE.model_copy(update={"layers": BEST}))
    depth = Loss(clips(), levels=(0.5,), policies=["vrpr", "sliding-window", "narrow"], objective=objective)
    return freeloc.probe(model, run_of(model), depth, profile=PROFILE)


def test_the_best_of_three_policies_is_found_for_every_layer(found: Sensitivity, tmp_path: Path) -> None:
    table = found.table("loss.value")
    assert table.axes["rest"] == ["vrpr"]
    assert table.axes["policies"] == ["vrpr", "sliding-window", "narrow"]
    assert table.values.isfinite().all()
    chosen = found.to_profile(tmp_path / "mine.json")
    assert chosen.layers == BEST
    assert chosen.schema_version == 2
    assert chosen.policies == PROFILE.policies
    assert freeloc.load_profile(tmp_path / "mine.json").layers == BEST
    again = Sensitivity.load(tmp_path / "mine.safetensors")
    assert again.to_profile().layers == BEST


def test_unused_policies_are_not_defined(found: Sensitivity) -> None:
    tables = dict(found.tables)
    values = tables["loss.value"].values.clone()
    values[:, 2] = 9.0
    tables["loss.value"] = Table(values, tables["loss.value"].axes)
    chosen = Sensitivity(tables, found.facts).to_profile()
    assert chosen.layers == {"vrpr": [0, 3], "sliding-window": [1, 2]}
    assert (chosen.policies, chosen.schema_version) == ({}, 2)


def test_what_each_policy_gains_is_printed(found: Sensitivity) -> None:
    gains = found.summary().more
    assert list(gains) == ["sliding-window", "narrow", "sliding-window, moving", "narrow, moving"]
    value = found.table("loss.value").over("policies", "layers").values
    assert torch.allclose(gains["narrow"][0], value[0] - value[2])
    lines = str(found).splitlines()
    assert lines[1].split() == ["layer", *" ".join(gains).split(), "policy"]
    assert [line.split()[-1] for line in lines[2:6]] == ["vrpr", "sliding-window", "narrow", "vrpr"]
    assert [axes.get_ylabel() for axes in found.picture().axes] == list(gains)
    chart = layer_chart(found.to_profile(), found)
    assert [axes.get_ylabel() for axes in chart.axes[:2]] == ["sliding-window", "narrow"]


@pytest.mark.slow
def test_heads_get_their_own(model: Any) -> None:
    best = PROFILE.model_copy(update={"layers": {"vrpr": [0, 1, 2, 3]}, "heads": {"1": {"sliding-window": [1]}}})
    depth = Loss(
        clips(), levels=(0.5,), policies=["vrpr", "sliding-window"], heads=True, objective=predicts(model, best)
    )
    chosen = freeloc.probe(model, run_of(model), depth, profile=PROFILE).to_profile(heads=True)
    assert (chosen.layers, chosen.heads) == (best.layers, best.heads)


def test_the_first_policy_is_what_the_others_have(model: Any) -> None:
    some = Loss(clips(2), levels=(0.5,), policies=["sliding-window", "vrpr", "none"])
    found = freeloc.probe(model, run_of(model), some, profile=PROFILE)
    own = found.table("loss.value").at(rest="sliding-window", policies="vrpr", layers=2, levels=0.5, clips="001")
    clean = clips(2)[1][None]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1_000_003 + 500))
    given = {"hidden_states": 0.5 * (clean + noise), "timestep": torch.tensor([500.0])}
    layers = {"sliding-window": [0, 1, 3], "vrpr": [2]}
    with freeloc.patch(model, PROFILE.model_copy(update={"layers": layers})):
        expected = (model(**wan_inputs(FRAMES, batch=1) | given)[0] - (noise - clean)).square().mean()
    assert float(own.values) == pytest.approx(float(expected), rel=1e-5)
    assert list(found.summary().more) == ["vrpr", "none", "vrpr, moving", "none, moving"]


def test_a_comparison_may_name_any_policy(model: Any) -> None:
    some = Loss(clips(2), levels=(0.5,), compared=[("vrpr", "sliding-window")])
    found = freeloc.probe(model, run_of(model), some, profile=PROFILE).table("loss.value")
    assert (found.axes["rest"], found.axes["policies"]) == (["vrpr"], ["vrpr", "sliding-window"])
    assert found.at(rest="vrpr", policies="sliding-window").values.isfinite().all()


def test_a_policy_name_cannot_escape_the_folder(model: Any, tmp_path: Path) -> None:
    profile = make_profile({"../../a b": [0, 1, 2, 3]}, policies={"../../a b": NARROW}, schema_version=2)
    some = Loss(clips(2), levels=(0.5,), policies=["none", "../../a b"])
    freeloc.probe(model, run_of(model), some, profile=profile, folder=tmp_path / "in" / "here")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["here"]
    assert len([*(tmp_path / "in" / "here").rglob("none/*/0.safetensors")]) == 2


def test_folders_of_earlier_versions_resume(model: Any, tmp_path: Path) -> None:
    some = Loss(clips(2), levels=(0.5,), compared=[("vrpr", "vrpr+tsa")])
    freeloc.probe(model, run_of(model), some, profile=PROFILE, folder=tmp_path)
    assert (tmp_path / "loss" / "loss" / "001" / "vrpr" / "vrpr+tsa" / "3.safetensors").exists()
    assert (tmp_path / "loss" / "loss" / "001" / "vrpr" / "vrpr" / "all.safetensors").exists()


def test_other_settings_of_a_policy_are_another_probe(model: Any, tmp_path: Path) -> None:
    wider = NARROW | {"settings": NARROW["settings"] | {"dense_frames": 2, "striped_frames": 2}}
    some = Loss(clips(2), levels=(0.5,), policies=["vrpr", "narrow"])
    freeloc.probe(model, run_of(model), some, profile=PROFILE, folder=tmp_path)
    other = make_profile({"vrpr": [0, 1, 2], "narrow": [3]}, policies={"narrow": wider}, schema_version=2)
    with pytest.raises(ProbeError, match="holds a probe with another profile"):
        freeloc.probe(model, run_of(model), some, profile=other, folder=tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"policies": ["vrpr"]}, r"expected at least 2 policies, each once, found \['vrpr'\]"),
        ({"policies": ["vrpr", "tsa", "vrpr"]}, "expected at least 2 policies, each once, found"),
        (
            {"policies": ["vrpr", "tsa"], "compared": [("vrpr", "none")]},
            r"two of vrpr, tsa, found \('vrpr', 'none'\)",
        ),
        ({"policies": ["vrpr", "sliding-windw"]}, "did you mean sliding-window"),
        ({"policies": ["vrpr", "freenoise"]}, "policies that require no initial noise of their own, found 'freenoise'"),
    ],
)
def test_policies_that_are_refused(model: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises((ProbeError, ProfileError), match=words):
        freeloc.probe(model, run_of(model), Loss(clips(2), **settings), profile=PROFILE)
