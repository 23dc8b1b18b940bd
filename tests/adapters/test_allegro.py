"""Allegro beyond the tests of all families: its own mask over the video's tokens."""

import torch
from dense import oracle
from families import FACTS
from freeloc_adapters.examples import allegro

import freeloc


def test_its_own_mask_over_tokens_is_kept():
    model, inputs = allegro.allegro(), allegro.inputs(9, 2, 3, 2)
    profile = freeloc.default_profile(model, "vrpr+tsa", trained_latent_frames=4)
    inputs["attention_mask"] = torch.ones(2, 9, 4, 6)
    inputs["attention_mask"][1, :, :, 4:] = 0  # the last column of tokens is padding
    unmasked = allegro.inputs(9, 2, 3, 2)
    with torch.no_grad():
        with oracle(model, FACTS["allegro"], lambda layer, count: freeloc.frame_plan(profile, layer, count), 9, 2, 3):
            expected = model(**inputs).sample
        with freeloc.patch(model, profile):
            found, other = model(**inputs).sample, model(**unmasked).sample
    assert (found - expected).abs().max() <= 2e-5
    assert (found - other)[1].abs().max() > 1e-2
    assert (found - other)[0].abs().max() <= 2e-5
