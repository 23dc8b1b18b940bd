"""Mochi: 24 channels interleaved, all rotated by f t + g y + h x, with separate frequencies in each of 2 heads.

y and x are the centres of the tokens in a picture of the grid's shape, with 0 at its centre and an area of 192 x 192.
"""

import torch
from dense import Facts, blocks, interleaved
from torch import Tensor

PAIR, HEAD = torch.arange(12, dtype=torch.float64), torch.arange(2, dtype=torch.float64)[:, None]
TIME = (1 + 2 * HEAD) * 10 ** (-PAIR / 4)
ROW = (2 + 2 * HEAD) * 10 ** (-PAIR / 4 - 1)
COLUMN = (3 + 2 * HEAD) * 10 ** (-PAIR / 4 - 2)


def spatial(height: int, width: int) -> Tensor:
    token = 192 / (height * width) ** 0.5
    rows = (torch.arange(height, dtype=torch.float64) + 0.5 - height / 2) * token
    columns = (torch.arange(width, dtype=torch.float64) + 0.5 - width / 2) * token
    angles = rows[:, None, None, None] * ROW + columns[:, None, None] * COLUMN  # (rows, columns, heads, pairs)
    return angles.flatten(0, 1).movedim(1, 0)


FACTS = {"mochi": Facts(blocks("transformer_blocks.*.attn1"), interleaved(24), TIME, spatial)}
