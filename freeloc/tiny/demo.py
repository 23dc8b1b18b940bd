"""``freeloc demo``: the tiny model at four times the length that it was trained on, directly and with freeloc."""

import time
from pathlib import Path

import torch
from diffusers import WanPipeline
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import freeloc
from freeloc.tiny.measures import MEASURES
from freeloc.tiny.model import TRAINED_FRAMES, load_pipeline, pipeline_size
from freeloc.tiny.world import clips, prompt_embeds, to_video

PROMPTS = ("yellow disc fast", "cyan ring slow")
ZOOM = 6
"""Screen pixels per pixel of the world."""


def generate(
    pipeline: WanPipeline, prompts: list[str], latent_frames: int, seed: int = 0, steps: int = 12, title: str = ""
) -> Tensor:
    """Videos (prompts, 3, latent_frames, height, width) in 0..1, each from a seed of its own."""
    pipeline.set_progress_bar_config(desc=f"{title:>14}", leave=True)
    latents = pipeline(
        prompt_embeds=prompt_embeds(prompts),
        negative_prompt_embeds=prompt_embeds([""] * len(prompts)),
        generator=[torch.Generator().manual_seed(seed + index) for index in range(len(prompts))],
        guidance_scale=3.0,
        num_inference_steps=steps,
        output_type="latent",
        **pipeline_size(latent_frames),
    ).frames
    return to_video(latents)


def side_by_side(videos: dict[str, Tensor], path: Path) -> None:
    """Write a GIF: a row per prompt, a column per way of making the video."""
    frames = []
    for time_index in range(next(iter(videos.values())).shape[2]):
        columns = [torch.cat(list(video[:, :, time_index]), dim=1) for video in videos.values()]
        frames.append(_picture(columns, list(videos)))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=80, loop=0)


def contact_sheet(videos: dict[str, Tensor], path: Path, columns: int = 12) -> None:
    """Write a PNG: a row per video, one frame in so many from left to right."""
    strips = []
    for video in videos.values():
        chosen = torch.linspace(0, video.shape[2] - 1, columns).round().long().tolist()
        strips.append(torch.cat([torch.cat(list(video[:, :, index]), dim=1) for index in chosen], dim=2))
    sheets = [_picture([strip], [name]) for name, strip in zip(videos, strips, strict=True)]
    whole = Image.new("RGB", (sheets[0].width, sum(sheet.height for sheet in sheets)))
    for index, sheet in enumerate(sheets):
        whole.paste(sheet, (0, sum(above.height for above in sheets[:index])))
    whole.save(path)


def _picture(columns: list[Tensor], captions: list[str], gap: int = 12, head: int = 22) -> Image.Image:
    """Columns of pixels (3, height, width) under their captions."""
    images = []
    for column in columns:
        pixels = (column.permute(1, 2, 0) * 255).round().byte().numpy()
        images.append(Image.fromarray(pixels).resize((column.shape[2] * ZOOM, column.shape[1] * ZOOM), 0))
    width = sum(image.width for image in images) + gap * (len(images) - 1)
    picture = Image.new("RGB", (width, head + images[0].height), "white")
    draw, left = ImageDraw.Draw(picture), 0
    for image, caption in zip(images, captions, strict=True):
        draw.text((left + 4, 4), caption, fill="black", font=ImageFont.load_default(size=13))
        picture.paste(image, (left, head))
        left += image.width + gap
    return picture


def measures_table(videos: dict[str, Tensor], prompts: list[str]) -> str:
    """Every measure of every way of making the videos, one line each. The prompts repeat where there are more clips."""
    lines = [f"{'':26}" + "".join(f"{name:>16}" for name in videos)]
    for title, measure in MEASURES.items():
        values = [measure(video, (prompts * len(video))[: len(video)]) for video in videos.values()]
        lines.append(f"{title:26}" + "".join(f"{value:16.3f}" for value in values))
    return "\n".join(lines)


def run(folder: Path, times: int = 4, seed: int = 0, steps: int = 12, method: str | None = None) -> None:
    """Generate, write ``side-by-side.gif`` and ``contact-sheet.png`` to `folder`, and print what happened."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts, length = list(PROMPTS), times * (TRAINED_FRAMES - 1) + 1
    pipeline = load_pipeline()
    print(f"A tiny Wan, trained on clips of {TRAINED_FRAMES} latent frames, makes videos of {length}:")
    print(", ".join(prompts))
    videos = {"true clips": clips(prompts * 32, length, torch.Generator().manual_seed(seed))}
    videos["1x"] = generate(pipeline, prompts, TRAINED_FRAMES, seed, steps, title="1x")
    started = time.perf_counter()
    videos[f"{times}x direct"] = generate(pipeline, prompts, length, seed, steps, title=f"{times}x direct")
    switched = time.perf_counter()
    with freeloc.patch(pipeline, profile="tiny-wan", method=method) as patch:
        videos[f"{times}x freeloc"] = generate(pipeline, prompts, length, seed, steps, title=f"{times}x freeloc")
    finished = time.perf_counter()
    print(f"\n{patch.report()}\n")
    print(measures_table(videos, prompts))
    print(f"\nseconds: {switched - started:.1f} direct, {finished - switched:.1f} with freeloc")
    videos.pop("true clips")
    contact_sheet(videos, folder / "contact-sheet.png")
    videos.pop("1x")
    side_by_side(videos, folder / "side-by-side.gif")
    print(f"written: {folder / 'side-by-side.gif'}, {folder / 'contact-sheet.png'}")
