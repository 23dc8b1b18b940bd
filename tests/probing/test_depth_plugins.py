"""A probe depth of a plugin: registered, measured, saved, read, printed, drawn, and used for the choice."""

import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_wan, wan_inputs
from small_probe import PROFILE, made_up

import freeloc
from freeloc.cli import main
from freeloc.errors import ProbeError
from freeloc.markers import GROUP
from freeloc.pictures import write
from freeloc.probing import Depth, Rule, Sensitivity, Table, find_depth
from freeloc.registry import Registry, registry

PLUGIN = '''
import torch
import freeloc
from freeloc.plans.baselines import sliding_window
from freeloc.plans import FramePlan
from freeloc.probing import Depth, Rule, Summary, Table

class Narrowed(Depth):
    """How much the first output changes where one layer has a sliding window of so many latent frames."""

    name = "narrowed"
    rank = 9

    def __init__(self, frames=2):
        self.frames = frames

    def settings(self, subject):
        return {"frames": self.frames}

    def measure(self, subject):
        layers, prompts = range(subject.shape.layers), range(len(subject.prompt_labels))
        names = [f"narrowed/{prompt}/{layer}" for prompt in prompts for layer in layers]
        found = subject.measure(names, lambda name: self._change(subject, *map(int, name.split("/")[1:])), "narrowed")
        values = torch.stack([found[name]["change"] for name in names]).view(len(prompts), len(layers)).T
        return {"narrowed.change": Table(values, {"layers": [*layers], "prompts": subject.prompt_labels})}

    def _change(self, subject, prompt, layer):
        call = next(iter(subject.first_calls(prompt, [0]).values()))
        outputs = []
        for narrow in (None, layer):
            def plan(asked, frames):
                return sliding_window(frames, self.frames) if asked == narrow else FramePlan.identity(frames)
            with subject.under(plan):
                outputs.append(call.run())
        return {"change": (outputs[1] - outputs[0]).norm().double()}

    def summarize(self, measured, heads=False, rule=Rule()):
        change = measured.table("narrowed.change").over("layers", "prompts").values
        return Summary.of_samples(position=torch.nan * change, context=change)

    def choose(self, measured, rule, heads=False):
        change = self.summarize(measured).context
        heads = measured.facts.profile.model.heads
        return [["riflex" if value == change.max() else "sliding-window"] * heads for value in change]

class Fussy(Narrowed):
    name = "fussy"

    def __init__(self, frames):
        self.frames = frames

class Broken(Depth):
    name = "broken"

    def measure(self, subject):
        return {"other.change": Table(torch.zeros(1), {"prompts": ["a"]})}

    def summarize(self, measured, heads=False, rule=Rule()):
        return 1 / 0

@freeloc.hookimpl
def freeloc_depths():
    return DEPTHS
'''
ENTRY = "[freeloc]\nacme = {}\n"
BUILT = "[Narrowed(), Fussy, Broken]"


def installed(folder: Path, name: str, depths: str) -> metadata.EntryPoint:
    """A module, and the entry point of its package."""
    (folder / f"{name}.py").write_text(PLUGIN.replace("DEPTHS", depths))
    information = folder / f"{name}-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(ENTRY.format(name))
    return metadata.EntryPoint("acme", name, GROUP)


@pytest.fixture
def plugged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """The registry of this process with the plugin installed."""
    installed(tmp_path, "acme_depths", BUILT)
    monkeypatch.syspath_prepend(tmp_path)
    registry.cache_clear()
    yield registry()
    registry.cache_clear()
    sys.modules.pop("acme_depths", None)


@pytest.fixture(scope="module")
def model() -> Any:
    return make_wan()


def probed(model: Any, depth: Any) -> Sensitivity:
    def run(prompt: str) -> None:
        latents = torch.randn(1, 4, 9, 6, 10, generator=torch.Generator().manual_seed(len(prompt)))
        model(**wan_inputs(9, batch=1) | {"hidden_states": latents})

    return freeloc.probe(model, run, depth, profile=PROFILE, prompts=["a", "bb"])


def test_a_plugin_depth_by_name_from_measurement_to_choice(plugged: Registry, model: Any, tmp_path: Path) -> None:
    assert plugged.failures == []
    probed(model, "narrowed").save(tmp_path / "found.safetensors")
    found = Sensitivity.load(tmp_path / "found.safetensors")
    assert found.depths == ["narrowed"]
    assert found.facts.settings["narrowed"] == {"frames": 2}
    change = found.summary().context
    assert (change > 0).all()
    most = int(change.argmax())
    lines = str(found).splitlines()
    assert lines[0] == "small, 9 latent frames, depth narrowed"
    assert lines[1].split() == ["layer", "context", "policy"]
    error = found.summary().context_error[most]
    assert lines[2 + most].split() == [str(most), f"{change[most]:.4g}", "±", f"{error:.2g}", "riflex"]
    figure = found.picture("narrowed")
    assert [bar.get_height() for bar in figure.axes[0].patches] == pytest.approx(change.tolist())
    write(figure, tmp_path / "narrowed.png")
    profile = found.to_profile(tmp_path / "mine.json")
    assert profile.layers == {"sliding-window": [n for n in range(4) if n != most], "riflex": [most]}
    assert profile.schema_version == 2
    assert "Chosen by depth narrowed" in profile.provenance.notes
    assert "on 2 prompts" in profile.provenance.notes
    with freeloc.patch(model, tmp_path / "mine.json") as patch:
        model(**wan_inputs(9))
    assert patch.report().corrected_calls


def test_its_own_settings(plugged: Registry, model: Any) -> None:
    narrowed = type(find_depth("narrowed"))
    assert probed(model, narrowed(3)).facts.settings["narrowed"] == {"frames": 3}


def test_the_highest_rank_decides_unless_another_is_requested(plugged: Registry, model: Any) -> None:
    both = probed(model, "local").merge(probed(model, "narrowed"))
    assert both.depths == ["local", "narrowed"]
    assert str(both).startswith("small, 9 latent frames, depth narrowed")
    assert set(both.to_profile(depth="local").layers) <= {"none", "vrpr"}
    assert both.compare(both)["narrowed", "narrowed"][1] == 1


def test_its_files_are_read_where_it_is_not_installed(
    plugged: Registry, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = probed(model, "local").merge(probed(model, "narrowed"))
    both.save(tmp_path / "both.safetensors")
    narrowed, context = find_depth("narrowed"), both.summary("narrowed").context
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    registry.cache_clear()
    found = Sensitivity.load(tmp_path / "both.safetensors")
    assert found.depths == ["local", "narrowed"]
    assert str(found).startswith("small, 9 latent frames, depth local")
    assert list(found.compare(found)) == [("local", "local")]
    words = r"found depth 'narrowed' with the tables \['narrowed.change'\]: install the package that registers it"
    with pytest.raises(ProbeError, match=words):
        found.summary("narrowed")
    assert torch.equal(found.summary(narrowed).context, context)
    assert found.choose(narrowed) == found.choose(narrowed, Rule()) != found.choose("local")
    alone = Sensitivity({"narrowed.change": found.table("narrowed.change")}, found.facts)
    assert "small, 9 latent frames\nexpected measurements of an installed depth, found depth 'narrowed'" in str(alone)


def test_a_wrong_depth_is_reported(plugged: Registry, model: Any) -> None:
    with pytest.raises(ProbeError, match=r"depth 'fussy' cannot be made without arguments .*: give it defaults"):
        probed(model, "fussy")
    with pytest.raises(
        ProbeError, match=r"expected depth broken to name its tables 'broken.measure', .* 'other.change'"
    ):
        probed(model, "broken")
    with pytest.raises(ProbeError, match=r"no depth is named 'narowed'; did you mean narrowed"):
        probed(model, "narowed")
    with pytest.raises(ProbeError, match=r"expected a depth to be a freeloc.probing.Depth, .*, found 3"):
        probed(model, 3)


@pytest.mark.parametrize("wrong", ["['local']", "[Table]", "[3]"])
def test_an_object_that_is_no_depth_is_not_registered(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"acme_wrong_{len(wrong)}"
    point = installed(tmp_path, name, wrong)
    monkeypatch.syspath_prepend(tmp_path)
    (failure,) = Registry([point]).failures
    assert "freeloc_depths must return Depth objects, found" in failure.cause


def test_the_command_line_knows_it(plugged: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["probe", str(tmp_path / "nowhere"), "--output", str(tmp_path / "mine.json"), "--prompt", "a"]
    assert main([*ask, "--depth", "narrowed", "--scorer", "contrast"]) == 2
    assert "expected --scorer with --depth video: depth narrowed has no scorers" in capsys.readouterr().err
    assert main([*ask, "--depth", "narrowed"]) == 2
    assert "cannot load the model" in capsys.readouterr().err
    assert main(["depths"]) == 0
    listed = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert ["local", "freeloc"] in listed
    assert listed[-1] == ["narrowed", "acme_depths"]
    assert main([*ask, "--depth", "narowed"]) == 2
    assert "did you mean narrowed" in capsys.readouterr().err


def losses(values: torch.Tensor) -> Table:
    """Losses (policies, layers, clips) on top of VRPR."""
    axes = {"rest": ["vrpr"], "policies": ["vrpr", "tsa"], "layers": [0, 1, 2, 3], "levels": [0.5]}
    return Table(values[None, :, :, None], axes | {"clips": [*range(values.shape[-1])]})


ONE_PROMPT = {"layers": [0, 1, 2, 3], "heads": [0, 1], "prompts": ["a"]}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (made_up(), "small, 9 latent frames\nnothing was measured: found no table"),
        (made_up(other_value=Table(torch.zeros(1), {"layers": [0]})), "found depth 'other' with the tables"),
        (made_up(broken_value=Table(torch.zeros(1), {"layers": [0]})), "ZeroDivisionError: division by zero"),
        (made_up(local_logits=Table(torch.zeros(1), {"layers": [0]})), "'local.change' was not measured"),
        (made_up(loss_value=Table(torch.zeros(1), {"layers": [0]})), "expected labels on the axis 'rest'"),
        (made_up(video_score=Table(torch.zeros(1), {"layers": [0]})), "'video.base' was not measured"),
        (
            made_up(loss_value=losses(torch.full((2, 4, 3), torch.nan))),
            "expected losses with vrpr, or with one other policy, on all other layers, found nothing: measure",
        ),
        (made_up(loss_value=losses(torch.rand(2, 4, 1))), "no policy: expected at least 2 clips"),
        (
            made_up(
                local_logits=Table(torch.full((4, 2, 1), torch.nan), ONE_PROMPT),
                local_change=Table(torch.full((4, 2, 1), torch.nan), ONE_PROMPT),
            ),
            "no policy: expected a number for the sensitivity to context of every layer",
        ),
        (
            made_up(
                local_logits=Table(torch.ones(2, 2, 1), ONE_PROMPT | {"layers": [0, 1]}),
                local_change=Table(torch.ones(4, 2, 1), ONE_PROMPT),
            ),
            "small, 9 latent frames, depth local",
        ),
    ],
)
def test_printing_never_raises(plugged: Registry, found: Sensitivity, words: str) -> None:
    assert words in str(found)


def test_policies_other_than_the_default_ones() -> None:
    values = torch.tensor([[9.0, 9.0], [0.0, 9.0], [0.0, 0.0], [9.0, 9.0]])[:, :, None]
    found = made_up(local_change=Table(torch.ones(4, 2, 1), ONE_PROMPT), local_logits=Table(values, ONE_PROMPT))
    rule = Rule(for_position="riflex", for_neither="sliding-window")
    profile = found.to_profile(rule=rule)
    assert profile.layers == {"sliding-window": [2], "riflex": [0, 1, 3]}
    assert "for_neither=sliding-window, for_position=riflex" in profile.provenance.notes


def test_every_built_in_depth_is_registered() -> None:
    ours = {name: depth for name, _, depth in registry().depths.things()}
    assert list(ours) == ["local", "loss", "output", "tune", "video"]
    assert all(isinstance(depth, Depth) for depth in ours.values())
    assert len({find_depth(name).rank for name in ours}) == 5
