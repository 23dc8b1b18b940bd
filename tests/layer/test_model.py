import pytest
import torch
from conftest import make_profile

import freeloc
from freeloc import FreelocError, attend_layer
from freeloc.layer import ModelAttention
from freeloc.profile.files import with_choice

GRID = (9, 2, 3)
SOME_HEADS = {"2": {"tsa": [1]}}


def found(**changes):
    return ModelAttention.find(**{"adapter": "wan", "layers": 4, "heads": 2, "head_dim": 24} | changes)


@pytest.fixture
def model():
    said = []
    model = found(profile=make_profile(heads=SOME_HEADS), say=said.append)
    model.said = said
    return model


@pytest.fixture
def tensors():
    """Query, key and value, (batch, tokens, heads, head_dim)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 2, 9 * 6, 2, 24, generator=generator)


def as_layer(model, layer, tensors, **rest):
    parts = (x.transpose(1, 2) for x in tensors)
    return attend_layer(model.profile, layer, *parts, grid=GRID, rope=model.rope, **rest).transpose(1, 2)


def test_it_is_the_attention_of_the_layer(model, tensors):
    assert torch.equal(model.attend(2, *tensors, grid=GRID), as_layer(model, 2, tensors))
    scaled = model.attend(2, *tensors, grid=GRID, scale=0.1)
    assert torch.equal(scaled, as_layer(model, 2, tensors, scale=0.1))


def test_a_process_has_some_of_the_heads(model, tensors):
    whole = model.attend(2, *tensors, grid=GRID)
    for head in range(2):
        part = model.attend(2, *tensors[..., head : head + 1, :], grid=GRID, first_head=head)
        assert (part - whole[:, :, head : head + 1]).abs().max() < 1e-6


def test_padding_of_tokens_and_heads_changes_nothing_and_is_zero(model, tensors):
    whole = model.attend(2, *tensors, grid=GRID)
    padded = torch.nn.functional.pad(tensors, (0, 0, 0, 1, 0, 5), value=9.0)
    out = model.attend(2, *padded, grid=GRID)
    assert torch.equal(out[:, :54, :2], whole)
    assert not out[:, 54:].any()
    assert not out[:, :, 2:].any()
    assert not model.attend(2, *tensors, grid=GRID, first_head=2).any()


def test_text_is_around_the_video(model, tensors):
    more = torch.randn(3, 2, 54 + 3 + 2, 2, 24)
    out = model.attend(0, *more, grid=GRID, text_first=3, text_last=2)
    assert torch.equal(out, as_layer(model, 0, more, text_first=3, text_last=2))


def test_layers_that_the_profile_leaves_alone_are_for_the_engine_s_kernel(model):
    assert [model.corrects(layer, 9) for layer in range(4)] == [True, True, True, False]
    assert not any(model.corrects(layer, 4) for layer in range(4))


def test_paths_of_other_modules_have_no_layer(model):
    paths = ("blocks.11.attn1", "blocks.3.attn2", "blocks.attn1", "encoder.blocks.3.attn1", "blocks.x.attn1", "")
    assert [model.layer_of(path) for path in paths] == [11, None, None, None, None, None]


def test_it_says_once_for_each_length_what_was_corrected(model, tensors):
    for layer in (0, 1, 2, 0, 1, 2):
        model.attend(layer, *tensors, grid=GRID)
    assert model.said == [
        "freeloc: 9 latent frames, trained on 4: corrected 3 of 4 layers (0-2), profile small, default"
    ]
    assert "corrected 0 of 4 layers (none)" in model.report(5)


def test_it_says_that_it_does_not_prepare_noise(tensors):
    plain = freeloc.load_profile("wan2.1")
    for changed, noise in ((plain, ""), (with_choice(plain, plain.layers, noise="freenoise"), "freenoise")):
        said = ModelAttention(changed, None).report(frames=41)
        assert said.endswith("; the initial noise of freenoise is not prepared here") is bool(noise)


def test_a_process_with_some_of_the_layers_says_so_in_its_second_forward(model, tensors):
    for layer in (0, 2, 0):
        model.attend(layer, *tensors, grid=GRID)
    assert len(model.said) == 1
    assert "corrected 2 of 4 layers (0, 2)" in model.said[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"adapter": "wn"}, "no adapter is named 'wn'; did you mean"),
        ({"profile": "wan2.1"}, "expected 30 layers, found 4; 12 heads, found 2"),
        ({}, "expected profile=... for this model: none installed fits"),
        ({"layers": 40, "heads": 40, "head_dim": 128}, "several installed ones fit: wan2.1-14b, wan2.2-a14b"),
        ({"adapter": "ltx"}, "the adapter 'ltx' reads its RoPE from a model of its own classes"),
        ({"adapter": "wan-vace"}, "the adapter 'wan-vace' reads the numbers of its layers from a model"),
        ({"adapter": "hunyuan-video-1.5"}, "expects .*config.rope_axes_dim.0"),
    ],
)
def test_what_does_not_fit_is_refused(changes, words):
    with pytest.raises(FreelocError, match=words):
        found(**changes)


def test_a_configuration_stands_for_the_model():
    config = {"rope_axes_dim": [16, 56, 56], "rope_theta": 256.0}
    model = found(adapter="hunyuan-video-1.5", layers=54, heads=16, head_dim=128, config=config)
    assert (model.rope.channels, model.rope.theta) == (16, 256.0)
    assert model.layer_of("transformer_blocks.7.attn") == 7
    assert model.profile == freeloc.load_profile("hunyuan-video-1.5")


def test_too_few_tokens_are_refused(model, tensors):
    with pytest.raises(FreelocError, match=r"expected all 54 tokens \(9 latent frames of 2 x 3, 0 of text\).*found 53"):
        model.attend(0, *tensors[:, :, 1:], grid=GRID)
    with pytest.raises(FreelocError, match="expected a first head from 0 to 1, found -1"):
        model.attend(0, *tensors, grid=GRID, first_head=-1)
