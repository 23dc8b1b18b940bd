"""What must be true of ComfyUI-WanVideoWrapper's Wan, for the double and for the real source."""

import functools
import sys
from unittest import mock

import pytest
import torch
from conftest import make_profile
from original_wan import TOLERANCE, dense_logits, difference
from wrapper_double import EXPECTED

import freeloc
from freeloc.testing import Example, run_checks

SIZE = 2, 3


def in_float32(kernel):
    """The kernel, without its rounding of queries, keys and values to bfloat16."""

    @functools.wraps(kernel)
    def attention(*args, **options):
        return kernel(*args, **options | {"dtype": torch.float32})

    return attention


class Cases:
    """The tests. A subclass has the functions `make` and `inputs`, and the name of the model's `file`."""

    file: str

    @pytest.fixture
    def model(self):
        model = self.make()
        for name, parameter in model.named_parameters():
            if ".q." in name or ".k." in name:
                parameter.data.mul_(4)
        return model

    def run(self, model, frames, batch=1):
        with torch.no_grad():
            return torch.stack(model(**self.inputs(frames, *SIZE, batch)))

    def test_conformance(self):
        example = Example(
            "wan-video-wrapper", self.make, self.inputs, video="x", axes="c f h w", expected_failures=EXPECTED
        )
        results = run_checks(example)
        assert [f"{result.check}: {result.problem or result.blocked}" for result in results if not result.passed] == []

    @pytest.mark.parametrize("policy", ["vrpr", "tsa", "vrpr+tsa", "mixed"])
    def test_equals_the_oracle(self, model, policy, record_property):
        profile = make_profile(None if policy == "mixed" else {policy: [0, 1, 2, 3]})
        assert freeloc.discovery.find_adapter(model).name == "wan-video-wrapper"
        file = sys.modules[self.file]
        with mock.patch.object(file, "attention", in_float32(file.attention)):
            before = self.run(model, 12, 2)
            sites = {block.self_attn: layer for layer, block in enumerate(model.blocks)}
            still = {f"{self.file}:rope_apply": lambda x, *rest: x.float()}
            with dense_logits(sites, profile, SIZE, f"{self.file}:attention", still):
                oracle = self.run(model, 12, 2)
            with freeloc.patch(model, profile):
                found = self.run(model, 12, 2)
                short = self.run(model, 4)
            record_property("difference", difference(found, oracle))
            assert difference(found, oracle) <= TOLERANCE
            assert difference(found, before) > 1e-2
            assert torch.equal(short, self.run(model, 4))
            assert torch.equal(self.run(model, 12, 2), before)
