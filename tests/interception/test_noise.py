"""The initial noise of FreeNoise in pipelines of diffusers: what reaches the transformer, against the oracle."""

import contextlib
import copy

import pytest
import torch
from initial_noise import FREENOISE, TRAINED, drawing, drawn, first_input, oracle, patched, sample
from pipelines import PIPELINES, without_run

from freeloc.errors import PatchError
from freeloc.interception.noise import InitialNoise, departure_from_noise
from freeloc.plans.baselines import reschedule_noise
from freeloc.plans.method import Method
from freeloc.report import NoiseReport

QUICK = ["wan", "wan-image", "wan-vace-references", "cogvideox-1.5", "ltx-image", "kandinsky5"]
every_pipeline = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in PIPELINES]
)


@pytest.fixture(scope="module")
def pipes():
    return {name: PIPELINES[name].pipeline() for name in ("wan", "cogvideox", "ltx")}


@pytest.fixture
def wan(pipes):
    """A pipeline of its own for each test."""
    return copy.deepcopy(pipes["wan"])


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
            f"{start} prepared for 81 latent frames, in windows of 21 (3 times, "
            "of which 2 from latents that were given)",
            f"{start} left as it was for 21 latent frames, which are not longer than in training (1 time)",
        ]

    def test_it_does_not_change_later(self, wan):
        with patched(wan) as patch:
            before = patch.report()
            sample(wan)
            assert before.noise.prepared == {}
            assert "initial noise of freenoise: not prepared yet" in str(before)
