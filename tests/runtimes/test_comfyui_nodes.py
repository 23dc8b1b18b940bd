"""The node pack of docs/examples in ComfyUI: its loader, its executor and its samplers, on the CPU."""

import json

import pytest
import torch
from comfyui_graph import Do, GraphError, Keep, as_api, node
from comfyui_pack import HOME, LONG, PACK, TRAINED, installed, sampling, with_node

import freeloc
from freeloc.metrics.video import read_video
from freeloc.registry import registry

pytestmark = [pytest.mark.runtimes, pytest.mark.filterwarnings("default")]
graphs = pytest.fixture(scope="module")(installed)


@pytest.fixture(scope="module")
def plain(graphs):
    return graphs.sample(sampling("unet"))[0]


@pytest.fixture(scope="module")
def corrected(graphs):
    return graphs.sample(sampling())[0]


def small(prompt):
    """An example workflow with small files, a small video, and random values in place of its text encoder."""
    models = iter(["wan.safetensors", "low.safetensors"])
    for each in prompt.values():
        inputs = each["inputs"]
        match each["class_type"]:
            case "UNETLoader":
                inputs["unet_name"] = next(models)
            case "VAELoader":
                inputs["vae_name"] = "wan.safetensors"
            case "CLIPTextEncode":
                each["class_type"] = "TinyText"
                del inputs["clip"]
            case "EmptyHunyuanLatentVideo":
                inputs |= {"width": 32, "height": 32, "length": LONG}
            case "FreelocLongVideo":
                inputs["trained_frames"] = TRAINED
            case "KSampler":
                inputs["steps"] = 2
            case "KSamplerAdvanced":
                first = inputs["start_at_step"] == 0
                inputs |= {"steps": 4, "end_at_step": 2} if first else {"steps": 4, "start_at_step": 2}
    return {name: each for name, each in prompt.items() if each["class_type"] != "CLIPLoader"}


def test_comfyui_reads_the_metadata_for_its_registry(graphs):
    from comfy_config.config_parser import extract_node_configuration

    found = extract_node_configuration(str(PACK))
    assert (found.project.name, found.project.license.text) == ("comfyui-freeloc", "Apache-2.0")
    assert found.project.dependencies == ["freeloc[hub,plot]>=0.2"]
    assert (found.tool_comfy.publisher_id, found.tool_comfy.display_name) == ("freeloc", "freeloc: long video")
    assert found.project.urls.repository == "https://github.com/freeloc/freeloc"


WORKFLOWS = {"wan-text-to-video": 1, "wan2.2-two-stage": 2}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_example_workflows_run_to_a_video_file(graphs, name):
    prompt = small(json.loads((PACK / "workflows" / f"{name}.api.json").read_text()))
    shown = graphs.run(prompt)
    (video,) = (HOME / "output" / "video").glob(
        f"{name.removesuffix('-text-to-video').removesuffix('-two-stage')}*.mp4"
    )
    assert len(read_video(video)) == LONG
    texts = [text for each in shown.values() for text in each.get("text", ()) if text.startswith("freeloc")]
    assert len(texts) == 2 * WORKFLOWS[name]  # of each report, and of the node that shows it
    for text in texts:
        assert text.startswith("freeloc corrected a video of 12 latent frames (45 video frames)")


@pytest.mark.parametrize("name", WORKFLOWS)
def test_what_the_page_loads_is_what_the_api_runs(graphs, name):
    folder = PACK / "workflows"
    prompt = json.loads((folder / f"{name}.api.json").read_text())
    for each in prompt.values():
        each.pop("_meta")
    assert as_api(json.loads((folder / f"{name}.json").read_text()), graphs.nodes) == prompt


def test_the_result_is_that_of_freeloc_patch(graphs, plain, corrected):
    network = Do.functions["wan"](None).get_model_object("diffusion_model")
    with freeloc.patch(network, freeloc.default_profile(network, trained_latent_frames=3)):
        by_hand, _ = graphs.sample(sampling("unet"))
    assert torch.equal(corrected, by_hand)
    assert (corrected - plain).abs().max() > 0.1 * plain.abs().max()


def test_a_video_that_is_not_longer_than_trained_stays_as_it_is(graphs):
    short, report = graphs.sample(sampling(length=TRAINED))
    assert torch.equal(short, graphs.sample(sampling("unet", length=TRAINED))[0])
    assert report.startswith(
        "freeloc changed nothing, since a video of 3 latent frames (9 video frames) is not too long"
    )


def test_a_branch_without_the_node_is_not_changed(graphs, plain, corrected):
    second = node("KSampler", **sampling()["sampler"]["inputs"] | {"model": ["unet", 0]})
    both = sampling(second=second, other=node("Keep", latent=["second", 0]))
    graphs.sample(both)
    assert {True} == {any(torch.equal(kept, one) for kept in Keep.kept) for one in (plain, corrected)}
    assert len(Keep.kept) == 2


@pytest.mark.parametrize("way", ["interrupt", "error"])
def test_a_run_that_ends_in_the_middle_leaves_nothing(graphs, plain, corrected, way):
    import comfy.model_management as management
    from comfy.patcher_extension import WrappersMP

    calls = []

    def stop(executor, *args, **kwargs):
        out = executor(*args, **kwargs)
        calls.append(out)
        if len(calls) == 2 and way == "interrupt":
            management.interrupt_current_processing()
        if len(calls) == 2 and way == "error":
            raise RuntimeError("out of memory, say")
        return out

    def add_stop(model):
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "stop", stop)

    with pytest.raises(GraphError) as caught:
        graphs.sample(with_node(graphs, add_stop) | {"sampler": sampling("other", steps=4)["sampler"]})
    assert caught.value.event == {"interrupt": "execution_interrupted", "error": "execution_error"}[way]
    assert len(calls) == 2
    network = Do.functions["wan"](None).get_model_object("diffusion_model")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert torch.equal(graphs.sample(sampling("unet"))[0], plain)
    assert torch.equal(graphs.sample(sampling())[0], corrected)


def test_the_installed_profile_that_fits_is_used_when_nothing_is_set(graphs, corrected):
    network = Do.functions["wan"](None).get_model_object("diffusion_model")
    path = HOME / "models" / "freeloc" / "small wan.json"
    freeloc.default_profile(network, trained_latent_frames=3).save(path)
    loaded = node("FreelocLoadProfile", profile=path.name)
    long = node("FreelocLongVideo", model=["unet", 0], profile=["loaded", 0])
    assert torch.equal(graphs.sample(sampling(loaded=loaded, long=long))[0], corrected)
    kind = graphs.nodes["FreelocLoadProfile"]
    before = kind.IS_CHANGED(path.name)
    freeloc.default_profile(network, "tsa", trained_latent_frames=3).save(path)
    assert kind.IS_CHANGED(path.name) != before  # so that ComfyUI reads it again
    freeloc.default_profile(network, trained_latent_frames=3).save(path)
    assert kind.IS_CHANGED(path.name) == before
    shelf = registry().profiles
    shelf.add("small-wan", "tests", path)
    try:
        long = node("FreelocLongVideo", model=["unet", 0])
        assert torch.equal(graphs.sample(sampling(long=long))[0], corrected)
        vrpr, report = graphs.sample(sampling(long=node("FreelocLongVideo", model=["unet", 0], method="vrpr")))
        assert " vrpr " in report
        assert "tsa" not in report
    finally:
        del shelf.owners["small-wan"]
    assert not torch.equal(vrpr, corrected)


@pytest.mark.parametrize(
    ("sizes", "names"),
    [
        ({"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30}, ["wan2.1"]),
        ({"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}, ["wan2.1-14b", "wan2.2-a14b"]),
    ],
)
def test_with_nothing_set_wan_gets_its_installed_profile(graphs, sizes, names):
    import comfy.model_patcher
    import comfy.supported_models

    kind = {"image_model": "wan2.1", "model_type": "t2v", "in_dim": 16, "out_dim": 16}
    config = comfy.supported_models.WAN21_T2V(kind | sizes)
    config.set_inference_dtype(torch.float32, None)
    meta = torch.device("meta")
    model = comfy.model_patcher.ModelPatcher(config.get_model({}, device=meta), meta, meta)
    (long,) = graphs.nodes["FreelocLongVideo"]().apply(model)
    profile = long.get_wrappers("outer_sample", "freeloc")[0].profile
    all_of_them = [freeloc.load_profile(name) for name in names]
    assert profile.model.name == " or ".join(each.model.name for each in all_of_them)
    for each in all_of_them:
        assert (profile.layers, profile.heads, profile.vrpr, profile.tsa) == (
            each.layers,
            each.heads,
            each.vrpr,
            each.tsa,
        )
    assert model.wrappers == {}
