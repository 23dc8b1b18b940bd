"""probe itself: what it leaves alone, how it goes on, how it is shared among processes, what it refuses."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_profile, make_wan, wan_inputs
from torch import Tensor

import freeloc
from freeloc.errors import ProbeError, ProfileError
from freeloc.metrics import Scorer
from freeloc.probing import Local, Loss, Output, ProbeFacts, Rule, Sensitivity, Table, Video, diffusion, flow
from freeloc.probing.calls import watched
from freeloc.probing.denoising import objective_of
from freeloc.probing.subject import fingerprint
from freeloc.profile.schema import POLICIES

PROFILE = make_profile({"vrpr": [0, 1, 2, 3]})


def run_of(model: Any, frames: int = 9, steps: int = 3) -> Callable[..., Tensor]:
    def run(prompt: str = "a") -> Tensor:
        latents = torch.randn(1, 4, frames, 6, 10, generator=torch.Generator().manual_seed(len(prompt)))
        for step in range(steps):
            inputs = wan_inputs(frames, batch=1) | {"timestep": torch.tensor([900.0 - 100 * step])}
            out = model(**inputs | {"hidden_states": latents})[0]
            model(**inputs | {"hidden_states": latents})  # as guidance does
            latents = latents - 0.3 * out
        return latents

    return run


def clips(frames: int = 9, count: int = 2, channels: int = 4) -> Tensor:
    return torch.randn(count, channels, frames, 6, 10, generator=torch.Generator().manual_seed(0))


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


def test_a_short_run_has_the_steps_that_it_has(model: Any) -> None:
    found = freeloc.probe(model, run_of(model, steps=2), Output(shifts=(3,), steps=(0, 1, 7)), profile=PROFILE)
    assert found.table("output.change").axes["steps"] == [0, 1]


def test_an_unseeded_run_is_refused(model: Any, tmp_path: Path) -> None:
    def run() -> None:
        model(**wan_inputs(9, batch=1) | {"hidden_states": torch.randn(1, 4, 9, 6, 10)})

    depth = Output(shifts=(3,), steps=(0,))
    freeloc.probe(model, run, depth, profile=PROFILE, folder=tmp_path)
    for cell in tmp_path.rglob("0/*.safetensors"):
        cell.unlink()
    with pytest.raises(ProbeError, match=r"expected every run of a prompt to be the same.*make the run seed"):
        freeloc.probe(model, run, depth, profile=PROFILE, folder=tmp_path)


def test_videos_that_begin_with_other_noise_are_refused_at_the_second(model: Any) -> None:
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


DEPTHS = {"local": Local(), "output": Output(shifts=(3,), steps=(0, 2)), "video": Video(["contrast"], shifts=(3,))}


@pytest.mark.parametrize("name", list(DEPTHS))
def test_it_goes_on_where_it_was_stopped(model: Any, tmp_path: Path, name: str) -> None:
    run, ran = run_of(model), []

    def video(prompt: str) -> Tensor:
        ran.append(prompt)
        if len(ran) == 2:
            raise KeyboardInterrupt
        return run(prompt)[0, :3].movedim(0, -1).sigmoid()

    ask = {"depth": DEPTHS[name], "prompts": ["a", "bb"], "profile": PROFILE}
    with pytest.raises(KeyboardInterrupt):
        freeloc.probe(model, video, **ask, folder=tmp_path)
    done = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert done
    found = freeloc.probe(model, video, **ask, folder=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    before = len(ran)
    again = freeloc.probe(model, video, **ask, folder=tmp_path)
    assert len(ran) == before  # all is on disk
    whole = freeloc.probe(model, video, **ask)
    for other in (again, whole):
        assert found.facts == other.facts
        for table in found.tables:
            assert torch.equal(found.table(table).values, other.table(table).values)


SCRIPT = """
import os, pathlib, sys, torch
sys.path[:0] = {folders!r}
pathlib.Path(sys.argv[1] + "-" + os.environ.get("RANK", "alone")).touch()
torch.set_num_threads(1)
import freeloc
from conftest import make_wan
from freeloc.probing import Output
from test_probe import PROFILE, run_of

model = make_wan()
depth = Output(shifts=(3, 6), steps=(0, 1, 2))
prompts = ["a", "bb", "ccc"]
found = freeloc.probe(
    model, run_of(model, frames=14), depth, prompts=prompts, profile=PROFILE, folder=sys.argv[1]
)
found.save(sys.argv[2])
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    here = Path(__file__).parent
    path.write_text(SCRIPT.format(folders=[str(here), str(here.parent)]))
    return path


def tensors_of(path: Path) -> dict[str, list[float]]:
    return {name: table.values.flatten().tolist() for name, table in Sensitivity.load(path).tables.items()}


def test_killed_at_any_moment_it_gives_the_same_file(script: Path, tmp_path: Path) -> None:
    whole, file = tmp_path / "whole.safetensors", tmp_path / "file.safetensors"
    started = time.monotonic()
    subprocess.run([sys.executable, str(script), "one", str(file)], cwd=tmp_path, check=True, capture_output=True)
    file.rename(whole)
    wait = time.monotonic() - started
    (tmp_path / "one").rename(tmp_path / "of-whole")
    for attempt in range(4):
        process = subprocess.Popen(
            [sys.executable, str(script), "one", str(file)], cwd=tmp_path, stderr=subprocess.PIPE
        )
        time.sleep(wait * (0.7 + 0.08 * attempt))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    subprocess.run([sys.executable, str(script), "one", str(file)], cwd=tmp_path, check=True, capture_output=True)
    assert file.read_bytes() == whole.read_bytes()


def test_two_processes_of_accelerate_give_the_same_numbers(script: Path, tmp_path: Path) -> None:
    alone, shared = tmp_path / "alone.safetensors", tmp_path / "shared.safetensors"
    subprocess.run([sys.executable, str(script), "a", str(alone)], cwd=tmp_path, check=True, capture_output=True)
    # With --cpu it would start several processes through mpirun only; no GPU is used.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", str(script)]
    found = subprocess.run([*launch, "b", str(shared)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "b-0").exists()
    assert (tmp_path / "b-1").exists()
    assert tensors_of(shared) == tensors_of(alone)


def test_each_process_does_its_share(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from freeloc.probing.cells import Cells

    def wait(seconds: float) -> None:
        raise RuntimeError("would wait for cell/0")

    monkeypatch.setattr(time, "sleep", wait)
    made: list[tuple[int, str]] = []
    names = [f"cell/{index}" for index in range(5)]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        cells = Cells(tmp_path, {})

        def make(name: str, rank: int = rank) -> dict[str, Tensor]:
            made.append((rank, name))
            return {"rank": torch.tensor(rank)}

        if rank:
            with pytest.raises(RuntimeError, match="would wait for cell/0"):
                cells.all(names, make, "cells")
        else:
            assert [int(cell["rank"]) for cell in cells.all(names, make, "cells").values()] == [0, 1, 0, 1, 0]
    assert made == [(1, "cell/1"), (1, "cell/3"), (0, "cell/0"), (0, "cell/2"), (0, "cell/4")]
    with pytest.raises(ProbeError, match=r"expected folder=... for a probe in 2 processes"):
        Cells(None, {})


def test_another_probe_in_the_folder_is_refused(model: Any, tmp_path: Path) -> None:
    freeloc.probe(model, run_of(model), profile=PROFILE, folder=tmp_path)
    with pytest.raises(ProbeError, match="holds a probe with another local: give another folder"):
        freeloc.probe(model, run_of(model), Local(rows=7), profile=PROFILE, folder=tmp_path)
    with pytest.raises(ProbeError, match="holds a probe with another model, seed"):
        freeloc.probe(make_wan(seed=1), run_of(make_wan(seed=1)), profile=PROFILE, folder=tmp_path, seed=1)
    freeloc.probe(model, run_of(model), DEPTHS["output"], profile=PROFILE, folder=tmp_path)  # each depth for itself
    (tmp_path / "local" / "probe.json").write_text("{")
    with pytest.raises(ProbeError, match="cannot keep a probe in"):
        freeloc.probe(model, run_of(model), profile=PROFILE, folder=tmp_path)


def test_what_a_run_depends_on_is_part_of_what_a_folder_holds(model: Any, tmp_path: Path) -> None:
    ask: dict[str, Any] = {"profile": PROFILE, "prompts": ["a"], "folder": tmp_path}
    found = freeloc.probe(model, run_of(model), **ask, run_settings={"frames": 9, "size": (6, 10)})
    assert found.facts.settings["local"]["run"] == {"frames": 9, "size": [6, 10]}
    again = freeloc.probe(model, run_of(model), **ask, run_settings={"frames": 9, "size": (6, 10)})
    assert again.facts == found.facts
    with pytest.raises(ProbeError, match="holds a probe with another run: give another folder"):
        freeloc.probe(model, run_of(model, frames=14), **ask, run_settings={"frames": 14, "size": (6, 10)})
    with pytest.raises(ProbeError, match="expected run_settings of numbers, texts, lists and objects of these"):
        freeloc.probe(model, run_of(model), **ask, run_settings={"run": run_of})


@pytest.mark.parametrize("changed", [{"objective": flow(timesteps=1)}, {"argument": "hidden_states"}])
def test_another_objective_or_argument_is_another_loss(model: Any, tmp_path: Path, changed: dict[str, Any]) -> None:
    ask: dict[str, Any] = {"profile": PROFILE, "folder": tmp_path}
    few: dict[str, Any] = {"levels": (0.5,), "compared": (("none", "vrpr"),)}
    freeloc.probe(model, run_of(model), Loss(clips(), **few), **ask)
    with pytest.raises(ProbeError, match="holds a probe with another loss"):
        freeloc.probe(model, run_of(model), Loss(clips(), **few, **changed), **ask)
    freeloc.probe(model, run_of(model), Loss(clips(), **few, objective=flow()), **ask)  # which is the usual one


def test_pieces_of_another_length_are_refused(model: Any, tmp_path: Path) -> None:
    ask: dict[str, Any] = {"profile": PROFILE, "prompts": ["a", "bb"], "folder": tmp_path}
    freeloc.probe(model, run_of(model), **ask)
    (tmp_path / "local" / "local" / "001.safetensors").unlink()
    with pytest.raises(ProbeError, match=r"expected every run to be as long as the others, found 9 .* and then 14"):
        freeloc.probe(model, run_of(model, frames=14), **ask)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (
            {"depth": "deep"},
            "no depth is named 'deep'; .*known: local, loss, output, video; or give a freeloc.probing.Depth",
        ),
        ({"depth": "loss"}, r"needs clips: give freeloc.probing.Loss\(clips\)"),
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
def test_what_is_refused(model: Any, ask: dict[str, Any], words: str) -> None:
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


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Loss(clips(count=1)), "expected at least 2 clips"),
        (lambda: Loss(clips(), levels=(0.0,)), "expected noise levels above 0"),
        (lambda: Loss(clips(), compared=(("vrpr", "vrpr"),)), "expected pairs of two of"),
        (lambda: Loss(clips(8)), r"expected clips of shape \[4, 9, 6, 10\], as the run calls the model with, found"),
        (lambda: Loss(clips(channels=5)), "expected clips of shape"),
        (
            lambda: Loss(clips(), argument="video"),
            "expected the run to call the transformer with the noisy video as video",
        ),
    ],
)
def test_clips_that_are_refused(model: Any, make: Callable[[], Loss], words: str) -> None:
    with pytest.raises(ProbeError, match=words):
        freeloc.probe(model, run_of(model), make(), profile=PROFILE)


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


def test_prompts_of_clips(model: Any) -> None:
    with pytest.raises(ProbeError, match="expected no prompt, one, or one for each of 2 clips, found 3"):
        freeloc.probe(model, run_of(model), Loss(clips()), profile=PROFILE, prompts=["a", "b", "c"])


def test_channels_beside_the_video_are_kept() -> None:
    """As in image-to-video, where the transformer is given latents and a condition."""
    model = make_wan(in_channels=6)

    def run() -> None:
        model(**wan_inputs(9, batch=1) | {"hidden_states": torch.full((1, 6, 9, 6, 10), 2.0)})

    found = freeloc.probe(model, run, Loss(clips(), levels=(0.5,)), profile=PROFILE)
    clean = clips()[0][None]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(500))
    both = torch.cat([(clean + noise) / 2, torch.full((1, 2, 9, 6, 10), 2.0)], dim=1)
    expected = (model(**wan_inputs(9, batch=1) | {"hidden_states": both})[0] - (noise - clean)).square().mean()
    own = found.table("loss.value").at(rest="none", policies="none", layers=0, levels=0.5, clips="000").values
    assert float(own) == pytest.approx(float(expected), rel=1e-5)


def test_objectives() -> None:
    from diffusers import CogVideoXDDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    class Pipe:
        scheduler: Any = None

    pipe = Pipe()
    clean, noise = torch.randn(2, 4, 5)
    for scheduler in (
        None,
        FlowMatchEulerDiscreteScheduler(),
        UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    ):
        pipe.scheduler = scheduler
        found = objective_of(pipe)
        assert torch.allclose(found.noisy(clean, noise, 0.25), 0.75 * clean + 0.25 * noise)
        assert torch.equal(found.target(clean, noise, 0.25), noise - clean)
        assert found.timestep(0.25) == 250
    pipe.scheduler = CogVideoXDDIMScheduler(prediction_type="v_prediction")
    found = objective_of(pipe)
    step = torch.tensor([500])
    assert found.timestep(500 / 999) == 500
    assert torch.allclose(
        found.noisy(clean, noise, 500 / 999), pipe.scheduler.add_noise(clean[None], noise[None], step)[0]
    )
    assert torch.allclose(
        found.target(clean, noise, 500 / 999), pipe.scheduler.get_velocity(clean[None], noise[None], step)[0]
    )
    epsilon = diffusion(pipe.scheduler.alphas_cumprod, "epsilon")
    assert torch.equal(epsilon.target(clean, noise, 0.5), noise)
    assert flow(timesteps=1).timestep(0.25) == 0.25
    with pytest.raises(ProbeError, match="expected a model that predicts epsilon or v_prediction, found 'sample'"):
        diffusion(pipe.scheduler.alphas_cumprod, "sample")


@pytest.mark.parametrize("inverted", [False, True])
def test_the_objective_is_what_the_scheduler_steps_with(inverted: bool) -> None:
    """With the target for the model's output each step ends where the next level is; inverted as in Mochi."""
    from types import SimpleNamespace

    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=inverted)
    found = objective_of(SimpleNamespace(scheduler=scheduler))
    clean, noise = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(5)
    latents = noise
    for step, told in enumerate(scheduler.timesteps):
        level = 1 - float(told) / 1000 if inverted else float(told) / 1000
        assert found.timestep(level) == pytest.approx(float(told), abs=1e-3)
        assert torch.allclose(latents, found.noisy(clean, noise, level), atol=1e-5), step
        latents = scheduler.step(found.target(clean, noise, level), told, latents, return_dict=False)[0]
    assert torch.allclose(latents, clean, atol=1e-5)


@pytest.mark.parametrize(
    ("time", "words"),
    [
        (80 / 81, r"at a timestep near 1000, found 0\.98.*: if the model counts time in another way, give Loss"),
        (0.0, r"at a timestep near 1000, found 0:"),
    ],
)
def test_a_run_that_counts_time_in_another_way_is_refused(model: Any, time: float, words: str) -> None:
    def run() -> None:
        model(**wan_inputs(9, batch=1) | {"timestep": torch.tensor([time])})

    few: dict[str, Any] = {"levels": (0.5,), "compared": (("none", "vrpr"),)}
    with pytest.raises(ProbeError, match=words):
        freeloc.probe(model, run, Loss(clips(), **few), profile=PROFILE)
    freeloc.probe(model, run, Loss(clips(), **few, objective=flow(timesteps=1)), profile=PROFILE)


def test_a_fingerprint_tells_weights_apart(model: Any) -> None:
    assert fingerprint(model) == fingerprint(make_wan())
    assert fingerprint(model) != fingerprint(make_wan(seed=1))


def test_a_fingerprint_of_offloaded_weights_is_theirs(model: Any) -> None:
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


def test_files_and_merging(model: Any, tmp_path: Path) -> None:
    one = freeloc.probe(model, run_of(model), profile=PROFILE, prompts=["a"])
    two = freeloc.probe(model, run_of(model), profile=PROFILE, prompts=["bb"])
    both = freeloc.probe(model, run_of(model), profile=PROFILE, prompts=["a", "bb"])
    merged = one.merge(two)
    for name in both.tables:
        assert torch.equal(merged.table(name).values, both.table(name).values)
    assert merged.facts == both.facts
    with pytest.raises(ProbeError, match=r"'local\.\w+( \w+)?' can be merged where only the prompts or clips differ"):
        one.merge(one)
    other = make_wan(seed=1)
    of_other = freeloc.probe(other, run_of(other), profile=PROFILE)
    with pytest.raises(ProbeError, match="expected measurements of one model, found two: small"):
        one.merge(of_other)
    output = freeloc.probe(model, run_of(model), DEPTHS["output"], profile=PROFILE)
    all_depths = merged.merge(output)
    assert all_depths.depths == ["local", "output"]
    all_depths.save(tmp_path / "found.safetensors")
    loaded = Sensitivity.load(tmp_path / "found.safetensors")
    assert loaded.facts == all_depths.facts
    assert list(loaded.tables) == list(all_depths.tables)
    for name, table in loaded.tables.items():
        assert table.axes == all_depths.table(name).axes
        assert torch.equal(table.values, all_depths.table(name).values)
    assert list(tmp_path.iterdir()) == [tmp_path / "found.safetensors"]
    position, context = loaded.compare(loaded)["local", "local"]
    assert (position, context) == (1, 1)
    with pytest.raises(ProbeError, match=r"'loss\.value' was not measured: found local"):
        loaded.summary("loss")


def test_files_that_are_refused(model: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "wrong.safetensors"
    with pytest.raises(ProbeError, match="cannot read the measurements"):
        Sensitivity.load(path)
    path.write_bytes(b"\x00" * 100)
    with pytest.raises(ProbeError, match="cannot read the measurements"):
        Sensitivity.load(path)
    good = freeloc.probe(model, run_of(model), profile=PROFILE)
    good.save(path)
    header = json.loads(_metadata(path)["freeloc"])
    tensors = {name: table.values.contiguous() for name, table in good.tables.items()}
    wrong = {
        "holds no measurements of freeloc": None,
        "expected measurements of schema_version 1, found 2": header | {"schema_version": 2},
        "expected the tensors": header | {"axes": {}},
        "expected a tensor of shape": header | {"axes": {name: {"layers": [1]} for name in tensors}},
        "facts": header | {"facts": {}},
    }
    for words, content in wrong.items():
        save_file(tensors, path, None if content is None else {"freeloc": json.dumps(content)})
        with pytest.raises(ProbeError, match=words):
            Sensitivity.load(path)


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata()


def test_tables() -> None:
    table = Table(torch.tensor([[1.0, torch.nan], [3.0, 5.0]]), {"layers": [0, 1], "heads": ["a", "b"]})
    assert table.over("layers").values.tolist() == [1.0, 4.0]
    assert table.over("heads", "layers").values.tolist() == [[1.0, 3.0], [pytest.approx(torch.nan, nan_ok=True), 5.0]]
    assert table.without(heads="a").values.tolist()[1] == [5.0]
    with pytest.raises(ProbeError, match=r"expected one of \['a', 'b'\] on the axis 'heads', found 'c'"):
        table.at(heads="c")
    with pytest.raises(ProbeError, match=r"expected a tensor of shape \(1,\)"):
        Table(torch.zeros(2), {"layers": [0]})


def test_ranks() -> None:
    from freeloc.probing import rank_correlation

    assert rank_correlation(torch.tensor([1.0, 2, 3]), torch.tensor([3.0, 2, 1])) == -1
    assert rank_correlation(torch.tensor([1.0, 1, 3]), torch.tensor([2.0, 2, 9])) == 1


def made_up(**tables: Table) -> Sensitivity:
    facts = ProbeFacts(
        profile=PROFILE, fingerprint="f" * 64, latent_frames=[9], prompts=["a"], seed=0, settings={}, versions={},
        command="a test",
    )  # fmt: skip
    return Sensitivity({name.replace("_", "."): table for name, table in tables.items()}, facts)


def of_local(change: list[float], logits: list[float]) -> Sensitivity:
    axes = {"layers": [0, 1, 2, 3], "heads": [0, 1], "steps": [0], "prompts": ["a"]}
    by_layer = [
        torch.tensor(values, dtype=torch.float64)[:, None, None, None].expand(4, 2, 1, 1) for values in (change, logits)
    ]
    return made_up(local_change=Table(by_layer[0], axes), local_logits=Table(by_layer[1], axes))


def of_video(window: list[list[float]]) -> Sensitivity:
    """Scores under a window, (layers, prompts), beside 1 where nothing is perturbed."""
    prompts = [*"abc"[: len(window[0])]]
    scores = torch.tensor(window)[None, :, None]
    axes = {"scorers": ["x"], "layers": [0, 1, 2, 3], "perturbations": ["window"], "prompts": prompts}
    base = Table(torch.ones(1, len(prompts)), {"scorers": ["x"], "prompts": prompts})
    return made_up(video_base=base, video_score=Table(scores, axes))


def of_loss(**values: list[list[float]]) -> Sensitivity:
    """Losses (layers, clips) by rest and policy."""
    axes = {"rest": [*POLICIES], "policies": [*POLICIES], "layers": [0, 1, 2, 3], "levels": [0.5], "clips": [0, 1, 2]}
    table = torch.full((4, 4, 4, 1, 3), torch.nan)
    for pair, losses in values.items():
        rest, policy = pair.split("_")
        table[POLICIES.index(rest), POLICIES.index(policy)] = torch.tensor(losses)[:, None]
    return made_up(loss_value=Table(table, axes))


NAN = torch.nan
ONES = [[1.0, 1.0, 1.0]] * 4
FALLS = [[0.5, 0.5, 0.5], [1.5, 1.5, 1.5], [0.5, 1.5, 1.0], [0.9, 0.9, 0.9]]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (of_local([1, 2, NAN, NAN], [1, 2, 3, 4]), "the sensitivity to context of every layer, found none for layer 2"),
        (of_local([1, 2, 3, 4], [1, NAN, 3, 4]), "the sensitivity to positions of every layer, found none for layer 1"),
        (of_local([1, 2, 3, 4], [1, 2, 3, torch.inf]), "to positions of every layer, found none for layer 3"),
        (
            of_video([[1.0, NAN], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]),
            "to context of every layer, found none for layer 0",
        ),
        (of_video([[0.5]] * 4), "expected at least 2 prompts, for a standard error, found 1"),
        (of_loss(vrpr_vrpr=ONES), "losses with vrpr on all other layers to choose from, found those of vrpr"),
        (of_loss(tsa_tsa=ONES, tsa_none=FALLS), "losses with none on all other layers .* found those of nothing"),
        (of_loss(vrpr_vrpr=ONES, vrpr_tsa=[*FALLS[:3], [NAN, 1, 1]]), "loss with tsa of every layer, .* layer 3"),
    ],
)
def test_no_policy_is_chosen_without_a_number(found: Sensitivity, words: str) -> None:
    with pytest.raises(ProbeError, match=words):
        found.to_profile()
    assert str(found).count(" ?") == 4  # the numbers are shown all the same, and why there is no policy
    assert "no policy: expected " in str(found)


def test_what_rightly_has_no_number_is_chosen_from() -> None:
    assert of_video([[0.5, 0.51], [1.0, 1.1], [1.5, 0.4], [0.1, 0.11]]).to_profile().layers == {
        "none": [1, 2],
        "tsa": [0, 3],
    }
    on_vrpr = of_loss(vrpr_vrpr=ONES, vrpr_tsa=FALLS).to_profile()
    assert on_vrpr.layers == {"vrpr": [1, 2], "tsa": [0, 3]}
    assert "on 3 clips, 9 latent frames" in on_vrpr.provenance.notes
    on_nothing = of_loss(none_none=ONES, none_tsa=FALLS)
    assert on_nothing.to_profile().layers == {"none": [1, 2], "tsa": [0, 3]}
    assert on_nothing.summary().context.tolist() == pytest.approx([0.5, -0.5, 0, 0.1], abs=1e-6)
    assert "on 1 prompt, 9 latent frames" in of_local([1, 2, 3, 4], [1, 2, 3, 4]).to_profile().provenance.notes


def test_a_layer_that_computes_no_numbers_is_named() -> None:
    broken = make_wan()
    broken.blocks[2].attn1.to_q.weight.fill_(torch.nan)
    for depth in (Local(), Output(shifts=(3,), steps=(0,))):
        found = freeloc.probe(broken, run_of(broken), depth, profile=PROFILE)
        with pytest.raises(ProbeError, match=r"found none for layer \d: a layer that never runs"):
            found.to_profile()
    with pytest.raises(
        ProbeError, match=r"expected the model to return numbers, found nan at noise level 0\.3, clip 0"
    ):
        freeloc.probe(broken, run_of(broken), Loss(clips()), profile=PROFILE)


def test_models_of_other_depths_are_not_compared() -> None:
    found = of_local([1, 2, 3, 4], [1, 2, 3, 4])
    tiny = Sensitivity(found.tables, found.facts.model_copy(update={"profile": freeloc.load_profile("tiny-wan")}))
    with pytest.raises(ProbeError, match="models with as many layers, found 4 of small and 8 of freeloc's tiny Wan"):
        found.compare(tiny)


def test_what_is_printed_is_what_was_chosen_for_heads() -> None:
    axes = {"layers": [0, 1, 2, 3], "heads": [0, 1], "steps": [0], "prompts": ["a"]}
    values = torch.tensor([[9.0, 9.0], [0.0, 9.0], [0.0, 0.0], [9.0, 9.0]])[:, :, None, None]
    found = made_up(local_change=Table(torch.ones(4, 2, 1, 1), axes), local_logits=Table(values, axes))
    still = found.to_profile(rule=Rule(context=2), heads=True)
    assert [line.split(maxsplit=3)[3] for line in found.text(still).splitlines()[2:]] == [
        "vrpr",
        "none x1, vrpr x1",
        "none",
        "vrpr",
    ]


def test_the_page_on_probing_lists_every_table(model: Any) -> None:
    page = (Path(__file__).parents[2] / "docs" / "probe-your-model.md").read_text(encoding="utf-8")
    loss = Loss(clips(), levels=(0.5,), compared=(("none", "tsa"),), heads=True)
    judge = Scorer("sum", lambda video, prompt: float(video.sum()))

    def run(prompt: str) -> Tensor:
        return run_of(model, steps=1)(prompt)[0, :3].movedim(0, -1).sigmoid()

    for depth in (Local(), Output(shifts=(3,), steps=(0,), heads=True), loss, Video([judge], shifts=(3,))):
        for name in freeloc.probe(model, run, depth, profile=PROFILE, prompts=["a", "bb"]).tables:
            assert name.endswith(" error") or f"| `{name}` |" in page
