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
from freeloc import ProbeError, ProfileError, Sensitivity
from freeloc.probing import Local, Loss, Output, Table, Video, diffusion, flow
from freeloc.probing.calls import watched
from freeloc.probing.denoising import objective_of
from freeloc.probing.subject import fingerprint

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
    def run() -> None:
        model(**wan_inputs(9))
        raise OSError("out of luck")

    for depth in (Local(), Output(steps=(5,)), Video(["contrast"])):
        with pytest.raises(OSError, match="out of luck"):
            freeloc.probe(model, run, depth, profile=PROFILE)
        assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_steps_are_counted_by_timestep(model: Any) -> None:
    found = freeloc.find_adapter(model)
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
sys.path.insert(0, {tests!r})
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
    path.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
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
        ({"depth": "deep"}, "expected depth to be one of local, output, video, or a Depth, found 'deep'"),
        ({"depth": "loss"}, r"needs clips: give freeloc.probing.Loss\(clips\)"),
        ({"prompts": ["a", "a"]}, "expected each prompt once"),
        ({"depth": Output(steps=(2, 1))}, "expected denoising steps from 0 on, in order"),
        ({"depth": Video([])}, "expected at least one scorer"),
        ({"depth": Video(["sharpnes"])}, "no scorer is named 'sharpnes'; did you mean sharpness"),
        ({"depth": Video(["contrast"])}, r"expected run to return one video \(frames, height, width, 3\), found"),
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


def test_a_patched_model_is_refused(model: Any) -> None:
    with freeloc.patch(model, PROFILE), pytest.raises(freeloc.PatchError, match="patched already"):
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
    from freeloc.probing.choice import rank_correlation

    assert rank_correlation(torch.tensor([1.0, 2, 3]), torch.tensor([3.0, 2, 1])) == -1
    assert rank_correlation(torch.tensor([1.0, 1, 3]), torch.tensor([2.0, 2, 9])) == 1
