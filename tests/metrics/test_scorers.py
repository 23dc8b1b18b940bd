"""The scorers of a probe's videos: the built-in measures, CLIP with real classes, VBench's errors."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

import freeloc
from freeloc import FreelocError
from freeloc.cli import main
from freeloc.errors import ProbeError
from freeloc.metrics.measures import MEASURES
from freeloc.metrics.video import read_video, write_video
from freeloc.probing import Video
from freeloc.probing.depths.video import as_video
from freeloc.probing.scorers import find_scorer
from freeloc.tiny.model import load_transformer
from freeloc.tiny.synthetic import prompt_embeds


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def panned() -> Tensor:
    """A window that moves steadily over a picture of soft spots, (24, 32, 40, 3)."""
    spots = F.interpolate(torch.rand(1, 3, 20, 40, generator=seeded()), (64, 128), mode="bicubic").clamp(0, 1)
    return torch.stack([spots[0, :, 8:40, 2 * step : 2 * step + 40] for step in range(24)]).movedim(1, -1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP with random weights, saved as a released one is."""
    path = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (path / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    torch.manual_seed(0)
    layer = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = layer | {"vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = layer | {"image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(path)
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16)
    tokenizer = CLIPTokenizer(str(path / "vocab.json"), str(path / "merges.txt"))
    CLIPProcessor(images, tokenizer).save_pretrained(path)
    return path


def embeddings(folder: Path, images: list[Image.Image], prompt: str) -> tuple[Tensor, Tensor]:
    """One image at a time, each of length 1."""
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    with torch.no_grad():
        several = [model(**processor(text=[prompt], images=[image], return_tensors="pt")) for image in images]
    found = torch.cat([F.normalize(one.image_embeds, dim=-1) for one in several])
    return found, F.normalize(several[0].text_embeds, dim=-1)[0]


def images_of(video: Tensor) -> list[Image.Image]:
    return [Image.fromarray((frame * 255).round().byte().numpy()) for frame in video]


def test_clip_is_the_mean_cosine_of_frames_and_prompt(folder: Path, panned: Tensor) -> None:
    images, text = embeddings(folder, images_of(panned[:7]), "a fox")
    scorer = find_scorer(f"clip:{folder}")
    assert scorer.score(panned[:7], "a fox") == pytest.approx(float((images @ text).mean()), abs=1e-6)
    assert scorer.score(panned[:7], "a fox") != scorer.score(panned[:7], "snow")
    assert scorer.higher_is_better


def test_clip_scores_sixteen_frames_from_first_to_last(folder: Path, panned: Tensor) -> None:
    chosen = torch.linspace(0, 23, 16).round().long()
    images, text = embeddings(folder, images_of(panned[chosen]), "a fox")
    assert find_scorer(f"clip:{folder}").score(panned, "a fox") == pytest.approx(
        float((images @ text).mean()), abs=1e-6
    )


def test_clip_frames_compares_with_the_first_frame_and_the_one_before(folder: Path, panned: Tensor) -> None:
    images, _ = embeddings(folder, images_of(panned[:5]), "")
    cosines = [float(images[n] @ images[0] + images[n] @ images[n - 1]) / 2 for n in range(1, 5)]
    scorer = find_scorer(f"clip-frames:{folder}")
    assert scorer.score(panned[:5], "") == pytest.approx(sum(cosines) / 4, abs=1e-6)
    assert scorer.score(panned[:1].expand(5, -1, -1, -1), "") == pytest.approx(1, abs=1e-6)
    with pytest.raises(ProbeError, match="expected a video of at least 2 frames to compare, found 1"):
        scorer.score(panned[:1], "")


def test_a_probe_with_clip(folder: Path) -> None:
    transformer = load_transformer()

    def run(prompt: str) -> Tensor:
        noise = torch.randn(1, 3, 22, 8, 8, generator=seeded())
        with torch.no_grad():
            made = transformer(noise, torch.full((1,), 900.0), prompt_embeds([prompt]), return_dict=False)[0]
        return made[0].movedim(0, -1).sigmoid()

    depth = Video([f"clip:{folder}", "sharpness"], shifts=(20,))
    found = freeloc.probe(transformer, run, depth, prompts=["red ring fast", "red ring slow"], profile="tiny-wan")
    score = found.table("video.score")
    assert score.axes["scorers"] == [f"clip:{folder}", "sharpness"]
    plain = find_scorer(f"clip:{folder}").score(run("red ring fast"), "red ring fast")
    assert float(found.table("video.base").at(scorers=f"clip:{folder}").values[0]) == pytest.approx(plain)
    assert (score.at(scorers=f"clip:{folder}").values != plain).any()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("clips:some/model", "did you mean clip? known: clip:MODEL, clip-frames:MODEL, vbench:DIMENSION"),
        ("what:ever", "no judge is named 'what:ever'; known: clip:MODEL"),
        ("clip", "expected 'clip:MODEL', found 'clip'"),
        ("vbench:", "expected 'vbench:DIMENSION', found 'vbench:'"),
        ("clip:no/such/folder", "cannot load the CLIP model no/such/folder"),
        ("vbench:dynamic_degre", "did you mean dynamic_degree?"),
    ],
)
def test_unavailable_scorers(name: str, words: str) -> None:
    with pytest.raises(ProbeError) as error:
        find_scorer(name)
    assert words in str(error.value)


def test_vbench_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProbeError, match=r"No module named 'vbench'.*pip install vbench, then set FREELOC_"):
        find_scorer("vbench:imaging_quality")
    monkeypatch.setenv("FREELOC_VBENCH_PYTHON", "/nowhere/python")
    with pytest.raises(ProbeError, match="cannot use VBench with /nowhere/python"):
        find_scorer("vbench:imaging_quality")


def test_clip_without_transformers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ProbeError, match=r"requires transformers \(.*\): pip install transformers"):
        find_scorer(f"clip:{folder}/.")


def test_scorers_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scorers"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines.keys() >= {
        *(name.split()[0] for name in MEASURES),
        "clip:MODEL",
        "clip-frames:MODEL",
        "vbench:DIMENSION",
    }
    assert "lower is better" in lines["flicker"]
    assert "requires transformers" in lines["clip:MODEL"]


@pytest.mark.parametrize(
    ("name", "spoilt"),
    [
        ("sharpness", lambda video: F.avg_pool2d(video.movedim(-1, 1), 5, 1, 2).movedim(1, -1)),
        ("contrast", lambda video: 0.5 + (video - 0.5) / 3),
        ("dynamic degree", lambda video: video[:1].expand_as(video)),
        ("motion smoothness", lambda video: video[torch.randperm(len(video), generator=seeded())]),
        ("flicker", lambda video: video * torch.tensor([1.0, 0.6]).repeat(12)[:, None, None, None]),
        ("frozen share", lambda video: video[torch.arange(24) // 3 * 3]),
        ("loop strength", lambda video: video[torch.arange(24) % 6]),
        ("drift", lambda video: video * torch.linspace(1, 0.2, 24)[:, None, None, None]),
    ],
)
def test_the_defect_lowers_the_score(panned: Tensor, name: str, spoilt: object) -> None:
    scorer = find_scorer(name)
    sign = 1 if scorer.higher_is_better else -1
    assert sign * scorer.score(spoilt(panned), "") < sign * scorer.score(panned, "")


@pytest.mark.parametrize(
    "made",
    [
        lambda video: video,
        lambda video: video[None],
        lambda video: video.numpy(),
        lambda video: (video * 255).byte().numpy(),
        lambda video: [images_of(video)],
        lambda video: images_of(video),
        lambda video: video.movedim(-1, 1)[None],
        lambda video: SimpleNamespace(frames=[images_of(video)]),
        lambda video: SimpleNamespace(frames=np.stack([video.numpy()])),
        lambda video: (video[None],),
    ],
)
def test_videos_as_a_run_may_return_them(panned: Tensor, made: object) -> None:
    found = as_video(made(panned))
    assert found.dtype == torch.float32
    assert (found - panned).abs().max() < 1 / 254


@pytest.mark.parametrize("made", [None, "video.mp4", torch.rand(2, 5, 8, 8, 3), torch.rand(8, 8, 3), [], object()])
def test_objects_that_are_no_videos_are_refused(made: object) -> None:
    with pytest.raises(ProbeError, match="expected run to return "):
        as_video(made)


def test_a_written_video_reads_back_nearly_the_same(panned: Tensor, tmp_path: Path) -> None:
    smooth = F.avg_pool2d(panned.movedim(-1, 1), 5, 1, 2).movedim(1, -1)
    write_video(tmp_path / "video.mp4", smooth)
    found = read_video(tmp_path / "video.mp4")
    assert found.shape == smooth.shape
    assert (found - smooth).mean(dim=-1).abs().mean() < 0.02
    assert (found - smooth).abs().mean() < 0.04  # colours have half the resolution in such files
    write_video(tmp_path / "odd.mp4", smooth[:, 1:, 1:])
    assert read_video(tmp_path / "odd.mp4").shape == (24, 30, 38, 3)
    with pytest.raises(FreelocError, match="expected a video"):
        write_video(tmp_path / "none.mp4", smooth[..., :1])
    with pytest.raises(FreelocError, match="cannot write the video"):
        write_video(tmp_path / "none" / "video.mp4", smooth)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["odd.mp4", "video.mp4"]
