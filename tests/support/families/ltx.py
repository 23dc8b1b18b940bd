"""LTX-Video and LTX-2: 2 heads of 20 channels, rotated as one head of 40, before they are split.

6 frequencies w = 10000 ** (0, 1/5 .. 1) * pi / 2; after 2 pairs that are not rotated, pair 3k + axis is rotated by
w_k (2 x - 1), x a share of 20 seconds or 2048 pixels. One latent frame is 8 video frames at 25 a second, one token 32
pixels. In LTX-2 the position of a token is its middle; the first latent frame is one video frame.

Angles grow to 1.6e4 rad, where the error of float32 is 1e-3. The oracle must match the model, so it rounds in the same
way, operation by operation.
"""

import math

import torch
from dense import Facts, blocks, half_split, interleaved

SECONDS, PIXELS = 20, 2048
PATHS = blocks("transformer_blocks.*.attn1")


def waves(dtype):
    return (10_000.0 ** torch.linspace(0, 1, 6, dtype=dtype) * math.pi / 2).float()


def on_axis(axis, values):
    """(n, 6) values of one axis -> (heads, n, pairs), 0 elsewhere."""
    found = torch.zeros(len(values), 20, dtype=torch.float64)
    found[:, 2 + axis :: 3] = values.double()
    return found.view(-1, 2, 10).transpose(0, 1)


def rotations(axis, shares, dtype):
    return on_axis(axis, (shares.float()[:, None] * 2 - 1) * waves(dtype))


def facts(pairs, seconds, middle, dtype, rotary, trained_rate, rate=25):
    """`seconds` of frames 0, 1, ..., and the position of a token within it, from 0 to 1."""
    temporal = on_axis(0, 2 * waves(dtype).double()[None] * (8 / rate / SECONDS))[:, 0]

    def spatial(height, width):
        rows, columns = ((torch.arange(size) + middle) * 32 / PIXELS for size in (height, width))
        per_row = rotations(1, rows, dtype).repeat_interleave(width, dim=1)
        return per_row + rotations(2, columns, dtype).repeat(1, height, 1)

    def times(frames):
        """In latent frames, of each pair on its own, because each has its own rounding."""
        angles = rotations(0, seconds(frames, rate) / SECONDS, dtype).transpose(0, 1)
        return torch.where(temporal == 0, 0, angles / temporal)[:, :, None]

    return Facts(PATHS, pairs, temporal, spatial, times=times, rotary=rotary, spacing=trained_rate / rate)


def uniform(frames, rate):
    return torch.arange(frames).float() * (8 / rate)


def middles(frames, rate):
    """Video frames 0, 1 to 8, 9 to 16 ..."""
    starts, ends = [((torch.arange(frames) + late) * 8.0 - 7).clamp(min=0) / rate for late in (0, 1)]
    return (starts + ends) / 2


# The pipelines of LTX have 25 frames per second, those of LTX-2 have 24.
LTX = (interleaved(20), uniform, 0, torch.float32, ("image_rotary_emb",), 25)
LTX_2 = (middles, 0.5, torch.float64, ("query_rotary_emb",), 24)
EVERY = {"ltx": LTX, "ltx-2": (interleaved(20), *LTX_2), "ltx-2-split": (half_split(20), *LTX_2)}

FACTS = {name: facts(*own) for name, own in EVERY.items()}


def at_rate(name, rate):
    """The facts of a model at another frame rate than that of its example."""
    return facts(*EVERY[name], rate=rate)
