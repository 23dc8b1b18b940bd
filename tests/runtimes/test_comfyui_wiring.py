"""What a user of the node pack reads who connects or sets something wrong: one sentence, before sampling starts."""

import pytest
import torch
from comfyui_graph import Do, GraphError, node
from comfyui_pack import HOME, TRAINED, installed, sampling

import freeloc

pytestmark = [pytest.mark.runtimes, pytest.mark.filterwarnings("default")]
graphs = pytest.fixture(scope="module")(installed)


def said(graphs, graph):
    """What the user reads. Nothing was sampled."""
    with pytest.raises(GraphError) as caught:
        graphs.sample(graph)
    assert "sampler" not in caught.value.executed
    assert caught.value.event in ("invalid", "execution_error")
    text = caught.value.message
    return " ".join(text if isinstance(text, list) else [text]).strip()


def long_video(model="unet", **inputs):
    return node("FreelocLongVideo", model=[model, 0], **inputs)


def patcher_of(config):
    import comfy.model_patcher

    config.set_inference_dtype(torch.float32, None)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(config.get_model({}, device="meta"), cpu, cpu)


def image_model(_):
    import comfy.supported_models

    sizes = {"in_channels": 16, "out_channels": 16, "vec_in_dim": 8, "context_in_dim": 8, "hidden_size": 48}
    more = {"mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "axes_dim": [8, 8, 8], "theta": 100}
    more["txt_ids_dims"] = []
    return patcher_of(
        comfy.supported_models.Flux(
            {"image_model": "flux", "guidance_embed": True, "qkv_bias": True, "patch_size": 2, **sizes, **more}
        )
    )


def unknown_model(_):
    clone = Do.functions["wan"](None).clone()
    clone.add_object_patch("diffusion_model", torch.nn.Linear(2, 2))
    return clone


def test_two_nodes(graphs):
    assert said(graphs, sampling("twice", twice=long_video("long", trained_frames=TRAINED))) == (
        "this MODEL comes from a 'freeloc: long video' node already, and a model can be corrected once: remove or "
        "bypass one of the two nodes"
    )


def test_an_image_model(graphs):
    assert said(graphs, sampling(unet=node("Do", what=graphs.do(image_model)))) == (
        "freeloc makes videos longer, and this MODEL (Flux) makes no videos: connect a video model such as Wan, or "
        "remove the freeloc node"
    )


def causal_model(_):
    import comfy.supported_models

    sizes = {"in_dim": 16, "out_dim": 16, "dim": 256, "ffn_dim": 128, "num_heads": 2, "num_layers": 1}
    return patcher_of(
        comfy.supported_models.WAN21_CausalAR_T2V(
            {"image_model": "wan2.1", "model_type": "t2v", "causal_ar": True, **sizes}
        )
    )


def test_a_model_that_freeloc_knows_and_cannot_correct(graphs):
    text = said(graphs, sampling(unet=node("Do", what=graphs.do(causal_model))))
    assert text.startswith("freeloc cannot correct this MODEL (WAN21_CausalAR): it generates block by block")


def test_a_model_that_freeloc_does_not_know(graphs):
    assert said(graphs, sampling(unet=node("Do", what=graphs.do(unknown_model)))) == (
        "freeloc does not know this MODEL (WAN21, torch.nn.modules.linear.Linear): remove the freeloc node, or update "
        "freeloc; its docs list the models that it knows under 'Supported models'"
    )


@pytest.mark.parametrize("method", ["by layer", "vrpr"])
def test_a_model_whose_trained_length_is_not_known(graphs, method):
    assert said(graphs, sampling(long=long_video(method=method))) == (
        "freeloc does not know on how long clips this MODEL (WanModel, 2 layers, 2 heads) was trained: set "
        "trained_frames, for example to 81, or connect a profile with 'freeloc: load profile'"
    )


def test_the_profile_of_another_model(graphs):
    loaded = node("FreelocLoadProfile", profile="wan2.1")
    assert said(graphs, sampling(loaded=loaded, long=long_video(profile=["loaded", 0]))) == (
        "the connected profile is for Wan-AI/Wan2.1-T2V-1.3B (wan, 30 layers, 12 heads of 128), and this MODEL is "
        "another one (wan, 2 layers, 2 heads of 128): choose a profile for it in 'freeloc: load profile' (none is "
        "installed), or disconnect the profile and set trained_frames"
    )


def test_a_profile_and_another_trained_length(graphs):
    network = Do.functions["wan"](None).get_model_object("diffusion_model")
    freeloc.default_profile(network, trained_latent_frames=3).save(HOME / "models" / "freeloc" / "three.json")
    loaded = node("FreelocLoadProfile", profile="three.json")
    assert said(graphs, sampling(loaded=loaded, long=long_video(profile=["loaded", 0], trained_frames=81))) == (
        "the profile says that WanModel was trained on 3 latent frames, and trained_frames says 21: set trained_frames "
        "to 0, or disconnect the profile"
    )


@pytest.mark.parametrize("name", ["missing.json", "../../secret.json", "/etc/passwd", "C:\\secret.json", ""])
def test_a_profile_that_is_not_there_and_a_name_that_is_a_path(graphs, name):
    (HOME / "secret.json").write_text("{}")
    loaded = node("FreelocLoadProfile", profile=name)
    text = said(graphs, sampling(loaded=loaded, long=long_video(profile=["loaded", 0])))
    assert text == (
        f"profile - there is no profile {name!r}: choose one of the list, or put the file into ComfyUI/models/freeloc "
        "and reload the page"
    )


@pytest.mark.parametrize("name", ["", "somebody", "../models/secret", "/etc/passwd", "a/b/c", "a/b@../../c"])
def test_a_repository_that_is_none(graphs, name):
    loaded = node("FreelocLoadProfile", profile="Hugging Face repository", repository=name)
    text = said(graphs, sampling(loaded=loaded, long=long_video(profile=["loaded", 0])))
    assert f"expected repository as owner/name or owner/name@revision, found {name!r}: fill it in" in text


def test_a_repository_beside_the_name_of_a_profile(graphs):
    loaded = node("FreelocLoadProfile", profile="wan2.1", repository="somebody/something")
    text = said(graphs, sampling(loaded=loaded, long=long_video(profile=["loaded", 0])))
    assert "choose 'Hugging Face repository' as profile to use the repository, or clear the repository" in text


def test_a_file_that_is_no_profile(graphs):
    (HOME / "models" / "freeloc" / "broken.json").write_text('{"schema_version": 1}')
    loaded = node("FreelocLoadProfile", profile="broken.json")
    assert "broken.json is not a profile" in said(
        graphs, sampling(loaded=loaded, long=long_video(profile=["loaded", 0]))
    )


@pytest.mark.parametrize(("setting", "value"), [("method", "magic"), ("backend", "magic"), ("trained_frames", -1)])
def test_a_value_that_is_not_offered(graphs, setting, value):
    assert setting in said(graphs, sampling(long=long_video(**{"trained_frames": TRAINED, setting: value})))


def test_a_report_of_a_model_without_the_node(graphs):
    graph = sampling("unet", report=node("FreelocReport", model=["unet", 0], latent=["empty", 0]))
    del graph["sampler"], graph["keep"]
    assert said(graphs, graph) == (
        "no 'freeloc: long video' node is before this MODEL: connect the MODEL output of one"
    )


def test_a_report_before_the_sampler(graphs):
    graph = sampling(report=node("FreelocReport", model=["long", 0], latent=["empty", 0]))
    del graph["sampler"], graph["keep"]
    assert said(graphs, graph) == (
        "no sampler has used this MODEL yet: connect the MODEL of 'freeloc: long video' to the sampler whose LATENT "
        "comes here"
    )


def test_measuring_a_single_picture(graphs):
    graph = {
        "images": node("EmptyImage", width=32, height=32, batch_size=1, color=0),
        "measure": node("FreelocMeasure", images=["images", 0]),
        "text": node("PreviewAny", source=["measure", 0]),
    }
    assert said(graphs, graph) == (
        "freeloc: measure: expected images to be the frames of a video, at least 3, found 1 of them: connect the IMAGE "
        "output of the VAE decoder, not a single picture"
    )
