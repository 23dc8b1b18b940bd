"""freeloc.tune on models whose best choice is known, its budget, and what it refuses."""

import copy
import dataclasses
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import constructed
import pytest
import torch
from conftest import make_profile, make_wan, wan_inputs
from constructed import ADAPTER, BLIND, CROWDED, LOCAL, Constructed, clips, run_of
from torch import Tensor

import freeloc
from freeloc import FreelocError
from freeloc.errors import ProbeError, ProfileError
from freeloc.probing import Objective, flow
from freeloc.profile.planning import frame_plan
from freeloc.profile.schema import Profile
from freeloc.tuning import Candidate, Tuned
from freeloc.tuning.clock import Clock
from freeloc.tuning.defaults import factor, parts

TWO = [Candidate("none"), Candidate("vrpr")]
FEW: dict[str, Any] = {"candidates": TWO, "alternatives": [], "times": (2,), "clips": clips(4)}
SHARPER = parts(factor(1.1))


def tune(model: Any = None, videos: int = 0, **changes: Any) -> Tuned:
    model = model or Constructed()
    given = {"clips": clips(), "run": run_of(model), "profile": constructed.PROFILE, "adapter": ADAPTER}
    given |= {"levels": (0.4,), "videos": videos, "places": 0.0}
    return freeloc.tune(model, **given | changes)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tuned, Path]:
    """The constructed model, tuned with parts of each kind."""
    folder, some = tmp_path_factory.mktemp("tuned"), [*TWO, SHARPER, Candidate("sliding-window")]
    return tune(clips=clips(20), candidates=some, alternatives=some, times=(4,), folder=folder), folder


def plan_of(profile: Profile, layer: int) -> Any:
    return frame_plan(profile, layer, frames=17)


def test_each_layer_gets_what_its_weights_call_for(found: tuple[Tuned, Path]) -> None:
    profile = found[0].profile
    assert profile.policy(BLIND) == "none"
    local, crowded = plan_of(profile, LOCAL), plan_of(profile, CROWDED)
    assert not local.visibility[0, -1]  # a window
    assert crowded.visibility[0, -1]
    assert crowded.scale_at(4) > 1.04  # sharper
    assert profile.provenance.kind == "probed"
    assert profile.schema_version == 2


def test_a_run_that_was_stopped_late_goes_on_with_what_is_measured(tmp_path: Path) -> None:
    first = tune(minutes=1, folder=tmp_path, **FEW)
    (tmp_path / "clock.json").write_text('{"seconds": 59}')  # more than the first stage may spend
    again = tune(minutes=1, folder=tmp_path, **FEW)
    assert again.profile.layers == first.profile.layers
    with pytest.raises(ProbeError, match="expected a budget"):
        tune(minutes=1, folder=tmp_path, **FEW | {"candidates": [*TWO, SHARPER]})  # one that is not measured yet


def test_the_report_has_the_numbers_of_its_sentences(found: tuple[Tuned, Path]) -> None:
    tuned, folder = found
    text = (folder / "report.md").read_text()
    assert text == tuned.report
    assert "On 10 clips that nothing was chosen on, its loss differs from that of" in str(tuned)
    assert "No videos were sampled" in str(tuned)
    table = tuned.measurements.table("tune.other clips").at(losses="whole").over("settings", "clips").values
    base = tuned.measurements.table("tune.one layer").labels("policies")[0]
    names = tuned.measurements.table("tune.other clips").labels("settings")
    apart = table[0] - table[names.index(base)]
    loss = table[names.index(base)].mean()
    said = f"{100 * float(apart.mean() / loss):+.2f} % ± {100 * float(apart.std() / 10**0.5 / loss):.2f}"
    assert said in str(tuned)
    for picture in ("all-layers", "one-layer", "other-clips", "choice"):
        assert f"({picture}.png)" in text
        assert (folder / f"{picture}.png").stat().st_size > 1000


def test_its_files_are_those_of_a_probe(found: tuple[Tuned, Path], capsys: pytest.CaptureFixture[str]) -> None:
    from freeloc.cli import main

    tuned, folder = found
    again = Tuned.load(folder)
    assert again.profile.layers == tuned.profile.layers
    assert again.profile.evidence is not None
    assert again.measurements.facts == tuned.measurements.facts
    assert [own[0] for own in again.measurements.choose()] == [tuned.profile.policy(layer) for layer in range(3)]
    assert again.measurements.to_profile().layers == tuned.profile.layers
    assert main(["profiles", "validate", str(folder / "profile.json")]) == 0
    assert main(["profiles", "plot", str(folder / "profile.json"), "--output", str(folder / "plots")]) == 0
    assert (folder / "plots" / "depth-tune.png").exists()


PATCH = """
import sys
sys.path[:0] = {folders!r}
import torch, freeloc
from constructed import ADAPTER, Constructed, clips
model = Constructed()
with freeloc.patch(model, sys.argv[1], adapter=ADAPTER) as patch:
    model(clips(1), torch.full((1,), 500.0))
print([layer.method for layer in patch.report().transformers[0]])
"""


@pytest.mark.slow
def test_the_profile_works_in_a_fresh_process(found: tuple[Tuned, Path]) -> None:
    tuned, folder = found
    tests = Path(__file__).parents[1]
    script = PATCH.format(folders=[str(tests), str(tests / "support")])
    command = [sys.executable, "-c", script, str(folder / "profile.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    assert done.stdout.strip() == str([tuned.profile.policy(layer) for layer in range(3)])


def test_where_nothing_helps_the_simplest_is_chosen() -> None:
    """All layers are as blind as layer 0."""
    model = Constructed()
    for layer in model.layers:
        layer.kind = BLIND
    tuned = tune(model, candidates=[Candidate("none"), Candidate("vrpr"), Candidate("clip")], times=(4,))
    assert tuned.profile.layers == {"none": [0, 1, 2]}
    assert tuned.profile.schema_version == 2 or not tuned.profile.policies


def teacher(model: Any, best: Profile) -> Objective:
    """Flow, but the model must predict what it predicts itself under `best`: no other choice has a loss of 0."""
    real, twin = flow(), copy.deepcopy(model)
    known: dict[tuple[float, float, tuple[int, ...]], Tensor] = {}

    def target(latents: Tensor, noise: Tensor, level: float) -> Tensor:
        if latents.ndim < 5 or latents.shape[-1] == 1:  # freeloc asks for its coefficients
            return noise - latents
        key = float(latents.double().sum()), level, tuple(latents.shape)
        if key not in known:
            given = {"hidden_states": real.noisy(latents, noise, level), "timestep": torch.tensor([1000 * level])}
            with freeloc.patch(twin, best), torch.no_grad():
                known[key] = twin(**wan_inputs(latents.shape[2], batch=1) | given)[0]
        return known[key]

    return dataclasses.replace(real, target=target)


@pytest.mark.slow
def test_the_plans_of_a_teacher_are_recovered() -> None:
    profile = make_profile({"vrpr": [0, 1, 2, 3]})
    model = make_wan()
    best = profile.model_copy(update={"layers": {"vrpr": [0, 2], "sliding-window": [1], "tsa": [3]}})

    def run(prompt: str, latent_frames: int) -> Any:
        return model(**wan_inputs(latent_frames, batch=1) | {"timestep": torch.tensor([1000.0])})

    real = torch.randn(8, 4, 9, 6, 10, generator=torch.Generator().manual_seed(3))
    some = [Candidate(name) for name in ("none", "vrpr", "sliding-window", "tsa")]
    tuned = freeloc.tune(
        model, real, run, profile=profile, objective=teacher(model, best), candidates=some[:2], alternatives=some,
        levels=(0.5,), times=(3,), videos=0,
    )  # fmt: skip
    assert tuned.profile.layers == best.layers
    assert float(tuned.measurements.table("tune.other clips").at(settings="layer by layer").values.nanmean()) < 1e-9


class FakeTime:
    """A clock that goes on by a step each time it is read."""

    def __init__(self, step: float) -> None:
        self.seconds, self.step = 0.0, step

    def __call__(self) -> float:
        self.seconds += self.step
        return self.seconds


@pytest.mark.slow
def test_the_budget_ends_each_stage_and_the_search() -> None:
    now = FakeTime(0.05)
    clock = Clock(1.0, now=now)
    tuned = tune(candidates=TWO, clock=clock)
    assert clock.spent() <= 60 * 1.02
    assert "Time ran out" in tuned.report
    assert tuned.measurements.table("tune.other clips").values.isfinite().any()


def test_a_real_budget_is_kept() -> None:
    started = time.monotonic()
    tuned = tune(**FEW, minutes=0.1)
    assert time.monotonic() - started < 6 + 6  # the report and its pictures come after
    assert tuned.profile.provenance.kind == "probed"


def test_a_budget_that_is_too_small_says_what_is_enough() -> None:
    words = (
        r"expected a budget that measures 2 candidates on 4 clips in its first 30%, found 0.05 minutes: one loss at 17"
        r" latent frames takes 0\.1 s\. Give minutes=(\S+) or more"
    )
    with pytest.raises(ProbeError, match=words) as raised:
        tune(candidates=TWO, clock=Clock(0.05, now=FakeTime(0.1)))
    enough = float(re.search(words, str(raised.value))[1])
    assert tune(candidates=TWO, clock=Clock(enough, now=FakeTime(0.1))).profile.provenance.kind == "probed"


def test_a_budget_that_is_spent_before_the_first_loss_promises_nothing() -> None:
    found = r"found 1e-06 minutes, of which 30% were spent before the first loss \(.* s for"
    with pytest.raises(ProbeError, match=found):
        tune(candidates=TWO, clock=Clock(1e-6, now=FakeTime(0.1)))


def test_what_was_measured_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tune(**FEW, folder=tmp_path)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "pieces").rglob("loss/**/*.safetensors")}
    assert len(times) == 8
    more = tune(**FEW | {"candidates": [*TWO, Candidate("clip")]}, folder=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert first.measurements.table("tune.all layers").axes["policies"] == ["none", "vrpr"]
    assert more.measurements.table("tune.all layers").axes["policies"] == ["none", "vrpr", "clip"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clips": clips(3)}, "expected at least 4 clips, one half to choose on .* found 3: 16 or more are better"),
        ({"clips": clips(4, frames=5)}, "expected clips longer than the trained 5 latent frames, found 5"),
        ({"clips": None}, "expected at least 4 prompts without clips, which are then samples of the model"),
        ({"clips": clips(4)[:, 0]}, "expected clips with the axes 'c f h w'"),
        ({"clips": clips(4)[:, :, :, :1]}, r"expected clips of shape \[7, 9, 2, 2\], as the run calls the model with"),
        ({"prompts": ["a", "b"]}, "expected one prompt, or one for each of 4 clips, found 2"),
        ({"prompts": "a fox"}, "expected a list of prompts, found 'a fox'"),
        ({"minutes": 0}, "expected a budget above 0 minutes, found 0"),
        ({"times": (1,)}, r"expected times as whole numbers of 2 or more trained lengths, found \[1\]"),
        ({"levels": (0.0,)}, r"expected noise levels above 0 and up to 1, found \[0.0\]"),
        ({"places": 2.0}, "expected places from 0 to 1"),
        ({"also": ["sliding-windw"]}, "did you mean sliding-window"),
        ({"also": ["freenoise"]}, "methods that require no initial noise of their own, found 'freenoise'"),
        ({"also": [Candidate("odd", "tsa", {"dense_frame": 1})]}, "dense_frame"),
        ({"videos": 1}, r"expected run to return one video .* videos=0 leaves this check out"),
        ({"objective": None, "run": lambda prompt, latent_frames: None}, "found no call"),
    ],
)
def test_refusals(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(FreelocError, match=words):
        tune(**FEW | changes)


def test_a_folder_of_another_tuning_is_refused(tmp_path: Path) -> None:
    tune(**FEW, folder=tmp_path)
    with pytest.raises(ProbeError, match="with another clips, seed: give another folder"):
        tune(**FEW | {"clips": clips(8)}, folder=tmp_path, seed=1)
    with pytest.raises(ProfileError, match="cannot read the profile"):
        Tuned.load(tmp_path / "nowhere")


def test_methods_that_the_model_cannot_run_are_left_out_and_named() -> None:
    no_rope = dataclasses.replace(ADAPTER, rope=None)
    tuned = tune(adapter=no_rope, **FEW | {"candidates": [Candidate("none"), Candidate("vrpr"), Candidate("tsa")]})
    assert "'vrpr' was left out:" in tuned.report
    assert tuned.measurements.table("tune.all layers").axes["policies"] == ["none", "tsa"]
