"""The synthetic dataset of the tiny model: a camera pans along endless hills while a coloured shape bounces around.

The hills move through the frame. So near frames have much in common, and distant ones only the colours and the shape.
These are what a long video must keep; the hills must not repeat. Clips are computed from closed formulas (value noise
for the hills, a triangle wave for the bounces, signed distances for the shapes). So there are true clips of any length,
which samples can be compared with.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

HEIGHT, WIDTH = 20, 28
"""Size of a frame, in pixels."""

SHAPE_RADIUS = 4.0
"""Half the size of a shape, in pixels."""

SPEED_RANGE = (0.6, 1.4)
"""Slowest and fastest shape, in pixels per frame."""

KNOT = 7
"""Distance from one hilltop or valley to the next, and from one pole to the next, in pixels."""

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

PANS: dict[str, float] = {"slow": 2.0, "fast": 4.0}
"""How fast the camera moves east, in pixels per frame."""


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

PROMPTS = tuple(f"{colour} {shape} {pan}" for pan in PANS for shape in SHAPES for colour in COLOURS)
"""Every prompt of the dataset, such as ``"red ring fast"``."""


def clips(prompts: list[str], frames: int, generator: torch.Generator) -> Tensor:
    """True clips of these prompts.

    >>> clips(["red ring fast", "blue cross slow"], frames=5, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 5, 20, 28])

    Args:
        prompts: one of `PROMPTS` per clip.
        frames: length of each clip.
        generator: random generator of the hills, the colours of the land, and the shape's path.

    Returns:
        Tensor of shape (clips, 3, frames, height, width), RGB in 0..1.
    """
    colours, shapes, pans = zip(*(prompt.split() for prompt in prompts), strict=True)
    land = _landscape(torch.tensor([PANS[pan] for pan in pans]), frames, generator)
    centre = _bounce(len(prompts), frames, generator)
    x, y = torch.broadcast_tensors(
        (_pixels(WIDTH) - centre[..., 0, None, None]) / SHAPE_RADIUS,
        (_pixels(HEIGHT)[:, None] - centre[..., 1, None, None]) / SHAPE_RADIUS,
    )  # (clips, frames, height, width)
    distance = torch.stack([SHAPES[shape](x[i], y[i]) for i, shape in enumerate(shapes)]) * SHAPE_RADIUS
    ink = torch.tensor([COLOURS[colour] for colour in colours])
    return _paint(land, ink, 0.5 - distance)


def _bounce(count: int, frames: int, generator: torch.Generator) -> Tensor:
    """Centre (x, y) of each clip's shape, (clips, frames, 2): constant speed, reflected at the borders."""
    slow, fast = SPEED_RANGE
    speed = slow + (fast - slow) * _uniform(generator, count)
    heading = 2 * math.pi * _uniform(generator, count)
    velocity = torch.stack([speed * heading.cos(), speed * heading.sin()], dim=1)  # (clips, 2)
    room = torch.tensor([WIDTH, HEIGHT]) - 2 * SHAPE_RADIUS
    start = 2 * room * _uniform(generator, count, 2)
    # A point that moves straight and reflects at 0 and `room` is a triangle wave of its unreflected path.
    path = start[:, None] + torch.arange(frames)[None, :, None] * velocity[:, None]
    return SHAPE_RADIUS + (room - (path.remainder(2 * room) - room).abs())


def _landscape(pan: Tensor, frames: int, generator: torch.Generator) -> Tensor:
    """Sky, hills and poles under a camera that moves by `pan` pixels per frame, (clips, 3, frames, height, width)."""
    count, knots = len(pan), (int(max(PANS.values())) * frames + WIDTH) // KNOT + 4
    tops, shades, pole_tops = _uniform(generator, 3, count, knots)
    has_pole = _uniform(generator, count, knots) < 0.6
    hue, hue_step, lightness = _uniform(generator, 3, count)
    sky = _colour(hue, 0.45, 0.35 + 0.55 * lightness)
    horizon = _colour(hue + 0.08, 0.25, 0.55 + 0.4 * lightness)
    ground = _colour(hue + 0.3 + 0.4 * hue_step, 0.6, 0.30 + 0.3 * lightness)

    camera = KNOT + pan[:, None] * torch.arange(frames)  # (clips, frames): column of the landscape at its left border
    column = (camera[..., None] + _pixels(WIDTH)) / KNOT  # (clips, frames, width), in knots
    hill = 3.5 + 5 * _noise(tops, column)
    shade = 0.75 + 0.5 * _noise(shades, column)
    nearest = column.round().long()
    pole_top = hill + 2.5 + 3 * _at(pole_tops, nearest)
    beside = (column - nearest).abs() * KNOT  # pixels from the pole's axis

    above_floor = (HEIGHT - _pixels(HEIGHT))[None, None, :, None]  # pixels
    height = _pixels(HEIGHT)[None, None, None, :, None] / HEIGHT
    video = torch.lerp(sky[:, :, None, None, None], horizon[:, :, None, None, None], height)
    video = video.expand(-1, -1, frames, -1, WIDTH)
    pole = torch.minimum(1.5 - beside[:, :, None], pole_top[:, :, None] - above_floor + 0.5)
    pole = torch.where(_at(has_pole, nearest)[:, :, None], pole, torch.zeros(()))
    video = _paint(video, 0.5 * ground, pole)
    return _paint(video, ground[:, :, None, None, None] * shade[:, None, :, None], hill[:, :, None] - above_floor + 0.5)


def _noise(knots: Tensor, column: Tensor) -> Tensor:
    """Interpolate the values at the knots (clips, knots) smoothly at the columns (clips, frames, width)."""
    left = column.floor().long()
    blend = 0.5 - 0.5 * torch.cos(math.pi * (column - left))
    return torch.lerp(_at(knots, left), _at(knots, left + 1), blend)


def _at(knots: Tensor, index: Tensor) -> Tensor:
    return knots.gather(1, index.flatten(1)).view(index.shape)


def _paint(video: Tensor, ink: Tensor, coverage: Tensor) -> Tensor:
    """Blend ink into a video by its coverage (clips, frames, height, width), which is clamped to 0..1."""
    ink = ink[:, :, None, None, None] if ink.ndim == 2 else ink
    return torch.lerp(video, ink.expand_as(video), coverage.clamp(0, 1)[:, None].expand_as(video))


def _pixels(size: int) -> Tensor:
    return torch.arange(size) + 0.5


def _uniform(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator)


def _colour(hue: Tensor, saturation: float, value: Tensor) -> Tensor:
    """HSV to RGB, (clips, 3). The hue is in 0..1 for the full circle."""
    offset = torch.tensor([5.0, 3.0, 1.0])
    sector = (offset + 6 * hue[:, None]).remainder(6)
    return value[:, None] * (1 - saturation * torch.minimum(sector, 4 - sector).clamp(0, 1))


def to_latents(video: Tensor) -> Tensor:
    """Scale RGB in 0..1 to about unit variance. The tiny model has no VAE: its latents are pixels."""
    return (video - 0.42) * 5.5


def to_video(latents: Tensor) -> Tensor:
    """The inverse of `to_latents`, clamped to 0..1."""
    return (latents / 5.5 + 0.42).clamp(0, 1)


def prompt_embeds(prompts: list[str]) -> Tensor:
    """Prompt tokens for the pipeline: colour, shape and pan. ``""`` gives the unconditional tokens.

    >>> prompt_embeds(["red ring fast", ""]).shape
    torch.Size([2, 3, 32])
    """
    words = ["", *COLOURS, *SHAPES, *PANS]
    table = torch.randn(len(words), EMBED_DIM, generator=torch.Generator().manual_seed(2603))
    index = [[words.index(word) for word in (prompt.split() or ["", "", ""])] for prompt in prompts]
    return table[torch.tensor(index)]
