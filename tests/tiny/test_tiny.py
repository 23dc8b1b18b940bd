"""The synthetic dataset, its measures, the model trained on it, and the demo."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from freeloc import FreelocError
from freeloc.cli import main
from freeloc.tiny import judge, train, training
from freeloc.tiny.measures import MEASURES, identity, land_motion, pan_accuracy
from freeloc.tiny.model import TRAINED_FRAMES, WEIGHTS, load_pipeline, new_transformer, noise, sample
from freeloc.tiny.synthetic import HEIGHT, PANS, PROMPTS, WIDTH, clips, to_latents, to_video

THREADS = torch.get_num_threads()
SOME = list(PROMPTS[::7])


def true_clips(frames=40, prompts=SOME):
    return clips(prompts, frames, torch.Generator().manual_seed(0))


def test_clips_are_coloured_pictures_that_repeat_for_a_seed():
    video = true_clips()
    assert video.shape == (len(SOME), 3, 40, HEIGHT, WIDTH)
    assert video.min() >= 0
    assert video.max() <= 1
    assert torch.equal(video, true_clips())


def mean_of(name, videos, prompts=SOME):
    return sum(MEASURES[name](video, prompt) for video, prompt in zip(videos, prompts, strict=True)) / len(prompts)


def test_the_land_moves_by_the_prompted_speed():
    for pan, speed in PANS.items():
        video = clips([f"red disc {pan}"], 30, torch.Generator().manual_seed(1))
        land, step = video[0, :, :, -1], int(speed)  # (3, frames, width)
        still = (land[:, 1:, :-step] - land[:, :-1, step:]).abs().amax(dim=(0, 2)) < 1e-5
        assert still.float().mean() > 0.5, pan  # the shape covers some of it at times


def test_a_clip_of_any_length_shows_one_scene():
    video = clips(["red ring fast"], 161, torch.Generator().manual_seed(0))[0]
    assert video.shape == (3, 161, HEIGHT, WIDTH)
    assert video.isfinite().all()
    assert pan_accuracy(video[:, 140:], "red ring fast") > 0.8


def test_latents_are_about_unit_variance_and_invertible():
    video = true_clips()
    latents = to_latents(video)
    assert latents.mean().abs() < 0.4
    assert 0.8 < latents.std() < 1.2
    assert torch.allclose(to_video(latents), video, atol=1e-6)


def test_measures_of_true_clips_are_near_their_best():
    assert mean_of("land as prompted", true_clips()) > 0.95
    assert mean_of("identity", true_clips()) > 0.99


def test_each_measure_falls_with_its_defect():
    video = true_clips()
    frozen = video[:, :, :1].expand_as(video)
    assert mean_of("land as prompted", frozen) == 0
    assert mean_of("land as prompted", video.flip(2)) < 0.1  # backwards
    assert mean_of("identity", video.roll(1, dims=1)) < 0.2  # red is green
    assert mean_of("sharpness", torch.nn.functional.avg_pool3d(video, (1, 3, 3), stride=1)) < 0.6 * mean_of(
        "sharpness", video
    )


def test_land_motion_is_in_pixels_per_frame():
    assert land_motion(true_clips(prompts=["blue disc slow"])[0]).median() == 2
    assert land_motion(true_clips(prompts=["blue disc fast"])[0]).median() == 4


def test_identity_needs_colour_and_shape():
    video = true_clips(prompts=["red ring fast"])[0]
    assert identity(video, "red ring slow") == 1
    assert identity(video, "red disc fast") == 0
    assert identity(video, "blue ring fast") == 0


def test_the_shipped_classifier_knows_colours_and_shapes_and_a_barely_trained_one_does_not():
    frames, wanted = true_clips(frames=1, prompts=list(PROMPTS))[:, :, 0], judge.labels(list(PROMPTS))
    for one, good in ((judge.load_judge(), True), (judge.train(steps=3, batch=8), False)):
        for logits, label in zip(one(frames), wanted, strict=True):
            right = (logits.argmax(dim=1) == label).float().mean()
            assert right > 0.98 if good else right < 0.7


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning"
)  # raised by torch.compile, not by this project
def test_training_resumes_where_it_was(tmp_path):
    stages = (training.Stage(2, 2, 3), training.Stage(3, 1, 3))
    training.train(train.TASK, stages, tmp_path / "at once", decay=1)
    training.train(train.TASK, stages[:1], tmp_path / "in two", decay=1)
    training.train(train.TASK, stages, tmp_path / "in two", decay=1)
    log = (tmp_path / "in two" / "log.jsonl").read_text().splitlines()
    assert [line.split(",")[0] for line in log] == ['{"step": 3', '{"step": 6']
    whole, halves = (load_file(tmp_path / name / "weights.safetensors") for name in ("at once", "in two"))
    fresh = new_transformer().state_dict()
    for name, tensor in whole.items():
        torch.testing.assert_close(halves[name], tensor, atol=2e-3, rtol=2e-2)
    assert any((tensor.float() - fresh[name]).abs().max() > 0.1 for name, tensor in whole.items())


def test_training_never_ignores_its_starting_point(tmp_path):
    (tmp_path / "checkpoint.pt").touch()
    with pytest.raises(FreelocError, match="exists: remove --start to resume from it, or give another"):
        training.train(train.TASK, (), tmp_path, decay=1, start=WEIGHTS)


@pytest.fixture(scope="module")
def short_clips():
    prompts = SOME[::2]
    return sample(load_pipeline(), prompts, noise(range(len(prompts)), TRAINED_FRAMES))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["identity", "land as prompted", "sharpness", "dynamic degree", "motion smoothness"])
def test_the_shipped_weights_make_good_short_clips(short_clips, name):
    prompts = SOME[::2]
    assert mean_of(name, short_clips, prompts) > 0.7 * mean_of(name, true_clips(TRAINED_FRAMES, prompts), prompts)


def test_the_demo_writes_its_pictures_and_its_report(tmp_path, capsys):
    assert main(["demo", "--times", "2", "--steps", "2", "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "attention calls corrected" in printed
    assert "    40 -> 19 " in printed  # largest relative position, with the settings for 41 latent frames
    assert "land as prompted" in printed
    with Image.open(tmp_path / "out" / "side-by-side.gif") as gif:
        assert gif.n_frames == 41
    with Image.open(tmp_path / "out" / "contact-sheet.png") as sheet:
        assert sheet.width > 1000


class TestCommandLine:
    @pytest.mark.parametrize("option", ["--times", "--steps"])
    def test_a_demo_of_nothing_is_refused(self, capsys, option):
        with pytest.raises(SystemExit):
            main(["demo", option, "0"])
        assert f"argument {option}: expected at least 1, found 0" in capsys.readouterr().err

    def test_adapters(self, capsys):
        assert main(["adapters"]) == 0
        assert "wan-vace" in capsys.readouterr().out

    @pytest.mark.parametrize("command", [["profiles"], ["profiles", "list"]])
    def test_profiles(self, capsys, command):
        assert main(command) == 0
        printed = capsys.readouterr().out
        assert "published" in printed
        assert "30 layers, 12 heads of 128, 21 latent frames: Wan-AI/Wan2.1-T2V-1.3B" in printed

    def test_show(self, capsys):
        assert main(["profiles", "show", "wan2.1"]) == 0
        assert "vrpr        13 layers: 2 3 5 8 12" in capsys.readouterr().out

    def test_validate(self, capsys, tmp_path):
        bad = tmp_path / "bad.json"
        bad.write_text("{}")
        assert main(["profiles", "validate", "wan2.1"]) == 0
        assert main(["profiles", "validate", str(bad)]) == 2
        assert "expected schema_version 1, 2 or 3, found None" in capsys.readouterr().err

    def test_an_error_is_a_message_not_a_traceback(self, capsys):
        assert main(["profiles", "show", "wan2"]) == 2
        assert capsys.readouterr().err.startswith("freeloc: no profile is named 'wan2'; did you mean wan2.1")

    @pytest.mark.slow
    def test_it_is_installed(self):
        command = Path(sys.executable).parent / "freeloc"
        assert "COMMAND" in subprocess.run([command, "--help"], capture_output=True, text=True, check=True).stdout
