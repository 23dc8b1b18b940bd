"""The world that the tiny model is trained on: one coloured shape bouncing over a still background.

Clips are drawn from closed formulas (a triangle wave for the bounces, signed distances for the shapes), so a true clip
of any length exists and can be compared with what a model makes of it.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

FRAME_SIZE = 24
"""Height and width of a frame, in pixels."""

SHAPE_RADIUS = 5.0
"""Half the size of a shape, in pixels."""

SPEED_RANGE = (0.7, 1.6)
"""Slowest and fastest shape, in pixels per frame."""

EMBED_DIM = 32
"""Channels of one prompt token."""

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.95, 0.15, 0.15),
    "green": (0.15, 0.85, 0.20),
    "blue": (0.20, 0.35, 1.00),
    "yellow": (0.98, 0.90, 0.15),
    "magenta": (0.95, 0.20, 0.90),
    "cyan": (0.15, 0.90, 0.95),
}
"""Shape colours, RGB in 0..1."""


def _disc(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 1


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.88


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs() * 0.866 - y * 0.5, y) - 0.55


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.75).abs() - 0.25


def _cross(x: Tensor, y: Tensor) -> Tensor:
    long, short = torch.maximum(x.abs(), y.abs()), torch.minimum(x.abs(), y.abs())
    return torch.maximum(long - 1, short - 0.33)


SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "disc": _disc,
    "square": _square,
    "triangle": _triangle,
    "ring": _ring,
    "cross": _cross,
}
"""Signed distance of each shape in units of its radius: negative inside."""

PROMPTS = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
"""Every prompt the model knows, such as ``"red ring"``."""


def clips(prompts: list[str], frames: int, generator: torch.Generator) -> Tensor:
    """True clips of the given prompts.

    >>> clips(["red ring", "blue cross"], frames=5, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 5, 24, 24])

    Args:
        prompts: one of `PROMPTS` per clip.
        frames: length of each clip.
        generator: source of start, speed, direction and background.

    Returns:
        Tensor of shape (clips, 3, frames, height, width), RGB in 0..1.
    """
    count = len(prompts)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    colours, shapes = zip(*(prompt.split() for prompt in prompts), strict=True)
    background = _background(uniform(count, 2, 3), uniform(count))
    # A point that moves straight and reflects at 0 and `room` is a triangle wave of its unreflected path.
    room = FRAME_SIZE - 2 * SHAPE_RADIUS
    slow, fast = SPEED_RANGE
    speed, heading = slow + (fast - slow) * uniform(count), 2 * math.pi * uniform(count)
    velocity = torch.stack([speed * heading.cos(), speed * heading.sin()], dim=1)  # (clips, 2)
    start = 2 * room * uniform(count, 2)
    path = start[:, None] + torch.arange(frames)[None, :, None] * velocity[:, None]  # (clips, frames, 2)
    centre = SHAPE_RADIUS + (room - (path.remainder(2 * room) - room).abs())

    pixel = torch.arange(FRAME_SIZE) + 0.5
    x = (pixel[None, None, None, :] - centre[..., 0, None, None]) / SHAPE_RADIUS
    y = (pixel[None, None, :, None] - centre[..., 1, None, None]) / SHAPE_RADIUS
    x, y = torch.broadcast_tensors(x, y)  # (clips, frames, height, width)
    distance = torch.stack([SHAPES[shape](x[i], y[i]) for i, shape in enumerate(shapes)]) * SHAPE_RADIUS
    alpha = (0.5 - distance).clamp(0, 1)[:, None]  # one pixel of antialiasing
    ink = torch.tensor([COLOURS[colour] for colour in colours])[:, :, None, None, None]
    return alpha * ink + (1 - alpha) * background[:, :, None]


def _background(ends: Tensor, turn: Tensor) -> Tensor:
    """A linear gradient between two dark colours (clips, 2, 3), rotated by `turn` (clips,) of a circle."""
    axis = (torch.arange(FRAME_SIZE) + 0.5) / FRAME_SIZE * 2 - 1
    heading = 2 * math.pi * turn[:, None, None]
    ramp = (axis[None, None, :] * heading.cos() + axis[None, :, None] * heading.sin()) * 0.5 / math.sqrt(2) + 0.5
    first, last = 0.5 * ends[:, 0, :, None, None], 0.5 * ends[:, 1, :, None, None]
    return first + (last - first) * ramp[:, None]  # (clips, 3, height, width)


def to_latents(video: Tensor) -> Tensor:
    """RGB in 0..1 to the model's range (about unit variance). The tiny model has no VAE: pixels are its latents."""
    return (video - 0.4) * 4


def to_video(latents: Tensor) -> Tensor:
    """The inverse of `to_latents`, clamped to 0..1."""
    return (latents / 4 + 0.4).clamp(0, 1)


def prompt_embeds(prompts: list[str]) -> Tensor:
    """Prompt tokens for the pipeline: one for the colour, one for the shape; ``""`` gives the unconditional ones.

    >>> prompt_embeds(["red ring", ""]).shape
    torch.Size([2, 2, 32])
    """
    words = ["", *COLOURS, *SHAPES]
    table = torch.randn(len(words), EMBED_DIM, generator=torch.Generator().manual_seed(2603))
    index = [[words.index(word) for word in (prompt.split() or ["", ""])] for prompt in prompts]
    return table[torch.tensor(index)]
