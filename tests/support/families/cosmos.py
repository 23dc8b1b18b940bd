"""Cosmos: heads of 32 channels split 12 / 10 / 10, half-split over the whole head.

theta = 10000 scale ** (n / (n - 2)) on an axis of n channels; time runs at 24 frames per second where a rate is given.
"""

from dense import Facts, axis_by_axis, blocks, frequencies, half_split


def facts(scales, fps, path="transformer_blocks.*.attn1", layers=None):
    rotations = [
        frequencies(channels, 10_000.0 * scale ** (channels / (channels - 2)))
        for channels, scale in zip((12, 10, 10), scales, strict=True)
    ]
    temporal, spatial = axis_by_axis(rotations[0] * 24 / fps, rotations[1], rotations[2])
    return Facts(blocks(path), half_split(32), temporal, spatial, layers=layers, spacing=24 / fps)


FACTS = {"cosmos": facts((2.0, 1.0, 1.0), fps=30), "cosmos-2": facts((20 / 24, 2.0, 2.0), fps=24)}
