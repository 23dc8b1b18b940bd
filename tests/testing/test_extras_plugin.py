"""The package of docs/examples with a backend, a method and a probe depth, installed by pip and used by name."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_profile, wan_inputs
from test_docs import code_blocks

import freeloc
from freeloc.cli import main
from freeloc.errors import LayoutError, ProbeError, ProfileError
from freeloc.pictures import write
from freeloc.probing import Rule, Sensitivity
from freeloc.registry import registry

DOCS = Path(__file__).parents[2] / "docs"
PACKAGE = DOCS / "examples" / "freeloc-extras"
PAGES = ["write-a-backend.md", "write-a-method.md", "write-a-depth.md"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder into which pip has installed the package."""
    source, site = tmp_path_factory.mktemp("source") / "freeloc-extras", tmp_path_factory.mktemp("site")
    shutil.copytree(PACKAGE, source, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*pip, "--target", str(site), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return site


@pytest.fixture
def plugged(site, monkeypatch):
    """The registry of this process with the package installed."""
    monkeypatch.syspath_prepend(site)
    registry.cache_clear()
    assert registry().failures == []
    yield registry()
    registry.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "freeloc_extras"]:
        del sys.modules[name]


@pytest.mark.slow
def test_its_own_tests_pass_against_the_installed_package(site):
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(PACKAGE / "tests")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=site)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


@pytest.mark.parametrize(
    ("command", "name", "message"),
    [
        ("backends", "tiles", "by name only"),
        ("methods", "near-and-anchors", "settings: near_frames, every"),
        ("depths", "attended-distance", "Measures the mean distance at which each head attends"),
    ],
)
def test_the_command_line_lists_what_it_adds(plugged, capsys, command, name, message):
    assert main([command]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{name} ")]
    assert "freeloc-extras" in line
    assert message in line


class TestBackend:
    def test_it_computes_what_sdpa_does_and_the_report_names_it(self, plugged, small_wan, run):
        outputs = {}
        for backend in ("sdpa", "tiles"):
            with freeloc.patch(small_wan, make_profile(), backend=backend) as patch:
                outputs[backend] = run(small_wan, 9)
            assert [line.backends.keys() for line in patch.report().layers] == [{backend}] * 3 + [set()]
            assert f"{backend:9}  blocks.0.attn1" in str(patch.report())
        torch.testing.assert_close(outputs["tiles"], outputs["sdpa"], atol=1e-5, rtol=1e-5)
        assert (outputs["tiles"] - run(small_wan, 9)).abs().max() > 1e-3

    def test_auto_does_not_choose_it(self, plugged, small_wan, run):
        with freeloc.patch(small_wan, make_profile()) as patch:
            run(small_wan, 9)
        assert patch.report().layers[0].backends == {"sdpa": 1}

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
    def test_a_compiled_model_and_a_pickled_one_use_it(self, plugged, small_wan, run):
        with freeloc.patch(small_wan, make_profile(), backend="tiles") as patch:
            expected = run(small_wan, 9)
            assert torch.equal(run(pickle.loads(pickle.dumps(small_wan)), 9), expected)
            found = run(torch.compile(small_wan, fullgraph=True, backend="eager"), 9)
        torch._dynamo.reset()
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)
        assert patch.report().layers[0].backends == {"tiles": 2}

    def test_it_says_what_it_does_not_support(self, plugged, small_wan, run):
        message = r"^blocks\.0\.attn1: no attention backend can compute this call: tiles supports no decay of logits"
        with (
            freeloc.patch(small_wan, make_profile(), backend="tiles", method="ultravico"),
            pytest.raises(LayoutError, match=message),
        ):
            run(small_wan, 9)


VERSION_2 = {
    "schema_version": 2,
    "policies": {
        "close": {"method": "near-and-anchors", "settings": {"near_frames": 1, "every": 4}},
        "usual": {"method": "near-and-anchors"},
    },
    "layers": {"close": [0], "near-and-anchors": [1], "usual": [2], "none": [3]},
    "heads": {"3": {"close": [1]}},
}


def written(folder, **changes):
    content = json.loads(make_profile().model_dump_json(exclude_none=True)) | VERSION_2 | changes
    path = folder / "mine.json"
    path.write_text(json.dumps(content))
    return path


class TestMethod:
    def test_a_profile_gives_it_to_layers_and_heads_with_settings(self, plugged, small_wan, run, tmp_path, capsys):
        path = written(tmp_path)
        assert main(["profiles", "validate", str(path)]) == 0
        assert main(["profiles", "show", str(path)]) == 0
        assert "near_frames" in capsys.readouterr().out
        profile = freeloc.load_profile(path)
        plan = freeloc.frame_plan(profile, layer=0, frames=9)
        assert plan.visibility[6].nonzero().flatten().tolist() == [0, 4, 5, 6, 7, 8]
        assert freeloc.frame_plan(profile, layer=1, frames=9).same_as(freeloc.frame_plan(profile, layer=2, frames=9))
        assert not freeloc.frame_plan(profile, layer=1, frames=9).same_as(plan)
        assert freeloc.frame_plan(profile, layer=3, frames=9, head=1).same_as(plan)
        with freeloc.patch(small_wan, profile, backend="tiles") as patch:
            tiles = run(small_wan, 9)
        layers = patch.report().layers
        assert [line.method for line in layers] == ["close", "near-and-anchors", "usual", "none, close"]
        assert layers[0].attended == pytest.approx(plan.density(1))
        assert layers[0].largest_after == 3
        with freeloc.patch(small_wan, path):
            torch.testing.assert_close(run(small_wan, 9), tiles, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"near_frames": -1}, "policies.close.settings.near_frames: Input should be greater than or equal to 0"),
            ({"near": 1}, "policies.close.settings: expected one of near_frames, every, found 'near'"),
        ],
    )
    def test_wrong_settings_are_refused(self, plugged, tmp_path, settings, message):
        path = written(
            tmp_path, policies=VERSION_2["policies"] | {"close": {"method": "near-and-anchors", "settings": settings}}
        )
        with pytest.raises(ProfileError, match=re.escape(message)):
            freeloc.load_profile(path)

    def test_without_the_package_the_profile_says_what_is_missing(self, tmp_path):
        with pytest.raises(ProfileError, match=r"policies\.close\.method: no method is named 'near-and-anchors'"):
            freeloc.load_profile(written(tmp_path))

    def test_by_its_name_on_every_layer(self, plugged, small_wan, run):
        with freeloc.patch(small_wan, make_profile(), method="near-and-anchors") as patch:
            run(small_wan, 9)
            run(small_wan, 4)
        assert {line.method for line in patch.report().layers} == {"near-and-anchors"}
        assert [dict(line.calls) for line in patch.report().layers] == [{9: 1}] * 4


class TestDepth:
    def test_it_is_measured_saved_printed_drawn_and_chosen_by(self, plugged, small_wan, tmp_path):
        def generate(prompt):
            latents = torch.randn(1, 4, 9, 6, 10, generator=torch.Generator().manual_seed(len(prompt)))
            with torch.no_grad():
                small_wan(**wan_inputs(9, batch=1) | {"hidden_states": latents})

        found = freeloc.probe(
            small_wan,
            generate,
            "attended-distance",
            profile=make_profile(),
            prompts=["a", "bb"],
            folder=tmp_path / "pieces",
        )
        table = found.table("attended-distance.latent frames")
        assert {axis: len(labels) for axis, labels in table.axes.items()} == {"layers": 4, "heads": 2, "prompts": 2}
        assert found.facts.settings["attended-distance"] == {"queries": 64}
        found.save(tmp_path / "found.safetensors")
        found = Sensitivity.load(tmp_path / "found.safetensors")
        distance = found.summary().position
        assert ((distance > 0) & (distance < 8)).all()
        lines = str(found).splitlines()
        assert lines[0] == "small, 9 latent frames, depth attended-distance"
        assert lines[1].split() == ["layer", "position", "policy"]
        assert [line.split()[1] for line in lines[2:]] == [f"{value:.4g}" for value in distance]
        assert [line.split()[-1] for line in lines[2:]] == ["vrpr"] * 4
        write(found.picture(), tmp_path / "picture.png")
        assert (tmp_path / "picture.png").stat().st_size > 1000
        rule = Rule(position=1.0)
        profile = found.to_profile(tmp_path / "mine.json", rule=rule)
        far = [layer for layer in range(4) if distance[layer] >= distance.mean()]
        assert 0 < len(far) < 4
        assert profile.layers == {"none": [n for n in range(4) if n not in far], "vrpr": far}
        assert profile.provenance.kind == "probed"
        assert main(["profiles", "validate", str(tmp_path / "mine.json")]) == 0
        by_head = found.to_profile(rule=rule, heads=True)
        assert set(by_head.used_policies) == {"none", "vrpr"}
        with freeloc.patch(small_wan, tmp_path / "mine.json") as patch:
            small_wan(**wan_inputs(9))
        assert [bool(line.calls) for line in patch.report().layers] == [layer in far for layer in range(4)]

    def test_a_layer_that_attends_to_its_own_frame_has_distance_0(self, plugged):
        """By its definition: uniform attention over 9 frames, and attention to the same frame alone."""
        from freeloc_extras.attended_distance import attended_distance

        from freeloc.attention import TokenLayout
        from freeloc.interception.watch import LayerCall

        layout = TokenLayout(9, 2, 3, text_first=2)
        key = torch.zeros(1, 2, layout.tokens, 9)
        key[:, 1, layout.video] = 1000 * torch.eye(9).repeat_interleave(6, dim=0)  # the second head: each frame its own
        call = LayerCall(0, key, key, key, layout, None, None, None, torch.zeros(1))
        uniform, own = attended_distance(call, queries=54)
        frame = torch.arange(9.0)
        assert float(uniform) == pytest.approx(float((frame[:, None] - frame).abs().mean()))
        assert float(own) == 0

    def test_a_model_without_rope_is_refused(self, plugged):
        from subjects import Subject

        subject = Subject("latte")
        with pytest.raises(ProbeError, match="expected a model with RoPE, found none"):
            freeloc.probe(subject.model, lambda: subject.run(9), "attended-distance", profile=subject.profile)


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_quote_the_package(page):
    """A block that begins with the path of a file is part of that file."""
    quoted = 0
    for block in code_blocks(DOCS / "how-to" / page):
        if found := re.match(r"# (freeloc_extras/\w+\.py)\n", block):
            lines = (PACKAGE / found[1]).read_text(encoding="utf-8")
            for part in block.partition("\n")[2].strip().split("\n\n\n"):
                assert part.strip() in lines, part
                quoted += 1
    assert quoted > 1


def test_the_pages_quote_its_entry_point():
    assert set(code_blocks(DOCS / "how-to" / "write-a-backend.md", "toml")[0].splitlines()) <= set(
        (PACKAGE / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    )
