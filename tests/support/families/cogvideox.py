"""CogVideoX: heads of 16 channels split 4 / 6 / 6, theta 10000, interleaved, text first; 2b has no RoPE.

In 5b the rows and columns of a grid are spread over the part of the trained grid, 6 x 8 tokens, that has its shape and
is in the middle; in 1.5 they are 0, 1, 2 ...
"""

from collections.abc import Callable

import torch
from dense import Facts, axis_by_axis, blocks, frequencies, interleaved
from torch import Tensor

PATHS = blocks("transformer_blocks.*.attn1")
TIME, ROW, COLUMN = frequencies(4, 10_000.0), frequencies(6, 10_000.0), frequencies(6, 10_000.0)
TEMPORAL, RASTER = axis_by_axis(TIME, ROW, COLUMN)


def spread_over(trained_height: int, trained_width: int) -> Callable[[int, int], Tensor]:
    """`Facts.spatial` where a grid is in the middle of the trained one, as large as fits."""

    def places(count: int, trained: int, size: float) -> Tensor:
        first = round((trained - round(size)) / 2)
        return torch.linspace(first, (first + round(size)) * (count - 1) / count, count, dtype=torch.float64)

    def spatial(height: int, width: int) -> Tensor:
        zoom = min(trained_height / height, trained_width / width)
        rows = places(height, trained_height, zoom * height).repeat_interleave(width)[:, None] * ROW
        columns = places(width, trained_width, zoom * width).repeat(height)[:, None] * COLUMN
        return torch.cat([torch.zeros(height * width, len(TIME), dtype=torch.float64), rows, columns], dim=1)

    return spatial


FACTS = {
    "cogvideox": Facts(PATHS, interleaved(16), TEMPORAL, spread_over(6, 8), text="first"),
    "cogvideox-1.5": Facts(PATHS, interleaved(16), TEMPORAL, RASTER, text="first"),
    "cogvideox-2b": Facts.without_rope(PATHS, text="first"),
}
