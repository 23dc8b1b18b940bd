"""The adapters of DiffSynth-Studio's Wan, on a double of it, end to end against dense logits."""

import sys
import threading

import diffsynth_double
import pytest
import torch
from conftest import make_profile
from diffsynth_cases import PIPELINE, Cases, inputs, run, sharpened

import freeloc
from freeloc.testing import conformance


@pytest.fixture(autouse=True)
def double():
    names = diffsynth_double.install()
    yield
    for name in names:
        del sys.modules[name]


@conformance(*diffsynth_double.EXAMPLES)
def test_conformance(check):
    check()


class TestDouble(Cases):
    def build(self, cls):
        return cls()

    @pytest.fixture
    def model(self):
        return sharpened(diffsynth_double.WanModel)

    @pytest.fixture
    def vace(self):
        return sharpened(diffsynth_double.VaceWanModel)

    def test_a_cache_that_skips_the_blocks(self, model):
        given = inputs(12) | {"tea_cache": diffsynth_double.TeaCache()}
        with freeloc.patch(model, make_profile()) as patch:
            first, second = run(model, given), run(model, given)
        assert torch.allclose(first, second, atol=1e-5)
        report = patch.report().models[0]
        assert dict(report.forwards) == {12: 2}
        assert "and made no call in 1 of them: skipped by a cache" in str(patch.report())

    def test_a_cache_from_before_the_patch_is_refused(self, model):
        given = inputs(12) | {"tea_cache": diffsynth_double.TeaCache()}
        run(model, given)
        with (
            freeloc.patch(model, make_profile()),
            pytest.raises(freeloc.errors.LayoutError, match="none of the 3 layers that were due"),
        ):
            run(model, given)

    def test_threads(self, model):
        policies, found = ("vrpr", "tsa", "direct"), {}
        models = {policy: sharpened(diffsynth_double.WanModel) for policy in policies}
        expected = {}
        for policy, own in models.items():
            with freeloc.patch(own, make_profile(), method=policy):
                expected[policy] = run(own, inputs(9))

        def work(policy):
            with freeloc.patch(models[policy], make_profile(), method=policy):
                found[policy] = [run(models[policy], inputs(9)) for _ in range(6)]

        threads = [threading.Thread(target=work, args=(policy,)) for policy in policies]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(torch.equal(out, expected[policy]) for policy, outs in found.items() for out in outs)
        assert len(found) == 3

    def test_removed_while_it_runs(self, model):
        patch = freeloc.patch(model, make_profile())
        handle = model.blocks[1].register_forward_pre_hook(lambda *anything: patch.remove())
        run(model, inputs(12))
        handle.remove()
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())

    def test_removed_while_it_runs_into_an_error(self, model):
        patch = freeloc.patch(model, make_profile())

        def fail(*anything):
            patch.remove()
            raise ZeroDivisionError

        before = model.blocks[1].register_forward_pre_hook(fail)
        with pytest.raises(ZeroDivisionError):
            run(model, inputs(12))
        before.remove()
        run(model, inputs(12))
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())

    def test_gradient_checkpoints(self, model):
        from torch.utils.checkpoint import checkpoint

        def loss(wrap):
            model.head.weight.requires_grad_(True)
            model.blocks[0].self_attn.q.weight.requires_grad_(True)
            wrapped = [block.forward for block in model.blocks]
            for block, forward in zip(model.blocks, wrapped, strict=True):
                block.forward = wrap(forward)
            out = sys.modules[PIPELINE].model_fn_wan_video(model, **inputs(9))
            out.square().mean().backward()
            for block in model.blocks:
                del block.forward
            weight = model.blocks[0].self_attn.q.weight
            found, weight.grad = weight.grad, None
            return found

        with freeloc.patch(model, make_profile()):
            plain = loss(lambda forward: forward)
            kept = loss(lambda forward: lambda *args: checkpoint(forward, *args, use_reentrant=False))
        assert torch.allclose(kept, plain, atol=1e-7)
        assert plain.abs().max() > 0

    @pytest.mark.slow
    def test_compiled_blocks(self, model):
        profile = make_profile()
        with freeloc.patch(model, profile):
            expected = run(model, inputs(9))
        for block in model.blocks:
            block.compile(backend="eager")
        with freeloc.patch(model, profile):
            assert (run(model, inputs(9)) - expected).abs().max() <= 1e-6
