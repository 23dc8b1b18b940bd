"""Every probe depth on every installed example: probing needs nothing beyond the adapter."""

from typing import Any

import hunyuan_double
import opensora_double
import pytest
import torch
import wan_double
from marks import slow_unless
from subjects import QUICK
from torch import Tensor

import freeloc
from freeloc.adapter.example import Example
from freeloc.probing import Loss, Output, Video, flow
from freeloc.probing.calls import TIMES
from freeloc.profile.matching import default_profile
from freeloc.registry import registry

FRAMES, TRAINED = 8, 3
DOUBLES = [*wan_double.EXAMPLES, *hunyuan_double.EXAMPLES, *opensora_double.EXAMPLES]
EXAMPLES = [*(example for _, _, example in registry().examples.things()), *DOUBLES]

RETURN_TOKENS = (
    *("wan-original", "wan-original-vace", "wan-original-animate"),
    *("hunyuan-video-original", "open-sora-1.2"),
)
"""Doubles that stop before tokens become a video again."""


@pytest.mark.parametrize("example", [slow_unless(each.label in QUICK, each, name=each.label) for each in EXAMPLES])
def test_every_depth(example: Example) -> None:
    model, inputs = example.model(), example.inputs(FRAMES, 2, 3, 1)
    adapter = freeloc.discovery.find_adapter(model)
    profile = default_profile(model, "vrpr+tsa", trained_latent_frames=TRAINED)

    def run(prompt: str = "") -> Tensor:
        with torch.no_grad():
            model(**inputs)
        return torch.rand(4, 16, 16, 3, generator=torch.Generator().manual_seed(0))

    def probe(depth: Any = "local", prompts: tuple[str, ...] = ()) -> freeloc.probing.Sensitivity:
        return freeloc.probe(model, run, depth, profile=profile, prompts=prompts)

    local = probe().summary("local")
    has_rope = adapter.rope_of(model) is not None
    assert local.position.isfinite().all()
    assert bool((local.position > 0).all()) == has_rope
    assert (local.context > 0).all()

    found = probe(Output(shifts=(2,), steps=(0,))).summary("output")
    assert found.context.isfinite().all()
    if has_rope:
        assert (found.position > 0).sum() >= len(found.position) - 1  # the last block of some models ends in text alone

    given = inputs[example.video]
    sample = given[0]
    if example.label == "wan-animate":  # given a condition beside the latents
        sample = sample[: model.config.out_channels]
    compared = (("none", "tsa"),) if has_rope else None  # which is all that can be compared
    clips = torch.stack([sample.float(), -sample.float()])
    found = probe()
    if example.label not in RETURN_TOKENS:
        message = next(inputs[name] for name in TIMES if name in inputs)
        objective = flow(timesteps=1) if message.max() <= 1 else None
        loss = probe(Loss(clips, levels=(0.5,), compared=compared, argument=example.video, objective=objective))
        for table in ("loss.value", "loss.moving"):
            values = loss.table(table).at(rest="none")
            none, tsa = (values.at(policies=policy).values[:, 0] for policy in ("none", "tsa"))
            assert none.isfinite().all()
            assert tsa.isfinite().all()
            assert not torch.equal(none, tsa)
        found = loss.merge(found)

    video = probe(Video(["contrast"], shifts=(2,)), ("a", "b"))
    assert video.table("video.score").values.isfinite().all()
    for depth in found.depths:
        chosen = found.to_profile(depth=depth)
        by_positions = {"none", "vrpr"} if has_rope else {"none"}
        assert set(chosen.layers) <= ({"none", "tsa"} if depth == "loss" else by_positions)
        with freeloc.patch(model, chosen, adapter=adapter):
            run()


def test_a_flow_map_is_evaluated_for_its_velocity() -> None:
    example = next(example for example in EXAMPLES if example.label == "anyflow")
    model, inputs = example.model(), example.inputs(FRAMES, 2, 3, 1)
    clean = inputs["hidden_states"]
    loss = Loss([clean[0], -clean[0]], levels=(0.3,), compared=(("none", "tsa"),))
    profile = default_profile(model, "vrpr+tsa", trained_latent_frames=TRAINED)
    found = freeloc.probe(model, lambda: model(**inputs), loss, profile=profile).table("loss.value")
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(300))
    times = torch.full_like(inputs["timestep"], 300.0)
    given = inputs | {"hidden_states": 0.7 * clean + 0.3 * noise, "timestep": times, "r_timestep": times}
    with torch.no_grad():
        expected = (model(**given)[0] - (noise - clean)).square().mean()
    own = found.at(rest="none", policies="none", layers=0, levels=0.3, clips="000").values
    assert float(own) == pytest.approx(float(expected), rel=1e-5)
