"""The initial noise of FreeNoise in pipelines of diffusers: what reaches the transformer, against the oracle."""

import contextlib
import copy
import hashlib
import inspect
import pickle
import re
import sys
from types import SimpleNamespace

import einops
import pytest
import torch
from conftest import make_profile, make_wan
from diffusers import WanPipeline
from diffusers.modular_pipelines.wan import WanBlocks
from pipelines import PIPELINES, without_run
from subjects import in_threads

import freeloc
from freeloc.errors import FreelocError, PatchError
from freeloc.interception.noise import InitialNoise, departure_from_noise
from freeloc.plans.baselines import reschedule_noise
from freeloc.plans.length import VideoLength
from freeloc.plans.method import Method
from freeloc.registry import registry
from freeloc.report import NoiseReport

TRAINED = 4
FREENOISE = registry().methods.get("freenoise")
QUICK = ["wan", "wan-image", "wan-vace-references", "cogvideox-1.5", "ltx-image", "kandinsky5"]
every_pipeline = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in PIPELINES]
)


def seed_of(kept):
    """The documented seed: of the bytes of the frames (batch, channels, frames, height, width) that stay."""
    return int.from_bytes(hashlib.sha256(kept.contiguous().view(torch.uint8).numpy().tobytes()).digest()[:7], "big")


def oracle(noise, axes="b c f h w", patch_frames=1, first=0):
    """FreeNoise's noise, each sample by itself, from that of a pipeline."""
    video = einops.rearrange(noise, f"{axes} -> b c f h w").clone()
    window, start = TRAINED * patch_frames, first * patch_frames
    for sample in range(len(video)):
        own = video[sample : sample + 1, :, start:]
        generator = torch.Generator().manual_seed(seed_of(own[:, :, :window]))
        video[sample : sample + 1, :, start:] = reschedule_noise(own, window, generator)
    return einops.rearrange(video, f"b c f h w -> {axes}")


@contextlib.contextmanager
def drawing(pipe, change):
    """Change what the file of the pipeline draws; what its VAE draws is drawn in another file."""
    module = sys.modules[inspect.unwrap(type(pipe).prepare_latents).__module__]
    before = module.randn_tensor
    module.randn_tensor = lambda *args, **kwargs: change(before(*args, **kwargs))
    try:
        yield
    finally:
        module.randn_tensor = before


def first_input(small, pipe, **changes):
    """The first tensor that reaches a transformer, and the latents of the videos."""
    seen = []

    def note(model, args, kwargs):
        seen.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

    hook = pipe.transformer.register_forward_pre_hook(note, with_kwargs=True)
    try:
        return seen, small.call(pipe, **changes)
    finally:
        hook.remove()


def profile_of(pipe, trained=TRAINED):
    return freeloc.default_profile(pipe, "none", trained_latent_frames=trained)


def patched(pipe, trained=TRAINED, **options):
    return freeloc.patch(pipe, profile_of(pipe, trained), **{"method": "freenoise"} | options)


class TestEveryPipeline:
    @every_pipeline
    def test_videos_are_those_of_the_oracle(self, name):
        small = PIPELINES[name]
        pipe = small.pipeline()
        plain = small.call(pipe)
        with (
            patched(pipe, noise_prepared=True),
            drawing(pipe, lambda noise: oracle(noise, small.axes, small.patch_frames, small.first)),
        ):
            expected_inputs, expected = first_input(small, pipe)
        with patched(pipe) as patch:
            inputs, found = first_input(small, pipe)
            again = small.call(pipe)
        assert all(torch.equal(one, other) for one, other in zip(inputs, expected_inputs, strict=True))
        assert torch.equal(found, expected)
        assert torch.equal(again, expected)
        assert patch.report().noise.prepared == {9: 2}
        assert not torch.equal(found, plain)
        assert "prepare_latents" not in vars(pipe)
        assert torch.equal(small.call(pipe), plain)

    @every_pipeline
    def test_at_the_trained_length_nothing_changes(self, name):
        small = PIPELINES[name]
        pipe = small.pipeline()
        plain = small.call(pipe)
        with patched(pipe, trained=9) as patch:
            assert torch.equal(small.call(pipe), plain)
        assert (patch.report().noise.prepared, patch.report().noise.within) == ({}, {9: 1})

    @pytest.mark.parametrize(
        ("name", "axes", "size", "picture"),
        [
            ("LTX2Pipeline", "b c f h w", (65, 64, 96), False),
            ("HunyuanVideoImageToVideoPipeline", "b c f h w", (33, 32, 48), True),
            ("Kandinsky5I2VPipeline", "b f h w c", (33, 32, 48), True),
        ],
    )
    def test_latents_with_a_picture_or_sound_are_those_of_the_oracle(self, name, axes, size, picture):
        pipe = without_run(name)
        given = dict(zip(("num_frames", "height", "width"), size, strict=True))
        given |= {"batch_size": 2, "num_channels_latents": 4, "dtype": torch.float32, "device": torch.device("cpu")}
        given |= {"image": torch.rand(2, 3, 32, 48)} if picture else {}

        def prepare():
            found = pipe.prepare_latents(**given, generator=torch.Generator().manual_seed(0))
            return found if isinstance(found, tuple) else (found,)

        plain = prepare()
        with drawing(pipe, lambda noise: oracle(noise, axes)):
            expected = prepare()
        with patched(pipe):
            found = prepare()
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        assert not torch.equal(found[0], plain[0])

    def test_every_family_with_a_pipeline_is_tested(self):
        """But for those that freeloc refuses, and Cosmos 2, whose pipelines draw as that of Cosmos 1 does."""
        families = {name.partition("-")[0] for name in PIPELINES}
        assert families == {
            *("allegro", "cogvideox", "cosmos", "easyanimate", "hunyuan", "kandinsky5", "latte", "ltx", "mochi"),
            *("motif", "skyreels", "wan"),
        }


@pytest.fixture(scope="module")
def pipes():
    return {name: PIPELINES[name].pipeline() for name in ("wan", "wan-image", "cogvideox", "ltx", "cosmos")}


@pytest.fixture
def wan(pipes):
    """A pipeline of its own for each test."""
    return copy.deepcopy(pipes["wan"])


def sample(pipe, **changes):
    return PIPELINES["wan"].call(pipe, **changes)


def drawn(batch=1, frames=9, seed=0):
    """What the small pipeline of Wan draws."""
    return torch.randn(batch, 4, frames, 4, 6, generator=torch.Generator().manual_seed(seed))


class TestNoise:
    @pytest.mark.parametrize("name", ["wan", "cogvideox", "ltx"])
    def test_a_batch_starts_as_its_single_videos(self, pipes, name):
        small, pipe = PIPELINES[name], pipes[name]
        with patched(pipe):
            both = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
            inputs, _ = first_input(small, pipe, prompts=2, generator=both)
            single = [first_input(small, pipe, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
        assert torch.equal(inputs[0][:2], torch.cat([one[0][:1] for one, _ in single]))

    def test_the_random_states_of_the_user_are_those_of_a_plain_run(self, wan):
        states = []
        for patch in (contextlib.nullcontext(), patched(wan)):
            with patch:
                torch.manual_seed(5)
                generator = torch.Generator().manual_seed(0)
                PIPELINES["wan"].call(wan, generator=generator)
                states.append((generator.get_state(), torch.get_rng_state()))
        assert all(torch.equal(plain, found) for plain, found in zip(*states, strict=True))

    def test_latents_that_are_given_are_prepared_too(self, wan):
        given = drawn(seed=7)
        with patched(wan, noise_prepared=True):
            expected = sample(wan, latents=oracle(given))
        with patched(wan) as patch:
            found = sample(wan, latents=given)
            prepared = sample(wan, latents=oracle(given))  # prepared noise stays as it is
        assert torch.equal(found, expected)
        assert torch.equal(prepared, expected)
        assert patch.report().noise.given == {9: 2}
        assert "prepared for 9 latent frames, in windows of 4 (2 times, of which 2 from latents" in str(patch.report())
        assert torch.equal(given, drawn(seed=7))

    def test_noise_of_the_trained_length_may_be_anything(self, wan):
        with patched(wan) as patch:
            sample(wan, num_frames=13, latents=drawn(frames=4).cumsum(-1))
        assert patch.report().noise.within == {4: 1}

    def test_latents_that_hold_more_than_noise_are_refused(self, wan):
        given = drawn(seed=7)
        given[:, :, :1] = given[:, :, :1].cumsum(-1).cumsum(-2)
        message = (
            "initial noise of 'freenoise', found that this noise was not prepared: the latents that were given are "
        )
        with pytest.raises(PatchError, match=f"{message}not noise alone.*frame 0"), patched(wan):
            sample(wan, latents=given)

    def test_packed_latents_are_refused(self, pipes):
        small, pipe = PIPELINES["ltx"], pipes["ltx"]
        with (
            pytest.raises(PatchError, match=r"latents of shape \(1, 54, 4\) were given.*: give a generator"),
            patched(pipe),
        ):
            small.call(pipe, latents=torch.randn(1, 54, 4))
        with patched(pipe, trained=9):
            small.call(pipe, latents=torch.randn(1, 54, 4))

    @pytest.mark.parametrize("axes", [(0, 1, 2, 3, 4), (0, 2, 1, 3, 4), (0, 4, 1, 2, 3)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_twice_is_once(self, axes, dtype):
        noise = torch.randn(2, 8, 9, 10, 11).to(dtype)
        initial = InitialNoise(FREENOISE, 2, axes)
        once, ready = initial.of(noise, 1, 0, 0)
        assert (once.dtype, once.shape, ready.video) == (dtype, noise.shape, noise.shape[axes[2]])
        assert not torch.equal(once, noise)
        assert torch.equal(initial.of(once, 1, 0, 0)[0], once)

    def test_references_keep_their_noise(self):
        noise = torch.randn(1, 2, 12, 3, 3)
        found, ready = InitialNoise(FREENOISE, TRAINED).of(noise, 1, 1, 2)
        assert ready == (9, 1, 2)
        assert torch.equal(found[:, :, [0, 10, 11]], noise[:, :, [0, 10, 11]])
        assert torch.equal(found[:, :, 1:10], oracle(noise[:, :, 1:10]))

    def test_a_method_that_returns_another_shape(self):
        method = Method("short", FREENOISE.plan, noise=lambda noise, trained, generator: noise[:, :, :trained])
        with pytest.raises(PatchError, match=r"noise of shape \(1, 4, 9, 4, 6\) from 'short', found \(1, 4, 4, 4, 6\)"):
            InitialNoise(method, TRAINED).of(drawn(), 1, 0, 0)

    @pytest.mark.parametrize("seed", range(20))
    def test_noise_of_any_scale_is_told_from_pictures(self, seed):
        noise = 0.3 * torch.randn(2, 4, 21, 8, 10, generator=torch.Generator().manual_seed(seed))
        assert departure_from_noise(noise) == departure_from_noise(reschedule_noise(noise, 5)) == ""
        with_picture, mixed, weaker = noise.clone(), noise.clone(), noise.clone()
        with_picture[:, :, 0] = noise[:, :, 0].cumsum(-1) / 2
        mixed[1] += noise[1].mean(1, keepdim=True) * 0 + 0.3
        weaker[:, :, 3] *= 0.5
        assert "frame 0" in departure_from_noise(with_picture)
        assert "the mean is" in departure_from_noise(mixed)
        assert "frame 3, the standard deviation" in departure_from_noise(weaker)
        assert departure_from_noise(noise * 0) == "their standard deviation is 0"


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


class TestReport:
    def test_the_lines(self):
        report = NoiseReport("mine", 21)
        start = "initial noise of mine:"
        assert report.lines() == [f"{start} not prepared yet"]
        report.prepared.update({81: 3, 41: 1})
        report.given[81] = 2
        report.within[21] = 1
        assert report.lines() == [
            f"{start} prepared for 41 latent frames, in windows of 21 (1 time)",
            f"{start} prepared for 81 latent frames, in windows of 21 (3 times, of which 2 from latents that were given)",
            f"{start} left as it was for 21 latent frames, which are not longer than in training (1 time)",
        ]

    def test_it_does_not_change_later(self, wan):
        with patched(wan) as patch:
            before = patch.report()
            sample(wan)
            assert before.noise.prepared == {}
            assert "initial noise of freenoise: not prepared yet" in str(before)


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
