"""A model built so that it is known what each layer depends on: every probe depth finds it."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import make_profile, make_wan, wan_inputs
from torch import Tensor

import freeloc
from freeloc.metrics import Scorer
from freeloc.probing import Loss, Output, Rule, Sensitivity, Video
from freeloc.probing.depths.loss import COMPARED

TEMPORAL = 8  # of 24 channels per head
FRAMES = 12
ANY, UNIFORM, LOCAL, BLIND = range(4)
"""Layers: random attention; uniform; to tokens of its own frame only; random, but blind to temporal positions."""


@pytest.fixture(scope="module")
def built() -> Any:
    model = make_wan()
    temporal = torch.arange(48) % 24 < TEMPORAL
    for layer, block in enumerate(model.blocks):
        for projection, norm in ((block.attn1.to_q, block.attn1.norm_q), (block.attn1.to_k, block.attn1.norm_k)):
            if layer == UNIFORM:
                norm.weight.zero_()
            if layer == BLIND:
                norm.weight[temporal] = 0
            if layer == LOCAL:
                projection.weight.zero_()
                projection.bias.copy_(temporal.float())
                norm.weight.fill_(12)  # logits fall by about 90 from one frame to the next
        block.attn1.to_out[0].weight.mul_(20)  # the output of attention matters
    return model


def run_of(model: Any, frames: int = FRAMES) -> Callable[..., Tensor]:
    """Two denoising steps with guidance, two calls each, and the last output as a video."""

    def run(prompt: str = "a") -> Tensor:
        inputs = wan_inputs(frames, batch=1)
        generator = torch.Generator().manual_seed(len(prompt))
        latents = torch.randn(inputs["hidden_states"].shape, generator=generator)
        for time in (900.0, 500.0):
            for _ in range(2):
                out = model(**inputs | {"hidden_states": latents, "timestep": torch.tensor([time])})[0]
            latents = latents - 0.4 * out
        return latents[0, :3].movedim(0, -1).sigmoid()

    return run


def energy(video: Tensor, prompt: str) -> float:
    return float(video.double().square().sum())


PROFILE = make_profile({"vrpr": [0, 1, 2, 3]})


def sensitive(values: Tensor, above: float) -> list[int]:
    return (values.abs() > above).nonzero().flatten().tolist()


@pytest.fixture(scope="module")
def local(built: Any) -> Sensitivity:
    return freeloc.probe(built, run_of(built), profile=PROFILE, prompts=["a", "bb"])


def test_local(local: Sensitivity) -> None:
    found = local.summary("local")
    assert sensitive(found.position, 1e-6) == [ANY, LOCAL]
    assert sensitive(found.context, 1e-6) == [ANY, UNIFORM, BLIND]
    logits = local.table("local.logits")
    assert logits.axes == {
        "layers": [0, 1, 2, 3],
        "heads": [0, 1],
        "shifts": [-6, -3, 3, 6],
        "steps": [0, 1],
        "prompts": ["a", "bb"],
    }
    assert local.facts.latent_frames == [FRAMES]
    tokens = FRAMES * 15
    entropy, windowed = (local.table(f"local.{name}").over("layers").values for name in ("entropy", "windowed"))
    assert entropy[UNIFORM] == pytest.approx(math.log(tokens))
    assert windowed[UNIFORM] == pytest.approx(math.log(4 * 15))
    assert local.table("local.distance").over("layers").values[LOCAL] < 1e-6
    beyond = local.table("local.beyond").over("layers").values
    frame = torch.arange(FRAMES)
    assert beyond[UNIFORM] == pytest.approx(float(((frame[:, None] - frame).abs() > 3).double().mean()), abs=1e-6)


def test_output(built: Any) -> None:
    found = freeloc.probe(built, run_of(built), Output(steps=(0, 1)), profile=PROFILE)
    assert sensitive(found.summary("output").position, 1e-6) == [ANY, LOCAL]
    assert sensitive(found.summary("output").context, 1e-6) == [ANY, UNIFORM, BLIND]
    assert found.table("output.change").axes["perturbations"] == ["-6", "-3", "+3", "+6", "window"]
    assert found.table("output.change").axes["steps"] == [0, 1]


def test_output_by_heads(built: Any) -> None:
    whole, heads = (
        freeloc.probe(built, run_of(built), Output(shifts=(3,), steps=(0,), heads=by), profile=PROFILE)
        for by in (False, True)
    )
    by_head = heads.table("output.head change").over("layers", "heads", "perturbations").values
    assert by_head.shape == (4, 2, 2)
    zero = whole.table("output.change").over("layers", "perturbations").values < 1e-6
    assert torch.equal((by_head < 1e-6).all(dim=1), zero)
    assert not torch.allclose(by_head[ANY, 0], by_head[ANY, 1])


def clips() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return list(torch.randn(3, 4, FRAMES, 6, 10, generator=generator))


@pytest.mark.parametrize("heads", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_loss(built: Any, heads: bool) -> None:
    levels = (0.4,) if heads else (0.4, 0.9)  # each head costs as much as a layer
    found = freeloc.probe(built, run_of(built), Loss(clips(), levels=levels, heads=heads), profile=PROFILE)
    summary = found.summary("loss", heads)
    position, context = (values.view(4, -1).abs().amax(dim=1) for values in (summary.position, summary.context))
    assert sensitive(position, 1e-7) == [ANY]  # a layer that attends only to its own frame needs no other positions
    assert sensitive(context, 1e-7) == [ANY, UNIFORM, BLIND]
    table = found.table("loss.head value" if heads else "loss.value")
    measured = table.values.isfinite().flatten(2).all(dim=2)
    rests, names = table.axes["rest"], table.axes["policies"]
    assert {(rests[i], names[j]) for i, j in measured.nonzero().tolist()} == {("vrpr", "vrpr"), *COMPARED}
    assert measured.all()  # a choice is made from all that is measured, and all that it reads is measured
    found.to_profile(depth="loss", heads=heads)


@pytest.mark.slow
def test_loss_is_the_mean_squared_error_of_the_velocity(built: Any) -> None:
    policies = ("none", "vrpr", "tsa", "vrpr+tsa")
    pairs = [("vrpr", "tsa"), *((policy, policies[index - 1]) for index, policy in enumerate(policies))]
    depth = Loss(clips(), levels=(0.4,), compared=pairs)
    found = freeloc.probe(built, run_of(built), depth, profile=PROFILE, seed=3)
    table = found.table("loss.value")
    clean = clips()[1][None]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(3 + 1_000_003 + 400))
    inputs = wan_inputs(FRAMES, batch=1) | {
        "hidden_states": 0.6 * clean + 0.4 * noise,
        "timestep": torch.tensor([400.0]),
    }
    for policy in policies:
        with freeloc.patch(built, PROFILE.model_copy(update={"layers": {policy: [0, 1, 2, 3]}})):
            expected = (built(**inputs)[0] - (noise - clean)).square().mean()
        own = table.at(rest=policy, policies=policy, layers=2, levels=0.4, clips="001").values
        assert float(own) == pytest.approx(float(expected), rel=1e-5)
    layers = {"vrpr": [0, 2, 3], "tsa": [1]}
    with freeloc.patch(built, PROFILE.model_copy(update={"layers": layers})):
        expected = (built(**inputs)[0] - (noise - clean)).square().mean()
    own = table.at(rest="vrpr", policies="tsa", layers=1, levels=0.4, clips="001").values
    assert float(own) == pytest.approx(float(expected), rel=1e-5)


def test_video(built: Any) -> None:
    judge = Scorer("energy", energy, higher_is_better=False)
    found = freeloc.probe(
        built, run_of(built), Video([judge, "contrast"], shifts=(3, 6)), profile=PROFILE, prompts=["a", "bb"]
    )
    base, score = found.table("video.base"), found.table("video.score")
    video = run_of(built)("bb")
    assert float(base.at(scorers="energy", prompts="bb").values) == pytest.approx(-energy(video, ""), rel=1e-6)
    drop = base.values[:, None, None] - score.values  # (scorers, layers, perturbations, prompts)
    for scorer in range(2):
        assert sensitive(drop[scorer, :, :2].abs().amax(dim=(1, 2)), 1e-5) == [ANY, LOCAL]
        assert sensitive(drop[scorer, :, 2].abs().amax(dim=1), 1e-5) == [ANY, UNIFORM, BLIND]


def test_the_chosen_profile(local: Sensitivity) -> None:
    profile = local.to_profile()
    assert [profile.policy(layer) for layer in range(4)] == ["vrpr", "none", "vrpr", "none"]
    assert profile.provenance.kind == "probed"
    assert "position=0.1" in profile.provenance.notes
    strict = local.to_profile(rule=Rule(position=1e9))
    assert strict.layers == {"none": [0, 1, 2, 3]}
    by_head = local.to_profile(heads=True)
    assert by_head.layers == profile.layers
    assert by_head.heads == {}
