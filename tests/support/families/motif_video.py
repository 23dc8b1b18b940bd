"""Motif-Video: rope_axes_dim (8, 8, 8), theta 256, interleaved, video first."""

from dense import Facts, axis_by_axis, blocks, frequencies, interleaved

TEMPORAL, SPATIAL = axis_by_axis(*[frequencies(8, 256.0)] * 3)
PATHS = blocks("transformer_blocks.*.attn", "single_transformer_blocks.*.attn")

FACTS = {"motif-video": Facts(PATHS, interleaved(24), TEMPORAL, SPATIAL)}
