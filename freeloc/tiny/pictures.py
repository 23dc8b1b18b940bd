"""Pictures of videos of the tiny model: a GIF with videos side by side, and a contact sheet."""

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

ZOOM = 6
"""Screen pixels per pixel of a video."""


def side_by_side(videos: dict[str, Tensor], path: Path) -> None:
    """Write a GIF: a row per prompt, a column per method."""
    frames = []
    for time_index in range(next(iter(videos.values())).shape[2]):
        columns = [torch.cat(list(video[:, :, time_index]), dim=1) for video in videos.values()]
        frames.append(_picture(columns, list(videos)))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=80, loop=0)


def contact_sheet(videos: dict[str, Tensor], path: Path, columns: int = 12) -> None:
    """Write a PNG: a row per method, with `columns` frames of its videos from left to right."""
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
