"""The models of the bench behind one interface, and settings whose plans change by step."""

import pytest
import torch
from marks import slow_unless
from tiny_bench import ROTATING, Rotation, rotating
from tiny_bench import untrained as untrained  # a fixture

import freeloc
from freeloc.plans.baselines import reschedule_noise
from freeloc.profile.schema import PolicyPart
from freeloc.registry import registry
from freeloc.tiny import models
from freeloc.tiny.setting import Setting
from freeloc.tiny.settings import all_settings, setting_of, with_layers

NAMES = list(models.MODELS)


@pytest.mark.parametrize("name", NAMES)
def test_true_clips_of_both_parts_differ_and_are_always_the_same(name):
    model = models.model_named(name)
    test, tune = (model.true_clips([0, 1], 20, part) for part in ("test", "tune"))
    assert test.shape == tune.shape
    assert test.shape[:3] == (2, 3, 20)
    assert 0 <= test.min() < test.max() <= 1
    assert (test - tune).abs().mean() > 0.02
    assert torch.equal(test[1:], model.true_clips([1], 20))
    assert torch.allclose(test, model.true_clips([0, 1], 30)[:, :, :20], atol=1e-6) == (name == "tiny-film")


@pytest.mark.parametrize("name", NAMES)
def test_latents_have_the_axes_of_noise_and_frames_are_where_the_model_says(name):
    model = models.model_named(name)
    latents, noise = model.latents([0, 1], 20), model.noise([3, 4], 20)
    assert latents.shape == noise.shape
    assert latents.shape[model.frames_axis] == 20
    assert torch.equal(noise[1:], model.noise([4], 20))
    assert 0.3 < latents.std() < 1.3


def test_more_clips_than_there_are_and_unknown_models_are_refused():
    with pytest.raises(freeloc.FreelocError, match="expected at most 16 clips of tiny-film, found 17"):
        models.model_named("tiny-film").true_clips(range(17), 13)
    with pytest.raises(freeloc.FreelocError, match="expected one of the models tiny-wan, tiny-film, found 'tiny'"):
        models.model_named("tiny")


@pytest.mark.parametrize("name", NAMES)
def test_the_profile_is_for_the_model(name, untrained):
    model = models.model_named(name)
    assert model.profile.model.trained_latent_frames == model.trained_frames
    with freeloc.patch(model.pipeline, model.profile) as patch:
        model.predict(model.noise([0], model.long_frames(2)), 900.0, model.prompts([0]))
    assert patch.report().corrected_calls == model.profile.model.layers


@pytest.mark.parametrize("name", [slow_unless(name == "tiny-film", name) for name in NAMES])
def test_a_plan_that_changes_by_step_is_patched_anew_at_each_step(name, untrained):
    model = models.model_named(name)
    frames, steps = model.trained_frames + 9, 3
    setting = Setting("rotating", model.profile, ROTATING)
    assert setting.changes_by_step
    with setting.patched(model.pipeline) as after_step:
        found = model.sample(model.prompts([0]), model.noise([0], frames), steps, 1.0, after_step)

    latents, scheduler = model.noise([0], frames), model.pipeline.scheduler
    scheduler.set_timesteps(steps)
    for step, time in enumerate(scheduler.timesteps):

        def plan(profile, layer, frames, step=step):
            return rotating(profile, layer, frames, Rotation(step=step))

        with freeloc.patch(model.transformer, model.profile, method=plan):
            predicted = model.predict(latents, float(time), model.prompts([0]))
        latents = scheduler.step(predicted, time, latents, return_dict=False)[0]
    expected = models.film.to_video(latents) if name == "tiny-film" else models.synthetic.to_video(latents)
    assert torch.allclose(found, expected, atol=1e-4)
    with freeloc.patch(model.pipeline, model.profile):  # nothing is left behind
        pass


def test_a_profile_whose_policy_has_a_step_keeps_its_other_settings(monkeypatch):
    monkeypatch.setitem(registry().methods.owners, "rotating", [("a package", ROTATING)])
    policies = {"mine": PolicyPart(method="rotating", settings={"sink": 3})}
    base = freeloc.load_profile("tiny-wan").model_copy(update={"policies": policies})
    mixed = Setting("mixed", with_layers(base, ["mine", "rotating"] + ["vrpr"] * 6))
    at = mixed.at(5).profile
    assert at.policies["mine"].settings == {"sink": 3, "step": 5}
    assert at.policies["rotating"].settings == {"step": 5}
    assert at.policy(2) == "vrpr"
    plans = [freeloc.frame_plan(at, layer, 60).visibility for layer in (0, 1)]
    assert plans[0][0, 3 + 35] == plans[1][0, 1 + 35] == 2
    assert mixed.fingerprint == Setting("the same", mixed.at(1).profile).fingerprint  # each step has its own number
    other = base.model_copy(update={"policies": {"mine": PolicyPart(method="rotating", settings={"sink": 4})}})
    assert mixed.fingerprint != Setting("mixed", with_layers(other, ["mine", "rotating"] + ["vrpr"] * 6)).fingerprint
    assert not setting_of("layer-wise").changes_by_step


@pytest.mark.parametrize("name", NAMES)
def test_any_setting_can_start_from_the_noise_of_freenoise(name):
    model = models.model_named(name)
    setting = setting_of("vrpr, noise of freenoise", name)
    assert setting.name == "vrpr everywhere, noise of freenoise"
    assert setting.fingerprint == f"{setting_of('vrpr', name).fingerprint} reschedule_noise"
    frames = model.trained_frames + 9
    noise = model.noise([0, 1], frames)
    found = setting.prepared(noise, model.frames_axis, seed=5)
    axes = noise.movedim(model.frames_axis, 2)
    expected = reschedule_noise(axes, model.trained_frames, torch.Generator().manual_seed(5))
    assert torch.equal(found.movedim(model.frames_axis, 2), expected)
    assert setting_of("vrpr", name).prepared(noise, model.frames_axis, seed=5) is noise
    with pytest.raises(freeloc.FreelocError, match="initial noise of its own, such as freenoise, found vrpr"):
        setting_of("direct, noise of vrpr", name)


def test_each_model_has_settings_of_its_own():
    assert {"layer-wise", "head-wise", "wrong layers"} < set(all_settings("tiny-wan"))
    film = all_settings("tiny-film")
    assert {"direct", "sliding-window", "freenoise", "vrpr everywhere"} < set(film)
    assert {setting.profile.model.layers for setting in film.values()} == {6}
    with pytest.raises(freeloc.FreelocError, match="a profile of tiny-film, 6 layers of 3 heads, found 8 of 4"):
        setting_of("tiny-wan", "tiny-film")
