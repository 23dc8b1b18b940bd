"""The measures, on videos with exactly one defect, on clips of the synthetic dataset and on a photograph."""

import json
import math
import re

import pytest
import torch
import torch.nn.functional as F
from matplotlib import cbook
from PIL import Image

from freeloc import FreelocError, metrics
from freeloc.cli import main
from freeloc.metrics import motion
from freeloc.metrics.measures import MEASURES
from freeloc.metrics.video import read_video
from freeloc.tiny.synthetic import clips

FRAMES = 48


def true_clip(prompt="red ring slow", frames=FRAMES, seed=0):
    return clips([prompt], frames, torch.Generator().manual_seed(seed))[0].movedim(0, -1)


def photo_pan(frames=24, step=2):
    """A window that moves right over a real photograph by `step` pixels per frame."""
    with cbook.get_sample_data("grace_hopper.jpg") as file, Image.open(file) as image:
        picture = image.convert("RGB").resize((160, 188))
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(188, 160, 3).float() / 255
    return torch.stack([pixels[60:108, step * t : step * t + 64] for t in range(frames)])


def frozen(video, start=8):
    return video[torch.arange(len(video)).clamp(max=start)]


def looping(video, period=12):
    return video[torch.arange(len(video)) % period]


def blurred(video):
    return F.avg_pool2d(video.movedim(-1, 1), 3, stride=1, padding=1, count_include_pad=False).movedim(1, -1)


def flickering(video, size=0.1):
    sign = torch.where(torch.arange(len(video)) % 2 == 0, size, -size)
    return (video + sign.view(-1, 1, 1, 1)).clamp(0, 1)


def drifting(video):
    towards = torch.linspace(0, 0.6, len(video)).view(-1, 1, 1, 1)
    return torch.lerp(video, torch.tensor([0.9, 0.2, 0.1]).expand_as(video), towards)


def jerky(video):
    """Every other pair of frames swapped."""
    return video[torch.arange(len(video)).view(-1, 2).flip(1).flatten()]


def faded(video):
    return torch.lerp(video, video.mean().expand_as(video), 0.6)


DEFECTS = {
    "frozen": (frozen, "frozen share", +1, 0.5),
    "slowed to a stop": (frozen, "dynamic degree", -1, 2.0),
    "looping": (looping, "loop strength", +1, 0.5),
    "blurred": (blurred, "sharpness", -1, 0.01),
    "flickering": (flickering, "flicker", +1, 0.2),
    "drifting": (drifting, "drift", +1, 0.08),
    "jerky": (jerky, "motion smoothness", -1, 0.002),
    "faded": (faded, "contrast", -1, 0.03),
}
VIDEOS = {"synthetic clip": true_clip, "photograph": photo_pan}


@pytest.mark.parametrize("video", VIDEOS.values(), ids=VIDEOS)
@pytest.mark.parametrize(("spoil", "name", "sign", "least"), DEFECTS.values(), ids=DEFECTS)
def test_each_defect_changes_its_measure(video, spoil, name, sign, least):
    before = video()
    change = MEASURES[name](spoil(before)) - MEASURES[name](before)
    assert sign * change > least


OTHERS = {
    looping: ["contrast", "flicker", "frozen share", "motion smoothness"],
    flickering: ["sharpness", "contrast", "frozen share", "drift"],
    faded: ["dynamic degree", "frozen share", "loop strength", "drift"],
    frozen: ["flicker", "loop strength", "drift"],
}


@pytest.mark.parametrize("spoil", OTHERS, ids=lambda spoil: spoil.__name__)
def test_each_defect_hardly_changes_the_other_measures(spoil):
    video = true_clip()
    for name in OTHERS[spoil]:
        own = next(defect for defect, measure, _, _ in DEFECTS.values() if measure == name)
        largest = abs(MEASURES[name](own(video)) - MEASURES[name](video))
        assert abs(MEASURES[name](spoil(video)) - MEASURES[name](video)) < 0.35 * largest, name


@pytest.mark.parametrize("prompt", ["red ring slow", "blue disc fast", "yellow cross fast"])
def test_true_clips_have_none_of_the_defects(prompt):
    video = true_clip(prompt, frames=81, seed=3)
    assert metrics.frozen_share(video) == 0
    assert metrics.loop_strength(video) < 0.4
    assert metrics.flicker(video) < 0.02
    assert metrics.drift(video) < 0.35
    assert metrics.dynamic_degree(video) > 8  # percent of 20 pixels: 1.6 pixels per frame


@pytest.mark.parametrize("step", [0, 1, 3, 6])
def test_the_dynamic_degree_is_the_motion_in_percent_of_the_shorter_side(step):
    assert metrics.dynamic_degree(photo_pan(6, step)) == pytest.approx(100 * step / 48, abs=0.6)


def test_the_fastest_synthetic_motion_is_smooth_and_its_jerks_are_detected():
    for video in (true_clip("blue disc fast"), photo_pan(12, step=5)):
        assert metrics.motion_smoothness(video) > 0.97
        assert metrics.motion_smoothness(jerky(video)) < metrics.motion_smoothness(video) - 0.01


@pytest.mark.parametrize(("x", "y"), [(0, 0), (3, 0), (-2, 5), (6, -6)])
def test_whole_pixel_motion_is_found_exactly(x, y):
    frame = torch.rand(1, 40, 48, 3, generator=torch.Generator().manual_seed(0))
    field = motion.motion_field(torch.cat([frame, frame.roll((y, x), dims=(1, 2))]))
    inside = field[0, 12:-12, 12:-12].flatten(0, 1)
    assert (inside == torch.tensor([x, y])).all()


def test_a_uniform_picture_does_not_move():
    assert (motion.motion_field(torch.full((3, 20, 20, 3), 0.4)) == 0).all()


def test_the_motion_field_is_the_exhaustive_search():
    video = torch.rand(2, 9, 11, 3, generator=torch.Generator().manual_seed(1))
    found = motion.motion_field(video, radius=1, block=3)[0]
    for row in range(9):
        for column in range(11):
            best, least = None, float("inf")
            for x, y in motion.displacements(1).tolist():
                block = []
                for r in range(max(row - 1, 0), min(row + 2, 9)):
                    for c in range(max(column - 1, 0), min(column + 2, 11)):
                        there = video[1, min(max(r + y, 0), 8), min(max(c + x, 0), 10)]
                        block.append((video[0, r, c] - there).abs().mean())
                if (cost := float(torch.stack(block).mean())) < least - motion.NOISE:
                    best, least = [x, y], cost
            assert found[row, column].tolist() == best


def grey(noise: float = 0.0, frames: int = 24) -> torch.Tensor:
    """Plain grey with noise of this deviation in levels of 8 bits, rounded to them."""
    generator = torch.Generator().manual_seed(0)
    video = 0.5 + noise / 255 * torch.randn(frames, 48, 64, 3, generator=generator)
    return (video * 255).round() / 255


def compressed(video, folder, quality):
    """The video through H.264."""
    import av

    with av.open(folder / "video.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=16, options={"crf": str(quality)})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for frame in (video * 255).round().byte().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return read_video(folder / "video.mp4")


def assert_motion_is_not_measured(video):
    found = {name: measure(video) for name, measure in MEASURES.items()}
    assert {name for name, value in found.items() if math.isnan(value)} == {"dynamic degree", "motion smoothness"}
    assert metrics.pairs_with_texture(video) == (0, len(video) - 1)
    assert metrics.motion_features(video).shape == (0, 32)
    assert math.isnan(metrics.frechet_distance(metrics.motion_features(video), metrics.motion_features(photo_pan())))


@pytest.mark.parametrize("noise", [0, 1, 3])
def test_no_motion_is_measured_in_grey(noise):
    assert_motion_is_not_measured(grey(noise))


@pytest.mark.parametrize("quality", [10, 23])
def test_no_motion_is_measured_in_the_noise_of_a_codec(tmp_path, quality):
    assert_motion_is_not_measured(compressed(grey(noise=5), tmp_path, quality))


def test_without_that_noise_would_be_large_motion():
    """So this is what the threshold is for."""
    field = motion.inner(motion.motion_field(grey(noise=3, frames=3)))
    largest = field.square().sum(dim=-1).sqrt().flatten(1).topk(93, dim=1).values
    assert 100 * largest.mean() / 48 > 10 > metrics.dynamic_degree(photo_pan(frames=3)) > 4


@pytest.mark.parametrize("video", VIDEOS.values(), ids=VIDEOS)
def test_motion_is_measured_in_true_videos_also_of_little_contrast(video):
    faint = (torch.lerp(video(), video().mean().expand_as(video()), 0.9) * 255).round() / 255
    for moving in (video(), faint):
        assert metrics.pairs_with_texture(moving) == (len(moving) - 1, len(moving) - 1)
        assert metrics.motion_features(moving).shape == (len(moving) - 1, 32)
    assert metrics.dynamic_degree(faint) == pytest.approx(metrics.dynamic_degree(video()), rel=0.3)


def test_a_video_that_fades_to_grey_is_measured_until_then():
    pan, plain = photo_pan(frames=12), grey(noise=3, frames=13)
    faded = torch.cat([pan, plain])
    assert metrics.pairs_with_texture(faded) == (11, 24)
    assert metrics.dynamic_degree(faded) == pytest.approx(metrics.dynamic_degree(pan))
    assert metrics.motion_smoothness(faded) == pytest.approx(metrics.motion_smoothness(pan))
    assert torch.equal(metrics.motion_features(faded), metrics.motion_features(pan))


def test_texture_is_its_definition():
    video = torch.rand(2, 20, 24, 3, generator=torch.Generator().manual_seed(0))
    blocks = [video[:, y : y + 7, x : x + 7].double() for y in range(14) for x in range(18)]
    deviations = torch.stack([block.var(dim=(1, 2), unbiased=False).mean(dim=-1).sqrt() for block in blocks], dim=1)
    expected = deviations.sort(dim=1, descending=True).values[:, round(0.05 * len(blocks)) - 1]
    assert torch.allclose(motion.texture(video), expected)
    assert motion.texture(video[:, :4, :5]).shape == (2,)  # smaller than a block


def test_large_videos_are_measured_at_a_working_size():
    large = F.interpolate(photo_pan(5).movedim(-1, 1), scale_factor=4, mode="bilinear").movedim(1, -1).clamp(0, 1)
    assert metrics.dynamic_degree(large) == pytest.approx(metrics.dynamic_degree(photo_pan(5)), rel=0.3)


def test_the_loop_is_found_at_its_period():
    distance = metrics.distance_by_lag(looping(true_clip(), 12))
    assert distance[12] == 0
    assert distance[24] == 0
    assert distance[1:12].min() > 0.01


def test_the_drift_curve_grows_where_colours_drift():
    still, moving = metrics.drift_curve(true_clip()), metrics.drift_curve(drifting(true_clip()))
    assert still[0] == moving[0] == 0
    assert moving[40] > still[40] + 0.2
    assert moving[40] > moving[20] > moving[10] > moving[2]


def test_colour_spread_falls_where_all_clips_become_alike():
    videos = [true_clip(seed=seed, frames=5) for seed in range(8)]
    alike = [torch.lerp(video, torch.full_like(video, 0.5), 0.5) for video in videos]
    assert metrics.colour_spread(alike) == pytest.approx(metrics.colour_spread(videos) / 2, rel=1e-4)


def test_the_frechet_distance_is_its_formula():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(300, 5, generator=generator, dtype=torch.float64)
    b = 0.3 + torch.randn(200, 5, generator=generator, dtype=torch.float64) @ torch.randn(
        5, 5, generator=generator, dtype=torch.float64
    )
    product = a.T.cov() @ b.T.cov()
    root_trace = torch.linalg.eigvals(product).sqrt().real.sum()
    expected = (a.mean(0) - b.mean(0)).square().sum() + a.T.cov().trace() + b.T.cov().trace() - 2 * root_trace
    assert metrics.frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("spoil", [blurred, faded, drifting])
def test_frame_features_of_spoiled_videos_are_farther_from_true_ones(spoil):
    sets = [
        torch.cat([metrics.frame_features(true_clip(seed=seed)) for seed in seeds]) for seeds in ((0, 1, 2), (3, 4, 5))
    ]
    bad = torch.cat([metrics.frame_features(spoil(true_clip(seed=seed))) for seed in (3, 4, 5)])
    assert metrics.frechet_distance(sets[0], bad) > metrics.frechet_distance(*sets)


def test_motion_features_distinguish_a_frozen_video_from_a_moving_one():
    moving = [metrics.motion_features(true_clip(seed=seed)) for seed in (0, 1)]
    still = metrics.motion_features(frozen(true_clip(seed=1)))
    assert metrics.frechet_distance(moving[0], still) > 2 * metrics.frechet_distance(*moving)


def test_the_denoising_loss_of_a_perfect_and_of_a_blind_prediction():
    clean = torch.randn(3, 2, 4, 5, 5, generator=torch.Generator().manual_seed(0))

    def perfect(noisy, sigma):
        return (noisy - clean) / sigma.view(-1, 1, 1, 1, 1)

    seeded = torch.Generator().manual_seed(1)
    blind = metrics.denoising_loss(lambda noisy, sigma: torch.zeros_like(noisy), clean, generator=seeded)
    assert metrics.denoising_loss(perfect, clean).max() < 1e-9
    assert blind.shape == (5, 3)
    assert blind.mean() == pytest.approx(2, rel=0.1)  # variance of noise and of the data


def test_the_same_seed_gives_the_same_noise_to_every_model():
    clean = torch.randn(2, 1, 2, 3, 3)
    seen = []
    for _ in range(2):
        metrics.denoising_loss(
            lambda noisy, sigma: seen.append(noisy) or noisy, clean, [0.5], torch.Generator().manual_seed(7)
        )
    assert torch.equal(*seen)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (torch.rand(4, 8, 8), r"expected a video \(frames, height, width, 3\), found shape \(4, 8, 8\)"),
        (torch.rand(4, 3, 8, 8), r"found shape \(4, 3, 8, 8\)"),
        (torch.rand(1, 8, 8, 3), "expected a video of at least 3 frames of 3 x 3 pixels"),
        (torch.randint(0, 255, (4, 8, 8, 3)), "expected floats from 0 to 1, found torch.int64 .*divide bytes by 255"),
        (255 * torch.rand(4, 8, 8, 3), "expected floats from 0 to 1"),
        (torch.full((4, 8, 8, 3), float("nan")), "expected floats from 0 to 1, found torch.float32 from nan to nan"),
    ],
)
def test_tensors_that_are_no_videos_are_refused(video, message):
    with pytest.raises(FreelocError, match=message):
        metrics.flicker(video)


@pytest.fixture
def files(tmp_path):
    """The same real clip as a lossless file, as a GIF, and frozen."""
    import av

    video = (photo_pan() * 255).round().byte()
    for name, clip in (("pan.mkv", video), ("frozen.mkv", video[[0] * len(video)])):
        with av.open(tmp_path / name, "w") as container:
            stream = container.add_stream("ffv1", rate=16)
            stream.height, stream.width, stream.pix_fmt = 48, 64, "bgr0"
            for frame in clip:
                container.mux(
                    stream.encode(av.VideoFrame.from_ndarray(frame.numpy(), format="rgb24").reformat(format="bgr0"))
                )
            container.mux(stream.encode())
    images = [Image.fromarray(frame.numpy()).quantize(256) for frame in video]
    images[0].save(tmp_path / "pan.gif", save_all=True, append_images=images[1:])
    return tmp_path


def test_a_lossless_file_is_read_as_it_was(files):
    assert torch.equal(read_video(files / "pan.mkv"), (photo_pan() * 255).round() / 255)


def test_a_gif_is_read_within_its_palette(files):
    found = read_video(files / "pan.gif")
    assert found.shape == photo_pan().shape
    assert (found - photo_pan()).abs().mean() < 0.03


def test_the_command_measures_files(files, capsys):
    assert main(["measure", str(files / "pan.mkv"), str(files / "frozen.mkv"), "--json"]) == 0
    pan, still = json.loads(capsys.readouterr().out)
    assert pan["file"] == str(files / "pan.mkv")
    assert {name: pan[name] for name in MEASURES} == {
        name: pytest.approx(measure(read_video(files / "pan.mkv"))) for name, measure in MEASURES.items()
    }
    assert (still["frozen share"], still["dynamic degree"]) == (1, 0)


def test_the_command_says_where_frames_have_no_texture(tmp_path, capsys):
    from freeloc.metrics.video import write_video

    for name, video in (("grey.mp4", grey(noise=2, frames=8)), ("pan.mp4", photo_pan(frames=8))):
        write_video(tmp_path / name, video)
    write_video(tmp_path / "fades.mp4", torch.cat([photo_pan(frames=8), grey(frames=8)]))
    names = [str(tmp_path / name) for name in ("grey.mp4", "pan.mp4", "fades.mp4")]
    assert main(["measure", *names]) == 0
    printed = capsys.readouterr().out.splitlines()
    for name in ("dynamic degree", "motion smoothness"):
        line = next(line for line in printed if line.startswith(name))
        assert line.count("no texture") == 1
        assert re.fullmatch(rf"{name} +no texture +\d+\.\d{{4}} +\d+\.\d{{4}}", line)
    assert [line.split(": ")[0] for line in printed if "no motion can be seen in them" in line] == [names[0], names[2]]
    assert f"{names[2]}: dynamic degree and motion smoothness are measured in 7 of 15 pairs of frames" in printed[-1]
    assert main(["measure", *names, "--json"]) == 0
    plain, pan, _ = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (plain["dynamic degree"], plain["motion smoothness"], plain["pairs with texture"]) == (None, None, 0)
    assert pan["dynamic degree"] > 3
    assert (pan["pairs with texture"], pan["pairs of frames"]) == (7, 7)


def test_files_of_the_same_name_have_a_column_each(files, capsys):
    (files / "other").mkdir()
    (files / "frozen.mkv").rename(files / "other" / "pan.mkv")
    assert main(["measure", str(files / "pan.mkv"), str(files / "other" / "pan.mkv")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == [str(files / "pan.mkv"), str(files / "other" / "pan.mkv")]
    pan, still = next(line.split()[-2:] for line in printed if line.startswith("dynamic degree"))
    assert (float(pan) > 3, float(still)) == (True, 0)


def test_the_command_draws_how_colours_drift(files, capsys):
    command = ["measure", str(files / "pan.mkv"), str(files / "frozen.mkv"), "--drift-chart", str(files / "drift.png")]
    assert main(command) == 0
    assert "drift" in capsys.readouterr().out
    with Image.open(files / "drift.png") as picture:
        assert picture.size == (900, 500)


def test_a_file_that_cannot_be_measured_is_named(tmp_path, capsys):
    Image.new("RGB", (20, 20)).save(tmp_path / "one-frame.gif")
    assert main(["measure", str(tmp_path / "one-frame.gif")]) == 2
    assert "one-frame.gif: expected a video of at least 3 frames" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.mp4", None, "expected a video file, found nothing at "),
        ("text.mp4", b"no video at all", "cannot read .*text.mp4 as a video: "),
        ("text.gif", b"no video at all", "cannot read .*text.gif as a video: "),
        ("empty.mp4", b"", "cannot read .*empty.mp4 as a video: "),
    ],
)
def test_a_file_that_is_no_video_gives_one_message(tmp_path, capsys, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FreelocError, match=message):
        read_video(path)
    assert main(["measure", str(path)]) == 2
    assert "freeloc: " in capsys.readouterr().err
