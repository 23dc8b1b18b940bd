import pytest
import torch
from conftest import AttentionMetadata, HunyuanVideo15Transformer3DModel, VideoTokenLayout
from vllm_omni_freeloc.backend import FreelocBackend, FreelocImpl

import freeloc
from freeloc.layer import ModelAttention

PROFILE = {
    "adapter": "wan",
    "model": {"name": "small", "layers": 4, "heads": 4, "head_dim": 24, "trained_latent_frames": 4},
    "layers": {"vrpr": [0], "tsa": [1], "vrpr+tsa": [2], "none": [3]},
    "heads": {"0": {"tsa": [1], "vrpr+tsa": [3]}},
    "provenance": {"kind": "default", "source": "a test"},
}


@pytest.fixture
def whole(server, tmp_path, monkeypatch):
    """The corrected attention of all heads, as `ModelAttention` computes it."""
    profile = freeloc.Profile.model_validate(PROFILE)
    profile.save(tmp_path / "small.json")
    monkeypatch.setenv("FREELOC_PROFILE", str(tmp_path / "small.json"))
    return ModelAttention.find("wan", layers=4, heads=4, head_dim=24, profile=profile)


def impl(prefix="blocks.0.attn1", num_heads=4, **rest):
    return FreelocImpl(num_heads=num_heads, head_size=24, softmax_scale=24**-0.5, prefix=prefix, **rest)


def video(frames, prefix_len=0):
    return AttentionMetadata(video_layout=VideoTokenLayout(prefix_len, (frames, 2, 3), frames * 6))


def tensors(tokens):
    return torch.randn(3, 2, tokens, 4, 24, generator=torch.Generator().manual_seed(0))


def test_a_long_video_is_corrected_and_said_once(whole, server):
    given = tensors(54)
    for layer in (0, 1, 2, 0):
        found = impl(f"blocks.{layer}.attn1").forward(*given, video(9))
        assert torch.equal(found, whole.attend(layer, *given, grid=(9, 2, 3)))
    assert server.said == [
        "freeloc: 9 latent frames, trained on 4: corrected 3 of 4 layers (0-2), profile small, default"
    ]


@pytest.mark.parametrize(("prefix", "frames"), [("blocks.0.attn1", 4), ("blocks.3.attn1", 9)])
def test_a_short_video_or_another_layer_gets_the_default_kernel(whole, prefix, frames):
    layer, given = impl(prefix), tensors(frames * 6)
    assert torch.equal(layer.forward(*given, video(frames)), layer.default.forward(*given))
    assert layer.default.calls == 2


def test_other_attention_passes_through(whole):
    given = tensors(7)
    for layer in (impl("blocks.0.attn2", role="cross"), impl("text_encoder.block.0.attn")):
        assert torch.equal(layer.forward(*given, None), layer.default.forward(*given))


def test_text_before_the_video_and_padding_after_it(whole):
    given = tensors(5 + 54 + 3)
    found = impl().forward(*given, video(9, prefix_len=5))
    assert torch.equal(found[:, :59], whole.attend(0, *given[:, :, :59], grid=(9, 2, 3), text_first=5))
    assert not found[:, 59:].any()


@pytest.mark.parametrize(("tensor_rank", "ulysses_rank"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_heads_under_tensor_and_ulysses_parallelism(whole, server, tensor_rank, ulysses_rank):
    server.tensor_rank, server.ulysses_rank = tensor_rank, ulysses_rank
    given = tensors(54)
    all_heads = whole.attend(0, *given, grid=(9, 2, 3))
    first = 2 * tensor_rank + ulysses_rank
    found = impl(num_heads=2).forward(*given[..., first : first + 1, :], video(9))
    assert (found - all_heads[:, :, first : first + 1]).abs().max() < 1e-6
    if ulysses_rank == 0:
        both = slice(2 * tensor_rank, 2 * tensor_rank + 2)
        found = impl(num_heads=2).forward(*given[..., both, :], video(9))
        assert (found - all_heads[:, :, both]).abs().max() < 1e-6


@pytest.fixture
def hunyuan(server, tmp_path, monkeypatch):
    """A HunyuanVideo 1.5 of one layer, and its corrected attention as `ModelAttention` computes it."""
    facts = {"name": "small", "layers": 1, "heads": 4, "head_dim": 24, "trained_latent_frames": 4}
    changes = {"adapter": "hunyuan-video-1.5", "model": facts, "layers": {"vrpr": [0]}, "heads": {}}
    profile = freeloc.Profile.model_validate(PROFILE | changes)
    profile.save(tmp_path / "hunyuan.json")
    monkeypatch.setenv("FREELOC_PROFILE", str(tmp_path / "hunyuan.json"))
    rope = {"rope_axes_dim": [8, 8, 8], "rope_theta": 256.0}
    server.config.model_class_name = "HunyuanVideo15Pipeline"
    server.config.tf_model_config = {"num_layers": 1, "num_attention_heads": 4, "attention_head_dim": 24} | rope
    sizes = {"layers": 1, "heads": 4, "head_dim": 24}
    whole = ModelAttention.find("hunyuan-video-1.5", **sizes, config=rope, profile=profile)
    return HunyuanVideo15Transformer3DModel(impl(prefix="")), whole


def test_hunyuan_video_is_watched_since_it_tells_neither_layer_nor_grid(hunyuan):
    model, whole = hunyuan
    given, frames = tensors(54 + 5), torch.empty(2, 4, 9, 2, 3)
    mask = torch.ones(2, 59, dtype=torch.bool)
    mask[1, -2:] = False
    for metadata in (AttentionMetadata(mask), AttentionMetadata(mask, joint_query=given[0][:, 54:])):
        found = model.forward(frames, given, metadata)
        wanted = whole.attend(0, *given, grid=(9, 2, 3), text_last=5, mask=mask[:, None, None])
        assert torch.equal(found, wanted)
    short = model.forward(frames[:, :, :4], given, None)
    assert torch.equal(short, model.transformer_blocks[0].attn.attn.attention.default.forward(*given))
    with pytest.raises(freeloc.FreelocError, match=r"expected 54 tokens of a video, .* found 55 with padding"):
        model.forward(frames, given, AttentionMetadata(joint_query=given[0][:, :4]))


def test_what_cannot_be_right_is_refused(whole, server):
    with pytest.raises(freeloc.FreelocError, match="expected the attention over a video to say its layer"):
        impl().forward(*tensors(54), None)
    server.config.parallel_config.ring_degree = 2
    with pytest.raises(freeloc.FreelocError, match=r"expected ring_degree 1, .* found 2: use ulysses_degree"):
        impl()
    server.config.parallel_config.ring_degree = 1
    server.config.model_class_name = "WanS2VPipeline"
    with pytest.raises(freeloc.FreelocError, match="WanS2VPipeline: it does not tell its attention where the video's"):
        impl()
    server.config.model_class_name, server.config.tf_model_config = "WanPipeline", {}
    with pytest.raises(freeloc.FreelocError, match=r"expected num_layers, .* in the configuration of the transformer"):
        impl()


def test_the_backend_says_what_its_default_can(whole):
    assert FreelocBackend.get_name() == "FREELOC"
    assert FreelocBackend.get_impl_cls() is FreelocImpl
    assert FreelocBackend.supports_attention_mask()
    assert FreelocBackend.get_supported_head_sizes() == []
