"""A patch with initial noise of its own: what it leaves behind, which calls it refuses, and its arguments."""

import copy
import inspect
import pickle
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import make_profile, make_wan
from diffusers import WanPipeline
from diffusers.modular_pipelines.wan import WanBlocks
from initial_noise import FREENOISE, TRAINED, drawn, oracle, patched, sample, seed_of
from pipelines import PIPELINES
from subjects import in_threads

import freeloc
from freeloc.errors import FreelocError, PatchError
from freeloc.interception.noise import InitialNoise
from freeloc.plans.length import VideoLength
from freeloc.plans.method import Method


@pytest.fixture(scope="module")
def pipes():
    return {name: PIPELINES[name].pipeline() for name in ("wan", "cogvideox", "cosmos")}


@pytest.fixture
def wan(pipes):
    """A pipeline of its own for each test."""
    return copy.deepcopy(pipes["wan"])


class Own(WanPipeline):
    """A pipeline that changes the function of its base class."""

    def prepare_latents(self, *args, **kwargs):
        return 2 * super().prepare_latents(*args, **kwargs)


class Elsewhere(WanPipeline):
    """A pipeline whose noise is drawn in another way."""

    def prepare_latents(self, *args, **kwargs):
        return torch.empty(1, 4, 9, 4, 6).normal_()


class TestState:
    def test_removing_twice_and_through_the_pipeline(self, wan):
        patch = patched(wan)
        assert "prepare_latents" in vars(wan)
        assert inspect.signature(wan.prepare_latents) == inspect.signature(type(wan).prepare_latents.__get__(wan))
        patch.remove()
        patch.remove()
        assert "prepare_latents" not in vars(wan)
        patched(wan)
        freeloc.unpatch(wan)
        assert "prepare_latents" not in vars(wan)

    def test_the_transformer_alone_is_unpatched(self, wan):
        plain = sample(wan)
        patched(wan)
        freeloc.unpatch(wan.transformer)
        assert torch.equal(sample(wan), plain)
        assert "prepare_latents" not in vars(wan)
        patched(wan)
        freeloc.unpatch(wan.transformer)
        with patched(wan, method="vrpr"):
            assert "prepare_latents" not in vars(wan)

    def test_a_pipeline_is_patched_once(self, wan):
        with patched(wan):
            with pytest.raises(PatchError, match="is patched already"):
                patched(wan)
            own = vars(wan)["prepare_latents"]
            wan.transformer = make_wan(seed=1)
            with pytest.raises(PatchError, match="prepare_latents of this WanPipeline is that of an earlier patch"):
                patched(wan, method="vrpr")
            assert not wan.transformer._forward_pre_hooks
            assert vars(wan)["prepare_latents"] is own

    def test_an_exception_leaves_nothing(self, wan):
        with patched(wan) as patch:
            with pytest.raises(ValueError, match="list of generators"):
                sample(wan, generator=[torch.Generator()] * 3)
            assert patch.report().noise.prepared == {}
            first = sample(wan)
            assert torch.equal(sample(wan), first)
        assert torch.randn(1, 1, 9, 1, 1).shape == (1, 1, 9, 1, 1)

    def test_what_another_library_has_put_there_comes_back(self, wan):
        calls = []
        original = wan.prepare_latents
        wan.prepare_latents = own = lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs)
        with patched(wan) as patch:
            sample(wan)
        assert (calls, patch.report().noise.prepared) == ([1], {9: 1})
        assert wan.prepare_latents is own

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
    def test_a_copy_is_patched_by_itself(self, wan, copied):
        plain = sample(wan)
        patch = patched(wan)
        expected = sample(wan)
        twin = copied(wan)
        patch.remove()
        assert torch.equal(sample(wan), plain)
        assert torch.equal(sample(twin), expected)
        freeloc.unpatch(twin)
        assert "prepare_latents" not in vars(twin)
        assert torch.equal(sample(twin), plain)

    def test_a_copy_of_the_transformer_alone_has_no_pipeline(self, wan):
        with patched(wan):
            sample(wan)
            wan.transformer = copy.deepcopy(wan.transformer)
            with pytest.raises(PatchError, match="no prepare_latents of the patched pipeline"):
                sample(wan)

    def test_threads(self, wan):
        twin = copy.deepcopy(wan)
        lengths = {"num_frames": 21}
        with patched(wan), patched(twin):
            expected = sample(wan), sample(wan, **lengths)
            for found in (
                in_threads(lambda: sample(wan), lambda: sample(twin, **lengths)),
                in_threads(lambda: sample(wan), lambda: sample(copy.deepcopy(wan), **lengths)),
            ):
                assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))

    def test_two_lengths_at_once_in_one_pipeline(self, wan):
        def latents(frames):
            size = {"num_channels_latents": 4, "height": 32, "width": 48, "num_frames": frames}
            return wan.prepare_latents(1, **size, generator=torch.Generator().manual_seed(0))

        with patched(wan) as patch:
            found = in_threads(*([lambda: latents(33)] * 4), *([lambda: latents(49)] * 4))
        assert all(torch.equal(one, oracle(drawn(frames=9))) for one in found[:4])
        assert all(torch.equal(one, oracle(drawn(frames=13))) for one in found[4:])
        assert patch.report().noise.prepared == {9: 4, 13: 4}

    def test_a_subclass_with_a_function_of_its_own(self, wan):
        pipe = Own(**wan.components, expand_timesteps=False)
        with patched(pipe) as patch:
            size = {"num_channels_latents": 4, "height": 32, "width": 48, "num_frames": 33}
            found = pipe.prepare_latents(1, **size, generator=torch.Generator().manual_seed(0))
        assert torch.equal(found, 2 * oracle(drawn()))
        assert patch.report().noise.prepared == {9: 1}


def call_alone(pipe, frames):
    with torch.no_grad():
        pipe.transformer(torch.randn(1, 4, frames, 4, 6), torch.tensor([500.0]), torch.randn(1, 3, 16))


class TestCallsFromOtherNoise:
    MISSING = (
        "expected a video of 9 latent frames (trained: 4) to start from the initial noise of 'freenoise', found that "
        "this noise was not prepared: no prepare_latents of the patched pipeline has made its latents. To prepare it "
        "yourself, where the latents are made, from latents (batch, channels, frames, height, width), before they are "
        "packed:\n"
        "    from freeloc.plans.baselines import reschedule_noise; latents = reschedule_noise(latents, 4, generator)\n"
        "    freeloc.patch(..., noise_prepared=True)"
    )

    def test_the_transformer_alone(self, wan):
        with patched(wan) as patch:
            call_alone(wan, TRAINED)
            with pytest.raises(PatchError, match=f"^{re.escape(self.MISSING)}$"):
                call_alone(wan, 9)
            sample(wan)
            with pytest.raises(PatchError, match=f"^{re.escape(self.MISSING)}$"):
                call_alone(wan, 9)
        assert "initial noise of freenoise: prepared for 9 latent frames" in str(patch.report())

    def test_another_pipeline_with_the_same_transformer(self, wan):
        other = WanPipeline(**wan.components, expand_timesteps=False)
        other.set_progress_bar_config(disable=True)
        with patched(wan):
            sample(wan)
            with pytest.raises(PatchError, match="no prepare_latents of the patched pipeline"):
                sample(other)
            sample(other, num_frames=13)

    def test_a_sampling_loop_of_ones_own(self, wan):
        size = {"num_channels_latents": 4, "height": 32, "width": 48, "num_frames": 33}

        def helper():
            return wan.prepare_latents(1, **size)

        with patched(wan):
            assert helper().shape[2] == 9
            call_alone(wan, 9)
            call_alone(wan, 7)  # a part of it
            with pytest.raises(PatchError, match="of 10 latent frames"):
                call_alone(wan, 10)

    def test_a_pipeline_that_draws_in_another_way(self, wan):
        pipe = Elsewhere(**wan.components, expand_timesteps=False)
        pipe.set_progress_bar_config(disable=True)
        with (
            pytest.raises(PatchError, match=r"Elsewhere\.prepare_latents drew no noise of 5 axes by torch\.randn"),
            patched(pipe),
        ):
            sample(pipe)

    def test_another_frame_rate(self, pipes):
        small, pipe = PIPELINES["cosmos"], pipes["cosmos"]
        message = (
            "windows of 4 latent frames, but .* 0.8 times as far apart as in training, so that the trained length is 5"
        )
        with pytest.raises(PatchError, match=message), patched(pipe):
            small.call(pipe, fps=30)

    def test_another_frame_rate_that_makes_the_video_as_long_as_in_training(self):
        initial = InitialNoise(FREENOISE, 8)
        initial.require(VideoLength(9, spacing=0.5))  # with noise of any kind
        initial.note(inspect.currentframe(), [initial.of(drawn(), 1, 0, 0)[1]], "", False)
        with pytest.raises(PatchError, match="the trained length is 15"):
            initial.require(VideoLength(9, spacing=0.5))
        initial.require(VideoLength(9))

    @pytest.mark.slow
    def test_a_compiled_transformer(self, wan):
        torch._dynamo.reset()
        wan.transformer.compile(backend="eager")
        with patched(wan):
            expected = sample(wan)
            assert torch.equal(sample(wan), expected)
            with pytest.raises(PatchError, match="no prepare_latents of the patched pipeline"):
                call_alone(wan, 9)

    def test_an_object_without_the_function(self, wan):
        found = "found SimpleNamespace, which has no prepare_latents. To prepare it yourself"
        with pytest.raises(PatchError, match=found):
            freeloc.patch(SimpleNamespace(transformer=wan.transformer), make_profile(), method="freenoise")

    def test_a_modular_pipeline(self, wan):
        pipe = WanBlocks().init_pipeline()
        pipe.update_components(transformer=wan.transformer)
        with pytest.raises(PatchError, match="found WanModularPipeline, which has no prepare_latents"):
            freeloc.patch(pipe, make_profile(), method="freenoise")

    def test_the_line_for_latents_with_other_axes(self, pipes):
        transformer = pipes["cogvideox"].transformer
        profile = freeloc.default_profile(transformer, "none", TRAINED)
        with pytest.raises(PatchError) as caught:
            freeloc.patch(transformer, profile, method="freenoise")
        line = next(line for line in str(caught.value).split("\n") if "latents =" in line).strip()
        assert "from latents (batch, frames, channels, height, width)" in str(caught.value)
        latents = drawn().movedim(2, 1)
        names = {"latents": latents, "generator": torch.Generator().manual_seed(seed_of(drawn()[:, :, :4]))}
        exec(line, names)
        assert torch.equal(names["latents"], oracle(latents, "b f c h w"))


class TestTheArgument:
    def noise_of(self, pipe, profile=None, **options):
        with freeloc.patch(pipe, profile or make_profile(), **options) as patch:
            return patch.report().noise and patch.report().noise.method

    def test_which_noise_it_is(self, wan):
        with_noise = make_profile(schema_version=3, noise="freenoise")
        assert self.noise_of(wan) is None
        assert self.noise_of(wan, method="freenoise") == "freenoise"
        assert self.noise_of(wan, noise="freenoise") == "freenoise"
        assert self.noise_of(wan, noise=FREENOISE, method="vrpr") == "freenoise"
        assert self.noise_of(wan, with_noise) == "freenoise"
        assert self.noise_of(wan, with_noise, noise=None) is None
        assert self.noise_of(wan, with_noise, method="vrpr") is None
        assert self.noise_of(wan.transformer, with_noise, noise=None) is None

    def test_any_policies_start_from_it(self, wan):
        profile = make_profile(schema_version=3, noise="freenoise")
        with freeloc.patch(wan, make_profile(), noise_prepared=True):
            expected = sample(wan, latents=oracle(drawn()))
        with freeloc.patch(wan, profile) as patch:
            found = sample(wan)
        assert torch.equal(found, expected)
        assert [layer.method for layer in patch.report().layers] == ["vrpr", "tsa", "vrpr+tsa", "none"]

    def test_the_caller_prepares_it(self, wan):
        profile = make_profile(schema_version=3, noise="freenoise")
        for options in ({}, {"noise": "freenoise"}, {"noise": None}):
            with freeloc.patch(wan.transformer, profile, noise_prepared=True, **options) as patch:
                call_alone(wan, 9)
            assert "initial noise of freenoise: prepared by your code" in str(patch.report())

    def test_wrong_noise(self, wan):
        with pytest.raises(
            FreelocError, match="initial noise of its own \\(freenoise\\), found 'vrpr', which has none"
        ):
            freeloc.patch(wan, make_profile(), noise="vrpr")
        with pytest.raises(FreelocError, match="initial noise of its own: no method is named 'freenoize'"):
            freeloc.patch(wan, make_profile(), noise="freenoize")
        with pytest.raises(PatchError, match=r"requires initial noise of its own.*expected noise='auto', found None"):
            freeloc.patch(wan, make_profile(), method="freenoise", noise=None)
        other = Method("other", FREENOISE.plan, noise=lambda noise, trained, generator: noise)
        with pytest.raises(PatchError, match="found other and freenoise: one video has one noise"):
            freeloc.patch(wan, make_profile(), method=other, noise="freenoise")
        assert "prepare_latents" not in vars(wan)
        assert not wan.transformer._forward_pre_hooks

    def test_a_transformer_without_a_pipeline(self, wan):
        profile = make_profile(schema_version=3, noise="freenoise")
        with pytest.raises(
            PatchError, match="or noise_prepared=True, or noise=None to start from plain noise, found Wan"
        ):
            freeloc.patch(wan.transformer, profile)
