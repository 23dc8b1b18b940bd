"""What must be true of DiffSynth's Wan, for the double and for the real source."""

import sys
from typing import Any

import pytest
import torch
from conftest import make_profile
from original_wan import TOLERANCE, dense_logits, difference

import freeloc
from freeloc.errors import AdapterError, LayoutError
from freeloc.testing import Example, noise, random_model

DIT, PIPELINE = "diffsynth.models.wan_video_dit", "diffsynth.pipelines.wan_video"
SIZE = 2, 3
SIZES = {"dim": 48, "num_heads": 2, "num_layers": 4, "in_dim": 4, "out_dim": 4, "text_dim": 16}


def sharpened(make):
    """A small random model whose attention is far from uniform."""

    def build():
        model = make()
        for name, parameter in model.named_parameters():
            if ".q." in name or ".k." in name:
                parameter.data.mul_(4)
        return model

    return random_model(build)


def inputs(frames, height=SIZE[0], width=SIZE[1], batch=1, text=5) -> dict[str, Any]:
    return {
        "latents": noise(batch, 4, frames, 2 * height, 2 * width),
        "timestep": torch.full((batch,), 500.0),
        "context": noise(batch, text, 16),
    }


def run(model, given):
    with torch.no_grad():
        return sys.modules[PIPELINE].model_fn_wan_video(model, **given)


def example(model) -> Example:
    return Example("diffsynth-wan", model, inputs, video="latents", axes="b c f h w", run=run)


def sites(model, vace=None) -> dict[Any, int]:
    found = {block.self_attn: layer for layer, block in enumerate(model.blocks)}
    beside = zip(vace.vace_layers, vace.vace_blocks, strict=True) if vace is not None else ()
    return found | {block.self_attn: layer for layer, block in beside}


def expected(model, profile, given, vace=None, references=0):
    still = {f"{DIT}:rope_apply": lambda x, freqs, num_heads: x}
    names = (f"{DIT}:flash_attention", still, "num_heads", references)
    with dense_logits(sites(model, vace), profile, SIZE, *names):
        return run(model, given)


class Cases:
    """The tests. A subclass has the fixtures `model` and `vace`."""

    def test_the_adapter_is_found_from_the_model_alone(self, model, vace):
        assert freeloc.discovery.find_adapter(model).name == "diffsynth-wan"
        assert freeloc.discovery.find_adapter(vace).name == "diffsynth-wan-vace"

    @pytest.mark.parametrize("policy", ["vrpr", "tsa", "vrpr+tsa", "mixed"])
    def test_equals_the_oracle(self, model, policy, record_property):
        profile = make_profile(None if policy == "mixed" else {policy: [0, 1, 2, 3]})
        given = inputs(12)
        before, oracle = run(model, given), expected(model, profile, given)
        with freeloc.patch(model, profile) as patch:
            found = run(model, given)
        record_property("difference", difference(found, oracle))
        assert difference(found, oracle) <= TOLERANCE
        assert difference(before, oracle) > 1e-3
        assert torch.equal(run(model, given), before)
        (report,) = patch.report().models
        assert (dict(report.forwards), dict(report.due), report.failed) == ({12: 1}, {12: 1}, 0)

    def test_within_the_trained_length_nothing_changes(self, model):
        before = run(model, inputs(4))
        with freeloc.patch(model, make_profile()) as patch:
            assert torch.equal(run(model, inputs(4)), before)
        assert patch.report().corrected_calls == 0
        assert dict(patch.report().models[0].forwards) == {4: 1}

    def test_several_lengths_and_a_batch(self, model):
        profile = make_profile()
        with freeloc.patch(model, profile) as patch:
            found = [run(model, inputs(frames, batch=batch)) for frames, batch in ((12, 1), (4, 1), (9, 2))]
        oracles = [expected(model, profile, inputs(frames, batch=batch)) for frames, batch in ((12, 1), (4, 1), (9, 2))]
        assert max(map(difference, found, oracles)) <= TOLERANCE
        assert dict(patch.report().models[0].forwards) == {12: 1, 4: 1, 9: 1}

    def test_sliding_windows_are_videos_of_their_own(self, model):
        profile = make_profile()
        for window, corrected in ((4, False), (8, True)):
            given = inputs(12) | {"sliding_window_size": window, "sliding_window_stride": window // 2}
            before, oracle = run(model, given), expected(model, profile, given)
            with freeloc.patch(model, profile) as patch:
                found = run(model, given)
            windows = {4: 5, 8: 2}[window]
            assert dict(patch.report().models[0].forwards) == {window: windows}
            if corrected:
                assert difference(found, oracle) <= TOLERANCE
                assert difference(found, before) > 1e-3
            else:
                assert torch.equal(found, before)

    def test_vace(self, model, vace):
        profile = make_profile()
        given = inputs(12) | {"vace": vace, "vace_context": noise(1, 4, 12, 4, 6)}
        before, oracle = run(model, given), expected(model, profile, given, vace)
        pipeline = torch.nn.ModuleDict({"dit": model, "vace": vace})
        with freeloc.patch(pipeline, profile) as patch:
            found = run(model, given)
        assert difference(found, oracle) <= TOLERANCE
        assert difference(found, before) > 1e-3
        assert [layer.layer for layer in patch.report().transformers[1]] == [0, 2]
        with freeloc.patch(model, profile), pytest.raises(LayoutError, match="called with vace_context: the network"):
            run(model, given)

    @pytest.mark.parametrize("images", [["an image"], "an image", ["one", "two"]])
    def test_reference_images_of_vace(self, model, vace, images):
        profile, count = make_profile(), 1 if images == "an image" else len(images)
        given = inputs(12) | {"vace": vace, "vace_context": noise(1, 4, 12, 4, 6), "vace_reference_image": images}

        def call(vace_reference_image):  # as in the pipeline, whose argument has this name
            return run(model, given)

        oracle = expected(model, profile, given, vace, count)
        with freeloc.patch(torch.nn.ModuleDict({"dit": model, "vace": vace}), profile) as patch:
            found = call(images)
        assert difference(found, oracle) <= TOLERANCE
        assert [dict(each.forwards) for each in patch.report().models] == [{12 - count: 1}] * 2

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"use_unified_sequence_parallel": True}, "called with use_unified_sequence_parallel: its kernels"),
            ({"reference_latents": torch.zeros(1, 16, 4, 6)}, "called with reference_latents: its image is one more"),
            ({"vap": torch.nn.Identity()}, "called with vap: its tokens are in the attention of some layers"),
        ],
    )
    def test_what_is_refused(self, model, changes, message):
        self.prepare(model, changes)
        with freeloc.patch(model, make_profile()), pytest.raises(LayoutError, match=message):
            run(model, inputs(12) | changes)

    def prepare(self, model, changes):
        """What the model needs to run with these changes."""

    def test_other_functions_are_refused(self, model):
        def other(given):
            x = model.patchify(given["latents"])
            return model.blocks[0].self_attn(x.flatten(2).mT, torch.ones(x[0, 0].numel(), 1, 12))

        with (
            freeloc.patch(model, make_profile()),
            pytest.raises(LayoutError, match=r"ran outside a call of model_fn_wan_video \(diffsynth\.pipelines"),
        ):
            other(inputs(12))

    def test_a_subclass_is_refused(self, model):
        class Other(type(model)):
            pass

        other = sharpened(lambda: self.build(Other))
        with pytest.raises(AdapterError, match="no adapter describes this model"):
            freeloc.patch(other, make_profile())

    @pytest.mark.parametrize("where", ["blocks.2.self_attn.q", "blocks.1.ffn", "head", "patch_embedding"])
    @pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
    def test_an_exception_leaves_nothing(self, model, where, error):
        def fail(*anything):
            raise error

        before = run(model, inputs(12))
        kernel = sys.modules[DIT].flash_attention
        profile = make_profile()
        with freeloc.patch(model, profile) as patch:
            expected = run(model, inputs(12))
            handle = model.get_submodule(where).register_forward_pre_hook(fail)
            with pytest.raises(error):
                run(model, inputs(12))
            handle.remove()
            ended = patch.report().models[0].failed
            assert torch.equal(run(model, inputs(12)), expected)
            report = patch.report().models[0]
            assert dict(report.forwards) == {12: 2}
            # Before the patch embedding has run, nothing tells that the function did.
            assert report.failed == ended == (where != "patch_embedding")
        assert sys.modules[DIT].flash_attention is kernel
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
        assert torch.equal(run(model, inputs(12)), before)
