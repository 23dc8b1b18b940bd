"""What must be true of musubi-tuner's Wan, for the double and for the real source."""

import functools
import sys
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from conftest import make_profile
from original_wan import TOLERANCE, dense_logits, difference

import freeloc
from freeloc.errors import LayoutError
from freeloc.testing import Example, run_checks

FILE = "musubi_tuner.wan.modules.model"
SIZE = 2, 3


def without_rounding(file):
    """The kernel in float32, with its arguments."""

    @functools.wraps(file.flash_attention)
    def flash_attention(qkv, **options):
        q, k, v = (tensor.transpose(1, 2) for tensor in qkv)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    return flash_attention


class Cases:
    """The tests. A subclass has the functions `make` and `inputs`."""

    @pytest.fixture
    def model(self):
        model = self.make()
        for name, parameter in model.named_parameters():
            if ".q." in name or ".k." in name:
                parameter.data.mul_(4)
        return model

    def run(self, model, frames, batch=1, **changes):
        with torch.no_grad():
            return torch.stack(model(**self.inputs(frames, *SIZE, batch) | changes))

    def test_conformance(self):
        results = run_checks(Example("musubi-wan", self.make, self.inputs, video="x", axes="c f h w"))
        assert [f"{result.check}: {result.problem or result.blocked}" for result in results if not result.met] == []

    @pytest.mark.parametrize("policy", ["vrpr", "tsa", "vrpr+tsa", "mixed"])
    @pytest.mark.parametrize("batch", [1, 2])
    def test_equals_the_oracle(self, model, policy, batch, record_property):
        profile = make_profile(None if policy == "mixed" else {policy: [0, 1, 2, 3]})
        assert freeloc.discovery.find_adapter(model).name == "musubi-wan"
        before = self.run(model, 12, batch)
        with freeloc.patch(model, profile):
            assert difference(self.run(model, 12, batch), before) > 1e-2
            short = self.run(model, 4, batch)
        assert torch.equal(short, self.run(model, 4, batch))
        assert torch.equal(self.run(model, 12, batch), before)
        # Its kernel rounds to bfloat16, so that a difference of 1e-7 may become one of 1e-3 in cross-attention.
        with mock.patch.object(sys.modules[FILE], "flash_attention", without_rounding(sys.modules[FILE])):
            self.compare(model, profile, batch, record_property)

    def compare(self, model, profile, batch, record_property):
        sites = {block.self_attn: layer for layer, block in enumerate(model.blocks)}
        still = {f"{FILE}:rope_apply_inplace_cached": lambda x, *rest: x}
        with dense_logits(sites, profile, SIZE, f"{FILE}:flash_attention", still):
            oracle = self.run(model, 12, batch)
        with freeloc.patch(model, profile):
            found = self.run(model, 12, batch)
        record_property("difference", difference(found, oracle))
        assert difference(found, oracle) <= TOLERANCE

    def test_frames_at_times_of_their_own_are_refused(self, model):
        indices = [[*range(0, 24, 2)]]
        with (
            freeloc.patch(model, make_profile()),
            pytest.raises(LayoutError, match="called with f_indices: each sample has frames at times of its own"),
        ):
            self.run(model, 12, f_indices=indices)
