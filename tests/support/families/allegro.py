"""Allegro: heads of 24 channels in thirds, theta 10000, half-split in each; 2.2 frames or 2 tokens are a position."""

from dense import Facts, axis_by_axis, blocks, frequencies, half_split

TIME, SPACE = frequencies(8, 10_000.0) / 2.2, frequencies(8, 10_000.0) / 2
TEMPORAL, SPATIAL = axis_by_axis(TIME, SPACE, SPACE)


def still(tables):
    """For ((cos, sin) of each axis, the positions at which they are looked up)."""
    return tuple((cos * 0 + 1, sin * 0) for cos, sin in tables[0]), tables[1]


FACTS = {
    "allegro": Facts(blocks("transformer_blocks.*.attn1"), half_split(24, (8, 8, 8)), TEMPORAL, SPATIAL, still=still)
}
