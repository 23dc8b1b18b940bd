from types import SimpleNamespace

import pytest
import sglang_freeloc
import torch
from conftest import USPAttention
from sglang_freeloc import hooks

import freeloc
from freeloc.layer import ModelAttention

PROFILE = {
    "adapter": "wan",
    "model": {"name": "small", "layers": 4, "heads": 4, "head_dim": 24, "trained_latent_frames": 4},
    "layers": {"vrpr": [0], "tsa": [1], "vrpr+tsa": [2], "none": [3]},
    "heads": {"0": {"tsa": [1], "vrpr+tsa": [3]}},
    "provenance": {"kind": "default", "source": "a test"},
}
CONFIG = SimpleNamespace(num_layers=4, num_attention_heads=4, attention_head_dim=24)


@pytest.fixture
def whole(server, tmp_path, monkeypatch):
    """The corrected attention of all heads, as `ModelAttention` computes it."""
    profile = freeloc.Profile.model_validate(PROFILE)
    profile.save(tmp_path / "small.json")
    monkeypatch.setenv("FREELOC_PROFILE", str(tmp_path / "small.json"))
    return ModelAttention.find("wan", layers=4, heads=4, head_dim=24, profile=profile)


@pytest.fixture
def model(whole):
    """A transformer of four layers, after its construction."""
    blocks = [SimpleNamespace(attn1=USPAttention()) for _ in range(4)]
    made = SimpleNamespace(blocks=blocks, patch_size=(1, 2, 2), sp_size=1)
    hooks.number_layers(None, made, CONFIG, {})
    return made


def forward(model, layer, given, frames, hidden_frames=None, **rest):
    """One layer in the forward of a video of 2 x 3 tokens per frame."""
    video = torch.empty(2, 4, hidden_frames or frames, 4, 6)
    attention = model.blocks[layer].attn1

    def run(model, hidden_states):
        return hooks.attention(USPAttention.forward, attention, *given, **rest)

    return hooks.note_grid(run, model, video)


def tensors(tokens):
    return torch.randn(3, 2, tokens, 4, 24, generator=torch.Generator().manual_seed(0))


def test_the_variable_turns_it_on(server, monkeypatch):
    monkeypatch.delenv("FREELOC_PROFILE", raising=False)
    sglang_freeloc.register()
    assert server.hooks == []
    monkeypatch.setenv("FREELOC_PROFILE", "auto")
    sglang_freeloc.register()
    assert len({target for target, _, _ in server.hooks}) == 5


def test_a_long_video_is_corrected_and_a_short_one_is_not(model, whole):
    given = tensors(54)
    for layer in range(3):
        assert torch.equal(forward(model, layer, given, 9), whole.attend(layer, *given, grid=(9, 2, 3)))
    plain = USPAttention().forward(*given)
    assert torch.equal(forward(model, 3, given, 9), plain)  # the profile leaves it alone
    assert torch.equal(hooks.attention(USPAttention.forward, model.blocks[0].attn1, *given), plain)  # no forward runs
    given = tensors(24)
    assert torch.equal(forward(model, 0, given, 4), USPAttention().forward(*given))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("split", [True, False])
def test_heads_and_grid_under_ulysses(model, whole, server, rank, split):
    server.ulysses, server.ulysses_rank, server.split, model.sp_size = 2, rank, split, 2
    half = tensors(30)
    found = forward(model, 0, half, 10, hidden_frames=10 if split else 5)
    given = torch.cat([half, half], dim=2)
    own = slice(2 * rank, 2 * rank + 2)
    assert (found - whole.attend(0, *given, grid=(10, 2, 3))[:, :, own]).abs().max() < 1e-6


def test_heads_under_tensor_parallelism(model, whole, server):
    server.tensor_rank = 1
    given = tensors(54)
    model.blocks[0].attn1.num_heads = 2
    found = forward(model, 0, given[..., 2:, :], 9)
    assert (found - whole.attend(0, *given, grid=(9, 2, 3))[:, :, 2:]).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("changes", "rest", "words"),
    [
        ({"ring": 2}, {}, "expected Ulysses alone"),
        ({"graph": True}, {}, "expected no CUDA graph around the attention of a long video"),
        (
            {},
            {"attn_mask": torch.ones(2, 54)},
            "expected attention over the video alone .*, found attn_mask",
        ),
    ],
)
def test_what_cannot_be_right_is_refused(model, server, changes, rest, words):
    server.__dict__.update(changes)
    with pytest.raises(freeloc.FreelocError, match=words):
        forward(model, 0, tensors(54), 9, **rest)


def test_the_shortcut_that_fills_exchange_blocks_is_not_for_long_videos(model):
    attention = model.blocks[0].attn1
    assert hooks.not_filled(lambda *given: "filled", attention) == "filled"
    attention.freeloc_layer.running.long = True
    assert hooks.not_filled(lambda *given: "filled", attention) is None


def test_other_models_are_refused(whole):
    with pytest.raises(freeloc.FreelocError, match="freeloc does not correct SGLang's SimpleNamespace, only its Wan"):
        hooks.require_known(SimpleNamespace())
    with pytest.raises(freeloc.FreelocError, match=r"expected USPAttention in the blocks .*, found SimpleNamespace"):
        hooks.number_layers(None, SimpleNamespace(blocks=[SimpleNamespace(attn1=SimpleNamespace())]), CONFIG, {})
