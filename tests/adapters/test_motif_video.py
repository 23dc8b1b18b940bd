"""Motif-Video's decoder blocks: the video, then the encoder's output, which has no positions."""

import pytest
from dense import oracle
from families import FACTS
from freeloc_adapters.examples import motif_video
from test_families import run

import freeloc


@pytest.mark.parametrize("policy", ["vrpr", "tsa", "vrpr+tsa"])
@pytest.mark.parametrize("size", [(6, 2, 3), (9, 1, 7), (16, 2, 3)])
def test_the_second_stream_is_treated_as_text(policy, size):
    model, inputs = motif_video.motif_video(num_decoder_layers=1), motif_video.inputs(*size, batch=2)
    profile = freeloc.default_profile(model, policy, 4)
    before = run(model, inputs)
    with oracle(model, FACTS["motif-video"], lambda layer, count: freeloc.frame_plan(profile, layer, count), *size):
        expected = run(model, inputs)
    with freeloc.patch(model, profile) as patch:
        found = run(model, inputs)
    assert (found - expected).abs().max() <= 2e-5
    assert (found - before).abs().max() > 1e-4
    assert [layer.path for layer in patch.report().layers][-1] == "single_transformer_blocks.1.attn"
