"""The tiny world, its measures, its trained model, and the demo that shows it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from freeloc.cli import main
from freeloc.tiny import train
from freeloc.tiny.demo import generate
from freeloc.tiny.measures import MEASURES, pan_accuracy, shape_visible, sharpness
from freeloc.tiny.model import TRAINED_FRAMES, load_pipeline, load_transformer
from freeloc.tiny.world import HEIGHT, PANS, PROMPTS, WIDTH, clips, to_latents, to_video

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


def test_the_land_moves_by_the_prompted_speed():
    for pan, speed in PANS.items():
        video = clips([f"red disc {pan}"], 30, torch.Generator().manual_seed(1))
        land = video[0, :, :, -1]  # (3, frames, width)
        step = int(abs(speed))
        if speed > 0:
            still = (land[:, 1:, :-step] - land[:, :-1, step:]).abs().amax(dim=(0, 2)) < 1e-5
        else:
            still = (land[:, 1:, step:] - land[:, :-1, :-step]).abs().amax(dim=(0, 2)) < 1e-5
        assert still.float().mean() > 0.5, pan  # the shape covers some of it at times


def test_latents_are_about_unit_variance_and_invertible():
    video = true_clips()
    latents = to_latents(video)
    assert latents.mean().abs() < 0.4
    assert 0.8 < latents.std() < 1.2
    assert torch.allclose(to_video(latents), video, atol=1e-6)


def test_measures_of_true_clips_are_near_their_best():
    video = true_clips()
    assert pan_accuracy(video, SOME) > 0.95
    assert shape_visible(video, SOME) > 0.95


def test_each_measure_falls_with_its_defect():
    video = true_clips()
    frozen = video[:, :, :1].expand_as(video)
    blurred = torch.nn.functional.avg_pool3d(video, (1, 3, 3), stride=1)
    faded = 0.5 * video
    assert pan_accuracy(frozen, SOME) == 0
    assert sharpness(blurred, SOME) < 0.6 * sharpness(video, SOME)
    assert shape_visible(faded, SOME) < 0.05


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # of torch.compile, not ours
def test_training_resumes_where_it_was(tmp_path):
    stages = (train.Stage(2, 2, 3), train.Stage(3, 1, 3))
    train.train(stages[:1], tmp_path / "two runs", decay=2)
    train.train(stages, tmp_path / "two runs", decay=2)
    log = (tmp_path / "two runs" / "log.jsonl").read_text().splitlines()
    assert [line.split(",")[0] for line in log] == ['{"step": 3', '{"step": 6']
    weights = load_transformer(tmp_path / "two runs" / "weights.safetensors").state_dict()
    assert all(tensor.isfinite().all() for tensor in weights.values())


UNDERTRAINED = pytest.mark.xfail(reason="the shipped weights are not trained enough yet: see docs/tiny-model.md")


@pytest.fixture(scope="module")
def short_clips():
    return generate(load_pipeline(), SOME[::2], TRAINED_FRAMES, steps=12)


@pytest.mark.parametrize(
    "name", ["sharpness", pytest.param("land moves as prompted", marks=UNDERTRAINED), "shape in its colour"]
)
def test_the_shipped_weights_make_good_short_clips(short_clips, name):
    prompts, measure = SOME[::2], MEASURES[name]
    assert measure(short_clips, prompts) > 0.75 * measure(true_clips(TRAINED_FRAMES, prompts), prompts)


def test_the_demo_writes_its_pictures_and_proves_its_work(tmp_path, capsys):
    assert main(["demo", "--times", "2", "--steps", "2", "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "attention calls corrected" in printed
    assert "    40 -> 19 " in printed  # largest relative position, with the settings for 41 latent frames
    assert "land moves as prompted" in printed
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
        assert "expected schema_version 1, found None" in capsys.readouterr().err

    def test_an_error_is_a_message_not_a_traceback(self, capsys):
        assert main(["profiles", "show", "wan2"]) == 2
        assert capsys.readouterr().err.startswith("freeloc: no profile is named 'wan2'; did you mean wan2.1")

    def test_it_is_installed(self):
        command = Path(sys.executable).parent / "freeloc"
        assert "COMMAND" in subprocess.run([command, "--help"], capture_output=True, text=True, check=True).stdout
