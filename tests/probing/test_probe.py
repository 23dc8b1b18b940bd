"""probe itself: what it does not change, which runs it refuses, and what it records about the model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_wan, wan_inputs
from small_probe import PROFILE, clips, run_of
from torch import Tensor

import freeloc
from freeloc.errors import ProbeError, ProfileError
from freeloc.metrics import Scorer
from freeloc.probing import Local, Loss, Output, Video
from freeloc.probing.calls import watched
from freeloc.probing.subject import fingerprint


@pytest.fixture(scope="module")
def model() -> Any:
    return make_wan()


def test_local_leaves_the_run_as_it_is(model: Any) -> None:
    run, made = run_of(model), []
    freeloc.probe(model, lambda: made.append(run()), profile=PROFILE)
    assert torch.equal(made[0], run())
    assert not model._forward_pre_hooks
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_a_failing_run_leaves_no_hook(model: Any) -> None:
    def run(prompt: str) -> None:
        model(**wan_inputs(9))
        raise OSError("out of luck")

    for depth in (Local(), Output(steps=(5,)), Video(["contrast"])):
        with pytest.raises(OSError, match="out of luck"):
            freeloc.probe(model, run, depth, profile=PROFILE, prompts=["a", "bb"])
        assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_steps_are_counted_by_timestep(model: Any) -> None:
    found = freeloc.discovery.find_adapter(model)
    with watched([(model, found)]) as steps:
        run_of(model, steps=4)()
    assert steps.number == 3
    every = freeloc.probe(model, run_of(model, steps=5), Local(every=2), profile=PROFILE)
    assert every.table("local.change").axes["steps"] == [0, 2, 4]
    whole = freeloc.probe(model, run_of(model, steps=5), Local(every=1), profile=PROFILE)
    assert torch.equal(every.table("local.logits").at(steps=4).values, whole.table("local.logits").at(steps=4).values)


def test_output_ends_the_run_after_its_last_step(model: Any) -> None:
    calls = []

    def run() -> None:
        for step in range(100):
            calls.append(step)
            model(**wan_inputs(9, batch=1) | {"timestep": torch.tensor([900.0 - step])})

    found = freeloc.probe(model, run, Output(shifts=(3,), steps=(0, 2)), profile=PROFILE)
    assert calls == [0, 1, 2, 3]
    assert found.table("output.change").axes["steps"] == [0, 2]


def test_a_run_shorter_than_the_requested_steps(model: Any) -> None:
    found = freeloc.probe(model, run_of(model, steps=2), Output(shifts=(3,), steps=(0, 1, 7)), profile=PROFILE)
    assert found.table("output.change").axes["steps"] == [0, 1]


def test_videos_from_different_noise_are_refused_at_the_second(model: Any) -> None:
    ran = []

    def run(prompt: str) -> Tensor:
        ran.append(prompt)
        noise = torch.randn(1, 4, 9, 6, 10)
        out = model(**wan_inputs(9, batch=1) | {"hidden_states": noise})[0]
        return out[0, :3].movedim(0, -1).sigmoid()

    with pytest.raises(ProbeError, match="expected every run of a prompt to be the same"):
        freeloc.probe(model, run, Video(["contrast"], shifts=(3,)), profile=PROFILE, prompts=["a", "b"])
    assert ran == ["a", "b", "a"]  # the base of each prompt, and the first that has a layer perturbed


def test_a_compiled_model_is_probed(model: Any) -> None:
    plain = freeloc.probe(model, run_of(model), profile=PROFILE)
    compiled = torch.compile(model)
    found = freeloc.probe(compiled, run_of(compiled), profile=PROFILE)
    for name, table in plain.tables.items():
        assert torch.equal(table.values, found.table(name).values), name


def test_half_precision(model: Any) -> None:
    plain = freeloc.probe(model, run_of(model), profile=PROFILE)
    half = make_wan().to(torch.bfloat16)

    def run() -> None:
        for step in range(3):
            inputs = {
                name: value.bfloat16() if isinstance(value, Tensor) else value
                for name, value in wan_inputs(9, batch=1).items()
            }
            half(**inputs | {"timestep": torch.tensor([900.0 - 100 * step])})

    found = freeloc.probe(half, run, profile=PROFILE)
    first = {"steps": 0}
    for name in ("local.logits", "local.entropy"):
        assert found.table(name).values.isfinite().all()
        assert found.table(name).at(**first).values.shape == plain.table(name).at(**first).values.shape


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (
            {"depth": "deep"},
            "no depth is named 'deep'; .*known: local, loss, output, tune, video; or give a freeloc.probing.Depth",
        ),
        ({"depth": "loss"}, r"requires clips: give freeloc.probing.Loss\(clips\)"),
        ({"prompts": ["a", "a"]}, "expected each prompt once"),
        ({"prompts": "fox"}, r"expected a list of prompts, found one text: give prompts=\['fox'\]"),
        ({"depth": Output(steps=(2, 1))}, "expected denoising steps from 0 on, in order"),
        ({"depth": Video([])}, "expected at least one scorer"),
        ({"depth": Video(["sharpnes"])}, "no scorer is named 'sharpnes'; did you mean sharpness"),
        (
            {"depth": Video(["contrast"]), "prompts": ["a"]},
            "expected at least 2 prompts, for a standard error, found 1",
        ),
        (
            {"depth": Video(["contrast"]), "prompts": ["a", "b"]},
            r"expected run to return one video \(frames, height, width, 3\), found",
        ),
    ],
)
def test_refusals(model: Any, ask: dict[str, Any], words: str) -> None:
    with pytest.raises(freeloc.FreelocError, match=words):
        freeloc.probe(model, run_of(model), **{"profile": PROFILE} | ask)


def test_a_run_that_does_not_call_the_model(model: Any) -> None:
    with pytest.raises(ProbeError, match="expected the run to call WanTransformer3DModel"):
        freeloc.probe(model, lambda: None, profile=PROFILE)
    with pytest.raises(ProbeError, match="expected the run to call WanTransformer3DModel"):
        freeloc.probe(model, lambda: None, Output(), profile=PROFILE)
    with pytest.raises(ProbeError, match="expected the run to call WanTransformer3DModel"):
        freeloc.probe(model, lambda prompt: None, Video(["contrast"]), profile=PROFILE, prompts=["a", "b"])


def test_a_patched_model_is_refused(model: Any) -> None:
    with freeloc.patch(model, PROFILE), pytest.raises(freeloc.errors.PatchError, match="patched already"):
        freeloc.probe(model, run_of(model), profile=PROFILE)


def test_a_profile_of_another_model_is_refused(model: Any) -> None:
    with pytest.raises(ProfileError, match="does not fit this model"):
        freeloc.probe(model, run_of(model), profile="wan2.1")


@pytest.mark.parametrize("depth", [Local(), Output(steps=(0,)), Loss(clips(4)), Video(["contrast"])])
def test_a_run_of_the_trained_length_is_refused_at_once(model: Any, depth: Any) -> None:
    run, ran = run_of(model, frames=4), []

    def video(prompt: str) -> Tensor:
        ran.append(prompt)
        return run(prompt)[0, :3].movedim(0, -1).sigmoid()

    words = "expected a run longer than the trained 4 latent frames, found 4: .* Run it with 5 latent frames or more"
    with pytest.raises(ProbeError, match=words):
        freeloc.probe(model, video, depth, profile=PROFILE, prompts=["a", "bb"])
    assert ran == ["a"]


def test_fingerprints_of_different_weights_differ(model: Any) -> None:
    assert fingerprint(model) == fingerprint(make_wan())
    assert fingerprint(model) != fingerprint(make_wan(seed=1))


def test_offloaded_weights_have_the_same_fingerprint(model: Any) -> None:
    import accelerate

    for seed in (0, 1):
        offloaded = make_wan(seed=seed)
        expected = fingerprint(offloaded)
        accelerate.cpu_offload(offloaded, execution_device="cpu")
        assert offloaded.blocks[0].attn1.to_q.weight.is_meta
        assert offloaded.scale_shift_table.is_meta
        assert fingerprint(offloaded) == expected
    assert freeloc.probe(offloaded, run_of(offloaded), profile=PROFILE).facts.fingerprint == expected
    with pytest.raises(ProbeError, match=r"expected a model with its weights loaded, found .* on the device 'meta'"):
        fingerprint(make_wan().to("meta"))


def test_the_page_on_depths_lists_every_table(model: Any) -> None:
    page = (Path(__file__).parents[2] / "docs" / "probe-your-model" / "depths.md").read_text(encoding="utf-8")
    loss = Loss(clips(), levels=(0.5,), compared=(("none", "tsa"),), heads=True)
    judge = Scorer("sum", lambda video, prompt: float(video.sum()))

    def run(prompt: str) -> Tensor:
        return run_of(model, steps=1)(prompt)[0, :3].movedim(0, -1).sigmoid()

    for depth in (Local(), Output(shifts=(3,), steps=(0,), heads=True), loss, Video([judge], shifts=(3,))):
        for name in freeloc.probe(model, run, depth, profile=PROFILE, prompts=["a", "bb"]).tables:
            assert name.endswith(" error") or f"`{name}`" in page
