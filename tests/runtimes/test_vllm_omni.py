"""vLLM-Omni's own Wan, attention layer, registry and sequence parallelism under the plugin: see vllm_omni.sh.

Its linear layers and process groups of vLLM are stand-ins, and its kernel is PyTorch's. Everything else is its source.
"""

import importlib
import os
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_profile, wan_inputs

import freeloc

sys.path.insert(0, str(Path(__file__).parent / "support"))
from two_ranks import outputs, require

pytestmark = [pytest.mark.runtimes, pytest.mark.filterwarnings("default")]
require("vllm_omni", "vllm-omni-freeloc", "vllm_omni.sh")

from vllm_omni_freeloc.models import _found  # noqa: E402  # reason: only where it is installed

MIXED = {"vrpr": [0], "tsa": [1], "vrpr+tsa": [2], "none": [3]}
ALL = {"vrpr+tsa": [0, 1, 2, 3]}
SOME_HEADS = {"0": {"tsa": [1], "vrpr+tsa": [3]}}


def profile_of(layers, **changes):
    facts = {"name": "small", "layers": 4, "heads": 4, "head_dim": 24, "trained_latent_frames": 4}
    return make_profile(layers, model=facts, **changes)


@pytest.fixture(scope="module")
def omni(tmp_path_factory):
    """The support module, which makes vllm_omni importable; with groups and plugins, as in a worker."""
    module = importlib.import_module("vllm_omni_wan")
    module.groups(str(tmp_path_factory.mktemp("groups") / "store"))
    module.load_omni_general_plugins()
    yield module
    module.parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()


@pytest.fixture
def mixed(tmp_path, monkeypatch):
    profile = profile_of(MIXED, heads=SOME_HEADS)
    profile.save(tmp_path / "mixed.json")
    monkeypatch.setenv("FREELOC_PROFILE", str(tmp_path / "mixed.json"))
    return profile


def expected(model, profile, frames, **changes):
    with torch.no_grad():
        plain = model(**wan_inputs(frames, **changes))[0]
        with freeloc.patch(model, profile):
            return model(**wan_inputs(frames, **changes))[0], plain


def close(found, wanted, plain):
    assert (found - wanted).abs().max() < 1e-5
    assert (found - plain).abs().max() > 1e-2  # the correction is a thousand times larger


def test_its_own_loader_finds_the_plugin_and_may_load_it_twice(omni):
    from vllm_omni.diffusion.attention.backends.registry import DiffusionAttentionBackendEnum
    from vllm_omni.plugins import OMNI_DEFAULT_PLUGINS_GROUP, load_omni_plugins_by_group

    load_omni_plugins_by_group(OMNI_DEFAULT_PLUGINS_GROUP)["freeloc"]()
    assert DiffusionAttentionBackendEnum["FREELOC"].get_class().get_name() == "FREELOC"


def test_its_wan_gives_what_a_patched_diffusers_model_gives(omni, mixed, caplog):
    settings = omni.config()
    model = omni.transformer(settings)
    with caplog.at_level("INFO", "vllm_omni.freeloc"):
        found = [omni.output(model, settings, 9) for _ in range(2)]
    close(found[0], *expected(omni.diffusers_wan(), mixed, 9))
    assert torch.equal(*found)
    said = [record.getMessage() for record in caplog.records if record.name == "vllm_omni.freeloc"]
    assert said == ["freeloc: 9 latent frames, trained on 4: corrected 3 of 4 layers (0-2), profile small, default"]


def test_up_to_the_trained_length_it_is_the_default_kernel_bit_by_bit(omni, mixed):
    for frames in (1, 4):
        found = [
            omni.output(omni.transformer(settings), settings, frames)
            for settings in (omni.config(), omni.config(backends=None))
        ]
        assert torch.equal(*found)


def test_as_backend_of_all_roles_cross_attention_passes_through(omni, mixed, monkeypatch):
    monkeypatch.setenv("DIFFUSION_ATTENTION_BACKEND", "FREELOC")
    settings = omni.config(backends=None)
    model = omni.transformer(settings)
    assert model.blocks[0].attn2.attn.attention.model is None
    close(omni.output(model, settings, 9), *expected(omni.diffusers_wan(), mixed, 9))


def test_compiled_blocks_give_the_same(omni, mixed):
    settings = omni.config()
    model = omni.transformer(settings)
    wanted = [omni.output(model, settings, frames) for frames in (4, 9)]
    for block in model.blocks[:2]:
        block.compile(dynamic=True)
    found = [omni.output(model, settings, frames) for frames in (4, 9)]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


CASES = {
    "tensor parallelism": ({"tensor_parallel_size": 2}, {}, [4, 9]),
    "Ulysses": ({"sequence_parallel_size": 2, "ulysses_degree": 2}, {}, [4, 10]),
}


@pytest.mark.parametrize("name", CASES)
def test_two_processes_that_share_the_heads(omni, mixed, name):
    groups, more, lengths = CASES[name]
    case = {"groups": groups, "config": groups | more, "calls": [[frames, {}] for frames in lengths]}
    found = outputs("vllm_omni_wan.py", case, os.environ["FREELOC_PROFILE"])
    for ours in found:
        _, plain = expected(omni.diffusers_wan(), mixed, lengths[0])
        assert (ours[0] - plain).abs().max() < 1e-5
        close(ours[1], *expected(omni.diffusers_wan(), mixed, lengths[1]))


def test_padding_is_not_attended_to(omni, tmp_path):
    profile = profile_of(ALL)
    profile.save(tmp_path / "all.json")
    groups = {"sequence_parallel_size": 2, "ulysses_degree": 2}
    case = {"groups": groups, "config": groups, "calls": [[9, {}]]}  # 135 tokens, padded to 136
    for (ours,) in outputs("vllm_omni_wan.py", case, tmp_path / "all.json"):
        close(ours, *expected(omni.diffusers_wan(), profile, 9))


@pytest.fixture
def of_hunyuan(omni, tmp_path, monkeypatch):
    """(the model in diffusers, its profile)"""
    model = omni.diffusers_hunyuan()
    profile = freeloc.default_profile(model, "vrpr+tsa", trained_latent_frames=4)
    profile.save(tmp_path / "hunyuan.json")
    monkeypatch.setenv("FREELOC_PROFILE", str(tmp_path / "hunyuan.json"))
    return model, profile


def expected_hunyuan(omni, model, profile, frames):
    with torch.no_grad():
        plain = model(**omni.hunyuan_inputs(frames))[0]
        with freeloc.patch(model, profile):
            return model(**omni.hunyuan_inputs(frames))[0], plain


def test_hunyuan_video_with_text_after_the_video_and_padding_in_it(omni, of_hunyuan):
    settings = omni.config(pipeline="HunyuanVideo15Pipeline")
    model = omni.hunyuan(settings)
    close(omni.output(model, settings, 9), *expected_hunyuan(omni, *of_hunyuan, 9))
    plain = omni.config(backends=None, pipeline="HunyuanVideo15Pipeline")
    assert torch.equal(omni.output(model, settings, 4), omni.output(omni.hunyuan(plain), plain, 4))


@pytest.mark.parametrize("name", CASES)
def test_two_processes_that_share_the_heads_of_hunyuan_video(omni, of_hunyuan, name):
    groups = CASES[name][0]
    settings = groups | {"pipeline": "HunyuanVideo15Pipeline"}
    case = {"groups": groups, "config": settings, "calls": [[4, {}], [9, {}]]}
    for ours in outputs("vllm_omni_wan.py", case, os.environ["FREELOC_PROFILE"]):
        assert (ours[0] - expected_hunyuan(omni, *of_hunyuan, 4)[1]).abs().max() < 1e-5
        close(ours[1], *expected_hunyuan(omni, *of_hunyuan, 9))


def test_tokens_before_the_video_are_text(omni, mixed):
    from vllm_omni.diffusion.attention.backends.abstract import AttentionMetadata, VideoTokenLayout

    q, k, v = torch.randn(3, 2, 5 + 9 * 6, 4, 24)
    layout = VideoTokenLayout(prefix_len=5, latent_grid=(9, 2, 3))
    found = omni.layer().attention.forward(q, k, v, AttentionMetadata(video_layout=layout))
    rope = freeloc.layer.ModelAttention.find("wan", layers=4, heads=4, head_dim=24, profile=mixed).rope
    parts = (x.transpose(1, 2) for x in (q, k, v))
    wanted = freeloc.attend_layer(mixed, 2, *parts, grid=(9, 2, 3), rope=rope, text_first=5).transpose(1, 2)
    assert (found - wanted).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ring_degree": 2, "sequence_parallel_size": 2}, "expected ring_degree 1, since .*: use ulysses_degree"),
        ({"allgather_degree": 2, "sequence_parallel_size": 2}, "expected allgather_degree 1, .*: use ulysses_degree"),
        ({"pipeline": "WanVACEPipeline"}, "WanVACEPipeline: it does not say which frames are reference images"),
        ({"pipeline": "FluxPipeline"}, "does not correct vLLM-Omni's FluxPipeline. Corrected: .*Remove the attention"),
    ],
)
def test_what_cannot_be_corrected_is_refused_when_the_model_is_loaded(omni, mixed, changes, words):
    with pytest.raises(freeloc.FreelocError, match=words):
        omni.layer(**changes)


def test_without_a_profile_that_fits_one_must_be_named(omni, monkeypatch):
    monkeypatch.delenv("FREELOC_PROFILE", raising=False)
    with pytest.raises(freeloc.FreelocError, match=r"none installed fits.*\(set FREELOC_PROFILE to the profile's name"):
        omni.layer()


def test_a_layer_without_a_grid_is_refused_and_other_layers_are_not(omni, mixed):
    q = torch.randn(1, 54, 4, 24)
    with pytest.raises(freeloc.FreelocError, match="expected the attention over a video to say its layer"):
        omni.layer().attention.forward(q, q, q, None)
    other = omni.layer(prefix="encoder.block.2.attn")
    assert torch.equal(other.attention.forward(q, q, q, None), other.attention.default.forward(q, q, q, None))


def test_the_profile_of_the_published_sizes_is_found(omni):
    assert _found("wan", 30, 12, 128, None, "{}").profile == freeloc.load_profile("wan2.1")
    with pytest.raises(freeloc.FreelocError, match=r"several installed ones fit: wan2.1-14b, wan2.2-a14b"):
        _found("wan", 40, 40, 128, None, "{}")
