"""Wan: heads of 24 channels split 8 / 8 / 8, theta 10000, interleaved; VACE blocks run beside layers 0 and 2."""

from dense import Facts, axis_by_axis, blocks, frequencies, interleaved

TEMPORAL, SPATIAL = axis_by_axis(*[frequencies(8, 10_000.0)] * 3)

FACTS = {
    "wan": Facts(blocks("blocks.*.attn1"), interleaved(24), TEMPORAL, SPATIAL, rotary=(3,)),
    "wan-vace": Facts(
        blocks("blocks.*.attn1", "vace_blocks.*.attn1"),
        interleaved(24),
        TEMPORAL,
        SPATIAL,
        layers=(0, 1, 2, 3, 0, 2),
        rotary=(3,),
    ),
}
