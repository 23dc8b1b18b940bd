"""What must be true of the original HunyuanVideo-1.5, for the double and for the real source."""

import contextlib
import itertools
import sys
from unittest import mock

import pytest
import torch
from conftest import make_profile
from dense import Facts, axis_by_axis, dense_attention, frequencies, interleaved
from original_wan import TOLERANCE, difference

import freeloc
from freeloc.errors import LayoutError
from freeloc.testing import Example, run_checks

FILE = "hyvideo.models.transformers.hunyuanvideo_1_5_transformer"
SIZE = 2, 3
FACTS = Facts(lambda model: [], interleaved(24), *axis_by_axis(*[frequencies(8, 256.0)] * 3))


@contextlib.contextmanager
def oracle(profile, frames):
    """Inside the block, the model does not rotate, and attention is computed from dense logits, block after block."""
    layer = itertools.count()

    def attention(q, k, v, img_q_len, text_mask, **others):
        plan = freeloc.frame_plan(profile, next(layer), frames)
        q, k, v = (torch.cat(pair, dim=1).transpose(1, 2) for pair in (q, k, v))
        out = torch.zeros_like(q)
        for sample, valid in enumerate((text_mask.sum(dim=1) + img_q_len).tolist()):
            at = slice(sample, sample + 1), slice(None), slice(0, valid)
            out[at] = dense_attention(q[at], k[at], v[at], plan, *SIZE, FACTS, None, None)
        return out.transpose(1, 2).flatten(2)

    file = sys.modules[FILE]
    with (
        mock.patch.object(file, "parallel_attention", attention),
        mock.patch.object(file, "apply_rotary_emb", lambda q, k, *rest, **named: (q, k)),
    ):
        yield


class Cases:
    """The tests. A subclass has the functions `make`, of a mode of attention, and `inputs`."""

    modes: tuple[str, ...]

    @pytest.fixture
    def model(self):
        return self.make(self.modes[0])

    def run(self, model, frames, batch=2):
        with torch.no_grad():
            return model(**self.inputs(frames, *SIZE, batch))[0]

    def test_conformance(self):
        for mode in self.modes:
            example = Example("hunyuan-video-1.5-original", lambda mode=mode: self.make(mode), self.inputs)
            results = run_checks(example)
            assert [f"{result.check}: {result.problem or result.blocked}" for result in results if not result.met] == []

    @pytest.mark.parametrize("policy", ["vrpr", "tsa", "vrpr+tsa", "mixed"])
    def test_equals_the_oracle(self, model, policy, record_property):
        layers = None if policy == "mixed" else {policy: [0, 1, 2, 3]}
        profile = make_profile(layers, adapter="hunyuan-video-1.5")
        assert freeloc.discovery.find_adapter(model).name == "hunyuan-video-1.5-original"
        before = self.run(model, 12)
        with oracle(profile, 12):
            expected = self.run(model, 12)
        with freeloc.patch(model, profile):
            found = self.run(model, 12)
            short = self.run(model, 4)
        record_property("difference", difference(found, expected))
        assert difference(found, expected) <= TOLERANCE
        assert difference(found, before) > 1e-3
        assert torch.equal(short, self.run(model, 4))
        assert torch.equal(self.run(model, 12), before)

    @pytest.mark.parametrize("mode", ["flex-block-attn", "sageattn"])
    def test_kernels_that_are_not_dense_are_refused(self, mode):
        model = self.make(mode)
        with (
            freeloc.patch(model, make_profile(adapter="hunyuan-video-1.5")),
            pytest.raises(LayoutError, match=f"expected attn_mode=torch in its attention, found {mode}"),
        ):
            self.run(model, 12)
