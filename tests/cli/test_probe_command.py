"""``freeloc probe`` on a real pipeline folder, and real videos through its VAE."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, AutoencoderKLLTXVideo, DiffusionPipeline, LTXImageToVideoPipeline
from PIL import Image
from wan_folder import save_wan_pipeline

import freeloc
from freeloc import FreelocError
from freeloc.cli import main
from freeloc.cli.common import errors_as
from freeloc.errors import ProbeError
from freeloc.probing import Sensitivity, encode
from freeloc.probing.subject import fingerprint

SIZE = ["--frames", "33", "--height", "32", "--width", "32", "--steps", "2", "--dtype", "float32"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "wan"
    save_wan_pipeline(path)
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two videos of another shape, larger than asked for."""
    paths = []
    for seed in range(2):
        noise = torch.randint(0, 255, (40, 36, 50, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
        images = [Image.fromarray(frame.numpy()) for frame in noise]
        paths.append(tmp_path_factory.mktemp("clips") / f"{seed}.gif")
        images[0].save(paths[-1], save_all=True, append_images=images[1:])
    return paths


def command(folder: Path, output: Path, *more: str) -> list[str]:
    return ["probe", str(folder), "--output", str(output), "--trained-latent-frames", "3", *SIZE, *more]


def test_from_a_folder_to_a_profile(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "mine.json"
    assert main(command(folder, output, "--prompt", "a fox", "--prompt", "a hen")) == 0
    profile, found = freeloc.load_profile(output), Sensitivity.load(tmp_path / "mine.safetensors")
    assert profile.provenance.kind == "probed"
    assert profile.evidence is not None
    assert found.facts.prompts == ["a fox", "a hen"]
    assert found.facts.latent_frames == [9]
    assert found.table("local.logits").axes["steps"] == [0, 1]
    printed = capsys.readouterr().out
    assert "9 latent frames, depth local" in printed
    assert printed.splitlines()[2].split()[-1] == profile.policy(0)
    pipe = DiffusionPipeline.from_pretrained(folder)
    with freeloc.patch(pipe, output) as patch:
        pipe("a fox", num_frames=33, height=32, width=32, num_inference_steps=1, output_type="latent")
    assert patch.report().corrected_calls


def test_another_run_does_not_reuse_the_pieces_of_the_first(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = command(folder, tmp_path / "mine.json", "--prompt", "a fox")
    assert main(ask) == 0
    whole = (tmp_path / "mine.safetensors").read_bytes()
    for more in (["--frames", "37"], ["--width", "48"], ["--steps", "1"], ["--arguments", '{"guidance_scale": 1.0}']):
        assert main([*ask, *more]) == 2
        assert "holds a probe with another run: give another folder" in capsys.readouterr().err
    assert (tmp_path / "mine.safetensors").read_bytes() == whole
    settings = Sensitivity.load(tmp_path / "mine.safetensors").facts.settings["local"]["run"]
    assert settings["dtype"] == "float32"
    assert settings["arguments"] == {"num_frames": 33, "height": 32, "width": 32, "num_inference_steps": 2}


@pytest.mark.slow
def test_the_other_depths(folder: Path, clips: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "mine.json"
    assert main(command(folder, output, "--prompt", "a fox", "--depth", "output", "--heads")) == 0
    assert Sensitivity.load(output.with_suffix(".safetensors")).depths == ["output"]
    video = ["--depth", "video", "--scorer", "contrast", "--scorer", "flicker"]
    assert main(command(folder, output, "--prompt", "a fox", "--prompt", "a hen", *video)) == 0
    assert Sensitivity.load(output.with_suffix(".safetensors")).table("video.base").axes["scorers"] == [
        "contrast",
        "flicker",
    ]
    loss = ["--depth", "loss", "--clips", *map(str, clips)]
    assert main(command(folder, output, "--prompt", "a fox", *loss)) == 0
    found = Sensitivity.load(output.with_suffix(".safetensors"))
    assert found.table("loss.value").axes["clips"] == ["000", "001"]
    # Each depth keeps its pieces beside those of the others.
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["loss", "output", "video"]


def test_prompts_of_a_file_and_arguments_of_the_pipeline(folder: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\n\n a hen \n")
    more = ["--prompts", str(prompts), "--arguments", json.dumps({"guidance_scale": 1.0, "num_inference_steps": 1})]
    assert main(command(folder, tmp_path / "mine.json", *more)) == 0
    found = Sensitivity.load(tmp_path / "mine.safetensors")
    assert found.facts.prompts == ["a fox", "a hen"]
    assert found.table("local.change").axes["steps"] == [0]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "expected at least one prompt: give --prompt TEXT or --prompts FILE"),
        (["--prompts", "nowhere.txt"], "cannot read the prompts nowhere.txt"),
        (["--prompt", "a", "--arguments", "[]"], "expected --arguments to be a JSON object, found '[]'"),
        (["--prompt", "a", "--arguments", "{"], "expected --arguments to be a JSON object, found '{'"),
        (["--prompt", "a", "--depth", "loss"], "expected --clips VIDEO VIDEO ... with --depth loss"),
        (["--prompt", "a", "--depth", "loss", "--clips", "no.gif"], "expected a video file, found nothing at no.gif"),
        (["--prompt", "a", "--depth", "video", "--scorer", "sharpnes"], "did you mean sharpness"),
        (["--prompt", "a", "--depth", "video", "--heads"], "expected --heads without --depth video"),
        (["--prompt", "a", "--scorer", "sharpness"], "expected --scorer with --depth video"),
        (["--prompt", "a", "--clips", "no.gif"], "expected --clips with --depth loss"),
        (
            ["--prompt", "a", "--arguments", '{"foo": 1}'],
            "WanPipeline cannot generate: TypeError: WanPipeline.__call__() got an unexpected keyword argument 'foo'",
        ),
        (
            ["--prompt", "a", "--height", "31"],
            "WanPipeline cannot generate: ValueError: `height` and `width` have to be",
        ),
        (["--prompt", "a", "--device", "nowhere"], "cannot load the model"),
    ],
)
def test_refusals(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    assert main(command(folder, tmp_path / "mine.json", *more)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "mine.json").exists()


def test_a_folder_that_holds_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tmp_path, tmp_path / "mine.json", "--prompt", "a")) == 2
    assert "cannot load the model" in capsys.readouterr().err


def test_an_unknown_class(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strange = shutil.copytree(folder, tmp_path / "strange")
    index = strange / "model_index.json"
    index.write_text(index.read_text().replace("WanPipeline", "NoSuchPipeline"))
    assert main(command(strange, tmp_path / "mine.json", "--prompt", "a")) == 2
    message = capsys.readouterr().err
    assert f"cannot load the model {strange}: AttributeError: " in message
    assert "NoSuchPipeline" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without a GPU")
def test_an_unknown_device(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(folder, tmp_path / "mine.json", "--prompt", "a", "--device", "cuda")) == 2
    assert f"cannot load the model {folder}: " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nosuffix", "x.safetensors", "wan2.1-fox", "folder.json"])
def test_an_output_that_is_no_json_file_is_refused_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "folder.json").mkdir()
    assert main(command(tmp_path / "nowhere", tmp_path / name, "--prompt", "a")) == 2
    assert f"expected --output to name a .json file, found {tmp_path / name}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["folder.json"]


def test_where_the_trained_length_comes_from(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["probe", str(folder), "--prompt", "a", "--output", str(tmp_path / "mine.json"), *SIZE]
    assert main(ask) == 2
    message = capsys.readouterr().err
    assert "the trained length of this WanTransformer3DModel (2 layers, 2 heads) is not known" in message
    assert "Give --trained-latent-frames, or --profile" in message
    with pytest.raises(SystemExit):
        main([*ask, "--profile", "wan2.1", "--trained-latent-frames", "3"])
    assert "not allowed with argument" in capsys.readouterr().err
    assert main(["probe", str(tmp_path / "nowhere"), *ask[2:], "--profile", "wan2.11"]) == 2
    assert "no profile is named 'wan2.11'" in capsys.readouterr().err  # before a model is looked for


def test_errors_of_other_libraries_are_reported_with_their_cause_and_interrupts_end_the_run() -> None:
    with pytest.raises(FreelocError, match="cannot count: KeyError: 3") as caught, errors_as("cannot count"):
        raise KeyError(3)
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(ProbeError, match=r"^ours$"), errors_as("cannot count"):
        raise ProbeError("ours")
    with pytest.raises(KeyboardInterrupt), errors_as("cannot count"):
        raise KeyboardInterrupt


@pytest.mark.slow
def test_the_probed_model_has_the_dtypes_that_users_run(folder: Path, clips: list[Path], tmp_path: Path) -> None:
    """In bfloat16 diffusers keeps some weights of Wan in float32."""
    pipe = DiffusionPipeline.from_pretrained(folder, dtype=torch.bfloat16)
    kept = [name for name, weight in pipe.transformer.named_parameters() if weight.dtype == torch.float32]
    assert 0 < len(kept) < len([*pipe.transformer.parameters()])
    for depth in (["local"], ["output"], ["loss", "--clips", *map(str, clips)]):
        ask = command(folder, tmp_path / "mine.json", "--prompt", "a fox", "--depth", *depth, "--dtype", "bfloat16")
        assert main(ask) == 0
        found = Sensitivity.load(tmp_path / "mine.safetensors")
        assert found.facts.fingerprint == fingerprint(pipe.transformer)


def test_a_clip_that_is_too_short(
    folder: Path, clips: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--prompt", "a", "--depth", "loss", "--clips", str(clips[0]), "--frames", "45"]
    assert main(command(folder, tmp_path / "mine.json", *more)) == 2
    assert "expected at least 45 frames, found 40" in capsys.readouterr().err


def test_encode_undoes_what_the_pipeline_does_before_decoding(folder: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(folder)
    video = torch.rand(9, 16, 24, 3, generator=torch.Generator().manual_seed(0))
    latents = encode(pipe.vae, video)
    assert latents.shape == (16, 3, 2, 3)
    mean, std = (torch.tensor(pipe.vae.config[name]).view(-1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    again = pipe.vae.encode(2 * video.movedim(-1, 0)[None] - 1).latent_dist.mode()[0]
    assert torch.allclose(latents * std + mean, again, atol=1e-5)
    assert encode(pipe.vae, video, "f c h w").shape == (3, 16, 2, 3)
    with pytest.raises(ProbeError, match=r"expected a video \(frames, height, width, 3\) in 0..1, found"):
        encode(pipe.vae, 3 * video)


def test_encode_with_a_single_scale() -> None:
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(4, 4),
        down_block_types=("CogVideoXDownBlock3D",) * 2,
        up_block_types=("CogVideoXUpBlock3D",) * 2,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=2,
        scaling_factor=0.7,
    )
    video = torch.rand(5, 8, 8, 3)
    plain = vae.encode(2 * video.movedim(-1, 0)[None] - 1).latent_dist.mode()[0]
    assert torch.allclose(encode(vae, video), 0.7 * plain, atol=1e-5)


def test_encode_with_the_statistics_that_ltx_keeps_as_buffers() -> None:
    vae = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8),
        down_block_types=("LTXVideoDownBlock3D",) * 2,
        decoder_block_out_channels=(8, 8),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, False),
        decoder_spatio_temporal_scaling=(True, False),
        decoder_inject_noise=(False,) * 3,
        patch_size=1,
    )
    vae.latents_mean.copy_(torch.linspace(-1, 1, 8))
    vae.latents_std.copy_(torch.linspace(1, 3, 8))
    video = torch.rand(5, 8, 8, 3)
    plain = vae.encode(2 * video.movedim(-1, 0)[None] - 1).latent_dist.mode()
    expected = LTXImageToVideoPipeline._normalize_latents(plain, vae.latents_mean, vae.latents_std)[0]
    assert torch.allclose(encode(vae, video), expected, atol=1e-5)
    vae.latents_std = vae.latents_std[:3]
    with pytest.raises(ProbeError, match="mean and deviation of each of 8 channels, found 8 and 3"):
        encode(vae, video)
