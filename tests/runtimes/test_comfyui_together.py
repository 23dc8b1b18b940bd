"""The node pack together with other nodes of ComfyUI, and with what other node packs do to a model."""

import pytest
import torch
from comfyui_graph import GraphError, node
from comfyui_models import LTX_2, fill
from comfyui_pack import HOME, LONG, TRAINED, installed, sampling, with_node
from safetensors.torch import save_file

pytestmark = [pytest.mark.runtimes, pytest.mark.filterwarnings("default")]
graphs = pytest.fixture(scope="module")(installed)
BOTH = pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
"""Where the other node is."""


@pytest.fixture(scope="module")
def corrected(graphs):
    return graphs.sample(sampling())[0]


def close(latent, other):
    return torch.allclose(latent, other, atol=1e-4 * float(other.abs().max()))


@BOTH
def test_an_attention_override_of_another_node_keeps_the_correction(graphs, corrected, before):
    """Such as that of SageAttention: it stays the kernel of all that freeloc does not correct."""
    others = []

    def kernel(function, q, k, v, heads, **kwargs):
        others.append(q.shape)
        batch, tokens, _ = q.shape
        q, k, v = (each.view(batch, -1, heads, 128).transpose(1, 2) for each in (q, k, v))
        out = (q @ k.mT * 128**-0.5).softmax(-1) @ v
        return out.transpose(1, 2).reshape(batch, tokens, -1)

    def override(model):
        model.model_options["transformer_options"]["optimized_attention_override"] = kernel

    latent, report = graphs.sample(with_node(graphs, override, before))
    assert report.startswith("freeloc corrected a video of 12 latent frames")
    assert close(latent, corrected)
    assert others  # text attention


@BOTH
def test_context_windows_are_corrected_as_short_videos_of_their_own(graphs, before):
    """ComfyUI gives each window but the first one more frame in front."""
    settings = {
        "context_length": 29,
        "context_overlap": 8,
        "context_schedule": "standard_static",
        "context_stride": 1,
        "closed_loop": False,
        "fuse_method": "pyramid",
        "freenoise": True,
        "retain_first_frame": False,
        "split_conds_to_windows": False,
    }
    windows = node("WanContextWindowsManual", model=["unet" if before else "long", 0], **settings)
    if before:
        graph = sampling(long=node("FreelocLongVideo", model=["other", 0], trained_frames=TRAINED), other=windows)
    else:
        graph = sampling("other", other=windows)
    first, _, *_ = graphs.sample(graph)[1].splitlines()
    assert first.startswith(
        "freeloc corrected windows of 8 latent frames (29 video frames) and of 9 latent frames (33 video frames);"
    )
    windows["inputs"] |= {"context_length": TRAINED - 4, "context_overlap": 4}
    assert "freeloc changed nothing" in graphs.sample(graph)[1]


@BOTH
def test_a_lora_works(graphs, corrected, before):
    name = "diffusion_model.blocks.0.self_attn.q"
    generator = torch.Generator().manual_seed(0)
    down, up = (torch.randn(4, 256, generator=generator) for _ in range(2))
    save_file(
        {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up.T.contiguous()}, HOME / "models/loras/a.safetensors"
    )

    def lora(model, strength):
        return node("LoraLoaderModelOnly", model=[model, 0], lora_name="a.safetensors", strength_model=strength)

    def graph(strength):
        if before:
            return sampling(
                other=lora("unet", strength), long=node("FreelocLongVideo", model=["other", 0], trained_frames=TRAINED)
            )
        return sampling("other", other=lora("long", strength))

    latent, report = graphs.sample(graph(1.0))
    assert report.startswith("freeloc corrected a video of 12 latent frames")
    assert not close(latent, corrected)
    assert torch.equal(graphs.sample(sampling())[0], corrected)  # without the LoRA again


@BOTH
def test_compiled_models_are_compiled_as_often_as_without_freeloc(graphs, corrected, before):
    import torch._dynamo
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

    graphs_of = []

    def backend(graph, inputs):
        graphs_of.append(graph)
        return graph.forward

    def compiled(model):
        """What the node TorchCompileModel does, with a backend that counts."""
        model = model.clone(disable_dynamic=True)
        set_torch_compile_wrapper(model, backend, options={"guard_filter_fn": skip_torch_compile_dict})
        return model

    graph = with_node(graphs, compiled, before)

    def compilations(length, seed):
        graphs_of.clear()
        graph["sampler"]["inputs"]["seed"] = seed
        graph["empty"]["inputs"]["length"] = length
        latent, report = graphs.sample(graph)
        assert report.startswith("freeloc changed nothing" if length == TRAINED else "freeloc corrected a video")
        return latent, len(graphs_of)

    torch._dynamo.reset()
    latent, first = compilations(LONG, seed=1)
    assert first
    assert close(latent, corrected)
    assert compilations(LONG, seed=2)[1] == 0
    for length in (LONG + 8, TRAINED):
        compilations(length, seed=1)
    for length in (LONG, LONG + 8, TRAINED):
        assert compilations(length, seed=3)[1] == 0
    torch._dynamo.reset()


@BOTH
@pytest.mark.parametrize("kind", ["EasyCache", "LazyCache"])
def test_caches_skip_steps_of_a_corrected_model(graphs, before, kind):
    settings = {"reuse_threshold": 3.0, "start_percent": 0.0, "end_percent": 1.0, "verbose": False}
    cache = node(kind, model=["unet" if before else "long", 0], **settings)
    if before:
        graph = sampling(
            steps=8, other=cache, long=node("FreelocLongVideo", model=["other", 0], trained_frames=TRAINED)
        )
    else:
        graph = sampling("other", steps=8, other=cache)
    _, report = graphs.sample(graph)
    assert "forward passes: 4 at 12 latent frames" in report
    noted = "note: no attention module was called" in report and "(4 forward passes)" in report
    assert noted == (kind == "EasyCache")  # LazyCache does not even call the model


def test_weights_that_are_offloaded_give_the_same_result(graphs, corrected):
    from comfy.patcher_extension import WrappersMP

    unloaded = []

    def offload(model):
        """Leaves the weights where they are kept, so that each layer fetches its own when it runs."""

        def prepare(executor, patcher, *args, **kwargs):
            out = executor(patcher, *args, **kwargs)
            unloaded.append(patcher.partially_unload(torch.device("cpu"), 10**12))
            assert patcher.model.diffusion_model.blocks[0].self_attn.q.comfy_cast_weights
            return out

        model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, "offload", prepare)

    latent, report = graphs.sample(with_node(graphs, offload))
    assert unloaded[0] > 0
    assert report.startswith("freeloc corrected a video of 12 latent frames")
    assert torch.equal(latent, corrected)


def test_custom_samplers_and_batches_of_videos(graphs):
    graph = sampling(batch_size=2)
    inputs = graph["sampler"]["inputs"]
    expected, _ = graphs.sample(graph)
    sampler = node(
        "SamplerCustom",
        sampler=["euler", 0],
        sigmas=["sigmas", 0],
        add_noise=True,
        noise_seed=inputs["seed"],
        **{name: inputs[name] for name in ("model", "cfg", "positive", "negative", "latent_image")},
    )
    sigmas = node("BasicScheduler", model=["long", 0], scheduler="simple", steps=2, denoise=1.0)
    euler = node("KSamplerSelect", sampler_name="euler")
    latent, report = graphs.sample(graph | {"sampler": sampler, "sigmas": sigmas, "euler": euler})
    assert torch.equal(latent, expected)
    assert "forward passes: 2 at 12 latent frames" in report


def test_a_video_with_sound_is_corrected(graphs):
    """LTX-2: the LATENT is nested, and packed into one tensor while it is sampled."""
    import comfy.model_patcher
    import comfy.supported_models
    from comfy.nested_tensor import NestedTensor

    def model(_):
        config = comfy.supported_models.LTXAV({"image_model": "ltxav", **LTX_2})
        config.set_inference_dtype(torch.float32, None)
        base, cpu = config.get_model({}, device="cpu"), torch.device("cpu")
        fill(base.diffusion_model)
        return comfy.model_patcher.ModelPatcher(base, cpu, cpu)

    def latent(_):
        return {"samples": NestedTensor((torch.zeros(1, LTX_2["in_channels"], 12, 2, 3), torch.zeros(1, 8, 24, 16)))}

    def text(_):
        return [[torch.ones(1, 7, 32), {"frame_rate": 24.0}]]

    graph = sampling(unet=node("Do", what=graphs.do(model)), empty=node("Do", what=graphs.do(latent)))
    graph |= {name: node("Do", what=graphs.do(text)) for name in ("positive", "negative")}
    graph["long"]["inputs"]["trained_frames"] = 17  # 3 latent frames
    del graph["keep"]
    report = graphs.run(graph)["report"]["text"][0]
    assert report.startswith("freeloc corrected a video of 12 latent frames (89 video frames)")


def two_models(first, second):
    """A graph whose sampler runs the negative prompt on a second model."""
    graph = sampling()
    inputs = graph["sampler"]["inputs"]
    guided = {name: inputs[name] for name in ("positive", "negative", "cfg")}
    return graph | {
        "again": node("UNETLoader", unet_name="low.safetensors", weight_dtype="default"),
        "long again": node("FreelocLongVideo", model=["again", 0], trained_frames=TRAINED),
        "guider": node("DualModelGuider", model=[first, 0], model_negative=[second, 0], **guided),
        "noise": node("RandomNoise", noise_seed=1),
        "euler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("BasicScheduler", model=["long", 0], scheduler="simple", steps=2, denoise=1.0),
        "sampler": node(
            "SamplerCustomAdvanced",
            noise=["noise", 0],
            guider=["guider", 0],
            sampler=["euler", 0],
            sigmas=["sigmas", 0],
            latent_image=["empty", 0],
        ),
    }


def test_both_models_of_a_sampler_with_two_are_corrected(graphs):
    graph = two_models("long", "long again")
    graph["second"] = node("FreelocReport", model=["long again", 0], latent=["sampler", 0])
    shown = graphs.run(graph)
    for name in ("report", "second"):
        assert shown[name]["text"][0].startswith("freeloc corrected a video of 12 latent frames")
        assert "forward passes: 2 at 12 latent frames" in shown[name]["text"][0]
    both, _ = graphs.sample(graph)
    first, _ = graphs.sample(two_models("long", "again"))
    assert not close(both, first)


def test_two_clones_behind_one_node_are_corrected_together(graphs, corrected):
    graph = two_models("long", "other") | {"other": node("ModelSamplingSD3", model=["long", 0], shift=8.0)}
    latent, report = graphs.sample(graph)
    assert "forward passes: 4 at 12 latent frames" in report  # of each step two, one for each prompt
    assert close(latent, corrected)


def test_a_second_model_alone_is_refused(graphs):
    graph = two_models("unet", "long again")
    del graph["report"]
    with pytest.raises(GraphError, match="is the second of two models of a sampler"):
        graphs.sample(graph)
    with pytest.raises(GraphError, match="the two models of this sampler are one network"):
        graphs.sample(two_models("long", "unet"))


def test_each_sampler_gets_the_report_of_its_own_run(graphs):
    graph = sampling()
    other = node("KSampler", **graph["sampler"]["inputs"] | {"latent_image": ["short", 0]})
    short = node("EmptyHunyuanLatentVideo", width=32, height=32, length=TRAINED, batch_size=1)
    graph |= {"other": other, "short": short, "second": node("FreelocReport", model=["long", 0], latent=["other", 0])}
    shown = graphs.run(graph)
    assert shown["report"]["text"][0].startswith("freeloc corrected a video of 12 latent frames")
    assert shown["second"]["text"][0].startswith("freeloc changed nothing")


def test_a_report_says_when_the_latent_is_of_no_run(graphs):
    graph = sampling()
    graph["flipped"] = node("LatentFlip", samples=["sampler", 0], flip_method="y-axis: horizontally")
    graph["report"]["inputs"]["latent"] = ["flipped", 0]
    assert graphs.sample(graph)[1].startswith(
        "this LATENT did not come straight from a run of this MODEL; its last run:\nfreeloc corrected a video of 12"
    )
