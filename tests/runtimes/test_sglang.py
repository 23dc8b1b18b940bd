"""SGLang's own Wan, attention layer, hooks and sequence parallelism under the plugin, on its CPU platform.

See sglang.sh. Stand-ins: one operator of sgl_kernel, and packages that only other models or GPUs need. Its own tests
choose PyTorch's paths of its fused layers, and so does this one.
"""

import importlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from conftest import make_profile, wan_inputs

import freeloc

sys.path.insert(0, str(Path(__file__).parent / "support"))
from two_ranks import outputs, require

pytestmark = [pytest.mark.runtimes, pytest.mark.filterwarnings("default")]
require("sglang", "sglang-freeloc", "sglang.sh")

MIXED = {"vrpr": [0], "tsa": [1], "vrpr+tsa": [2], "none": [3]}
ALL = {"vrpr+tsa": [0, 1, 2, 3]}
SOME_HEADS = {"0": {"tsa": [1], "vrpr+tsa": [3]}}


def profile_of(layers, path, **changes):
    facts = {"name": "small", "layers": 4, "heads": 4, "head_dim": 32, "trained_latent_frames": 4}
    profile = make_profile(layers, model=facts, **changes)
    profile.save(path)
    return profile


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """The profile that FREELOC_PROFILE names: hooks are registered once per process."""
    path = tmp_path_factory.mktemp("profile") / "mixed.json"
    profile = profile_of(MIXED, path, heads=SOME_HEADS)
    with mock.patch.dict(os.environ, FREELOC_PROFILE=str(path)):
        yield profile


@pytest.fixture(scope="module")
def unhooked(mixed):
    """Outputs without the plugin, by the number of latent frames; and the support module."""
    alone = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517", "WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}
    with mock.patch.dict(os.environ, alone):
        module = importlib.import_module("sglang_wan")
        module.groups()
        model = module.transformer()
        found = {frames: module.output(model, frames) for frames in (1, 4, 9)}
        yield module, found
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def sgl(unhooked):
    """The same with the hooks applied, as in a worker."""
    module, _ = unhooked
    module.apply_plugin_hooks()
    return module


def expected(sgl, profile, frames):
    model = sgl.diffusers_wan()
    with torch.no_grad():
        plain = model(**wan_inputs(frames))[0]
        with freeloc.patch(model, profile):
            return model(**wan_inputs(frames))[0], plain


def close(found, wanted, plain):
    assert (found - wanted).abs().max() < 1e-5
    assert (found - plain).abs().max() > 1e-2  # the correction is a thousand times larger


def test_its_registry_finds_and_applies_the_plugin(sgl):
    from sglang.multimodal_gen.runtime.platforms.plugins import HookRegistry

    ours = {target for target, hooks in HookRegistry._hooks.items() if hooks[0][2].dist_name == "sglang-freeloc"}
    assert len(ours) == 5
    assert ours <= HookRegistry._patched


def test_its_wan_gives_what_a_patched_diffusers_model_gives(sgl, mixed, caplog):
    model = sgl.transformer()
    with caplog.at_level("INFO", "sglang.multimodal_gen.freeloc"):
        found = [sgl.output(model, 9) for _ in range(2)]
    close(found[0], *expected(sgl, mixed, 9))
    assert torch.equal(*found)
    said = [record.getMessage() for record in caplog.records if record.name == "sglang.multimodal_gen.freeloc"]
    assert said == ["freeloc: 9 latent frames, trained on 4: corrected 3 of 4 layers (0-2), profile small, default"]


def test_up_to_the_trained_length_it_is_the_default_kernel_bit_by_bit(unhooked, sgl):
    _, found = unhooked
    model = sgl.transformer()
    assert torch.equal(sgl.output(model, 1), found[1])
    assert torch.equal(sgl.output(model, 4), found[4])
    assert (sgl.output(model, 9) - found[9]).abs().max() > 1e-2


def test_compiled_blocks_give_the_same(sgl, mixed):
    model = sgl.transformer()
    wanted = [sgl.output(model, frames) for frames in (4, 9)]
    model.blocks[0].compile()
    found = [sgl.output(model, frames) for frames in (4, 9)]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


CASES = {
    "tensor parallelism": ({"tp_size": 2}, [[4, {}], [9, {}]]),
    "Ulysses, tokens split": ({"sp_size": 2, "ulysses_degree": 2}, [[4, {}], [10, {}]]),
    "Ulysses, frames split": ({"sp_size": 2, "ulysses_degree": 2}, [[4, {}], [10, {"split_tokens": False}]]),
}


@pytest.mark.parametrize("name", CASES)
def test_two_processes_that_share_the_heads(sgl, mixed, name):
    groups, calls = CASES[name]
    port = str(29520 + list(CASES).index(name))
    case = {"groups": groups, "calls": calls, "port": port}
    for ours in outputs("sglang_wan.py", case, os.environ["FREELOC_PROFILE"]):
        assert (ours[0] - expected(sgl, mixed, 4)[1]).abs().max() < 1e-5
        close(ours[1], *expected(sgl, mixed, calls[1][0]))


def test_padding_is_not_attended_to(sgl, tmp_path):
    profile = profile_of(ALL, tmp_path / "all.json")
    case = {"groups": {"sp_size": 2, "ulysses_degree": 2}, "calls": [[9, {}]], "port": "29530"}
    for (ours,) in outputs("sglang_wan.py", case, tmp_path / "all.json"):  # 135 tokens, padded to 136
        close(ours, *expected(sgl, profile, 9))


def test_ring_attention_is_refused_for_long_videos(sgl):
    model = sgl.transformer()
    words = r"expected Ulysses alone, .* start SGLang with --ulysses-degree"
    with mock.patch.object(sgl.parallel_state, "get_ring_parallel_world_size", return_value=2):
        sgl.output(model, 4)
        with pytest.raises(freeloc.FreelocError, match=words):
            sgl.output(model, 9)


def test_more_than_attention_over_the_video_is_refused(sgl):
    model = sgl.transformer()
    attention = model.blocks[0].attn1
    attention.freeloc_layer.running.grid, attention.freeloc_layer.running.long = (9, 2, 3), True
    q = torch.randn(1, 54, 4, 32)
    with pytest.raises(
        freeloc.FreelocError, match=r"expected attention over the video alone .*, found attn_mask: unset"
    ):
        attention(q, q, q, attn_mask=torch.ones(1, 54, dtype=torch.bool))


def test_other_models_and_attention_are_refused_when_the_model_is_loaded(sgl):
    from sglang.multimodal_gen.runtime.models.dits.wanvideo import WanTransformer3DModel

    class Other(WanTransformer3DModel):
        pass

    with pytest.raises(
        freeloc.FreelocError, match=r"does not correct SGLang's .*Other, only its WanTransformer3DModel"
    ):
        Other(SimpleNamespace(), {})
    with (
        mock.patch("sglang.multimodal_gen.runtime.models.dits.wanvideo.USPAttention", torch.nn.Identity),
        pytest.raises(
            freeloc.FreelocError, match="expected USPAttention in the blocks of SGLang's Wan, found Identity"
        ),
    ):
        sgl.transformer()


def test_a_profile_that_does_not_fit_is_refused(sgl):
    with (
        mock.patch.dict(os.environ, FREELOC_PROFILE="wan2.1"),
        pytest.raises(freeloc.FreelocError, match="30 layers, found 4"),
    ):
        sgl.transformer()
    with (
        mock.patch.dict(os.environ, FREELOC_PROFILE="auto"),
        pytest.raises(freeloc.FreelocError, match=r"none installed fits.*\(set FREELOC_PROFILE to the profile's name"),
    ):
        sgl.transformer()
