"""The node pack for ComfyUI, as far as it runs without ComfyUI. tests/runtimes runs it in ComfyUI itself."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

import freeloc
from freeloc.errors import FreelocError
from freeloc.metrics import MEASURES
from freeloc.profile.files import with_choice
from freeloc.registry import registry
from freeloc.tiny.model import load_transformer
from freeloc.tiny.synthetic import clips

FOLDER = Path(__file__).parent.parent / "docs" / "examples" / "comfyui-freeloc"
WORKFLOWS = sorted((FOLDER / "workflows").glob("*.json"))


@pytest.fixture(scope="module")
def pack():
    """The folder, imported as ComfyUI does: under the name of its path."""
    name = str(FOLDER).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, FOLDER / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    yield module
    for loaded in [loaded for loaded in sys.modules if loaded == name or loaded.startswith(f"{name}.")]:
        del sys.modules[loaded]


def part(pack, name):
    return sys.modules[f"{pack.__name__}.{name}"]


def test_importing_it_needs_no_comfyui(pack):
    assert not any(name.split(".")[0] in ("comfy", "folder_paths", "nodes") for name in sys.modules)
    assert set(pack.NODE_DISPLAY_NAME_MAPPINGS) == set(pack.NODE_CLASS_MAPPINGS)


def test_every_input_and_node_explains_itself(pack):
    for kind, node in pack.NODE_CLASS_MAPPINGS.items():
        json.dumps(node.INPUT_TYPES())  # as ComfyUI's page gets them
        assert node.DESCRIPTION, kind
        assert node.CATEGORY == "freeloc"
        for group in node.INPUT_TYPES().values():
            for name, (types, options) in group.items():
                assert options.get("tooltip"), (kind, name)
                assert "default" not in options or not isinstance(types, list) or options["default"] in types


def test_the_package_says_what_it_requires(pack):
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text())["project"]
    assert (FOLDER / "requirements.txt").read_text().split() == project["dependencies"]
    (required,) = map(Requirement, project["dependencies"])
    assert required.name == "freeloc"
    assert required.specifier.contains(freeloc.__version__)


@pytest.mark.parametrize(
    "name", [str(Path(freeloc.__file__)), "../wan2.1.json", "/etc/passwd", "wan2.1.json", "somebody/profile", ""]
)
def test_a_workflow_cannot_name_a_path(pack, name):
    loading = part(pack, "loading")
    assert loading.LoadProfile.VALIDATE_INPUTS(name).startswith("there is no profile ")
    with pytest.raises(FreelocError, match="there is no profile "):
        loading.path_of(name, "")


@pytest.mark.parametrize("name", ["", "somebody", "/etc/passwd", "../a", "a/../../b", "a/b/c", "https://x.example/a"])
def test_a_repository_is_an_owner_and_a_name(pack, name):
    loading = part(pack, "loading")
    assert "expected repository as owner/name" in loading.LoadProfile.VALIDATE_INPUTS(loading.HUB, name)


def test_loading_by_name(pack):
    node = pack.NODE_CLASS_MAPPINGS["FreelocLoadProfile"]
    assert node.VALIDATE_INPUTS("wan2.1") is True
    assert node().load("wan2.1") == (freeloc.load_profile("wan2.1"),)


def test_the_profile_that_fits_is_taken(pack):
    choosing = part(pack, "choosing")
    transformer = load_transformer()
    fitting = freeloc.load_profile("tiny-wan")
    trained = fitting.model.trained_latent_frames
    assert choosing.choose(transformer, None, choosing.AS_PROFILE, None) == fitting
    assert choosing.choose(transformer, None, choosing.AS_PROFILE, trained) == fitting
    other = choosing.choose(transformer, None, choosing.AS_PROFILE, trained + 1)
    assert other == freeloc.default_profile(transformer, trained_latent_frames=trained + 1)
    assert choosing.choose(transformer, fitting, choosing.AS_PROFILE, trained) == fitting
    with pytest.raises(FreelocError, match="set trained_frames to 0, or disconnect the profile"):
        choosing.choose(transformer, fitting, choosing.AS_PROFILE, trained + 1)
    with pytest.raises(FreelocError, match=r"this MODEL is another one .*: choose a profile for it .*\(tiny-wan\)"):
        choosing.choose(transformer, freeloc.load_profile("wan2.1"), choosing.AS_PROFILE, None)


def test_profiles_that_say_the_same_are_one(pack, tmp_path, monkeypatch):
    """Wan 2.1 14B and Wan 2.2 A14B have the same sizes."""
    choosing = part(pack, "choosing")
    transformer = load_transformer()
    owners = dict(registry().profiles.owners)
    del owners["tiny-wan"]
    monkeypatch.setattr(registry().profiles, "owners", owners)
    one = freeloc.default_profile(transformer, trained_latent_frames=3)
    for name, trained in (("first", 3), ("second", 3), ("third", 4)):
        facts = one.model.model_copy(update={"name": name, "trained_latent_frames": trained})
        path = tmp_path / f"{name}.json"
        one.model_copy(update={"model": facts}).save(path)
        owners[name] = [("tests", path)]
    with pytest.raises(FreelocError, match="does not know on how long clips"):
        choosing.choose(transformer, None, choosing.AS_PROFILE, None)
    del owners["third"]
    for method in (choosing.AS_PROFILE, "vrpr"):
        found = choosing.choose(transformer, None, method, None)
        assert found.model.name == "first or second"
        assert found.layers == one.layers


def test_methods_that_require_noise_of_their_own_are_not_offered(pack):
    methods = part(pack, "choosing").methods()
    noisy = {name for name, _, method in registry().methods.things() if method.noise}
    assert noisy
    assert set(methods) == set(registry().methods.owners) - noisy - {"none"}
    assert len(methods) == len(set(methods))


def test_profiles_that_require_noise_of_their_own_are_refused(pack):
    choosing, plain = part(pack, "choosing"), freeloc.load_profile("tiny-wan")
    noisy = with_choice(plain, plain.layers, noise="freenoise")
    with pytest.raises(FreelocError, match="noise of 'freenoise', which other nodes of ComfyUI make"):
        choosing.require_plain_noise(noisy, choosing.AS_PROFILE)
    choosing.require_plain_noise(noisy, "vrpr")
    choosing.require_plain_noise(plain, choosing.AS_PROFILE)


def test_copies_of_a_network_on_several_devices_are_patched_together(pack):
    sampling = part(pack, "sampling")
    networks = [load_transformer(), load_transformer()]
    with sampling.Correction(freeloc.load_profile("tiny-wan")).patched(networks) as patch:
        assert len(patch.report().models) == 2
    assert not any(module._forward_pre_hooks for network in networks for module in network.modules())


def test_a_run_knows_its_latent(pack):
    sampling = part(pack, "sampling")
    latent = torch.randn(1, 16, 12, 8, 8, generator=torch.Generator().manual_seed(0))
    run = sampling.Run("", sampling.mark_of(latent), tuple(latent.shape))
    assert run.made(latent)
    assert run.made(latent.bfloat16())
    assert not run.made(latent.flip(-1))
    assert not run.made(latent[:, :, :9])


def test_measuring_a_batch_of_images(pack):
    node = pack.NODE_CLASS_MAPPINGS["FreelocMeasure"]()
    video = clips(["red ring fast"], 21, torch.Generator().manual_seed(0))[0].movedim(0, -1)
    table, chart = node.measure(video, video[:1].expand_as(video))
    for line, (name, measure) in zip(table.splitlines()[1:], MEASURES.items(), strict=False):
        assert line.startswith(name)
        numbers = [float(word) for word in line[len(name) :].split()[:2]]
        assert numbers == [round(measure(video), 4), round(measure(video[:1].expand_as(video)), 4)]
    assert set(MEASURES) == set(part(pack, "measuring").MEANING)
    assert chart.shape[0] == 1
    assert chart.shape[-1] == 3
    assert 0 <= chart.min() < 0.1
    assert chart.max() == 1


def test_images_with_an_alpha_channel_grey_ones_and_overshoot_are_measured(pack):
    measuring = part(pack, "measuring")
    video = torch.rand(4, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    with_alpha = torch.cat([video, torch.ones(4, 8, 8, 1)], dim=-1)
    assert torch.equal(measuring.video_of("images", with_alpha), video)
    assert torch.equal(measuring.video_of("images", video + 2), torch.ones(4, 8, 8, 3))
    assert measuring.video_of("images", video[..., :1]).shape == video.shape
    with pytest.raises(FreelocError, match="at least 3, found 2 of them: connect the IMAGE output of the VAE decoder"):
        measuring.video_of("images", video[:2])


@pytest.mark.parametrize("path", [path for path in WORKFLOWS if ".api" in path.name], ids=lambda path: path.name)
def test_example_workflows_set_inputs_that_exist(pack, path):
    prompt = json.loads(path.read_text())
    ours = [each for each in prompt.values() if each["class_type"] in pack.NODE_CLASS_MAPPINGS]
    assert ours
    for each in ours:
        types = pack.NODE_CLASS_MAPPINGS[each["class_type"]].INPUT_TYPES()
        inputs = types["required"] | types.get("optional", {})
        assert set(types["required"]) <= set(each["inputs"]) <= set(inputs)
        for name, value in each["inputs"].items():
            kind, options = inputs[name]
            if isinstance(value, list):
                assert value[0] in prompt
            elif isinstance(kind, list):
                assert value in kind
            else:
                assert value == options["default"]
